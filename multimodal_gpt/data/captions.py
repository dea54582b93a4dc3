"""Captions: words made by a recipe's templates from what is known about a document.

"a {kind}[ in {key}][, {bars} bars]" + {"kind": "reel", "key": "D major"} -> "a reel in D major" or "a reel"

What stands in square brackets is left out at random, and always where one of its fields is unknown; "[[" and
"]]" write brackets, "{{" and "}}" braces. What each caption states is kept in the document's metadata.
"""

from __future__ import annotations

import hashlib
import random
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.document import Document, Segment
from multimodal_gpt.stream.tokenizer import Tokenizer

GIVEN = "given"
"""Field of a template: the document's own words, where it has some."""
LABELS = "captions"
"""Key of a document's metadata: for each caption, in their order, the facts that it states: field -> value.
The document's own words state no known fact."""
ROUNDS = 4
"""How often each template is tried, each time with other parts left out."""


@dataclass(frozen=True)
class Captions:
    """How captions are made.

    Args:
        into: modality that receives them.
        templates: phrases, used where every field outside of brackets is known.
        variants: captions per document at most.
        seed: decides which.
        drop: probability that a part in brackets is left out.
    """

    into: str
    templates: tuple[str, ...]
    variants: int
    seed: int
    drop: float = 0.3


@dataclass(frozen=True)
class Part:
    """A stretch of a template: a str.format phrase and its fields."""

    words: str
    fields: tuple[str, ...]
    optional: bool


@dataclass(frozen=True)
class Phrase:
    """What a template says of a document, and the facts that it states."""

    words: str
    template: str
    facts: Mapping[str, Any]


def check_templates(templates: Sequence[str]) -> None:
    """Raises UserError where a template is no format string, has a bracket without its partner, or names
    no field by its plain name.
    """
    where = "data.captions.templates"
    for template in templates:
        try:
            names = fields(template)
        except ValueError as error:
            fix = "write {{ and }} for braces, [[ and ]] for brackets"
            raise UserError(f"{template!r} is not a template: {error}", where, fix) from None
        wrong = [n for n in names if not n.isidentifier()]
        if wrong:
            raise UserError(f"{template!r}: '{wrong[0]}' is not the name of a field", where)


def fields(template: str) -> list[str]:
    """Names of the fields of a template.

    Example:
        >>> fields("a {kind}[ in {key}]")
        ['kind', 'key']
    """
    return [name for part in parts(template) for name in part.fields]


@cache
def parts(template: str) -> tuple[Part, ...]:
    """The parts of a template in order. Raises ValueError where it is none.

    Example:
        >>> [(part.words, part.optional) for part in parts("a {kind}[ in {key}]")]
        [('a {kind}', False), (' in {key}', True)]
    """
    found: list[Part] = []
    words, inside = "", False
    for piece in re.split(r"(\[\[|\]\]|\[|\])", template):
        if piece in ("[", "]"):
            if (piece == "[") == inside:
                raise ValueError("'[' inside of '[...]'" if inside else "']' without '['")
            found.append(_part(words, inside))
            words, inside = "", not inside
        else:
            words += piece[:1] if piece in ("[[", "]]") else piece
    if inside:
        raise ValueError("'[' without ']'")
    return tuple(part for part in (*found, _part(words, False)) if part.words)


def _part(words: str, optional: bool) -> Part:
    names = tuple(name for _, name, _, _ in string.Formatter().parse(words) if name is not None)
    return Part(words, names, optional)


def phrases(
    templates: Sequence[str], facts: Mapping[str, Any], drop: float, generator: random.Random
) -> Iterator[Phrase]:
    """Different phrases in random order, of every template before a second one of any."""
    # `random` alone is sure to stay the same in later versions of Python; `shuffle` is not.
    order = sorted(templates, key=lambda _: generator.random())
    told: set[str] = set()
    for template in order * ROUNDS:
        phrase = _phrase(template, facts, drop, generator)
        if phrase is not None and phrase.words not in told:
            told.add(phrase.words)
            yield phrase


def _phrase(template: str, facts: Mapping[str, Any], drop: float, generator: random.Random) -> Phrase | None:
    """None where a field outside of brackets is unknown, or nothing is left to say."""
    words = ""
    stated: dict[str, Any] = {}
    for part in parts(template):
        left_out = part.optional and generator.random() < drop
        said = _said(part, facts)
        if said is None and not part.optional:
            return None
        if said is not None and not left_out:
            words += said
            stated |= {name: facts[name] for name in part.fields if name != GIVEN}
    return Phrase(words, template, stated) if words.strip() else None


def _said(part: Part, facts: Mapping[str, Any]) -> str | None:
    if any(facts.get(name) in (None, "") for name in part.fields):
        return None
    try:
        return part.words.format_map(facts)
    except (ValueError, TypeError):  # {bars:d} of a word: this part can't say it
        return None


def caption(
    document: Document, captions: Captions, tokenizer: Tokenizer, shift: int = 0
) -> tuple[Document, tuple[str, ...]]:
    """The document with up to `variants` different captions behind its own words and their LABELS in its
    metadata, and the templates that were used.

    The k-th caption is drawn by (seed, source, shift, k). The facts are the document's metadata, so
    describe it first.
    """
    own = document.content(captions.into)
    facts = {**document.metadata, GIVEN: own if isinstance(own, str) else None}
    generator = seeded(captions.seed, document.source, shift)
    made: list[tuple[Segment, Phrase]] = []
    for phrase in phrases(captions.templates, facts, captions.drop, generator):
        try:
            made.append((Segment(captions.into, tokenizer.parse(phrase.words)), phrase))
        except UserError:
            continue
        if len(made) == captions.variants:
            break
    metadata = {**document.metadata, LABELS: [dict(phrase.facts) for _, phrase in made]}
    segments = (*document.segments, *(segment for segment, _ in made))
    used = tuple(phrase.template for _, phrase in made)
    return replace(document, segments=segments, metadata=metadata), used


def seeded(*values: object) -> random.Random:
    """A generator seeded by any printable values; its `random` is the same on every machine."""
    digest = hashlib.sha256("\0".join(map(str, values)).encode("utf-8", "surrogatepass")).digest()
    return random.Random(int.from_bytes(digest, "little"))  # a fifth of the time that NumPy's take to seed
