"""Segments to bytes and back: the network tells what is likely, the coder writes what comes.

Encoder and decoder take the same steps: the same windows of the same lanes, token by token with a cache, in
float64. A long segment without times is cut into lanes that go side by side.

L lanes, T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from multimodal_gpt.compression.arithmetic import Reader, Writer, weigh
from multimodal_gpt.compression.lane import Lane
from multimodal_gpt.compression.walk import Walk
from multimodal_gpt.errors import UserError
from multimodal_gpt.generation.session import Run
from multimodal_gpt.generation.target import Member
from multimodal_gpt.model.cache import KVCache
from multimodal_gpt.model.decoding import Decoder
from multimodal_gpt.model.gpt import GPT
from multimodal_gpt.model.rotary import clock_numbers, wave_numbers
from multimodal_gpt.stream.arrangement import (
    Arrangement,
    Layout,
    Part,
    from_stream,
    sizes,
    stream_length,
    to_stream,
)
from multimodal_gpt.stream.vocabulary import Encoded

Progress = Callable[[int], object]
"""Called with how many tokens were just taken."""
LANES = 32
"""Most lanes of a segment."""
CONTEXTS_PER_LANE = 8
"""Least length of a lane: at its beginning the network knows nothing of what was before."""
SPARE_BITS = 80
"""Bits by which what is read may seem to hold more than the bytes that are there: the coder's state."""
BEHIND = 3
"""A window holds so many tokens less than the context. Training puts `<end>` and `<eod>` behind what it cuts
at the context, so a network expects them there and nothing else."""
MOST_BITS = 23
"""No choice takes the coder more bits than about so many, however unlikely the network finds it."""


class Differs(Exception):
    """What is read can't be what was written: the predictions of this machine are not the same."""


@dataclass(frozen=True)
class Plan:
    """What a decoder has to know of the stream besides the network.

    Args:
        order: its parts from first to last.
        tokens: between `<doc>` and `<eod>`, of all lanes.
        states: of each lane, the state of the grammar in which it begins; a lane has no `<end>`, its length
            is known. None where the stream is one piece and goes to its `<end>`.
    """

    order: tuple[Part, ...]
    tokens: int
    states: tuple[int, ...] = ()

    def walks(self, members: Mapping[str, Member]) -> list[Walk]:
        """A walk for each lane; lengths of lanes differ by at most one."""
        mine = {name: members[name] for part in self.order for name in part}
        if not self.states:
            return [Walk(mine, self.order)]
        lengths = _lengths(self.tokens - len(self.states), len(self.states))
        return [Walk(mine, self.order, (state, n)) for state, n in zip(self.states, lengths, strict=True)]


@dataclass(frozen=True, eq=False)
class Coded:
    """A stream as bytes.

    Args:
        plan: what the decoder has to know besides.
        payload: the bytes.
        bits: by modality, -log2 of the probability of its ids among the legal ones, before rounding; a
            tag or `<end>` that closes a chunk is charged to the modality whose chunk it closes.
    """

    plan: Plan
    payload: bytes
    bits: Mapping[str, float]


def encode(run: Run, segments: Mapping[str, Encoded], progress: Progress = lambda _: None) -> Coded:
    """The segments of one document as bytes. Raises UserError where ids break the grammar of their modality.

    They are laid out as the arrangement of the recipe has it that makes them cheapest.
    """
    order = cheapest(run, segments)
    plan, streams = _planned(run, segments, order)
    writer, bits = Writer(), dict.fromkeys(segments, 0.0)
    taken = [iter(stream) for stream in streams]

    def choose(number: int, lane: Lane, legal: np.ndarray, scores: np.ndarray) -> int:
        token = int(next(taken[number]))
        found = np.flatnonzero(legal == token)
        if not len(found):
            raise UserError(f"token {lane.count} breaks the grammar of its modality", _charged(lane, token))
        if len(legal) > 1:
            writer.put(int(found[0]), weigh(scores))
            bits[_charged(lane, token)] += _cost(scores, int(found[0]))
        return token

    _go(run, plan, choose, progress)
    return Coded(plan, writer.finish(), bits)


def decode(
    run: Run, plan: Plan, payload: bytes, progress: Progress = lambda _: None
) -> dict[str, np.ndarray]:
    """Local ids by modality, the reverse of `encode`. Raises Differs where the bytes don't fit the plan."""
    reader = Reader(payload)
    left = 8.0 * len(payload) + SPARE_BITS

    def choose(number: int, lane: Lane, legal: np.ndarray, scores: np.ndarray) -> int:
        nonlocal left
        if len(legal) == 1:
            return int(legal[0])
        try:
            index = reader.take(weigh(scores))
        except ValueError as error:
            raise Differs(str(error)) from error
        left -= 0.99 * min(_cost(scores, index), MOST_BITS)
        if left < 0:
            raise Differs("more was read than there is")
        return int(legal[index])

    lanes = _go(run, plan, choose, progress)
    if sum(lane.count for lane in lanes) != plan.tokens:
        raise Differs("the stream ends too early")
    pieces = [from_stream(run.vocabulary, np.array(lane.ids)) for lane in lanes]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _go(
    run: Run,
    plan: Plan,
    choose: Callable[[int, Lane, np.ndarray, np.ndarray], int],
    progress: Progress,
) -> list[Lane]:
    """Walk all lanes to their ends, side by side; `choose` says which of the legal ids comes."""
    predictor = Predictor(run.net)
    lanes = [Lane(walk, predictor.width) for walk in plan.walks(run.engine.rules.members)]
    for _ in range(-(-plan.tokens // len(lanes))):
        scores = predictor.predict(lanes)
        going = [number for number, lane in enumerate(lanes) if not lane.walk.done]
        for number in going:
            legal = lanes[number].walk.legal()
            if not len(legal):
                raise Differs("nothing may follow")
            lanes[number].add(choose(number, lanes[number], legal, scores[number, legal]))
        progress(len(going))
        if all(lane.walk.done for lane in lanes):
            return lanes
    raise Differs("the stream does not end")


class Predictor:
    """Scores of all ids that may follow lanes of equal length, by a copy of the network in float64."""

    def __init__(self, net: GPT) -> None:
        self.net = _exact(net)
        self.width = max(BEHIND, net.config.context - BEHIND)  # of a window, tokens
        self.device = self.net.embedding.weight.device
        self.decoder = Decoder(self.net)
        self.cache: KVCache | None = None

    @torch.inference_mode()
    def predict(self, lanes: Sequence[Lane]) -> np.ndarray:
        """(L, V) float64 nats, not normalised. Each time every lane holds one more token than before."""
        cache = self.cache
        if cache is None or cache.filled == cache.length:
            windows = [lane.window() for lane in lanes]
            ids = self._tensor(np.stack([w.ids for w in windows]), torch.long)
            clock = self._tensor(np.stack([w.clock for w in windows]), torch.float32)
            self.cache = cache = self.net.new_cache(len(lanes), self.width)
            hidden = self.net(ids, cache=cache, clock=clock)[:, -1]  # (L, D)
        else:
            token, time = zip(*(lane.last for lane in lanes), strict=True)
            clock = self._tensor(np.array(time), torch.float32)
            hidden = self.decoder.step(self._tensor(np.array(token), torch.long), cache, clock)
        scores: np.ndarray = (hidden @ self.net.embedding.weight.t()).cpu().numpy()
        return scores

    def _tensor(self, values: np.ndarray, dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(values, dtype=dtype, device=self.device)


def _exact(net: GPT) -> GPT:
    """A copy in float64, its angles too: computed in float32 they differ in the last digit by machine."""
    twin, config = copy.deepcopy(net).double().eval(), net.config
    timed = config.clock_angles
    waves = wave_numbers(config.head_width // 2 - timed, config.rotary_base, torch.float64)
    twin.waves = waves.to(net.waves.device)
    twin.beats = clock_numbers(timed, torch.float64).to(net.beats.device)
    return twin


def _cost(scores: np.ndarray, index: int) -> float:
    """Bits of one of the ids with these scores (N,)."""
    top = scores.max()
    return float((np.log(np.exp(scores - top).sum()) + top - scores[index]) / np.log(2.0))


def _charged(lane: Lane, token: int) -> str:
    """The modality that pays for an id."""
    walk = lane.walk
    if walk.current is not None:
        return walk.current.name
    return next((m.name for m in walk.members.values() if m.tag == token), walk.part[0])


# Laying out


def orders(arrangements: Sequence[Arrangement], names: Sequence[str]) -> list[tuple[Part, ...]]:
    """How arrangements lay out these modalities, those that hold most of them; what they lack follows."""
    found: dict[tuple[Part, ...], int] = {}
    for arrangement in arrangements:
        parts = (tuple(n for n in part if n in names) for part in arrangement.order)
        order = tuple(part for part in parts if part)
        if order and arrangement.weight > 0:
            found[order] = sum(map(len, order))
    most = max(found.values(), default=0)
    best = [order for order, held in found.items() if held == most] or [()]
    return [(*o, *((n,) for n in names if not any(n in part for part in o))) for o in best]


def tokens_of(run: Run, segments: Mapping[str, Encoded]) -> int:
    """About how many tokens their stream has: lanes repeat a tag."""
    return stream_length(sizes(segments), Layout(orders(run.arrangements, list(segments))[0]))


def cheapest(run: Run, segments: Mapping[str, Encoded]) -> tuple[Part, ...]:
    """The order in which the beginning of the stream, as much as the network sees at once, takes least."""
    found = orders(run.arrangements, [n for n in run.vocabulary.names if n in segments])
    return found[0] if len(found) == 1 else min(found, key=lambda order: _price(run, segments, order))


@torch.inference_mode()
def _price(run: Run, segments: Mapping[str, Encoded], order: tuple[Part, ...]) -> float:
    """Nats per token, about: what is forced costs too."""
    stream = to_stream(run.vocabulary, segments, Layout(order))
    device, most = run.net.embedding.weight.device, run.net.config.context
    ids = torch.as_tensor(stream.ids[None, :most].astype(np.int64), device=device)
    clock = torch.as_tensor(stream.clock[None, :most], device=device)
    return float(run.net.loss(run.net(ids[:, :-1], clock=clock[:, :-1]), ids[:, 1:]))


def _planned(
    run: Run, segments: Mapping[str, Encoded], order: tuple[Part, ...]
) -> tuple[Plan, list[np.ndarray]]:
    """The plan of a stream, and the ids of each lane after `<doc>`.

    Training cuts long segments without times anywhere and puts `<end>` there, so a network expects one at any
    place: with lanes, which have none, a text of 19 contexts takes 4 % less.
    """
    ids = to_stream(run.vocabulary, segments, Layout(order)).ids[1:-1]
    name = order[0][0]
    member = run.engine.rules.members[name]
    context = run.net.config.context
    if len(ids) <= context - 2 or order != ((name,),) or member.clock is not None:
        return Plan(order, len(ids)), [ids]
    count = max(1, min(LANES, len(ids) // (CONTEXTS_PER_LANE * context)))
    tag, own = ids[:1], ids[1:-1]
    ends = list(itertools.accumulate(_lengths(len(own), count)))
    pieces = np.split(own, ends[:-1])
    states = [0]
    for piece in pieces[:-1]:
        states.append(member.grammar.walk(piece - member.first, states[-1]))
    plan = Plan(order, len(own) + count, tuple(states))
    return plan, [np.concatenate([tag, piece]) for piece in pieces]


def _lengths(total: int, lanes: int) -> list[int]:
    return [total // lanes + (lane < total % lanes) for lane in range(lanes)]
