"""Windows: documents cut, where they must be, so that every arrangement of a window fits the context.

A document that fits is one window. In a longer one the segments that have a time are cut at chunk
borders, and those that have none are repeated in every window, cut short where together they take more
than half the context. A long document without any time is cut along its longest segment.

Letters: D documents, M modalities, S segments, W windows, E segments of all windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from multimodal_gpt.data.shards import Lengths, Shards
from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.arrangement import Arrangement, crop
from multimodal_gpt.stream.vocabulary import Encoded

NEAR = 1e-4
"""Quarter notes: chunks that begin closer together begin at once."""
WHOLE = (0.0, np.inf)

Entry = tuple[int, int, int]
"""A segment in a window: index of its modality, tokens, chunks."""


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of a split. Arrays of length W, but for the flat (E,) ones.

    Args:
        document: index in the shards.
        start, stop: chunks that begin in [start, stop) quarter notes (tokens of the longest segment, where
            nothing has a time); stop is inf for a whole document.
        offsets: (W + 1,), window w holds the segments offsets[w] .. offsets[w + 1] - 1.
        modality, tokens, chunks: (E,) of each segment: index, and how many.
        shortened: documents that lose tokens of a segment without time.
        unused: documents that no arrangement names.
    """

    names: tuple[str, ...]
    arrangements: tuple[Arrangement, ...]
    context: int
    document: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    offsets: np.ndarray
    modality: np.ndarray
    tokens: np.ndarray
    chunks: np.ndarray
    shortened: int
    unused: int

    def __len__(self) -> int:
        return len(self.document)

    @cached_property
    def used(self) -> frozenset[str]:
        """Modalities that an arrangement names."""
        return frozenset(n for a in self.arrangements if a.weight > 0 for n in a.names)


@dataclass(frozen=True, eq=False)
class _Bound:
    """A bound of an arrangement's stream length: extra + 2 per part present + weighted sums over (M,)."""

    parts: np.ndarray  # (P, M) bool
    tokens: np.ndarray
    chunks: np.ndarray
    extra: int

    def fixed(self, present: np.ndarray) -> np.ndarray:
        """Tokens that do not depend on lengths, for (..., M) bool of present modalities."""
        parts = (present[..., None, :] & self.parts).any(axis=-1).sum(axis=-1)
        return np.asarray(2 * parts + self.extra)

    def weigh(self, tokens: np.ndarray, chunks: np.ndarray) -> np.ndarray:
        """Tokens that depend on lengths, for (..., M) tokens and chunks."""
        return np.asarray(tokens @ self.tokens + chunks @ self.chunks)


def _bounds(arrangements: Sequence[Arrangement], names: Sequence[str]) -> list[_Bound]:
    bounds: list[_Bound] = []
    for arrangement in arrangements:
        if arrangement.weight <= 0:
            continue
        parts = np.array([[n in part for n in names] for part in arrangement.order])
        several = np.array([len(part) > 1 for part in arrangement.order])
        mixed = np.asarray((parts & several[:, None]).any(axis=0), dtype=np.int64)
        named = np.asarray(parts.any(axis=0), dtype=np.int64)
        gap = 4 if arrangement.hole > 0 else 0
        bounds.append(_Bound(parts, named, mixed, 2 + gap))
        for modality in np.flatnonzero(mixed) if gap else ():
            # A gap of w chunks in an interleaved part costs 2 + 2 w tokens, w at most half of all chunks.
            more = mixed + (np.arange(len(names)) == modality)
            bounds.append(_Bound(parts, named, more, 2 + gap))
    return bounds


def find_windows(shards: Shards, arrangements: Sequence[Arrangement], context: int) -> Windows:
    """Cut the documents of a split into the fewest windows that fit `context` tokens in every
    arrangement.

    Raises UserError where no arrangement names a modality that any document has.
    """
    names, lengths = shards.names, shards.lengths
    bounds = _bounds(arrangements, names)
    named = np.array([any(b.tokens[m] for b in bounds) for m in range(len(names))], dtype=bool)
    tokens, chunks = (_largest(lengths, sizes, len(names)) for sizes in (lengths.tokens, lengths.chunks))
    present = (tokens > 0) & named  # (D, M)
    worst = np.max([b.fixed(present) + b.weigh(tokens, chunks) for b in bounds], axis=0)
    usable = present.any(axis=1)
    if len(shards) and not usable.any():
        raise UserError("no document holds a modality that an arrangement names", "arrangements")
    builder = _Builder(named)
    cutter = _Cutter(names, named, bounds, context)
    for document in np.flatnonzero(usable).tolist():
        if worst[document] <= context:
            first, stop = lengths.offsets[document], lengths.offsets[document + 1]
            builder.add(
                document,
                WHOLE,
                [(m, t, c) for m, t, c in _entries(lengths, first, stop) if named[m]],
            )
        else:
            for place, entries in cutter.cut(shards.segments(document)):
                builder.add(document, place, entries)
    shortened, unused = cutter.shortened, int((~usable).sum())
    return builder.windows(names, tuple(arrangements), context, shortened, unused)


def _largest(lengths: Lengths, sizes: np.ndarray, modalities: int) -> np.ndarray:
    """(D, M): the largest size among the alternatives of each modality, 0 where it is missing."""
    count = np.diff(lengths.offsets)
    table = np.zeros((len(count), modalities), dtype=np.int64)
    np.maximum.at(table, (np.repeat(np.arange(len(count)), count), lengths.modality), sizes)
    return table


def _entries(lengths: Lengths, first: int, stop: int) -> Iterator[Entry]:
    arrays = (lengths.modality, lengths.tokens, lengths.chunks)
    return zip(*(a[first:stop].tolist() for a in arrays), strict=True)


class _Builder:
    """Collects windows one after the other."""

    def __init__(self, named: np.ndarray) -> None:
        self.named = named
        self.document: list[int] = []
        self.places: list[tuple[float, float]] = []
        self.counts: list[int] = []
        self.entries: list[Entry] = []

    def add(self, document: int, place: tuple[float, float], entries: Sequence[Entry]) -> None:
        self.document.append(document)
        self.places.append(place)
        self.counts.append(len(entries))
        self.entries += entries

    def windows(
        self,
        names: tuple[str, ...],
        arrangements: tuple[Arrangement, ...],
        context: int,
        shortened: int,
        unused: int,
    ) -> Windows:
        start, stop = np.array(self.places, dtype=np.float64).reshape(-1, 2).T
        modality, tokens, chunks = np.array(self.entries, dtype=np.int64).reshape(-1, 3).T
        offsets = np.concatenate(([0], np.cumsum(self.counts, dtype=np.int64)))
        document = np.array(self.document, dtype=np.int64)
        arrays = (document, start, stop, offsets, modality, tokens, chunks)
        return Windows(names, arrangements, context, *arrays, shortened, unused)


class _Cutter:
    """Cuts documents that are too long; counts those that lose tokens by it."""

    def __init__(
        self, names: Sequence[str], named: np.ndarray, bounds: Sequence[_Bound], context: int
    ) -> None:
        self.names, self.bounds, self.context = names, bounds, context
        self.used = {n for n, used in zip(names, named, strict=True) if used}
        self.index = {name: i for i, name in enumerate(names)}
        self.shortened = 0

    def cut(self, segments: Sequence[Encoded]) -> Iterator[tuple[tuple[float, float], list[Entry]]]:
        """Place and entries of each window of a document."""
        segments = [s for s in segments if s.modality in self.used]
        header = header_of(segments, self.context)
        self.shortened += any(len(header.shorten(s).ids) < len(s.ids) for s in segments if header.holds(s))
        heads = [header.shorten(s) for s in segments if header.holds(s)]
        body = [s for s in segments if not header.holds(s)]
        room = [self.context - fixed for fixed in self._fixed(segments, heads)]
        edges = _body_edges(body, max(1, min(room) - 2))
        sizes = [_sizes_between(s, edges) for s in body]
        repeated = [(self.index[s.modality], len(s.ids), len(s.edges) - 1) for s in heads]
        for first, last in self._spans(body, sizes, room):
            place = (float(edges[first]), float(edges[last]))
            entries = list(repeated)
            for segment, (tokens, chunks) in zip(body, sizes, strict=True):
                shown = _exact(segment, place, tokens[first:last], chunks[first:last])
                entries += [(self.index[segment.modality], *shown)] if shown[0] else []
            yield place, entries

    def _fixed(self, segments: Sequence[Encoded], heads: Sequence[Encoded]) -> list[int]:
        """Per bound: tokens that every window holds, whatever part of the body it shows."""
        present = np.zeros(len(self.names), dtype=bool)
        present[[self.index[s.modality] for s in segments]] = True
        tokens = self._per_modality(heads, [np.array([len(s.ids)]) for s in heads], 1)[0]
        chunks = self._per_modality(heads, [np.array([len(s.edges) - 1]) for s in heads], 1)[0]
        return [int(b.fixed(present) + b.weigh(tokens, chunks)) for b in self.bounds]

    def _per_modality(self, segments: Sequence[Encoded], sizes: Sequence[np.ndarray], n: int) -> np.ndarray:
        """(n, M): the largest size among alternatives, at each of n places."""
        table = np.zeros((n, len(self.names)), dtype=np.int64)
        for segment, size in zip(segments, sizes, strict=True):
            column = self.index[segment.modality]
            table[:, column] = np.maximum(table[:, column], size)
        return table

    def _spans(
        self,
        body: Sequence[Encoded],
        sizes: Sequence[tuple[np.ndarray, np.ndarray]],
        room: Sequence[int],
    ) -> Iterator[tuple[int, int]]:
        """Windows as [first, last) of the places between edges, each as wide as every bound allows."""
        n = len(sizes[0][0])
        tokens = self._per_modality(body, [t for t, _ in sizes], n)
        chunks = self._per_modality(body, [c for _, c in sizes], n)
        sums = [np.concatenate(([0], np.cumsum(b.weigh(tokens, chunks)))) for b in self.bounds]
        first = 0
        while first < n:
            fits = (
                np.searchsorted(s, s[first] + r, side="right") - 1 for s, r in zip(sums, room, strict=True)
            )
            last = max(first + 1, int(min(fits)))
            yield first, last
            first = last


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


def header_of(segments: Sequence[Encoded], context: int) -> Header:
    """The header of a document that is cut: together at most half the context, shorter segments first."""
    longest: dict[str, int] = {}
    for s in segments:
        if not has_bars(s):
            longest[s.modality] = max(longest.get(s.modality, 0), len(s.ids))
    body = ""
    if not any(map(has_bars, segments)):
        body = max(longest, key=lambda name: longest[name])
        del longest[body]
    left, limit = context // 2, context
    for i, length in enumerate(sorted(longest.values())):
        limit = left // (len(longest) - i)
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


def _exact(
    segment: Encoded, place: tuple[float, float], tokens: np.ndarray, chunks: np.ndarray
) -> tuple[int, int]:
    """Tokens and chunks that a window shows of a body segment."""
    if has_bars(segment):
        return int(tokens.sum()), int(chunks.sum())
    part = part_of(segment, int(place[0]), int(place[1]))
    return len(part.ids), len(part.edges) - 1


def _body_edges(body: Sequence[Encoded], room: int) -> np.ndarray:
    """Where the body may be cut: times in quarter notes, else tokens of its longest segment; the end last."""
    if not has_bars(body[0]):
        longest = max(body, key=lambda s: len(s.ids))
        pairs = zip(longest.edges[:-1].tolist(), longest.edges[1:].tolist(), strict=True)
        return np.array(
            [p for a, b in pairs for p in range(a, b, room)] + [len(longest.ids)], dtype=np.float64
        )
    times = np.unique(np.concatenate([s.times for s in body]))
    times = times[np.concatenate(([True], np.diff(times) > NEAR))]
    return np.concatenate((times, [times[-1] + 1.0]))


def _sizes_between(segment: Encoded, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and chunks of a body segment between each two edges."""
    n = len(edges) - 1
    if not has_bars(segment):
        within = np.minimum(edges.astype(np.int64), len(segment.ids))
        tokens = np.diff(within)
        begins = np.clip(np.searchsorted(edges, segment.edges[:-1], side="right") - 1, 0, n - 1)
        chunks = np.bincount(begins, minlength=n)
        return tokens, np.where(tokens > 0, np.maximum(chunks, 1), 0)
    place = np.clip(np.searchsorted(edges, segment.times + NEAR, side="right") - 1, 0, n - 1)
    tokens = np.bincount(place, weights=np.diff(segment.edges), minlength=n).astype(np.int64)
    return tokens, np.bincount(place, minlength=n)


def window_segments(
    segments: Sequence[Encoded], start: float, stop: float, used: frozenset[str], context: int
) -> list[Encoded]:
    """What a window shows of the `used` segments of a document, the clock set back to 0."""
    segments = [s for s in segments if s.modality in used]
    if np.isinf(stop):
        return segments
    header = header_of(segments, context)
    shown: list[Encoded] = []
    for segment in segments:
        if header.holds(segment):
            shown.append(header.shorten(segment))
        elif not has_bars(segment):
            part = part_of(segment, int(start), int(stop))
            shown += [part] if len(part.ids) else []
        else:
            shown += crop({segment.modality: segment}, start, stop).values()
    return shown
