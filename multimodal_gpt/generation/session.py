"""Files and words in, files and words out: a trained run that can be asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multimodal_gpt import __version__
from multimodal_gpt.errors import UserError, nearest
from multimodal_gpt.generation.engine import Engine, Made, Row
from multimodal_gpt.generation.layout import Choice, choices, lay_out, parse_wish
from multimodal_gpt.generation.output import Piece
from multimodal_gpt.generation.sampling import Sampling
from multimodal_gpt.generation.target import Target, members_of
from multimodal_gpt.recipe.load import arrangements
from multimodal_gpt.stream.arrangement import Part, Stream, from_stream
from multimodal_gpt.stream.document import Document, Segment
from multimodal_gpt.stream.vocabulary import Encoded
from multimodal_gpt.training.checkpoint import Loaded, load_weights

Progress = Callable[[int, str], object]
"""Called with how many segments have just been finished, and a note: what they are."""


def load(folder: str | Path, *, device: str = "auto", plugins: Mapping[str, str] | None = None) -> Run:
    """Open a trained run.

    Args:
        folder: the run.
        device: "auto" (the GPU if there is one), "cpu", "cuda", "cuda:1" ...
        plugins: modality -> plugin file of yours to use instead of the recorded one.

    Raises UserError where a file is missing or damaged, or the device is not there.
    """
    return Run(load_weights(Path(folder), _device(device), plugins))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    name = "cuda" if name == "gpu" else name
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"there is no device '{name}'", "device", "auto, cpu or cuda") from error
    return device


@dataclass(frozen=True)
class _Query:
    """One target to make: what is known when its turn comes, and how many turns there are from then on."""

    number: int
    known: tuple[str, ...]
    wanted: Part
    turns: int


@dataclass(frozen=True, eq=False)
class _Wish:
    """Everything that was asked for, checked; what is given as contents, as ids and as shown."""

    given: Mapping[str, Any]
    segments: Mapping[str, Encoded]
    shown: Mapping[str, str]
    queries: tuple[_Query, ...]
    seed: int
    how: Sampling
    max_tokens: int | None


@dataclass(frozen=True, eq=False)
class _Draft:
    """A piece in the making."""

    row: int
    segments: Mapping[str, Encoded]
    bits: Mapping[str, float] = field(default_factory=dict)
    layouts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Prompt:
    """What goes to the engine for one query of one draft."""

    choice: Choice
    stream: Stream
    target: Target
    least: int
    budget: int

    @property
    def fits(self) -> bool:
        """Whether there is room for even the shortest answer."""
        return self.least <= self.budget


class Run:
    """A trained model and its modalities, ready to generate."""

    def __init__(self, loaded: Loaded) -> None:
        self.net, self.vocabulary = loaded.net, loaded.vocabulary
        self.recipe, self.info = loaded.recipe, loaded.info
        self.engine = Engine(self.net, members_of(self.vocabulary))
        self.arrangements = arrangements(self.recipe, self.vocabulary)

    def generate(  # noqa: PLR0913 (every option of a generation, all by name)
        self,
        *,
        to: str | Sequence[str],
        n: int = 1,
        seed: int = 0,
        temperature: float | Mapping[str, float] = 0.9,
        top_k: int | None = None,
        top_p: float | None = 0.95,
        min_p: float | None = None,
        max_tokens: int | None = None,
        progress: Progress | None = None,
        **given: Any,
    ) -> list[Piece]:
        """Make `n` pieces: each wanted modality in turn, knowing what is given and what was made before it.

        Args:
            to: wanted modalities in order, "a,b" or ["a", "b"]; "a+b" makes two together, taking turns.
            n: how many pieces; piece i depends on (seed, i) and not on n.
            seed: decides everything random, 0 or more.
            temperature: 0 = always the most likely; one number, or one per modality.
            top_k, top_p, min_p: filters on what may be drawn, see `generation.sampling`. A model of 828 folk
                tunes kept 90 % of its notes in one scale at temperature 1, and 99 % at 0.9 with top_p 0.95
                (12 tunes each, given one harmony).
            max_tokens: most tokens of each wanted part, not counting known segments that take turns with it.
            progress: called with how many parts were just made (n for each item of `to` in all).
            given: modality -> words as on the command line, a Path, or a content object.

        Raises UserError on unknown names, contents that can't be used, and a prompt that leaves no room.
        """
        started = time.perf_counter()
        how = Sampling(temperature, top_k, top_p, min_p)
        wish = self._wish(to, given, n, seed, how, max_tokens)
        drafts = [_Draft(row, wish.segments) for row in range(n)]
        for query in wish.queries:
            drafts = self._answer(query, wish, drafts, progress)
        seconds = (time.perf_counter() - started) / n
        return [self._piece(draft, wish, seconds) for draft in drafts]

    def _wish(
        self,
        to: str | Sequence[str],
        given: Mapping[str, Any],
        n: int,
        seed: int,
        how: Sampling,
        most: int | None,
    ) -> _Wish:
        names = self.vocabulary.names
        wanted = parse_wish(to, names)
        _check_numbers(n, seed, most)
        for name in (*given, *(how.temperature if isinstance(how.temperature, Mapping) else ())):
            if name not in names:
                raise UserError(f"there is no modality '{name}' in this run", fix=nearest(name, names))
        both = [name for part in wanted for name in part if name in given]
        if both:
            raise UserError(f"'{both[0]}' is both given and asked for", fix="leave it out of one of them")
        contents = {name: self._content(name, value) for name, value in given.items()}
        segments = {name: self.vocabulary.encode(name, content) for name, content in contents.items()}
        shown = {name: self._shown(value, segments[name]) for name, value in given.items()}
        wish = _Wish(contents, segments, shown, _queries(wanted, tuple(given)), seed, how, most)
        for query in wish.queries:
            self._check_room(query, wish)
        return wish

    def _content(self, name: str, value: Any) -> Any:
        tokenizer = self.vocabulary.tokenizer(name)
        try:
            if isinstance(value, str):
                return tokenizer.parse(value)
            if not isinstance(value, Path):
                return value
            if not value.is_file():
                raise UserError("there is no such file", value)
            if value.suffix.lower() not in tokenizer.suffixes:
                raise UserError(f"'{name}' reads {', '.join(tokenizer.suffixes)}", value)
            item = next(iter(tokenizer.read(value)), None)
        except UserError as error:
            raise error.within(name) from error
        if item is None:
            raise UserError(f"the file holds no {name}", value)
        return item.content

    def _shown(self, value: Any, segment: Encoded) -> str:
        """What was given, as a reader of the side-car may see it."""
        if isinstance(value, str | Path):
            return str(value)
        return self.vocabulary.tokenizer(segment.modality).show(segment.ids)

    def _check_room(self, query: _Query, wish: _Wish) -> None:
        """Refuse before anything is made: what is given must leave room, in a layout like the best."""
        known = tuple(wish.segments)
        options = choices(self.arrangements, known, query.wanted)
        whole = [c for c in options if len(c.names) == len(options[0].names)]
        prompts = [self._prompt(choice, query, wish, wish.segments) for choice in whole]
        if any(p.fits for p in prompts):
            return
        best, context = prompts[0], self.engine.context
        if len(best.stream.ids) + best.least <= context:
            most = f"{wish.max_tokens} tokens are too few for '{'+'.join(query.wanted)}'"
            raise UserError(most, "max_tokens", f"it takes {_free(best)} or more")
        raise UserError(
            f"prompt is longer than the context: {len(best.stream.ids)} tokens given, context {context}, "
            f"at least {best.least} more needed for '{'+'.join(query.wanted)}'",
            ", ".join(known),
            "give less, or train with a larger model.context",
        )

    def _prompt(self, choice: Choice, query: _Query, wish: _Wish, segments: Mapping[str, Encoded]) -> _Prompt:
        """A choice as ids, with its share of the context: equal ones for all parts still to come."""
        stream, target = lay_out(self.vocabulary, segments, choice, query.wanted)
        least = self.engine.least(target)
        room = self.engine.context - len(stream.ids)
        budget = min(room, max(room // query.turns, least))
        if wish.max_tokens is not None:
            budget = min(budget, wish.max_tokens + _known_tokens(target))
        return _Prompt(choice, stream, target, least, budget)

    def _first_that_fits(self, query: _Query, wish: _Wish, draft: _Draft) -> tuple[_Prompt, tuple[str, ...]]:
        """The best prompt that leaves room, and what the user should know about it."""
        name = "+".join(query.wanted)
        options = choices(self.arrangements, query.known, query.wanted)
        for choice in options:
            prompt = self._prompt(choice, query, wish, draft.segments)
            if not prompt.fits:
                continue
            warnings = []
            if not choice.trained:
                warnings.append(f"no arrangement of the recipe makes '{name}' from [{choice}]: untrained")
            unused = [n for n in query.known if n not in choice.names]
            if unused:
                short = set(options[0].names) > set(choice.names)
                why = "the context is too short" if short else "no arrangement holds them together"
                warnings.append(f"'{name}' was made without {', '.join(unused)}: {why}")
            return prompt, tuple(warnings)
        raise UserError(f"there is no room for '{name}'", "max_tokens", "allow more tokens")

    def _answer(
        self, query: _Query, wish: _Wish, drafts: Sequence[_Draft], progress: Progress | None
    ) -> list[_Draft]:
        """Make one target for every draft; drafts that are laid out alike go through the engine together."""
        known = {id(draft.segments): draft for draft in drafts}  # the same for all before the first is made
        found = {key: self._first_that_fits(query, wish, draft) for key, draft in known.items()}
        prompts = [found[id(draft.segments)] for draft in drafts]
        note = "+".join(query.wanted)
        finished: dict[int, Made] = {}
        for choice in dict.fromkeys(prompt.choice for prompt, _ in prompts):
            group = [i for i, (prompt, _) in enumerate(prompts) if prompt.choice == choice]
            rows = [
                Row(p.stream, p.target, p.budget, (wish.seed, drafts[i].row, query.number))
                for i in group
                for p in [prompts[i][0]]
            ]
            report = None if progress is None else lambda count: progress(count, note)
            finished |= dict(zip(group, self.engine.generate(rows, wish.how, progress=report), strict=True))
        return [self._grown(draft, query, finished[i], *prompts[i]) for i, draft in enumerate(drafts)]

    def _grown(
        self, draft: _Draft, query: _Query, made: Made, prompt: _Prompt, warnings: tuple[str, ...]
    ) -> _Draft:
        parts = from_stream(self.vocabulary, made.ids)
        return replace(
            draft,
            segments={**draft.segments, **{name: self._segment(name, parts[name]) for name in query.wanted}},
            bits={**draft.bits, **made.bits},
            layouts=(*draft.layouts, str(prompt.choice)),
            warnings=(*draft.warnings, *warnings),
        )

    def _segment(self, name: str, ids: np.ndarray) -> Encoded:
        tokenizer = self.vocabulary.tokenizer(name)
        units = tokenizer.units(tokenizer.decode(ids))
        return Encoded(name, ids, tokenizer.clock(ids), tokenizer.cuts(ids), units)

    def _piece(self, draft: _Draft, wish: _Wish, seconds: float) -> Piece:
        made = tuple(name for query in wish.queries for name in query.wanted)
        contents = {**wish.given, **{n: self.vocabulary.decode(n, draft.segments[n].ids) for n in made}}
        segments = tuple(Segment(name, content) for name, content in contents.items())
        return Piece(
            document=Document(segments, source=f"seed {wish.seed}, piece {draft.row}"),
            made=made,
            info=self._info(draft, wish, made),
            seconds=seconds,
            vocabulary=self.vocabulary,
        )

    def _info(self, draft: _Draft, wish: _Wish, made: tuple[str, ...]) -> dict[str, Any]:
        """Everything that decided a piece, as plain values: the side-car. The same seed gives the same."""
        how = wish.how
        return {
            "made_by": f"multimodal_gpt {__version__}",
            "checkpoint": {key: self.info.get(key) for key in ("sha256", "step", "tokens", "fingerprint")},
            "seed": wish.seed,
            "row": draft.row,
            "given": dict(wish.shown),
            "to": ["+".join(query.wanted) for query in wish.queries],
            "layouts": list(draft.layouts),
            "temperature": dict(how.temperature) if isinstance(how.temperature, Mapping) else how.temperature,
            "top_k": how.top_k,
            "top_p": how.top_p,
            "min_p": how.min_p,
            "max_tokens": wish.max_tokens,
            "tokens": {name: len(segment.ids) for name, segment in draft.segments.items()},
            "units": {name: draft.segments[name].units for name in made},
            "bits": {name: round(draft.bits[name], 3) for name in made},
            "shown": {name: self.vocabulary.tokenizer(name).show(draft.segments[name].ids) for name in made},
            "warnings": list(draft.warnings),
        }


def _check_numbers(n: int, seed: int, max_tokens: int | None) -> None:
    if n < 1:
        raise UserError(f"{n} pieces can't be made", "n", "1 or more")
    if seed < 0:
        raise UserError(f"{seed} is negative", "seed", "0 or more")
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"{max_tokens} tokens hold nothing", "max_tokens", "1 or more")


def _queries(wanted: Sequence[Part], given: tuple[str, ...]) -> tuple[_Query, ...]:
    queries, known = [], given
    for number, part in enumerate(wanted):
        queries.append(_Query(number, known, part, len(wanted) - number))
        known += part
    return tuple(queries)


def _known_tokens(target: Target) -> int:
    """Tokens of the segments that take turns with the target, their tags included."""
    return sum(len(s.ids) + len(s.edges) - 1 for s in target.given.values())


def _free(prompt: _Prompt) -> int:
    return prompt.least - _known_tokens(prompt.target)
