"""What is to be made, as a program: the ids that are forced, and between them the stretches that are free.

    plain, m wanted            <m> ~m~ <end>
    a and b wanted together    <mix> <a> ~a~ <b> ~b~ <a> ~a~ <b> ~b~ ... <end>
    a given, b wanted          <mix> <a> chunk 1 <b> ~b~ <a> chunk 2 <b> ~b~ <end>

A free stretch (~) holds ids of one modality: a whole segment, or one chunk of it. Letters: F forced
ids, E free stretches, M wanted members.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from multimodal_gpt.stream.arrangement import Part, Stream
from multimodal_gpt.stream.grammar import Grammar
from multimodal_gpt.stream.tokenizer import has_times
from multimodal_gpt.stream.vocabulary import END, MIX, Encoded, Vocabulary


@dataclass(frozen=True, eq=False)
class Member:
    """All that generation knows of a modality: its tag, its first id, its grammar, and the times of its ids.

    `clock`: local ids (T,) -> (T,) float32 quarter notes; None for a timeless modality.
    `spans`: (V,) float32, quarter notes that a chunk lasts, for the ids that say so, NaN for the others; None
    where the modality does not tell.
    """

    name: str
    tag: int
    first: int
    grammar: Grammar
    clock: Callable[[np.ndarray], Any] | None
    spans: np.ndarray | None = None

    @property
    def turns(self) -> bool:
        """Whether it can take turns with others, chunk by chunk; otherwise it is one piece at time 0."""
        return self.clock is not None and bool(self.grammar.cut.any())


def members_of(vocabulary: Vocabulary) -> dict[str, Member]:
    """The modalities of a vocabulary, by name."""
    members = {}
    for name, place in vocabulary.ranges.items():
        tokenizer = vocabulary.tokenizers[name]
        grammar = tokenizer.grammar()
        clock = tokenizer.clock if has_times(tokenizer) else None
        spans = tokenizer.spans() if hasattr(tokenizer, "spans") else None
        members[name] = Member(name, place.tag, place.first, grammar, clock, spans)
    return members


@dataclass(frozen=True, eq=False)
class Target:
    """One part of a stream that is to be made: its modalities in order, and what is known of them."""

    order: Part
    given: Mapping[str, Encoded] = field(default_factory=dict)

    @property
    def wanted(self) -> Part:
        """Modalities to make, in order."""
        return tuple(name for name in self.order if name not in self.given)

    @property
    def mixed(self) -> bool:
        """Whether modalities take turns."""
        return len(self.order) > 1


@dataclass(frozen=True, eq=False)
class Program:
    """Forced ids, and where among them the walk is free.

    Args:
        forced: (F,) int64 ids that come whatever the model thinks, the last of them END.
        clock: (F,) float32 their times in quarter notes, 0 for tags and timeless ids.
        stop: (E,) int64: stretch e lies before forced[stop[e]], which is also the way out of it.
        member: (E,) int64: whose ids stretch e holds, an index into the wanted members.
        left: (E, M) int64: stretches of each member after e; in an open program, within e's round.
        owed: (E,) int64: forced ids from e on; in an open program, if it closes after e's round.
        round_end: (E,) bool: stretches after which an open program may close.
        again: (M,) int64: stretches that one more round adds; all 0 where the number of rounds is fixed.
        lasts: (E,) float32: quarter notes from e's turn to the next known one, NaN where none is known.
    """

    forced: np.ndarray
    clock: np.ndarray
    stop: np.ndarray
    member: np.ndarray
    lasts: np.ndarray
    left: np.ndarray
    owed: np.ndarray
    round_end: np.ndarray
    again: np.ndarray

    @property
    def prefix(self) -> Stream:
        """What is forced before the first free stretch: it belongs to the prompt."""
        return Stream(self.forced[: self.stop[0]], self.clock[: self.stop[0]])


def is_whole(target: Target, member: Member) -> bool:
    """Whether a wanted member is made in one stretch, from the start of its grammar to a final state."""
    return not (target.mixed and member.turns)


def build_program(target: Target, members: Mapping[str, Member], budget: int) -> Program:
    """The program of a target; an open one is written out as far as `budget` tokens can lead."""
    writer = _Writer(target, members)
    times = writer.turn_times()
    turns = sum(not is_whole(target, members[name]) for name in target.wanted)
    endless = bool(turns) and not times
    rounds = budget // (2 * turns) + 2 if endless else 1  # a turn is a tag and at least one id
    lasts = [*np.diff(times), np.nan] if times else [np.nan] * rounds
    for number, (time, length) in enumerate(zip(times or [0.0] * rounds, lasts, strict=True)):
        writer.turns(number, time, length)
    return writer.open_program() if endless else writer.closed_program()


class _Writer:
    """Collects forced ids and free stretches, round by round; one instance per program."""

    def __init__(self, target: Target, members: Mapping[str, Member]) -> None:
        self.target, self.members = target, members
        self.forced: list[int] = [MIX] if target.mixed else []
        self.clock: list[float] = [0.0] if target.mixed else []
        self.stop: list[int] = []
        self.member: list[int] = []
        self.round: list[int] = []
        self.lasts: list[float] = []

    def turn_times(self) -> list[float]:
        """When turns are taken, quarter notes: wherever a chunk of a given member begins."""
        given = self.target.given
        return sorted({_key(t) for name in given if self.members[name].turns for t in given[name].times})

    def turns(self, number: int, time: float, length: float) -> None:
        for name in self.target.order:
            member = self.members[name]
            if name in self.target.given:
                self._known(self.target.given[name], number, time if member.turns else None)
            elif number == 0 or not is_whole(self.target, member):
                self.forced.append(member.tag)
                self.clock.append(0.0)
                self.stop.append(len(self.forced))
                self.member.append(self.target.wanted.index(name))
                self.round.append(number)
                self.lasts.append(length)

    def _known(self, segment: Encoded, number: int, time: float | None) -> None:
        member = self.members[segment.modality]
        for start, stop, begin in zip(segment.edges[:-1], segment.edges[1:], segment.times, strict=True):
            if _key(begin) == time if time is not None else number == 0:
                times = np.zeros(stop - start) if segment.clock is None else segment.clock[start:stop]
                self.forced += [member.tag, *(segment.ids[start:stop] + member.first).tolist()]
                self.clock += [0.0, *times.tolist()]

    def closed_program(self) -> Program:
        """The program where the number of turns is fixed."""
        self.forced.append(END)
        self.clock.append(0.0)
        stop = np.array(self.stop, dtype=np.int64)
        left = self._left(np.zeros(len(stop), dtype=np.int64))
        nowhere = np.zeros(len(stop), dtype=bool)
        again = np.zeros(len(self.target.wanted), dtype=np.int64)
        return self._program(stop, left, len(self.forced) - stop, nowhere, again)

    def open_program(self) -> Program:
        """The program that may close after every round."""
        stop, rounds = np.array(self.stop, dtype=np.int64), np.array(self.round)
        last = np.searchsorted(rounds, rounds, side="right") - 1
        if stop[last[0] + 1] > stop[last[0]] + 1:
            # Known ids follow the first round's stretches: it closes together with the second.
            rounds = np.maximum(rounds, 1)
            last = np.searchsorted(rounds, rounds, side="right") - 1
        left = self._left(rounds)
        owed = stop[last] - stop + 1
        again = self._one_hot()[rounds == rounds[-1]].sum(0)
        return self._program(stop, left, owed, last == np.arange(len(stop)), again)

    def _program(self, stop: np.ndarray, *rest: np.ndarray) -> Program:
        clock = np.array(self.clock, dtype=np.float32)
        lasts = np.array(self.lasts, dtype=np.float32)
        return Program(np.array(self.forced), clock, stop, np.array(self.member), lasts, *rest)

    def _left(self, rounds: np.ndarray) -> np.ndarray:
        """(E, M) stretches of each member that come later in the same round."""
        done = self._one_hot().cumsum(0)
        last = np.searchsorted(rounds, rounds, side="right") - 1
        return done[last] - done

    def _one_hot(self) -> np.ndarray:
        return np.eye(len(self.target.wanted), dtype=np.int64)[self.member]


def _key(time: float) -> float:
    return round(float(time), 3)
