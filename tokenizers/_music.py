"""Music as plain arrays: meters, bar lines, keys, notes. Knows no file format and no tokens.

Letters: N notes, B bars. Times are ticks of 1/TICKS quarter note, pitches MIDI numbers (60 = C4).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

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
    """Notes of one instrument: (N, 3) int64 onset, duration (both ticks), pitch; sorted."""

    name: str
    program: int
    is_drum: bool
    notes: np.ndarray


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
    meters = [Meter(tick, *meter) for tick, meter in sorted(by_tick.items())]
    kept = [
        m for before, m in zip([None, *meters], meters, strict=False) if not before or str(before) != str(m)
    ]
    return tuple(kept)


def align_meters(meters: Sequence[Meter]) -> tuple[Meter, ...]:
    """The same meters, every change moved to the next bar line, as MIDI 1.0 asks of a late one."""
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


def bar_lines(meters: Sequence[Meter], end: int) -> tuple[np.ndarray, np.ndarray]:
    """Bars that begin before `end` (at least one): (B,) int64 start ticks, (B, 2) int64 numerator
    and denominator.

    A meter that changes inside a bar changes at the next bar line.
    """
    aligned = [m for m in align_meters(meters) if m.tick < max(end, 1)]
    stops = [m.tick for m in aligned[1:]] + [max(end, 1)]
    starts = [np.arange(m.tick, stop, m.bar) for m, stop in zip(aligned, stops, strict=True)]
    written = [
        np.tile([m.numerator, m.denominator], (len(s), 1)) for m, s in zip(aligned, starts, strict=True)
    ]
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
    if np.ptp(sounding) == 0:
        return sharps or 0, False
    turned = np.stack([np.roll(sounding, -tonic) for tonic in range(12)])  # (12, 12) tonic, degree
    centred = _PROFILES - _PROFILES.mean(axis=1, keepdims=True)
    fit = turned @ (centred / np.linalg.norm(centred, axis=1, keepdims=True)).T  # (12, 2)
    keys = [_spell(tonic, minor, near=sharps or 0) for tonic in range(12) for minor in (False, True)]
    allowed = [sharps is None or abs(key[0] - sharps) <= 1 for key in keys]
    return keys[int(np.argmax(np.where(allowed, fit.ravel(), -np.inf)))]


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


def sort_notes(notes: np.ndarray) -> np.ndarray:
    """(N, 3) int64 notes by onset, then pitch, then duration."""
    notes = np.asarray(notes, dtype=np.int64).reshape(-1, 3)
    return notes[np.lexsort((notes[:, 1], notes[:, 2], notes[:, 0]))]


def one_line(notes: np.ndarray) -> np.ndarray:
    """Notes as one line: the highest at each onset, each cut at the next onset."""
    notes = sort_notes(notes)
    last = np.append(notes[1:, 0] != notes[:-1, 0], True) if len(notes) else np.zeros(0, dtype=bool)
    notes = notes[last].copy()
    notes[:-1, 1] = np.minimum(notes[:-1, 1], np.diff(notes[:, 0]))
    return notes
