"""How many bits a segment costs a model, whole and tokenizer-free, alone or knowing other segments.

Only the target's own tokens are charged, every one of them: its ids and the token that closes each of its
chunks. What the stream gives (other modalities, tags) is not predicted: the softmax runs over the target's
ids and the closing tokens alone. Bits divided by units (notes, chords, characters) do not depend on the
tokenization.

Letters: T tokens, V vocabulary.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from multimodal_gpt.data.windows import has_bars, part_of
from multimodal_gpt.errors import UserError
from multimodal_gpt.model.gpt import GPT
from multimodal_gpt.stream.arrangement import Layout, Part, Stream, crop, sizes, stream_length, to_stream
from multimodal_gpt.stream.vocabulary import END, Encoded, Vocabulary

LN2 = float(np.log(2.0))
CLOSED = 2
"""Tokens around a segment that stands by itself: its tag and `<end>`."""


@dataclass(frozen=True)
class Window:
    """Chunks beginning in [start, stop) quarter notes are seen, those from `charged` on are scored.

    Of a target without times: all but its first `skip` tokens. `more`: it goes on after the window.
    """

    start: float
    charged: float
    stop: float
    skip: int = 0
    more: bool = False


WHOLE = Window(-np.inf, -np.inf, np.inf)
"""The window of a piece that fits the context as it is."""


def segment_bits(
    net: GPT, vocabulary: Vocabulary, segments: Mapping[str, Encoded], order: Sequence[Part], target: str
) -> float:
    """Bits of the whole target segment in a stream laid out by `order`.

    A piece longer than the model's context is scored through windows that overlap by half, each token once.
    What has no time is shown, or shows, the beginning of what has one.
    Raises UserError where not even one chunk of the target fits the context.
    """
    layout = _laid_out(order, segments)
    if segments[target].clock is None and tokens_of(segments, order) > net.config.context:
        return _timeless_bits(net, vocabulary, segments, layout, target)
    total = 0.0
    for window in _windows(segments, layout, target, net.config.context):
        seen = segments if np.isinf(window.start) else crop(segments, window.start, window.stop)
        if target in seen:
            total += float(charge(net, vocabulary, seen, layout.order, target, window).bits.sum())
    return total


@dataclass(frozen=True, eq=False)
class Charges:
    """The tokens of a target that are charged in one stream.

    Args:
        stream: what the model saw.
        places: (N,) int64 where the charged tokens stand in it, ascending.
        own: (N,) bool, whether each is one of the target's own ids or closes a chunk.
        bits: (N,) float64 that each costs.
    """

    stream: Stream
    places: np.ndarray
    own: np.ndarray
    bits: np.ndarray


@torch.no_grad()
def charge(
    net: GPT,
    vocabulary: Vocabulary,
    seen: Mapping[str, Encoded],
    order: Sequence[Part],
    target: str,
    window: Window = WHOLE,
) -> Charges:
    """What each token of the target costs in the stream of what is seen of it, laid out by `order`."""
    stream = to_stream(vocabulary, seen, _laid_out(order, seen))
    device = next(net.parameters()).device
    ids = torch.from_numpy(stream.ids.astype(np.int64)).to(device)
    position = torch.arange(len(ids), device=device)
    clock = torch.from_numpy(stream.clock).to(device)
    logits = net.logits(net(ids[None], position[None], clock=clock[None]))[0]  # (T, V)
    own, closing = charged_tokens(vocabulary, stream.ids, target)
    if window.more:  # its end is not here
        closing &= stream.ids != END
    times = stream.clock.astype(np.float64) + (0.0 if np.isinf(window.start) else window.start)
    times[1:] = np.where(closing[1:], times[:-1], times[1:])
    places = np.flatnonzero((own | closing) & (times >= window.charged - 1e-4))[window.skip :]
    at = torch.from_numpy(places).to(device)
    allowed = torch.full((logits.shape[-1],), float("-inf"), device=device)
    allowed[torch.from_numpy(answer_ids(vocabulary, target)).to(device)] = 0.0
    scores = torch.log_softmax(logits[at - 1].double() + allowed, dim=-1)
    bits = -scores.gather(1, ids[at, None])[:, 0] / LN2
    return Charges(stream, places, own[places], bits.cpu().numpy())


def charged_tokens(vocabulary: Vocabulary, ids: np.ndarray, target: str) -> tuple[np.ndarray, np.ndarray]:
    """Two (T,) bool: the target's own ids, and the token right after each run of them, which closes a
    chunk.
    """
    place = vocabulary.range(target)
    own = (ids >= place.first) & (ids < place.stop)
    closing = np.zeros_like(own)
    closing[1:] = own[:-1] & ~own[1:]
    return own, closing


def answer_ids(vocabulary: Vocabulary, target: str) -> np.ndarray:
    """Global ids that may answer at a charged place: the target's own, `<end>`, and every tag (a change of
    turns).
    """
    place = vocabulary.range(target)
    tags = [r.tag for r in vocabulary.ranges.values()]
    return np.array([END, *tags, *range(place.first, place.stop)], dtype=np.int64)


def _timeless_bits(
    net: GPT, vocabulary: Vocabulary, segments: Mapping[str, Encoded], layout: Layout, target: str
) -> float:
    """Bits of a target that can't be cut by time: stretches of it that overlap by half, each behind as much
    of what is known as half the context holds, or all that a short target leaves.
    """
    goal, context = segments[target], net.config.context
    known = {name: segment for name, segment in segments.items() if name != target}
    known = _beginning(known, layout, max(context // 2, context - len(goal.ids) - CLOSED))
    width = context - tokens_of(known, layout.order) - CLOSED
    total, done = 0.0, 0
    while done < len(goal.ids):
        first = max(0, done - width // 2) if len(goal.ids) > width else 0
        stop = min(first + width, len(goal.ids))
        window = Window(-np.inf, -np.inf, np.inf, done - first, stop < len(goal.ids))
        seen = {**known, target: part_of(goal, first, stop)}
        total += float(charge(net, vocabulary, seen, layout.order, target, window).bits.sum())
        done = stop
    return total


def _beginning(known: Mapping[str, Encoded], layout: Layout, room: int) -> dict[str, Encoded]:
    """As many chunks of what is known, from its beginning, as fit so many tokens; what has no time is cut."""
    if not known or tokens_of(known, layout.order) <= room:
        return dict(known)
    timeless = [name for name, segment in known.items() if not has_bars(segment)]
    short = {n: part_of(s, 0, room // (2 * len(timeless))) if n in timeless else s for n, s in known.items()}
    edges = np.unique(np.concatenate([s.times for s in short.values()]))
    fitting = bisect_left(edges, True, key=lambda stop: not _fits(short, layout, 0.0, stop, room))
    return crop(short, 0.0, edges[max(0, fitting - 1)])


def _windows(segments: Mapping[str, Encoded], layout: Layout, target: str, context: int) -> list[Window]:
    if tokens_of(segments, layout.order) <= context:
        return [WHOLE]
    times = segments[target].times
    windows: list[Window] = []
    done = 0
    while done < len(times):
        first = _earliest(segments, layout, times, done, context)
        last = _latest(segments, layout, times, first, context)
        if last <= done:
            raise UserError(
                f"a chunk of '{target}' and its context need more than {context} tokens", "likelihood"
            )
        stop = times[last] if last < len(times) else np.inf
        start, charged = (times[first], times[done]) if done else (0.0, -np.inf)
        windows.append(Window(start, charged, stop, more=bool(np.isfinite(stop))))
        done = last
    return windows


def _latest(
    segments: Mapping[str, Encoded], layout: Layout, times: np.ndarray, first: int, context: int
) -> int:
    """One past the last chunk such that chunks first .. last - 1 fit the context."""
    low, high = first, len(times)
    while low < high:
        middle = (low + high + 1) // 2
        stop = times[middle] if middle < len(times) else np.inf
        low, high = (
            (middle, high) if _fits(segments, layout, times[first], stop, context) else (low, middle - 1)
        )
    return low


def _earliest(
    segments: Mapping[str, Encoded], layout: Layout, times: np.ndarray, done: int, context: int
) -> int:
    """First chunk of the window that scores from `done` on: as far back as half the context allows."""
    first = done
    while first > 0 and _fits(segments, layout, times[first - 1], times[done], context // 2):
        first -= 1
    return first


def _fits(segments: Mapping[str, Encoded], layout: Layout, start: float, stop: float, context: int) -> bool:
    return tokens_of(crop(segments, start, stop), layout.order) <= context


def tokens_of(seen: Mapping[str, Encoded], order: Sequence[Part]) -> int:
    """Tokens of the stream of what is there of an order."""
    return stream_length(sizes(seen), _laid_out(order, seen))


def _laid_out(order: Sequence[Part], seen: Mapping[str, Encoded]) -> Layout:
    """The parts of an order that are there."""
    present = (tuple(n for n in part if n in seen) for part in order)
    return Layout(tuple(part for part in present if part))
