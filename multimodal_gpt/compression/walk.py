"""Which ids may come next in a stream that is laid out by a known order, one id after the other.

A part begins with its tag, or `<mix>` where modalities take turns. Within it the grammars of its modalities
say what may come, and when a chunk, and the part, may be over. Where a single id may come it costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from multimodal_gpt.generation.target import Member
from multimodal_gpt.stream.arrangement import Part
from multimodal_gpt.stream.vocabulary import END, MIX

WHOLE, FIRST, WITHIN = range(3)
"""What may come of a modality: anything, what begins a chunk, what goes on with one."""


class Walk:
    """A walk along the parts of a stream, from after `<doc>` to before `<eod>`.

    Args:
        members: the modalities of the order, by name.
        order: parts from first to last.
        stretch: of an order of one modality alone, the state of its grammar where a stretch of it
            begins, and how many ids that has: no `<end>` follows. The whole if None.
    """

    def __init__(
        self,
        members: Mapping[str, Member],
        order: Sequence[Part],
        stretch: tuple[int, int] | None = None,
    ) -> None:
        self.members, self.order = members, tuple(order)
        self.number = 0
        self.opened = False
        self.current: Member | None = None
        self.fresh = False  # nothing of the current chunk is there yet
        self.states = dict.fromkeys(members, 0)
        self.begun: set[str] = set()
        self.left: int | None = None
        if stretch is not None:
            self.states[order[0][0]], self.left = stretch
        self._ids: dict[tuple[str, int, int], np.ndarray] = {}

    @property
    def part(self) -> Part:
        """The names of the part in which the walk stands."""
        return self.order[self.number]

    @property
    def mixed(self) -> bool:
        """Whether they take turns."""
        return len(self.part) > 1

    @property
    def done(self) -> bool:
        """Whether nothing follows."""
        return self.number == len(self.order) or self.left == 0

    def legal(self) -> np.ndarray:
        """(N,) int64 global ids that may come next; none where the walk has come to a dead end."""
        if not self.opened:
            return np.array([MIX if self.mixed else self.members[self.part[0]].tag])
        if self.current is None:
            return np.array([self.members[name].tag for name in self.part])
        name, state = self.current.name, self.states[self.current.name]
        if not self.mixed:
            ids = self._of(name, state, WHOLE)
            return ids if self.left is not None or not self._over(name) else np.append(ids, END)
        if self.fresh:
            return self._of(name, state, FIRST if name in self.begun else WHOLE)
        ids = self._of(name, state, WITHIN)
        return np.concatenate([ids, self._ways_out(name)]) if self._closes(name) else ids

    def advance(self, token: int) -> None:
        """Take a legal id."""
        if token == END:
            self.number, self.opened, self.current = self.number + 1, False, None
        elif not self.opened:
            self.opened = True
            self.current = None if self.mixed else self.members[self.part[0]]
        elif (member := self.owner(token)) is None:
            self.current = next(m for m in self.members.values() if m.tag == token)
            self.fresh = True
        else:
            local = token - member.first
            self.states[member.name] = int(member.grammar.next_state[self.states[member.name], local])
            self.begun.add(member.name)
            self.fresh = False
            self.left = None if self.left is None else self.left - 1

    def owner(self, token: int) -> Member | None:
        """The current modality where the id is one of its own; None for tags and specials."""
        member = self.current
        is_own = member is not None and member.first <= token < member.first + member.grammar.size
        return member if is_own else None

    def _over(self, name: str) -> bool:
        return bool(self.members[name].grammar.final[self.states[name]])

    def _closes(self, name: str) -> bool:
        return self._over(name) or self._goes_on(name)

    def _ways_out(self, name: str) -> np.ndarray:
        """Tags of those that can begin a chunk, and END where all have come to an end."""
        tags = [self.members[n].tag for n in self.part if n not in self.begun or self._goes_on(n)]
        return np.array([*tags, *([END] if all(self._over(n) for n in self.part) else [])], dtype=np.int64)

    def _goes_on(self, name: str) -> bool:
        return bool(self.members[name].grammar.closable[self.states[name]])

    def _of(self, name: str, state: int, which: int) -> np.ndarray:
        """Global ids of a modality that its grammar allows."""
        key = name, state, which
        if key not in self._ids:
            grammar = self.members[name].grammar
            allowed = grammar.next_state[state] >= 0
            if which != WHOLE:
                allowed = allowed & (grammar.cut == (which == FIRST))
            self._ids[key] = np.flatnonzero(allowed) + self.members[name].first
        return self._ids[key]
