"""One document -> its encoded copies: shifted, described, composed, captioned; what workers do."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from multimodal_gpt.data.captions import Captions, caption
from multimodal_gpt.data.corpus import PARTLY, UNREADABLE, Group, Skip, described, read_group
from multimodal_gpt.errors import UserError
from multimodal_gpt.stream import plugins
from multimodal_gpt.stream.document import Document, Segment
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.tokenizer import Tokenizer
from multimodal_gpt.stream.vocabulary import Encoded, Vocabulary

FAILED = "failed"
"""Kind of `Skip` for a mistake inside a plugin."""


@dataclass(frozen=True)
class Rules:
    """What is done to every document.

    Args:
        readers: modalities in id order, with options that can read before anything is learnt.
        folder: where files named in their options lie.
        learning: those that learn from the corpus: their contents are encoded after that, not here.
        captions: None where the recipe has no templates.
        shifts: copies of each document, 0 first.
    """

    readers: tuple[Modality, ...]
    folder: Path
    learning: frozenset[str]
    captions: Captions | None
    shifts: tuple[int, ...]


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


@dataclass(frozen=True)
class Brief:
    """The little that is kept in memory of each document until the shards are written.

    `tracks`: metadata that ends in "_track"; `templates`: caption templates used by any copy.
    """

    source: str
    title: str
    held_out: bool
    tracks: tuple[tuple[str, str], ...]
    templates: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """What a worker makes of a group: skips, and (brief, pickled list of copies) of each document."""

    skips: tuple[Skip, ...]
    documents: tuple[tuple[Brief, bytes], ...]


def make_tools(rules: Rules) -> Tools:
    """Build the tokenizers of some rules. Raises UserError where one can't be built."""
    tokenizers = {m.name: plugins.build(m, rules.folder) for m in rules.readers}
    ready = [m for m in rules.readers if m.name not in rules.learning]
    return Tools(rules, tokenizers, Vocabulary(ready, rules.folder))


def make_work(rules: Rules) -> Callable[[Group], bytes]:
    """What a worker does with a group: gives a pickled Answer. Called once in every worker."""
    return partial(_work, make_tools(rules))


def _work(tools: Tools, group: Group) -> bytes:
    try:
        return pickle.dumps(answer(group, tools))
    except Exception as error:  # a plugin's mistake must cost one file, not the whole run
        skip = Skip(group.name, FAILED, f"{type(error).__name__}: {error}")
        return pickle.dumps(Answer((skip,), ()))


def answer(group: Group, tools: Tools) -> Answer:
    """Read a group and encode its documents."""
    skips: list[Skip] = []
    documents: list[tuple[Brief, bytes]] = []
    for found in read_group(group, tools.tokenizers):
        if isinstance(found, Skip):
            skips.append(found)
            continue
        shifts = (0,) if group.held_out else tools.rules.shifts
        copies, templates, problems = copies_of(found, shifts, tools)
        kind = PARTLY if copies else UNREADABLE
        skips += [Skip(found.source, kind, p) for p in (problems if copies else problems[:1])]
        if copies:
            documents.append((_brief(copies[0], found.source, templates, group), pickle.dumps(copies)))
    return Answer(tuple(skips), tuple(documents))


def _brief(copy: Copy, source: str, templates: Iterable[str], group: Group) -> Brief:
    tracks = tuple((k, str(v)) for k, v in sorted(copy.metadata.items()) if k.endswith("_track"))
    title = copy.metadata.get("title")
    return Brief(source, title if isinstance(title, str) else "", group.held_out, tracks, tuple(templates))


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
    moved: list[Segment] = []
    for part in parts:
        shift = getattr(tools.tokenizers[part.segment.modality], "shift", None)
        has_time = part.encoded is not None and part.encoded.clock is not None
        if shift is None and has_time:
            return []
        content = part.segment.content if shift is None else shift(part.segment.content, steps)
        if content is None:
            return []
        moved.append(replace(part.segment, content=content))
    encoded, problems = _encode(moved, tools)
    return [] if problems else encoded


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
