"""Captions: words made by a recipe's templates from what is known about a document.

"a {kind} in {key}" + {"kind": "reel", "key": "D major"} -> "a reel in D major"
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.document import Document, Segment
from multimodal_gpt.stream.tokenizer import Tokenizer

GIVEN = "given"
"""Field of a template: the document's own words, where it has some."""


@dataclass(frozen=True)
class Captions:
    """How captions are made.

    Args:
        into: modality that receives them.
        templates: str.format phrases, used where every field is known.
        variants: captions per document at most.
        seed: decides which.
    """

    into: str
    templates: tuple[str, ...]
    variants: int
    seed: int


def check_templates(templates: Sequence[str]) -> None:
    """Raises UserError where a template is no format string or names no field by its plain name."""
    for template in templates:
        try:
            names = fields(template)
        except ValueError as error:
            fix = "write {{ and }} for braces"
            raise UserError(
                f"{template!r} is not a template: {error}", "data.captions.templates", fix
            ) from None
        wrong = [n for n in names if not n.isidentifier()]
        if wrong:
            raise UserError(
                f"{template!r}: '{wrong[0]}' is not the name of a field", "data.captions.templates"
            )


def fields(template: str) -> list[str]:
    """Names of the fields of a template.

    Example:
        >>> fields("a {kind} in {key}")
        ['kind', 'key']
    """
    return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


def phrases(templates: Sequence[str], facts: Mapping[str, Any]) -> dict[str, str]:
    """Phrase -> template, for every template whose fields are all known and not empty; each phrase once."""
    found: dict[str, str] = {}
    for template in templates:
        if all(facts.get(name) not in (None, "") for name in fields(template)):
            try:
                found.setdefault(template.format_map(facts), template)
            except (ValueError, TypeError):  # {bars:d} of a word: this template can't say it
                continue
    return found


def caption(
    document: Document, captions: Captions, tokenizer: Tokenizer, shift: int = 0
) -> tuple[Document, tuple[str, ...]]:
    """The document with up to `variants` captions behind its own words, and the templates that were
    used.

    Which ones is drawn by (seed, source, shift). The facts are the document's metadata, so describe it
    first.
    """
    own = document.content(captions.into)
    facts = {**document.metadata, GIVEN: own if isinstance(own, str) else None}
    found = phrases(captions.templates, facts)
    drawn = seeded(captions.seed, document.source, shift).permutation(len(found))[: captions.variants]
    segments, used = list(document.segments), []
    for phrase in [list(found)[i] for i in sorted(drawn)]:
        try:
            segments.append(Segment(captions.into, tokenizer.parse(phrase)))
        except UserError:
            continue
        used.append(found[phrase])
    return Document(tuple(segments), document.metadata, document.source), tuple(used)


def seeded(*values: object) -> np.random.Generator:
    """A generator seeded by any printable values, the same on every machine."""
    digest = hashlib.sha256("\0".join(map(str, values)).encode("utf-8", "surrogatepass")).digest()
    return np.random.Generator(np.random.PCG64DXSM(int.from_bytes(digest[:16], "little")))
