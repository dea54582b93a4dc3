"""The ids of the modality `chords`: which there are, what they say, and what may follow what.

Bar_4/4 [Chord] (Position Chord)* Bar_4/4 ...      Chord = Root Quality [Bass] | NoChord | Unknown

A bar token carries its meter, and the chord right after it stands at the bar line. With a TimeSig after
every Bar and a Position before every chord, as REMI writes melodies, a Nottingham tune and its melody take
16 % more tokens.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from multimodal_gpt.stream.grammar import Grammar
from multimodal_gpt.tokenizers._following import Signs, signs
from multimodal_gpt.tokenizers._harmony import (
    NO_CHORD,
    QUALITY_NAMES,
    UNKNOWN,
    Symbol,
    parts_of,
)
from multimodal_gpt.tokenizers._music import METERS

POSITIONS = 12  # per beat, a beat being 1/denominator
ALL_METERS = tuple((n, d) for d, row in METERS.items() for n in row)
_LONGEST = max(n for n, _ in ALL_METERS)  # beats

POSITION = len(ALL_METERS)
"""Ids below are bar lines, one per meter; `POSITION` itself, place 0 of a bar, is not used: the bar line
says it."""
ROOT = POSITION + POSITIONS * _LONGEST
_NO_CHORD = ROOT + 12
_UNKNOWN = _NO_CHORD + 1
QUALITY = _UNKNOWN + 1
BASS = QUALITY + len(QUALITY_NAMES)
SIZE = BASS + 12

Bar = tuple[tuple[int, int], dict[int, Symbol]]
"""Meter, and position -> symbol in growing order."""

_METER_IDS = np.full((_LONGEST + 1, 17), -1)  # by numerator, denominator
_METER_IDS[tuple(np.transpose(ALL_METERS))] = np.arange(len(ALL_METERS))


def ids_of(meters: np.ndarray, bar: np.ndarray, place: np.ndarray, code: np.ndarray) -> np.ndarray:
    """(T,) int32 ids of bars of (B, 2) meters, in which (M,) symbols of these codes begin at these
    positions; in order. `bars_of` is the reverse.
    """
    rows = np.full((len(meters) + len(bar), 4), -1, dtype=np.int32)
    at = np.arange(1, len(bar) + 1) + bar  # the row of each symbol: behind its bar line and those before
    head = np.ones(len(rows), dtype=bool)
    head[at] = False
    rows[head, 0] = _METER_IDS[meters[:, 0], meters[:, 1]]
    rows[at, 0] = np.where(place > 0, POSITION + place, -1)
    rows[at, 1:] = _SYMBOL_IDS.take(code + 2, axis=0)
    return rows[rows >= 0]


def _symbol_ids() -> np.ndarray:
    """(codes + 2, 3) Root, Quality, Bass of each code, -1 where there is none; UNKNOWN and NO_CHORD first."""
    root, quality, bass = parts_of(np.arange(12 * len(QUALITY_NAMES) * 13))
    named = np.stack((ROOT + root, QUALITY + quality, np.where(bass < 0, -1, BASS + bass)), axis=1)
    return np.concatenate(([[_UNKNOWN, -1, -1], [_NO_CHORD, -1, -1]], named)).astype(np.int32)


_SYMBOL_IDS = _symbol_ids()


def ids_of_symbol(symbol: Symbol) -> np.ndarray:
    """(T,) int32 ids of one symbol: one to three."""
    ids = _SYMBOL_IDS[symbol.code + 2]
    return ids[ids >= 0]


def move_ids(ids: np.ndarray, steps: int) -> np.ndarray:
    """(T,) int32 ids with every root and bass some semitones higher."""
    moved = np.arange(SIZE, dtype=np.int32)
    for first in (ROOT, BASS):
        moved[first : first + 12] = first + (np.arange(12) + steps) % 12
    return moved[np.asarray(ids)]


def _symbol(ids: list[int]) -> Symbol | None:
    """The symbol that ids begin with; None where it is cut off."""
    if ids[0] in (_NO_CHORD, _UNKNOWN):
        return NO_CHORD if ids[0] == _NO_CHORD else UNKNOWN
    if len(ids) < 2:
        return None
    bass = ids[2] - BASS if len(ids) > 2 and ids[2] >= BASS else None
    return Symbol(ids[0] - ROOT, QUALITY_NAMES[ids[1] - QUALITY], bass)


def bars_of(ids: np.ndarray) -> list[Bar]:
    """Bars of ids, the reverse of `ids_of`. Of ids cut anywhere: what is whole, in 4/4 where no meter is."""
    bars: list[Bar] = []
    place = -1
    meter = (4, 4)
    tokens = np.asarray(ids).tolist()
    for index, token in enumerate(tokens):
        if token < POSITION or not bars:
            meter = ALL_METERS[token] if token < POSITION else meter
            bars.append((meter, {}))
            place = 0 if token < POSITION else -1
        if POSITION <= token < ROOT:
            place = token - POSITION
        elif ROOT <= token < QUALITY and place >= 0:
            symbol = _symbol(tokens[index : index + 3])
            if symbol is not None:
                bars[-1][1][place] = symbol
    return bars


@cache
def time_signs() -> Signs:
    """What each id says about time."""
    beats, unit = np.array(ALL_METERS).T
    rest, ids = np.full(SIZE - len(beats), np.nan), np.arange(SIZE)
    spans, steps = (np.concatenate([quarters, rest]) for quarters in (4 * beats / unit, 4 / POSITIONS / unit))
    return signs(is_bar(ids), spans, steps, np.where(is_position(ids), ids - POSITION, -1), 1 / POSITIONS)


def is_bar(ids: np.ndarray) -> np.ndarray:
    """(T,) bool: which ids are bar lines."""
    return np.asarray(ids < POSITION)


def is_position(ids: np.ndarray) -> np.ndarray:
    """(T,) bool: which ids are positions."""
    return np.asarray((ids >= POSITION) & (ids < ROOT))


@cache
def grammar() -> Grammar:
    """Positions grow and stay inside the bar; a segment holds at least one chord with a root.

    A state remembers the bar's length and the last position (-1 right after the bar line), and, where a
    segment may end, whether a chord has come yet. `free`: between events; `root`, `quality`: what must come
    next; `named`: after Quality, where a Bass may come. About 9,900 states of 284 ids.
    """
    pairs = [(n, last) for n in range(1, _LONGEST + 1) for last in range(-1, POSITIONS * n)]
    length, last = np.array(pairs).T  # (P,) beats, position
    count = len(pairs)
    free, root, quality, named = (1, 1 + count), (1 + 2 * count, 1 + 3 * count), 1 + 4 * count, 1 + 5 * count
    opening = {beats: row for row, (beats, place) in enumerate(pairs) if place == -1}
    bars = [opening[n] for n, _ in ALL_METERS]
    at_bar = np.array(list(opening.values()))  # rows of (beats, -1); the row after each is (beats, 0)
    place = np.arange(POSITIONS * _LONGEST)
    later = (place > np.maximum(last, 0)[:, None]) & (place < POSITIONS * length[:, None])  # (P, positions)
    row_of = np.array([opening[int(n)] for n in length])[:, None] + 1 + place
    rows = np.arange(count)
    table = np.full((1 + 6 * count, SIZE), -1, dtype=np.int32)
    table[0, :POSITION] = free[0] + np.array(bars)
    for seen in (0, 1):  # no chord yet, at least one
        table[root[seen] + rows, ROOT:_NO_CHORD] = quality + rows[:, None]
        table[root[seen] + rows, _NO_CHORD:QUALITY] = free[seen] + rows[:, None]
        table[free[seen] + at_bar, ROOT:_NO_CHORD] = quality + at_bar[:, None] + 1
        table[free[seen] + at_bar, _NO_CHORD:QUALITY] = free[seen] + at_bar[:, None] + 1
    for state, seen in ((free[0], 0), (free[1], 1), (named, 1)):
        table[state + rows, :POSITION] = free[seen] + np.array(bars)
        table[state + rows, POSITION:ROOT] = np.where(later, root[seen] + row_of, -1)
    table[quality + rows, QUALITY:BASS] = named + rows[:, None]
    table[named + rows, BASS:SIZE] = free[1] + rows[:, None]
    final = np.zeros(len(table), dtype=bool)
    final[free[1] + rows] = final[named + rows] = True
    return Grammar(table, final, cut=np.arange(SIZE) < POSITION)
