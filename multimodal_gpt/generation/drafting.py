"""From a request to finished segments: what is known is laid out, each part is made in turn.

A piece that is longer than the context is continued, or its gap filled, in a window of whole chunks around
the place; what lies outside is put back afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.generation.closing import FAR
from multimodal_gpt.generation.engine import Engine, Made, Row
from multimodal_gpt.generation.layout import Choice, choices, lay_out, lay_out_gap
from multimodal_gpt.generation.request import Request
from multimodal_gpt.generation.streaming import Chunk, Splitter
from multimodal_gpt.generation.target import NEAR, Target, build_program, chunk_lasts
from multimodal_gpt.stream.arrangement import Arrangement, Gap, Part, Stream, crop, from_stream
from multimodal_gpt.stream.grammar import Grammar
from multimodal_gpt.stream.limits import is_possible
from multimodal_gpt.stream.vocabulary import Encoded, Vocabulary

Progress = Callable[[int, str], object]
"""Called with how many segments have just been finished, and a note: what they are."""

WINDOWS = 16
"""So many windows are tried, from the whole piece to the smallest."""
ROOM = 1.5
"""A window leaves room for so many times what chunks of the piece take."""
WISHES = 2**32
"""Beside the seed: wishes have random numbers of their own, apart from those of the rows."""


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
class Draft:
    """A piece in the making.

    Args:
        row, attempt: which piece, and which of the attempts at it.
        segments: what is given and what has been made.
        bits, free, layouts, warnings: of what has been made, and how many ids were chosen, not forced.
        spans: when parts of modalities that were known in part were made, (start, stop) in quarter notes.
    """

    row: int
    attempt: int
    segments: Mapping[str, Encoded]
    bits: Mapping[str, float] = field(default_factory=dict)
    free: int = 0
    layouts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    spans: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)

    @property
    def surprise(self) -> float:
        """Bits for each id that was chosen: the lower, the likelier the model finds it."""
        return sum(self.bits.values()) / max(1, self.free)


@dataclass(frozen=True, eq=False)
class _Prompt:
    """What goes to the engine for one query of one draft.

    `unguided`: the stream without what stands before the target; None where that is nothing. `outside`: of
    each wanted modality, the ids before and after the window.
    """

    choice: Choice
    stream: Stream
    target: Target
    least: int
    budget: int
    unguided: Stream | None
    outside: Mapping[str, tuple[np.ndarray, np.ndarray]]

    @property
    def fits(self) -> bool:
        """Whether there is room for even the shortest answer."""
        return self.least <= self.budget


class Job:
    """One request to one network. Raises UserError, before anything is made, where it can't be met."""

    def __init__(
        self, engine: Engine, vocabulary: Vocabulary, arrangements: Sequence[Arrangement], request: Request
    ) -> None:
        self.vocabulary, self.request = vocabulary, request
        limited, known = _limited(vocabulary, request), engine.rules.members
        self.plain = known
        self.members = {n: replace(m, grammar=limited.get(n, m.grammar)) for n, m in known.items()}
        self.engine = Engine(engine.net, self.members) if limited else engine
        self.given = {name: vocabulary.encode(name, content) for name, content in request.given.items()}
        self.begun = {name: vocabulary.encode(name, content) for name, content in request.begun.items()}
        self.arrangements = [a for a in arrangements if a.hole or request.gap is None]
        self.queries = _queries(request)
        for name, segment in self.begun.items():
            self._check_gap(name, segment)
        for query in self.queries:
            self._check_room(query)

    def run(self, progress: Progress | None = None) -> list[Draft]:
        """Make all pieces; of several attempts at one, the likeliest is kept."""
        tries = self.request.best_of
        drafts = [
            Draft(row, attempt, self.given) for row in range(self.request.n) for attempt in range(tries)
        ]
        for query in self.queries:
            drafts = self._answer(query, drafts, progress)
        pieces = (drafts[i : i + tries] for i in range(0, len(drafts), tries))
        return [min(attempts, key=lambda draft: draft.surprise) for attempts in pieces]

    def stream(self) -> Generator[Chunk, None, Draft]:
        """Make the first attempt at the first piece and give its chunks as they are finished."""
        draft = Draft(0, 0, self.given)
        for query in self.queries:
            draft = yield from self._watched(query, draft)
        return draft

    def _check_gap(self, name: str, segment: Encoded) -> None:
        chunks, gap = len(segment.edges) - 1, self.request.gap
        if gap is not None and not 0 <= gap[0] < gap[1] <= chunks:
            what = f"'{name}' has no bars {gap[0] + 1} to {gap[1]}"
            raise UserError(what, "bars", f"it has {chunks}")

    def _check_room(self, query: Query) -> None:
        """What is given must leave room, in a layout like the best."""
        options = choices(self.arrangements, tuple(self.given), query.wanted)
        whole = [c for c in options if len(c.names) == len(options[0].names)]
        prompts = [self._prompt(choice, query, self.given) for choice in whole]
        best, context, most = prompts[0], self.engine.context, self.request.max_tokens
        if best.least >= FAR:
            fix = "ask for less, or give something else"
            raise UserError(
                f"nothing that meets all wishes goes with what is given: '{query}'", "wishes", fix
            )
        if any(p.fits for p in prompts):
            return
        if len(best.stream.ids) + best.least <= context:
            needed = best.least - _known_tokens(best.target)
            raise UserError(
                f"{most} tokens are too few for '{query}'", "max_tokens", f"it takes {needed} or more"
            )
        raise UserError(
            f"prompt is longer than the context: {len(best.stream.ids)} tokens given, context {context}, "
            f"at least {best.least} more needed for '{query}'",
            ", ".join(self.given),
            "give less, or train with a larger model.context",
        )

    # Laying out

    def _prompt(self, choice: Choice, query: Query, segments: Mapping[str, Encoded]) -> _Prompt:
        """A choice as ids, in the widest window that leaves room, with its share of the context: equal ones
        for all parts still to come.
        """
        begun = {name: self.begun[name] for name in query.wanted if name in self.begun}
        for window in self._windows(begun):
            stream, target, outside = self._laid_out(choice, query, segments, begun, window)
            room = self.engine.context - len(stream.ids)
            least = self.engine.least(target)
            if least >= FAR or max(least, self._expected(begun) + _known_tokens(target)) <= room:
                break
        budget = min(room, max(room // query.turns, least))
        if self.request.max_tokens is not None:
            budget = min(budget, self.request.max_tokens + _known_tokens(target))
        unguided = None
        if choice.before and self.request.how.guidance is not None:
            unguided = self._laid_out(replace(choice, before=()), query, segments, begun, window)[0]
        return _Prompt(choice, stream, target, least, budget, unguided, outside)

    def _windows(self, begun: Mapping[str, Encoded]) -> Iterator[tuple[float, float]]:
        """Spans of time, from all to the smallest, that begin and end with chunks of what is begun."""
        yield 0.0, np.inf
        longest = max(
            (s for s in begun.values() if s.clock is not None), key=lambda s: s.times[-1], default=None
        )
        if longest is None:
            return
        starts = [*longest.times.tolist(), np.inf]
        first, last = self.request.gap or (len(starts) - 1, len(starts) - 1)
        widest = max(first, len(starts) - 1 - last)
        for around in sorted({round(w) for w in np.linspace(1, widest, WINDOWS)}, reverse=True):
            yield starts[max(0, first - around)], starts[min(len(starts) - 1, last + around)]

    def _laid_out(
        self,
        choice: Choice,
        query: Query,
        segments: Mapping[str, Encoded],
        begun: Mapping[str, Encoded],
        window: tuple[float, float],
    ) -> tuple[Stream, Target, dict[str, tuple[np.ndarray, np.ndarray]]]:
        known = {name: segments[name] for name in choice.names if name in segments} | dict(begun)
        inside = known if window == (0.0, np.inf) else crop(known, *window)
        outside = {name: _outside(segment, window) for name, segment in begun.items()}
        lost = set(known) - set(inside) - set(begun)  # have nothing in the window
        choice = _without(choice, lost)
        if self.request.gap is None:
            parts = {name: segment for name, segment in inside.items() if name not in begun}
            starts = {name: inside[name] for name in begun if name in inside}
            bars = self.request.bars
            return *lay_out(self.vocabulary, parts, choice, query.wanted, starts, bars), outside
        (name,) = query.wanted
        before = int(np.searchsorted(begun[name].times, window[0] - NEAR))
        start, stop = (chunk - before for chunk in self.request.gap)
        lasts = chunk_lasts(inside[name], self.members[name])[start:stop].tolist()
        return *lay_out_gap(self.vocabulary, inside, choice, Gap(name, start, stop), lasts), outside

    def _expected(self, begun: Mapping[str, Encoded]) -> int:
        """Tokens that the answer will take, more rather than less."""
        gap, total = self.request.gap, 0.0
        for segment in begun.values():
            chunks = len(segment.edges) - 1
            new = gap[1] - gap[0] if gap else self.request.bars or chunks / 4
            total += ROOM * new * (len(segment.ids) / chunks + 1)
        return round(total)

    def _first_that_fits(self, query: Query, draft: Draft) -> tuple[_Prompt, tuple[str, ...]]:
        """The best prompt that leaves room, and what the user should know about it."""
        options = choices(self.arrangements, query.known, query.wanted)
        for choice in options:
            prompt = self._prompt(choice, query, draft.segments)
            if not prompt.fits:
                continue
            warnings = []
            if not choice.trained:
                how = "fills gaps in" if self.request.gap else "makes"
                warnings.append(f"no arrangement of the recipe {how} '{query}' from [{choice}]: untrained")
            if self.request.how.guidance is not None and prompt.unguided is None:
                warnings.append(f"nothing stands before '{query}' in [{choice}]: nothing guides it")
            unused = [n for n in query.known if n not in choice.names]
            if unused:
                short = set(options[0].names) > set(choice.names)
                why = "the context is too short" if short else "no arrangement holds them together"
                warnings.append(f"'{query}' was made without {', '.join(unused)}: {why}")
            return prompt, tuple(warnings)
        raise UserError(f"there is no room for '{query}'", "max_tokens", "allow more tokens")

    # Making

    def _answer(self, query: Query, drafts: Sequence[Draft], progress: Progress | None) -> list[Draft]:
        """Make one part for every draft; drafts that are laid out alike go through the engine together."""
        known = {id(draft.segments): draft for draft in drafts}  # the same for all before the first is made
        found = {key: self._first_that_fits(query, draft) for key, draft in known.items()}
        prompts = [found[id(draft.segments)] for draft in drafts]
        finished: dict[int, Made] = {}
        for choice in dict.fromkeys(prompt.choice for prompt, _ in prompts):
            group = [i for i, (prompt, _) in enumerate(prompts) if prompt.choice == choice]
            rows = [self._row(prompts[i][0], drafts[i], query) for i in group]
            report = None if progress is None else lambda count: progress(count, str(query))
            made = self.engine.generate(rows, self.request.how, progress=report)
            finished |= dict(zip(group, made, strict=True))
        return [self._grown(draft, query, finished[i], *prompts[i]) for i, draft in enumerate(drafts)]

    def _watched(self, query: Query, draft: Draft) -> Generator[Chunk, None, Draft]:
        """Make one part and give its chunks as they are finished."""
        prompt, warnings = self._first_that_fits(query, draft)
        row = self._row(prompt, draft, query)
        before = {name: self._before(name) for name in query.wanted}
        prefix = build_program(row.target, self.members, row.budget).prefix.ids
        splitter = Splitter(self.vocabulary, self.plain, prefix, before)
        made = yield from _each(self.engine.follow(row, self.request.how), splitter)
        return self._grown(draft, query, made, prompt, warnings)

    def _before(self, name: str) -> np.ndarray:
        """Local ids of a wanted modality that stand before those that are made."""
        if name not in self.begun:
            return np.empty(0, dtype=np.int32)
        segment, gap = self.begun[name], self.request.gap
        return segment.ids[: segment.edges[gap[0]]] if gap else segment.ids

    def _row(self, prompt: _Prompt, draft: Draft, query: Query) -> Row:
        return Row(prompt.stream, prompt.target, prompt.budget, self._key(draft, query), prompt.unguided)

    def _key(self, draft: Draft, query: Query) -> tuple[int, ...]:
        """What decides the randomness; that of a first attempt does not depend on how many there are."""
        return (self.request.seed, draft.row, query.number, *([draft.attempt] if draft.attempt else []))

    def _grown(
        self, draft: Draft, query: Query, made: Made, prompt: _Prompt, warnings: tuple[str, ...]
    ) -> Draft:
        filled = [prompt.stream.ids] if prompt.target.gap else []
        parts = from_stream(self.vocabulary, np.concatenate([*filled, made.ids]))
        segments, spans = {}, {}
        for name in query.wanted:
            before, after = prompt.outside.get(name, ((), ()))
            segments[name] = self._segment(
                name, np.concatenate([before, parts[name], after]).astype(np.int32)
            )
            if name in self.begun:
                spans[name] = (self._made_span(segments[name], self.begun[name]),)
        return replace(
            draft,
            segments={**draft.segments, **segments},
            bits={**draft.bits, **made.bits},
            free=draft.free + made.free,
            layouts=(*draft.layouts, str(prompt.choice)),
            warnings=(*draft.warnings, *warnings),
            spans={**draft.spans, **spans},
        )

    def _segment(self, name: str, ids: np.ndarray) -> Encoded:
        tokenizer = self.vocabulary.tokenizer(name)
        units = tokenizer.units(tokenizer.decode(ids))
        return Encoded(name, ids, tokenizer.clock(ids), tokenizer.cuts(ids), units)

    def _made_span(self, segment: Encoded, begun: Encoded) -> tuple[float, float]:
        times = [*segment.times.tolist(), float("inf")]
        first, last = self.request.gap or (len(begun.edges) - 1, len(times) - 1)
        return times[first], times[last]


def _each(steps: Generator[int, None, Made], splitter: Splitter) -> Generator[Chunk, None, Made]:
    """The chunks in what the engine does, and at last what it made."""
    while True:
        try:
            token = next(steps)
        except StopIteration as end:
            made: Made = end.value
            return made
        yield from splitter.add(token)


def _limited(vocabulary: Vocabulary, request: Request) -> dict[str, Grammar]:
    """Modalities of which something is wished, with grammars that allow nothing else."""
    limited = {}
    for name, wishes in request.wishes.items():
        tokenizer = vocabulary.tokenizer(name)
        if not hasattr(tokenizer, "limited"):
            raise UserError(f"nothing can be wished of '{name}'", name, "its plugin has no 'limited'")
        try:
            grammar = tokenizer.limited(dict(wishes), np.random.default_rng([request.seed, WISHES]))
        except UserError as error:
            raise error.within(name) from error
        if not is_possible(grammar):
            raise UserError("no such thing can be: the wishes contradict each other", name, "ask for less")
        limited[name] = grammar
    return limited


def _queries(request: Request) -> tuple[Query, ...]:
    """A gap is filled in one modality after the other."""
    parts = request.to if request.gap is None else [(name,) for part in request.to for name in part]
    queries: list[Query] = []
    known = tuple(request.given)
    for number, part in enumerate(parts):
        queries.append(Query(number, known, part, len(parts) - number))
        known += part
    return tuple(queries)


def _outside(segment: Encoded, window: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Its ids before and after a window that begins and ends with chunks."""
    if segment.clock is None:
        return segment.ids[:0], segment.ids[:0]
    first, last = np.searchsorted(segment.times, np.array(window) - NEAR)
    return segment.ids[: segment.edges[first]], segment.ids[segment.edges[last] :]


def _without(choice: Choice, lost: set[str]) -> Choice:
    """A choice without some of its known modalities."""
    before = (tuple(n for n in part if n not in lost) for part in choice.before)
    part = tuple(n for n in choice.part if n not in lost)
    return replace(choice, before=tuple(p for p in before if p), part=part)


def _known_tokens(target: Target) -> int:
    """Tokens of the segments that take turns with the target, their tags included."""
    known = [*target.given.values(), *target.begun.values()]
    return sum(len(s.ids) + len(s.edges) - 1 for s in known)
