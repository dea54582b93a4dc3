"""One document -> its encoded copies: shifted, described, composed, captioned; what reading workers do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from multimodal_gpt.data.captions import Captions, caption
from multimodal_gpt.data.corpus import Group
from multimodal_gpt.data.duplicates import sketch_document
from multimodal_gpt.data.reading import PARTLY, UNREADABLE, Skip, described, read_group
from multimodal_gpt.errors import UserError
from multimodal_gpt.stream import plugins
from multimodal_gpt.stream.document import Document, Segment
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.tokenizer import Tokenizer
from multimodal_gpt.stream.vocabulary import Encoded, Vocabulary


@dataclass(frozen=True)
class Rules:
    """What is done to every document.

    Args:
        readers: modalities in id order, with options that can read before anything is learnt.
        folder: where files named in their options lie.
        learning: those that learn from the corpus: their contents are encoded after that, not here.
        captions: None where the recipe has no templates.
        shifts: copies of each document, 0 first.
        fingerprint: changes when any of this does.
    """

    readers: tuple[Modality, ...]
    folder: Path
    learning: frozenset[str]
    captions: Captions | None
    shifts: tuple[int, ...]
    fingerprint: str = ""


@dataclass(frozen=True, eq=False)
class Tools:
    """Rules, the tokenizers of all readers, and a vocabulary of those modalities that need not learn."""

    rules: Rules
    tokenizers: Mapping[str, Tokenizer]
    encoder: Vocabulary


@dataclass(frozen=True, eq=False)
class Copy:
    """A document moved by `shift`; `pending` are contents of modalities that are still to learn."""

    shift: int
    metadata: Mapping[str, Any]
    segments: tuple[Encoded, ...]
    pending: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Brief:
    """What is known of a document beside its copies.

    `tracks`: metadata that ends in "_track"; `errors`: numbers that end in "_error"; `templates`: caption
    templates used by any copy; `sketch`: see `duplicates`.
    """

    source: str
    title: str
    held_out: bool
    tracks: Mapping[str, str]
    errors: Mapping[str, float]
    templates: tuple[str, ...]
    sketch: bytes = b""


@dataclass(frozen=True)
class Answer:
    """What a worker makes of a group: skips, (brief, copies) of each document, and the files that its lines
    name: path, bytes, time of change in ns.
    """

    skips: tuple[Skip, ...]
    documents: tuple[tuple[Brief, tuple[Copy, ...]], ...]
    references: tuple[tuple[str, int, int], ...] = ()


def make_tools(rules: Rules) -> Tools:
    """Build the tokenizers of some rules. Raises UserError where one can't be built."""
    tokenizers = {m.name: plugins.build(m, rules.folder) for m in rules.readers}
    ready = [m for m in rules.readers if m.name not in rules.learning]
    return Tools(rules, tokenizers, Vocabulary(ready, rules.folder))


def answer(group: Group, tools: Tools) -> Answer:
    """Read a group and encode its documents."""
    skips: list[Skip] = []
    documents: list[tuple[Brief, tuple[Copy, ...]]] = []
    reading = read_group(group, tools.tokenizers)
    for found in reading.results:
        if isinstance(found, Skip):
            skips.append(found)
            continue
        shifts = (0,) if group.held_out else tools.rules.shifts
        copies, templates, problems = copies_of(found, shifts, tools)
        kind = PARTLY if copies else UNREADABLE
        skips += [Skip(found.source, kind, p) for p in (problems if copies else problems[:1])]
        if copies:
            brief = _brief(found, copies[0], templates, group, tools)
            documents.append((brief, tuple(copies)))
    return Answer(tuple(skips), tuple(documents), reading.references)


def _brief(document: Document, copy: Copy, templates: tuple[str, ...], group: Group, tools: Tools) -> Brief:
    told = sorted(copy.metadata.items())
    tracks = {k: str(v) for k, v in told if k.endswith("_track")}
    errors = {k: float(v) for k, v in told if k.endswith("_error") and isinstance(v, int | float)}
    title = copy.metadata.get("title")
    title = title if isinstance(title, str) else ""
    sketch = sketch_document(document.segments, tools.tokenizers)
    return Brief(document.source, title, group.held_out, tracks, errors, templates, sketch)


def copies_of(
    document: Document, shifts: Sequence[int], tools: Tools
) -> tuple[list[Copy], tuple[str, ...], list[str]]:
    """The encoded copies of a document, the caption templates that they use, and what could not be
    encoded.

    No copies where nothing could be. A shift that a modality refuses, or would need and does not know,
    gives none.
    """
    parts, problems = _encode(document.segments, tools)
    copies: list[Copy] = []
    used: dict[str, None] = {}
    for steps in shifts if parts else ():
        moved = parts if steps == 0 else _shifted(parts, steps, tools)
        if moved:
            plain = replace(document, segments=tuple(p.segment for p in moved))
            complete, templates = _completed(plain, steps, tools)
            added, _ = _encode(complete.segments[len(moved) :], tools)
            copies.append(_copy([*moved, *added], steps, complete.metadata, tools))
            used |= dict.fromkeys(templates)
    return copies, tuple(used), problems


@dataclass(frozen=True, eq=False)
class _Part:
    segment: Segment
    encoded: Encoded | None  # None: its modality is still to learn


def _encode(segments: Iterable[Segment], tools: Tools) -> tuple[list[_Part], list[str]]:
    """Those segments that can be encoded, and why the others can't."""
    parts: list[_Part] = []
    problems: list[str] = []
    for segment in segments:
        try:
            learning = segment.modality in tools.rules.learning
            encoded = None if learning else tools.encoder.encode(segment.modality, segment.content)
            parts.append(_Part(segment, encoded))
        except UserError as error:
            problems.append(str(error))
    return parts, problems


def _shifted(parts: Sequence[_Part], steps: int, tools: Tools) -> list[_Part]:
    """The parts moved by `steps`; none where one that has a time can't be."""
    moved: list[_Part] = []
    for part in parts:
        found = _moved(part, steps, tools)
        if found is None:
            return []
        moved.append(found)
    return moved


def _moved(part: _Part, steps: int, tools: Tools) -> _Part | None:
    tokenizer = tools.tokenizers[part.segment.modality]
    shift, shift_ids = getattr(tokenizer, "shift", None), getattr(tokenizer, "shift_ids", None)
    if shift is None:
        has_time = part.encoded is not None and part.encoded.clock is not None
        return None if has_time else part
    content = shift(part.segment.content, steps)
    if content is None:
        return None
    segment = replace(part.segment, content=content)
    if part.encoded is not None and shift_ids is not None:
        ids = shift_ids(part.encoded.ids, steps)
        return None if ids is None else _Part(segment, replace(part.encoded, ids=ids))
    encoded, _ = _encode([segment], tools)
    return encoded[0] if encoded else None


def _completed(document: Document, steps: int, tools: Tools) -> tuple[Document, tuple[str, ...]]:
    """The document described, and behind its segments what modalities compose from that, and captions."""
    document = described(document, tools.tokenizers)
    composed: list[Segment] = []
    for name, tokenizer in tools.tokenizers.items():
        compose = getattr(tokenizer, "compose", None)
        content = compose(document.metadata) if compose and name not in document.modalities else None
        if content is not None:
            composed.append(Segment(name, content))
    document = replace(document, segments=(*document.segments, *composed))
    captions = tools.rules.captions
    return caption(document, captions, tools.tokenizers[captions.into], steps) if captions else (document, ())


def _copy(parts: Sequence[_Part], steps: int, metadata: Mapping[str, Any], tools: Tools) -> Copy:
    order = {name: i for i, name in enumerate(tools.tokenizers)}
    parts = sorted(parts, key=lambda p: order[p.segment.modality])
    encoded = tuple(p.encoded for p in parts if p.encoded is not None)
    return Copy(steps, metadata, encoded, tuple(p.segment for p in parts if p.encoded is None))
