"""The time of every id that is made, for networks that turn with the clock."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from multimodal_gpt.generation.target import Member
from multimodal_gpt.generation.walker import Plan, Walker


class Timer:
    """Tells the time of one local id of a member after the other, the first cut at `begin` quarter notes.

    A plugin that can follow ids is told each of them (1 us); of others, `clock` is shown the last chunks
    (50 us): what begins at a cut stands on its own.
    """

    def __init__(self, member: Member, begin: float = 0.0) -> None:
        self.member, self.begin = member, begin
        self.follow = None if member.follow is None else member.follow()
        self.ids: list[int] = []  # from the last cut but one on; `begin` is the time of the first of them
        self.cut = 0

    def __call__(self, local: int) -> float:
        """The time of the next local id, quarter notes; 0 where the member has no times."""
        if self.member.clock is None:
            return 0.0
        if self.follow is not None:
            return self.begin + self.follow(local)
        self.ids.append(local)
        times = self.member.clock(np.array(self.ids, dtype=np.int32))
        time = self.begin + float(times[-1] - times[0])
        if self.member.grammar.cut[local]:
            self.begin += float(times[self.cut] - times[0])
            self.ids = self.ids[self.cut :]
            self.cut = len(self.ids) - 1
        return time


class Clock:
    """Times of the ids of a batch, one step at a time; told on the host, where rows walk."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.timers = [self._begun(number) for number in range(len(plan.programs))]

    def _begun(self, number: int) -> list[Timer]:
        begin = self.plan.programs[number].begin.tolist()
        return [Timer(member, time) for member, time in zip(self.plan.wanted, begin, strict=True)]

    def times(self, walker: Walker, ids: np.ndarray) -> np.ndarray:
        """(B,) float32 quarter notes of the ids that every row is about to take."""
        forced = (ids == walker.way_out) | ~walker.inside
        known = walker.forced_clock[walker.rows, walker.place]
        values = zip(ids.tolist(), forced.tolist(), known.tolist(), walker.current.tolist(), strict=True)
        times = [
            time if is_forced else self._time(row, member, token)
            for row, (token, is_forced, time, member) in enumerate(values)
        ]
        return np.array(times, dtype=np.float32)

    def _time(self, row: int, number: int, token: int) -> float:
        member = self.plan.wanted[number]
        local = token - member.first
        return self.timers[row][number](local) if 0 <= local < member.grammar.size else 0.0

    def put(self, places: Sequence[int], numbers: Sequence[int]) -> None:
        """Rows of the plan, by number, begin in these places."""
        for place, number in zip(places, numbers, strict=True):
            self.timers[place] = self._begun(number)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order."""
        self.timers = [self.timers[row] for row in rows]
