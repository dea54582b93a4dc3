"""What may follow what in a modality, and how far it is to an end, in tables.

S states, V local ids, K rounds that may still be added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from multimodal_gpt.generation.closing import FAR, closing_chunks, closing_whole, rounds_to_see
from multimodal_gpt.generation.target import Member
from multimodal_gpt.stream.grammar import Grammar

DEEPEST = 64
"""Distances are computed for this many chunks at first, for twice as many where they do not do."""


@dataclass(frozen=True, eq=False)
class Tables:
    """One modality, made whole or in chunks.

    Args:
        next_state: (S + 1, V) int32, -1 where an id may not come, as nowhere in the last row.
        cut: (V,) bool, ids that begin a chunk.
        legal: (2, S + 1, V) bool, ids that the grammar allows within a stretch, and as the first of one.
        tells: (2, S + 1) bool, where ids are legal that say how long a chunk lasts.
        inside, between: (K, S) int32, see Closing.
        most: (K,) int64, the largest of `inside` over all states that a walk comes to.
        rounds: further chunks to look at where any number may follow.
        reach: (S + 1, V + 2) int32, fewest tokens to END by way of each column when the member is a
            part of its own; the last row is of those who are there. None where it takes turns.
        spans: (V,) float32, see Member; None where it is made whole, or does not tell.
    """

    next_state: np.ndarray
    cut: np.ndarray
    legal: np.ndarray
    tells: np.ndarray
    inside: np.ndarray
    between: np.ndarray
    most: np.ndarray
    rounds: int
    reach: np.ndarray | None
    spans: np.ndarray | None


class Rules:
    """The modalities of a model and their tables, made when they are first needed."""

    def __init__(self, members: Mapping[str, Member]) -> None:
        self.members = members
        self._next_state: dict[str, np.ndarray] = {}
        self._tables: dict[tuple[str, bool], Tables] = {}

    def tables(self, name: str, whole: bool, chunks: int) -> Tables:
        """The tables of a modality, for up to `chunks` chunks or more."""
        found = self._tables.get((name, whole))
        if found is None or (len(found.inside) <= chunks and not whole):
            depth = DEEPEST
            while depth < chunks:
                depth *= 2
            found = self._tables[name, whole] = self._make(name, whole, depth)
        return found

    def _make(self, name: str, whole: bool, chunks: int) -> Tables:
        grammar, spans = self.members[name].grammar, self.members[name].spans
        if name not in self._next_state:
            nowhere = np.full((1, grammar.size), -1, dtype=np.int32)  # where a row is that has ended
            self._next_state[name] = np.vstack([grammar.next_state, nowhere]).astype(np.int32)
        closing = closing_whole(grammar) if whole else closing_chunks(grammar, chunks)
        # What begins a chunk comes first in a stretch and nowhere else.
        where = np.ones((2, 1), dtype=bool) if whole else np.stack([~grammar.cut, grammar.cut])
        legal = (self._next_state[name] >= 0) & where[:, None]  # (2, S + 1, V)
        says = np.zeros(grammar.size, dtype=bool) if whole or spans is None else ~np.isnan(spans)
        reached = np.zeros(len(grammar.next_state), dtype=bool)
        reached[grammar.next_state[grammar.next_state >= 0]] = True
        return Tables(
            next_state=self._next_state[name],
            cut=grammar.cut,
            legal=legal,
            tells=(legal & says).any(-1),
            inside=closing.inside,
            between=closing.between,
            most=closing.inside[:, reached].max(1).astype(np.int64),
            rounds=rounds_to_see(closing),
            reach=_reach(grammar) if whole else None,
            spans=None if whole else spans,
        )


def _reach(grammar: Grammar) -> np.ndarray:
    states, size = grammar.next_state.shape
    reach = np.full((states + 1, size + 2), FAR, dtype=np.int32)
    after = np.minimum(grammar.to_final, FAR)[grammar.next_state] + 2  # the id itself, and END
    reach[:-1, :-2] = np.where(grammar.next_state >= 0, after, FAR)
    reach[:-1, -1] = np.where(grammar.final, 1, FAR)
    reach[-1, -1] = 0
    return reach
