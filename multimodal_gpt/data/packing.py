"""Rows: windows of documents laid out anew every epoch and packed, whole, into rows of `context` tokens.

Everything is a pure function of (seed, epoch, window): any process can build any row.

Letters: T context, W windows, R rows.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from multimodal_gpt.data.shards import Shards
from multimodal_gpt.data.windows import Windows, window_segments
from multimodal_gpt.stream.arrangement import (
    Layout,
    Ranged,
    sample_layout,
    stream_length,
    to_stream,
)

OPEN_ROWS = 512
"""Rows that wait for a piece that fits; measured: 0.1 % padding where 64 leave 0.2 %."""
SMALLEST = 5
"""No piece is shorter: <doc>, a tag, an id, <end>, <eod>."""
IGNORED = -100
"""Target where nothing is to be predicted."""

T = TypeVar("T")


@dataclass(frozen=True)
class Piece:
    """A window in a row: `stop` is inf for a whole document; (seed, epoch, window) draws its layout."""

    document: int
    start: float
    stop: float
    seed: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Plan:
    """The rows of one epoch.

    lengths (W,): tokens of every window as laid out. Row r: windows order[offsets[r]:offsets[r + 1]].
    """

    windows: Windows
    seed: int
    epoch: int
    lengths: np.ndarray
    order: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> list[Piece]:
        """The pieces of a row, in order."""
        w = self.windows
        return [
            Piece(int(w.document[i]), float(w.start[i]), float(w.stop[i]), (self.seed, self.epoch, i))
            for i in self.order[self.offsets[index] : self.offsets[index + 1]].tolist()
        ]

    @property
    def utilisation(self) -> float:
        """Share of all positions that hold a token."""
        return float(self.lengths.sum()) / max(1, len(self) * self.windows.context)


@dataclass(frozen=True, eq=False)
class Row:
    """ids (T,) int32, 0 = padding; document (T,) int32: index within the row, -1 = padding; position
    (T,) int32, from 0 in every document; clock (T,) float32 in quarter notes.
    """

    ids: np.ndarray
    document: np.ndarray
    position: np.ndarray
    clock: np.ndarray


def epoch_plan(windows: Windows, seed: int, epoch: int) -> Plan:
    """Lay out every window anew, shuffle, and pack: every window stands in exactly one row of the epoch."""
    lengths = _lengths(windows, seed, epoch)
    rng = np.random.Generator(np.random.PCG64DXSM([seed, epoch]))
    shuffled = rng.permutation(np.flatnonzero(lengths))
    rows = pack(lengths[shuffled].tolist(), windows.context)
    rows = [rows[i] for i in rng.permutation(len(rows))]
    offsets = np.concatenate(([0], np.cumsum([len(r) for r in rows], dtype=np.int64)))
    order = shuffled[np.array([i for r in rows for i in r], dtype=np.int64)]
    return Plan(windows, seed, epoch, lengths, order, offsets)


def _lengths(windows: Windows, seed: int, epoch: int) -> np.ndarray:
    """(W,) int64: stream length of each window as it is laid out in this epoch, at most the context."""
    offsets, modality = windows.offsets.tolist(), windows.modality.tolist()
    tokens, chunks = windows.tokens.tolist(), windows.chunks.tolist()
    found = np.zeros(len(windows), dtype=np.int64)
    for window in range(len(windows)):
        options: dict[str, list[tuple[int, int]]] = {}
        for i in range(offsets[window], offsets[window + 1]):
            options.setdefault(windows.names[modality[i]], []).append((tokens[i], chunks[i]))
        rng = _piece_rng((seed, epoch, window))
        chosen = _choose(options, rng)
        layout = sample_layout(windows.arrangements, {n: c for n, (_, c) in chosen.items()}, rng)
        if layout is not None:
            found[window] = min(stream_length(chosen, layout), windows.context)
    return found


def _piece_rng(seed: tuple[int, int, int]) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64DXSM(seed))


def _choose(options: Mapping[str, Sequence[T]], rng: np.random.Generator) -> dict[str, T]:
    """One of the alternatives of each modality."""
    return {n: f[int(rng.integers(len(f))) if len(f) > 1 else 0] for n, f in options.items()}


def pack(lengths: Sequence[int], context: int, open_rows: int = OPEN_ROWS) -> list[list[int]]:
    """Best fit with boundaries: rows of indexes whose lengths add up to at most `context`, each index in
    one row.

    A piece goes into the fullest open row that has room for it; of more than `open_rows` the fullest is
    closed.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row) of the open rows, sorted
    for index, length in enumerate(lengths):
        place = bisect_left(room, (length, -1))
        if place < len(room):
            left, row = room.pop(place)
        else:
            left, row = context, len(rows)
            rows.append([])
        rows[row].append(index)
        if left - length >= SMALLEST:
            insort(room, (left - length, row))
        if len(room) > open_rows:
            room.pop(0)
    return rows


def build_row(shards: Shards, vocabulary: Ranged, windows: Windows, pieces: Sequence[Piece]) -> Row:
    """The tokens of a row; reads only the documents of its pieces."""
    context = windows.context
    row = Row(
        np.zeros(context, np.int32),
        np.full(context, -1, np.int32),
        np.zeros(context, np.int32),
        np.zeros(context, np.float32),
    )
    place = 0
    for number, piece in enumerate(pieces):
        ids, clock = piece_stream(shards, vocabulary, windows, piece)
        span = slice(place, place + len(ids))
        row.ids[span], row.clock[span] = ids, clock
        row.document[span], row.position[span] = number, np.arange(len(ids))
        place += len(ids)
    return row


def piece_stream(
    shards: Shards, vocabulary: Ranged, windows: Windows, piece: Piece
) -> tuple[np.ndarray, np.ndarray]:
    """Global ids (T,) and clock (T,) of a piece, cut where even one chunk is longer than the context."""
    segments = shards.segments(piece.document)
    shown = window_segments(segments, piece.start, piece.stop, windows.used, windows.context)
    options = {n: [s for s in shown if s.modality == n] for n in dict.fromkeys(s.modality for s in shown)}
    rng = _piece_rng(piece.seed)
    chosen = _choose(options, rng)
    counts = {n: len(s.edges) - 1 for n, s in chosen.items()}
    layout = sample_layout(windows.arrangements, counts, rng) or Layout(())
    stream = to_stream(vocabulary, chosen, layout)
    return stream.ids[: windows.context], stream.clock[: windows.context]


def targets_of(row: Row) -> np.ndarray:
    """(T,) int64: the next id within the document; IGNORED at the end of a document and in the padding."""
    targets = np.full(len(row.ids), IGNORED, dtype=np.int64)
    inside = (row.document[1:] == row.document[:-1]) & (row.document[:-1] >= 0)
    targets[:-1][inside] = row.ids[1:][inside]
    return targets
