"""MidiTok's REMI for one melody, as arrays: `Bar TimeSig (Position Pitch Duration)*` for every bar.

MidiTok 3.1 is the reference (`miditok_remi`; tests compare ids and notes with it). It is not imported
otherwise: that takes two seconds, brings torch along, and its encoder works through Python objects, some
80 times slower than these arrays. Our ids are MidiTok's in its own order, without PAD and PitchDrum
(`miditok_ids`).

A beat is the meter's denominator (an eighth in 6/8) and has `steps` positions. A duration counts
steps up to 4 beats, then quarter beats up to 12.

Letters: T tokens, N notes, B bars, D durations, M meters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from multimodal_gpt.stream.grammar import Grammar
from multimodal_gpt.tokenizers._following import Signs, signs
from multimodal_gpt.tokenizers._music import (
    METERS,
    TICKS,
    Meter,
    align_meters,
    all_true,
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

    @cached_property
    def duration(self) -> int:
        return self.pitch + _PITCHES

    @cached_property
    def position(self) -> int:
        return self.duration + len(self.durations)

    @cached_property
    def meter(self) -> int:
        return self.position + BEATS * self.steps

    @cached_property
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

    @cached_property
    def meter_ids(self) -> dict[tuple[int, int], int]:
        """Numerator and denominator -> id."""
        return {(n, d): self.meter + i for i, (n, d) in enumerate(self.meters.tolist())}

    @cached_property
    def nearest(self) -> np.ndarray:
        """(3, L) int64: place in `durations` of the duration nearest to 0 .. L - 1 fine ticks, the longer
        of two; where a step is 1, 2 or 4 fine ticks.
        """
        fine, step = np.arange(4 * self.durations[-1] + 1), np.array([[1], [2], [4]])
        above = np.minimum(np.searchsorted(self.durations, -(-fine // step)), len(self.durations) - 1)
        below = np.maximum(above - 1, 0)
        nearer = np.abs(fine - self.durations[below] * step) < np.abs(self.durations[above] * step - fine)
        return np.where(nearer, below, above)

    @cached_property
    def fitting(self) -> np.ndarray:
        """(L,) int64: place in `durations` of the longest within 0 .. L - 1 steps."""
        return np.searchsorted(self.durations, np.arange(self.durations[-1] + 1), side="right") - 1


@lru_cache(maxsize=2)
def layout_of(steps: int) -> Layout:
    """The layout for so many steps per beat: one object, which keeps its tables."""
    return Layout(steps)


@dataclass(frozen=True, eq=False)
class Sections:
    """The S meters of a piece, times in fine ticks: `scale` of them, the finest steps, are a quarter.

    Args:
        start: (S,) where each begins.
        bar: (S,) length of its bars.
        step: (S,) length of its steps: 1, 2 or 4.
        before: (S,) number of bars before it.
        ids: (S,) its TimeSig.
    """

    scale: int
    start: np.ndarray
    bar: np.ndarray
    step: np.ndarray
    before: np.ndarray
    ids: np.ndarray


@lru_cache(maxsize=64)  # a piece is encoded in many keys
def _sections(meters: tuple[Meter, ...], steps: int) -> Sections:
    finest = max(m.denominator for m in meters)
    scale = steps * finest // 4
    start = np.array([m.tick * scale // TICKS for m in meters])
    bar = np.array([4 * scale * m.numerator // m.denominator for m in meters])
    step = np.array([finest // m.denominator for m in meters])
    before = np.append(0, np.cumsum(np.diff(start) // bar[:-1]))
    ids = np.array([layout_of(steps).meter_ids[m.numerator, m.denominator] for m in meters])
    return Sections(scale, start, bar, step, before, ids)


@dataclass(frozen=True, eq=False)
class Grid:
    """A line of M notes on the grid, times in fine ticks.

    Args:
        all_onsets: (N,) of all notes, before any is left out.
        section: (M,) the section of each note, or 0 for all of them.
        onset, pitch: (M,).
        duration: (M,) as a place in `Layout.durations`.
    """

    sections: Sections
    all_onsets: np.ndarray
    section: Any
    onset: np.ndarray
    pitch: np.ndarray
    duration: np.ndarray


def quantise(notes: np.ndarray, meters: Sequence[Meter], steps: int) -> Grid:
    """(N, 3) notes as one line on the grid, rounded as MidiTok rounds.

    First to the finest grid that a meter of the piece needs, halves up; then to the grid of the
    meter in force, counted from where it begins, halves to even; durations to the nearest in the
    vocabulary, the longer of two. Of notes that fall on the same position the highest stays; a
    duration ends at the next onset at the latest.
    """
    meters = align_meters(meters)
    if len(meters) > 1:
        last = int(notes[:, 0].max()) + TICKS // steps
        meters = tuple(m for m in meters if m.tick <= last)
    sections = _sections(meters, steps)
    onset, duration = _fine(notes, sections)
    everyone, pitch = onset, notes[:, 2]
    room = onset[1:] - onset[:-1]
    if not all_true(room > 0):
        notes = sort_notes(notes)
        everyone, duration = _fine(notes, sections)
        onset, duration, pitch = one_line(np.stack([everyone, duration, notes[:, 2]], axis=1)).T
        room = onset[1:] - onset[:-1]
    section = _section(onset, sections)
    duration = _round_durations(duration, room, sections.step[section], layout_of(steps))
    return Grid(sections, everyone, section, onset, pitch, duration)


def _section(onset: np.ndarray, sections: Sections) -> Any:
    several = len(sections.start) > 1
    return sections.start.searchsorted(onset, side="right") - 1 if several else 0


def _fine(notes: np.ndarray, sections: Sections) -> tuple[np.ndarray, np.ndarray]:
    """(N,) onsets on the grid and (N,) durations of (N, 3) notes, in fine ticks."""
    fine = notes[:, :2] * (2 * sections.scale)
    fine += TICKS
    fine //= 2 * TICKS
    onset, duration = fine.T
    if len(sections.start) > 1:
        section = _section(onset, sections)
        start, step = sections.start[section], sections.step[section]
        onset = start + np.round((onset - start) / step).astype(np.int64) * step
    return onset, np.maximum(1, duration)


def _round_durations(duration: np.ndarray, room: np.ndarray, step: np.ndarray, layout: Layout) -> np.ndarray:
    """(M,) places of the durations nearest to `duration` that fit into the (M - 1,) `room`."""
    if step.ndim:
        places = layout.nearest[step // 2, np.minimum(duration, layout.nearest.shape[1] - 1)]
        room = room // step[:-1]
    else:
        places = layout.nearest[0].take(duration, mode="clip")  # one meter: a step is one fine tick
    np.minimum(places[:-1], layout.fitting.take(room, mode="clip"), out=places[:-1])
    return places


def encode(grid: Grid, steps: int) -> np.ndarray:
    """(T,) int32 ids of a line, up to its last note's bar."""
    layout, sections, section = layout_of(steps), grid.sections, grid.section
    several = len(sections.start) > 1
    onset = grid.onset - sections.start[section] if several else grid.onset
    bar, position = np.divmod(onset, sections.bar[section])
    if several:
        bar += sections.before[section]
        position //= sections.step[section]
    bars = int(bar[-1]) + 1
    heads = np.empty((bars, 2), dtype=np.int32)
    heads[:, 0] = layout.bar
    heads[:, 1] = sections.ids[
        sections.before.searchsorted(np.arange(bars), side="right") - 1 if several else 0
    ]
    notes = np.empty((len(bar), 3), dtype=np.int32)
    notes[:, 0] = position + layout.position
    notes[:, 1] = grid.pitch + layout.pitch
    notes[:, 2] = grid.duration + layout.duration
    places = (2 * bar + np.arange(2, 2 + notes.size, 3))[:, None] + _THREE
    is_note = np.zeros(heads.size + notes.size, dtype=bool)
    is_note[places] = True
    ids = np.empty(len(is_note), dtype=np.int32)
    ids[places] = notes
    ids[~is_note] = heads.ravel()
    return ids


_THREE = np.arange(3)


def shift(ids: np.ndarray, by: int, steps: int) -> np.ndarray | None:
    """(T,) ids with every pitch moved `by` semitones, None where one would leave 0..127."""
    layout = layout_of(steps)
    at = np.flatnonzero(_kind(ids, layout.pitch, layout.duration))
    moved = ids[at] + by
    if len(at) and not layout.pitch <= moved.min() <= moved.max() < layout.duration:
        return None
    shifted = ids.copy()
    shifted[at] = moved
    return shifted


def decode(ids: np.ndarray, steps: int) -> tuple[np.ndarray, tuple[Meter, ...]]:
    """(N, 3) notes in ticks and meters of legal ids, the reverse of `encode`.

    A note that reaches over the next onset is cut there. With 24 steps a step of x/16 is half a
    tick: rounded down.
    """
    layout = layout_of(steps)
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
    ids, layout = np.asarray(ids, dtype=np.int64), layout_of(steps)
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
def time_signs(steps: int) -> Signs:
    """What each id says about time."""
    layout, ids = layout_of(steps), np.arange(layout_of(steps).size)
    step = np.full(layout.size, np.nan)
    step[layout.meter :] = 4 / (layout.meters[:, 1] * steps)
    places = np.where(_kind(ids, layout.position, layout.meter), ids - layout.position, -1)
    return signs(ids == layout.bar, layout.spans, step, places, 1 / steps)


@lru_cache(maxsize=2)
def grammar(steps: int) -> Grammar:
    """Bars with rising positions inside the bar, each note whole; a segment ends after a note.

    States: 0 start; 1 Bar, 2..17 its meter, while no note has come; 18 Bar, 19..34 its meter, after
    a note; then for each number of beats n and each position p < n * steps three: after Position,
    Pitch, Duration. The meters x/4, x/8 and x/16 of n beats share their states, since a beat always
    has the same steps.
    """
    layout = layout_of(steps)
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
    layout, shown, denominator = layout_of(steps), [], 4
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


def miditok_remi(steps: int) -> Any:
    """MidiTok's own REMI with `steps` positions in a beat, of which this is a copy."""
    from miditok import REMI, TokenizerConfig

    config = TokenizerConfig(
        pitch_range=(0, 127),
        use_programs=False,
        use_velocities=False,
        use_time_signatures=True,
        beat_res={(0, 4): steps, (4, 12): 4},
        time_signature_range={d: list(n) for d, n in METERS.items()},
        special_tokens=["PAD"],
    )
    return REMI(config)
