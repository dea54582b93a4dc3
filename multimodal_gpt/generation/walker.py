"""Where every row of a batch stands, and which ids may come next.

B rows, C scored columns, E free stretches, M wanted members, K rounds that may still be added, N chunks,
S states, V local ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from multimodal_gpt.generation.closing import FAR
from multimodal_gpt.generation.rules import DEEPEST, Rules, Tables
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


class Walker:
    """The walk of rows of a plan, of all if None: `allowed` says what may come, `advance` takes what came.

    The walk begins after the prefix of a row's program and ends with END. Then a row only takes PAD. It is
    walked on the host, whatever the network runs on: its steps are many and small.
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
        self.more = self.again[:, None] * extra  # (M, K) chunks that rounds add
        self.more_tags = self.again.sum() * extra  # (K,)
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

    def _look(self) -> None:
        """Write down where rows stand: true until one of them comes to a forced id or its END.

        done (B,) bool: rows that have come to their END. current (B,): index of the wanted member whose
        stretch a row is in, or comes to next. inside (B,) bool: rows in a stretch; mine: those in one of each
        member. way_out (B,): each row's next forced id: the only one that may come, or what leaves the
        stretch. still: see `_rest`.
        """
        self.rows = np.arange(len(self.place))
        self.done = self.place >= self.total
        self.current = self.member[self.rows, self.stretch]
        self.inside = self.place == self.stop[self.rows, self.stretch]
        members = np.where(self.inside, self.current, -1)
        self.mine = {n: np.flatnonzero(members == n) for n in sorted({*members.tolist()} - {-1})}
        self.way_out = self.forced[self.rows, self.place]
        self.own_way_out = self.own_next[self.rows, self.place]
        self.still: tuple[np.ndarray, np.ndarray] | None = None

    def allowed(self) -> np.ndarray:
        """(B, C) bool: columns that may come next and from which the row can still end within its budget."""
        if self.reach is not None:  # the same in one gather
            return self.reach[self.state[:, 0]] <= self.budget[:, None].astype(self.reach.dtype)
        if self.counted:
            return self._counted()
        left, rest = self._rest()
        legal = np.zeros((len(self.rows), len(self.columns) + 1), dtype=bool)
        legal[:, -1] = True  # outside of stretches
        for number, rows in self.mine.items():
            begin = self.first[number]
            room = self.budget[rows, None] - rest[rows]  # (N, K)
            ids = self._ids(number, left[rows, number], room)
            legal[rows, begin : begin + ids.shape[1]] = ids
            between = self.tables[number].between[left[rows, number], self.state[rows, number, None]]
            leaves = (between <= room) & ~self.fresh[rows, None]
            round_end = self.round_end[rows, self.stretch[rows]]
            legal[rows, -2] = round_end & leaves[:, 0]
            legal[rows, -1] = leaves[:, 1:].any(1) | (leaves[:, 0] & ~round_end)
        return legal

    def _rest(self) -> tuple[np.ndarray, np.ndarray]:
        """What is to come besides the current member's, for each number of added rounds.

        Returns (B, M, K) chunks left and (B, K) tokens of all other members: they don't change in a stretch.
        """
        if self.still is None:
            left = self.left[self.rows, self.stretch][:, :, None] + self.more
            costs = [t.between[left[:, n], self.state[:, n, None]] for n, t in enumerate(self.tables)]
            cost = np.stack(costs, axis=1)  # (B, M, K)
            owed = self.owed[self.rows, self.stretch][:, None] + self.more_tags
            self.still = left, owed + cost.sum(1) - cost[self.rows, self.current]
        return self.still

    def _ids(self, number: int, left: np.ndarray, room: np.ndarray) -> np.ndarray:
        """(N, V) local ids of one member that may come in the N rows in a stretch of it.

        left, room: (N, K) chunks and tokens left for it, for each number of added rounds.
        """
        table, rows = self.tables[number], self.mine[number]
        state, fresh = self.state[rows, number], self.fresh[rows].astype(np.int64)
        legal = table.legal[fresh, state]
        short = (table.most[left] >= room).all(1)  # else all that is legal fits
        if short.any():
            legal[short] &= _fits(table, state[short], left[short], room[short])
        if table.spans is None:
            return legal
        says = table.tells[fresh, state]
        if says.any():
            legal[says] = _in_step(legal[says], table.spans, self.length[rows[says], None])
        return legal

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
        leaves = column == len(self.columns)
        return np.where(leaves, self.way_out, self.columns[np.where(leaves, 0, column)])

    def belongs(self, ids: np.ndarray) -> np.ndarray:
        """(B,) bool: next ids (B,) that would come too if nothing took turns with what is wanted."""
        return self.own[self.rows, self.place] | (self.inside & (ids != self.way_out))

    def advance(self, ids: np.ndarray) -> None:
        """Take the next id of every row, (B,): one that `allowed` allows, PAD for rows that have ended."""
        out = (ids == self.way_out) & ~self.done
        closed = self.inside & ~out & (ids == END)
        moved = out | closed
        moves = bool(moved.any())
        for number, rows in self.mine.items():
            self._step(number, rows[~moved[rows]] if moves else rows, ids)
        self.budget = self.budget - ~self.done
        self.fresh = out
        if moves:
            self._move(out, closed)

    def _step(self, number: int, rows: np.ndarray, ids: np.ndarray) -> None:
        """These rows (N,) take an id of a member within a stretch."""
        table, local = self.tables[number], ids[rows] - self.wanted[number].first
        self.state[rows, number] = table.next_state[self.state[rows, number], local]
        if self.counted:
            self.begun[rows] += table.cut[local]
        if table.spans is not None:
            length = self.length[rows]
            self.length[rows] = np.where(np.isnan(length), table.spans[local], length)

    def _move(self, out: np.ndarray, closed: np.ndarray) -> None:
        """Rows `out` (B,) bool take their forced id, rows `closed` END."""
        leave = self.inside & out
        over = leave & (self.round_end[self.rows, self.stretch] | (not self.open))
        self.stretch = self.stretch + leave
        self.place = np.where(closed, self.total, self.place + out)
        self.length = np.where(over, self.lasts[self.rows, self.stretch], self.length)
        self._look()
        if self.reach is not None:
            self.state[self.done] = len(self.reach) - 1

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


def _fits(table: Tables, state: np.ndarray, left: np.ndarray, room: np.ndarray) -> np.ndarray:
    """(N, V) ids after which there are tokens enough, for some number of added rounds; see `Walker._ids`."""
    after = table.next_state[state].clip(0)  # (N, V)
    fits = np.zeros(after.shape, dtype=bool)
    for chunks, tokens in zip(left.T[:, :, None], room.T[:, :, None], strict=True):
        fits |= table.inside[chunks, after] < tokens
    return fits


def _in_step(legal: np.ndarray, spans: np.ndarray, lasts: np.ndarray) -> np.ndarray:
    """(B, V) of the legal ids, those that say a chunk is as long as `lasts` (B, V or 1) wants, wherever there
    is one that does.
    """
    wrong = np.abs(spans - lasts) > NEAR  # False where either is NaN
    kept = legal & ~wrong
    return np.where(kept.any(1, keepdims=True), kept, legal)
