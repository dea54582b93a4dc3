"""The time of every id that is made, for networks that turn with the clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from multimodal_gpt.generation.walker import Plan, Walker


@dataclass(eq=False)
class _Track:
    """Local ids of one member of one row, from the last cut but one on, and the time of the first of them."""

    ids: list[int] = field(default_factory=list)
    begin: float = 0.0
    cut: int = 0
    follow: Callable[[int], float] | None = None


class Clock:
    """Times of the ids of a batch, one step at a time.

    Plugins tell times on the host, so a network with a clock pays a round trip per token. A plugin that
    can follow ids is told each of them (1 us); of others, `clock` is shown the last chunks (50 us): what
    begins at a cut stands on its own.
    """

    def __init__(self, plan: Plan) -> None:
        self.wanted = plan.wanted
        self.tracks = [
            [
                _Track(begin=begin, follow=None if m.follow is None else m.follow())
                for begin, m in zip(p.begin.tolist(), plan.wanted, strict=True)
            ]
            for p in plan.programs
        ]

    def times(self, walker: Walker, ids: Tensor) -> Tensor:
        """(B,) float32 quarter notes of the ids that every row is about to take."""
        forced = (ids == walker.way_out) | ~walker.inside
        known = walker.forced_clock[walker.rows, walker.place]
        values = zip(ids.tolist(), forced.tolist(), known.tolist(), walker.current.tolist(), strict=True)
        times = [
            time if is_forced else self._time(row, member, token)
            for row, (token, is_forced, time, member) in enumerate(values)
        ]
        return torch.tensor(times, dtype=torch.float32, device=ids.device)

    def _time(self, row: int, number: int, token: int) -> float:
        member, track = self.wanted[number], self.tracks[row][number]
        local = token - member.first
        if member.clock is None or not 0 <= local < member.grammar.size:
            return 0.0
        if track.follow is not None:
            return track.begin + track.follow(local)
        track.ids.append(local)
        times = member.clock(np.array(track.ids, dtype=np.int32))
        time = track.begin + float(times[-1] - times[0])
        if member.grammar.cut[local]:
            track.begin += float(times[track.cut] - times[0])
            track.ids = track.ids[track.cut :]
            track.cut = len(track.ids) - 1
        return time

    def take(self, rows: Tensor) -> None:
        """Go on with these rows (N,) only."""
        self.tracks = [self.tracks[row] for row in rows.tolist()]
