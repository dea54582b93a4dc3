"""Ids in, ids out: prefill, then one token per row and step, legal by construction.

B rows, T tokens, D width, C scored columns. A row's ids depend on its own prompt, target and key
alone, whatever batch it is in (but for the last bit of the model's arithmetic, which may differ
between batch sizes).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from multimodal_gpt.generation.clock import Clock
from multimodal_gpt.generation.sampling import Sampling, bits, exact, guided, legal_logits, sample, uniforms
from multimodal_gpt.generation.target import Member, Target
from multimodal_gpt.generation.walker import Plan, Rules, Walker
from multimodal_gpt.model.decoding import Decoder
from multimodal_gpt.model.gpt import GPT
from multimodal_gpt.stream.arrangement import Stream
from multimodal_gpt.stream.vocabulary import PAD

ROWS = 32
"""Most rows that are decoded together."""
SHRINK = 0.75
"""Finished rows are dropped once at most this share still goes on: dropping copies the cache."""


@dataclass(frozen=True, eq=False)
class Row:
    """One thing to make.

    Args:
        prompt: global ids that come before the target, and their times.
        target: the part to make.
        budget: tokens that the part may take, its tags and END included.
        key: numbers that decide the row's randomness.
        unguided: the prompt without what is to guide the row more, or less, than it would; None = the same.
    """

    prompt: Stream
    target: Target
    budget: int
    key: tuple[int, ...] = (0,)
    unguided: Stream | None = None


@dataclass(frozen=True, eq=False)
class Made:
    """A finished part.

    Args:
        ids: (T,) int32 global ids, from its first tag to END.
        bits: by modality, -log2 of the probability of every id among the legal ones, at temperature
            1; a tag or END that closes a stretch is charged to the modality whose stretch it closes.
        free: how many ids were chosen, not forced.
    """

    ids: np.ndarray
    bits: Mapping[str, float]
    free: int


class Engine:
    """A network and the modalities it speaks."""

    def __init__(self, net: GPT, members: Mapping[str, Member]) -> None:
        self.net = net
        self.device = net.embedding.weight.device
        self.rules = Rules(members, self.device)
        self.context = net.config.context

    def least(self, target: Target) -> int:
        """Fewest tokens that a target takes, tags and END included."""
        return Plan(self.rules, [target], [self.context]).least(0)

    @torch.inference_mode()
    def generate(
        self,
        rows: Sequence[Row],
        how: Sampling = Sampling(),  # noqa: B008 (frozen)
        *,
        cached: bool = True,
        progress: Callable[[int], object] | None = None,
    ) -> list[Made]:
        """Make every row's target; rows of one call want the same modalities in the same order.

        Args:
            rows: what to make.
            how: temperature and filters.
            cached: False = read the whole stream again for every token: slow, for comparison.
            progress: called with the number of rows that have just been finished.
        """
        made: list[Made] = []
        decoder = Decoder(self.net) if cached else None  # made here: the weights may change between calls
        for first in range(0, len(rows), ROWS):
            batch = _Batch(self, rows[first : first + ROWS], how, decoder)
            for _ in batch.run():
                pass
            made += batch.made()
            if progress is not None:
                progress(len(batch.prefixes))
        return made

    @torch.inference_mode()
    def follow(self, row: Row, how: Sampling = Sampling()) -> Generator[int, None, Made]:  # noqa: B008
        """Make one row's target and give each id as soon as it is taken, those of its program's prefix left
        out. What `generate` makes of the row alone is returned at last.
        """
        batch = _Batch(self, [row], how, Decoder(self.net))
        for ids in batch.run():
            yield int(ids[0])
        return batch.made()[0]


class _Batch:
    """Rows that are decoded together; lives for one call."""

    def __init__(self, engine: Engine, rows: Sequence[Row], how: Sampling, decoder: Decoder | None) -> None:
        self.device, self.how = engine.device, how
        self.plan = Plan(engine.rules, [r.target for r in rows], [r.budget for r in rows])
        for number, row in enumerate(rows):
            if self.plan.least(number) > row.budget:
                raise ValueError(
                    f"row {number} needs {self.plan.least(number)} tokens, its budget is {row.budget}"
                )
        self.prefixes = [p.prefix for p in self.plan.programs]
        prompts = [_joined(r.prompt, p) for r, p in zip(rows, self.prefixes, strict=True)]
        self.steps = max(r.budget - len(p.ids) for r, p in zip(rows, self.prefixes, strict=True))
        self.clock = Clock(self.plan) if engine.net.config.clock_angles else None
        self.memory = self._read(engine.net, decoder, prompts)
        self.unguided: _Cached | _Recomputed | None = None
        if how.guidance not in (None, 1.0):
            without = [_joined(r.unguided or r.prompt, p) for r, p in zip(rows, self.prefixes, strict=True)]
            self.unguided = self._read(engine.net, decoder, without)
        self.walker = Walker(self.plan)
        self.table = engine.net.embedding.weight
        self.head = self.table[self.walker.columns]  # (C - 1, D)
        self.uniform = self._tensor(np.stack([uniforms(r.key, self.steps) for r in rows], axis=1))
        warmth = np.array([how.temperature_of(m.name) for m in self.plan.wanted])
        self.temperature = None if how.even else self._tensor(warmth)
        self.numbers = torch.arange(len(rows), device=self.device)
        self.trail = _Trail(len(rows), self.steps, len(self.plan.wanted), self.device)

    def _read(self, net: GPT, decoder: Decoder | None, prompts: list[Stream]) -> _Cached | _Recomputed:
        return _Cached(decoder, prompts, self.steps) if decoder else _Recomputed(net, prompts, self.steps)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, dtype=exact(self.device), device=self.device)

    def run(self) -> Iterator[Tensor]:
        """Go to the end of all rows, and give what each of those still going takes, (B,) ids, step by step."""
        for step in range(self.steps):
            ids = self._choose(step)
            yield ids
            times = None if self.clock is None else self.clock.times(self.walker, ids)
            self.walker.advance(ids)
            going = ~self.walker.done
            count = int(going.sum())
            if not count:
                break
            if count <= SHRINK * len(going):
                ids, times = ids[going], None if times is None else times[going]
                self._keep(going.nonzero()[:, 0])
            self.memory.add(ids, times)
            if self.unguided is not None:
                self.unguided.add(ids, times)

    def _choose(self, step: int) -> Tensor:
        """(B,) next ids; also writes down what they cost."""
        walker, how = self.walker, self.how
        allowed, member = walker.allowed(), walker.current
        likely = wanted = legal_logits(self._scores(self.memory.hidden), allowed).log_softmax(-1)
        if self.unguided is not None and how.guidance is not None:
            without = legal_logits(self._scores(self.unguided.hidden), allowed).log_softmax(-1)
            wanted = guided(likely, without, how.guidance)
        column = sample(wanted, self.uniform[step], self.warmth(member), how)
        ids = walker.ids(column)
        self.trail.add(ids, member, bits(likely, column), allowed.sum(1))
        return ids

    def _scores(self, hidden: Tensor) -> Tensor:
        """(B, C) logits of the columns from hidden (B, D): only what could come is scored."""
        way_out = (hidden * F.embedding(self.walker.way_out, self.table)).sum(-1, keepdim=True)
        return torch.cat([F.linear(hidden, self.head), way_out], dim=1).float()

    def warmth(self, member: Tensor) -> Tensor | float:
        """Temperatures of the rows, by the member (B,) whose ids they are to draw."""
        return self.temperature[member] if self.temperature is not None else self.how.temperature_of("")

    def _keep(self, rows: Tensor) -> None:
        self.walker.take(rows)
        self.memory.take(rows)
        if self.unguided is not None:
            self.unguided.take(rows)
        if self.clock is not None:
            self.clock.take(rows)
        self.trail.write_down(self.numbers)
        self.numbers, self.uniform = self.numbers[rows], self.uniform[:, rows]

    def made(self) -> list[Made]:
        """What has been made of every row, once all steps are done."""
        self.trail.write_down(self.numbers)
        names = [m.name for m in self.plan.wanted]
        made = []
        trail = self.trail
        for number, (prefix, ids) in enumerate(zip(self.prefixes, trail.ids.cpu().numpy(), strict=True)):
            length = int(np.flatnonzero(ids != PAD)[-1]) + 1
            cost = dict(zip(names, trail.bits[number].tolist(), strict=True))
            whole = np.concatenate([prefix.ids, ids[:length]]).astype(np.int32)
            made.append(Made(whole, cost, int(trail.free[number])))
        return made


class _Trail:
    """What was chosen in every step and what it cost; put in its place when rows change, and at the end."""

    def __init__(self, rows: int, steps: int, members: int, device: torch.device) -> None:
        self.ids = torch.full((rows, steps), PAD, device=device)
        self.bits = torch.zeros(rows, members, dtype=exact(device), device=device)
        self.free = torch.zeros(rows, dtype=torch.long, device=device)
        self.written = 0
        self.steps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def add(self, ids: Tensor, member: Tensor, bits: Tensor, legal: Tensor) -> None:
        """One step, (B,) each: the ids, whose they are, what they cost, and how many could have come."""
        self.steps.append((ids, member, bits, legal))

    def write_down(self, rows: Tensor) -> None:
        """Give the steps since the last time to rows (B,)."""
        if not self.steps:
            return
        ids, member, bits, legal = (torch.stack(column, dim=1) for column in zip(*self.steps, strict=True))
        self.ids[rows, self.written : self.written + len(self.steps)] = ids
        self.bits[rows] = self.bits[rows].scatter_add(1, member, bits)
        self.free[rows] += (legal > 1).sum(1)
        self.written += len(self.steps)
        self.steps = []


class _Cached:
    """The stream so far as keys and values; equal prompts are read once."""

    def __init__(self, decoder: Decoder, prompts: Sequence[Stream], steps: int) -> None:
        self.decoder, net = decoder, decoder.net
        device = net.embedding.weight.device
        keys = [p.ids.tobytes() + p.clock.tobytes() for p in prompts]
        different = dict(zip(keys, prompts, strict=True))
        ids, clock, counts = _left_aligned(list(different.values()), device)
        self.cache = net.new_cache(len(different), ids.shape[1] + steps)
        hidden = net(ids, cache=self.cache, counts=counts, clock=clock)
        self.hidden: Tensor = hidden[torch.arange(len(counts), device=device), counts - 1]  # (B, D)
        index = {key: number for number, key in enumerate(different)}
        self.take(torch.tensor([index[key] for key in keys], device=device))

    def add(self, ids: Tensor, times: Tensor | None) -> None:
        self.hidden = self.decoder.step(ids, self.cache, times)

    def take(self, rows: Tensor) -> None:
        if torch.equal(rows, torch.arange(self.cache.batch, device=rows.device)):
            return
        self.cache = self.cache.take(rows)
        self.hidden = self.hidden[rows]


class _Recomputed:
    """The stream so far as ids, read from its beginning for every token."""

    def __init__(self, net: GPT, prompts: Sequence[Stream], steps: int) -> None:
        self.net = net
        ids, clock, self.counts = _left_aligned(prompts, net.embedding.weight.device)
        self.ids, self.clock = F.pad(ids, (0, steps), value=PAD), F.pad(clock, (0, steps))
        self.hidden = self._read()

    def add(self, ids: Tensor, times: Tensor | None) -> None:
        rows = torch.arange(len(ids), device=ids.device)
        self.ids[rows, self.counts] = ids
        if times is not None:
            self.clock[rows, self.counts] = times
        self.counts = self.counts + 1
        self.hidden = self._read()

    def take(self, rows: Tensor) -> None:
        for name in ("ids", "clock", "counts", "hidden"):
            setattr(self, name, getattr(self, name)[rows])

    def _read(self) -> Tensor:
        longest = int(self.counts.max())
        hidden: Tensor = self.net(self.ids[:, :longest], clock=self.clock[:, :longest])  # (B, T, D)
        return hidden[torch.arange(len(hidden), device=hidden.device), self.counts - 1]


def _joined(first: Stream, then: Stream) -> Stream:
    ids, clock = np.concatenate([first.ids, then.ids]), np.concatenate([first.clock, then.clock])
    return Stream(ids.astype(np.int64), clock.astype(np.float32))


def _left_aligned(prompts: Sequence[Stream], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
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
