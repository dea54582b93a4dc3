"""What may be asked of a melody or of chords that are made, as grammars that allow less.

Letters: T tokens, V local ids, N notes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from multimodal_gpt.errors import UserError, nearest
from multimodal_gpt.stream.grammar import Grammar
from multimodal_gpt.stream.limits import along, both, only
from multimodal_gpt.tokenizers import _chord_tokens as chord_ids
from multimodal_gpt.tokenizers import _harmony
from multimodal_gpt.tokenizers._music import METERS, Signature, normalise_meter, parse_key, parse_note
from multimodal_gpt.tokenizers._remi import Layout

MELODY: Mapping[str, str] = {
    "key": "only notes of this key's scale; of a minor key also the raised sixth and seventh",
    "meter": "only bars of this meter",
    "range": "lowest and highest note, such as C4-A5",
    "ending": "the note it ends on, in any octave; it begins on a beat where the rhythm is free",
    "rhythm": "the rhythm of this melody, with new pitches",
    "pitches": "the pitches of this melody in order, in a new rhythm and its meters",
    "vary": "this melody, with new pitches for a share of its notes",
    "share": "that share, from 0 to 1; 0.3 if absent",
}
CHORDS: Mapping[str, str] = {
    "key": "only chords whose notes are all in this key's scale, as for a melody",
    "meter": "only bars of this meter",
    "ending": "the chord it ends on",
    "rhythm": "changes when these chords change, to new ones",
}
SHARE = 0.3


def limited_melody(
    grammar: Grammar,
    layout: Layout,
    wishes: Mapping[str, Any],
    like: Mapping[str, np.ndarray],
    rng: np.random.Generator,
) -> Grammar:
    """The grammar of melodies that meet all wishes.

    `like`: wish -> ids (T,) of the melody that it names. `rng` chooses which notes vary. Raises UserError.
    """
    pitches = (np.arange(layout.size) >= layout.pitch) & (np.arange(layout.size) < layout.duration)
    allowed = np.ones(layout.size, dtype=bool)
    if "key" in wishes:
        allowed[pitches] &= scale(wishes["key"])[np.arange(128) % 12]
    if "range" in wishes:
        lowest, highest = _range(wishes["range"])
        allowed[pitches] &= (np.arange(128) >= lowest) & (np.arange(128) <= highest)
    if "meter" in wishes:
        allowed[layout.meter :] = False
        allowed[layout.meter_ids[_meter(wishes["meter"])]] = True
    if "rhythm" in like:
        grammar = both(grammar, _free_where(like["rhythm"], pitches))
    if "vary" in like:
        chosen = _chosen(like["vary"], pitches, wishes, rng)
        grammar = both(grammar, _free_where(like["vary"], pitches, chosen))
    elif "share" in wishes:
        raise UserError("a share of nothing", "share", "name the melody to vary: vary=...")
    grammar = only(grammar, allowed)
    if "pitches" in like:
        grammar = both(only(grammar, _meters_of(like["pitches"], layout)), _line(like["pitches"], pitches))
    if "ending" in wishes:
        last = np.arange(128) % 12 == _pitch_class(wishes["ending"])
        places = np.arange(layout.position, layout.meter)
        fixed = bool({"rhythm", "vary"} & like.keys())
        beats = places if fixed else places[:: layout.steps]
        grammar = both(grammar, _ends_on(np.flatnonzero(pitches)[last], pitches, beats, places))
    return grammar


def limited_chords(grammar: Grammar, wishes: Mapping[str, Any], like: Mapping[str, np.ndarray]) -> Grammar:
    """The grammar of chords that meet all wishes, as `limited_melody`."""
    size = chord_ids.SIZE
    if "meter" in wishes:
        allowed = ~chord_ids.is_bar(np.arange(size))
        allowed[chord_ids.ALL_METERS.index(_meter(wishes["meter"]))] = True
        grammar = only(grammar, allowed)
    if "rhythm" in like:
        grammar = both(grammar, _changes_like(like["rhythm"]))
    if "key" in wishes:
        grammar = both(grammar, _chords_of(scale(wishes["key"])))
    if "ending" in wishes:
        symbol = _harmony.parse_symbol(str(wishes["ending"]))
        grammar = both(grammar, _last_symbol(chord_ids.ids_of_symbol(symbol)))
    return grammar


# Melody


def _free_where(ids: np.ndarray, free: np.ndarray, chosen: np.ndarray | None = None) -> Grammar:
    """These ids (T,), but any of `free` (V,) where one of them stands, or only at the `chosen` (T,)."""
    choices = ids[:, None] == np.arange(len(free))
    open_places = free[ids] if chosen is None else chosen
    choices[open_places] = free
    return along(choices, np.zeros(len(free), dtype=bool))


def _chosen(
    ids: np.ndarray, pitches: np.ndarray, wishes: Mapping[str, Any], rng: np.random.Generator
) -> np.ndarray:
    """(T,) bool: the pitches of a share of the notes, at least of one."""
    try:
        share = float(wishes.get("share", SHARE))
    except (TypeError, ValueError):
        share = math.nan
    if not 0 < share <= 1:
        raise UserError(f"{wishes['share']!r} is not a share", "share", "above 0, at most 1")
    places = np.flatnonzero(pitches[ids])
    count = max(1, round(share * len(places)))
    chosen = np.zeros(len(ids), dtype=bool)
    chosen[rng.choice(places, count, replace=False)] = True
    return chosen


def _meters_of(ids: np.ndarray, layout: Layout) -> np.ndarray:
    allowed = np.arange(layout.size) < layout.meter
    allowed[ids[ids >= layout.meter]] = True
    return allowed


def _line(ids: np.ndarray, pitches: np.ndarray) -> Grammar:
    """The pitches among the ids in their order, and anything between them."""
    line = ids[pitches[ids]]
    states = np.arange(len(line) + 1)
    table = np.where(pitches, -1, states[:, None])
    table[states[:-1], line] = states[1:]
    return Grammar(table.astype(np.int32), states == len(line), np.zeros(len(pitches), dtype=bool))


def _ends_on(last: np.ndarray, pitches: np.ndarray, beats: np.ndarray, places: np.ndarray) -> Grammar:
    """Any ids, of which the last pitch is one of `last` and follows one of `beats`, which are among `places`.

    Without the beats, a model that has not got there in time squeezes the note into the end of the last bar.
    """
    other, pending, ended = range(3)
    table = np.full((3, len(pitches)), other, dtype=np.int32)
    table[ended] = ended
    table[:, places] = other
    table[:, beats] = pending
    table[:, pitches] = other
    table[pending, last] = ended
    return Grammar(table, np.arange(3) == ended, np.zeros(len(pitches), dtype=bool))


# Chords


def _changes_like(ids: np.ndarray) -> Grammar:
    """Bars and positions of these ids, and any symbol where one of theirs stands."""
    places = np.arange(chord_ids.SIZE)
    symbols = ~chord_ids.is_bar(places) & ~chord_ids.is_position(places)
    items: list[int | None] = []  # None: a symbol
    for token in ids.tolist():
        if not symbols[token]:
            items.append(token)
        elif not items or items[-1] is not None:
            items.append(None)
    table = np.full((len(items) + 1, chord_ids.SIZE), -1, dtype=np.int32)
    for state, item in enumerate(items):
        if item is None:
            table[state : state + 2, symbols] = state + 1
        else:
            table[state, item] = state + 1
    final = np.arange(len(table)) == len(items)
    return Grammar(table, final, np.zeros(chord_ids.SIZE, dtype=bool))


def _chords_of(allowed: np.ndarray) -> Grammar:
    """Symbols whose tones are all `allowed` (12,) bool; after a root, its qualities and basses."""
    table = np.ones((14, chord_ids.SIZE), dtype=np.int32)  # 0 start, 1 between ids, 2 + root
    for root in range(12):
        table[:, chord_ids.ROOT + root] = root + 2 if allowed[root] else -1
        table[:, chord_ids.BASS + root] = 1 if allowed[root] else -1
        for number, quality in enumerate(_harmony.QUALITIES):
            inside = all(allowed[(root + i) % 12] for i in quality.intervals)
            table[root + 2, chord_ids.QUALITY + number] = 1 if inside else -1
    return Grammar(table, np.arange(14) == 1, np.zeros(chord_ids.SIZE, dtype=bool))


def _last_symbol(symbol: np.ndarray) -> Grammar:
    """Any ids, of which the last symbol is this one (1 to 3 ids); how long it lasts is free."""
    places = np.arange(chord_ids.SIZE)
    other = ~chord_ids.is_bar(places) & ~chord_ids.is_position(places)
    states = len(symbol) + 1
    table = np.zeros((states, chord_ids.SIZE), dtype=np.int32)
    for state in range(states):
        table[state, ~other] = state if state == states - 1 else 0
        if state < len(symbol):
            table[state, symbol[state]] = state + 1
        if state:
            table[state, symbol[0]] = 1
    return Grammar(table, np.arange(states) == states - 1, np.zeros(chord_ids.SIZE, dtype=bool))


# Values


def scale(value: object) -> np.ndarray:
    """(12,) bool pitch classes of a key. Raises UserError."""
    signature = parse_key(str(value))
    if signature is None:
        raise UserError(f"{str(value)!r} is no key", "key", "for example 'D major' or 'E minor'")
    return scale_of(signature)


def scale_of(signature: Signature) -> np.ndarray:
    """(12,) bool pitch classes of a key's scale, of a minor key also the raised sixth and seventh."""
    sharps, minor = signature
    tonic = 7 * sharps % 12  # of the major key with the same signature
    found = np.zeros(12, dtype=bool)
    found[(tonic + np.array([0, 2, 4, 5, 7, 9, 11])) % 12] = True
    if minor:
        found[[(tonic + 6) % 12, (tonic + 8) % 12]] = True
    return found


def _meter(value: object) -> tuple[int, int]:
    found = re.fullmatch(r"\s*(\d{1,3})/(\d{1,3})\s*", str(value))
    written = (int(found[1]), int(found[2])) if found else (0, 0)
    meter = normalise_meter(*written) if all(written) else (0, 1)
    if meter[0] not in METERS.get(meter[1], ()) or meter[0] * written[1] != written[0] * meter[1]:
        raise UserError(f"{str(value)!r} is no meter of the grid", "meter", "for example 3/4 or 6/8")
    return meter


def _range(value: object) -> tuple[int, int]:
    found = re.fullmatch(r"\s*([A-Ga-g][#b]?-?\d+)\s*(?:-|to)\s*([A-Ga-g][#b]?-?\d+)\s*", str(value))
    notes = [parse_note(name) for name in found.groups()] if found else [None, None]
    if notes[0] is None or notes[1] is None or notes[0] > notes[1]:
        raise UserError(f"{str(value)!r} is no range", "range", "lowest-highest, for example C4-A5")
    return notes[0], notes[1]


def _pitch_class(value: object) -> int:
    pitch = parse_note(str(value).strip())
    if pitch is None:
        raise UserError(f"{str(value)!r} is no note", "ending", "for example D")
    return pitch % 12


def check_names(wishes: Mapping[str, Any], known: Mapping[str, str]) -> None:
    """Raise UserError, with the nearest, on a wish that is not known."""
    for name in wishes:
        if name not in known:
            raise UserError(f"there is no wish '{name}'", fix=nearest(name, known))
