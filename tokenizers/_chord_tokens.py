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
from multimodal_gpt.tokenizers._harmony import NO_CHORD, QUALITIES, UNKNOWN, Symbol
from multimodal_gpt.tokenizers._music import METERS

POSITIONS = 12  # per beat, a beat being 1/denominator
ALL_METERS = tuple((n, d) for d, row in METERS.items() for n in row)
_LONGEST = max(n for n, _ in ALL_METERS)  # beats
_NAMES = tuple(q.name for q in QUALITIES)

POSITION = len(ALL_METERS)
"""Ids below are bar lines, one per meter; `POSITION` itself, place 0 of a bar, is not used: the bar line
says it."""
_ROOT = POSITION + POSITIONS * _LONGEST
_NO_CHORD = _ROOT + 12
_UNKNOWN = _NO_CHORD + 1
_QUALITY = _UNKNOWN + 1
_BASS = _QUALITY + len(_NAMES)
SIZE = _BASS + 12

Bar = tuple[tuple[int, int], dict[int, Symbol]]
"""Meter, and position -> symbol in growing order."""


def symbol_ids(symbol: Symbol) -> list[int]:
    """Ids of a symbol: Root Quality [Bass], NoChord or Unknown."""
    if symbol.root is None:
        return [_NO_CHORD if symbol == NO_CHORD else _UNKNOWN]
    bass = [] if symbol.bass is None else [_BASS + symbol.bass]
    return [_ROOT + symbol.root, _QUALITY + _NAMES.index(symbol.quality), *bass]


def _symbol(ids: list[int]) -> Symbol | None:
    """The symbol that ids begin with, the reverse of `symbol_ids`; None where it is cut off."""
    if ids[0] in (_NO_CHORD, _UNKNOWN):
        return NO_CHORD if ids[0] == _NO_CHORD else UNKNOWN
    if len(ids) < 2:
        return None
    bass = ids[2] - _BASS if len(ids) > 2 and ids[2] >= _BASS else None
    return Symbol(ids[0] - _ROOT, _NAMES[ids[1] - _QUALITY], bass)


def bar_ids(bar: Bar) -> list[int]:
    """Ids of a bar."""
    meter, slot = bar
    ids = [ALL_METERS.index(meter)]
    for place, symbol in slot.items():
        ids += [*([POSITION + place] if place else []), *symbol_ids(symbol)]
    return ids


def bars_of(ids: np.ndarray) -> list[Bar]:
    """Bars of ids, the reverse of `bar_ids`. Of ids cut anywhere: what is whole, in 4/4 where no meter is."""
    bars: list[Bar] = []
    place = -1
    meter = (4, 4)
    tokens = np.asarray(ids).tolist()
    for index, token in enumerate(tokens):
        if token < POSITION or not bars:
            meter = ALL_METERS[token] if token < POSITION else meter
            bars.append((meter, {}))
            place = 0 if token < POSITION else -1
        if POSITION <= token < _ROOT:
            place = token - POSITION
        elif _ROOT <= token < _QUALITY and place >= 0:
            symbol = _symbol(tokens[index : index + 3])
            if symbol is not None:
                bars[-1][1][place] = symbol
    return bars


def is_bar(ids: np.ndarray) -> np.ndarray:
    """(T,) bool: which ids are bar lines."""
    return np.asarray(ids < POSITION)


def is_position(ids: np.ndarray) -> np.ndarray:
    """(T,) bool: which ids are positions."""
    return np.asarray((ids >= POSITION) & (ids < _ROOT))


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
        table[root[seen] + rows, _ROOT:_NO_CHORD] = quality + rows[:, None]
        table[root[seen] + rows, _NO_CHORD:_QUALITY] = free[seen] + rows[:, None]
        table[free[seen] + at_bar, _ROOT:_NO_CHORD] = quality + at_bar[:, None] + 1
        table[free[seen] + at_bar, _NO_CHORD:_QUALITY] = free[seen] + at_bar[:, None] + 1
    for state, seen in ((free[0], 0), (free[1], 1), (named, 1)):
        table[state + rows, :POSITION] = free[seen] + np.array(bars)
        table[state + rows, POSITION:_ROOT] = np.where(later, root[seen] + row_of, -1)
    table[quality + rows, _QUALITY:_BASS] = named + rows[:, None]
    table[named + rows, _BASS:SIZE] = free[1] + rows[:, None]
    final = np.zeros(len(table), dtype=bool)
    final[free[1] + rows] = final[named + rows] = True
    return Grammar(table, final, cut=np.arange(SIZE) < POSITION)
