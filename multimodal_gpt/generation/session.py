"""Files and words in, files and words out: a trained run that can be asked."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from multimodal_gpt import __version__
from multimodal_gpt.errors import UserError, nearest
from multimodal_gpt.generation.drafting import Draft, Job, Progress
from multimodal_gpt.generation.engine import Engine
from multimodal_gpt.generation.layout import parse_wish
from multimodal_gpt.generation.output import Piece
from multimodal_gpt.generation.request import Request, Wishes, settings
from multimodal_gpt.generation.target import members_of
from multimodal_gpt.recipe.load import arrangements
from multimodal_gpt.stream.arrangement import Part
from multimodal_gpt.stream.document import Document, Segment
from multimodal_gpt.training.checkpoint import Loaded, load_weights


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


class Run:
    """A trained model and its modalities, ready to generate."""

    def __init__(self, loaded: Loaded) -> None:
        self.net, self.vocabulary = loaded.net, loaded.vocabulary
        self.recipe, self.info = loaded.recipe, loaded.info
        self.engine = Engine(self.net, members_of(self.vocabulary))
        self.arrangements = arrangements(self.recipe, self.vocabulary)

    def generate(
        self,
        *,
        to: str | Sequence[str],
        bars: int | None = None,
        wishes: Wishes | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[Piece]:
        """Make pieces: each wanted modality in turn, knowing what is given and what was made before it.

        Args:
            to: wanted modalities in order, "a,b" or ["a", "b"]; "a+b" makes two together, taking turns.
            bars: make exactly so many bars (chunks); None = as the model likes.
            wishes: modality -> what else is asked of it, as its tokenizer's `wishes` tells; holds for sure.
            progress: called with how many parts were just made (n for each item of `to` in all).
            options: n, best_of, seed, temperature, top_k, top_p, min_p, guidance and max_tokens, see
                `settings`; and what is given: modality = words as on the command line, a Path, or a content
                object.

        Raises UserError on unknown names, contents that can't be used, wishes that can't be met, and a prompt
        that leaves no room.
        """
        chosen, given = settings(options)
        wanted = parse_wish(to, self.vocabulary.names)
        both = [name for part in wanted for name in part if name in given]
        if both:
            raise UserError(f"'{both[0]}' is both given and asked for", fix="leave it out of one of them")
        contents, shown = self._contents(given)
        asked, meant = self._wishes(wishes or {}, [name for part in wanted for name in part])
        request = Request(wanted, contents, bars=bars, wishes=asked, shown={**shown, **meant}, **chosen)
        return self.answer(request, progress=progress)

    def extend(
        self,
        *,
        bars: int | None = None,
        to: str | Sequence[str] | None = None,
        wishes: Wishes | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[Piece]:
        """Continue what is given, by so many bars or as far as the model likes.

        Args:
            bars, wishes, progress, options: as for `generate`; wishes hold for what is new.
            to: which of the given modalities to continue, all that have bars if None; others are known as a
                whole, and where they go on for longer decide how far.

        Raises UserError as `generate` does.
        """
        return self._change(to, wishes or {}, options, progress, bars=bars)

    def fill(
        self,
        *,
        bars: tuple[int, int],
        to: str | Sequence[str] | None = None,
        wishes: Wishes | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[Piece]:
        """Make some bars of what is given anew, knowing what stands before and after them.

        Args:
            bars: the first and the last of them, counted from 1.
            to, wishes, progress, options: as for `extend`. One modality after the other is filled.

        Raises UserError as `generate` does.
        """
        first, last = bars
        if not 1 <= first <= last:
            raise UserError(f"{first}-{last} are no bars", "bars", "first-last, counted from 1")
        return self._change(to, wishes or {}, options, progress, gap=(first - 1, last))

    def vary(
        self,
        *,
        share: float = 0.3,
        to: str | None = None,
        wishes: Wishes | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[Piece]:
        """Make a share of what is given anew, as the wish `vary` of its tokenizer has it.

        Args:
            share: of its units, above 0 and at most 1; which ones, the seed decides.
            to: which of the given modalities; all that have this wish if None. Others are known as a whole.
            wishes, progress, options: as for `generate`.

        Raises UserError as `generate` does.
        """
        chosen, given = settings(options)
        contents, shown = self._contents(given)
        able = [n for n in contents if "vary" in getattr(self.vocabulary.tokenizer(n), "wishes", ())]
        wanted = self._changed(to or able, tuple(contents))
        varied = [name for part in wanted for name in part]
        asked, meant = self._wishes(wishes or {}, varied)
        for name in varied:
            asked[name] = {**asked.get(name, {}), "vary": contents.pop(name), "share": share}
            meant[f"{name}.vary"] = shown.pop(name)
        request = Request(wanted, contents, wishes=asked, shown={**shown, **meant}, **chosen)
        return self.answer(request, progress=progress)

    def answer(self, request: Request, *, progress: Progress | None = None) -> list[Piece]:
        """The pieces that a request asks for. Raises UserError where it can't be met."""
        started = time.perf_counter()
        warmth = request.how.temperature
        for name in warmth if isinstance(warmth, Mapping) else ():
            self.vocabulary.range(name)
        drafts = Job(self.engine, self.vocabulary, self.arrangements, request).run(progress)
        seconds = (time.perf_counter() - started) / request.n
        plain = request.plain()
        return [self._piece(draft, request, plain, seconds) for draft in drafts]

    def _change(
        self,
        to: str | Sequence[str] | None,
        wishes: Wishes,
        options: Mapping[str, Any],
        progress: Progress | None,
        **how: Any,
    ) -> list[Piece]:
        chosen, given = settings(options)
        contents, shown = self._contents(given)
        wanted = self._changed(to, tuple(contents))
        begun = {name: contents[name] for part in wanted for name in part}
        others = {name: content for name, content in contents.items() if name not in begun}
        asked, meant = self._wishes(wishes, list(begun))
        request = Request(wanted, others, begun, wishes=asked, shown={**shown, **meant}, **how, **chosen)
        return self.answer(request, progress=progress)

    def _changed(self, to: str | Sequence[str] | None, given: Part) -> tuple[Part, ...]:
        """The parts to change: what was named, or all that is given and has chunks."""
        if to is not None:
            wanted = parse_wish(to, self.vocabulary.names)
            for name in (name for part in wanted for name in part):
                if name not in given:
                    raise UserError(f"'{name}' is not given", "to", f"give it as {name}=...")
            return wanted
        turning = [name for name in given if self.engine.rules.members[name].turns]
        if not turning:
            raise UserError("nothing is given that has bars", fix="give it, or name it with `to`")
        for arrangement in self.arrangements:
            for part in arrangement.order:
                if set(turning) <= set(part):
                    return (tuple(name for name in part if name in turning),)
        return tuple((name,) for name in turning)

    # What was given

    def _contents(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """Contents of what is given, and the words that tell a reader what that was."""
        names = self.vocabulary.names
        for name in given:
            if name not in names:
                raise UserError(f"there is no modality '{name}' in this run", fix=nearest(name, names))
        contents = {name: self.content(name, value) for name, value in given.items()}
        return contents, {name: self._shown(name, given[name], c) for name, c in contents.items()}

    def _wishes(
        self, wishes: Wishes, wanted: Sequence[str]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Wishes with contents in place of the words and files that name them, and these words."""
        asked: dict[str, dict[str, Any]] = {}
        shown: dict[str, str] = {}
        for name, values in wishes.items():
            if name not in wanted:
                raise UserError(f"'{name}' is not made, so nothing can be wished of it", "wishes")
            asked[name] = dict(values)
            for key in set(values) & set(self._examples(name)):
                asked[name][key] = self.content(name, values[key])
                shown[f"{name}.{key}"] = self._shown(name, values[key], asked[name][key])
        return asked, shown

    def _examples(self, name: str) -> Sequence[str]:
        return getattr(self.vocabulary.tokenizer(name), "examples", ())

    def content(self, name: str, value: Any) -> Any:
        """Content of one modality from words, a Path or a content object. Raises UserError."""
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

    def _shown(self, name: str, value: Any, content: Any) -> str:
        """What was given, as a reader of the side-car may see it."""
        if isinstance(value, str | Path):
            return str(value)
        return self.vocabulary.tokenizer(name).show(self.vocabulary.encode(name, content).ids)

    # What was made

    def _piece(self, draft: Draft, request: Request, plain: Mapping[str, Any], seconds: float) -> Piece:
        contents = {**request.given, **{name: self._made(name, draft, request) for name in request.wanted}}
        segments = tuple(Segment(name, content) for name, content in contents.items())
        return Piece(
            document=Document(segments, source=f"seed {request.seed}, piece {draft.row}"),
            made=request.wanted,
            info={**self._info(draft, request, plain), "request": plain},
            seconds=seconds,
            vocabulary=self.vocabulary,
            made_spans=draft.spans,
        )

    def _made(self, name: str, draft: Draft, request: Request) -> Any:
        content = self.vocabulary.decode(name, draft.segments[name].ids)
        tokenizer = self.vocabulary.tokenizer(name)
        like = request.begun.get(name, request.wishes.get(name, {}).get("vary"))
        return (
            content if like is None or not hasattr(tokenizer, "dressed") else tokenizer.dressed(content, like)
        )

    def _info(self, draft: Draft, request: Request, plain: Mapping[str, Any]) -> dict[str, Any]:
        """What a reader wants to know of a piece, as plain values. The same seed gives the same."""
        made = request.wanted
        return {
            "made_by": f"multimodal_gpt {__version__}",
            "checkpoint": {key: self.info.get(key) for key in ("sha256", "step", "tokens", "fingerprint")},
            "seed": request.seed,
            "row": draft.row,
            "attempt": draft.attempt,
            "given": {name: words for name, words in request.shown.items() if "." not in name},
            "to": plain["to"],
            "layouts": list(draft.layouts),
            **plain["how"],
            "max_tokens": request.max_tokens,
            "tokens": {name: len(segment.ids) for name, segment in draft.segments.items()},
            "units": {name: draft.segments[name].units for name in made},
            "bits": {name: round(draft.bits[name], 3) for name in made},
            "shown": {name: self.vocabulary.tokenizer(name).show(draft.segments[name].ids) for name in made},
            "warnings": list(draft.warnings),
        }
