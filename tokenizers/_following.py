"""The times of ids that come one by one, as `clock` has them for all of a segment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np


@dataclass(frozen=True, eq=False)
class Signs:
    """What each of V local ids says about time.

    Args:
        begins: whether it begins a bar; a bar of which nothing more is said is in 4/4.
        spans: quarter notes that the bar lasts, NaN where it does not say so.
        steps: quarter notes from one position of such a bar to the next, NaN likewise.
        places: the position in the bar from here on, -1 where it stays.
        common: quarter notes from one position to the next in 4/4.
    """

    begins: Sequence[bool]
    spans: Sequence[float]
    steps: Sequence[float]
    places: Sequence[int]
    common: float


def signs(
    begins: np.ndarray, spans: np.ndarray, steps: np.ndarray, places: np.ndarray, common: float
) -> Signs:
    """Signs from arrays (V,)."""
    return Signs(begins.tolist(), spans.astype(np.float64).tolist(), steps.tolist(), places.tolist(), common)


class Follower:
    """Told the local ids of a segment one after another, gives the time of each in quarter notes."""

    def __init__(self, signs: Signs) -> None:
        self.signs = signs
        self.begin, self.length, self.step, self.inside = 0.0, 0.0, signs.common, 0.0

    def __call__(self, local: int) -> float:
        signs = self.signs
        if signs.begins[local]:
            self.begin, self.length, self.step, self.inside = self.begin + self.length, 4.0, signs.common, 0.0
        span, place = signs.spans[local], signs.places[local]
        if not isnan(span):
            self.length, self.step = span, signs.steps[local]
        if place >= 0:
            self.inside = place * self.step
        return self.begin + self.inside
