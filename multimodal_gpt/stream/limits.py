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
"""Most entries of the table that `both` makes: half a gigabyte."""


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
    wide = np.int64(len(second.final))
    rows: list[np.ndarray] = []
    known = found = np.zeros(1, dtype=np.int64)  # a pair of states as one number
    order: list[np.ndarray] = []
    while len(found):
        after = first.next_state[found // wide].astype(np.int64), second.next_state[found % wide]
        rows.append(np.where((after[0] >= 0) & (after[1] >= 0), after[0] * wide + after[1], -1))
        order.append(found)
        found = np.setdiff1d(rows[-1][rows[-1] >= 0], known)
        known = np.union1d(known, found)
        if len(known) * first.size > CELLS:
            raise UserError("these wishes together need too large a table", fix="ask for less at a time")
    pairs, table = np.concatenate(order), np.concatenate(rows)
    number = np.empty(len(known), dtype=np.int32)
    number[np.searchsorted(known, pairs)] = np.arange(len(pairs))
    states = np.where(table >= 0, number[np.searchsorted(known, np.maximum(table, 0))], -1)
    final = first.final[pairs // wide] & second.final[pairs % wide]
    return Grammar(states.astype(np.int32), final, first.cut)


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
