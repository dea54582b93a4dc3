"""What is to be made, as a program: the ids that are forced, and between them the stretches that are free.

    plain, m wanted            <m> ~m~ <end>
    a and b wanted together    <mix> <a> ~a~ <b> ~b~ <a> ~a~ <b> ~b~ ... <end>
    a given, b wanted          <mix> <a> chunk 1 <b> ~b~ <a> chunk 2 <b> ~b~ <end>
    m begun                    <m> chunk 1 chunk 2 ~m~ <end>
    a gap in m                 <fill> <m> ~m~ <end>, or where m takes turns <fill> <m> ~m~ <m> ~m~ <end>

A free stretch (~) holds ids of one modality: a whole segment, or one chunk of it. Letters: F forced
ids, E free stretches, M wanted members, N chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.arrangement import Part, Stream
from multimodal_gpt.stream.grammar import Grammar
from multimodal_gpt.stream.tokenizer import has_times
from multimodal_gpt.stream.vocabulary import END, FILL, MIX, Encoded, Vocabulary

NEAR = 1e-3
"""Quarter notes: times that differ by less are equal."""


@dataclass(frozen=True, eq=False)
class Member:
    """All that generation knows of a modality: its tag, its first id, its grammar, and the times of its ids.

    `clock`: local ids (T,) -> (T,) float32 quarter notes; None for a timeless modality.
    `spans`: (V,) float32, quarter notes that a chunk lasts, for the ids that say so, NaN for the others; None
    where the modality does not tell.
    `follow`: gives a counter that is told local ids one by one and gives the times that `clock` does; None
    where the modality has none.
    """

    name: str
    tag: int
    first: int
    grammar: Grammar
    clock: Callable[[np.ndarray], Any] | None
    spans: np.ndarray | None = None
    follow: Callable[[], Callable[[int], float]] | None = None

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
        follow = getattr(tokenizer, "follow", None)
        members[name] = Member(name, place.tag, place.first, grammar, clock, spans, follow)
    return members


@dataclass(frozen=True, eq=False)
class Target:
    """One part of a stream that is to be made: its modalities in order, and what is known of them.

    Args:
        order: all modalities of the part.
        given: those that are known as a whole.
        begun: how wanted ones begin.
        chunks: how many chunks are made of each wanted one, after what is begun; None = as the model likes.
        gap: the chunks of a gap, where the target is to fill one.
    """

    order: Part
    given: Mapping[str, Encoded] = field(default_factory=dict)
    begun: Mapping[str, Encoded] = field(default_factory=dict)
    chunks: int | None = None
    gap: Filling | None = None

    @property
    def wanted(self) -> Part:
        """Modalities to make, in order."""
        return tuple(name for name in self.order if name not in self.given)

    @property
    def mixed(self) -> bool:
        """Whether modalities take turns."""
        return len(self.order) > 1 if self.gap is None else self.gap.in_turns


@dataclass(frozen=True)
class Filling:
    """A gap: when it begins and how long each of its chunks lasts, in quarter notes; and whether its modality
    takes turns with others.
    """

    begin: float
    lasts: tuple[float, ...]
    in_turns: bool


@dataclass(frozen=True, eq=False)
class Program:
    """Forced ids, and where among them the walk is free.

    Args:
        forced: (F,) int64 ids that come whatever the model thinks, the last of them END.
        clock: (F,) float32 their times in quarter notes, 0 for tags and timeless ids.
        stop: (E,) int64: stretch e lies before forced[stop[e]], which is also the way out of it.
        own: (F,) bool: forced ids that would stand here too if nothing took turns with what is wanted.
        member: (E,) int64: whose ids stretch e holds, an index into the wanted members.
        left: (E, M) int64: stretches of each member after e; in an open program, within e's round.
        owed: (E,) int64: forced ids from e on; in an open program, if it closes after e's round.
        round_end: (E,) bool: stretches after which an open program may close.
        again: (M,) int64: stretches that one more round adds; all 0 where the number of rounds is fixed.
        lasts: (E,) float32: quarter notes from e's turn to the next known one, NaN where none is known.
        begin: (M,) float64: quarter notes before the first chunk that is made of each member.
        chunks: (N,) float32: where one stretch holds a fixed number of chunks, quarter notes of each, NaN
            where that is not known; (0,) in other programs.
    """

    forced: np.ndarray
    clock: np.ndarray
    stop: np.ndarray
    own: np.ndarray
    member: np.ndarray
    lasts: np.ndarray
    begin: np.ndarray
    chunks: np.ndarray
    left: np.ndarray
    owed: np.ndarray
    round_end: np.ndarray
    again: np.ndarray

    @property
    def prefix(self) -> Stream:
        """What is forced before the first free stretch: it belongs to the prompt."""
        return Stream(self.forced[: self.stop[0]], self.clock[: self.stop[0]])

    @property
    def own_prefix(self) -> Stream:
        """What of it would be there too if nothing took turns with what is wanted."""
        own = self.own[: self.stop[0]]
        return Stream(self.prefix.ids[own], self.prefix.clock[own])

    @property
    def own_next(self) -> np.ndarray:
        """(F,) int64: the first of the forced ids, from each on, that would be there too."""
        places = np.where(self.own, np.arange(len(self.own)), len(self.own) - 1)
        return self.forced[np.minimum.accumulate(places[::-1])[::-1]]


def is_whole(target: Target, member: Member) -> bool:
    """Whether a wanted member is made in one stretch, from the start of its grammar to a final state."""
    return not (target.mixed and member.turns)


def is_counted(target: Target, member: Member) -> bool:
    """Whether a wanted member is made in one stretch of a fixed number of chunks."""
    return is_whole(target, member) and member.turns and (target.chunks or target.gap) is not None


def build_program(target: Target, members: Mapping[str, Member], budget: int) -> Program:
    """The program of a target; an open one is written out as far as `budget` tokens can lead."""
    writer = _Writer(target, members)
    if target.gap is not None:
        writer.fill(target.gap)
        return writer.closed_program()
    times = writer.times
    turns = sum(not is_whole(target, members[name]) for name in target.wanted)
    free = 0  # rounds after the known ones
    if turns and not any(members[name].turns for name in target.given):
        free = target.chunks or budget // (2 * turns) + 2  # a turn is a tag and at least one id
    elif not times:
        times = [0.0]
    lasts = [*np.diff(times).tolist(), *writer.last_length(times[-1:])]
    for number, (time, length) in enumerate(zip(times, lasts, strict=True)):
        writer.turns(number, time, length)
    for number in range(len(times), len(times) + free):
        writer.turns(number, None, np.nan)
    _check_turns(target, writer.member, by_given=bool(turns and not free))
    return writer.open_program() if free and target.chunks is None else writer.closed_program()


def _check_turns(target: Target, member: Sequence[int], *, by_given: bool) -> None:
    """Raise UserError where what is given leaves no turn, or another number than was asked for."""
    name, left = "+".join(target.wanted), member.count(member[0]) if member else 0
    if not left:
        raise UserError(f"what is given ends where '{name}' is to go on", name, "give more of it, or none")
    if by_given and target.chunks not in (None, left):
        what = f"{target.chunks} bars of '{name}' are asked for, what is given has room for {left}"
        raise UserError(what, "bars", "leave it out")


class _Writer:
    """Collects forced ids and free stretches, round by round; one instance per program."""

    def __init__(self, target: Target, members: Mapping[str, Member]) -> None:
        self.target, self.members = target, members
        first = [MIX] if target.mixed else []
        self.forced: list[int] = first if target.gap is None else [FILL]
        self.clock: list[float] = [0.0] * len(self.forced)
        self.own: list[bool] = [len(target.wanted) > 1 or not target.given] * len(self.forced)
        self.stop: list[int] = []
        self.member: list[int] = []
        self.round: list[int] = []
        self.lasts: list[float] = []
        self.begin: dict[str, float] = {}
        self.times = self._turn_times()
        self.ends = {n: end_of(begun, members[n], self.times) for n, begun in target.begun.items()}

    def _turn_times(self) -> list[float]:
        """When turns are taken, quarter notes: wherever a known chunk of a member begins."""
        if not self.target.mixed:
            return []
        known = {**self.target.given, **self.target.begun}
        return sorted({_key(t) for name in known if self.members[name].turns for t in known[name].times})

    def last_length(self, time: Sequence[float]) -> list[float]:
        """How long the known chunks that begin at the last turn say it is; NaN where they don't."""
        known = {**self.target.given, **self.target.begun}
        lasts = [
            chunk_lasts(segment, self.members[name])[-1]
            for name, segment in known.items()
            if self.members[name].turns and time and _key(segment.times[-1]) == time[0]
        ]
        return [next((float(length) for length in lasts if not np.isnan(length)), np.nan)] * len(time)

    def turns(self, number: int, time: float | None, length: float) -> None:
        """A round; `time`: when its chunks begin, None where that is not known."""
        for name in self.target.order:
            member = self.members[name]
            whole = is_whole(self.target, member)
            if name in self.target.given:
                self._known(self.target.given[name], number, time if member.turns else None)
            elif time is not None and time < self.ends.get(name, 0.0) - NEAR and not whole:
                self._known(self.target.begun[name], number, time)
            elif number == 0 or not whole:
                self._free(name, number, time, length)

    def _free(self, name: str, number: int, time: float | None, length: float) -> None:
        known = self.ends.get(name, 0.0)
        self.begin.setdefault(name, known if time is None or name in self.ends else time)
        self._tag(name)
        if name in self.target.begun and is_whole(self.target, self.members[name]):
            self._ids(self.target.begun[name], 0, len(self.target.begun[name].ids))
        self.stop.append(len(self.forced))
        self.member.append(self.target.wanted.index(name))
        self.round.append(number)
        self.lasts.append(length)

    def fill(self, gap: Filling) -> None:
        """The chunks of a gap: each in its turn, or all in one stretch."""
        (name,) = self.target.wanted
        for number, length in enumerate(gap.lasts if gap.in_turns else [np.nan]):
            self._free(name, number, gap.begin, length)

    def _tag(self, name: str) -> None:
        """Of a modality that stands alone once the others are gone, only the first tag is left."""
        given, alone = self.target.given, len(self.target.wanted) == 1
        tag = self.members[name].tag
        self.own.append(name not in given and not (given and alone and tag in self.forced))
        self.forced.append(tag)
        self.clock.append(0.0)

    def _known(self, segment: Encoded, number: int, time: float | None) -> None:
        for start, stop, begin in zip(segment.edges[:-1], segment.edges[1:], segment.times, strict=True):
            if _key(begin) == time if time is not None else number == 0:
                self._tag(segment.modality)
                self._ids(segment, start, stop)

    def _ids(self, segment: Encoded, start: int, stop: int) -> None:
        first = self.members[segment.modality].first
        times = np.zeros(stop - start) if segment.clock is None else segment.clock[start:stop]
        self.forced += (segment.ids[start:stop] + first).tolist()
        self.clock += times.tolist()
        self.own += [segment.modality not in self.target.given] * (stop - start)

    def closed_program(self) -> Program:
        """The program where the number of turns is fixed."""
        self.forced.append(END)
        self.clock.append(0.0)
        self.own.append(True)
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
            rounds = np.maximum(rounds, rounds[0] + 1)
            last = np.searchsorted(rounds, rounds, side="right") - 1
        left = self._left(rounds)
        owed = stop[last] - stop + 1
        again = self._one_hot()[rounds == rounds[-1]].sum(0)
        return self._program(stop, left, owed, last == np.arange(len(stop)), again)

    def _program(self, stop: np.ndarray, *rest: np.ndarray) -> Program:
        clock = np.array(self.clock, dtype=np.float32)
        lasts = np.array(self.lasts, dtype=np.float32)
        begin = np.array([self.begin.get(name, 0.0) for name in self.target.wanted])
        member, chunks = np.array(self.member), np.array(self._chunks(), dtype=np.float32)
        forced, own = np.array(self.forced), np.array(self.own)
        return Program(forced, clock, stop, own, member, lasts, begin, chunks, *rest)

    def _chunks(self) -> list[float]:
        target = self.target
        if not any(is_counted(target, self.members[name]) for name in target.wanted):
            return []
        return list(target.gap.lasts) if target.gap else [np.nan] * (target.chunks or 0)

    def _left(self, rounds: np.ndarray) -> np.ndarray:
        """(E, M) stretches of each member that come later in the same round."""
        done = self._one_hot().cumsum(0)
        last = np.searchsorted(rounds, rounds, side="right") - 1
        return done[last] - done

    def _one_hot(self) -> np.ndarray:
        return np.eye(len(self.target.wanted), dtype=np.int64)[self.member]


def chunk_lasts(segment: Encoded, member: Member) -> np.ndarray:
    """(N,) float64 quarter notes that each chunk of a segment lasts: what its ids say, else until the next
    one begins; NaN where nobody says it.
    """
    lasts = np.diff(segment.times, append=np.nan)
    if member.spans is not None:
        said = member.spans[segment.ids]
        for number, (start, stop) in enumerate(pairwise(segment.edges)):
            told = said[start:stop][~np.isnan(said[start:stop])]
            lasts[number] = told[0] if len(told) else lasts[number]
    return lasts


def end_of(segment: Encoded, member: Member, turns: Sequence[float] = ()) -> float:
    """Quarter notes to the end of the last chunk; where nobody says how long that is, it is as long as the
    one before, or lasts to the next of the `turns`, when others begin.
    """
    if segment.clock is None or not len(segment.ids):
        return 0.0
    lasts, begin = chunk_lasts(segment, member), float(segment.times[-1])
    known = lasts[~np.isnan(lasts)]
    end = next((turn for turn in turns if turn > begin + NEAR), float(segment.clock[-1]))
    return max(begin + float(known[-1]) if len(known) else end, begin + 2 * NEAR)


def _key(time: float) -> float:
    return round(float(time), 3)
