"""Limits: grammars that allow less. A wish becomes a table like every other rule, so that what is made meets
it by construction.

Letters: S states, V local ids, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.grammar import UNREACHABLE, Grammar

CELLS = 2**27
"""Most entries of a table that `both` makes: half a gigabyte."""


def only(grammar: Grammar, allowed: np.ndarray) -> Grammar:
    """The grammar without the ids that are not `allowed` (V,) bool."""
    return Grammar(np.where(allowed, grammar.next_state, -1), grammar.final, grammar.cut)


def along(choices: Iterable[np.ndarray], cut: np.ndarray) -> Grammar:
    """As many ids as there are `choices`, each one of those allowed at its place (V,) bool; then the end."""
    places = np.array([np.asarray(c, dtype=bool) for c in choices])  # (T, V)
    table = np.full((len(places) + 1, len(cut)), -1, dtype=np.int32)
    table[:-1] = np.where(places, np.arange(1, len(places) + 1)[:, None], -1)
    return Grammar(table, np.arange(len(places) + 1) == len(places), cut)


def both(first: Grammar, second: Grammar) -> Grammar:
    """What both grammars allow: their product, as far as it can be reached from the start.

    Chunks begin where `first` says. Raises UserError where the table would be too large.
    """
    wide, states = len(second.final), 0
    _check_size(len(first.final) * wide)
    number = np.full(len(first.final) * wide, -1, dtype=np.int32)  # of a pair of states, once it is found
    pairs: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    found = np.zeros(1, dtype=np.int64)  # a pair as one number
    while len(found):
        number[found] = np.arange(states, states + len(found))
        states += len(found)
        _check_size(states * first.size)
        one, other = first.next_state[found // wide].astype(np.int64), second.next_state[found % wide]
        rows.append(np.where((one >= 0) & (other >= 0), one * wide + other, -1))
        pairs.append(found)
        near = rows[-1][rows[-1] >= 0]
        found = np.unique(near[number[near] < 0])
    table, pair = np.concatenate(rows), np.concatenate(pairs)
    final = first.final[pair // wide] & second.final[pair % wide]
    return Grammar(np.where(table >= 0, number[table], -1).astype(np.int32), final, first.cut)


def _check_size(cells: int) -> None:
    if cells > CELLS:
        raise UserError("these wishes together need too large a table", fix="ask for less at a time")


def resumed(grammar: Grammar, state: int, final: np.ndarray) -> Grammar:
    """What may follow from a state on where a chunk begins, and end in the states `final` (S,).

    Where the same may follow as at the start, the states keep their numbers; else each is one higher.
    """
    first = np.where(grammar.cut, grammar.next_state[state], -1)
    if state == 0 or (first == np.where(grammar.cut, grammar.next_state[0], -1)).all():
        return Grammar(grammar.next_state, final & (np.arange(len(final)) > 0), grammar.cut)
    table = np.vstack([first, grammar.next_state])
    return Grammar(np.where(table >= 0, table + 1, -1), np.concatenate([[False], final]), grammar.cut)


def is_possible(grammar: Grammar) -> bool:
    """Whether it allows any segment at all."""
    return bool(grammar.to_final[0] < UNREACHABLE)
