"""From times to written values: which notes, ties, dots, triplets and beams say how long something lasts.

All times are ticks of 1/48 quarter note. In a beat that is divided in three everything lies on a grid of
triplet sixteenths, elsewhere on one of thirty-second notes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from multimodal_gpt.rendering.score import TICKS, Score, Staff, voice

VALUES = (288, 192, 144, 96, 72, 48, 36, 24, 18, 12, 6)
"""What one note can last: whole to thirty-second notes, plain or dotted."""
TRIPLETS = (32, 16, 8)
"""What one note of a triplet can last."""
_FINE, _THIRDS = 6, 8


@dataclass(frozen=True)
class Written:
    """One note, chord or rest as written.

    Args:
        pitches: lowest first, none for a rest.
        before, after: tied to what comes before, after.
        triplet: the beat is divided in three.
        beat: number of its beat within the bar.
    """

    start: int
    stop: int
    pitches: tuple[int, ...]
    before: bool
    after: bool
    triplet: bool
    beat: int


@dataclass(frozen=True)
class Bar:
    """A bar, its beats, and which of them are divided in three."""

    start: int
    stop: int
    beat: int
    thirds: frozenset[int]

    def number(self, time: int) -> int:
        """Number of the beat that a time lies in."""
        return (time - self.start) // self.beat


def beat_of(numerator: int, denominator: int) -> int:
    """Ticks of what is counted as a beat: three eighths in 6/8."""
    unit = 4 * TICKS // denominator
    return 3 * unit if denominator > 4 and numerator % 3 == 0 else unit


def write(staff: Staff, score: Score) -> list[list[Written]]:
    """The notes and rests of a staff, bar by bar; every bar is full."""
    line = voice(staff.notes)
    bars = _bars(sorted({t for onset, end, _ in line for t in (onset, end)}), score)
    placed = _placed(line, bars)
    return [[part for piece in _within(placed, bar) for part in _cut(*piece, bar)] for bar in bars]


def _bars(times: Sequence[int], score: Score) -> list[Bar]:
    bars = []
    edges = score.bars.tolist()
    for start, stop, meter in zip(edges[:-1], edges[1:], score.meters.tolist(), strict=True):
        beat = beat_of(*meter)
        inside = times[bisect_left(times, start) : bisect_left(times, stop)]
        thirds = {(t - start) // beat for t in inside} if beat in (TICKS // 2, TICKS) else set()
        kept = (b for b in thirds if _in_thirds([t - start for t in inside if (t - start) // beat == b]))
        bars.append(Bar(start, stop, beat, frozenset(kept)))
    return bars


def _in_thirds(times: Iterable[int]) -> bool:
    """Whether times in a beat lie nearer to its thirds and sixths than to thirty-second notes."""
    errors = np.array([[abs(t - grid * round(t / grid)) for grid in (_FINE, _THIRDS)] for t in times])
    fine, thirds = errors.sum(axis=0)
    return bool(thirds < fine)


def _placed(
    line: Sequence[tuple[int, int, tuple[int, ...]]], bars: Sequence[Bar]
) -> list[tuple[int, int, tuple[int, ...]]]:
    """The line on the grids; of what falls on one time the last is kept."""
    starts = [bar.start for bar in bars]
    end = bars[-1].stop
    latest = end - _beat_at(end - 1, bars, starts)[1]
    placed: dict[int, tuple[int, int, tuple[int, ...]]] = {}
    for onset, stop, pitches in line:
        start = min(_on_grid(onset, bars, starts), latest)
        shortest = _beat_at(start, bars, starts)[1]
        placed[start] = start, max(_on_grid(stop, bars, starts), start + shortest), pitches
    order = sorted(placed)
    following = [*order[1:], end][: len(order)]
    return [
        (start, min(placed[start][1], after), placed[start][2])
        for start, after in zip(order, following, strict=True)
    ]


def _on_grid(time: int, bars: Sequence[Bar], starts: Sequence[int]) -> int:
    """The nearest time on the grid of its beat."""
    first, grid = _beat_at(time, bars, starts)
    return first + (time - first + grid // 2) // grid * grid


def _beat_at(time: int, bars: Sequence[Bar], starts: Sequence[int]) -> tuple[int, int]:
    """When the beat around a time begins, and the grid within it."""
    bar = bars[max(0, bisect_left(starts, time + 1) - 1)]
    beat = bar.number(time)
    return bar.start + beat * bar.beat, _THIRDS if beat in bar.thirds else _FINE


def _within(
    line: Sequence[tuple[int, int, tuple[int, ...]]], bar: Bar
) -> list[tuple[int, int, tuple[int, ...], bool, bool]]:
    """What sounds in a bar, with the rests between: start, stop, pitches, tied before, tied after."""
    found: list[tuple[int, int, tuple[int, ...], bool, bool]] = []
    now = bar.start
    for start, stop, pitches in line:
        if stop <= bar.start or start >= bar.stop:
            continue
        first, last = max(start, bar.start), min(stop, bar.stop)
        if first > now:
            found.append((now, first, (), False, False))
        found.append((first, last, pitches, start < bar.start, stop > bar.stop))
        now = last
    return [*found, (now, bar.stop, (), False, False)] if now < bar.stop else found


def _cut(
    start: int, stop: int, pitches: tuple[int, ...], before: bool, after: bool, bar: Bar
) -> list[Written]:
    """One sound or rest as values that can be written, tied; the beats stay to be seen."""
    if (start, stop, pitches) == (bar.start, bar.stop, ()):
        return [Written(start, stop, (), False, False, False, 0)]
    parts: list[Written] = []
    while start < stop:
        beat = bar.number(start)
        last = start + _longest(start, stop, bar)
        first = bar.start + beat * bar.beat
        triplet = beat in bar.thirds and (start > first or last < first + bar.beat)
        tied = bool(pitches) and (before or bool(parts)), bool(pitches) and (after or last < stop)
        parts.append(Written(start, last, pitches, *tied, triplet, beat))
        start = last
    return parts


def _longest(start: int, stop: int, bar: Bar) -> int:
    """The value to write at `start` for what lasts until `stop`."""
    beat = bar.number(start)
    first = bar.start + beat * bar.beat
    following = first + bar.beat
    if beat in bar.thirds:
        rest = min(stop, following) - start
        return rest if rest == bar.beat else next(v for v in TRIPLETS if v <= rest)
    if start > first:
        rest = min(stop, following) - start
        syncopated = stop - start == bar.beat == TICKS and 2 * (start - first) == bar.beat
        if syncopated and stop <= bar.stop and beat + 1 not in bar.thirds:
            return bar.beat
        return next(v for v in VALUES if v == rest or (v < rest and (start - first) % v == 0))
    thirds = (bar.start + b * bar.beat for b in sorted(bar.thirds) if b > beat)
    rest = min(stop, next(thirds, bar.stop)) - start
    whole = bar.beat % 9 == 0 and rest > bar.beat  # in 6/8 two beats are a dotted half
    return next(v for v in VALUES if v <= rest and (not whole or v % bar.beat == 0))


def flags(part: Written) -> int:
    """How many beams or flags the note has."""
    length = (part.stop - part.start) * (3 if part.triplet else 2) // 2
    return 0 if length >= TICKS else 1 if length >= TICKS // 2 else 2 if length >= TICKS // 4 else 3


def beams(parts: Sequence[Written]) -> list[list[str]]:
    """For each note or rest of a bar, what each of its beams does: begin, continue, end or a hook."""
    counts = [flags(part) if part.pitches else 0 for part in parts]
    told: list[list[str]] = [[] for _ in parts]
    runs = _runs(
        range(len(parts)),
        [part.beat if n else -1 - i for i, (part, n) in enumerate(zip(parts, counts, strict=True))],
    )
    for run in (run for run in runs if len(run) > 1):
        for level in range(1, 1 + max(counts[i] for i in run)):
            for group in _runs(run, [count >= level for count in counts]):
                if counts[group[0]] >= level:
                    for index, word in zip(group, _words(group, run), strict=True):
                        told[index].append(word)
    return told


def _words(group: Sequence[int], run: Sequence[int]) -> list[str]:
    """What the beam of a group within a run of beamed notes does at each of its notes."""
    if len(group) == 1:
        return ["backward hook" if group[0] > run[0] else "forward hook"]
    return ["begin", *["continue"] * (len(group) - 2), "end"]


def _runs(items: Sequence[int], kinds: Sequence[object]) -> list[list[int]]:
    """Neighbours of one kind, in lists."""
    return [list(run) for _, run in groupby(items, key=kinds.__getitem__)]
