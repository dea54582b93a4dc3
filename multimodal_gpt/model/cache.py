"""The key-value cache: what attention has seen so far, for rows that may stand at different places.

B rows, T new tokens, L places, G key-value heads, E head width. Rows are left-aligned: row b holds places
0 .. lengths[b] - 1; whatever lies beyond is never attended to and is overwritten by the next tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Step:
    """Where one call writes and what it may see; made once, shared by all blocks.

    position (B, T): places of the new tokens. slot (B, T): the same, but unused tokens point at a spare slot.
    mask (B, 1, T, filled) bool, or None where plain causal attention is right.
    """

    position: Tensor
    slot: Tensor
    mask: Tensor | None
    lengths: Tensor
    filled: int
    even: bool
    fresh: bool


class KVCache:
    """Static tensors for `depth` blocks of keys and values, (B, G, L + 1, E) each; the last slot is spare.

    Args:
        batch: rows B.
        shape: (depth, key-value heads, head width), `GPTConfig.cache_shape`.
        length: places L per row, tokens.
    """

    def __init__(
        self,
        batch: int,
        shape: tuple[int, int, int],
        length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        depth, heads, width = shape
        self.length = length
        size = (batch, heads, length + 1, width)
        self.keys = [torch.zeros(size, dtype=dtype, device=device) for _ in range(depth)]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)
        self.filled = 0
        self._even = True

    @property
    def batch(self) -> int:
        """Rows B."""
        return len(self.lengths)

    def plan(self, new: int, counts: Tensor | None = None) -> Step:
        """Where `new` tokens per row will go, of which the first counts[b] of row b are real; all if None.

        Raises ValueError where a row would grow beyond `length` or a count is not within 0 .. new.
        """
        if counts is not None and bool(((counts < 0) | (counts > new)).any()):
            raise ValueError(f"counts must lie within 0 .. {new} tokens, they are {counts.tolist()}")
        lengths = self.lengths + (new if counts is None else counts.to(self.lengths))
        filled = self.filled + new if counts is None else int(lengths.max())
        if filled > self.length:
            raise ValueError(f"the cache holds {self.length} tokens a row, {filled} are needed")
        even = self._even and (counts is None or bool((counts == counts[0]).all()))
        offset = torch.arange(new, device=self.lengths.device)
        position = self.lengths[:, None] + offset  # (B, T)
        slot = position if counts is None else position.where(position < lengths[:, None], self.length)
        fresh = self.filled == 0
        plain = fresh or (new == 1 and even and counts is None)
        mask = None if plain else _up_to(position, filled)
        return Step(position, slot, mask, lengths, filled, even, fresh)

    def write(self, block: int, step: Step, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values (B, G, T, E) of one block; gives all that its queries may attend to.

        A fresh cache gives the new ones back: left-aligned rows need nothing but causal attention among them.
        """
        same = self._even and step.even  # all rows write to the same places
        rows = torch.arange(self.batch, device=self.lengths.device)[:, None]
        for store, new in ((self.keys[block], keys), (self.values[block], values)):
            if same and step.filled == self.filled + new.shape[2]:
                store[:, :, self.filled : step.filled] = new
            else:
                store[rows, :, step.slot] = new.transpose(1, 2).to(store.dtype)
        if step.fresh:
            return keys, values
        return self.keys[block][:, :, : step.filled], self.values[block][:, :, : step.filled]

    def advance(self, step: Step) -> None:
        """Count the tokens of `step` as seen, once all blocks have written."""
        self.lengths, self.filled, self._even = step.lengths, step.filled, step.even

    def next_place(self) -> int | None:
        """Where the next token of all rows goes; None where rows stand at different places.

        Raises ValueError where the cache is full.
        """
        if self.filled >= self.length:
            raise ValueError(f"the cache holds {self.length} tokens a row, {self.filled + 1} are needed")
        return self.filled if self._even else None

    def seen(self, times: int) -> Tensor:
        """(B times, 1, filled + 1) what is added to scores: 0 up to each row's next token, -inf beyond; every
        row so many times.
        """
        hidden = torch.arange(self.filled + 1, device=self.lengths.device) > self.lengths[:, None]
        added = self.keys[0].new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
        return added.repeat_interleave(times, dim=0)[:, None]

    def put(self, block: int, place: int | None, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """One more token per row: keys and values (B, G, E); gives all there are, (B, G, filled + 1, E)

        `place` is what `next_place` says; `grow` counts the token once all blocks have written.
        """
        rows = None if place is not None else torch.arange(self.batch, device=self.lengths.device)
        found = []
        for store, new in ((self.keys[block], keys), (self.values[block], values)):
            if place is not None:
                store.select(2, place).copy_(new)
            else:
                store[rows, :, self.lengths] = new
            found.append(store.narrow(2, 0, self.filled + 1))
        return found[0], found[1]

    def grow(self, going: Tensor | None = None) -> None:
        """Count one more token in every row, or in those that go on, (B,) bool; the next token of the others
        takes the place of this one.

        With some that don't go on, `filled` may be more than the longest row until the cache is full or rows
        change: looking each time would keep an accelerator waiting.
        """
        if going is None:
            self.lengths, self.filled = self.lengths + 1, self.filled + 1
            return
        self.lengths, self.filled, self._even = self.lengths + going, self.filled + 1, False
        if self.filled >= self.length:
            self._measure()

    def take(self, rows: Tensor) -> KVCache:
        """A new cache of these rows (N,), repeats allowed."""
        chosen = KVCache.__new__(KVCache)
        chosen.length = self.length
        chosen.keys = [k.index_select(0, rows) for k in self.keys]
        chosen.values = [v.index_select(0, rows) for v in self.values]
        chosen.lengths = self.lengths[rows]
        chosen._measure()
        return chosen

    def join(self, places: Tensor, other: KVCache, rows: Tensor) -> None:
        """Rows (N,) of another cache, repeats allowed, take these places (N,): whatever was there is gone.

        Raises ValueError where they are longer than this cache.
        """
        if other.filled > self.length:
            raise ValueError(f"the cache holds {self.length} tokens a row, {other.filled} are needed")
        for mine, theirs in zip((*self.keys, *self.values), (*other.keys, *other.values), strict=True):
            seen = theirs.narrow(2, 0, other.filled).index_select(0, rows)
            mine.narrow(2, 0, other.filled).index_copy_(0, places, seen)
        self.lengths = self.lengths.index_copy(0, places, other.lengths[rows])
        self._measure()

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows (N,) only, in this order. No row is copied that keeps its place."""
        here = torch.arange(len(rows), device=rows.device)
        moved = (rows != here).nonzero()[:, 0]
        for stores in (self.keys, self.values):
            for block, store in enumerate(stores):
                filled = store.narrow(2, 0, self.filled)
                filled.index_copy_(0, moved, filled.index_select(0, rows[moved]))
                stores[block] = store[: len(rows)]
        self.lengths = self.lengths[rows]
        self._measure()

    def _measure(self) -> None:
        shortest, self.filled = (int(n) for n in self.lengths.aminmax())
        self._even = shortest == self.filled


def _up_to(position: Tensor, filled: int) -> Tensor:
    """(B, 1, T, filled) bool: each new token sees its row's places up to its own."""
    places = torch.arange(filled, device=position.device)
    return (places <= position[:, :, None])[:, None]
