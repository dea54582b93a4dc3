"""Grammar: a table of what may follow, so that legality is a lookup and not a hope.

Letters: S states, V local ids, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from multimodal_gpt.errors import UserError

UNREACHABLE = np.iinfo(np.int32).max // 4
"""A distance larger than any real one; two of them still add up inside int32."""


@dataclass(frozen=True, eq=False)
class Grammar:
    """A finite-state machine over one modality's local ids; state 0 is the start.

    Args:
        next_state: (S, V) integer, the state after a token, -1 where the token may not come.
        final: (S,) bool, where a segment may end. State 0 is never final: no segment is empty.
        cut: (V,) bool, tokens that begin a chunk (a bar line, a paragraph). All False where nothing may be
        cut.
    """

    next_state: np.ndarray
    final: np.ndarray
    cut: np.ndarray

    def __post_init__(self) -> None:
        states, size = self.next_state.shape
        if self.final.shape != (states,) or self.cut.shape != (size,):
            raise ValueError(
                f"next_state is {self.next_state.shape}, so final must be ({states},) and cut ({size},); "
                f"they are {self.final.shape} and {self.cut.shape}"
            )
        if self.next_state.max(initial=-1) >= states:
            raise ValueError(f"next_state names state {self.next_state.max()}, there are {states}")
        if self.final[0]:
            raise ValueError("state 0 is final: a segment must hold at least one token")

    @property
    def size(self) -> int:
        """Number of local ids V."""
        return int(self.next_state.shape[1])

    @cached_property
    def closable(self) -> np.ndarray:
        """(S,) bool: states where a chunk may end because the next one may begin."""
        if not self.cut.any():
            return np.zeros(len(self.final), dtype=bool)
        return np.asarray((self.next_state[:, self.cut] >= 0).any(axis=1))

    @cached_property
    def to_final(self) -> np.ndarray:
        """(S,) int32: fewest tokens from a state to a final one; UNREACHABLE from a dead end."""
        return self._distance(self.final)

    @cached_property
    def to_close(self) -> np.ndarray:
        """(S,) int32: fewest tokens from a state, with no new chunk begun, to one where a chunk may end."""
        return self._distance(self.closable, without=self.cut)

    def _distance(self, goal: np.ndarray, without: np.ndarray | None = None) -> np.ndarray:
        table = self.next_state if without is None else self.next_state[:, ~without]
        source, token = np.nonzero(table >= 0)
        target = table[source, token]
        by_target = np.argsort(target, kind="stable")
        before, first = source[by_target], np.searchsorted(target[by_target], np.arange(len(goal) + 1))
        distance = np.full(len(goal), UNREACHABLE, dtype=np.int32)
        found, steps = np.flatnonzero(goal), 0
        while len(found):
            distance[found] = steps
            near = np.concatenate([before[first[state] : first[state + 1]] for state in found])
            found, steps = np.unique(near[distance[near] == UNREACHABLE]), steps + 1
        return distance

    def walk(self, ids: np.ndarray, state: int = 0) -> int:
        """The state after these ids. Raises UserError at the first one that may not come."""
        for place, token in enumerate(np.asarray(ids).tolist()):
            after = int(self.next_state[state, token]) if 0 <= token < self.size else -1
            if after < 0:
                raise UserError(f"token {token} may not come at place {place}")
            state = after
        return state

    def accepts(self, ids: np.ndarray) -> bool:
        """Whether these ids are a whole legal segment."""
        try:
            return bool(self.final[self.walk(ids)])
        except UserError:
            return False

    def random_walk(self, rng: np.random.Generator, length: int) -> np.ndarray:
        """(T,) int32: a random legal segment that begins to close once `length` tokens are there."""
        ids: list[int] = []
        state = 0
        while not (self.final[state] and len(ids) >= length):
            after = self.next_state[state]
            legal = np.flatnonzero(after >= 0)
            legal = legal[self.to_final[after[legal]] < UNREACHABLE]
            if len(ids) >= length:
                legal = legal[self.to_final[after[legal]] < self.to_final[state]]
            if not len(legal):
                break
            ids.append(int(rng.choice(legal)))
            state = int(after[ids[-1]])
        return np.asarray(ids, dtype=np.int32)


def free_grammar(size: int, cut: np.ndarray | None = None) -> Grammar:
    """Any id may follow any other; a segment holds at least one. For a modality without rules of its own."""
    return Grammar(
        next_state=np.ones((2, size), dtype=np.int32),
        final=np.array([False, True]),
        cut=np.zeros(size, dtype=bool) if cut is None else cut,
    )
