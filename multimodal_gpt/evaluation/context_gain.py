"""Context gain: how many bits per unit of a target another modality saves, and whether it is the right one's
doing.

For target y, context x, pieces i: gain = [sum B(y_i) - sum B(y_i | x_i)] / sum units_i, with B in bits. Two
nulls put another piece's context in x's place: `stranger` any other piece's, `lookalike` one of the same
mode and meter, moved to the same key and cut or repeated to the same length. Intervals: 95 % paired
bootstrap over pieces, ratio of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multimodal_gpt.evaluation.likelihood import segment_bits
from multimodal_gpt.model.gpt import GPT
from multimodal_gpt.stream.arrangement import Part
from multimodal_gpt.stream.vocabulary import Encoded, Vocabulary

RESAMPLES = 2000
STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11, "#": 1, "b": -1}
"""Semitones of a key's letter and of its accidentals."""


@dataclass(frozen=True)
class Piece:
    """One held-out document: a segment per modality, and metadata with `key` ("D major") and `meter` where
    known.
    """

    segments: Mapping[str, Encoded]
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % bootstrap interval, in bits per unit."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def ratio_interval(saved: np.ndarray, units: np.ndarray, seed: int = 0) -> Interval:
    """sum(saved) / sum(units) over pieces, resampled 2,000 times. `saved` (N,) bits, `units` (N,)."""
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(units), (RESAMPLES, len(units)))
    ratios = saved[draws].sum(1) / units[draws].sum(1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Interval(float(saved.sum() / units.sum()), float(low), float(high))


@dataclass(frozen=True)
class Gain:
    """Bits per unit of the target, alone and with contexts, and what each context saves."""

    target: str
    context: str
    pieces: int
    units: int
    alone: float
    known: float
    gain: Interval
    stranger: Interval
    lookalike: Interval
    true_minus_lookalike: Interval
    improved: float


def summarise(
    target: str,
    context: str,
    units: np.ndarray,
    bits: Mapping[str, np.ndarray],
    base: np.ndarray | None = None,
) -> Gain:
    """A Gain from bits per piece (N,) under `alone`, `known`, `stranger` and `lookalike`.

    `base`: bits of a specialist without context; the better of the two in sum is the base of the gain.
    """
    alone = bits["alone"] if base is None or bits["alone"].sum() <= base.sum() else base
    return Gain(
        target,
        context,
        len(units),
        int(units.sum()),
        float(alone.sum() / units.sum()),
        float(bits["known"].sum() / units.sum()),
        ratio_interval(alone - bits["known"], units),
        ratio_interval(alone - bits["stranger"], units),
        ratio_interval(alone - bits["lookalike"], units),
        ratio_interval(bits["lookalike"] - bits["known"], units),
        float((bits["known"] < alone).mean()),
    )


def derange(count: int, seed: int) -> np.ndarray:
    """(N,) a permutation of 0 .. N-1 in which nothing stays in place."""
    order = np.random.default_rng(seed).permutation(count)
    other = np.empty(count, dtype=np.int64)
    other[order] = np.roll(order, 1)
    return other


def lookalikes(
    metadata: Sequence[Mapping[str, object]], seed: int, same: Callable[..., object]
) -> np.ndarray:
    """(N,) another piece of the same class for each piece (any other piece where its class is a single
    one).
    """
    rng = np.random.default_rng(seed)
    classes = [same(m) for m in metadata]
    chosen = []
    for place, kind in enumerate(classes):
        others = [i for i, k in enumerate(classes) if k == kind and i != place]
        others = others or [i for i in range(len(classes)) if i != place]
        chosen.append(others[rng.integers(len(others))])
    return np.array(chosen)


def fit_chunks(segment: Encoded, times: np.ndarray, vocabulary: Vocabulary) -> Encoded:
    """The segment's chunks, repeated from the start or cut so that chunk i begins at times[i]."""
    edges = segment.edges
    count = len(edges) - 1
    ids = np.concatenate([segment.ids[edges[i % count] : edges[i % count + 1]] for i in range(len(times))])
    tokenizer = vocabulary.tokenizer(segment.modality)
    cuts = tokenizer.cuts(ids)
    clock = tokenizer.clock(ids)
    if clock is not None:
        starts = np.concatenate(([0], cuts[cuts > 0]))
        width = np.diff(np.concatenate((starts, [len(ids)])))
        clock = (clock - np.repeat(clock[starts], width) + np.repeat(times, width)).astype(np.float32)
    return Encoded(segment.modality, ids, clock, cuts, segment.units)


def measure(  # noqa: PLR0913 (one call says all of an experiment)
    net: GPT,
    vocabulary: Vocabulary,
    pieces: Sequence[Piece],
    order: Sequence[Part],
    target: str,
    context: str,
    *,
    base: np.ndarray | None = None,
    seed: int = 0,
    advance: Callable[[], object] = lambda: None,
) -> Gain:
    """Context gain of `target` from `context` over pieces that hold both, with `order` laying out the two.

    `base` (N,): bits of a specialist per piece (see `alone_bits`); `advance` is called after every piece.
    """
    strangers = derange(len(pieces), seed)
    alike = lookalikes([p.metadata for p in pieces], seed, _class_of)
    bits: dict[str, list[float]] = {"alone": [], "known": [], "stranger": [], "lookalike": []}
    for place, piece in enumerate(pieces):
        true, goal = piece.segments[context], piece.segments[target]
        others = {
            "known": true,
            "stranger": fit_chunks(pieces[strangers[place]].segments[context], true.times, vocabulary),
            "lookalike": _disguise(pieces[alike[place]], piece, context, vocabulary),
        }
        bits["alone"].append(segment_bits(net, vocabulary, {target: goal}, ((target,),), target))
        for name, other in others.items():
            both = {target: goal, context: other}
            bits[name].append(segment_bits(net, vocabulary, both, order, target))
        advance()
    units = np.array([p.segments[target].units for p in pieces])
    return summarise(target, context, units, {n: np.array(b) for n, b in bits.items()}, base)


def alone_bits(net: GPT, vocabulary: Vocabulary, pieces: Sequence[Piece], target: str) -> np.ndarray:
    """(N,) bits of the target without context, piece by piece: the base that a specialist offers."""
    return np.array(
        [segment_bits(net, vocabulary, {target: p.segments[target]}, ((target,),), target) for p in pieces]
    )


def _class_of(metadata: Mapping[str, Any]) -> tuple[object, object]:
    return str(metadata.get("key", "")).rpartition(" ")[2], metadata.get("meter")


def _disguise(other: Piece, piece: Piece, context: str, vocabulary: Vocabulary) -> Encoded:
    """Another piece's context, moved to this piece's key and cut or repeated to its length."""
    segment = other.segments[context]
    steps = tonic(piece.metadata) - tonic(other.metadata)
    steps = (steps + 6) % 12 - 6
    tokenizer = vocabulary.tokenizer(context)
    if steps and hasattr(tokenizer, "shift"):
        moved = tokenizer.shift(vocabulary.decode(context, segment.ids), steps)
        segment = segment if moved is None else vocabulary.encode(context, moved)
    return fit_chunks(segment, piece.segments[context].times, vocabulary)


def tonic(metadata: Mapping[str, Any]) -> int:
    """Semitones of the key's tonic above C; 0 where no key is known."""
    name = str(metadata.get("key", "")).partition(" ")[0]
    return sum(STEPS.get(letter, 0) for letter in name)
