"""Measures as written -> the grid of bars: bar lines fall on bars, a pickup ends its bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from multimodal_gpt.tokenizers._music import Meter, clean_meters


@dataclass(frozen=True)
class _Measure:
    """What stands between two written bar lines; times in ticks, `bar` as its meter wants it."""

    start: int
    length: int
    meter: Meter
    bar: int
    opens: bool  # begins at a double bar or a repeat
    closes: bool  # ends at one


def on_grid(
    notes: np.ndarray, symbols: np.ndarray, bars: np.ndarray, meters: Sequence[Meter]
) -> tuple[np.ndarray, np.ndarray, tuple[Meter, ...]]:
    """Notes (N, 3), symbols (C, 2; tick first), meters, moved so that bar lines fall on bars.

    `bars` (B, 2) are tick and strength of the written ones, 2 = double bar or repeat, sorted. A
    measure moves as a whole and keeps its inner times. What one lacks becomes a rest: before it
    where it is a pickup, else after it.
    """
    measures = _measures(notes, bars, meters)
    places = _places(measures)
    starts = np.array([m.start for m in measures])
    shift = np.array(places) - starts
    signs = [(p, m.meter.numerator, m.meter.denominator) for p, m in zip(places, measures, strict=True)]
    signs[0] = (0, *signs[0][1:])
    return _move(notes, starts, shift), _move(symbols, starts, shift), clean_meters(signs)


def _measures(notes: np.ndarray, bars: np.ndarray, meters: Sequence[Meter]) -> list[_Measure]:
    end = max(1, int((notes[:, 0] + notes[:, 1]).max(initial=0)))
    strength = {0: 2, end: 2}
    for tick, strong in bars.tolist():
        if 0 < tick < end:
            strength[tick] = max(strength.get(tick, 0), strong)
    lines = sorted(strength)
    inside = np.searchsorted([m.tick for m in meters], lines[:-1], side="right") - 1
    return [
        _Measure(a, b - a, meters[i], meters[i].bar, strength[a] == 2, strength[b] == 2)
        for a, b, i in zip(lines[:-1], lines[1:], inside.tolist(), strict=True)
    ]


def _places(measures: Sequence[_Measure]) -> list[int]:
    """New start tick of each measure."""
    places: list[int] = []
    line = 0  # the bar line at which the next measure would begin
    while len(places) < len(measures):
        i = len(places)
        group = _whole(measures, i)
        first = measures[i]
        start = line
        if len(group) == 1 and first.length < first.bar and _is_pickup(measures, i):
            start += first.bar - first.length
        for m in group:
            places.append(start)
            start += m.length
        line += -(-(start - line) // first.bar) * first.bar
    return places


def _whole(measures: Sequence[_Measure], i: int) -> Sequence[_Measure]:
    """The measure and those after it that complete it to whole bars (a repeat may part a bar)."""
    first = measures[i]
    total, last = first.length, i + 1
    while i and total % first.bar and last < len(measures) and last - i < 4:
        total += measures[last].length
        last += 1
        short = measures[last - 1].length < first.bar and measures[last - 1].meter == first.meter
        if not short:
            return measures[i : i + 1]
    return measures[i:last] if total % first.bar == 0 else measures[i : i + 1]


def _is_pickup(measures: Sequence[_Measure], i: int) -> bool:
    m = measures[i]
    if i == len(measures) - 1 or m.opens == m.closes:
        return i < len(measures) - 1 and (i == 0 or 2 * m.length < m.bar)
    return m.opens


def _move(events: np.ndarray, starts: np.ndarray, shift: np.ndarray) -> np.ndarray:
    moved = events.copy()
    moved[:, 0] += shift[np.searchsorted(starts, events[:, 0], side="right") - 1]
    return moved[np.argsort(moved[:, 0], kind="stable")]
