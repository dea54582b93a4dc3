"""A MIDI file as what musicians read from: staves, bars, key, chord symbols."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.tokenizers import _harmony, _markers, _midi, _music

TICKS: int = _music.TICKS
"""Ticks per quarter note of all times here."""
SUFFIXES: tuple[str, ...] = _midi.SUFFIXES


@dataclass(frozen=True, eq=False)
class Staff:
    """One part: (N, 3) int64 onset, duration (ticks), pitch, sorted."""

    name: str
    notes: np.ndarray


@dataclass(frozen=True, eq=False)
class Score:
    """A piece to be written down.

    Args:
        bars: (B,) int64 ticks at which the bars begin, and one more: the end of the last one.
        meters: (B, 2) int64 numerator and denominator of each bar.
        sharps: the key signature, negative for flats.
        tempo: quarter notes per minute.
        symbols: (tick, chord symbol) in order; a symbol is one of the chord tokenizer's.
    """

    title: str
    staves: tuple[Staff, ...]
    bars: np.ndarray
    meters: np.ndarray
    sharps: int
    tempo: float
    symbols: tuple[tuple[int, Any], ...]


def read(path: Path) -> Score:
    """The score of a MIDI file; drums have no staff, and chords that are spelt as symbols none either.

    The key is the file's, or else the likeliest. Raises UserError where the file can't be read or
    holds no notes.
    """
    check_kind(path)
    song = _midi.load(path)
    symbols = tuple((tick, _harmony.parse_symbol(word)) for tick, word in _markers.read_markers(path).symbols)
    tracks = [track for track in song.tracks if not track.is_drum]
    played = [track for track in tracks if not (symbols and track.name.lower().startswith("chord"))] or tracks
    if not played:
        raise UserError("holds no notes for a staff", path)
    notes = np.concatenate([track.notes for track in tracks])
    end = int((notes[:, 0] + notes[:, 1]).max())
    starts, meters = _music.bar_lines(song.meters, end)
    last = int(starts[-1] + 4 * TICKS * meters[-1, 0] // meters[-1, 1])
    sharps = int((song.signature or _music.find_key(notes))[0])
    staves = tuple(Staff(track.name, track.notes) for track in played)
    return Score(path.stem, staves, np.append(starts, last), meters, sharps, song.tempo, symbols)


def check_kind(path: Path) -> None:
    """Raises UserError where there is no such file, or it is no MIDI file by its name."""
    if not path.is_file():
        raise UserError("there is no such file", path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError("is no MIDI file", path, f"its name ends in {', '.join(SUFFIXES)}")


def spelling(pitch: int, sharps: int) -> tuple[str, int, int]:
    """Letter, alteration and octave of a MIDI pitch, spelt as near to the key as the circle of fifths allows.

    Example:
        >>> spelling(61, 2), spelling(61, -3), spelling(68, 0)
        (('C', 1, 4), ('D', -1, 4), ('G', 1, 4))
    """
    fifths = (
        (7 * pitch - (sharps - 3)) % 12 + sharps - 3
    )  # from three below the tonic of major to eight above
    alteration, letter = divmod(fifths + 1, 7)
    return "FCGDAEB"[letter], alteration, (pitch - alteration) // 12 - 1


def voice(notes: np.ndarray) -> list[tuple[int, int, tuple[int, ...]]]:
    """(onset, end, pitches) of (N, 3) notes one after the other: what begins together is a chord, and ends
    when the next begins at the latest.
    """
    found: dict[int, tuple[int, list[int]]] = {}
    for onset, duration, pitch in notes.tolist():
        end, pitches = found.get(onset, (0, []))
        found[onset] = max(end, onset + duration), [*pitches, pitch]
    onsets = sorted(found)
    ends: Sequence[float] = [*onsets[1:], float("inf")][: len(onsets)]
    return [
        (onset, int(min(found[onset][0], following)), tuple(sorted(set(found[onset][1]))))
        for onset, following in zip(onsets, ends, strict=True)
    ]
