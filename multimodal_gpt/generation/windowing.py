"""What goes to the engine for one part: the layout, the window where not all fits, and the room.

A part that is longer than the context is made in windows. Each shows all that is timeless, about the latest
half of what there is so far, and of what is known and takes turns with the part as much as goes with what is
to be made. A window begins and ends with chunks and looks as one that training has cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from multimodal_gpt.generation.closing import FAR, Closing, closing_chunks
from multimodal_gpt.generation.engine import Engine
from multimodal_gpt.generation.layout import Choice, lay_out, lay_out_gap
from multimodal_gpt.generation.prompt import Passage, Prompt, Query
from multimodal_gpt.generation.request import Request
from multimodal_gpt.generation.target import NEAR, Target, build_program, chunk_lasts, end_of
from multimodal_gpt.stream.arrangement import Gap, Part, Stream, crop
from multimodal_gpt.stream.limits import resumed
from multimodal_gpt.stream.vocabulary import Encoded, Vocabulary

WINDOWS = 16
"""So many windows are tried, from the whole piece to the smallest."""
ROOM = 1.5
"""A window around a place leaves room for so many times what chunks of the piece take."""
AMPLE = 2.0
"""A part is made at one go where there is room for so many times the fewest tokens that it takes."""
KEPT = 0.5
"""Of the room, what a further window shows again of the piece so far, at most. With 0.25, 0.5 and 0.75, 150
bars beside known ones took 1.66, 1.50 and 1.55 bits a unit, in 5, 6 and 11 windows (4 pieces each).
"""
SCANT = 4.0
"""A chunk takes so many times the fewest tokens that it can, as long as there are none to judge by."""
Span = tuple[float, float]
WHOLE: Span = (0.0, np.inf)


@dataclass(frozen=True, eq=False)
class _View:
    """One window of a part: how it is laid out, from what, which span of time, and how many rounds are made
    in it, None = as the model likes.
    """

    choice: Choice
    query: Query
    segments: Mapping[str, Encoded]
    passage: Passage
    span: Span
    rounds: int | None


class Prompter:
    """Lays out the parts of one request."""

    def __init__(self, engine: Engine, vocabulary: Vocabulary, request: Request) -> None:
        self.engine, self.vocabulary, self.request = engine, vocabulary, request
        self.members = engine.rules.members
        self._closings: dict[str, Closing] = {}
        self._engines: dict[tuple[object, ...], Engine] = {}

    def prompt(
        self, choice: Choice, query: Query, segments: Mapping[str, Encoded], passage: Passage
    ) -> Prompt:
        """A choice as ids: the whole part where there is ample room for it, else its next window."""
        if passage.windows:
            return self._next(choice, query, segments, passage)
        rounds = self._rounds(choice, query, segments, passage)
        if rounds is None:
            return self._around(choice, query, segments, passage)
        passage = replace(passage, left=rounds)
        whole = self._laid_out(_View(choice, query, segments, passage, WHOLE, rounds))
        most = self.request.max_tokens
        if self._is_ample(whole) or (most is not None and whole.needed > most):
            return whole
        return self._next(choice, query, segments, passage, whole)

    def _rounds(
        self, choice: Choice, query: Query, segments: Mapping[str, Encoded], passage: Passage
    ) -> int | None:
        """How many rounds a part has that may be made in windows; None where that is open, or it may not."""
        turning = [name for name in query.wanted if self.members[name].turns]
        ends = [end_of(passage.begun[n], self.members[n]) for n in turning if n in passage.begun]
        apart = len(ends) not in (0, len(turning)) or np.ptp(ends or [0.0]) > NEAR
        if self.request.gap is not None or not turning or apart:
            return None
        view = _View(choice, query, segments, passage, WHOLE, self.request.bars)
        stream, target = self._target(view)
        if self._is_by_given(choice, query.wanted):
            program = build_program(target, self.members, self.engine.context)
            return int((program.member == target.wanted.index(turning[0])).sum())
        if self.request.bars is not None:
            return self.request.bars
        ahead = len(self._now(choice, query, segments, passage)[1])
        return ahead if ahead and len(stream.ids) + self.engine.least(target) > self.engine.context else None

    def _is_ample(self, whole: Prompt) -> bool:
        known, room = _known_tokens(whole.target), self.engine.context - len(whole.stream.ids)
        if whole.least >= FAR:
            return True  # it can't be made at all
        if self.request.max_tokens is not None and self.request.max_tokens + known <= room:
            return True
        expected = self._expected(whole.passage.begun, whole.passage.left)
        return max(AMPLE * (whole.least - known), expected) + known <= room

    def _expected(self, begun: Mapping[str, Encoded], rounds: int | None) -> float:
        """Tokens that the answer will take, more rather than less."""
        gap, total = self.request.gap, 0.0
        for segment in begun.values():
            chunks = len(segment.edges) - 1
            new = gap[1] - gap[0] if gap else rounds or chunks / 4
            total += ROOM * new * (len(segment.ids) / chunks + 1)
        return total

    # One window around a place

    def _around(
        self, choice: Choice, query: Query, segments: Mapping[str, Encoded], passage: Passage
    ) -> Prompt:
        """The widest window around a gap, or before an end that is open, that leaves room."""
        for window in self._spans(passage.begun):
            prompt = self._laid_out(_View(choice, query, segments, passage, window, None))
            known, room = _known_tokens(prompt.target), self.engine.context - len(prompt.stream.ids)
            expected = self._expected(passage.begun, None)
            if prompt.least >= FAR or max(prompt.least, expected + known) <= room:
                break
        return prompt

    def _spans(self, begun: Mapping[str, Encoded]) -> Iterator[Span]:
        """Spans of time, from all to the smallest, that begin and end with chunks of what is begun."""
        yield WHOLE
        longest = _longest(begun)
        if longest is None:
            return
        starts = [*longest.times.tolist(), np.inf]
        first, last = self.request.gap or (len(starts) - 1, len(starts) - 1)
        widest = max(first, len(starts) - 1 - last)
        for around in sorted({round(w) for w in np.linspace(1, widest, WINDOWS)}, reverse=True):
            yield starts[max(0, first - around)], starts[min(len(starts) - 1, last + around)]

    # One window after the other

    def _next(
        self,
        choice: Choice,
        query: Query,
        segments: Mapping[str, Encoded],
        passage: Passage,
        whole: Prompt | None = None,
    ) -> Prompt:
        """The next window, as wide as goes; smaller ones where it turns out too wide.

        `whole`: all of the part, where this is the first window.
        """
        known = {n: segments[n] for n in choice.names if n in segments and self.members[n].turns}
        begun = {n: segment for n, segment in passage.begun.items() if self.members[n].turns}
        now, ahead = self._now(choice, query, segments, passage)
        shown = passage
        if any(abs(end_of(s, self.members[n]) - now) > NEAR for n, s in begun.items()):
            # They don't keep step: laid out by time, what was made would take turns in another order.
            shown = replace(passage, begun={n: s for n, s in passage.begun.items() if n not in begun})
            begun = {}
        room = self._room(choice, query, segments, shown)
        kept, most = KEPT * room, min(passage.left or 1, passage.most or FAR)
        while True:
            start = _since(known | begun, begun, now, kept)
            before = _tokens(known | begun, (start, now))
            each = self._each(query, shown, (start, now))
            rounds = 1
            while rounds < most:
                forced = _tokens(known, (now, _at(ahead, rounds + 1)))
                if before + forced + each * (rounds + 1) > room:
                    break
                rounds += 1
            window = (start, _at(ahead, rounds))
            prompt = self._laid_out(_View(choice, query, segments, shown, window, rounds))
            if prompt.fits or (rounds == 1 and start == now):
                needed = prompt.needed if whole is None else whole.needed
                return replace(prompt, needed=needed, passage=passage)
            kept, most = kept / 2 if rounds == 1 else kept, max(1, rounds // 2)

    def _now(
        self, choice: Choice, query: Query, segments: Mapping[str, Encoded], passage: Passage
    ) -> tuple[float, list[float]]:
        """When the next round begins, and when known chunks begin from then on, in quarter notes."""
        ahead = self._times(choice.part, segments)
        if ahead and self._is_by_given(choice, query.wanted):
            ahead = ahead[-(passage.left or 0) :]
            return ahead[0], ahead
        begun = [(n, s) for n, s in passage.begun.items() if self.members[n].turns]
        now = max((end_of(segment, self.members[name]) for name, segment in begun), default=0.0)
        return now, [time for time in self._times(choice.names, segments) if time > now - NEAR]

    def _times(self, names: Part, segments: Mapping[str, Encoded]) -> list[float]:
        """When chunks of these begin, as far as they are known."""
        known = (segments[n] for n in names if n in segments and self.members[n].turns)
        times = {round(t, 3): t for segment in known for t in segment.times.tolist()}
        return [times[key] for key in sorted(times)]

    def _is_by_given(self, choice: Choice, wanted: Part) -> bool:
        """Whether what is known says when turns are taken."""
        return len(choice.part) > 1 and any(self.members[n].turns for n in choice.part if n not in wanted)

    def _room(self, choice: Choice, query: Query, segments: Mapping[str, Encoded], passage: Passage) -> int:
        """Tokens that a window has for chunks and their tags."""
        nothing, _ = self._target(_View(choice, query, segments, passage, (np.inf, np.inf), 1))
        return self.engine.context - len(nothing.ids) - 2 * len(choice.before) - 3  # MIX or a tag; END

    def _each(self, query: Query, passage: Passage, window: Span) -> float:
        """Tokens that a round may take."""
        turning = [name for name in query.wanted if self.members[name].turns]
        begun = {name: passage.begun[name] for name in turning if name in passage.begun}
        chunks = sum(int((s.times >= window[0] - NEAR).sum()) for s in begun.values())
        if chunks >= SCANT * len(turning):
            return _tokens(begun, window) / chunks * len(turning)
        left = passage.left or 1
        states = [(self._closing(n, left), passage.states.get(n, 0)) for n in turning]
        return SCANT * sum(float(c.between[left, state]) / left + 1 for c, state in states)

    # Laying out

    def _laid_out(self, view: _View) -> Prompt:
        choice, passage, rounds = view.choice, view.passage, view.rounds
        stream, target = self._target(view)
        later = (passage.left or 0) - (rounds or 0)
        engine = self._engine(target.wanted, passage, later)
        room, least = engine.context - len(stream.ids), engine.least(target)
        budget = self._budget(view.query, passage, target, room, least, later)
        unguided = None
        if choice.before and self.request.how.guidance is not None:
            unguided, _ = self._target(replace(view, choice=replace(choice, before=())))
        cuttable = rounds is not None and rounds > 1 and budget == room
        return Prompt(
            engine,
            choice,
            stream,
            target,
            least,
            budget,
            least - _known_tokens(target),
            unguided,
            rounds,
            cuttable,
            passage,
        )

    def _budget(
        self, query: Query, passage: Passage, target: Target, room: int, least: int, later: int
    ) -> int:
        """Most tokens: what there is room for, and its share of that where more is to come and this may not
        be made in windows; and no more than is allowed, with enough left for what comes later.
        """
        budget = room if passage.left is not None else min(room, max(room // query.turns, least))
        if passage.tokens is None:
            return budget
        owed = 0
        for name in target.wanted if later else ():
            distances = self._closing(name, later).between[later]
            owed += later + int(distances[distances < FAR].max(initial=0))
        known = _known_tokens(target)
        least = least - known if later or passage.windows else 0  # whatever is allowed, or nothing is made
        return min(budget, known + max(passage.tokens - owed, least))

    def _target(self, view: _View) -> tuple[Stream, Target]:
        """What stands before the target in a window, and the target."""
        choice, passage, segments, window = view.choice, view.passage, view.segments, view.span
        made = {n: s for n, s in passage.begun.items() if passage.windows and not self.members[n].turns}
        begun = {n: s for n, s in passage.begun.items() if n not in made}
        wanted = tuple(name for name in view.query.wanted if name not in made)
        known = {name: segments[name] for name in choice.names if name in segments} | made | begun
        inside = known if window == WHOLE else crop(known, *window)
        choice = _without(choice, set(known) - set(inside) - set(begun))  # have nothing in the window
        if self.request.gap is None:
            parts = {name: segment for name, segment in inside.items() if name not in begun}
            starts = {name: inside[name] for name in begun if name in inside}
            chunks = view.rounds if window == WHOLE or not self._is_by_given(choice, wanted) else None
            return lay_out(self.vocabulary, parts, choice, wanted, starts, chunks)
        (name,) = wanted
        before = int(np.searchsorted(begun[name].times, window[0] - NEAR))
        start, stop = (chunk - before for chunk in self.request.gap)
        lasts = chunk_lasts(inside[name], self.members[name])[start:stop].tolist()
        return lay_out_gap(self.vocabulary, inside, choice, Gap(name, start, stop), lasts)

    # Grammars

    def _engine(self, wanted: Part, passage: Passage, later: int) -> Engine:
        """The engine for a window from where the passage stands on that leaves so many rounds for later."""
        changed, key = {}, []
        for name in wanted:
            whole = self.members[name].grammar
            if not self.members[name].turns:
                continue
            final = self._closing(name, later).between[later] < FAR if later else whole.final
            grammar = resumed(whole, passage.states.get(name, 0), final)
            if grammar.next_state is not whole.next_state or (grammar.final != whole.final).any():
                changed[name] = replace(self.members[name], grammar=grammar)
                key += [name, grammar.next_state[0].tobytes(), grammar.final.tobytes()]
        if not changed:
            return self.engine
        if tuple(key) not in self._engines:
            self._engines[tuple(key)] = Engine(self.engine.net, {**self.members, **changed})
        return self._engines[tuple(key)]

    def _closing(self, name: str, rounds: int) -> Closing:
        found = self._closings.get(name)
        if found is None or len(found.between) <= rounds:
            found = self._closings[name] = closing_chunks(self.members[name].grammar, rounds)
        return found


def _longest(begun: Mapping[str, Encoded]) -> Encoded | None:
    timed = (segment for segment in begun.values() if segment.clock is not None)
    return max(timed, key=lambda segment: segment.times[-1], default=None)


def _since(known: Mapping[str, Encoded], begun: Mapping[str, Encoded], now: float, kept: float) -> float:
    """When a window begins that shows at most so many tokens before now, of what is begun."""
    longest = _longest(begun)
    starts = longest.times.tolist() if longest else []
    return next((start for start in starts if _tokens(known, (start, now)) <= kept), now)


def _at(times: list[float], place: int) -> float:
    return times[place] if place < len(times) else np.inf


def _tokens(segments: Mapping[str, Encoded], window: Span) -> int:
    """Tokens of the chunks in a window, their tags included."""
    total = 0
    for segment in segments.values():
        inside = (segment.times >= window[0] - NEAR) & (segment.times < window[1] - NEAR)
        total += int(np.diff(segment.edges)[inside].sum() + inside.sum())
    return total


def _without(choice: Choice, lost: set[str]) -> Choice:
    """A choice without some of its known modalities."""
    before = (tuple(n for n in part if n not in lost) for part in choice.before)
    part = tuple(n for n in choice.part if n not in lost)
    return replace(choice, before=tuple(p for p in before if p), part=part)


def _known_tokens(target: Target) -> int:
    """Tokens of the segments that take turns with the target, their tags included."""
    known = [*target.given.values(), *target.begun.values()]
    return sum(len(s.ids) + len(s.edges) - 1 for s in known)
