"""Where every row of a batch stands, and which ids may come next.

B rows, C scored columns, E free stretches, M wanted members, K rounds that may still be added, N chunks,
S states, V local ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from multimodal_gpt.generation.closing import FAR
from multimodal_gpt.generation.rules import DEEPEST, Rules
from multimodal_gpt.generation.target import NEAR, Target, build_program, is_counted, is_whole
from multimodal_gpt.stream.vocabulary import END, PAD

FIELDS = {
    "forced": PAD,
    "forced_clock": 0,
    "stop": FAR,  # no row comes there
    "member": 0,
    "left": 0,
    "owed": 0,
    "round_end": 0,
    "lasts": np.nan,
    "chunks": np.nan,
    "own": False,
    "own_next": PAD,
}
"""What a walk knows of its rows' programs, and what is beyond their ends."""
STANDING = ("total", "count", "begun", "place", "budget", "stretch", "state", "fresh", "length")
"""Where its rows stand."""


class Plan:
    """Targets of one kind, ready to be walked: programs, columns and tables.

    Args:
        targets: one per row; they differ in what is given only.
        budget: tokens that the walk of each row may take, its prefix included.
    """

    def __init__(self, rules: Rules, targets: Sequence[Target], budget: Sequence[int]) -> None:
        first, members = targets[0], rules.members
        self.wanted = [members[name] for name in first.wanted]
        self.given = tuple(first.given)
        self.budget = list(budget)
        asked = dict.fromkeys(zip(targets, budget, strict=True))  # rows of one wish share their target
        made = {one: build_program(one[0], members, one[1]) for one in asked}
        self.programs = [made[one] for one in zip(targets, budget, strict=True)]
        self.counted = any(is_counted(first, m) for m in self.wanted)
        deepest = max(max(int(p.left.max()), len(p.chunks)) for p in made.values()) + 3
        whole = [is_whole(first, m) and not self.counted for m in self.wanted]
        self.tables = [rules.tables(m.name, w, deepest) for m, w in zip(self.wanted, whole, strict=True)]
        self.open = bool(self.programs[0].again.any())
        self.reach = None if first.mixed else self.tables[0].reach
        self.rounds = min(DEEPEST - 4, 2 + max(t.rounds for t in self.tables)) if self.open else 1

    def least(self, row: int) -> int:
        """Fewest tokens of a legal walk of a row, its prefix included; FAR or more where there is none."""
        program = self.programs[row]
        if self.counted:
            return int(program.stop[0] + self.tables[0].between[len(program.chunks), 0] + 1)
        left = program.left[0] + (np.arange(len(self.wanted)) == program.member[0])
        costs = []
        for extra in range(self.rounds):
            chunks = (left + extra * program.again).tolist()
            ids = sum(int(t.between[k, 0]) for t, k in zip(self.tables, chunks, strict=True))
            costs.append(ids + int(program.stop[0] + program.owed[0] + extra * program.again.sum()))
        return min(costs)

    @cached_property
    def leaving(self) -> np.ndarray | None:
        """Columns that would end a chunk of the one wanted member if nothing took turns with it: what begins
        the next one, and END where that is no choice of its own here. None where a forced id ends it.
        """
        if not self.given or len(self.wanted) > 1 or not self.wanted[0].turns:
            return None
        cuts = np.flatnonzero(self.wanted[0].grammar.cut)
        return cuts if self.open else np.append(cuts, len(self.columns) - 1)

    @cached_property
    def columns(self) -> np.ndarray:
        """(C - 1,) global ids that are scored, the wanted members' and END. One more is the way out."""
        ids = [np.arange(m.first, m.first + m.grammar.size) for m in self.wanted]
        return np.concatenate([*ids, [END]])


@dataclass(frozen=True, eq=False, slots=True)
class _Stretch:
    """What does not change while a row is in a stretch of one member.

    Args:
        number: of the member.
        left, rest: for each number of added rounds, chunks left for the member, and tokens of all others.
        enough: with a larger budget all that the grammar allows can still be brought to an end.
        round_end: a round is over with it.
    """

    number: int
    left: list[int]
    rest: list[int]
    enough: int
    round_end: bool


class Walker:
    """The walk of rows of a plan, of all if None: `allowed` says what may come, `advance` takes what came.

    The walk begins after the prefix of a row's program and ends with END. Then a row only takes PAD. It is
    walked on the host, whatever the network runs on, and mostly row by row: its steps are many and small, and
    a lookup takes an eighth of the time of an operation on arrays of 16.
    """

    forced: np.ndarray
    forced_clock: np.ndarray
    stop: np.ndarray
    member: np.ndarray
    left: np.ndarray
    owed: np.ndarray
    round_end: np.ndarray
    lasts: np.ndarray
    chunks: np.ndarray
    own: np.ndarray
    own_next: np.ndarray

    def __init__(self, plan: Plan, rows: Sequence[int] | None = None) -> None:
        numbers = range(len(plan.programs)) if rows is None else rows
        programs = [plan.programs[number] for number in numbers]
        self.wanted, self.tables, self.columns = plan.wanted, plan.tables, plan.columns
        self.first = np.cumsum([0, *(m.grammar.size for m in plan.wanted)]).tolist()  # columns of each member
        self.reach, self.counted = plan.reach, plan.counted
        self.again = programs[0].again
        self.open = plan.open
        extra = np.arange(plan.rounds)
        self.more = (self.again[:, None] * extra).tolist()  # M lists of K, chunks that rounds add
        self.more_tags = (self.again.sum() * extra).tolist()
        for name, fill in FIELDS.items():  # (B, F + 1) or (B, E + 1) of a program, see there
            arrays = [getattr(p, "clock" if name == "forced_clock" else name) for p in programs]
            setattr(self, name, _stacked(arrays, fill))
        self.total = np.array([len(p.forced) for p in programs])
        self.place = self.stop[:, 0].copy()
        self.budget = np.array([plan.budget[n] for n in numbers]) - self.place
        self.stretch = np.zeros_like(self.place)
        self.state = np.zeros((len(programs), len(self.tables)), dtype=np.int64)
        self.fresh = np.ones(len(programs), dtype=bool)
        self.begun = np.zeros_like(self.place)  # chunks of a counted member
        self.count = np.array([len(p.chunks) for p in programs])
        self.length = self.lasts[:, 0].copy()  # of the turn, quarter notes; NaN until it is known
        self._look()

    def _look(self, moved: Iterable[int] | None = None) -> None:
        """Write down where rows stand, once these have moved, all if None: true until one of them comes to a
        forced id or its END.

        done (B,) bool: rows that have come to their END. current (B,): index of the wanted member whose
        stretch a row is in, or comes to next. inside (B,) bool: rows in a stretch; within: of each row its
        stretch, or None. way_out (B,): each row's next forced id: the only one that may come, or what leaves
        the stretch.
        """
        self.rows = np.arange(len(self.place))
        self.done = self.place >= self.total
        self.current = self.member[self.rows, self.stretch]
        self.inside = self.place == self.stop[self.rows, self.stretch]
        self.way_out = self.forced[self.rows, self.place]
        self.own_way_out = self.own_next[self.rows, self.place]
        if moved is None:
            self.within: list[_Stretch | None] = [None] * len(self.rows)
        for row in self.rows.tolist() if moved is None else moved:
            self.within[row] = self._stretch(row) if self.inside[row] else None

    def _stretch(self, row: int) -> _Stretch:
        """The stretch that a row is in. What others need to come to an end does not change meanwhile."""
        place, number, states = self.stretch[row], int(self.current[row]), self.state[row].tolist()
        left, owed = self.left[row, place].tolist(), int(self.owed[row, place])
        rest = [owed + tags for tags in self.more_tags]
        for other, table in enumerate(self.tables):
            if other != number:
                chunks = [left[other] + more for more in self.more[other]]
                rest = [r + int(table.between[k, states[other]]) for r, k in zip(rest, chunks, strict=True)]
        chunks, most = [left[number] + more for more in self.more[number]], self.tables[number].most
        enough = min(r + int(most[k]) for r, k in zip(rest, chunks, strict=True))
        return _Stretch(number, chunks, rest, enough, bool(self.round_end[row, place]))

    def allowed(self) -> np.ndarray:
        """(B, C) bool: columns that may come next and from which the row can still end within its budget."""
        if self.reach is not None:  # the same in one gather
            return self.reach[self.state[:, 0]] <= self.budget[:, None].astype(self.reach.dtype)
        if self.counted:
            return self._counted()
        legal = np.zeros((len(self.rows), len(self.columns) + 1), dtype=bool)
        where = zip(self.within, self.budget.tolist(), self.fresh.tolist(), self.state.tolist(), strict=True)
        for row, (here, budget, fresh, states) in enumerate(where):
            if here is None:
                legal[row, -1] = True
                continue
            number, state = here.number, states[here.number]
            ids = self._ids(here, state, budget, self.length[row], fresh=fresh)
            legal[row, self.first[number] : self.first[number + 1]] = ids
            if not fresh:
                pairs = zip(here.left, here.rest, strict=True)
                between = self.tables[number].between
                ends = (between[left, state] <= budget - rest for left, rest in pairs)
                over = next(ends)  # without a round more
                legal[row, -2] = over and here.round_end
                legal[row, -1] = (over and not here.round_end) or any(ends)
        return legal

    def _ids(self, here: _Stretch, state: int, budget: int, lasts: float, *, fresh: bool) -> np.ndarray:
        """(V,) local ids of a member that may come next in a row that is in a stretch of it, at its beginning
        (`fresh`) or further on, in a turn that `lasts` so long.
        """
        table, place = self.tables[here.number], int(fresh)
        legal = table.legal[place, state]
        if budget <= here.enough:
            after = table.next_state[state].clip(0)  # (V,)
            rounds = zip(here.left, here.rest, strict=True)
            fits = [table.inside[left, after] < budget - rest for left, rest in rounds]
            legal = legal & np.any(fits, axis=0)
        if table.spans is None or not table.tells[place, state]:
            return legal
        return _in_step(legal, table.spans, lasts)

    def _counted(self) -> np.ndarray:
        """(B, C) bool: `allowed` where one member is made in one stretch of a fixed number of chunks."""
        table = self.tables[0]
        after = table.next_state[self.state[:, 0]]  # (B, V)
        begun = self.begun[:, None] + table.cut
        left = self.count[:, None] - begun
        cost = table.inside[left.clip(0), after.clip(0)] + 2  # the id itself, and END
        legal = (after >= 0) & (left >= 0) & (cost <= self.budget[:, None])
        lasts = np.take_along_axis(self.chunks, (begun - 1).clip(0), axis=1)
        ids = legal if table.spans is None else _in_step(legal, table.spans, lasts)
        over = (self.begun == self.count) & (table.between[0, self.state[:, 0]] == 0)
        ends = (self.done | over)[:, None]
        return np.concatenate([ids & ~self.done[:, None], np.zeros_like(ends), ends], axis=1)

    def ids(self, column: np.ndarray) -> np.ndarray:
        """(B,) global ids of chosen columns (B,)."""
        leaves = len(self.columns)
        pairs = enumerate(column.tolist())
        return np.array([self.way_out[row] if c == leaves else self.columns[c] for row, c in pairs])

    def belongs(self, ids: np.ndarray) -> np.ndarray:
        """(B,) bool: next ids (B,) that would come too if nothing took turns with what is wanted."""
        return self.own[self.rows, self.place] | (self.inside & (ids != self.way_out))

    def advance(self, ids: np.ndarray) -> None:
        """Take the next id of every row, (B,): one that `allowed` allows, PAD for rows that have ended."""
        over, ways = self.done.tolist(), self.way_out.tolist()
        fresh, moved = np.zeros(len(over), dtype=bool), []
        for row, token in enumerate(ids.tolist()):
            here = self.within[row]
            if over[row]:
                continue
            if token == ways[row]:
                fresh[row] = True
                self._leave(row, here)
            elif here is not None and token == END:
                self.place[row] = self.total[row]
            elif here is not None:
                self._step(row, here.number, token)
                continue
            moved.append(row)
        self.budget = self.budget - ~self.done
        self.fresh = fresh
        if moved:
            self._look(moved)
            if self.reach is not None:
                self.state[self.done] = len(self.reach) - 1

    def _step(self, row: int, number: int, token: int) -> None:
        """A row takes an id of a member within a stretch."""
        table, local = self.tables[number], token - self.wanted[number].first
        self.state[row, number] = table.next_state[self.state[row, number], local]
        if self.counted:
            self.begun[row] += table.cut[local]
        if table.spans is not None and np.isnan(self.length[row]):
            self.length[row] = table.spans[local]

    def _leave(self, row: int, here: _Stretch | None) -> None:
        """A row takes its forced id, which leads out of the stretch that it is in, if any."""
        self.place[row] += 1
        if here is not None:
            self.stretch[row] += 1
            if here.round_end or not self.open:
                self.length[row] = self.lasts[row, self.stretch[row]]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order."""
        for name in (*FIELDS, *STANDING):
            setattr(self, name, getattr(self, name)[rows])
        self._look()

    def put(self, places: Sequence[int], other: Walker) -> None:
        """The rows of another walk of the same plan take these places, whatever was there."""
        for name, fill in FIELDS.items():
            mine, theirs = getattr(self, name), getattr(other, name)
            width = max(mine.shape[1], theirs.shape[1])
            mine = _widened(mine, width, fill)
            mine[places] = _widened(theirs, width, fill)
            setattr(self, name, mine)
        for name in STANDING:
            getattr(self, name)[places] = getattr(other, name)
        self._look()


def _stacked(arrays: Sequence[np.ndarray], fill: float) -> np.ndarray:
    """(B, widest + 1, ...), padded with `fill`."""
    widest = max(len(array) for array in arrays)
    whole = np.full((len(arrays), widest + 1, *arrays[0].shape[1:]), fill, dtype=arrays[0].dtype)
    for row, array in zip(whole, arrays, strict=True):
        row[: len(array)] = array
    return whole


def _widened(rows: np.ndarray, width: int, fill: float) -> np.ndarray:
    """(B, width, ...), what is new of it is `fill`."""
    more = [(0, 0), (0, width - rows.shape[1]), *((0, 0) for _ in rows.shape[2:])]
    return np.pad(rows, more, constant_values=fill) if width > rows.shape[1] else rows


def _in_step(legal: np.ndarray, spans: np.ndarray, lasts: np.ndarray | float) -> np.ndarray:
    """(..., V) of the legal ids, those that say a chunk is as long as `lasts` (..., V or 1) wants, wherever
    there is one that does.
    """
    wrong = np.abs(spans - lasts) > NEAR  # False where either is NaN
    kept = legal & ~wrong
    return np.where(kept.any(-1, keepdims=True), kept, legal)
