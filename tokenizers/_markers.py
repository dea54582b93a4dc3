"""Chord symbols that a MIDI file spells in words: markers, cue points, lyrics and texts.

Our own files say "chord C/E" in markers, which tells what the notes of a voicing can't. Other people's
may say "Am7", "[G]la", "(D7)" or "chord: F#m", and those must not be taken for section names and sung words.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.files import write_bytes
from multimodal_gpt.tokenizers import _harmony, _midi
from multimodal_gpt.tokenizers._music import TICKS

_PREFIX = "chord "
_KINDS = {1: "texts", 5: "lyrics", 6: "markers", 7: "cue points"}
_EVENT = re.compile(rb"\xff[\x01\x05\x06\x07]([\x01-\x7f])")
_MARKED = re.compile(r"\[([^\[\]]+)\]|^\((.+)\)$|^(?i:chords?)\s*[:=]\s*(.+)$")
_SUNG = re.compile(r"[A-G][ado]")  # Da, Do, Go: how a few old books write augmented and diminished
_NOTE = re.compile(r"[A-G][#b]?[2-6]?")  # a section, a note's name, or a chord

_FEWEST = 4  # chords
_READABLE = 0.9  # share of the words
_APART = (2 * TICKS, 8 * TICKS)  # median distance of plain letters


@dataclass(frozen=True)
class Spelled:
    """symbols: (tick, as written), sorted; where they were found."""

    symbols: tuple[tuple[int, str], ...] = ()
    why: str = "symbols"


def add_markers(path: Path, symbols: Iterable[tuple[int, str]]) -> Path:
    """Put (tick, symbol) as markers into the last track of the MIDI file at `path`; `read_markers`
    is its reverse.
    """
    import mido

    file = mido.MidiFile(path, charset="latin1")  # keeps every byte of the texts in it
    markers = mido.MidiTrack()
    now = 0
    for tick, symbol in symbols:
        time = tick * file.ticks_per_beat // TICKS
        markers.append(mido.MetaMessage("marker", text=_PREFIX + symbol, time=time - now))
        now = time
    file.tracks[-1] = mido.merge_tracks((file.tracks[-1], markers))
    buffer = io.BytesIO()
    file.save(file=buffer)
    return write_bytes(path, buffer.getvalue())


def read_markers(path: Path) -> Spelled:
    """The chord symbols that a MIDI file spells. Our own markers are taken as they are; of others the
    one kind of events in one track that holds the most, where

    - marked ones, "[Am]", "(Am)" or "chord: Am", or all words, number at least four;
    - nine tenths of them are chord symbols (a title at the beginning isn't counted);
    - they have two roots, and one of them a quality or a bass: "Am", "G7", "C/E" (but "C4" may be a
      note). Plain letters must have three roots, not be the first of the alphabet in order (sections
      A, B, C), and change every two to eight quarter notes (a note's name comes sooner, a section
      later).
    """
    data = path.read_bytes()
    if not _may_spell(data):
        return Spelled()
    words = list(_words(data))
    own = [(w.tick, w.text.removeprefix(_PREFIX)) for w in words if w.text.startswith(_PREFIX)]
    own = [(tick, symbol) for tick, symbol in own if _readable(symbol)]
    if own:
        return Spelled(tuple(own))
    groups: dict[tuple[int, int], list[_Word]] = {}
    for word in words:
        groups.setdefault((word.track, word.kind), []).append(word)
    found = [(kind, chords) for (_, kind), group in groups.items() if (chords := _chords(group))]
    if not found:
        return Spelled()
    kind, chords = max(found, key=lambda f: len(f[1]))
    return Spelled(tuple(chords), f"{_KINDS[kind]} that spell chords")


# ------------------------------------------------------------------------------ are they chords?


def _may_spell(data: bytes) -> bool:
    """Whether it is worth to walk through all events: cheap, and never wrong where it says no."""
    texts = [data[m.end() : m.end() + m[1][0]] for m in _EVENT.finditer(data)]
    if any(text.startswith(_PREFIX.encode()) for text in texts):
        return True
    return sum(any(_symbol_in(_decoded(text))) for text in texts) >= _FEWEST


@lru_cache(maxsize=4096)
def _symbol_in(text: str) -> tuple[str, str]:
    """The chord that a word says when it is marked, and when it isn't; "" where there is none."""
    marked = _MARKED.search(text)
    inside = next(filter(None, marked.groups()), "") if marked else ""
    return _readable(inside), _readable(text)


def _readable(text: str) -> str:
    text = text.strip()
    try:
        _harmony.parse_symbol(text)
    except UserError:
        return ""
    return "" if _SUNG.fullmatch(text) else text


def _chords(words: Sequence[_Word]) -> list[tuple[int, str]]:
    """(tick, symbol) of the words of one kind in one track, [] where they don't spell chords."""
    marked = [(w.tick, *_symbol_in(w.text)) for w in words if _MARKED.search(w.text)]
    if len(marked) >= _FEWEST:
        return _accepted([(tick, symbol) for tick, symbol, _ in marked])
    return _accepted([(w.tick, _symbol_in(w.text)[1]) for w in words])


def _accepted(read: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """What was read ("" where nothing could be), [] unless it passes the rule of `read_markers`."""
    read = [(tick, symbol) for tick, symbol in read if tick or symbol]
    chords = [(t, s) for t, s in read if s and _harmony.parse_symbol(s).root is not None]
    silent = sum(bool(s) for _, s in read) - len(chords)
    if len(chords) < _FEWEST or len(chords) < _READABLE * (len(read) - silent):
        return []
    roots = list(dict.fromkeys(_harmony.parse_symbol(s).root for _, s in chords))
    if any(not _NOTE.fullmatch(s) for _, s in chords):
        good = len(roots) >= 2
    else:
        letters = [s[0] for _, s in chords]
        sections = "ABCDEFG".startswith("".join(dict.fromkeys(letters)))
        apart = float(np.median(np.diff([t for t, _ in chords])))
        octaves = any(s[-1].isdigit() for _, s in chords)
        good = len(roots) >= 3 and not (sections or octaves) and _APART[0] <= apart <= _APART[1]
    return [(t, s) for t, s in read if s] if good else []


# ------------------------------------------------------------------------------------ MIDI events


@dataclass(frozen=True)
class _Word:
    """A text in a MIDI file; `track` counts from 0, `kind` as in _KINDS, `tick` is ours."""

    track: int
    kind: int
    tick: int
    text: str


def _decoded(text: bytes) -> str:
    """The text without the line breaks and marks of karaoke; "" for its headers."""
    try:
        words = text.decode("utf-8")
    except UnicodeDecodeError:
        words = text.decode("latin1")
    words = words.strip(" \\/\r\n\t\0")
    return "" if words.startswith("@") else words


def _words(data: bytes) -> Iterator[_Word]:
    """All texts of a MIDI file, track by track; a damaged track ends where it is damaged."""
    division = int.from_bytes(data[12:14], "big")
    place = 8 + int.from_bytes(data[4:8], "big")
    track = 0
    while place + 8 <= len(data):
        start, length = place + 8, int.from_bytes(data[place + 4 : place + 8], "big")
        if data[place : place + 4] == b"MTrk":
            for time, kind, text in _texts(data[start : start + length]):
                if text:
                    yield _Word(track, kind, int(_midi.ticks(time, division)), text)
            track += 1
        place = start + length


def _texts(track: bytes) -> Iterator[tuple[int, int, str]]:
    """(time, kind, text) of each text in the events of a track."""
    place = time = running = 0
    with suppress(IndexError):
        while place < len(track):
            passed, place = _number(track, place)
            time += passed
            status = track[place] if track[place] & 0x80 else running
            place += track[place] >> 7
            if status < 0xF0:
                running = status
                place += 1 if status & 0xE0 == 0xC0 else 2
                continue
            kind = track[place] if status == 0xFF else 0
            length, place = _number(track, place + (status == 0xFF))
            if kind in _KINDS:
                yield time, kind, _decoded(track[place : place + length])
            place += length


def _number(data: bytes, place: int) -> tuple[int, int]:
    """A number of variable length, and the place after it."""
    value = 0
    while data[place] & 0x80:
        value = value << 7 | data[place] & 0x7F
        place += 1
    return value << 7 | data[place], place + 1
