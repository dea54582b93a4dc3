"""What the network has seen of the rows that are decoded together, and what it makes of it.

B rows, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from multimodal_gpt.model.cache import KVCache
from multimodal_gpt.model.decoding import Decoder
from multimodal_gpt.model.gpt import GPT
from multimodal_gpt.stream.arrangement import Stream
from multimodal_gpt.stream.vocabulary import PAD


@dataclass(frozen=True, eq=False)
class _Prompts:
    """Prompts that have been read: each one's row, by content, in a cache and in hidden states (N, D)."""

    rows: dict[bytes, int]
    cache: KVCache
    hidden: Tensor

    def only(self, key: bytes) -> _Prompts:
        """One of them."""
        row = torch.tensor([self.rows[key]], device=self.hidden.device)
        return self if len(self.rows) == 1 else _Prompts({key: 0}, self.cache.take(row), self.hidden[row])


class Cached:
    """Streams as keys and values.

    Args:
        decoder: the network.
        rows: how many there are, B.
        width: tokens of the longest there will be.

    `hidden` (B, D): what the network makes of each row so far.
    """

    def __init__(self, decoder: Decoder, rows: int, width: int) -> None:
        self.decoder, net = decoder, decoder.net
        self.cache = net.new_cache(rows, width)
        self.hidden = net.embedding.weight.new_zeros(rows, net.config.width)
        self.known: list[_Prompts] = []

    def put(self, places: Tensor, prompts: Sequence[Stream], following: Stream | None) -> None:
        """Begin new rows at these places (N,), whatever was there.

        Equal prompts are read once. `following`: that of the row that is put next, kept if it is one of
        these: rows of one prompt come one after the other.
        """
        keys = [_key(prompt) for prompt in prompts]
        different = dict(zip(keys, prompts, strict=True))
        if new := {k: p for k, p in different.items() if not any(k in known.rows for known in self.known)}:
            self.known.append(self._read(new))
        for known in self.known:
            mine = [number for number, key in enumerate(keys) if key in known.rows]
            self._join(places[mine], known, [known.rows[keys[number]] for number in mine])
        key = b"" if following is None else _key(following)
        self.known = [known.only(key) for known in self.known if key in known.rows]

    def add(self, ids: Tensor, times: Tensor | None, going: Tensor, *, pauses: bool = False) -> None:
        """One more id (B,) for the rows that are going, (B,) bool; `times`: (B,) quarter notes.

        `pauses`: whether others may go on later: they stay as they are. Else nobody looks at them again.
        """
        if not pauses:
            even = self.cache.next_place() is not None  # those that have ended are in nobody's way
            self.hidden = self.decoder.step(ids, self.cache, times, None if even else going)
        elif bool(going.any()):
            hidden = self.decoder.step(ids, self.cache, times, going)
            self.hidden = torch.where(going[:, None], hidden, self.hidden)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows (N,) only, in this order."""
        self.cache.keep(rows)
        self.hidden = self.hidden[rows]

    def _read(self, prompts: dict[bytes, Stream]) -> _Prompts:
        net = self.decoder.net
        ids, clock, counts = left_aligned(list(prompts.values()), self.hidden.device)
        cache = net.new_cache(len(prompts), ids.shape[1])
        hidden = _last(net(ids, cache=cache, counts=counts, clock=clock), counts)
        return _Prompts({key: number for number, key in enumerate(prompts)}, cache, hidden)

    def _join(self, places: Tensor, known: _Prompts, rows: list[int]) -> None:
        which = torch.tensor(rows, dtype=torch.long, device=places.device)
        self.cache.join(places, known.cache, which)
        self.hidden = self.hidden.index_copy(0, places, known.hidden[which])


class Recomputed:
    """Streams as ids, read from their beginning for every token; otherwise like `Cached`."""

    hidden: Tensor

    def __init__(self, net: GPT, rows: int, width: int) -> None:
        self.net, device = net, net.embedding.weight.device
        self.ids = torch.full((rows, width), PAD, device=device)
        self.clock = torch.zeros(rows, width, device=device)
        self.counts = torch.ones(rows, dtype=torch.long, device=device)

    def put(self, places: Tensor, prompts: Sequence[Stream], following: Stream | None) -> None:
        """Begin new rows at these places (N,)."""
        ids, clock, counts = left_aligned(prompts, places.device)
        self.ids[places, : ids.shape[1]], self.clock[places, : ids.shape[1]] = ids, clock
        self.counts[places] = counts
        self.hidden = self._read()

    def add(self, ids: Tensor, times: Tensor | None, going: Tensor, *, pauses: bool = False) -> None:
        """One more id (B,) for the rows that are going, (B,) bool; `times`: (B,) quarter notes."""
        rows = going.nonzero()[:, 0]
        self.ids[rows, self.counts[rows]] = ids[rows]
        if times is not None:
            self.clock[rows, self.counts[rows]] = times[rows]
        self.counts = self.counts + going
        self.hidden = self._read()

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows (N,) only, in this order."""
        for name in ("ids", "clock", "counts", "hidden"):
            setattr(self, name, getattr(self, name)[rows])

    def _read(self) -> Tensor:
        longest = int(self.counts.max())
        return _last(self.net(self.ids[:, :longest], clock=self.clock[:, :longest]), self.counts)


def _key(prompt: Stream) -> bytes:
    return prompt.ids.tobytes() + prompt.clock.tobytes()


def _last(hidden: Tensor, counts: Tensor) -> Tensor:
    """(B, D) of the last of each row's tokens, from (B, T, D)."""
    return hidden[torch.arange(len(counts), device=counts.device), counts - 1]


def joined(first: Stream, then: Stream) -> Stream:
    """Two streams, one after the other."""
    ids, clock = np.concatenate([first.ids, then.ids]), np.concatenate([first.clock, then.clock])
    return Stream(ids.astype(np.int64), clock.astype(np.float32))


def left_aligned(prompts: Sequence[Stream], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and times (B, T) padded on the right, and the real lengths (B,)."""
    counts = [len(p.ids) for p in prompts]
    ids = np.full((len(prompts), max(counts)), PAD, dtype=np.int64)
    clock = np.zeros(ids.shape, dtype=np.float32)
    for row, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
        ids[row, :count], clock[row, :count] = prompt.ids, prompt.clock
    return (
        torch.as_tensor(ids, device=device),
        torch.as_tensor(clock, device=device),
        torch.tensor(counts, device=device),
    )
