"""How much of a tune was there before: stretches of intervals that training tunes hold too.

A stretch is a number of intervals in a row, in semitones, so that moving a tune changes nothing; rhythm does
not count, so that a copy in another rhythm is one. N notes, K intervals.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np

from multimodal_gpt.evaluation.ngram import find
from multimodal_gpt.tokenizers._shingles import stretches

STRETCH = 12
"""Intervals of a stretch that counts as found: thirteen notes."""


def intervals(notes: np.ndarray) -> np.ndarray:
    """(N - 1,) semitones from each of (N, 3) notes to the next."""
    return np.asarray(np.diff(notes[:, 2]))


class Known:
    """The stretches of training tunes, found when they are asked for."""

    def __init__(self, tunes: Iterable[np.ndarray]) -> None:
        self.steps: Sequence[np.ndarray] = [intervals(notes) for notes in tunes]
        self._found: dict[int, np.ndarray] = {}

    def of(self, length: int) -> np.ndarray:
        """(S,) sorted hashes of all their stretches of so many intervals."""
        if length not in self._found:
            every = [stretches(steps, length) for steps in self.steps]
            self._found[length] = np.unique(np.concatenate([np.zeros(0, dtype=np.uint64), *every]))
        return self._found[length]

    @cached_property
    def longest(self) -> int:
        """Intervals of the longest tune."""
        return max((len(steps) for steps in self.steps), default=0)

    def holds(self, steps: np.ndarray, length: int) -> np.ndarray:
        """(K - length + 1,) bool: which stretches of a tune are known."""
        known, asked = self.of(length), stretches(steps, length)
        return find(known, asked)[1] if len(known) else np.zeros(len(asked), dtype=bool)


def copied(notes: np.ndarray, known: Known, length: int = STRETCH) -> tuple[int, int]:
    """How many stretches of (N, 3) notes are known, and how many there are."""
    found = known.holds(intervals(notes), length)
    return int(found.sum()), len(found)


def longest_run(notes: np.ndarray, known: Known) -> int:
    """Notes of the longest stretch of (N, 3) notes that some training tune has too, in whatever key and
    rhythm.

    Where a stretch is known all shorter ones in it are: lengths are doubled, then halved.
    """
    steps = intervals(notes)
    most = min(len(steps), known.longest)
    low, high = 0, 1
    while high < most and known.holds(steps, high).any():
        low, high = high, 2 * high
    high = min(high, most)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if known.holds(steps, middle).any() else (low, middle - 1)
    return low + 1
