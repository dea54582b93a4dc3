"""One part of one piece on its way to the engine: what is asked, how far it is made, what it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from multimodal_gpt.generation.closing import Closing, closing_chunks
from multimodal_gpt.generation.engine import Engine
from multimodal_gpt.generation.harvest import Harvest, Splitter
from multimodal_gpt.generation.layout import Choice
from multimodal_gpt.generation.target import Program, Target, build_program, is_whole
from multimodal_gpt.stream.arrangement import Part, Stream
from multimodal_gpt.stream.vocabulary import Encoded


@dataclass(frozen=True)
class Query:
    """One part to make: what is known when its turn comes, and how many turns there are from then on."""

    number: int
    known: tuple[str, ...]
    wanted: Part
    turns: int

    def __str__(self) -> str:
        return "+".join(self.wanted)


@dataclass(frozen=True, eq=False)
class Passage:
    """How far a part is made.

    Args:
        begun: of its modalities, what there is so far, known or made.
        states: where the grammars of those that take turns stand.
        left: rounds that are to be made yet; None = as the model likes.
        tokens: of those that may still be made; None = as many as it takes.
        windows: how many have been made.
        most: rounds of the next window at most, after one that was of no use.
    """

    begun: Mapping[str, Encoded]
    states: Mapping[str, int] = field(default_factory=dict)
    left: int | None = None
    tokens: int | None = None
    windows: int = 0
    most: int | None = None


@dataclass(frozen=True, eq=False)
class Prompt:
    """What goes to the engine for one part of one draft.

    Args:
        engine: which knows the grammars of this window.
        choice, stream, target: how it is laid out.
        least, budget: fewest and most tokens of the target.
        needed: fewest tokens that all of the part takes, what is known not counted.
        unguided: the stream without what stands before the target; None where that is nothing.
        rounds: how many are made in this window; None = as the model likes.
        cuttable: whether the last rounds of it may be left to another window.
        passage: where it begins.
    """

    engine: Engine
    choice: Choice
    stream: Stream
    target: Target
    least: int
    budget: int
    needed: int
    unguided: Stream | None
    rounds: int | None
    cuttable: bool
    passage: Passage

    @property
    def fits(self) -> bool:
        """Whether there is room for even the shortest answer."""
        return self.least <= self.budget

    @property
    def kind(self) -> tuple[object, ...]:
        """Windows of the same kind can go through their engine together."""
        target = self.target
        return id(self.engine), target.order, target.wanted, target.mixed, target.chunks is None

    @property
    def is_last(self) -> bool:
        """Whether the part ends with this window, if all of it is kept."""
        return self.rounds == self.passage.left

    @cached_property
    def program(self) -> Program:
        """The program of the target."""
        return build_program(self.target, self.engine.rules.members, self.budget)

    @cached_property
    def closings(self) -> dict[str, Closing]:
        """Of the modalities that take turns, the distances to the end of this window."""
        if not self.cuttable or self.rounds is None:
            return {}
        members = {name: self.engine.rules.members[name] for name in self.target.wanted}
        return {n: closing_chunks(m.grammar, self.rounds) for n, m in members.items() if m.turns}

    def splitter(self) -> Splitter:
        """For the ids that come after the program's prefix."""
        prefix, later = self.program.prefix.ids, {}
        for name, segment in self.target.begun.items():
            member = self.engine.rules.members[name]
            if not is_whole(self.target, member):
                shown = int((prefix[:-1] == member.tag).sum())
                later[name] = len(segment.edges) - 1 - shown
        return Splitter(self.engine.rules.members, self.target.wanted, prefix, later)

    def harvest(self) -> Harvest:
        """For the chunks that are made."""
        members = self.engine.rules.members
        turning = {n: members[n].grammar for n in self.target.wanted if members[n].turns}
        spare = self.budget - self.least if self.cuttable else None
        return Harvest(spare, self.rounds or 0, turning, self.closings)
