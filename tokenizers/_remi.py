"""MidiTok's REMI for one melody, as arrays: `Bar TimeSig (Position Pitch Duration)*` for every bar.

MidiTok 3.1 is the reference (tests compare ids and notes with it), with the configuration
    TokenizerConfig(pitch_range=(0, 127), use_programs=False, use_velocities=False,
                    use_time_signatures=True, beat_res={(0, 4): steps, (4, 12): 4},
                    time_signature_range=METERS, special_tokens=["PAD"])
It is not imported here: that takes two seconds, brings torch along, and its encoder works through
Python objects, some 80 times slower than these arrays. Our ids are MidiTok's in its own order,
without PAD and PitchDrum (`miditok_ids`).

A beat is the meter's denominator (an eighth in 6/8) and has `steps` positions. A duration counts
steps up to 4 beats, then quarter beats up to 12.

Letters: T tokens, N notes, B bars, D durations, M meters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from multimodal_gpt.stream.grammar import Grammar
from multimodal_gpt.tokenizers._music import (
    METERS,
    TICKS,
    Meter,
    align_meters,
    bar_lines,
    clean_meters,
    note_name,
    one_line,
    sort_notes,
)

BEATS = 16
"""Most beats in a bar."""
_PITCHES, _PITCH_DRUMS = 128, 62


@dataclass(frozen=True)
class Layout:
    """Where each kind of token lies among the local ids, for a number of steps per beat."""

    steps: int

    bar = 0
    pitch = 1

    @property
    def duration(self) -> int:
        return self.pitch + _PITCHES

    @property
    def position(self) -> int:
        return self.duration + len(self.durations)

    @property
    def meter(self) -> int:
        return self.position + BEATS * self.steps

    @property
    def size(self) -> int:
        return self.meter + len(self.meters)

    @cached_property
    def durations(self) -> np.ndarray:
        """(D,) int64, in steps."""
        coarse = np.arange(4 * self.steps, 12 * self.steps + 1, self.steps // 4)
        return np.concatenate([np.arange(1, 4 * self.steps), coarse]).astype(np.int64)

    @cached_property
    def meters(self) -> np.ndarray:
        """(M, 2) int64: numerator, denominator."""
        return np.array([(n, d) for d, row in METERS.items() for n in row], dtype=np.int64)

    @cached_property
    def spans(self) -> np.ndarray:
        """(V,) float32: quarter notes that a bar of each meter lasts, NaN for other ids."""
        spans = np.full(self.size, np.nan, dtype=np.float32)
        spans[self.meter :] = 4 * self.meters[:, 0] / self.meters[:, 1]
        return spans

    @cached_property
    def miditok_ids(self) -> np.ndarray:
        """(V,) int64: MidiTok's own id of each of ours."""
        ids = np.arange(1, self.size + 1)
        ids[self.meter :] += _PITCH_DRUMS
        return ids

    def meter_ids(self, written: np.ndarray) -> np.ndarray:
        """(B, 2) numerators and denominators -> (B,) ids."""
        table = np.full((BEATS + 1, BEATS + 1), -1)
        table[self.meters[:, 0], self.meters[:, 1]] = self.meter + np.arange(len(self.meters))
        return np.asarray(table[written[:, 0], written[:, 1]])


@dataclass(frozen=True, eq=False)
class _Grid:
    """(N, 3) onset, duration (in fine ticks), pitch on the grid; a quarter is `scale` fine ticks."""

    notes: np.ndarray
    scale: int
    meters: Sequence[Meter]


def quantise(notes: np.ndarray, meters: Sequence[Meter], steps: int) -> _Grid:
    """(N, 3) notes as one line on the grid, rounded as MidiTok rounds.

    First to the finest grid that a meter of the piece needs, halves up; then to the grid of the
    meter in force, counted from where it begins, halves to even; durations to the nearest in the
    vocabulary, the longer of two. Of notes that fall on the same position the highest stays; a
    duration ends at the next onset at the latest.
    """
    notes = sort_notes(notes)
    last = int(notes[-1, 0]) + TICKS // steps
    meters = [m for m in align_meters(meters) if m.tick <= last]
    finest = max(m.denominator for m in meters)
    scale = steps * finest // 4
    fine = (2 * notes[:, :2] * scale + TICKS) // (2 * TICKS)
    starts = np.array([m.tick * scale // TICKS for m in meters])
    per_step = np.array([finest // m.denominator for m in meters])
    section = np.searchsorted(starts, fine[:, 0], side="right") - 1
    inside = (fine[:, 0] - starts[section]) / per_step[section]
    onset = (np.round(inside) * per_step[section]).astype(np.int64) + starts[section]
    line = one_line(np.column_stack([onset, np.maximum(1, fine[:, 1]), notes[:, 2]]))
    section = np.searchsorted(starts, line[:, 0], side="right") - 1
    room = np.append(np.diff(line[:, 0]), np.iinfo(np.int32).max)
    line[:, 1] = _round_durations(line[:, 1], room, per_step[section], steps)
    return _Grid(line, scale, meters)


def _round_durations(duration: np.ndarray, room: np.ndarray, step: np.ndarray, steps: int) -> np.ndarray:
    """(N,) durations to the nearest of the vocabulary that fits into `room`, all in fine ticks."""
    table = Layout(steps).durations
    above = np.minimum(np.searchsorted(table, -(-duration // step)), len(table) - 1)
    below = np.maximum(above - 1, 0)
    nearer = np.abs(duration - table[below] * step) < np.abs(table[above] * step - duration)
    chosen = np.where(nearer, below, above)
    fitting = np.searchsorted(table, room // step, side="right") - 1
    return np.asarray(table[np.minimum(chosen, fitting)] * step)


def encode(notes: np.ndarray, meters: Sequence[Meter], steps: int) -> np.ndarray:
    """(T,) int32 ids of at least one note, up to the last note's bar."""
    layout, grid = Layout(steps), quantise(notes, meters, steps)
    onset, duration, pitch = grid.notes.T
    starts, written = _fine_bars(grid)
    bar = np.searchsorted(starts, onset, side="right") - 1
    count = int(bar[-1]) + 1
    step = (4 * grid.scale // (written[bar, 1] * steps)).astype(np.int64)
    ids = np.empty(2 * count + 3 * len(onset), dtype=np.int32)
    heads = 2 * np.arange(count) + 3 * np.searchsorted(bar, np.arange(count))
    ids[heads] = layout.bar
    ids[heads + 1] = layout.meter_ids(written[:count])
    places = 2 * (bar + 1) + 3 * np.arange(len(onset))
    ids[places] = layout.position + (onset - starts[bar]) // step
    ids[places + 1] = layout.pitch + pitch
    ids[places + 2] = layout.duration + np.searchsorted(layout.durations, duration // step)
    return ids


def _fine_bars(grid: _Grid) -> tuple[np.ndarray, np.ndarray]:
    end = int(grid.notes[-1, 0]) * TICKS // grid.scale + 1
    starts, written = bar_lines(grid.meters, end)
    return starts * grid.scale // TICKS, written


def decode(ids: np.ndarray, steps: int) -> tuple[np.ndarray, tuple[Meter, ...]]:
    """(N, 3) notes in ticks and meters of legal ids, the reverse of `encode`.

    A note that reaches over the next onset is cut there. With 24 steps a step of x/16 is half a
    tick: rounded down.
    """
    layout = Layout(steps)
    starts, written = _bars(ids, layout)
    at = np.flatnonzero(_kind(ids, layout.position, layout.meter))
    bar = np.searchsorted(np.flatnonzero(ids == layout.bar), at) - 1
    beat = 4 * TICKS // written[bar, 1]
    onset = starts[bar] + (ids[at] - layout.position) * beat // steps
    duration = np.maximum(1, layout.durations[ids[at + 2] - layout.duration] * beat // steps)
    notes = one_line(np.column_stack([onset, duration, ids[at + 1] - layout.pitch]))
    return notes, clean_meters((t, n, d) for t, (n, d) in zip(starts.tolist(), written.tolist(), strict=True))


def _kind(ids: np.ndarray, first: int, after: int) -> np.ndarray:
    return np.asarray((ids >= first) & (ids < after))


def _bars(ids: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """(B,) start ticks and (B, 2) meters; a bar whose meter is cut off counts as 4/4."""
    bars = np.flatnonzero(ids == layout.bar)
    following = np.append(ids, -1)[bars + 1] - layout.meter
    written = np.where(following[:, None] >= 0, layout.meters[np.maximum(following, 0)], [4, 4])
    lengths = written[:, 0] * 4 * TICKS // written[:, 1]
    return np.cumsum(lengths) - lengths, written


def clock(ids: np.ndarray, steps: int) -> np.ndarray:
    """(T,) float32 quarter notes: Bar and TimeSig at the bar line, a note's tokens at its onset.

    Ids may be cut off anywhere; what comes before the first Bar counts from 0 in 4/4.
    """
    ids, layout = np.asarray(ids, dtype=np.int64), Layout(steps)
    starts, written = _bars(ids, layout)
    starts, written = np.append(0, starts), np.concatenate([[[4, 4]], written])
    bar = np.cumsum(ids == layout.bar)
    is_position = _kind(ids, layout.position, layout.meter)
    is_head = is_position | (ids == layout.bar)
    inside = np.where(is_position, (ids - layout.position) * 4.0 / (written[bar, 1] * steps), 0.0)
    latest = np.maximum.accumulate(np.where(is_head, np.arange(len(ids)), -1))
    time = starts[bar] / TICKS + np.where(latest >= 0, inside[latest], 0.0) if len(ids) else starts[:0]
    return np.asarray(time, dtype=np.float32)


@lru_cache(maxsize=2)
def grammar(steps: int) -> Grammar:
    """Bars with rising positions inside the bar, each note whole; a segment ends after a note.

    States: 0 start; 1 Bar, 2..17 its meter, while no note has come; 18 Bar, 19..34 its meter, after
    a note; then for each number of beats n and each position p < n * steps three: after Position,
    Pitch, Duration. The meters x/4, x/8 and x/16 of n beats share their states, since a beat always
    has the same steps.
    """
    layout = Layout(steps)
    first = 35 + 3 * steps * np.concatenate([[0], np.cumsum(np.arange(1, BEATS + 1))])  # (17,)
    table = np.full((int(first[-1]), layout.size), -1, dtype=np.int16)
    table[0, layout.bar] = 1
    for before, bar in ((1, 1), (18, 18)):
        table[before, layout.meter :] = bar + layout.meters[:, 0]
        table[bar + 1 : bar + BEATS + 1, layout.bar] = bar
    for beats in range(1, BEATS + 1):
        here, length = int(first[beats - 1]), beats * steps
        positions = np.arange(length)
        after_position = here + 3 * positions  # (length,)
        columns = layout.position + positions
        table[1 + beats, columns] = table[18 + beats, columns] = after_position
        table[after_position, layout.pitch : layout.duration] = after_position[:, None] + 1
        table[after_position + 1, layout.duration : layout.position] = after_position[:, None] + 2
        table[after_position + 2, layout.bar] = 18
        later = np.where(positions[None, :] > positions[:, None], after_position[None, :], -1)
        table[here + 2 : here + 3 * length : 3, columns[0] : columns[-1] + 1] = later
    final = np.zeros(len(table), dtype=bool)
    final[37::3] = True
    return Grammar(table, final, np.arange(layout.size) == layout.bar)


def words(ids: np.ndarray, steps: int) -> list[str]:
    """A word for each token, none for a meter that goes on: `| 6/8 @0 D4 0.5 @0.5 E4 1`, times in
    quarter notes.
    """
    layout, shown, denominator = Layout(steps), [], 4
    before = ""
    for token in np.asarray(ids).tolist():
        if token == layout.bar:
            shown.append("|")
        elif token >= layout.meter:
            numerator, denominator = layout.meters[token - layout.meter].tolist()
            meter = f"{numerator}/{denominator}"
            shown += [meter] if meter != before else []
            before = meter
        elif token >= layout.position:
            shown.append(f"@{(token - layout.position) * 4 / denominator / steps:.4g}")
        elif token >= layout.duration:
            length = int(layout.durations[token - layout.duration])
            shown.append(f"{length * 4 / denominator / steps:.4g}")
        else:
            shown.append(note_name(token - layout.pitch))
    return shown
