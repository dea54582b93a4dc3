"""Rows: what one row of a plan holds, token by token.

Letters: T context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from multimodal_gpt.data.shards import Shards
from multimodal_gpt.data.windows import window_of
from multimodal_gpt.stream.arrangement import Layout, Ranged, to_stream

IGNORED = -100
"""Target where nothing is to be predicted."""


@dataclass(frozen=True)
class Piece:
    """A document or a window of it: the `segments` (indexes within the document) that `layout` shows from
    `start` to `stop`, see `window_of`.
    """

    document: int
    segments: tuple[int, ...]
    layout: Layout
    start: float
    stop: float


@dataclass(frozen=True, eq=False)
class Row:
    """ids (T,) int32, 0 = padding; document (T,) int32: index within the row, -1 = padding; position
    (T,) int32, from 0 in every document; clock (T,) float32 in quarter notes.
    """

    ids: np.ndarray
    document: np.ndarray
    position: np.ndarray
    clock: np.ndarray


def build_row(shards: Shards, vocabulary: Ranged, pieces: Sequence[Piece], context: int) -> Row:
    """The tokens of a row; reads only the documents of its pieces."""
    row = Row(
        np.zeros(context, np.int32),
        np.full(context, -1, np.int32),
        np.zeros(context, np.int32),
        np.zeros(context, np.float32),
    )
    place = 0
    for number, piece in enumerate(pieces):
        ids, clock = piece_stream(shards, vocabulary, piece, context)
        span = slice(place, place + len(ids))
        row.ids[span], row.clock[span] = ids, clock
        row.document[span], row.position[span] = number, np.arange(len(ids))
        place += len(ids)
    return row


def piece_stream(
    shards: Shards, vocabulary: Ranged, piece: Piece, context: int
) -> tuple[np.ndarray, np.ndarray]:
    """Global ids (T,) and clock (T,) of a piece, cut where even one chunk is longer than the context."""
    segments = shards.segments(piece.document)
    chosen = {segments[i].modality: segments[i] for i in piece.segments}
    stream = to_stream(vocabulary, window_of(chosen, piece.start, piece.stop, context), piece.layout)
    return stream.ids[:context], stream.clock[:context]


def targets_of(row: Row) -> np.ndarray:
    """(T,) int64: the next id within the document; IGNORED at the end of a document and in the padding."""
    targets = np.full(len(row.ids), IGNORED, dtype=np.int64)
    inside = (row.document[1:] == row.document[:-1]) & (row.document[:-1] >= 0)
    targets[:-1][inside] = row.ids[1:][inside]
    return targets
