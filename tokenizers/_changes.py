"""Where the harmony of a song changes, and to what: from symbols, block chords, or all that sounds.

Letters: N notes, S slices of time, B beats, P spans of beats, K chords as in `_harmony`. Times are
ticks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.tokenizers import _harmony, _roles
from multimodal_gpt.tokenizers._harmony import NO_CHORD, UNKNOWN, Symbol
from multimodal_gpt.tokenizers._music import TICKS, Meter, Song, bar_lines

Change = tuple[int, Symbol]
"""(tick, symbol): the symbol holds until the next change."""

_TOGETHER = TICKS // 8  # notes that begin this close form one chord
_BLOCKY = 0.5  # share of the time under three notes begun together, from which on they are blocks


@dataclass(frozen=True)
class Harmony:
    """Changes, at least one of them to a chord; how they were found; how many were unreadable."""

    changes: tuple[Change, ...]
    why: str
    unknown: int


def find_harmony(song: Song, track: str | int | None = None, infer: bool = True) -> Harmony | None:
    """The harmony of a song, None where it has none. The first of these that applies:

    1. `track` (a number from 1, or a name): that track.
    2. Written chord symbols (in ABC, or the markers in a MIDI file of ours); unreadable ones become
       UNKNOWN and are counted.
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
        return _from_symbols(song)
    roles = _roles.choose_roles(song)
    if roles.chords is not None and roles.chords != roles.melody:
        return _from_track(song, roles.chords, str(roles.why.get("chords", "")))
    return _from_accompaniment(song, roles.melody) if infer else None


def _from_symbols(song: Song) -> Harmony | None:
    changes = []
    for tick, text in song.symbols or ():
        try:
            changes.append((tick, _harmony.parse_symbol(text)))
        except UserError:
            changes.append((tick, UNKNOWN))
    return _harmony_of(changes, "symbols")


def _from_track(song: Song, index: int, why: str) -> Harmony | None:
    notes = song.tracks[index].notes
    if _blockiness(notes) >= _BLOCKY:
        return _harmony_of(name_blocks(notes, song.meters), why)
    return _harmony_of(infer_changes(notes, song.meters, song.tempo), f"inferred from {why}")


def _from_accompaniment(song: Song, melody: int | None) -> Harmony | None:
    heard = [i for i, t in enumerate(song.tracks) if len(t.notes) and not t.is_drum]
    lines = [i for i in heard if _is_line(song.tracks[i].notes)]
    if lines == heard:
        chosen, why = (heard, f"inferred from {len(heard)} voices") if len(heard) > 2 else ([], "")
    else:
        chosen = [i for i in heard if i != melody] or heard
        why = (
            "inferred from "
            + ", ".join(_label(song, i) for i in chosen[:4])
            + (" ..." if len(chosen) > 4 else "")
        )
    if not chosen:
        return None
    notes = np.concatenate([song.tracks[i].notes for i in chosen])
    return _harmony_of(
        infer_changes(notes[np.lexsort((notes[:, 2], notes[:, 0]))], song.meters, song.tempo), why
    )


def _harmony_of(changes: list[Change], why: str) -> Harmony | None:
    if all(symbol.root is None for _, symbol in changes):
        return None
    return Harmony(tuple(changes), why, sum(symbol == UNKNOWN for _, symbol in changes))


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
    onsets = np.unique(notes[:, 0])
    starts = [int(onsets[0])] if len(onsets) else []
    for onset in onsets.tolist():
        if onset - starts[-1] > _TOGETHER:
            starts.append(onset)
    return np.asarray(starts, dtype=np.int64)


def _blockiness(notes: np.ndarray) -> float:
    """Share of the time from onset to onset that begins with three or more notes at once."""
    starts = _slices(notes)
    if not len(starts):
        return 0.0
    count = np.bincount(np.searchsorted(starts, notes[:, 0], side="right") - 1, minlength=len(starts))
    length = np.diff(np.append(starts, (notes[:, 0] + notes[:, 1]).max()))
    return float(length[count >= 3].sum() / max(length.sum(), 1))


def name_blocks(notes: np.ndarray, meters: tuple[Meter, ...]) -> list[Change]:
    """Changes of a track of block chords: what sounds at each onset is named by `recognise`.

    One or two notes of the chord before leave it as it is, those of the chord after begin it (a
    bass and its chord); any other lone note is passed over. Rests shorter than a bar are the
    accompaniment's style, longer ones are NO_CHORD.
    """
    changes: list[Change] = []
    slices = _sounding(notes)
    following = [*(set(classes) for _, _, classes, _ in slices[1:]), set()]
    before: set[int] = set()
    begun: int | None = None
    silent_from = 0
    for (start, stop, classes, pitches), after in zip(slices, following, strict=True):
        if changes and start - silent_from >= _bar_at(meters, silent_from):
            changes.append((silent_from, NO_CHORD))
            before = set()
        silent_from = max(silent_from, stop)
        if len(classes) < 3 and classes <= before:
            begun = None
        elif len(classes) < 3 and classes <= after:
            begun = start if begun is None else begun
        elif len(classes) > 1:
            changes.append((start if begun is None else begun, _harmony.recognise(pitches)))
            before, begun = classes, None
    return changes


def _sounding(notes: np.ndarray) -> list[tuple[int, int, set[int], list[int]]]:
    """Slices: tick, and last end, pitch classes, sorted pitches of what begins there or goes on."""
    starts = _slices(notes)
    longest = int(notes[:, 1].max(initial=0))
    first = np.searchsorted(notes[:, 0], starts - longest).tolist()
    last = np.searchsorted(notes[:, 0], starts + _TOGETHER, side="right").tolist()
    rows = notes.tolist()
    slices = []
    for start, i, j in zip(starts.tolist(), first, last, strict=True):
        held = [(o + d, p) for o, d, p in rows[i:j] if o >= start or o + d > start + _TOGETHER]
        pitches = sorted(p for _, p in held)
        slices.append((start, max(end for end, _ in held), {p % 12 for p in pitches}, pitches))
    return slices


def _bar_at(meters: tuple[Meter, ...], tick: int) -> int:
    return next((m for m in reversed(meters) if m.tick <= tick), meters[0]).bar


# ---------------------------------------------------------------------------------------- inference

_LONGEST_SPAN = 8  # beats
_SHORTEST_BEAT = 0.33  # seconds; faster beats are taken in pairs
# The rest are prices in beats of a perfect fit, set on 61 files of POP909. On 221 others the root and
# the third agree with the corrected chords 81 % of the time, and 90 % where the beats are corrected
# too. Half or twice any of the prices changed that by less than 1.5 % on the 61.
_CHANGE = {"bar": 0.14, "half": 0.2, "beat": 0.3}  # of a change there
_QUALITY = {  # of a beat of it; the others are never inferred
    **{"maj": 0.0, "min": 0.0, "7": 0.2, "min7": 0.2, "maj7": 0.2},
    **{"dim": 0.3, "sus4": 0.3, "hdim7": 0.3, "dim7": 0.3, "aug": 0.3},
}
_ROOT_IN_BASS = 0.25  # bonus
_SILENCE = 0.3  # of a beat of silence under a chord


@dataclass(frozen=True, eq=False)
class _Beats:
    """ticks (B + 1,) borders; price (B,) of a change there; sound (B, 12) ticks per pitch class;
    low (B, 12) the same of the lowest sounding note.
    """

    ticks: np.ndarray
    price: np.ndarray
    sound: np.ndarray
    low: np.ndarray


def infer_changes(notes: np.ndarray, meters: tuple[Meter, ...], tempo: float) -> list[Change]:
    """The harmony that (N, 3) notes imply: the best cut of time into spans of one chord each.

    Time is cut at beats (a dotted quarter in 6/8; pairs of beats where they are faster than 0.33
    s). A span of up to 8 beats is worth its beats times the fit of the best template
    (`_harmony.match` on durations summed over the span, so a broken chord is seen whole), less a
    price for the change that is lowest at a bar line. Dynamic programming finds the best cut. The
    lowest line names inversions.
    """
    beats = _beats(notes, meters, tempo)
    count = len(beats.price)
    value, label = _spans(beats)
    best = np.full(count + 1, -np.inf)
    best[0] = 0
    origin = np.zeros(count + 1, dtype=np.int64)
    for stop in range(1, count + 1):
        begins = np.arange(max(0, stop - _LONGEST_SPAN), stop)
        totals = best[begins] + value[begins, stop - begins - 1]
        origin[stop] = begins[totals.argmax()]
        best[stop] = totals.max()
    changes: list[Change] = []
    stop = count
    while stop > 0:
        start = int(origin[stop])
        changes.append(
            (int(beats.ticks[start]), _name(int(label[start, stop - start - 1]), beats, start, stop))
        )
        stop = start
    return changes[::-1]


def _spans(beats: _Beats) -> tuple[np.ndarray, np.ndarray]:
    """Worth and best chord (-1: none) of the spans, (B, _LONGEST_SPAN): first beat by beats - 1."""
    count = len(beats.price)
    value = np.full((count, _LONGEST_SPAN), -np.inf)
    label = np.full((count, _LONGEST_SPAN), -1)
    sound = np.concatenate((np.zeros((1, 12)), beats.sound.cumsum(axis=0)))
    low = np.concatenate((np.zeros((1, 12)), beats.low.cumsum(axis=0)))
    silent = np.concatenate(([0], (beats.sound.sum(axis=1) == 0).cumsum()))
    price = np.repeat([_QUALITY.get(q.name, np.inf) for q in _harmony.QUALITIES], 12)
    for length in range(1, min(_LONGEST_SPAN, count) + 1):
        first = np.arange(count - length + 1)
        heard = sound[first + length] - sound[first]
        bass = (low[first + length] - low[first]).argmax(axis=1)
        quiet = silent[first + length] - silent[first]
        score = _harmony.match(heard, bass, _ROOT_IN_BASS) - price
        worth = (length - quiet) * score.max(axis=1) - _SILENCE * quiet
        value[first, length - 1] = np.where(quiet == length, 0.0, worth) - beats.price[first]
        label[first, length - 1] = np.where(quiet == length, -1, score.argmax(axis=1))
    return value, label


def _name(label: int, beats: _Beats, start: int, stop: int) -> Symbol:
    if label < 0:
        return NO_CHORD
    symbol = _harmony.chord(label)
    low = beats.low[start:stop].sum(axis=0)
    bass = int(low.argmax())
    # A walking bass names no inversion: only one that holds most of the time does.
    held = low[bass] > 0.6 * low.sum() and bass in symbol.pitch_classes
    return _harmony.chord(label, bass if held else None)


def _beats(notes: np.ndarray, meters: tuple[Meter, ...], tempo: float) -> _Beats:
    end = int((notes[:, 0] + notes[:, 1]).max())
    ticks: list[int] = []
    price: list[float] = []
    for start, (numerator, denominator) in zip(*(a.tolist() for a in bar_lines(meters, end)), strict=True):
        offsets = _beats_of_bar(numerator, denominator, tempo)
        bar = numerator * 4 * TICKS // denominator
        ticks += [start + offset for offset in offsets]
        price += [_CHANGE["bar" if not o else "half" if 2 * o == bar else "beat"] for o in offsets]
        end = start + bar
    borders = np.asarray([*ticks, end], dtype=np.int64)
    sound = _spread(notes, borders)
    return _Beats(borders, np.asarray(price), sound, _spread(_lowest(notes), borders))


def _beats_of_bar(numerator: int, denominator: int, tempo: float) -> list[int]:
    """Ticks from the bar line of the beats at which a chord may change."""
    unit = 4 * TICKS // denominator
    group = 3 if denominator >= 8 and numerator % 3 == 0 else max(1, denominator // 4)
    seconds = group * unit / TICKS * 60 / tempo
    if seconds < _SHORTEST_BEAT and numerator % (2 * group) == 0:
        group *= 2
    return [o * unit for o in range(0, numerator, group)]


def _spread(notes: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """(B, 12) ticks that each pitch class sounds between the borders."""
    sound = np.empty((len(borders) - 1, 12))
    for pitch_class in range(12):
        own = notes[notes[:, 2] % 12 == pitch_class]
        total = _elapsed(own[:, 0], borders) - _elapsed(own[:, 0] + own[:, 1], borders)
        sound[:, pitch_class] = np.diff(total)
    return sound


def _elapsed(moments: np.ndarray, until: np.ndarray) -> np.ndarray:
    """For each of `until`: ticks gone by since each moment, summed over the moments before it."""
    ordered = np.sort(moments)
    past = np.searchsorted(ordered, until)
    return np.asarray(past * until - np.concatenate(([0], ordered.cumsum()))[past])


def _lowest(notes: np.ndarray) -> np.ndarray:
    """(M, 3) the lowest line of the notes: parts of time, with the lowest pitch that sounds."""
    borders = np.unique(np.concatenate((notes[:, 0], notes[:, 0] + notes[:, 1])))
    lowest = np.full(len(borders) - 1, -1)
    for pitch in np.unique(notes[:, 2]).tolist():
        own = notes[notes[:, 2] == pitch]
        change = np.zeros(len(borders), dtype=np.int64)
        np.add.at(change, np.searchsorted(borders, own[:, 0]), 1)
        np.add.at(change, np.searchsorted(borders, own[:, 0] + own[:, 1]), -1)
        lowest[(change.cumsum()[:-1] > 0) & (lowest < 0)] = pitch
    heard = lowest >= 0
    return np.stack((borders[:-1], np.diff(borders), lowest), axis=1)[heard]
