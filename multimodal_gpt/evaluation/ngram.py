"""Models that count: what a network has to beat. All lookups are sorted arrays, nothing is learnt but counts.

T tokens of all sequences, each with its end; K order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from multimodal_gpt.stream.vocabulary import Encoded

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
ORDER = 6
"""Tokens that the n-gram looks back at: 4, 6, 8 and 12 of them took 4.48, 4.20, 4.25 and 4.27 bits per note
of 104 held-out tunes, 828 counted, and 4.39, 4.24, 4.26 and 4.41 per chord."""
DISCOUNT = 0.9
"""Taken off each count: 0.75 took 4.24 and 4.27, Witten and Bell's smoothing 4.26 and 4.28, discounts without
Kneser and Ney's shorter histories 4.96 and 4.81."""


SOUNDING = 3
"""Tokens of a context that a counting model sees, behind 3 of its own: 3 and 3 took 3.80 bits per note for
the 4.16 without, when half its probability came from the n-gram without (2 and 3: 3.91; 3 and 5: 3.81)."""


@dataclass(frozen=True, eq=False)
class _Counts:
    """How often histories of one length came, with how many different tokens, and each with each."""

    histories: np.ndarray
    totals: np.ndarray
    kinds: np.ndarray
    pairs: np.ndarray
    times: np.ndarray

    def of(self, histories: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Total, kinds and times of each place, (T,) float64; 0 where the history never came."""
        at, there = find(self.histories, histories)
        pair_at, pair_there = find(self.pairs, pairs)
        found = (self.totals[at] * there, self.kinds[at] * there, self.times[pair_at] * pair_there)
        total, kinds, times = (part.astype(np.float64) for part in found)
        return total, kinds, times


def find(known: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where (T,) values are in a sorted array that is not empty, and whether they are there, (T,) bool."""
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return at, known[at] == wanted


class Ngram:
    """An interpolated n-gram with Kneser-Ney smoothing (Kneser and Ney 1995; interpolated as by Chen and
    Goodman 1999): what a discount takes off the counts of one order goes to the next shorter one, which
    counts in how many different places a token came; below all of them any token is equally likely.

    Args:
        sequences: training sequences of ids 0 .. size - 1; every one is taken to end.
        size: number of different ids.
        order: tokens of history; 1 = a Markov model of the last token, 0 = how common each token is.
        beside: for each sequence (T + 1,) uint64, what is known beside each token and the end; it takes the
            place of one token of history, the last to be given up.
    """

    def __init__(
        self,
        sequences: Sequence[np.ndarray],
        size: int,
        order: int = ORDER,
        beside: Sequence[np.ndarray] | None = None,
    ) -> None:
        if not sequences:
            raise ValueError("nothing to count")
        self.size, self.order = size, order
        known = [None] * len(sequences) if beside is None else list(beside)
        self.counts = [self._counted(sequences, known, length) for length in range(order + 1)]

    def _counted(
        self, sequences: Sequence[np.ndarray], beside: Sequence[np.ndarray | None], length: int
    ) -> _Counts:
        """What is counted for histories of one length: all places for the longest, for shorter ones those
        that differ in what stands before them.
        """
        histories, pairs = self._hashed(sequences, beside, length)
        if length < self.order:
            _, longer = self._hashed(sequences, beside, length + 1)
            _, first = np.unique(longer, return_index=True)
            histories, pairs = histories[first], pairs[first]
        return _count(histories, pairs)

    def chances(self, sequence: np.ndarray, beside: np.ndarray | None = None) -> np.ndarray:
        """(T + 1,) probability of each token of a sequence and of its end."""
        chance = np.full(len(sequence) + 1, 1.0 / (self.size + 1))
        for length, counts in enumerate(self.counts):
            total, kinds, times = counts.of(*self._hashed([sequence], [beside], length))
            known = total > 0
            kept = np.maximum(times - DISCOUNT, 0.0) + DISCOUNT * kinds * chance
            chance = np.where(known, kept / np.where(known, total, 1.0), chance)
        return chance

    def bits(self, sequence: np.ndarray) -> np.ndarray:
        """(T + 1,) bits of each token of a sequence and of its end."""
        return np.asarray(-np.log2(self.chances(sequence)))

    def _hashed(
        self, sequences: Sequence[np.ndarray], beside: Sequence[np.ndarray | None], length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """(T,) uint64 hashes of the history of so many tokens of every token, and of it with the token
        itself; a sequence begins with as many starts and closes with its end.
        """
        histories, tokens = [], []
        for ids, known in zip(sequences, beside, strict=True):
            own = length if known is None else max(length - 1, 0)
            padded = np.concatenate([np.full(own, self.size + 1), ids, [self.size]]).astype(np.uint64)
            history = np.zeros(len(ids) + 1, dtype=np.uint64)
            for back in range(own):
                history = _mixed(history, padded[back : back + len(history)])
            histories.append(_mixed(history, known) if known is not None and length else history)
            tokens.append(padded[own:])
        joined = np.concatenate(histories)
        return joined, _mixed(joined, np.concatenate(tokens))


def sounding(target: Encoded, context: Encoded) -> np.ndarray:
    """(T + 1,) uint64, for every token of the target and its end, which tokens of the context were the last
    that had begun when the token before it did: what a counting model may know beside its history.
    """
    begun = np.concatenate([[0.0], _times(target)])
    count = np.searchsorted(_times(context), begun + 1e-4, side="right")
    symbols = np.zeros(len(begun), dtype=np.uint64)
    for back in range(SOUNDING):
        place = count - 1 - back
        tokens = np.where(place >= 0, context.ids[np.maximum(place, 0)] + 1, 0)
        symbols = _mixed(symbols, tokens.astype(np.uint64))
    return symbols


def _times(segment: Encoded) -> np.ndarray:
    if segment.clock is None:
        raise ValueError(f"{segment.modality} has no times")
    return segment.clock.astype(np.float64)


def _mixed(hashes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    mixed = (hashes ^ (tokens + np.uint64(1))) * MULTIPLIER
    return np.asarray(mixed ^ (mixed >> np.uint64(29)))


def _count(histories: np.ndarray, pairs: np.ndarray) -> _Counts:
    known, places, totals = np.unique(histories, return_inverse=True, return_counts=True)
    different, first, times = np.unique(pairs, return_index=True, return_counts=True)
    kinds = np.bincount(places[first], minlength=len(known))
    return _Counts(known, totals, kinds, different, times)
