"""What worker processes do: read groups of files, and write spans of documents as record batches."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from multimodal_gpt.data.batches import CODEC, StoredDocument, to_batch
from multimodal_gpt.data.copies import Answer, Brief, Copy, Rules, Tools, answer, make_tools
from multimodal_gpt.data.corpus import Group
from multimodal_gpt.data.parts import Place, Reader, copies_schema, pack
from multimodal_gpt.data.reading import Skip, failing
from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.vocabulary import Encoded, Vocabulary

FAILED = "failed"
"""Kind of `Skip` for a mistake inside a plugin."""

COUNTS = ("documents", "segments", "tokens", "units")
"""What is counted of each modality."""

Work = Callable[[Any], bytes]


def make_reader(rules: Rules) -> Work:
    """What a worker does with a `Group`: gives a pickled `Packed`."""
    copies_schema()  # imports Arrow, which is not to count as the time of the first file
    return partial(_read, make_tools(rules))


def _read(tools: Tools, group: Group) -> bytes:
    try:
        found = answer(group, tools)
    except Exception as error:  # a plugin's mistake must cost one file, not the whole run
        skip = Skip(group.title, FAILED, f"{type(error).__name__}: {error}")
        found = Answer((skip,), (), tuple(failing(group.paths[0], error)))
    return pickle.dumps(pack(found))


@dataclass(frozen=True)
class Span:
    """Documents that stand together in a split: (place, group) of each."""

    split: str
    documents: tuple[tuple[Place, str], ...]


def make_lister(parts: Path, session: str, names: Sequence[str], modality: str) -> Work:
    """What a worker does with a `Span`: gives a pickled list of all contents of a modality in it, shifted
    copies included.
    """
    return partial(_list, Reader(parts, session, names), modality)


def _list(reader: Reader, modality: str, span: Span) -> bytes:
    return pickle.dumps([c for place, _ in span.documents for c in reader.contents(place, modality)])


@dataclass(frozen=True)
class Written:
    """What a worker makes of a `Span`.

    Args:
        batch: a record batch in the columns of a shard, serialized and compressed: pipes are slow.
        bytes, rows: its size before that, and its rows; 0 where there are none.
        documents: a line of `documents.jsonl` for each.
        templates: caption templates that each document uses.
        counts: modality -> documents, segments, tokens, units.
        problems: source, and why a segment of it could not be encoded.
    """

    batch: bytes
    bytes: int
    rows: int
    documents: tuple[dict[str, Any], ...]
    templates: tuple[tuple[str, ...], ...]
    counts: Mapping[str, Mapping[str, int]]
    problems: tuple[tuple[str, str], ...]


def make_writer(
    parts: Path, session: str, modalities: Sequence[Modality], folder: Path, weights: Mapping[str, float]
) -> Work:
    """What a worker does with a `Span`: gives a pickled `Written`. `folder`: files of fitted modalities."""
    vocabulary = Vocabulary(modalities, folder)
    return _Writer(Reader(parts, session, vocabulary.names), vocabulary, weights)


@dataclass(frozen=True, eq=False)
class _Writer:
    reader: Reader
    vocabulary: Vocabulary
    weights: Mapping[str, float]

    def __call__(self, span: Span) -> bytes:
        import pyarrow as pa

        stored: list[StoredDocument] = []
        lines: list[dict[str, Any]] = []
        templates: list[tuple[str, ...]] = []
        problems: list[tuple[str, str]] = []
        counts = {n: dict.fromkeys(COUNTS, 0) for n in self.vocabulary.names}
        for place, group in span.documents:
            brief = self.reader.brief(place)
            copies, wrong = self._copies(place, brief, group, span.split)
            lines.append(self._line(brief, group, span.split, copies))
            templates.append(brief.templates)
            problems += [(brief.source, problem) for problem in wrong]
            _count(counts, copies)
            stored += copies
        batch = to_batch(stored).serialize()
        packed = pa.compress(batch, CODEC, asbytes=True)
        sizes = batch.size, len(stored)
        return pickle.dumps(Written(packed, *sizes, tuple(lines), tuple(templates), counts, tuple(problems)))

    def _copies(
        self, place: Place, brief: Brief, group: str, split: str
    ) -> tuple[list[StoredDocument], list[str]]:
        order = {name: i for i, name in enumerate(self.vocabulary.names)}
        copies = self.reader.copies(place)
        stored: list[StoredDocument] = []
        problems: list[str] = []
        for copy in copies if split == "train" else copies[:1]:
            encoded, wrong = self._encode_pending(copy)
            problems += wrong
            segments = tuple(sorted([*copy.segments, *encoded], key=lambda s: order[s.modality]))
            if segments:
                stored.append(StoredDocument(segments, dict(copy.metadata), brief.source, group, copy.shift))
        return stored, problems

    def _encode_pending(self, copy: Copy) -> tuple[list[Encoded], list[str]]:
        encoded: list[Encoded] = []
        problems: list[str] = []
        for segment in copy.pending:
            try:
                encoded.append(self.vocabulary.encode(segment.modality, segment.content))
            except UserError as error:
                problems.append(str(error))
        return encoded, problems

    def _line(self, brief: Brief, group: str, split: str, copies: Sequence[StoredDocument]) -> dict[str, Any]:
        tokens: dict[str, int] = {}
        for segment in copies[0].segments if copies else ():
            tokens[segment.modality] = max(tokens.get(segment.modality, 0), len(segment.ids))
        return {
            "source": brief.source,
            "group": group,
            "split": split,
            "title": brief.title,
            "tracks": dict(brief.tracks),
            "errors": dict(brief.errors),
            "tokens": tokens,
            "weight": self.weights.get(brief.source.partition("/")[0], 1.0),
        }


def _count(counts: Mapping[str, dict[str, int]], copies: Sequence[StoredDocument]) -> None:
    for name in {s.modality for c in copies for s in c.segments}:
        counts[name]["documents"] += 1
    for segment in (s for c in copies for s in c.segments):
        entry = counts[segment.modality]
        entry["segments"] += 1
        entry["tokens"] += len(segment.ids)
        entry["units"] += segment.units
