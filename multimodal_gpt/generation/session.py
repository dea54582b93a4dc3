"""Files and words in, files and words out: a trained run that can be asked."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multimodal_gpt import __version__
from multimodal_gpt.errors import UserError
from multimodal_gpt.generation.choosing import AGREEMENT, OWN, most_agreed
from multimodal_gpt.generation.drafting import Draft, Job, Progress
from multimodal_gpt.generation.engine import Engine
from multimodal_gpt.generation.output import Piece
from multimodal_gpt.generation.questions import Questions
from multimodal_gpt.generation.request import Request, Wishes
from multimodal_gpt.generation.streaming import Streaming
from multimodal_gpt.generation.target import members_of
from multimodal_gpt.recipe.load import arrangements
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
        self.questions = Questions(self.vocabulary, self.engine.rules.members, self.arrangements)

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
            options: n, best_of, best_by, seed, temperature, top_k, top_p, min_p, guidance,
                repetition_penalty, repetition_window, no_repeat and max_tokens, see `settings`; and what is
                given: modality = words as on the command line, a Path, or a content object.

        Raises UserError on unknown names, contents that can't be used, wishes that can't be met, and a prompt
        that leaves no room.
        """
        return self._ask("generate", progress, to=to, bars=bars, wishes=wishes, **options)

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
        return self._ask("extend", progress, to=to, bars=bars, wishes=wishes, **options)

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
        return self._ask("fill", progress, to=to, bars=bars, wishes=wishes, **options)

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
        return self._ask("vary", progress, to=to, share=share, wishes=wishes, **options)

    def stream(self, verb: str = "generate", **asked: Any) -> Streaming:
        """Make one piece and give its chunks as they are finished.

        Args:
            verb: what else can be asked: "extend", "fill" or "vary".
            asked: as for the method of that name; the same `seed` makes the same piece, the first of its n.

        Raises UserError as that method does, and where more than one piece, or attempt at it, is asked for.

        Example: `for chunk in run.stream(to="a+b", bars=8): print(chunk.modality, chunk.content)`
        """
        return self.answer_as_stream(self.questions.ask(verb, asked))

    def answer(
        self, request: Request, *, attempt: int | None = None, progress: Progress | None = None
    ) -> list[Piece]:
        """The pieces that a request asks for.

        `attempt`: the number of the one to keep, whatever the request says of choosing. Raises UserError
        where it can't be met.
        """
        if request.best_by == OWN and attempt is None:
            raise UserError("nobody tells which attempt is best", "best_by", "give the function again")
        started = time.perf_counter()
        drafts = self._job(request).run(progress)
        seconds = (time.perf_counter() - started) / request.n
        plain = request.plain()
        kept = [tries[self._best(tries, request) if attempt is None else attempt] for tries in drafts]
        return [self._piece(draft, request, plain, seconds) for draft in kept]

    def _best(self, tries: Sequence[Draft], request: Request) -> int:
        judge = request.best_by
        if callable(judge):
            return int(np.argmax([judge(self._document(draft, request)) for draft in tries]))
        if judge == AGREEMENT:
            return most_agreed([draft.segments for draft in tries], request.wanted)
        return int(np.argmin([draft.surprise for draft in tries]))

    def answer_as_stream(self, request: Request) -> Streaming:
        """The same for a request for one piece, chunk by chunk. Raises UserError where it can't be met."""
        if request.n > 1 or request.best_of > 1:
            raise UserError("one piece at a time can be watched", "n", "leave out n and best_of")
        plain = request.plain()
        return Streaming(
            self._job(request).stream(), lambda draft, seconds: self._piece(draft, request, plain, seconds)
        )

    def content(self, name: str, value: Any) -> Any:
        """Content of one modality from words, a Path or a content object. Raises UserError."""
        return self.questions.content(name, value)

    def _ask(self, verb: str, progress: Progress | None, **asked: Any) -> list[Piece]:
        return self.answer(self.questions.ask(verb, asked), progress=progress)

    def _job(self, request: Request) -> Job:
        warmth = request.how.temperature
        for name in warmth if isinstance(warmth, Mapping) else ():
            self.vocabulary.range(name)
        return Job(self.engine, self.vocabulary, self.arrangements, request)

    # What was made

    def _piece(self, draft: Draft, request: Request, plain: Mapping[str, Any], seconds: float) -> Piece:
        return Piece(
            document=self._document(draft, request),
            made=request.wanted,
            info={**self._info(draft, request, plain), "request": plain},
            seconds=seconds,
            vocabulary=self.vocabulary,
            made_spans=draft.spans,
        )

    def _document(self, draft: Draft, request: Request) -> Document:
        contents = {**request.given, **{name: self._made(name, draft, request) for name in request.wanted}}
        segments = tuple(Segment(name, content) for name, content in contents.items())
        return Document(segments, source=f"seed {request.seed}, piece {draft.row}")

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
