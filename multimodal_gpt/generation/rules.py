"""What may follow what in a modality, and how far it is to an end: tables on the model's device.

S states, V local ids, K rounds that may still be added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from multimodal_gpt.generation.closing import FAR, closing_chunks, closing_whole, rounds_to_see
from multimodal_gpt.generation.target import Member
from multimodal_gpt.stream.grammar import Grammar

DEEPEST = 64
"""Distances are computed for this many chunks at first, for twice as many where they do not do."""


@dataclass(frozen=True, eq=False)
class Tables:
    """One modality on the device, made whole or in chunks.

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

    next_state: Tensor
    cut: Tensor
    legal: Tensor
    tells: Tensor
    inside: Tensor
    between: Tensor
    most: Tensor
    rounds: int
    reach: Tensor | None
    spans: Tensor | None


class Rules:
    """The modalities of a model and their tables on its device, made when they are first needed."""

    def __init__(self, members: Mapping[str, Member], device: torch.device) -> None:
        self.members, self.device = members, device
        self._next_state: dict[str, Tensor] = {}
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
            self._next_state[name] = self._tensor(np.vstack([grammar.next_state, nowhere]).astype(np.int32))
        closing = closing_whole(grammar) if whole else closing_chunks(grammar, chunks)
        legal = self._next_state[name] >= 0
        if not whole:  # what begins a chunk comes first in a stretch and nowhere else
            cut = self._tensor(grammar.cut)
            legal = torch.stack([legal & ~cut, legal & cut])
        else:
            legal = legal.expand(2, -1, -1)
        says = torch.zeros_like(legal[0, 0]) if whole or spans is None else ~self._tensor(spans).isnan()
        reached = np.unique(grammar.next_state[grammar.next_state >= 0])
        return Tables(
            next_state=self._next_state[name],
            cut=self._tensor(grammar.cut),
            legal=legal,
            tells=(legal & says).any(-1),
            inside=self._tensor(closing.inside),
            between=self._tensor(closing.between),
            most=self._tensor(closing.inside[:, reached].max(1).astype(np.int64)),
            rounds=rounds_to_see(closing),
            reach=self._tensor(_reach(grammar)) if whole else None,
            spans=None if whole or spans is None else self._tensor(spans),
        )

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, device=self.device)


def _reach(grammar: Grammar) -> np.ndarray:
    states, size = grammar.next_state.shape
    reach = np.full((states + 1, size + 2), FAR, dtype=np.int32)
    after = np.minimum(grammar.to_final, FAR)[grammar.next_state] + 2  # the id itself, and END
    reach[:-1, :-2] = np.where(grammar.next_state >= 0, after, FAR)
    reach[:-1, -1] = np.where(grammar.final, 1, FAR)
    reach[-1, -1] = 0
    return reach
