"""Windows: where a document that is laid out may be cut, and what a window shows.

Segments that have a time are cut at chunk borders, and those that have none are repeated in every window,
cut short where together they take more than half the context. A document without any time is cut along its
longest segment.

Letters: T context, n steps between the edges of a document.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from multimodal_gpt.stream.arrangement import Layout, crop, sizes
from multimodal_gpt.stream.vocabulary import Encoded

NEAR = 1e-4
"""Quarter notes: chunks that begin closer together begin at once."""
HARD_STEPS = 128
"""A chunk longer than a window is cut at multiples of T / 128 tokens: under 1 % of a row is wasted."""
WHOLE = (0.0, np.inf)


@dataclass(frozen=True)
class Header:
    """What every window of a cut document repeats: segments that can't be cut by time, each at most
    `limit` tokens.

    `body`: the one modality without time that is cut into windows because nothing has a time; ""
    otherwise.
    """

    limit: int
    body: str

    def holds(self, segment: Encoded) -> bool:
        """Whether the segment is repeated, not cut into windows."""
        return not has_bars(segment) and segment.modality != self.body

    def shorten(self, segment: Encoded) -> Encoded:
        """The first `limit` tokens."""
        return segment if len(segment.ids) <= self.limit else part_of(segment, 0, self.limit)


def has_bars(segment: Encoded) -> bool:
    """Whether the segment can be cut by time."""
    return segment.clock is not None and len(segment.cuts) > 0


def header_of(segments: Mapping[str, Encoded], context: int) -> Header:
    """The header of a document that is cut: together at most half the context, shorter segments first."""
    timeless = {n: len(s.ids) for n, s in segments.items() if not has_bars(s)}
    body = ""
    if len(timeless) == len(segments):
        body = max(timeless, key=lambda name: timeless[name])
        del timeless[body]
    left, limit = context // 2, context
    for i, length in enumerate(sorted(timeless.values())):
        limit = left // (len(timeless) - i)
        if length > limit:
            break
        left, limit = left - length, context
    return Header(max(1, limit), body)


def part_of(segment: Encoded, first: int, last: int) -> Encoded:
    """Tokens first .. last - 1 of a segment, its clock set back to 0; units shared out by tokens, rounded."""
    ids = segment.ids[first:last]
    clock = segment.clock[first:last] if segment.clock is not None else None
    if clock is not None and len(clock):
        clock = clock - clock[0]
    cuts = segment.cuts[(segment.cuts >= first) & (segment.cuts < last)] - first
    return Encoded(segment.modality, ids, clock, cuts, round(segment.units * len(ids) / len(segment.ids)))


def window_of(segments: Mapping[str, Encoded], start: float, stop: float, context: int) -> dict[str, Encoded]:
    """What a window shows of the segments of a document, the clock set back to 0.

    Args:
        start, stop: chunks that begin in [start, stop) quarter notes (tokens of the longest segment, where
            nothing has a time); stop is inf for a whole document.
    """
    if np.isinf(stop):
        return dict(segments)
    header = header_of(segments, context)
    shown: dict[str, Encoded] = {}
    for name, segment in segments.items():
        if header.holds(segment):
            shown[name] = header.shorten(segment)
        elif has_bars(segment):
            shown |= crop({name: segment}, start, stop)
        else:
            shown[name] = part_of(segment, int(start), int(stop))
    return shown


@dataclass(frozen=True, eq=False)
class _Scale:
    """Tokens (n + 1,) of a segment before each edge; chunks that begin before (below) or up to an edge."""

    tokens: np.ndarray
    below: np.ndarray
    upto: np.ndarray
    begun: int  # 1 where a window begins inside a chunk

    def between(self, first: int, last: int) -> tuple[int, int]:
        tokens = int(self.tokens[last] - self.tokens[first])
        return tokens, int(self.below[last] - self.upto[first]) + self.begun


@dataclass(frozen=True, eq=False)
class Ruler:
    """Where a laid-out document may be cut, and how long windows between these edges get.

    Args:
        edges: n + 1 places: quarter notes, or tokens where nothing has a time.
        cost: n + 1 tokens of the stream up to each edge; a window from edge a to edge b takes at most
            fixed + cost[b] - cost[a], its gap included.
        heads: (tokens, chunks) of every segment that is repeated.
        body: of every segment that is cut.
        shortened: a repeated segment loses tokens.
    """

    edges: list[float]
    cost: list[int]
    fixed: int
    heads: dict[str, tuple[int, int]]
    body: dict[str, _Scale]
    shortened: bool

    @property
    def steps(self) -> int:
        """How many: n."""
        return len(self.cost) - 1

    def widest(self, first: int, end: int, room: int, least: int = 0) -> int:
        """The last edge of the widest window from edge `first` that fits `room` tokens; between it and edge
        `end` is nothing, or at least `least` tokens. `first` where no window has at least `least` tokens.
        """
        cost = self.cost
        last = max(first, bisect_right(cost, cost[first] + room - self.fixed) - 1)
        if last >= end:
            return end
        if cost[end] - cost[last] < least:
            last = bisect_right(cost, cost[end] - least) - 1
        return last if last > first and cost[last] - cost[first] >= least else first

    def length(self, first: int, last: int) -> int:
        """The most tokens that the window between two edges takes."""
        return self.fixed + self.cost[last] - self.cost[first]

    def shown(self, first: int, last: int) -> dict[str, tuple[int, int]]:
        """Tokens and chunks of every modality in the window between two edges."""
        body = {name: scale.between(first, last) for name, scale in self.body.items()}
        return {**self.heads, **{name: sizes for name, sizes in body.items() if sizes[0]}}


def ruler_of(segments: Mapping[str, Encoded], layout: Layout, context: int) -> Ruler:
    """The ruler of a document that is laid out; a gap may lie anywhere in its modality."""
    header = header_of(segments, context)
    heads = {n: header.shorten(s) for n, s in segments.items() if header.holds(s)}
    body = [s for s in segments.values() if not header.holds(s)]
    mixed = {n for part in layout.order if len(part) > 1 for n in part}
    tags = dict.fromkeys(mixed, 1)
    fixed = 2 + 2 * len(layout.order)
    if layout.gap is not None:
        # A gap of w chunks costs 4 tokens, or 2 + 2 w where modalities take turns; w is at most half of all.
        name = layout.gap.modality
        fixed += 2 if name in mixed else 4
        tags |= {name: 2} if name in mixed else {}
    shown = sizes(heads)
    fixed += sum(tokens + tags.get(n, 0) * chunks for n, (tokens, chunks) in shown.items())
    edges = _edges(body, max(1, context - fixed), max(1, context // HARD_STEPS))
    scales = {s.modality: _scale(s, edges) for s in body}
    fixed += sum(tags.get(n, 0) * scale.begun for n, scale in scales.items())
    cost = sum(s.tokens + tags.get(n, 0) * s.below for n, s in scales.items())
    shortened = any(len(heads[n].ids) < len(segments[n].ids) for n in heads)
    return Ruler(edges.tolist(), np.asarray(cost).tolist(), fixed, shown, scales, shortened)


def _edges(body: Sequence[Encoded], room: int, step: int) -> np.ndarray:
    """Where the body may be cut: times in quarter notes, else tokens of its longest segment; the end last."""
    if not has_bars(body[0]):
        pairs = zip(body[0].edges[:-1].tolist(), body[0].edges[1:].tolist(), strict=True)
        inner = [p for a, b in pairs for p in (range(a, b, step) if b - a > room else (a,))]
        return np.array([*inner, len(body[0].ids)], dtype=np.float64)
    times = np.sort(np.concatenate([s.times for s in body]))
    times = times[np.concatenate(([True], times[1:] - times[:-1] > NEAR))]
    return np.append(times, times[-1] + 1.0)


def _scale(segment: Encoded, edges: np.ndarray) -> _Scale:
    if has_bars(segment):
        chunks = np.searchsorted(segment.times, edges - NEAR)
        return _Scale(segment.edges[chunks], chunks, chunks, 0)
    places, inner = edges.astype(np.int64), segment.edges[1:-1]
    return _Scale(places, np.searchsorted(inner, places), np.searchsorted(inner, places, side="right"), 1)
