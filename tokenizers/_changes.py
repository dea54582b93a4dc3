"""Where the harmony of a song changes, and to what: from symbols, block chords, or all that sounds.

Letters: C changes, N notes, S slices of time. Times are ticks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.tokenizers import _harmony, _roles, _voicing
from multimodal_gpt.tokenizers._harmony import NO_CHORD, UNKNOWN, UNKNOWN_CODE, Symbol
from multimodal_gpt.tokenizers._inference import Change, infer_changes
from multimodal_gpt.tokenizers._music import TICKS, Meter, Song

_TOGETHER = TICKS // 8  # notes that begin this close form one chord
_BLOCKY = 0.5  # share of the time under three notes begun together, from which on they are blocks


@dataclass(frozen=True, eq=False)
class Harmony:
    """changes (C, 2) int64 tick and `Symbol.code`, at least one of them a chord; how they were found;
    how many were unreadable.
    """

    changes: np.ndarray
    why: str
    unknown: int


def find_harmony(
    song: Song, track: str | int | None = None, infer: bool = True, spelled: str = "symbols"
) -> Harmony | None:
    """The harmony of a song, None where it has none. The first of these that applies:

    1. `track` (a number from 1, or a name): that track.
    2. Written chord symbols (of ABC and MusicXML, or what `_markers.read_markers` found in MIDI);
       unreadable ones become UNKNOWN and are counted. `spelled` says where they were.
    3. The chord track that `choose_roles` names, where the melody isn't in it. Block chords are named
       one by one (`name_blocks`), broken ones by `infer_changes`.
    4. With `infer`: `infer_changes` over all tracks but the melody and drums, or over all of them
       where each is a single line (a choir). A melody alone or with one other line is no harmony.

    Raises UserError where there is no such `track`.
    """
    if track is not None:
        index = _roles.find_track(song, track)
        return _from_track(song, index, f"{_label(song, index)} as asked for")
    if song.symbols:
        return _harmony_of([(tick, _read(text)) for tick, text in song.symbols], spelled)
    roles = _roles.choose_roles(song)
    if roles.chords is not None and roles.chords != roles.melody:
        return _from_track(song, roles.chords, str(roles.why.get("chords", "")))
    return _from_accompaniment(song, roles.melody) if infer else None


def _read(text: str) -> Symbol:
    try:
        return _harmony.parse_symbol(text)
    except UserError:
        return UNKNOWN


def _from_track(song: Song, index: int, why: str) -> Harmony | None:
    notes = song.tracks[index].notes
    if _blockiness(notes) >= _BLOCKY:
        return _harmony_of(name_blocks(notes, song.meters), why)
    return _harmony_of(infer_changes(notes, song.meters, song.tempo), f"inferred from {why}")


def _from_accompaniment(song: Song, melody: int | None) -> Harmony | None:
    heard = [i for i, t in enumerate(song.tracks) if len(t.notes) and not t.is_drum]
    if all(_is_line(song.tracks[i].notes) for i in heard):
        if len(heard) < 3:
            return None
        chosen, why = heard, f"{len(heard)} voices"
    else:
        chosen = [i for i in heard if i != melody] or heard
        why = ", ".join(_label(song, i) for i in chosen[:4]) + (" ..." if len(chosen) > 4 else "")
    notes = np.concatenate([song.tracks[i].notes for i in chosen])
    return _harmony_of(infer_changes(notes, song.meters, song.tempo), f"inferred from {why}")


def _harmony_of(changes: Sequence[Change], why: str) -> Harmony | None:
    table = np.array([(tick, symbol.code) for tick, symbol in changes], dtype=np.int64).reshape(-1, 2)
    if not (table[:, 1] >= 0).any():
        return None
    return Harmony(table, why, int(np.count_nonzero(table[:, 1] == UNKNOWN_CODE)))


def _label(song: Song, index: int) -> str:
    name = song.tracks[index].name
    return f"track {index + 1} {name!r}" if name else f"track {index + 1}"


def _is_line(notes: np.ndarray) -> bool:
    """Whether hardly ever two notes begin together or go on together."""
    ends = np.maximum.accumulate(notes[:, 0] + notes[:, 1])
    return float(np.mean(notes[1:, 0] >= ends[:-1] - _TOGETHER)) > 0.8 if len(notes) > 1 else True


# ------------------------------------------------------------------------------------- block chords


def _slices(notes: np.ndarray) -> np.ndarray:
    """(S,) onsets at which at least one note begins, close ones joined to the first of them."""
    onsets = notes[np.append(True, notes[1:, 0] != notes[:-1, 0]), 0] if len(notes) else notes[:, 0]
    if (onsets[1:] - onsets[:-1] > _TOGETHER).all():
        return onsets
    starts = [int(onsets[0])]
    for onset in onsets.tolist():
        if onset - starts[-1] > _TOGETHER:
            starts.append(onset)
    return np.asarray(starts, dtype=np.int64)


def _blockiness(notes: np.ndarray) -> float:
    """Share of the time from onset to onset that begins with three or more notes at once."""
    starts = _slices(notes)
    if not len(starts):
        return 0.0
    borders = np.append(notes[:, 0].searchsorted(starts), len(notes))
    blocks = borders[1:] - borders[:-1] >= 3
    moments = np.append(starts, (notes[:, 0] + notes[:, 1]).max())
    length = moments[1:] - moments[:-1]
    return float(length[blocks].sum() / max(length.sum(), 1))


def name_blocks(notes: np.ndarray, meters: tuple[Meter, ...]) -> list[Change]:
    """Changes of a track of block chords: what sounds at each onset is named by `recognise`.

    One or two notes of the chord before leave it as it is, those of the chord after begin it (a
    bass and its chord); any other lone note is passed over. Rests shorter than a bar are the
    accompaniment's style, longer ones are NO_CHORD.
    """
    changes: list[Change] = []
    slices = _sounding(notes)
    shortest = min(_long_rest(m) for m in meters)
    before = 0
    begun: int | None = None
    silent_from = 0
    for (start, stop, pitches), (_, _, following) in pairwise([*slices, (0, 0, ())]):
        rest = start - silent_from
        if changes and rest >= shortest and rest >= _long_rest(_meter_at(meters, silent_from)):
            changes.append((silent_from, NO_CHORD))
            before, begun = 0, None
        silent_from = max(silent_from, stop)
        classes = _bits(pitches)
        count = classes.bit_count()
        if count < 3 and not classes & ~before:
            begun = None
        elif count < 3 and not classes & ~_bits(following):
            begun = start if begun is None else begun
        elif count > 1:
            changes.append((start if begun is None else begun, _voicing.recognise_block(pitches)))
            before, begun = classes, None
    return changes


def _sounding(notes: np.ndarray) -> list[tuple[int, int, tuple[int, ...]]]:
    """Slices: tick, last end, sorted pitches of what begins there or goes on."""
    starts = _slices(notes)
    first = notes[:, 0].searchsorted(starts)
    onset, duration, pitch = notes.T
    end = onset + duration
    last_end = np.maximum.reduceat(end, first)
    before = np.append(0, np.maximum.accumulate(last_end)[:-1])
    carries = before > starts + _TOGETHER
    last_end = np.where(carries, np.maximum(last_end, before), last_end)
    ordered = np.append(True, pitch[1:] > pitch[:-1])
    ordered[first] = True
    plain = ~carries & np.logical_and.reduceat(ordered, first)
    rest = (first, [*first[1:], len(notes)], starts + _TOGETHER, plain)
    pitches = _held(pitch.tolist(), end.tolist(), zip(*(np.asarray(a).tolist() for a in rest), strict=True))
    return list(zip(starts.tolist(), last_end.tolist(), pitches, strict=True))


def _held(
    pitches: list[int], ends: list[int], slices: Iterable[tuple[int, int, int, bool]]
) -> Iterator[tuple[int, ...]]:
    """Sorted pitches of each slice (first note, the one after its last, the tick after which something
    held must go on, whether nothing is held and its own notes are sorted).
    """
    held: dict[int, int] = {}  # pitch -> end
    new = 0  # the first note that isn't in `held` yet
    for first, stop, tick, plain in slices:
        if plain:
            yield tuple(pitches[first:stop])
            held, new = {}, first
            continue
        for place in range(new, stop):
            held[pitches[place]] = max(ends[place], held.get(pitches[place], 0))
        held = {p: end for p, end in held.items() if end > tick or p in pitches[first:stop]}
        new = stop
        yield tuple(sorted(held))


@lru_cache(maxsize=65536)
def _bits(pitches: tuple[int, ...]) -> int:
    """Pitch classes as bits."""
    return sum(1 << pitch_class for pitch_class in {pitch % 12 for pitch in pitches})


def _long_rest(meter: Meter) -> int:
    """Ticks of silence that end a chord: a bar, where it lasts two quarter notes."""
    return max(meter.bar, 2 * TICKS)


def _meter_at(meters: tuple[Meter, ...], tick: int) -> Meter:
    return next((m for m in reversed(meters) if m.tick <= tick), meters[0])
