"""How many ids a grammar needs to come to a legal end, chunk by chunk.

S states, V local ids, K chunks that must still follow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from multimodal_gpt.stream.grammar import Grammar

FAR = 10**8
"""More ids than any walk; a dozen of them still add up inside int32."""


@dataclass(frozen=True, eq=False)
class Closing:
    """Fewest ids to a legal end, FAR where there is none.

    Args:
        inside: (K + 1, S) from a state inside a chunk, when k more chunks follow it: to the end of the last.
        between: (K + 1, S) the same when the chunk is over and k more chunks follow.
    """

    inside: np.ndarray
    between: np.ndarray


def closing_whole(grammar: Grammar) -> Closing:
    """Distances where a segment is made in one stretch: one is left before it, none after."""
    inside = np.minimum(grammar.to_final, FAR).astype(np.int32)
    return Closing(np.stack([inside, inside]), np.stack([_free_at(grammar.final), inside]))


def closing_chunks(grammar: Grammar, chunks: int) -> Closing:
    """Distances with up to `chunks` more chunks."""
    inner, border = _Steps(grammar, ~grammar.cut), _Steps(grammar, grammar.cut)
    between = [_free_at(grammar.final)]
    inside = [inner.relax(between[0])]
    while len(inside) <= chunks:
        if _straight(inside):
            return _continued(inside, between, chunks)
        between.append(border.once(inside[-1]))
        inside.append(inner.relax(between[-1]))
    return Closing(np.stack(inside), np.stack(between))


def rounds_to_see(closing: Closing) -> int:
    """Further chunks to look at where any number may follow: more of them open no end that was closed."""
    open_ends = closing.inside < FAR
    changes = np.flatnonzero((open_ends[1:] != open_ends[:-1]).any(axis=1))
    return int(changes[-1]) + 1 if len(changes) else 0


def _free_at(goal: np.ndarray) -> np.ndarray:
    return np.where(goal, 0, FAR).astype(np.int32)


def _same_ends(inside: list[np.ndarray]) -> bool:
    return bool(((inside[-1] < FAR) == (inside[-2] < FAR)).all())


def _straight(inside: list[np.ndarray]) -> bool:
    """Whether one more chunk costs the same from everywhere: then it does so for ever."""
    if len(inside) < 3 or not _same_ends(inside):
        return False
    alive = inside[-1] < FAR
    return len(np.unique(inside[-1][alive] - inside[-2][alive])) <= 1


def _continued(inside: list[np.ndarray], between: list[np.ndarray], chunks: int) -> Closing:
    more = np.arange(1, chunks + 2 - len(inside), dtype=np.int32)[:, None]
    step = int(np.max(inside[-1] - inside[-2], initial=0))
    longer = [np.where(rows[-1] < FAR, rows[-1] + more * step, FAR) for rows in (inside, between)]
    return Closing(np.vstack([*inside, longer[0]]), np.vstack([*between, longer[1]]))


class _Steps:
    """The steps of a grammar by some of its ids, each (state, next state) once, grouped by state."""

    def __init__(self, grammar: Grammar, ids: np.ndarray) -> None:
        table = grammar.next_state[:, ids]
        self.states = len(table)
        source, column = np.nonzero(table >= 0)
        # Not np.unique: it hashes, which takes many times as long for a million pairs that are nearly sorted.
        pairs = np.sort(source * np.int64(self.states) + table[source, column], kind="stable")
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]
        source, self.target = np.divmod(pairs, self.states)
        self.source, self.start = np.unique(source, return_index=True)

    def once(self, goal: np.ndarray) -> np.ndarray:
        """(S,) cost of exactly one step, then `goal` (S,)."""
        cost = np.full(self.states, FAR, dtype=np.int32)
        if len(self.source):
            cost[self.source] = np.minimum.reduceat(goal[self.target] + 1, self.start)
        return np.minimum(cost, FAR)

    def relax(self, goal: np.ndarray) -> np.ndarray:
        """(S,) cost of any number of steps, then `goal` (S,)."""
        while True:
            closer = np.minimum(goal, self.once(goal))
            if (closer == goal).all():
                return goal
            goal = closer
