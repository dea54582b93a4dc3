"""Arrangements: in which order, dropped, interleaved or with a hole, the segments of a document meet the
model.

A plain part of a stream is `<tag> ids <end>`. An interleaved part is `<mix>`, then the chunks (bars) of its
modalities by time, each announced by its tag, then one `<end>`. A hole takes chunks out of one modality and
gives them at the end, after `<fill>`, so that the model learns to fill a gap with both sides known (Bavarian
et al. 2022, fill in the middle).

    <doc> <a> ... <end> <mix> <b> bar 1 <c> bar 1 <b> bar 2 <c> bar 2 <end> <eod>
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from multimodal_gpt.errors import UserError, nearest
from multimodal_gpt.stream.tokenizer import Tokenizer, has_times
from multimodal_gpt.stream.vocabulary import DOC, END, EOD, FILL, HOLE, MIX, Encoded, Range, Vocabulary

Part = tuple[str, ...]
"""Modalities of one part: one name = plain, several = interleaved, earlier names first at equal times."""


@dataclass(frozen=True)
class Arrangement:
    """One way to lay out a document, sampled with probability proportional to `weight`.

    Args:
        order: parts from first to last.
        drop: probability that a segment is left out; at least one always stays.
        shuffle: take the parts in random order instead.
        hole: probability that a gap is cut into one modality that has at least three chunks.
    """

    order: tuple[Part, ...]
    weight: float = 1.0
    drop: float = 0.0
    shuffle: bool = False
    hole: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """All modalities, in order."""
        return tuple(name for part in self.order for name in part)


@dataclass(frozen=True)
class Gap:
    """Chunks `start` to `stop - 1` of a modality, taken out and given at the end."""

    modality: str
    start: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """A sampled arrangement: what the stream of one document will look like."""

    order: tuple[Part, ...]
    gap: Gap | None = None


class Ranged(Protocol):
    """What laying out a stream needs of a vocabulary: light enough to be sent to a worker process."""

    @property
    def ranges(self) -> Mapping[str, Range]:
        """Where the ids of each modality lie."""
        ...


@dataclass(frozen=True, eq=False)
class Stream:
    """Global ids (T,) int32, and the clock (T,) float32 in quarter notes: 0 for specials, tags and timeless
    ids.
    """

    ids: np.ndarray
    clock: np.ndarray


def parse_order(order: Sequence[str], known: Sequence[str]) -> tuple[Part, ...]:
    """`["a", "b+c"]` -> `(("a",), ("b", "c"))`. Raises UserError on unknown or double names."""
    parts = tuple(tuple(name.strip() for name in item.split("+")) for item in order)
    names = [name for part in parts for name in part]
    for name in names:
        if name not in known:
            raise UserError(f"unknown modality '{name}'", "order", nearest(name, known))
    if not names or len(set(names)) != len(names):
        raise UserError(f"every modality may stand once and one must: {list(order)}", "order")
    return parts


def default_arrangements(vocabulary: Vocabulary) -> list[Arrangement]:
    """What a recipe that names no arrangement gets: modalities with times take turns, each first once.

    Half of the documents hold those alone, the others have the timeless modalities before or after them.
    Taking turns beat one segment after the other on every figure in `recipes/own_folder.yaml`. Without two
    modalities that have times: all in random order, a tenth dropped.
    """
    timed = [name for name, tokenizer in vocabulary.tokenizers.items() if _takes_turns(tokenizer)]
    timeless = tuple((name,) for name in vocabulary.names if name not in timed)
    if len(timed) < 2:
        return [Arrangement(tuple((name,) for name in vocabulary.names), drop=0.1, shuffle=True)]
    found = []
    for first in range(len(timed)):
        turns = (tuple(timed[first:] + timed[:first]),)
        found.append(Arrangement(turns, weight=2.0, drop=0.25))
        if timeless:
            found.append(Arrangement((*timeless, *turns), drop=0.1))
            found.append(Arrangement((*turns, *timeless), drop=0.1))
    return found


def _takes_turns(tokenizer: Tokenizer) -> bool:
    return bool(tokenizer.grammar().cut.any()) and has_times(tokenizer)


def sample_layout(
    arrangements: Sequence[Arrangement], chunks: Mapping[str, int], rng: np.random.Generator
) -> Layout | None:
    """Draw a layout for a document that holds `chunks` (modality -> number of chunks).

    None where no arrangement names any of its modalities.
    """
    usable = [a for a in arrangements if a.weight > 0 and any(n in chunks for n in a.names)]
    if not usable:
        return None
    weights = np.array([a.weight for a in usable])
    chosen = usable[rng.choice(len(usable), p=weights / weights.sum())]
    names = [n for n in chosen.names if n in chunks]
    kept = {n for n in names if rng.random() >= chosen.drop} or {names[rng.integers(len(names))]}
    parts = [tuple(n for n in part if n in kept) for part in chosen.order]
    order = [part for part in parts if part]
    if chosen.shuffle:
        order = [order[i] for i in rng.permutation(len(order))]
    gap = _sample_gap({n: chunks[n] for n in kept}, rng) if rng.random() < chosen.hole else None
    return Layout(tuple(order), gap)


def _sample_gap(chunks: Mapping[str, int], rng: np.random.Generator) -> Gap | None:
    names = [n for n in sorted(chunks) if chunks[n] >= 3]
    if not names:
        return None
    name = names[rng.integers(len(names))]
    inner = chunks[name] - 1
    width = int(rng.integers(1, max(2, inner // 2 + 1)))
    start = int(rng.integers(1, inner - width + 1))
    return Gap(name, start, start + width)


def sizes(segments: Mapping[str, Encoded]) -> dict[str, tuple[int, int]]:
    """Tokens and chunks of each segment, as `stream_length` takes them."""
    return {name: (len(segment.ids), len(segment.edges) - 1) for name, segment in segments.items()}


def stream_length(lengths: Mapping[str, tuple[int, int]], layout: Layout) -> int:
    """Tokens of the stream of a document whose modalities hold (tokens, chunks), without building it."""
    total = 2
    for part in layout.order:
        total += 2 + sum(lengths[n][0] + (lengths[n][1] if len(part) > 1 else 0) for n in part)
    if layout.gap is not None:
        width = layout.gap.stop - layout.gap.start
        mixed = any(len(p) > 1 and layout.gap.modality in p for p in layout.order)
        total += 2 + (2 * width if mixed else 2)
    return total


def crop(segments: Mapping[str, Encoded], start: float, stop: float) -> dict[str, Encoded]:
    """The chunks that begin in [start, stop) quarter notes, with the clock set back to 0; timeless segments
    whole.

    A segment that has no chunk in the window is left out. Units are shared out by tokens, rounded.
    """
    cropped = {}
    for name, segment in segments.items():
        if segment.clock is None or not len(segment.cuts):
            cropped[name] = segment
            continue
        inside = np.flatnonzero((segment.times >= start - 1e-4) & (segment.times < stop - 1e-4))
        if not len(inside):
            continue
        first, last = segment.edges[inside[0]], segment.edges[inside[-1] + 1]
        cuts = segment.cuts[(segment.cuts >= first) & (segment.cuts < last)] - first
        units = round(segment.units * (last - first) / len(segment.ids))
        cropped[name] = Encoded(name, segment.ids[first:last], segment.clock[first:last] - start, cuts, units)
    return cropped


def to_stream(vocabulary: Ranged, segments: Mapping[str, Encoded], layout: Layout) -> Stream:
    """The token stream of a document, `<doc> ... <eod>`; the reverse is `from_stream`."""
    writer = _Writer(vocabulary)
    writer.special(DOC)
    for part in layout.order:
        write = writer.plain if len(part) == 1 else writer.mixed
        write([segments[n] for n in part], layout.gap)
        writer.special(END)
    if layout.gap is not None:
        writer.fill(segments[layout.gap.modality], layout)
    writer.special(EOD)
    return writer.stream()


class _Writer:
    """Collects pieces of ids and clock; one instance per stream."""

    def __init__(self, vocabulary: Ranged) -> None:
        self.ranges = vocabulary.ranges
        self.ids: list[np.ndarray] = []
        self.clock: list[np.ndarray] = []

    def special(self, token: int) -> None:
        self.ids.append(np.array([token], dtype=np.int32))
        self.clock.append(np.zeros(1, dtype=np.float32))

    def chunks(self, segment: Encoded, start: int, stop: int) -> None:
        first, last = segment.edges[start], segment.edges[stop]
        ids = segment.ids[first:last]
        self.ids.append((ids + self.ranges[segment.modality].first).astype(np.int32))
        self.clock.append(
            np.zeros(len(ids), np.float32) if segment.clock is None else segment.clock[first:last]
        )

    def plain(self, part: Sequence[Encoded], gap: Gap | None) -> None:
        (segment,) = part
        self.special(self.ranges[segment.modality].tag)
        count = len(segment.edges) - 1
        if gap is None or gap.modality != segment.modality:
            self.chunks(segment, 0, count)
            return
        self.chunks(segment, 0, gap.start)
        self.special(HOLE)
        self.chunks(segment, gap.stop, count)

    def mixed(self, part: Sequence[Encoded], gap: Gap | None) -> None:
        self.special(MIX)
        for index, chunk, _ in merge_chunks([s.times for s in part]):
            segment = part[index]
            self.special(self.ranges[segment.modality].tag)
            if gap is not None and gap.modality == segment.modality and gap.start <= chunk < gap.stop:
                self.special(HOLE)
            else:
                self.chunks(segment, chunk, chunk + 1)

    def fill(self, segment: Encoded, layout: Layout) -> None:
        gap = layout.gap
        if gap is None:
            return
        mixed = any(len(p) > 1 and gap.modality in p for p in layout.order)
        tag = self.ranges[gap.modality].tag
        self.special(FILL)
        for start in range(gap.start, gap.stop) if mixed else [gap.start]:
            self.special(tag)
            self.chunks(segment, start, start + 1 if mixed else gap.stop)
        self.special(END)

    def stream(self) -> Stream:
        return Stream(np.concatenate(self.ids), np.concatenate(self.clock).astype(np.float32))


def merge_chunks(times: Sequence[np.ndarray]) -> list[tuple[int, int, float]]:
    """Chunks of several segments in playing order: (segment, chunk, time), by time, then by segment."""
    items = [(round(float(t), 3), s, c) for s, starts in enumerate(times) for c, t in enumerate(starts)]
    return [(s, c, t) for t, s, c in sorted(items)]


def from_stream(vocabulary: Vocabulary, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Local ids by modality, in order of appearance, chunks joined and gaps filled: the reverse of
    `to_stream`.

    Raises UserError where the stream is not well formed.
    """
    tags = {r.tag: r.name for r in vocabulary.ranges.values()}
    pieces: dict[str, list[np.ndarray]] = {}
    holes: dict[str, list[int]] = {}
    name, filling = "", False
    body = np.asarray(ids)
    owners = vocabulary.owner(body)
    place = 0
    while place < len(body):
        token = int(body[place])
        if token in tags:
            name = tags[token]
            pieces.setdefault(name, [])
        elif owners[place] < 0:
            filling = filling or token == FILL
            if token == HOLE and name:
                holes.setdefault(name, []).append(len(pieces[name]))
                pieces[name].append(np.empty(0, np.int32))
        else:
            stop = _run_end(owners, body, place, tags)
            if not name or vocabulary.ranges[name].index != owners[place]:
                raise UserError(f"ids of another modality under <{name}> at place {place}", "stream")
            local = (body[place:stop] - vocabulary.ranges[name].first).astype(np.int32)
            if filling and not holes.get(name):
                raise UserError(f"<fill> without a <hole> in '{name}'", "stream")
            if filling:
                pieces[name][holes[name].pop(0)] = local
            else:
                pieces[name].append(local)
            place = stop
            continue
        place += 1
    return {n: np.concatenate(p) if p else np.empty(0, np.int32) for n, p in pieces.items()}


def _run_end(owners: np.ndarray, body: np.ndarray, place: int, tags: Mapping[int, str]) -> int:
    stop = place
    while stop < len(body) and owners[stop] == owners[place] and int(body[stop]) not in tags:
        stop += 1
    return stop
