"""What is taken of a window: the ids that come are cut into chunks, and those kept that room was ample for.

An engine that runs out of room makes what is left as short as can be. In a window that need not be the last,
the rounds in which that began to matter are left to the next one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from multimodal_gpt.generation.closing import FAR, Closing
from multimodal_gpt.generation.target import Member
from multimodal_gpt.stream.grammar import Grammar

SURE = 0.25
"""A round is kept for sure once one of its chunks is finished with this share of the spare tokens left."""
Cut = tuple[str, list[int]]
"""A stretch of one modality: its name and local ids."""


class Splitter:
    """Cuts the ids of one part, which come one by one, into finished chunks of its wanted modalities.

    Args:
        members: all modalities of the vocabulary.
        wanted: those that are made.
        prefix: (T,) global ids that the part begins with, before the first that is chosen.
        known: of wanted ones, chunks that are known and come after the prefix.
    """

    def __init__(
        self,
        members: Mapping[str, Member],
        wanted: Sequence[str],
        prefix: np.ndarray,
        known: Mapping[str, int],
    ) -> None:
        self.wanted, self.known = {name: members[name] for name in wanted}, dict(known)
        self.tags = {member.tag: name for name, member in members.items()}
        self.parts = {n: _Parts(m.grammar) for n, m in self.wanted.items() if not m.turns}
        self.name = next(self.tags[token] for token in reversed(prefix.tolist()) if token in self.tags)
        self.pending: list[int] = []

    def add(self, token: int) -> list[Cut]:
        """What is finished, now that this global id has come."""
        member = self.wanted.get(self.name)
        local = -1 if member is None else token - member.first
        if member is None or not 0 <= local < member.grammar.size:
            done = self._close()
            self.name = self.tags.get(token, "")
            return done
        if not member.turns:
            part = self.parts[self.name].add(local)
            return [(self.name, part)] if part else []
        done = self._close() if member.grammar.cut[local] else []
        self.pending.append(local)
        return done

    def _close(self) -> list[Cut]:
        name = self.name
        if name in self.parts:
            done = self.parts[name].rest()
        else:
            done, self.pending = self.pending, []
        if done and self.known.get(name):
            self.known[name] -= 1
            return []
        return [(name, done)] if done else []


class _Parts:
    """Cuts a segment that has no chunks wherever a part of it stands on its own.

    The last such part is held back until the next one is whole: what is left at the end (a blank, say) may
    not stand alone.
    """

    def __init__(self, grammar: Grammar) -> None:
        self.grammar, self.splits = grammar, splits_anywhere(grammar)
        self.waiting: list[int] = []
        self.whole = 0  # of `waiting`
        self.state = 0  # after the rest of it

    def add(self, token: int) -> list[int]:
        """One more local id; gives the part that it shows to be finished, if any."""
        self.waiting.append(token)
        self.state = int(self.grammar.next_state[self.state, token])
        if not self.splits or not self.grammar.final[self.state]:
            return []
        done, self.waiting = self.waiting[: self.whole], self.waiting[self.whole :]
        self.whole, self.state = len(self.waiting), 0
        return done

    def rest(self) -> list[int]:
        """What is left when the segment ends."""
        done, self.waiting = self.waiting, []
        return done


def splits_anywhere(grammar: Grammar) -> bool:
    """Whether a segment may be split wherever it might end: what follows could begin a segment as well, and
    whatever stands on its own there ends where the segment might.
    """
    ends = np.flatnonzero(grammar.final).tolist()
    seen: set[tuple[int, int]] = set()
    found = {(ends[0], 0)} if len(ends) == 1 else set()
    while found:
        pair = found.pop()
        seen.add(pair)
        going_on, begun = grammar.next_state[list(pair)]
        legal = going_on >= 0
        going_on, begun = going_on[legal], begun[legal]
        if (begun < 0).any() or (grammar.final[begun] & ~grammar.final[going_on]).any():
            return False
        found |= {(a, b) for a, b in zip(going_on.tolist(), begun.tolist(), strict=True)} - seen
    return bool(seen)


class Harvest:
    """What is kept of one window; `add` gives back the chunks that are sure to be, at last round by round.

    Args:
        spare: tokens of the budget beyond the fewest that do; None where all is kept.
        rounds: how many are made in this window.
        grammars: of the wanted modalities that take turns, what may come in this window.
        closings: their distances to its end.
    """

    def __init__(
        self,
        spare: int | None,
        rounds: int,
        grammars: Mapping[str, Grammar],
        closings: Mapping[str, Closing],
    ) -> None:
        self.spare, self.left = spare, rounds
        self.ample = SURE * (spare or 0)
        self.grammars, self.closings = grammars, closings
        self.states = dict.fromkeys(grammars, 0)
        self.waiting: list[Cut] = []  # of a round that is not sure to be kept
        self.come = 0  # chunks of the round
        self.sure, self.full = False, False
        self.kept: dict[str, list[int]] = {}
        self.made: dict[str, int] = {}  # ids
        self.rounds = 0

    def add(self, name: str, ids: list[int]) -> list[Cut]:
        """One more chunk has been made."""
        self.made[name] = self.made.get(name, 0) + len(ids)
        if name not in self.grammars:
            self.spare = None if self.spare is None else self.spare - len(ids)
            return self._keep([(name, ids)])
        self.sure = self.sure or self.spare is None
        if self.spare is not None:
            self.spare, needed = self._spare(name, ids, self.spare)
            self.sure = self.sure or (self.spare >= self.ample and not self.full)
            self.full = self.full or self.spare < needed
        self.waiting.append((name, ids))
        self.come += 1
        complete = self.come == len(self.grammars)
        done = self._keep(self.waiting) if self.sure or (complete and not self.full) else []
        if done or complete:
            self.waiting = []
        if complete:
            self.rounds += bool(done)
            self.left, self.come, self.sure = self.left - 1, 0, False
        return done

    def _spare(self, name: str, ids: list[int], spare: int) -> tuple[int, int]:
        """Tokens to spare after a chunk, and how many there must be that nothing was ruled out in it for want
        of room: even where it takes longest to close, there were tokens for it.
        """
        closing, before = self.closings[name], self.states[name]
        after = self.states[name] = self.grammars[name].walk(np.array(ids), before)
        rest, inside = int(closing.between[self.left - 1, after]), closing.inside[self.left - 1]
        needed = 1 + int(inside[inside < FAR].max(initial=0)) - rest  # for one id more, whichever it is
        return spare - len(ids) - rest + int(closing.between[self.left, before]), needed

    def _keep(self, cuts: list[Cut]) -> list[Cut]:
        for name, ids in cuts:
            self.kept.setdefault(name, []).extend(ids)
        return cuts

    def share(self, name: str) -> float:
        """The share of the ids of a modality that is kept."""
        return len(self.kept.get(name, ())) / max(1, self.made.get(name, 0))
