"""Where a run keeps its music and its words, and music as plain arrays.

N notes, E chords, B bars. Times are ticks of 1/48 quarter note, pitches MIDI numbers, pitch classes count
from C = 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multimodal_gpt.evaluation.documents import Piece
from multimodal_gpt.generation.session import Run
from multimodal_gpt.stream.vocabulary import Vocabulary
from multimodal_gpt.tokenizers._harmony import QUALITY, symbol_of
from multimodal_gpt.tokenizers._music import (
    TICKS,
    Meter,
    bar_lines,
    find_key,
    key_name,
    parse_key,
    shift_signature,
)

MAJOR, MINOR = (0, 4, 7), (0, 3, 7)
Key = tuple[int, bool]
"""(sharps, is minor); sharps from 5 flats, -5, to 6."""
CLASSES = 24
"""Major triads on C, C#, ... B, then minor ones."""
TRIADS = np.array(
    [
        [float((tone - root) % 12 in shape) for tone in range(12)]
        for shape in (MAJOR, MINOR)
        for root in range(12)
    ]
)
"""(24, 12) whether a tone belongs to a triad."""


@dataclass(frozen=True)
class Roles:
    """Names of the modalities of a run that hold a line of notes, chord symbols, tags and words; None where
    there is none.
    """

    melody: str | None = None
    chords: str | None = None
    tags: str | None = None
    words: str | None = None


def roles_of(run: Run) -> Roles:
    """What each modality of a run holds, by the plugin behind it and whatever its name; of two the first,
    of words those that receive captions.
    """
    found: dict[str, str] = {}
    for modality in run.vocabulary.modalities:
        found.setdefault(modality.plugin, modality.name)
    into = run.recipe.data.captions.into
    plugins = {modality.name: modality.plugin for modality in run.vocabulary.modalities}
    words = into if plugins.get(into) == "text" else found.get("text")
    return Roles(found.get("melody"), found.get("chords"), found.get("tags"), words)


def content_of(vocabulary: Vocabulary, piece: Piece, name: str) -> Any:
    """What a document holds of a modality, as its ids tell it."""
    return vocabulary.decode(name, piece.segments[name].ids)


# Keys


def tonic_of(signature: Key) -> int:
    """Pitch class of the tonic of (sharps, is minor)."""
    sharps, minor = signature
    return (7 * sharps + 9 * minor) % 12


def known_key(value: object) -> Key | None:
    """The key of a name in its one spelling, None where it is none: F# and Gb major are the same."""
    return _spelt(parse_key(value)) if isinstance(value, str) else None


def heard_key(notes: np.ndarray) -> Key:
    """The key that (N, 3) notes are in: best correlation of their durations with the profiles of Krumhansl
    and Kessler (1982).
    """
    return _spelt(find_key(notes)) or (0, False)


def _spelt(signature: Key | None) -> Key | None:
    found: Key | None = shift_signature(signature, 0)
    return found


def key_in_words(signature: Key) -> str:
    """Its name: "D major"."""
    return str(key_name(signature))


def key_of(metadata: Mapping[str, Any], notes: np.ndarray) -> Key:
    """The key that is known of a piece, or else the one that is heard."""
    return known_key(metadata.get("key")) or heard_key(notes)


# Chords


@dataclass(frozen=True, eq=False)
class Harmony:
    """Chords over time.

    Args:
        start, stop: (E,) int64 ticks, in order, none overlapping; what is no chord is left out.
        tones: (E, 12) bool pitch classes of each chord, without a foreign bass.
        triad: (E, 12) bool those of its triad: root, third and fifth or what stands for them.
        label: (E,) int64 root and quality as one number.
        klass: (E,) int64 0..23, major or minor triad on the root.
    """

    start: np.ndarray
    stop: np.ndarray
    tones: np.ndarray
    triad: np.ndarray
    label: np.ndarray
    klass: np.ndarray

    def at(self, ticks: np.ndarray) -> np.ndarray:
        """(T,) which chord sounds at each of (T,) ticks, -1 where none does."""
        if not len(self.start):
            return np.full(len(ticks), -1)
        place = np.searchsorted(self.start, ticks, side="right") - 1
        return np.where((place >= 0) & (ticks < self.stop[place]), place, -1)


def harmony_of(table: np.ndarray) -> Harmony:
    """The chords of (E, 3) tick, duration and code of a symbol, as the chords modality has them."""
    rows = table[table[:, 2] >= 0]
    symbols = [symbol_of(int(code)) for code in rows[:, 2]]
    tones, triad = np.zeros((len(rows), 12), dtype=bool), np.zeros((len(rows), 12), dtype=bool)
    label, klass = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=np.int64)
    for row, symbol in enumerate(symbols):
        shape = QUALITY[symbol.quality].intervals
        tones[row, [(symbol.root + step) % 12 for step in shape]] = True
        triad[row, [(symbol.root + step) % 12 for step in _triad(shape)]] = True
        label[row] = symbol.root + 12 * list(QUALITY).index(symbol.quality)
        klass[row] = symbol.root + 12 * (3 in shape and 4 not in shape)
    return Harmony(rows[:, 0], rows[:, 0] + rows[:, 1], tones, triad, label, klass)


def _triad(shape: Sequence[int]) -> list[int]:
    """Of the intervals of a chord those that make its triad: a third (or second or fourth in its place) and a
    fifth.
    """
    third = next((step for step in (4, 3, 5, 2) if step in shape), None)
    fifth = next((step for step in (7, 6, 8) if step in shape), None)
    return [0, *(step for step in (third, fifth) if step is not None)]


def one_chord(klass: int, end: int) -> Harmony:
    """A triad from the beginning to a tick."""
    tones = TRIADS[[klass]] > 0
    quality = 0 if klass < 12 else 1  # major and minor come first among the qualities
    label = np.array([klass % 12 + 12 * quality])
    return Harmony(np.array([0]), np.array([end]), tones, tones, label, np.array([klass]))


def repeated(table: np.ndarray, period: int, end: int) -> np.ndarray:
    """(E, 3) chords of a piece `period` ticks long, again and again and then cut, so that they last `end`."""
    times = -(-end // max(period, 1))
    again = np.concatenate([table + np.array([period * turn, 0, 0]) for turn in range(times)])
    again = again[again[:, 0] < end]
    again[:, 1] = np.minimum(again[:, 1], end - again[:, 0])
    return again


# Bars


def bars_of(meters: tuple[Meter, ...], end: int) -> np.ndarray:
    """(B + 1,) ticks of the bar lines up to the end of the bar in which a piece ends."""
    starts, written = bar_lines(meters, end)
    last = written[-1, 0] * 4 * TICKS // written[-1, 1]
    return np.append(starts, starts[-1] + last)


def shares(
    start: np.ndarray, stop: np.ndarray, kind: np.ndarray, kinds: int, lines: np.ndarray
) -> np.ndarray:
    """(B, K) ticks for which each kind sounds in each bar, of (N,) events and (B + 1,) bar lines."""
    found = np.zeros((len(lines) - 1, kinds))
    first = np.clip(np.searchsorted(lines, start, side="right") - 1, 0, len(lines) - 2)
    for begin, end, what, bar in zip(
        start.tolist(), stop.tolist(), kind.tolist(), first.tolist(), strict=True
    ):
        while bar < len(found) and lines[bar] < end:
            found[bar, what] += max(0, min(end, lines[bar + 1]) - max(begin, lines[bar]))
            bar += 1  # noqa: PLW2901 (a note may reach over bar lines)
    return found


def bar_classes(harmony: Harmony, lines: np.ndarray) -> np.ndarray:
    """(B,) the triad class 0..23 that sounds longest in each bar, the first of equal ones; -1 without one."""
    heard = shares(harmony.start, harmony.stop, harmony.klass, CLASSES, lines)
    return np.where(heard.any(axis=1), heard.argmax(axis=1), -1)


def bar_tones(notes: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """(B, 12) ticks for which each pitch class of (N, 3) notes sounds in each bar."""
    return shares(notes[:, 0], notes[:, 0] + notes[:, 1], notes[:, 2] % 12, 12, lines)
