"""From a request to finished segments: what is known is laid out, each part is made in turn, a part that is
longer than the context in one window after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.generation.closing import FAR
from multimodal_gpt.generation.engine import Engine, Made, Row
from multimodal_gpt.generation.harvest import Harvest
from multimodal_gpt.generation.layout import choices
from multimodal_gpt.generation.prompt import Passage, Prompt, Query
from multimodal_gpt.generation.request import Request
from multimodal_gpt.generation.streaming import Chunk, Teller
from multimodal_gpt.generation.windowing import Prompter
from multimodal_gpt.stream.arrangement import Arrangement
from multimodal_gpt.stream.grammar import Grammar
from multimodal_gpt.stream.limits import is_possible
from multimodal_gpt.stream.vocabulary import Encoded, Vocabulary

Progress = Callable[[int, str], object]
"""Called with how many segments have just been finished, and a note: what they are."""
Took = tuple[Made, Harvest]
"""What was made in a window, and what of it is kept."""

WISHES = 2**32
"""Beside the seed: wishes have random numbers of their own, apart from those of the rows."""


@dataclass(frozen=True, eq=False)
class Draft:
    """A piece in the making.

    Args:
        row, attempt: which piece, and which of the attempts at it.
        segments: what is given and what has been made.
        bits, free, layouts, warnings: of what has been made, and how many ids were chosen, not forced; of a
            window whose last rounds were made anew in another one, the share that was kept.
        spans: when parts of modalities that were known in part were made, (start, stop) in quarter notes.
    """

    row: int
    attempt: int
    segments: Mapping[str, Encoded]
    bits: Mapping[str, float] = field(default_factory=dict)
    free: float = 0
    layouts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    spans: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)

    @property
    def surprise(self) -> float:
        """Bits for each id that was chosen: the lower, the likelier the model finds it."""
        return sum(self.bits.values()) / max(1.0, self.free)


class Job:
    """One request to one network. Raises UserError, before anything is made, where it can't be met."""

    def __init__(
        self, engine: Engine, vocabulary: Vocabulary, arrangements: Sequence[Arrangement], request: Request
    ) -> None:
        self.vocabulary, self.request, self.plain = vocabulary, request, engine.rules.members
        limited = _limited(vocabulary, request)
        self.members = {n: replace(m, grammar=limited.get(n, m.grammar)) for n, m in self.plain.items()}
        engine = Engine(engine.net, self.members) if limited else engine
        self.context, self.prompter = engine.context, Prompter(engine, vocabulary, request)
        self.given = {name: vocabulary.encode(name, content) for name, content in request.given.items()}
        self.begun = {name: vocabulary.encode(name, content) for name, content in request.begun.items()}
        self.arrangements = [a for a in arrangements if a.hole or request.gap is None]
        self.queries = _queries(request)
        for name, segment in self.begun.items():
            self._check_gap(name, segment)
        for query in self.queries:
            self._check_room(query)

    def run(self, progress: Progress | None = None) -> list[Sequence[Draft]]:
        """All attempts at every piece."""
        tries = self.request.best_of
        drafts = [
            Draft(row, attempt, self.given) for row in range(self.request.n) for attempt in range(tries)
        ]
        for query in self.queries:
            drafts = self._answer(query, drafts, progress)
        return [drafts[i : i + tries] for i in range(0, len(drafts), tries)]

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
        start = self._start(query)
        prompts = [self.prompter.prompt(choice, query, self.given, start) for choice in whole]
        best, context, most = prompts[0], self.context, self.request.max_tokens
        if best.least >= FAR:
            fix = "ask for less, or give something else"
            raise UserError(
                f"nothing that meets all wishes goes with what is given: '{query}'", "wishes", fix
            )
        if any(p.fits for p in prompts):
            return
        if most is not None and best.needed > most:
            raise UserError(
                f"{most} tokens are too few for '{query}'", "max_tokens", f"it takes {best.needed} or more"
            )
        raise UserError(
            f"prompt is longer than the context: {len(best.stream.ids)} tokens given, context {context}, "
            f"at least {best.least} more needed for '{query}'",
            ", ".join(self.given),
            "give less, or train with a larger model.context",
        )

    def _first_that_fits(self, query: Query, draft: Draft) -> tuple[Prompt, tuple[str, ...]]:
        """The best prompt that leaves room, and what the user should know about it."""
        options = choices(self.arrangements, query.known, query.wanted)
        for choice in options:
            prompt = self.prompter.prompt(choice, query, draft.segments, self._start(query))
            if not prompt.fits:
                continue
            warnings = []
            if not choice.trained:
                how = "fills gaps in" if self.request.gap else "makes"
                warnings.append(f"no arrangement of the recipe {how} '{query}' from [{choice}]: untrained")
            guides = prompt.unguided is not None or bool(prompt.target.given)
            if self.request.how.guidance is not None and not guides:
                warnings.append(f"nothing stands before '{query}' in [{choice}]: nothing guides it")
            unused = [n for n in query.known if n not in choice.names]
            if unused:
                short = set(options[0].names) > set(choice.names)
                why = "the context is too short" if short else "no arrangement holds them together"
                warnings.append(f"'{query}' was made without {', '.join(unused)}: {why}")
            return prompt, tuple(warnings)
        raise UserError(f"there is no room for '{query}'", "max_tokens", "allow more tokens")

    # Making

    def _start(self, query: Query) -> Passage:
        begun = {name: self.begun[name] for name in query.wanted if name in self.begun}
        return Passage(begun, tokens=self.request.max_tokens)

    def _answer(self, query: Query, drafts: Sequence[Draft], progress: Progress | None) -> list[Draft]:
        """Make one part for every draft; windows that are alike go through the engine together."""
        known = {id(draft.segments): draft for draft in drafts}  # the same for all before the first is made
        first = {key: self._first_that_fits(query, draft) for key, draft in known.items()}
        making = [self._windows(query, draft, *first[id(draft.segments)]) for draft in drafts]
        asked = {place: next(steps) for place, steps in enumerate(making)}
        report = _Report(progress, str(query), len(drafts))
        finished: dict[int, Draft] = {}
        while asked:
            rows = {place: self._row(query, drafts[place], prompt) for place, prompt in asked.items()}
            for place, took in self._made(asked, rows, report):
                try:
                    asked[place] = making[place].send(took)
                except StopIteration as end:
                    finished[place] = end.value
                    del asked[place]
        report.rest()
        return [finished[place] for place in range(len(drafts))]

    def _made(
        self, asked: Mapping[int, Prompt], rows: Mapping[int, Row], report: _Report
    ) -> list[tuple[int, Took]]:
        """What the engine makes of all that is asked, by draft."""
        groups: dict[tuple[object, ...], list[int]] = {}
        for place, prompt in asked.items():
            groups.setdefault(prompt.kind, []).append(place)
        took = []
        for places in groups.values():
            last = all(asked[place].is_last for place in places)
            made = asked[places[0]].engine.generate(
                [rows[place] for place in places],
                self.request.how,
                progress=report if last else None,
            )
            took += [(p, (m, _harvested(asked[p], m))) for p, m in zip(places, made, strict=True)]
        return took

    def _watched(self, query: Query, draft: Draft) -> Generator[Chunk, None, Draft]:
        """Make one part and give its chunks as they are finished."""
        making = self._windows(query, draft, *self._first_that_fits(query, draft))
        teller = Teller(
            self.vocabulary,
            self.plain,
            {name: self._known(name, self._start(query)) for name in query.wanted},
        )
        prompt = next(making)
        while True:
            took = yield from self._told(query, draft, prompt, teller)
            try:
                prompt = making.send(took)
            except StopIteration as end:
                done: Draft = end.value
                return done

    def _told(
        self, query: Query, draft: Draft, prompt: Prompt, teller: Teller
    ) -> Generator[Chunk, None, Took]:
        splitter, harvest = prompt.splitter(), prompt.harvest()
        steps = prompt.engine.follow(self._row(query, draft, prompt), self.request.how)
        while True:
            try:
                token = next(steps)
            except StopIteration as end:
                return end.value, harvest
            for cut in splitter.add(token):
                yield from (teller.chunk(*kept) for kept in harvest.add(*cut))

    def _row(self, query: Query, draft: Draft, prompt: Prompt) -> Row:
        """What decides the randomness of a first attempt does not depend on how many there are."""
        key = (self.request.seed, draft.row, query.number, draft.attempt, prompt.passage.windows)
        last = max(place for place, number in enumerate(key) if number or place < 3) + 1
        return Row(prompt.stream, prompt.target, prompt.budget, key[:last], prompt.unguided)

    def _windows(
        self, query: Query, draft: Draft, prompt: Prompt, warnings: tuple[str, ...]
    ) -> Generator[Prompt, Took, Draft]:
        """Ask for one window after the other; gives the draft with the part that was made."""
        choice = prompt.choice
        draft = replace(draft, warnings=(*draft.warnings, *warnings))
        while True:
            made, harvest = yield prompt
            draft = _charged(draft, made, harvest)
            passage = self._after(prompt, harvest)
            if not passage.left:
                break
            prompt = self.prompter.prompt(choice, query, draft.segments, passage)
        layout = str(choice) if passage.windows == 1 else f"{choice} ({passage.windows} windows)"
        return self._grown(replace(draft, layouts=(*draft.layouts, layout)), query, passage)

    def _after(self, prompt: Prompt, harvest: Harvest) -> Passage:
        """How far the part is made after a window."""
        passage = prompt.passage
        begun, states, tokens = dict(passage.begun), dict(passage.states), 0
        for name, kept in harvest.kept.items():
            whole = np.array([*self._known(name, passage), *kept], dtype=np.int32)
            tokenizer, member = self.vocabulary.tokenizer(name), self.members[name]
            begun[name] = Encoded(name, whole, tokenizer.clock(whole), tokenizer.cuts(whole), 0)
            if member.turns:
                states[name] = member.grammar.walk(np.array(kept), states.get(name, 0))
            tokens += len(kept) + (harvest.rounds if prompt.target.mixed and member.turns else 0)
        return Passage(
            begun,
            states,
            left=None if passage.left is None else passage.left - harvest.rounds,
            tokens=None if passage.tokens is None else passage.tokens - tokens,
            windows=passage.windows + 1,
            most=None if harvest.rounds or prompt.rounds is None else max(1, prompt.rounds // 2),
        )

    def _known(self, name: str, passage: Passage) -> np.ndarray:
        """Local ids of a wanted modality before those that are made next."""
        if name not in passage.begun:
            return np.empty(0, dtype=np.int32)
        segment, gap = passage.begun[name], self.request.gap
        return segment.ids[: segment.edges[gap[0]]] if gap else segment.ids

    def _grown(self, draft: Draft, query: Query, passage: Passage) -> Draft:
        segments, spans = {}, {}
        for name in query.wanted:
            ids = passage.begun[name].ids
            if name in self.begun:
                gap, begun = self.request.gap, self.begun[name]
                ids = np.concatenate([ids, begun.ids[begun.edges[gap[1]] :]]) if gap else ids
            segments[name] = self._segment(name, ids)
            if name in self.begun:
                spans[name] = (self._made_span(segments[name], self.begun[name]),)
        return replace(draft, segments={**draft.segments, **segments}, spans={**draft.spans, **spans})

    def _segment(self, name: str, ids: np.ndarray) -> Encoded:
        tokenizer = self.vocabulary.tokenizer(name)
        units = tokenizer.units(tokenizer.decode(ids))
        return Encoded(name, ids, tokenizer.clock(ids), tokenizer.cuts(ids), units)

    def _made_span(self, segment: Encoded, begun: Encoded) -> tuple[float, float]:
        times = [*segment.times.tolist(), float("inf")]
        first, last = self.request.gap or (len(begun.edges) - 1, len(times) - 1)
        return times[first], times[last]


class _Report:
    """Counts finished parts for whoever wants to know; the last windows of a part may be more than one."""

    def __init__(self, progress: Progress | None, note: str, parts: int) -> None:
        self.progress, self.note, self.left = progress, note, parts

    def __call__(self, count: int) -> None:
        count = min(count, self.left)
        self.left -= count
        if count and self.progress is not None:
            self.progress(count, self.note)

    def rest(self) -> None:
        """All are finished."""
        self(self.left)


def _harvested(prompt: Prompt, made: Made) -> Harvest:
    """What is kept of a window that has been made."""
    splitter, harvest = prompt.splitter(), prompt.harvest()
    for token in made.ids[len(prompt.program.prefix.ids) :].tolist():
        for cut in splitter.add(token):
            harvest.add(*cut)
    return harvest


def _charged(draft: Draft, made: Made, harvest: Harvest) -> Draft:
    """A draft with what a window cost, as far as it is kept."""
    bits = {n: draft.bits.get(n, 0.0) + cost * harvest.share(n) for n, cost in made.bits.items()}
    kept, whole = sum(map(len, harvest.kept.values())), sum(harvest.made.values())
    return replace(draft, bits={**draft.bits, **bits}, free=draft.free + made.free * kept / max(1, whole))


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
