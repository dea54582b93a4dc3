"""What a run is asked for: everything that decides what comes out, as plain values where need be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from multimodal_gpt.errors import UserError
from multimodal_gpt.generation.choosing import LIKELIHOOD, OWN, Judge, check_judge
from multimodal_gpt.generation.sampling import Sampling
from multimodal_gpt.stream.arrangement import Part
from multimodal_gpt.stream.plain import from_plain, to_plain
from multimodal_gpt.stream.vocabulary import Vocabulary

Contents = Mapping[str, Any]
"""Modality -> content."""
Wishes = Mapping[str, Mapping[str, Any]]
"""Modality -> what else is asked of it: a plain value, or a content where its plugin takes one."""
_ALWAYS = ("temperature", "top_k", "top_p", "min_p", "guidance")
"""Settings that are told in every side-car; younger ones where they are used, so that older ones replay."""


@dataclass(frozen=True, eq=False)
class Request:
    """What to make, from what, and how. The same request to the same weights gives the same pieces.

    Args:
        to: parts to make, in order.
        given: known as a whole.
        begun: wanted ones that are known in part: to be continued or, with a `gap`, but for the gap.
        gap: first and last chunk + 1 that are made anew, in wanted ones.
        bars: how many chunks are made of each wanted modality that has chunks; None = as the model likes.
        wishes: what else is asked of wanted ones.
        n: how many pieces.
        best_of: attempts at each piece.
        best_by: which of them is kept, see `choosing`.
        seed: decides everything random.
        how: temperature and filters.
        max_tokens: most tokens of each part.
        shown: what was given, as a reader may see it; under NAME.WISH what a wish's content was.
    """

    to: tuple[Part, ...]
    given: Contents = field(default_factory=dict)
    begun: Contents = field(default_factory=dict)
    gap: tuple[int, int] | None = None
    bars: int | None = None
    wishes: Wishes = field(default_factory=dict)
    n: int = 1
    best_of: int = 1
    best_by: str | Judge = LIKELIHOOD
    seed: int = 0
    how: Sampling = Sampling()  # noqa: RUF009 (frozen)
    max_tokens: int | None = None
    shown: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"{self.n} pieces can't be made", "n", "1 or more")
        if self.best_of < 1:
            raise UserError(f"{self.best_of} attempts make no piece", "best_of", "1 or more")
        check_judge(self.best_by)
        if self.seed < 0:
            raise UserError(f"{self.seed} is negative", "seed", "0 or more")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UserError(f"{self.max_tokens} tokens hold nothing", "max_tokens", "1 or more")
        if self.bars is not None and self.bars < 1:
            raise UserError(f"{self.bars} bars can't be made", "bars", "1 or more")

    @property
    def wanted(self) -> Part:
        """All modalities to make, in order."""
        return tuple(name for part in self.to for name in part)

    def plain(self) -> dict[str, Any]:
        """All of it as values that JSON holds, the reverse of `from_plain_request`; of a function that judges
        attempts only that there was one.
        """
        judge = OWN if callable(self.best_by) else self.best_by
        return {
            "to": ["+".join(part) for part in self.to],
            "given": {name: to_plain(content) for name, content in self.given.items()},
            "begun": {name: to_plain(content) for name, content in self.begun.items()},
            "gap": self.gap and list(self.gap),
            "bars": self.bars,
            "wishes": {
                name: {k: to_plain(v) for k, v in wishes.items()} for name, wishes in self.wishes.items()
            },
            "n": self.n,
            "best_of": self.best_of,
            **({"best_by": judge} if judge != LIKELIHOOD else {}),
            "seed": self.seed,
            "how": _plain_how(self.how),
            "max_tokens": self.max_tokens,
            "shown": dict(self.shown),
        }


def _plain_how(how: Sampling) -> dict[str, Any]:
    values = {f.name: getattr(how, f.name) for f in fields(how)}
    told = {name: v for name, v in values.items() if name in _ALWAYS or v != getattr(Sampling, name)}
    warmth = how.temperature
    return {**told, "temperature": dict(warmth) if isinstance(warmth, Mapping) else warmth}


def from_plain_request(plain: Mapping[str, Any], vocabulary: Vocabulary) -> Request:
    """The reverse of `Request.plain`. Raises UserError where it is damaged or of another vocabulary."""

    def content(name: str, value: Any) -> Any:
        return from_plain(value, vocabulary.tokenizer(name))

    try:
        return Request(
            to=tuple(tuple(part.split("+")) for part in plain["to"]),
            given={name: content(name, value) for name, value in plain["given"].items()},
            begun={name: content(name, value) for name, value in plain["begun"].items()},
            gap=(int(plain["gap"][0]), int(plain["gap"][1])) if plain["gap"] else None,
            bars=plain["bars"],
            wishes={
                name: {k: content(name, v) for k, v in wishes.items()}
                for name, wishes in plain["wishes"].items()
            },
            n=plain["n"],
            best_of=plain["best_of"],
            best_by=plain.get("best_by", LIKELIHOOD),
            seed=plain["seed"],
            how=Sampling(**plain["how"]),
            max_tokens=plain["max_tokens"],
            shown=plain["shown"],
        )
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"the request is damaged: {type(error).__name__} {error}") from error


def settings(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of a generation, and what is left of them: what is given, by modality.

    n: how many pieces; piece i depends on (seed, i) and not on n (default 1).
    best_of: attempts at each piece, of which one is kept (1).
    best_by: which: "likelihood", the least bits per chosen id; "agreement", the one that has most in common
        with the others; or a function that gives a document a number, the higher the better ("likelihood").
    seed: decides everything random, 0 or more (0).
    temperature: 0 = always the most likely; one number, or one per modality (0.9).
    top_k, top_p, min_p: filters on what may be drawn, see `generation.sampling` (top_p 0.95). A model of 828
        folk tunes kept 90 % of its notes in one scale at temperature 1, and 99 % at 0.9 with top_p 0.95 (12
        tunes each, given one harmony).
    guidance: how much more than it would the model follows what stands before the target or takes turns with
        it, words or a harmony for example: 1.5 or 2; None = as it would. Takes twice the time. Of the notes
        in 48 tunes that a model made for two harmonies 64 % belonged to the one that sounded, at 1.5 70 %, at
        2 73 %, at 3 76 %, and at 0, where it hears nothing of it, 29 %.
    repetition_penalty: how much less likely than it is an id comes again that was among the last
        `repetition_window` (64) made: 1.1 or 1.2 where it goes round in circles; None = as likely as it is.
    no_repeat: no so many ids in a row come twice, where others may; None = as they like. Neither is for what
        lives from repeating itself: of the bars of 60 held-out folk tunes 56 % had been there before, of the
        bars of 24 that a model made 30 %; with a penalty of 1.05 22 %, of 1.2 11 %, and 91.8 % of the notes
        kept to one scale, not 98.7 %, at 2.66 bits each, not 1.44; with no_repeat 24 10 % and 2.02 bits, with
        12 none and 2.74.
    max_tokens: most tokens of each wanted part, not counting known segments that take turns with it.
    """
    rest = dict(options)
    names = [f.name for f in fields(Sampling) if f.name in rest]
    how = Sampling(**{"temperature": 0.9, "top_p": 0.95, **{name: rest.pop(name) for name in names}})
    chosen: dict[str, Any] = {
        name: rest.pop(name) for name in ("n", "best_of", "best_by", "seed", "max_tokens") if name in rest
    }
    return {**chosen, "how": how}, rest
