"""The plan of an epoch: documents laid out anew and packed into rows of `context` tokens.

Documents that fit are packed whole, those that don't in windows as wide as the context. Then the emptiest
rows are taken apart and their documents cut into what is left of the others, windows before whole documents.
828 Nottingham tunes at T = 1024, a seventh of them longer: 90.7 % full without this second step, 99.1 % with
it; the long ones are in 448 windows instead of 295, and no tune is cut that fits.

Everything is a pure function of (seed, epoch): any process can plan any epoch.

Letters: T context, N appearances of documents, W windows of those that are cut, R rows.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from multimodal_gpt.data.layouts import GAP_CHUNKS, Layouts, Stock, draw, gap_within
from multimodal_gpt.data.rows import Piece
from multimodal_gpt.data.windows import WHOLE, Ruler, ruler_of
from multimodal_gpt.stream.arrangement import Gap, Layout, stream_length

OPEN = 8
"""Documents that are cut at the same time, so that one of them has a border where a row ends; measured:
1, 2, 8, 16 fill rows to 98.8, 98.9, 99.1, 99.3 %."""
LEAST = 16
"""No window shows less than T / 16 new tokens, where its document has more; measured: T / 8, T / 16, T / 32
fill rows to 98.3, 99.1, 99.3 %."""
CLOSE = 128
"""A row with T / 128 tokens left is full."""
WASTE = 0.01
"""So much padding is better than more cuts; measured: 0.5, 1, 1.5 % take 452, 448, 436 windows."""


@dataclass(frozen=True, eq=False)
class Plan:
    """The rows of one epoch. Row r holds the items order[offsets[r]:offsets[r + 1]]: i < N is an appearance
    as a whole, i >= N window i - N.

    Args:
        windows: (W,) of dtype `_window_type`.
        lengths: (N + W,) tokens of every item.
    """

    layouts: Layouts
    windows: np.ndarray
    lengths: np.ndarray
    order: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> list[Piece]:
        """The pieces of a row, in order."""
        return [self.piece(i) for i in self.order[self.offsets[index] : self.offsets[index + 1]].tolist()]

    def piece(self, item: int) -> Piece:
        """What an item shows."""
        drawn = self.layouts
        if item < len(drawn):
            index, shown, (start, stop), gap = item, drawn.kept[item], WHOLE, drawn.gap[item, 1:]
        else:
            window = self.windows[item - len(drawn)]
            index, shown, gap = int(window["appearance"]), window["shown"], window["gap"]
            start, stop = float(window["start"]), float(window["stop"])
        layout = drawn.layout(index, shown, int(gap[0]), int(gap[1]))
        segments = tuple(drawn.place[index][drawn.kept[index]].tolist())
        return Piece(int(drawn.document[index]), segments, layout, start, stop)

    @property
    def tokens(self) -> int:
        """Tokens in all rows."""
        return int(self.lengths[self.order].sum())

    @property
    def utilisation(self) -> float:
        """Share of all positions that hold a token."""
        return self.tokens / max(1, len(self) * self.layouts.stock.context)

    @property
    def repeated(self) -> float:
        """Share of all positions that hold what a cut repeats: headers and specials."""
        more = self.tokens - int(self.layouts.lengths.sum())
        return max(0, more) / max(1, len(self) * self.layouts.stock.context)

    @property
    def cut(self) -> np.ndarray:
        """(N,) bool: appearances that are cut into windows."""
        return self._of_windows(np.ones(len(self.windows), dtype=bool))

    @property
    def shortened(self) -> np.ndarray:
        """(N,) bool: appearances that lose tokens of a segment without time."""
        return self._of_windows(self.windows["shortened"])

    def _of_windows(self, marked: np.ndarray) -> np.ndarray:
        """(N,) bool: appearances of which a `marked` window stands in a row."""
        found = np.zeros(len(self.layouts), dtype=bool)
        used = self.order[self.order >= len(found)] - len(found)
        found[self.windows["appearance"][used[marked[used]]]] = True
        return found


def epoch_plan(stock: Stock, seed: int, epoch: int, *, fill: bool = True) -> Plan:
    """Lay out and pack every appearance of the epoch; every chunk that is laid out stands in one row.

    Without `fill` only documents that don't fit are cut, into windows as wide as the context.
    """
    drawn = draw(stock, seed, epoch)
    rng = np.random.Generator(np.random.PCG64DXSM([seed, epoch, 3]))
    shuffled = rng.permutation(len(drawn))
    fits = drawn.lengths[shuffled] <= stock.context
    cutter = _Cutter(drawn, rng)
    items = shuffled[fits].tolist()
    for appearance in shuffled[~fits].tolist():
        items += cutter.widest(appearance)
    rows = _pack_items(items, cutter.lengths(), stock.context)
    if fill:
        rows = _fill(rows, cutter)
    rows = [rows[i] for i in rng.permutation(len(rows))]
    offsets = np.concatenate(([0], np.cumsum([len(r) for r in rows], dtype=np.int64)))
    order = np.array([i for r in rows for i in r], dtype=np.int64)
    windows = np.array(cutter.windows, dtype=_window_type(stock))
    return Plan(drawn, windows, cutter.lengths(), order, offsets)


def pack(lengths: Sequence[int], context: int) -> list[list[int]]:
    """Best fit with boundaries, longest first: rows of indexes whose lengths add up to at most `context`,
    each index in one row, the fullest that has room for it.

    Nottingham tunes at T = 2048: 0.4 % padding, in the order they come in 1.9 %.
    """
    rows: list[list[int]] = []
    room: list[int] = []  # tokens left in open rows: each number once, sorted
    at: dict[int, list[int]] = {}  # tokens left -> open rows
    for index in np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist():
        place = bisect_left(room, lengths[index])
        if place < len(room):
            left = room[place]
            row = at[left].pop()
            if not at[left]:
                del at[left], room[place]
        else:
            left, row = context, len(rows)
            rows.append([])
        rows[row].append(index)
        left -= lengths[index]
        if left not in at:
            insort(room, left)
        at.setdefault(left, []).append(row)
    return rows


def _pack_items(items: Sequence[int], lengths: np.ndarray, context: int) -> list[list[int]]:
    rows = pack(lengths[items].tolist() if items else [], context)
    return [[items[i] for i in row] for row in rows]


def _window_type(stock: Stock) -> np.dtype[np.void]:
    """A window: which modalities it shows from `start` to `stop`; `gap`: first chunk and last + 1, or -1."""
    place = [("appearance", "i8"), ("start", "f8"), ("stop", "f8")]
    return np.dtype([*place, ("gap", "i4", (2,)), ("shown", "?", (len(stock.names),)), ("shortened", "?")])


_Window = tuple[int, float, float, tuple[int, int], tuple[bool, ...], bool]


@dataclass(eq=False)
class _Roll:
    """A part of an appearance that is being cut: what is before edge `first` is in rows already."""

    appearance: int
    layout: Layout
    ruler: Ruler
    first: int
    end: int


class _Cutter:
    """Cuts appearances of an epoch into windows, and collects these."""

    def __init__(self, drawn: Layouts, rng: np.random.Generator) -> None:
        self.drawn, self.rng, self.context = drawn, rng, drawn.stock.context
        self.least = max(1, self.context // LEAST)
        self.windows: list[_Window] = []
        self.spans: list[tuple[int, int]] = []
        self.sizes: list[int] = []

    def lengths(self) -> np.ndarray:
        """(N + W,) tokens of every item so far."""
        return np.concatenate((self.drawn.lengths, np.array(self.sizes, dtype=np.int64)))

    def length(self, item: int) -> int:
        """Tokens of an item."""
        n = len(self.drawn)
        return int(self.drawn.lengths[item]) if item < n else self.sizes[item - n]

    def roll(self, item: int) -> _Roll:
        """Begin to cut an appearance, or a window once more."""
        drawn, stock, number = self.drawn, self.drawn.stock, item - len(self.drawn)
        appearance = self.windows[number][0] if number >= 0 else item
        segments = stock.shards.segments(int(drawn.document[appearance]))
        kept = drawn.kept[appearance]
        chosen = {segments[i].modality: segments[i] for i in drawn.place[appearance][kept].tolist()}
        _, *gap = drawn.gap[appearance].tolist()
        layout = drawn.layout(appearance, kept, *gap)
        ruler = ruler_of(chosen, layout, self.context)
        first, end = self.spans[number] if number >= 0 else (0, ruler.steps)
        return _Roll(appearance, layout, ruler, first, end)

    def take(self, roll: _Roll, last: int) -> int:
        """The item that shows what stands before edge `last`."""
        drawn, ruler, first = self.drawn, roll.ruler, roll.first
        roll.first = last
        if last - first == ruler.steps and drawn.lengths[roll.appearance] <= self.context:
            return roll.appearance
        sizes = ruler.shown(first, last)
        parts = (tuple(n for n in part if n in sizes) for part in roll.layout.order)
        layout = Layout(tuple(part for part in parts if part), self._gap(roll.layout.gap, sizes))
        gap = (layout.gap.start, layout.gap.stop) if layout.gap else (-1, -1)
        shown = tuple(name in sizes for name in drawn.stock.names)
        place = (ruler.edges[first], ruler.edges[last])
        self.windows.append((roll.appearance, *place, gap, shown, ruler.shortened))
        self.spans.append((first, last))
        self.sizes.append(min(stream_length(sizes, layout), self.context))
        return len(drawn) + len(self.windows) - 1

    def _gap(self, whole: Gap | None, sizes: dict[str, tuple[int, int]]) -> Gap | None:
        """The gap of a window, in the modality that has one in the whole document."""
        if whole is None or sizes.get(whole.modality, (0, 0))[1] < GAP_CHUNKS:
            return None
        start, stop = gap_within(np.array(sizes[whole.modality][1]), *self.rng.random(2))
        return Gap(whole.modality, int(start), int(stop))

    def widest(self, appearance: int) -> Iterator[int]:
        """Cut an appearance into items as long as the context allows."""
        roll = self.roll(appearance)
        while roll.first < roll.end:
            last = roll.ruler.widest(roll.first, roll.end, self.context, self.least)
            yield self.take(roll, last if last > roll.first else self.forced(roll, self.context))

    def forced(self, roll: _Roll, room: int) -> int:
        """The last edge of a window however little it shows, and even if it is longer than `room`."""
        return max(roll.first + 1, roll.ruler.widest(roll.first, roll.end, room))


def _fill(rows: list[list[int]], cutter: _Cutter) -> list[list[int]]:
    """Take some rows apart to fill the room in all others, where that saves rows.

    The fullest rows are left alone, as long as their padding is together less than WASTE.
    """
    lengths, context = cutter.lengths(), cutter.context
    room = np.array([context - lengths[row].sum() for row in rows], dtype=np.int64)
    enough = (len(rows) * context - int(room.sum())) * (1 + WASTE)
    if len(rows) <= ceil(enough / context):
        return rows
    order = np.argsort(room, kind="stable")
    alone = int(np.searchsorted(np.cumsum(room[order]), WASTE * enough, side="right"))
    kept = np.ones(len(rows), dtype=bool)
    done = np.zeros(len(rows), dtype=bool)
    filler = _Filler(cutter, _supply(rows, room, cutter.drawn, kept, done))
    for index in order[alone:].tolist():
        if kept[index] and room[index] > cutter.least:
            done[index] = True
            rows[index] += filler.fill(int(room[index]))
    rows = [rows[i] for i in np.flatnonzero(kept)]
    while row := filler.fill(context, last=True):
        rows.append(row)
    return rows


def _supply(
    rows: list[list[int]], room: np.ndarray, drawn: Layouts, kept: np.ndarray, done: np.ndarray
) -> Iterator[list[int]]:
    """Rows to take apart: those of windows alone, then others that may be cut, the emptiest first."""
    windows = np.array([min(row) >= len(drawn) for row in rows], dtype=bool)
    for index in np.lexsort((-room, ~windows)).tolist():
        if not done[index] and all(i >= len(drawn) or drawn.cuttable[i] for i in rows[index]):
            kept[index] = False
            yield rows[index]


class _Filler:
    """Fills rows from the front of OPEN documents at a time."""

    def __init__(self, cutter: _Cutter, supply: Iterator[list[int]]) -> None:
        self.cutter, self.supply = cutter, supply
        self.least, self.close = cutter.least, max(1, cutter.context // CLOSE)
        self.waiting: list[int] = []
        self.open: list[_Roll] = []

    def fill(self, room: int, last: bool = False) -> list[int]:
        """Items for a row with so much room. The `last` rows use up what is taken apart, and get an item
        however hard it has to be cut.
        """
        items: list[int] = []
        while room > self.close:
            while len(self.open) < OPEN and self._more(last):
                self.open.append(self.cutter.roll(self.waiting.pop()))
            found = self._best(room)
            if found is None and last and not items and self.open:
                found = self.open[0], self.cutter.forced(self.open[0], room)
            if found is None:
                break
            roll, edge = found
            items.append(self.cutter.take(roll, edge))
            room -= self.cutter.length(items[-1])
            if edge == roll.end:
                self.open.remove(roll)
        return items

    def _more(self, last: bool) -> bool:
        if not self.waiting and not last:
            self.waiting = list(next(self.supply, ()))
        return bool(self.waiting)

    def _best(self, room: int) -> tuple[_Roll, int] | None:
        """Whose front to take, up to which edge: what fills the row, else what ends its document and leaves
        room for another, else the longest.
        """
        best, found = (False, False, 0), None
        for roll in self.open:
            edge = roll.ruler.widest(roll.first, roll.end, room, self.least)
            if edge == roll.first:
                continue
            length = roll.ruler.length(roll.first, edge)
            left = room - length
            value = (left <= self.close, edge == roll.end and left >= 2 * self.least, length)
            if value > best:
                best, found = value, (roll, edge)
            if best[0]:
                break
        return found
