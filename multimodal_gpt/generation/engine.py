"""Ids in, ids out: prefill, then one token per row and step, legal by construction.

B rows, T tokens, D width, C scored columns. A row's ids depend on its own prompt, target and key
alone, whatever batch it is in (but for the last bit of the model's arithmetic, which may differ
between batch sizes).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from multimodal_gpt.generation.clock import Clock
from multimodal_gpt.generation.history import History
from multimodal_gpt.generation.memory import Cached, Recomputed, joined
from multimodal_gpt.generation.rules import Rules
from multimodal_gpt.generation.sampling import Sampling, bits, exact, guided, legal_logits, sample, uniforms
from multimodal_gpt.generation.target import Member, Target
from multimodal_gpt.generation.walker import Plan, Walker
from multimodal_gpt.model.decoding import Decoder
from multimodal_gpt.model.gpt import GPT
from multimodal_gpt.stream.arrangement import Stream
from multimodal_gpt.stream.vocabulary import PAD

ROWS = 32
"""Most rows that are decoded together."""
REFILL = 0.97
"""Rows that wait take the places of finished ones once at most this share still goes on.

Reading one prompt of 8 ids takes 5 ms, copying what is kept of it to its place 0.2, a step of 32 rows 10. 96
rows of 16 to 512 ids take 786 steps, 7.6 s (at 0.9 8.6, at 0.75 9.9); in batches of 32, one after the other,
1,406 and 9.0 s (1.4 M parameters, float32, one thread of a busy CPU).
"""
SHRINK = 0.75
"""Where none wait, finished rows are dropped once at most this share still goes on."""


@dataclass(frozen=True, eq=False)
class Row:
    """One thing to make.

    Args:
        prompt: global ids that come before the target, and their times.
        target: the part to make.
        budget: tokens that the part may take, its tags and END included.
        key: numbers that decide the row's randomness.
        unguided: the prompt without what is to guide the row more, or less, than it would; None = the same.
            What takes turns with the target guides it too.
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
        self.rules = Rules(members)
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
        if not rows:
            return []
        batch = _Batch(self, rows, how, cached=cached)
        left = batch.left
        for _ in batch.run():
            if progress is not None and batch.left < left:
                progress(left - batch.left)
            left = batch.left
        return batch.made()

    @torch.inference_mode()
    def follow(self, row: Row, how: Sampling = Sampling()) -> Generator[int, None, Made]:  # noqa: B008
        """Make one row's target and give each id as soon as it is taken, those of its program's prefix left
        out. What `generate` makes of the row alone is returned at last.
        """
        batch = _Batch(self, [row], how)
        for ids in batch.run():
            yield int(ids[0])
        return batch.made()[0]


class _Batch:
    """Rows in the making, at most ROWS at once, and those that wait for a place; lives for one call."""

    def __init__(self, engine: Engine, rows: Sequence[Row], how: Sampling, *, cached: bool = True) -> None:
        self.net, self.device, self.how, self.asked = engine.net, engine.device, how, rows
        self.plan = Plan(engine.rules, [r.target for r in rows], [r.budget for r in rows])
        self._check()
        self.left = len(rows)  # still to be finished
        self.waiting, self.found = deque(range(len(rows))), dict[int, Made]()
        self.table = self.net.embedding.weight
        self.head = self.table[self._on(self.plan.columns)]  # (C - 1, D)
        warmth = np.array([how.temperature_of(m.name) for m in self.plan.wanted])
        self.temperature = None if how.even else self._exact(warmth)
        places = min(ROWS, len(rows))
        self.uniform = self._exact(np.zeros((max(r.budget for r in rows), places)))  # (steps, B), a ring
        self.step = 0
        self.numbers = [-1] * places  # of the row in each place, -1 where there is none
        self.clock = Clock(self.plan) if self.net.config.clock_angles else None
        decoder = Decoder(self.net) if cached else None  # made here: the weights may change between calls
        self.memory = self._new_memory(decoder, places)
        self.unguided = None if how.guidance in (None, 1.0) else self._new_memory(decoder, places)
        self.trail = _Trail(places, len(self.plan.wanted))
        self.history = self._new_history(places) if how.minds_repeats else None
        self.walker = Walker(self.plan, range(places))
        self._begin(list(range(places)))

    def _check(self) -> None:
        for number, row in enumerate(self.asked):
            if self.plan.least(number) > row.budget:
                raise ValueError(
                    f"row {number} needs {self.plan.least(number)} tokens, its budget is {row.budget}"
                )

    def _new_memory(self, decoder: Decoder | None, places: int) -> Cached | Recomputed:
        width = max(r.budget + max(len(p.ids) for p in (r.prompt, r.unguided) if p) for r in self.asked)
        return Recomputed(self.net, places, width) if decoder is None else Cached(decoder, places, width)

    def _new_history(self, places: int) -> History:
        longest = max(row.budget for row in self.asked)
        return History(places, longest, len(self.plan.columns) - 1, self.how, self.device)

    def _exact(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, dtype=exact(self.device), device=self.device)

    def _on(self, array: np.ndarray) -> Tensor:
        """An array of the host where the network is."""
        return torch.from_numpy(array).to(self.device)

    def run(self) -> Iterator[np.ndarray]:
        """Go to the end of all rows, and give what each place takes, (B,) ids, step by step."""
        while self.left:
            ids = self._choose()
            times = None if self.clock is None else self.clock.times(self.walker, ids)
            own = self.walker.belongs(ids) if self.plan.given else np.ones_like(self.walker.done)
            self.walker.advance(ids)
            going = ~self.walker.done
            count = int(going.sum())
            self.left = count + len(self.waiting)
            yield ids
            self.step += 1
            if 0 < count <= SHRINK * len(going) and not self.waiting:
                rows = self._shrink(going)
                ids, own, going = ids[rows], own[rows], going[rows]
                times = None if times is None else times[rows]
            if count:
                self._add(ids, times, going, own)
            if self.waiting and count <= REFILL * len(going):
                ended = np.flatnonzero(self.walker.done).tolist()
                self._begin(ended[: len(self.waiting)])

    def _add(self, ids: np.ndarray, times: np.ndarray | None, going: np.ndarray, own: np.ndarray) -> None:
        """The network reads what every row has taken, (B,) each; `own`: what it would have taken alone."""
        token, clock = self._on(ids), None if times is None else self._on(times)
        self.memory.add(token, clock, self._on(going))
        if self.unguided is not None:
            self.unguided.add(token, clock, self._on(going & own), pauses=bool(self.plan.given))

    def _choose(self) -> np.ndarray:
        """(B,) next ids; also writes down what they cost."""
        walker, how = self.walker, self.how
        may, member = walker.allowed(), walker.current
        allowed = self._on(may)
        legal = legal_logits(self._scores(self.memory.hidden), allowed)
        likely = wanted = legal.log_softmax(-1)
        if self.unguided is not None and how.guidance is not None:
            scores = self._scores(self.unguided.hidden, alone=True)
            without = legal_logits(scores, allowed).log_softmax(-1)
            wanted = guided(likely, without, how.guidance)
        if self.history is not None:
            wanted = self.history.held_back(legal if self.unguided is None else wanted)
        column = sample(wanted, self.uniform[self.step % len(self.uniform)], self.warmth(member), how)
        if self.history is not None:
            self.history.add(column)
        ids = walker.ids(column.cpu().numpy())
        self.trail.add(ids, member, bits(likely, column), np.count_nonzero(may, axis=1))
        return ids

    def _scores(self, hidden: Tensor, *, alone: bool = False) -> Tensor:
        """(B, C) logits of the columns from hidden (B, D): only what could come is scored.

        `alone`: hidden states of what is wanted without what takes turns with it. There something else leads
        out of a stretch: the next tag of its own, or whatever begins its next chunk or ends it.
        """
        scores = F.linear(hidden, self.head)
        if alone and self.plan.leaving is not None:
            way_out = scores[:, self._on(self.plan.leaving)].logsumexp(1, keepdim=True)
        else:
            ids = self.walker.own_way_out if alone else self.walker.way_out
            way_out = (hidden * F.embedding(self._on(ids), self.table)).sum(-1, keepdim=True)
        return torch.cat([scores, way_out], dim=1).float()

    def warmth(self, member: np.ndarray) -> Tensor | float:
        """Temperatures of the rows, by the member (B,) whose ids they are to draw."""
        if self.temperature is None:
            return self.how.temperature_of("")
        return self.temperature[self._on(member)]

    def _begin(self, places: list[int]) -> None:
        """Rows that wait take these places; what has been made there is kept."""
        self._collect(places)
        rows = torch.tensor(places, device=self.device)
        numbers = [self.waiting.popleft() for _ in places]
        following = [self.waiting[0]] if self.waiting else []
        prompts = [self._prompts(number) for number in [*numbers, *following]]
        for which, memory in enumerate((self.memory, self.unguided)):
            if memory is not None:
                chosen = [pair[which] for pair in prompts]
                memory.put(rows, chosen[: len(numbers)], chosen[-1] if following else None)
        self.walker.put(places, Walker(self.plan, numbers))
        if self.clock is not None:
            self.clock.put(places, numbers)
        if self.history is not None:
            self.history.clear(rows)
        fresh = np.stack([uniforms(self.asked[n].key, len(self.uniform)) for n in numbers], axis=1)
        self.uniform.index_copy_(1, rows, self._exact(np.roll(fresh, self.step, axis=0)))
        for place, number in zip(places, numbers, strict=True):
            self.numbers[place] = number

    def _prompts(self, number: int) -> tuple[Stream, Stream]:
        """What stands before the first choice of a row, and the same unguided."""
        row, program = self.asked[number], self.plan.programs[number]
        return joined(row.prompt, program.prefix), joined(row.unguided or row.prompt, program.own_prefix)

    def _shrink(self, going: np.ndarray) -> list[int]:
        """Drop the rows that have ended; gives the old places of those that go on."""
        ended = np.flatnonzero(~going).tolist()
        self._collect(ended)
        count = len(going) - len(ended)
        order = list(range(count))
        for hole, last in zip(ended, (n for n in range(count, len(going)) if n not in ended), strict=False):
            order[hole] = last  # so most keep their places
        for host in (self.walker, self.trail, self.clock):
            if host is not None:
                host.keep(order)
        rows = torch.tensor(order, device=self.device)
        for part in (self.memory, self.unguided, self.history):
            if part is not None:
                part.keep(rows)
        self.numbers, self.uniform = [self.numbers[place] for place in order], self.uniform[:, rows]
        return order

    def _collect(self, places: Sequence[int]) -> None:
        """Write down what has been made in these places, and free them."""
        self.trail.write_down()
        names = [m.name for m in self.plan.wanted]
        for place in places:
            number, self.numbers[place] = self.numbers[place], -1
            ids, cost, free = self.trail.pop(place)
            if number >= 0:
                whole = np.concatenate([self.plan.programs[number].prefix.ids, ids]).astype(np.int32)
                self.found[number] = Made(whole, dict(zip(names, cost, strict=True)), free)

    def made(self) -> list[Made]:
        """What has been made of every row, once all steps are done."""
        self._collect(range(len(self.numbers)))
        return [self.found[number] for number in range(len(self.asked))]


class _Trail:
    """What was chosen in every place and what it cost, brought to the host when rows change."""

    def __init__(self, places: int, members: int) -> None:
        self.ids: list[list[np.ndarray]] = [[] for _ in range(places)]
        self.bits = np.zeros((places, members))
        self.free = np.zeros(places, dtype=np.int64)
        self.steps: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.costs: list[Tensor] = []

    def add(self, ids: np.ndarray, member: np.ndarray, bits: Tensor, legal: np.ndarray) -> None:
        """One step, (B,) each: the ids, whose they are, what they cost, and how many could have come."""
        self.steps.append((ids, member, legal))
        self.costs.append(bits)

    def write_down(self) -> None:
        """Bring the costs of the steps since the last time to the host."""
        if not self.steps:
            return
        ids, member, legal = (np.stack(column, axis=1) for column in zip(*self.steps, strict=True))
        for place, row in enumerate(ids):
            self.ids[place].append(row[row != PAD])
        bits = torch.stack(self.costs, dim=1).cpu().numpy()
        np.add.at(self.bits, (np.arange(len(ids))[:, None], member), bits)
        self.free += (legal > 1).sum(1)
        self.steps, self.costs = [], []

    def pop(self, place: int) -> tuple[np.ndarray, list[float], int]:
        """Ids, bits by member and number of free ids of one place, which begins anew."""
        ids = np.concatenate([np.zeros(0, dtype=np.int64), *self.ids[place]])
        told = ids, self.bits[place].tolist(), int(self.free[place])
        self.ids[place], self.bits[place], self.free[place] = [], 0, 0
        return told

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order."""
        self.ids = [self.ids[place] for place in rows]
        self.bits, self.free = self.bits[rows], self.free[rows]
