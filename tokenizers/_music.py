"""Music as plain arrays: meters, bar lines, keys, notes. Knows no file format and no tokens.

Letters: N notes, B bars. Times are ticks of 1/TICKS quarter note, pitches MIDI numbers (60 = C4).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from multimodal_gpt.tokenizers._lazy import lazy

TICKS = 48
"""Ticks per quarter note of all contents: exact for 12 steps per quarter, eighth or sixteenth."""

METERS: dict[int, tuple[int, ...]] = {
    4: tuple(range(1, 17)),
    8: tuple(range(1, 17)),
    16: (1, 3, 5, 6, 7, 9, 11, 12, 13, 15),
}
"""Usable meters: denominator -> numerators. The even x/16 left out are exactly an x/8."""

Signature = tuple[int, bool]
"""Key as (sharps -7..7, negative = flats; is minor). The tonic is kept, so a mode counts as the
major or minor key of its tonic: E dorian is (1, True), E minor."""


@dataclass(frozen=True)
class Meter:
    """A time signature from a tick on."""

    tick: int
    numerator: int = 4
    denominator: int = 4

    @property
    def bar(self) -> int:
        """Length of a bar in ticks."""
        return self.numerator * 4 * TICKS // self.denominator

    def __str__(self) -> str:
        return f"{self.numerator}/{self.denominator}"


@dataclass(frozen=True, eq=False)
class Track:
    """Notes of one instrument, and what they sound like.

    Args:
        notes: (N, 3) int64 onset, duration (both ticks), pitch; sorted as `sort_notes` does.
        written: (N,) their onsets as the file has them, where it counts in other ticks: `division`
            of them a quarter note.
    """

    name: str
    program: int
    is_drum: bool
    notes: np.ndarray
    written: np.ndarray | None = None
    division: int = TICKS

    @lazy
    def rising(self) -> np.ndarray:
        """(N - 1,) bool: whether the next note begins later."""
        return np.asarray(self.notes[1:, 0] > self.notes[:-1, 0])

    @lazy
    def top(self) -> np.ndarray:
        """(M, 3) the highest note at each onset."""
        if all_true(self.rising):
            return self.notes
        return np.concatenate([self.notes[:-1][self.rising], self.notes[-1:]])

    @lazy
    def line(self) -> np.ndarray:
        """(M, 3) `one_line` of the notes."""
        return _cut(self.top)

    @lazy
    def onsets(self) -> int:
        """How many different ones, M."""
        return len(self.top)

    @lazy
    def single(self) -> float:
        """Share of onsets where one note sounds alone."""
        # A moment after the onset, so that a slightly late note-off is not a second voice.
        moment = TICKS // 8
        onset, onsets = self.notes[:, 0], self.top[:, 0]
        end = onset + np.maximum(self.notes[:, 1], moment + 1)
        if len(onsets) == len(onset) and all_true(end[:-1] <= onset[1:] + moment):
            return 1.0
        end.sort()
        ended = end.searchsorted(onsets + moment, side="right")
        alone = onset.searchsorted(onsets, side="right") - ended <= 1
        return float(np.count_nonzero(alone) / max(1, len(onsets)))

    @lazy
    def block(self) -> float:
        """Share of onsets where three or more notes begin together."""
        if len(self.notes) - self.onsets < 2:
            return 0.0
        three = self.notes[2:, 0] == self.notes[:-2, 0]
        return float((three[0] + np.count_nonzero(three[1:] & self.rising[:-2])) / self.onsets)

    @lazy
    def register(self) -> float:
        """Median of the highest pitch at each onset."""
        pitch = self.top[:, 2].copy()
        pitch.sort()
        return float(pitch[(len(pitch) - 1) // 2] + pitch[len(pitch) // 2]) / 2 if len(pitch) else 0.0


@dataclass(frozen=True, eq=False)
class Song:
    """One piece as its file tells it.

    Args:
        key: unique within the file, "" where the file is one piece. Not the musical key.
        meters: normalised, sorted, the first at tick 0, each different from the one before.
        tempo: quarter notes per minute.
        signature: the musical key, where the file tells it.
        symbols: (tick, chord symbol as written), None where the format writes no symbols.
        metadata: title, type (jig, waltz, chorale ...) and what else the file says.
    """

    key: str
    tracks: tuple[Track, ...]
    meters: tuple[Meter, ...] = (Meter(0),)
    tempo: float = 120.0
    signature: Signature | None = None
    symbols: tuple[tuple[int, str], ...] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Roles:
    """Indexes into `Song.tracks` of melody and chords (may be the same track), and why, per role."""

    melody: int | None
    chords: int | None
    why: Mapping[str, str]


@lru_cache(maxsize=256)
def normalise_meter(numerator: int, denominator: int) -> tuple[int, int]:
    """The usable meter for a written one.

    Kept where it is usable; else the equally long one (2/2 is 4/4, which keeps the sixteenths);
    else the longest one that divides the bar (20/4 is 10/4, so true bar lines stay bar lines); else
    4/4.

    Example:
        >>> normalise_meter(2, 2), normalise_meter(20, 4), normalise_meter(4, 1), normalise_meter(0, 4)
        ((4, 4), (10, 4), (16, 4), (4, 4))
    """
    if numerator in METERS.get(denominator, ()):
        return numerator, denominator
    if numerator < 1 or denominator not in (1, 2, 4, 8, 16, 32, 64):
        return 4, 4
    usable = [(n * 16 // d, n, d) for d, row in METERS.items() for n in row]  # length in sixteenths
    sixteenths, rest = divmod(numerator * 16, denominator)
    if rest:
        sixteenths = max(1, sixteenths)
    fitting = [u for u in usable if sixteenths % u[0] == 0]
    # The longest; of equally long ones the one nearest to what was written, 4 before 8 before 16.
    _, n, d = max(fitting, key=lambda u: (u[0], -abs(u[2] - denominator), -u[2]))
    return n, d


def clean_meters(written: Iterable[tuple[int, int, int]]) -> tuple[Meter, ...]:
    """Meters from written (tick, numerator, denominator): usable, sorted, no repeats, one at tick 0
    (4/4 if none).
    """
    by_tick = {0: (4, 4)}
    for tick, numerator, denominator in sorted(written, key=lambda m: m[0]):
        by_tick[max(0, tick)] = normalise_meter(numerator, denominator)
    kept: list[Meter] = []
    before = (0, 0)
    for tick, meter in sorted(by_tick.items()):
        if meter != before:
            kept.append(Meter(tick, *meter))
        before = meter
    return tuple(kept)


def align_meters(meters: Sequence[Meter]) -> tuple[Meter, ...]:
    """The same meters, every change moved to the next bar line, as MIDI 1.0 asks of a late one."""
    return tuple(meters) if len(meters) < 2 else _align(tuple(meters))


@lru_cache(maxsize=64)  # a piece is asked several times, and each of its shifted copies
def _align(meters: tuple[Meter, ...]) -> tuple[Meter, ...]:
    aligned: list[Meter] = []
    for written in meters:
        meter = written
        if aligned:
            last = aligned[-1]
            bars = -(-max(0, meter.tick - last.tick) // last.bar)
            meter = replace(meter, tick=last.tick + bars * last.bar)
            if meter.tick == last.tick:
                aligned.pop()
            if aligned and str(aligned[-1]) == str(meter):
                continue
        aligned.append(meter)
    return tuple(aligned)


def count_bars(meters: Sequence[Meter], end: int) -> list[tuple[Meter, int]]:
    """The aligned meters that begin before `end` (at least one), each with its number of bars."""
    end = max(end, 1)
    aligned = [m for m in align_meters(meters) if m.tick < end]
    stops = [*(m.tick for m in aligned[1:]), end]
    return [(m, -((m.tick - stop) // m.bar)) for m, stop in zip(aligned, stops, strict=True)]


def bar_lines(meters: Sequence[Meter], end: int) -> tuple[np.ndarray, np.ndarray]:
    """Bars that begin before `end` (at least one): (B,) int64 start ticks, (B, 2) int64 numerator
    and denominator.

    A meter that changes inside a bar changes at the next bar line.
    """
    counted = count_bars(meters, end)
    starts = [m.tick + m.bar * np.arange(bars) for m, bars in counted]
    written = [np.tile([m.numerator, m.denominator], (bars, 1)) for m, bars in counted]
    return np.concatenate(starts).astype(np.int64), np.concatenate(written).astype(np.int64)


_LETTERS = "FCGDAEB"
_MODES = {
    "": 0,
    "maj": 0,
    "ion": 0,
    "m": 3,
    "min": 3,
    "aeo": 3,
    "mix": 1,
    "dor": 2,
    "phr": 4,
    "loc": 5,
    "lyd": -1,
}
_MINOR = ("m", "min", "aeo", "dor", "phr", "loc")
_KEY = re.compile(r"\s*([A-Ga-g])([#b♯♭]?)\s*([A-Za-z]*)")


def key_name(signature: Signature) -> str:
    """Name of a key, the reverse of `parse_key`.

    Example:
        >>> key_name((2, False)), key_name((-3, True))
        ('D major', 'C minor')
    """
    sharps, minor = signature
    accidentals, letter = divmod(sharps + 1 + 3 * minor, 7)
    return f"{_LETTERS[letter]}{'#' * accidentals or 'b' * -accidentals} {'minor' if minor else 'major'}"


def parse_key(text: str) -> Signature | None:
    """Key of a name as musicians or ABC write it, else None; a mode counts as major or minor on its
    tonic.

    Example:
        >>> parse_key("F#m"), parse_key("Edor"), parse_key("Bb major"), parse_key("none")
        ((3, True), (1, True), (-2, False), None)
    """
    match = _KEY.match(text)
    if not match or (mode := _mode(match[3])) is None:
        return None
    accidental = {"#": 7, "♯": 7, "b": -7, "♭": -7}.get(match[2], 0)
    sharps = _LETTERS.index(match[1].upper()) - 1 + accidental - 3 * (mode in _MINOR)
    return (sharps + 7) % 12 - 7 if sharps < -7 else sharps - 12 if sharps > 7 else sharps, mode in _MINOR


def parse_mode(text: str) -> str:
    """The mode in a key's name where it is neither major nor minor: "dorian" in "Edor", else ""."""
    match = _KEY.match(text)
    names = {"mix": "mixolydian", "dor": "dorian", "phr": "phrygian", "loc": "locrian", "lyd": "lydian"}
    return names.get(_mode(match[3]) or "", "") if match else ""


def _mode(word: str) -> str | None:
    if word in ("m", "M", ""):
        return word.replace("M", "")
    short = word[:3].lower()
    return short if short in _MODES else "" if short in ("cle", "exp", "mid", "oct", "tra") else None


# How well each degree fits a major and a minor key, from listeners' ratings: Krumhansl and Kessler,
# "Tracing the dynamic changes in perceived tonal organization", Psychological Review 89 (1982).
_PROFILES = np.array(
    [
        [6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88],
        [6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17],
    ]
)


def find_key(notes: np.ndarray, sharps: int | None = None) -> Signature:
    """The key whose Krumhansl-Kessler profile correlates best with the (N, 3) notes' durations; C
    major for none.

    `sharps`: a written signature that doesn't say more; then only keys within one sharp or flat of
    it are considered, since old books write D minor without its flat.
    """
    sounding = np.bincount(notes[:, 2] % 12, weights=notes[:, 1], minlength=12)
    if sounding.max() == sounding.min():
        return sharps or 0, False
    fit = (sounding[_DEGREES] @ _FIT).ravel()
    keys, outside = _keys_near(sharps)
    return keys[int(np.argmax(fit + outside))]


_DEGREES = (np.arange(12)[:, None] + np.arange(12)) % 12  # (12, 12) tonic, degree -> pitch class
_CENTRED = _PROFILES - _PROFILES.mean(axis=1, keepdims=True)
_FIT = (_CENTRED / np.linalg.norm(_CENTRED, axis=1, keepdims=True)).T  # (12, 2)


@lru_cache(maxsize=32)
def _keys_near(sharps: int | None) -> tuple[list[Signature], np.ndarray]:
    """The 24 keys, and (24,) 0.0, or -inf for those too far from a written signature."""
    keys = [_spell(tonic, minor, near=sharps or 0) for tonic in range(12) for minor in (False, True)]
    near = [sharps is None or abs(key[0] - sharps) <= 1 for key in keys]
    return keys, np.where(near, 0.0, -np.inf)


def shift_signature(signature: Signature | None, steps: int) -> Signature | None:
    """The signature moved by semitones, with at most six sharps or five flats."""
    if signature is None:
        return None
    sharps, minor = signature
    return (sharps + 7 * steps + 5) % 12 - 5, minor


def _spell(tonic: int, minor: bool, near: int = 0) -> Signature:
    return (7 * tonic - 3 * minor + 5 - near) % 12 - 5 + near, minor


_SHARP = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
_FLAT = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
_NOTE = re.compile(r"([A-Ga-g])(##|#|bb|b|♯|♭)?(-?\d+)?")


def note_name(pitch: int, flats: bool = False) -> str:
    """Name of a pitch: 60 is C4, 61 C#4 or, with flats, Db4."""
    return f"{(_FLAT if flats else _SHARP)[pitch % 12]}{pitch // 12 - 1}"


def parse_note(text: str) -> int | None:
    """Pitch of a name (octave 4 when left out), else None; the reverse of `note_name`."""
    match = _NOTE.fullmatch(text.strip())
    if not match:
        return None
    moved = {"#": 1, "♯": 1, "##": 2, "b": -1, "♭": -1, "bb": -2}.get(match[2], 0)
    pitch = _SHARP.index(match[1].upper()) + moved + 12 * (int(match[3] or 4) + 1)
    return pitch if 0 <= pitch <= 127 else None


def all_true(flags: np.ndarray) -> bool:
    """Whether all of (N,) bools hold; takes a third of the time of `flags.all()` for a few hundred."""
    return bool(np.count_nonzero(flags) == len(flags))


def sort_notes(notes: np.ndarray) -> np.ndarray:
    """(N, 3) int64 notes by onset, then pitch, then duration; the same array where they are so already."""
    notes = np.asarray(notes, dtype=np.int64).reshape(-1, 3)
    place = places(notes)
    if all_true(place[1:] > place[:-1]):
        return notes
    return notes[np.lexsort((notes[:, 1], place))]


def places(notes: np.ndarray) -> np.ndarray:
    """(N,) int64: onset and pitch of each note in one number, which grows as `sort_notes` sorts."""
    return notes[:, 0] * 2**20 + notes[:, 2]


def one_line(notes: np.ndarray) -> np.ndarray:
    """Notes as one line: the highest at each onset, each cut at the next onset."""
    notes = sort_notes(notes)
    rising = notes[1:, 0] > notes[:-1, 0]
    return _cut(notes if all_true(rising) else np.concatenate([notes[:-1][rising], notes[-1:]]))


def _cut(top: np.ndarray) -> np.ndarray:
    line = top.copy(order="F")  # columns lie together, which is how they are used
    np.minimum(line[:-1, 1], line[1:, 0] - line[:-1, 0], out=line[:-1, 1])
    return line
