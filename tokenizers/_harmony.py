"""Chord symbols: spelling, reading, codes for arrays. Knows no file and no tokens.

Pitch classes count from C = 0.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.tokenizers._music import note_name


@dataclass(frozen=True)
class Quality:
    """A kind of chord: its name in the vocabulary, its spelling after the root, semitones above it."""

    name: str
    suffix: str
    intervals: tuple[int, ...]


QUALITIES = (  # commoner first: of two equally good readings the earlier one wins
    Quality("maj", "", (0, 4, 7)),
    Quality("min", "m", (0, 3, 7)),
    Quality("7", "7", (0, 4, 7, 10)),
    Quality("min7", "m7", (0, 3, 7, 10)),
    Quality("maj7", "maj7", (0, 4, 7, 11)),
    Quality("dim", "dim", (0, 3, 6)),
    Quality("sus4", "sus4", (0, 5, 7)),
    Quality("hdim7", "m7b5", (0, 3, 6, 10)),
    Quality("dim7", "dim7", (0, 3, 6, 9)),
    Quality("aug", "aug", (0, 4, 8)),
    Quality("sus2", "sus2", (0, 2, 7)),
    Quality("6", "6", (0, 4, 7, 9)),
    Quality("min6", "m6", (0, 3, 7, 9)),
    Quality("5", "5", (0, 7)),
    Quality("7sus4", "7sus4", (0, 5, 7, 10)),
    Quality("add9", "add9", (0, 2, 4, 7)),
    Quality("9", "9", (0, 2, 4, 7, 10)),
    Quality("min9", "m9", (0, 2, 3, 7, 10)),
    Quality("maj9", "maj9", (0, 2, 4, 7, 11)),
    Quality("minmaj7", "mM7", (0, 3, 7, 11)),
    Quality("7b9", "7b9", (0, 1, 4, 7, 10)),
    Quality("aug7", "7#5", (0, 4, 8, 10)),
    Quality("13", "13", (0, 2, 4, 7, 9, 10)),
    Quality("11", "11", (0, 2, 4, 5, 7, 10)),
)
QUALITY = {quality.name: quality for quality in QUALITIES}
QUALITY_NAMES = tuple(QUALITY)

SHARPS = tuple(note_name(60 + c)[:-1] for c in range(12))
FLATS = tuple(note_name(60 + c, flats=True)[:-1] for c in range(12))
EITHER = tuple(FLATS[c] if c in (3, 10) else SHARPS[c] for c in range(12))  # as in C major: Eb, F#, Bb


@dataclass(frozen=True)
class Symbol:
    """A chord: root and bass are pitch classes 0..11, `quality` a name in QUALITY.

    A bass equal to the root is None. The two that are no chord, NO_CHORD (silence of harmony) and
    UNKNOWN (something unreadable), have no root.
    """

    root: int | None
    quality: str
    bass: int | None = None

    def __post_init__(self) -> None:
        if self.bass == self.root:
            object.__setattr__(self, "bass", None)

    @cached_property
    def code(self) -> int:
        """The symbol as one number, for arrays; `symbol_of` is the reverse. Negative: no chord."""
        if self.root is None:
            return NO_CHORD_CODE if self.quality == "none" else UNKNOWN_CODE
        bass = 0 if self.bass is None else self.bass + 1
        return self.root + 12 * (QUALITY_NAMES.index(self.quality) + len(QUALITIES) * bass)

    @property
    def lowest(self) -> int | None:
        """Pitch class of the lowest note."""
        return self.root if self.bass is None else self.bass

    @property
    def pitch_classes(self) -> tuple[int, ...]:
        """Pitch classes from the root up, without a foreign bass; empty where there is no chord."""
        if self.root is None:
            return ()
        return tuple((self.root + i) % 12 for i in QUALITY[self.quality].intervals)

    def moved(self, steps: int) -> Symbol:
        """The same chord some semitones higher."""
        if self.root is None:
            return self
        bass = None if self.bass is None else (self.bass + steps) % 12
        return Symbol((self.root + steps) % 12, self.quality, bass)


NO_CHORD_CODE, UNKNOWN_CODE = -1, -2
NO_CHORD = Symbol(None, "none")
UNKNOWN = Symbol(None, "unknown")


@cache
def symbol_of(code: int) -> Symbol:
    """The symbol of a code, the reverse of `Symbol.code`."""
    if code < 0:
        return NO_CHORD if code == NO_CHORD_CODE else UNKNOWN
    root, quality, bass = (int(part) for part in parts_of(np.asarray(code)))
    return Symbol(root, QUALITY_NAMES[quality], None if bass < 0 else bass)


def parts_of(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Root, index of the quality, and bass (-1: none) of codes of chords."""
    above, root = np.divmod(codes, 12)
    bass, quality = np.divmod(above, len(QUALITIES))
    return root, quality, bass - 1


def move_codes(codes: np.ndarray, steps: int) -> np.ndarray:
    """Codes of the same symbols some semitones higher, as `Symbol.moved`."""
    root, quality, bass = parts_of(codes)
    moved = np.where(bass < 0, 0, (bass + steps) % 12 + 1)
    return np.where(codes < 0, codes, (root + steps) % 12 + 12 * (quality + len(QUALITIES) * moved))


# ----------------------------------------------------------------------------- spelling and reading

_SILENT = {"n.c.", "n.c", "nc", "n", "-", "no chord", "nochord", "none", "tacet"}
_UNREADABLE = {"?", "x", "unknown"}
_ASCII = str.maketrans(
    {"♯": "#", "♭": "b", "\u2212": "-", "\u2013": "-", "º": "°", "∆": "Δ", "△": "Δ", "^": "Δ", "Ø": "ø"}
)
_ROOT = re.compile(r"([A-G])(##|bb(?!\d)|[#b]?)")
_BASS = re.compile(r"/(?:([A-Ga-g])(##|bb|[#b+]?)|([#b]?)([2-7]))$")
_DEGREES = {1: 0, 2: 2, 3: 4, 4: 5, 5: 7, 6: 9, 7: 10, 9: 2, 11: 5, 13: 9}
_WITH = {"7": (7,), "9": (7, 9), "11": (7, 9, 11), "13": (7, 9, 13)}
_PART = re.compile(
    r"(?P<half>ø7?|hdim7?)|(?P<dim>dim(?:inished)?|°|[do](?=7?$))"
    r"|(?P<aug>aug(?:mented)?|\+(?!9|11|13)5?|a(?=7?$))"
    r"|(?P<maj>(?:[Mm]aj(?:or)?|MAJ|[Mm]a(?!dd)|MA|M(?![iI])|j|Δ))(?P<number>13|11|9|7)?"
    r"|(?P<min>[Mm]in(?:or)?|MIN|[Mm]i|MI|m)"
    r"|(?P<change>[#b+-])(?P<degree>13|11|9|7|6|5|4)"
    r"|sus(?P<sus>24|2|4)?|add(?P<sign>[#b]?)(?P<add>13|11|9|6|4|2)|(?:no|omit)(?P<omit>[135])"
    r"|(?P<alt>alt)|(?P<dom>dom(?:inant)?)|(?P<six>6/9|69|6)|(?P<extension>13|11|9|7)|(?P<lone>[245])"
)


def parse_symbol(text: str) -> Symbol:
    """Read a chord symbol in any of the usual spellings; `name` is its reverse.

    Reads C Cm Cmin C- CM7 CΔ7 C° Cø C+ Csus4 C6/9 C7#9 "Em7(b5)" C/E "(D7)" "N.C." B♭, Harte's
    C:min7/b3, and Foxley's Gd, Ea, D/f+. Roots are capital letters: a small one is refused, because
    "b", "d" and "a" also mean flat, diminished and augmented. Chords that QUALITIES has no name for
    become the nearest by their tones. Raises UserError where it is no chord symbol.

    Example:
        >>> parse_symbol("F#m7b5/C"), parse_symbol("A7#9")
        (Symbol(root=6, quality='hdim7', bass=0), Symbol(root=9, quality='7', bass=None))
    """
    return _read(text.strip().translate(_ASCII))


@lru_cache(maxsize=4096)
def _read(text: str) -> Symbol:
    if text.lower() in _SILENT:
        return NO_CHORD
    if text.lower() in _UNREADABLE:
        return UNKNOWN
    plain = text[1:-1].strip() if text.startswith("(") and text.endswith(")") else text
    found = _ROOT.match(plain)
    if found is None:
        raise UserError(f"'{text}' is no chord symbol", fix=_hint(plain))
    root = _pitch_class(*found.groups())
    rest = re.sub(r"[\s(),:*]", "", plain[found.end() :])
    over = _BASS.search(rest)
    quality = _quality(rest[: over.start()] if over else rest, text)
    return Symbol(root, quality, _bass(over, root) if over else None)


def _hint(text: str) -> str:
    capital = text[:1].upper() + text[1:]
    with suppress(UserError):
        if capital != text and _read(capital):
            return f"did you mean '{capital}'?"
    return "a chord begins with a capital letter A to G"


def _pitch_class(letter: str, accidental: str) -> int:
    sharps = accidental.count("#") + accidental.count("+") - accidental.count("b")
    return (SHARPS.index(letter.upper()) + sharps) % 12


def _bass(found: re.Match[str], root: int) -> int:
    letter, accidental, sign, degree = found.groups()
    if letter:
        return _pitch_class(letter, accidental)
    above = 11 if degree == "7" and not sign else _DEGREES[int(degree)]  # Harte's 7 is the major seventh
    return (root + above - (sign == "b" and degree != "7") + (sign == "#")) % 12


def _quality(suffix: str, text: str) -> str:
    """Name of the quality of what stands after a root, read part by part: degree -> semitones."""
    tones = {1: 0, 3: 4, 5: 7}
    suffix = re.sub("^-", "m", suffix)  # only later a minus means flat: C-9 is Cm9, C7-9 is C7b9
    place = 0
    while place < len(suffix):
        part = _PART.match(suffix, place)
        if part is None:
            raise UserError(f"'{text}' is no chord symbol", fix=f"'{suffix[place:]}' is not understood")
        _apply(part, tones)
        place = part.end()
    return nearest_quality(tuple(tones.values()))


def _apply(part: re.Match[str], tones: dict[int, int]) -> None:
    kind = part.lastgroup
    if kind in ("maj", "number"):
        if part["number"] or part["maj"] == "Δ" or 7 in tones:
            tones.update({d: _DEGREES[d] for d in _WITH[part["number"] or "7"]} | {7: 11})
    elif kind == "extension":
        seventh = 9 if tones.get(5) == 6 and tones.get(3) == 3 and 7 not in tones else 10
        tones.update({d: _DEGREES[d] for d in _WITH[part["extension"]]} | {7: seventh})
    elif kind == "degree":
        degree, raised = int(part["degree"]), part["change"] in "#+"
        flat = 0 if degree == 7 else -1  # b7 is the plain seventh
        tones[degree] = _DEGREES[degree] + (1 if raised else flat)
    elif kind == "add":
        degree = {2: 9, 4: 11, 6: 13}.get(int(part["add"]), int(part["add"]))
        tones[degree] = _DEGREES[degree] + (part["sign"] == "#") - (part["sign"] == "b")
    elif kind == "omit":
        tones.pop(int(part["omit"]), None)
    elif kind in ("sus", None):  # a bare "sus" is the one part without a group
        tones.pop(3, None)
        tones.update({"2": {2: 2}, "24": {2: 2, 4: 5}}.get(part["sus"] or "4", {4: 5}))
    else:
        _apply_plain(kind, part[kind], tones)


def _apply_plain(kind: str, written: str, tones: dict[int, int]) -> None:
    fixed: dict[str, dict[int, int]] = {
        "half": {3: 3, 5: 6, 7: 10},
        "dim": {3: 3, 5: 6},
        "aug": {5: 8},
        "min": {3: 3},
        "alt": {5: 8, 7: 10, 9: 1},
        "six": {6: 9} if written == "6" else {6: 9, 9: 2},
        "lone": {"2": {9: 2}, "4": {4: 5}}.get(written, {}),
    }
    tones.update(fixed.get(kind, {}))
    if kind == "lone" and written != "2":  # C4 = Csus4 and C5 have no third
        tones.pop(3, None)


@cache
def nearest_quality(intervals: tuple[int, ...]) -> str:
    """Name of the quality with these semitones above the root, else of the nearest one.

    A wrong third weighs more than a wrong seventh, and that more than anything else.
    """
    weight = {3: 4, 4: 4, 10: 3, 11: 3}
    wanted = {i % 12 for i in intervals} | {0}
    return min(QUALITIES, key=lambda q: sum(weight.get(i, 1) for i in wanted ^ set(q.intervals))).name


@lru_cache(maxsize=8192)
def name(symbol: Symbol, sharps: bool | None = None) -> str:
    """The house spelling, the reverse of `parse_symbol`: "F#m7b5/C", "N.C.", and "?" for UNKNOWN.

    Black keys are sharps, flats, or (None) C# Eb F# G# Bb, as they are in a key without accidentals.
    """
    if symbol.root is None:
        return "N.C." if symbol == NO_CHORD else "?"
    letters = EITHER if sharps is None else SHARPS if sharps else FLATS
    bass = "" if symbol.bass is None else "/" + letters[symbol.bass]
    return letters[symbol.root] + QUALITY[symbol.quality].suffix + bass
