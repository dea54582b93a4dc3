"""Where every row of a batch stands, and which ids may come next.

B rows, C scored columns, E free stretches, M wanted members, K rounds that may still be added, N chunks,
S states, V local ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

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
        self.device, self.budget = rules.device, list(budget)
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
    def leaving(self) -> Tensor | None:
        """Columns that would end a chunk of the one wanted member if nothing took turns with it: what begins
        the next one, and END where that is no choice of its own here. None where a forced id ends it.
        """
        if not self.given or len(self.wanted) > 1 or not self.wanted[0].turns:
            return None
        cuts = np.flatnonzero(self.wanted[0].grammar.cut)
        return torch.as_tensor(cuts if self.open else [*cuts, len(self.columns) - 1], device=self.device)

    @cached_property
    def columns(self) -> Tensor:
        """(C - 1,) global ids that are scored, the wanted members' and END. One more is the way out."""
        ids = [np.arange(m.first, m.first + m.grammar.size) for m in self.wanted]
        return torch.as_tensor(np.concatenate([*ids, [END]]), device=self.device)


class Walker:
    """The walk of rows of a plan, of all if None: `allowed` says what may come, `advance` takes what came.

    The walk begins after the prefix of a row's program and ends with END. Then a row only takes PAD.
    """

    forced: Tensor
    forced_clock: Tensor
    stop: Tensor
    member: Tensor
    left: Tensor
    owed: Tensor
    round_end: Tensor
    lasts: Tensor
    chunks: Tensor
    own: Tensor
    own_next: Tensor

    def __init__(self, plan: Plan, rows: Sequence[int] | None = None) -> None:
        numbers = range(len(plan.programs)) if rows is None else rows
        programs = [plan.programs[number] for number in numbers]
        self.wanted, self.tables, self.columns = plan.wanted, plan.tables, plan.columns
        self.reach, self.counted = plan.reach, plan.counted
        self.again = torch.as_tensor(programs[0].again, device=plan.device)
        self.open = plan.open
        extra = torch.arange(plan.rounds, device=plan.device)
        self.more = self.again[:, None] * extra  # (M, K) chunks that rounds add
        self.more_tags = self.again.sum() * extra  # (K,)
        for name, fill in FIELDS.items():  # (B, F + 1) or (B, E + 1) of a program, see there
            arrays = [getattr(p, "clock" if name == "forced_clock" else name) for p in programs]
            setattr(self, name, torch.as_tensor(_stacked(arrays, fill), device=plan.device))
        self.total = torch.tensor([len(p.forced) for p in programs], device=plan.device)
        self.place = self.stop[:, 0].clone()
        self.budget = torch.tensor([plan.budget[n] for n in numbers], device=plan.device) - self.place
        self.stretch = torch.zeros_like(self.place)
        self.state = torch.zeros(len(programs), len(self.tables), dtype=torch.long, device=plan.device)
        self.fresh = torch.ones_like(self.place, dtype=torch.bool)
        self.begun = torch.zeros_like(self.place)  # chunks of a counted member
        self.count = torch.tensor([len(p.chunks) for p in programs], device=plan.device)
        self.length = self.lasts[:, 0].clone()  # of the turn, quarter notes; NaN until it is known
        self._look()

    def _look(self) -> None:
        """Write down where rows stand: true until one of them comes to a forced id or its END.

        done (B,) bool: rows that have come to their END. current (B,): index of the wanted member whose
        stretch a row is in, or comes to next; present: all of these. inside (B,) bool: rows in a stretch;
        mine: in one of each member. way_out (B,): each row's next forced id: the only one that may come, or
        what leaves the stretch. still: see `_rest`.
        """
        self.rows = torch.arange(len(self.place), device=self.place.device)
        self.done = self.place >= self.total
        self.current = self.member[self.rows, self.stretch]
        self.present = set(self.current.tolist()) if len(self.tables) > 1 else {0}
        self.inside = self.place == self.stop[self.rows, self.stretch]
        self.mine = {number: self.inside & (self.current == number) for number in sorted(self.present)}
        self.way_out = self.forced[self.rows, self.place]
        self.own_way_out = self.own_next[self.rows, self.place]
        self.still: tuple[Tensor, Tensor] | None = None

    def allowed(self) -> Tensor:
        """(B, C) bool: columns that may come next and from which the row can still end within its budget."""
        if self.reach is not None:  # the same in one gather
            return self.reach[self.state[:, 0]] <= self.budget[:, None]
        if self.counted:
            return self._counted()
        inside = self.inside
        left, rest, between = self._rest()
        ids = [self._ids(number, left[:, number], rest) for number in range(len(self.tables))]
        leaves = (rest + between <= self.budget[:, None]) & ~self.fresh[:, None]  # (B, K)
        round_end = self.round_end[self.rows, self.stretch]
        ends = inside & round_end & leaves[:, 0]
        goes_on = leaves[:, 1:].any(1) | (leaves[:, 0] & ~round_end)
        return torch.cat([*ids, ends[:, None], (goes_on | ~inside)[:, None]], dim=1)

    def _rest(self) -> tuple[Tensor, Tensor, Tensor]:
        """What is to come besides the rest of the current stretch, for each number of added rounds.

        Returns (B, M, K) chunks left, (B, K) tokens of all others, and (B, K) tokens of the member
        itself once it is between two stretches.
        """
        if self.still is None:
            left = self.left[self.rows, self.stretch][:, :, None] + self.more
            costs = [t.between[left[:, n], self.state[:, n, None]] for n, t in enumerate(self.tables)]
            cost = torch.stack(costs, dim=1)  # (B, M, K)
            between = cost[self.rows, self.current]
            owed = self.owed[self.rows, self.stretch][:, None] + self.more_tags
            self.still = left, owed + cost.sum(1) - between  # does not change within a stretch
            return *self.still, between
        left, rest = self.still
        between = torch.zeros_like(rest)
        for number in self.mine:
            cost = self.tables[number].between[left[:, number], self.state[:, number, None]]
            between = torch.where((self.current == number)[:, None], cost, between)
        return left, rest, between

    def _ids(self, number: int, left: Tensor, rest: Tensor) -> Tensor:
        """(B, V) local ids of one member that may come in rows in a stretch of it."""
        table, state, fresh = self.tables[number], self.state[:, number], self.fresh.long()
        if number not in self.present:
            return table.cut.new_zeros(1, 1).expand(len(state), len(table.cut))
        mine = self.mine[number]
        legal = table.legal[fresh, state] & mine[:, None]
        room = self.budget[:, None] - rest  # (B, K)
        short = (table.most[left] >= room).all(1)  # else all that is legal fits
        if bool((mine & short).any()):
            legal = legal & self._fits(table, state, left, room)
        if table.spans is None or not bool((mine & table.tells[fresh, state]).any()):
            return legal
        return _in_step(legal, table.spans, self.length[:, None])

    def _fits(self, table: Tables, state: Tensor, left: Tensor, room: Tensor) -> Tensor:
        """(B, V) ids after which there are tokens enough, for some number of added rounds."""
        after = table.next_state[state].clamp(min=0).long()  # (B, V)
        fits = table.inside[left[:, :1], after] < room[:, :1]
        for extra in range(1, left.shape[1]):
            fits |= table.inside[left[:, extra, None], after] < room[:, extra, None]
        return fits

    def _counted(self) -> Tensor:
        """(B, C) bool: `allowed` where one member is made in one stretch of a fixed number of chunks."""
        table = self.tables[0]
        border = table.cut.long()
        after = table.next_state[self.state[:, 0]]  # (B, V)
        begun = self.begun[:, None] + border
        left = self.count[:, None] - begun
        cost = table.inside[left.clamp(min=0), after.clamp(min=0).long()] + 2  # the id itself, and END
        legal = (after >= 0) & (left >= 0) & (cost <= self.budget[:, None])
        lasts = self.chunks.gather(1, (begun - 1).clamp(min=0).expand_as(left))
        ids = legal if table.spans is None else _in_step(legal, table.spans, lasts)
        over = (self.begun == self.count) & (table.between[0, self.state[:, 0]] == 0)
        ends = torch.where(self.done, True, over)[:, None]
        return torch.cat([ids & ~self.done[:, None], torch.zeros_like(ends), ends], dim=1)

    def ids(self, column: Tensor) -> Tensor:
        """(B,) global ids of chosen columns (B,)."""
        known = self.columns[column.clamp(max=len(self.columns) - 1)]
        return torch.where(column < len(self.columns), known, self.way_out)

    def belongs(self, ids: Tensor) -> Tensor:
        """(B,) bool: next ids (B,) that would come too if nothing took turns with what is wanted."""
        return self.own[self.rows, self.place] | (self.inside & (ids != self.way_out))

    def advance(self, ids: Tensor) -> None:
        """Take the next id of every row, (B,): one that `allowed` allows, PAD for rows that have ended."""
        out = (ids == self.way_out) & ~self.done
        closed = self.inside & ~out & (ids == END)
        moved = out | closed
        moves = bool(moved.any())
        for number, mine in self.mine.items():
            self._step(number, mine & ~moved if moves else mine, ids)
        if self.counted:
            local = (ids - self.wanted[0].first).clamp(0, len(self.tables[0].cut) - 1)
            self.begun += (self.inside & ~out & self.tables[0].cut[local]).long()
        self.budget = self.budget - (~self.done).long()
        self.fresh = out
        if moves:
            self._move(out, closed)

    def _step(self, number: int, mine: Tensor, ids: Tensor) -> None:
        """Rows `mine` (B,) bool take an id of a member within a stretch."""
        table, state = self.tables[number], self.state[:, number]
        local = (ids - self.wanted[number].first).clamp(0, table.next_state.shape[1] - 1)
        self.state[:, number] = torch.where(mine, table.next_state[state, local], state)
        if table.spans is not None:
            unknown = mine & self.length.isnan()
            self.length = torch.where(unknown, table.spans[local], self.length)

    def _move(self, out: Tensor, closed: Tensor) -> None:
        """Rows `out` (B,) bool take their forced id, rows `closed` END."""
        leave = self.inside & out
        over = leave & (self.round_end[self.rows, self.stretch] | (not self.open))
        self.stretch = self.stretch + leave.long()
        self.place = torch.where(closed, self.total, self.place + out.long())
        self.length = torch.where(over, self.lasts[self.rows, self.stretch], self.length)
        self._look()
        if self.reach is not None:
            self.state = self.state.masked_fill(self.done[:, None], len(self.reach) - 1)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows (N,) only, in this order."""
        for name in (*FIELDS, *STANDING):
            setattr(self, name, getattr(self, name)[rows])
        self._look()

    def put(self, places: Tensor, other: Walker) -> None:
        """The rows of another walk of the same plan take these places (N,), whatever was there."""
        for name, fill in FIELDS.items():
            mine, theirs = getattr(self, name), getattr(other, name)
            width = max(mine.shape[1], theirs.shape[1])
            setattr(
                self, name, _widened(mine, width, fill).index_copy(0, places, _widened(theirs, width, fill))
            )
        for name in STANDING:
            setattr(self, name, getattr(self, name).index_copy(0, places, getattr(other, name)))
        self._look()


def _stacked(arrays: Sequence[np.ndarray], fill: float) -> np.ndarray:
    """(B, widest + 1, ...), padded with `fill`."""
    widest = max(len(array) for array in arrays)
    whole = np.full((len(arrays), widest + 1, *arrays[0].shape[1:]), fill, dtype=arrays[0].dtype)
    for row, array in zip(whole, arrays, strict=True):
        row[: len(array)] = array
    return whole


def _widened(rows: Tensor, width: int, fill: float) -> Tensor:
    """(B, width, ...), what is new of it is `fill`."""
    more = rows.new_full((len(rows), width - rows.shape[1], *rows.shape[2:]), fill)
    return torch.cat([rows, more], dim=1) if len(more[0]) else rows


def _in_step(legal: Tensor, spans: Tensor, lasts: Tensor) -> Tensor:
    """(B, V) of the legal ids, those that say a chunk is as long as `lasts` (B, V or 1) wants, wherever there
    is one that does.
    """
    wrong = (spans - lasts).abs() > NEAR  # False where either is NaN
    kept = legal & ~wrong
    return torch.where(kept.any(1, keepdim=True), kept, legal)
