"""A stream that grows id by id, and the window of it that the network sees.

When a window is full, the next one begins with the last half of it, at a chunk border where there is one, its
clock set back to 0 as training does. In front of it stands what the stream began with as far as it has no
times, where that is short.
"""

from __future__ import annotations

import numpy as np

from multimodal_gpt.compression.walk import Walk
from multimodal_gpt.generation.clock import Timer
from multimodal_gpt.generation.target import Member
from multimodal_gpt.stream.arrangement import Stream
from multimodal_gpt.stream.vocabulary import DOC, END


class Lane:
    """One walk and all that was taken so far.

    Args:
        walk: at its beginning.
        width: most tokens of a window.
    """

    def __init__(self, walk: Walk, width: int) -> None:
        self.walk, self.width = walk, width
        self.ids, self.times, self.timed = [DOC], [0.0], [False]
        self.heads: list[tuple[int, int]] = []  # finished parts without times, as places in `ids`
        self.opening = 1  # where the part began that is being written
        self.borders: list[int] = []  # where a window may begin in it
        self.base = 0.0  # time at which the window begins, quarter notes
        self._timers = {name: Timer(member) for name, member in walk.members.items()}

    @property
    def count(self) -> int:
        """Tokens after `<doc>`."""
        return len(self.ids) - 1

    @property
    def last(self) -> tuple[int, float]:
        """The id that was taken last, and its time in the window."""
        return self.ids[-1], self.times[-1] - self.base if self.timed[-1] else 0.0

    def add(self, token: int) -> None:
        """Take a legal id."""
        place, member = len(self.ids), self.walk.owner(token)
        if not self.walk.opened:
            self.opening, self.borders = place, []
        elif self._begins(token, member):
            self.borders.append(place)
        self.walk.advance(token)
        self.ids.append(token)
        self.timed.append(member is not None and member.clock is not None)
        self.times.append(0.0 if member is None else self._timers[member.name](token - member.first))
        if token == END:
            if not any(self.timed[self.opening :]):
                self.heads.append((self.opening, place + 1))
            self.opening, self.borders = place + 1, []

    def _begins(self, token: int, member: Member | None) -> bool:
        """Whether a window may begin with this id of a part: at a chunk; anywhere where there is no time."""
        if member is None or self.walk.mixed:
            return member is None and token != END
        return member.clock is None or bool(member.grammar.cut[token - member.first])

    def window(self) -> Stream:
        """The tokens of the next window: all there are, or half a window of them."""
        if len(self.ids) < self.width:
            self.base = 0.0
            return Stream(np.array(self.ids), np.array(self.times, dtype=np.float32))
        head = self._head()
        least = max(self.opening + 1, len(self.ids) - max(1, self.width // 2 - len(head)))
        first = next((border for border in self.borders if border >= least), least)
        timed = np.array(self.timed[first:])
        times = np.array(self.times[first:])
        self.base = float(times[timed][0]) if timed.any() else 0.0
        clock = np.where(timed, times - self.base, 0.0)
        ids = np.array([*head, *self.ids[first:]])
        return Stream(ids, np.concatenate([np.zeros(len(head)), clock]).astype(np.float32))

    def _head(self) -> list[int]:
        """`<doc>`, the parts without times where they are short, and what opens the part being written."""
        kept = [token for start, stop in self.heads for token in self.ids[start:stop]]
        opening = [self.ids[self.opening]] if self.opening < len(self.ids) else []
        return [DOC, *(kept if len(kept) <= self.width // 4 else []), *opening]
