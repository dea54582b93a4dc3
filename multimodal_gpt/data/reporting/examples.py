"""Three documents of finished shards to look at: as pictures, as words and as tokens."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from multimodal_gpt.data.batches import StoredDocument, View
from multimodal_gpt.data.shards import read_manifest
from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.picture import CHUNKS_PER_LINE, can_draw, draw
from multimodal_gpt.stream.vocabulary import Encoded, Vocabulary

EXAMPLES = 3
CHUNKS = 4 * CHUNKS_PER_LINE
"""Chunks in a picture: four lines."""
WINDOWS = 16
"""So many times as much is looked at to find them."""
CHARACTERS = 600
"""Of each segment: enough to see what it is."""


@dataclass(frozen=True)
class Example:
    """One document to look at.

    Args:
        source: its name.
        metadata: what is known about it.
        picture: a PNG of a few lines of it; empty where there is none.
        before: chunks before those in the picture.
        problem: why there is none.
        segments: (modality, tokens, the beginning of what its tokenizer shows).
    """

    source: str
    metadata: Mapping[str, Any]
    picture: bytes
    before: int
    problem: str
    segments: tuple[tuple[str, int, str], ...]


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The documents in a `documents.jsonl`, one by one."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def choose(lines: Iterable[Mapping[str, Any]], drawn: Collection[str]) -> list[str]:
    """Names of three documents in the shards: those that have most to draw, then most modalities, then by
    hash; from different sources where there are several.
    """
    best: dict[str, list[tuple[Any, ...]]] = {}
    for line in lines:
        if line["tokens"] and line["split"] in ("train", "valid"):
            source = line["source"]
            digest = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
            rank = (-len(set(drawn) & set(line["tokens"])), -len(line["tokens"]), digest, source)
            label = source.partition("/")[0]
            best[label] = heapq.nsmallest(EXAMPLES, [*best.get(label, []), rank])
    turns = [(turn, *rank) for ranks in best.values() for turn, rank in enumerate(ranks)]
    return [rank[-1] for rank in sorted(turns)[:EXAMPLES]]


def find(folder: Path, sources: Collection[str]) -> dict[str, StoredDocument]:
    """The unmoved copies of documents by name; reads no other document."""
    import pyarrow as pa
    import pyarrow.compute as pc

    manifest = read_manifest(folder)
    files = [folder / entry["name"] for split in manifest["splits"].values() for entry in split["files"]]
    wanted, found = pa.array(sources, pa.string()), {}
    for path in files:
        reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
        for batch in map(reader.get_batch, range(reader.num_record_batches)):
            here = pc.and_(pc.is_in(batch["source"], wanted), pc.equal(batch["shift"], 0))
            for row in np.flatnonzero(here.to_numpy(zero_copy_only=False)).tolist():
                document = View.of(batch, manifest["modalities"]).document(row)
                found[document.source] = document
    return found


def make_examples(folder: Path, lines: Iterable[Mapping[str, Any]], vocabulary: Vocabulary) -> list[Example]:
    """Three documents of the shards in `folder`, chosen from the lines of its `documents.jsonl`."""
    chosen = choose(lines, can_draw(vocabulary, vocabulary.names))
    documents = find(folder, chosen)
    return [_example(documents[source], vocabulary) for source in chosen if source in documents]


def _example(document: StoredDocument, vocabulary: Vocabulary) -> Example:
    picture, before, problem = b"", 0, "none of its modalities can be drawn"
    try:
        contents, before = excerpt(document.segments, vocabulary)
        if contents:
            picture, problem = draw(contents, vocabulary, ""), ""
    except Exception as error:  # a plugin's drawing, or no font: the shards are as good without a picture
        problem = f"{type(error).__name__}: {error}"
    shown = tuple((s.modality, len(s.ids), _shown(s, vocabulary)) for s in document.segments)
    return Example(document.source, document.metadata, picture, before, problem, shown)


def excerpt(segments: Iterable[Encoded], vocabulary: Vocabulary) -> tuple[dict[str, Any], int]:
    """Modality -> content of what can be drawn, in the first 32 chunks where none of it is silent, else where
    least is; and the number of chunks before that.
    """
    first = {s.modality: s for s in reversed(list(segments))}
    parts = [first[n] for n in can_draw(vocabulary, [n for n in vocabulary.names if n in first])]
    starts = max((part.times for part in parts), key=len, default=np.zeros(0))[::CHUNKS]
    best: dict[str, Any] = {}
    before = 0
    for window, (start, stop) in enumerate(pairwise([*starts[:WINDOWS].tolist(), _stop(starts)])):
        found = dict(_between(parts, start, stop, vocabulary))
        if len(found) > len(best):
            best, before = found, window * CHUNKS
        if len(best) == len(parts):
            break
    return best, before


def _stop(starts: np.ndarray) -> float:
    return float(starts[WINDOWS]) if len(starts) > WINDOWS else np.inf


def _between(
    parts: Iterable[Encoded], start: float, stop: float, vocabulary: Vocabulary
) -> Iterator[tuple[str, Any]]:
    """Modality and content of the chunks that begin between two times, without silent ones at the end."""
    for part in parts:
        one, past = np.searchsorted(part.times, [start, stop]).tolist()
        for last in range(past, one, -1):
            try:
                ids = part.ids[part.edges[one] : part.edges[last]]
                yield part.modality, vocabulary.decode(part.modality, ids)
            except UserError:  # a segment may have to end with something
                continue
            break


def _shown(segment: Encoded, vocabulary: Vocabulary) -> str:
    try:
        words = " ".join(vocabulary.tokenizer(segment.modality).show(segment.ids).split())
    except Exception as error:  # as in _example
        return f"{type(error).__name__}: {error}"
    return words if len(words) <= CHARACTERS else f"{words[: CHARACTERS - 4]} ..."
