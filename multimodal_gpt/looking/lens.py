"""The lens: how one modality changes what a model expects of another one, token by token.

Every token of the target is scored three times, as `likelihood` scores it: with the context that is given,
with another one in its place, and with none, as a model has met the target where an arrangement dropped the
context. Bits are -log2 of the probability among the target's own answers, so `none - known` is what the
context saves: +1 bit, the token is twice as likely with it.

Where no other context is named it is the given one moved by the modality's own symmetry, once for every
other step in the recipe's `data.shifts` (for harmony: the same in the other eleven keys), and bits are the
mean over them: what sits at the same places, equally well formed, and does not fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.evaluation.likelihood import Charges, charge, tokens_of
from multimodal_gpt.generation.layout import choices
from multimodal_gpt.generation.session import Run
from multimodal_gpt.looking.looks import Look, largest, looks_before
from multimodal_gpt.looking.words import Words
from multimodal_gpt.stream.arrangement import Part, crop
from multimodal_gpt.stream.tokenizer import Tokenizer
from multimodal_gpt.stream.vocabulary import Encoded, Vocabulary

SHIFTS = tuple(range(-5, 7))
"""Steps by which the context is moved where the recipe knows none but 0."""


@dataclass(frozen=True)
class Mark:
    """One token of the target that carries its content, with what it costs in bits.

    Args:
        token: its place in the stream.
        time: quarter notes; None where the target has no times.
        word: as the modality shows it.
        known, other, none: bits with the given context, with another one (NaN where there is none), without.
    """

    token: int
    time: float | None
    word: str
    known: float
    other: float
    none: float

    @property
    def saved(self) -> float:
        """Bits that the context saves."""
        return self.none - self.known


@dataclass(frozen=True)
class Bits:
    """Bits of the whole target, the tokens between the marks and the closing ones too."""

    known: float
    other: float
    none: float


@dataclass(frozen=True, eq=False)
class Lens:
    """What `lens` found.

    Args:
        target, context: names of the modalities.
        layout: how the stream was laid out, as "chords+melody".
        against: what stood for another context, in words; "" where nothing did.
        marks: the target's tokens that carry its content, in order.
        total: bits of the whole target; `known` and `none` are what `likelihood.segment_bits` gives.
        focus: index of the mark whose attention is told.
        way: how attention was summed up over blocks.
        looks: all tokens before that mark, in order; shares sum up to 1.
        warnings: what the user should know.
        contents: modality -> content, of all that was given.
        segments: the same as ids.
        start: quarter notes that were left out before; the times of marks and looks count them in.
        vocabulary: of the run.
    """

    target: str
    context: str
    layout: str
    against: str
    marks: tuple[Mark, ...]
    total: Bits
    focus: int
    way: str
    looks: tuple[Look, ...]
    warnings: tuple[str, ...]
    contents: Mapping[str, Any]
    segments: Mapping[str, Encoded]
    start: float
    vocabulary: Vocabulary

    @property
    def units(self) -> int:
        """How many units the target holds."""
        return self.segments[self.target].units

    @property
    def unit(self) -> str:
        """What they are, in the singular."""
        return self.vocabulary.tokenizer(self.target).unit

    def top(self, count: int = 8) -> list[Look]:
        """The looks with the largest shares; neighbours that say the same (a word of two tokens) are one."""
        return largest(self.looks, count)

    def plain(self) -> dict[str, Any]:
        """All of it as plain values; NaN is None."""
        marks = [{**asdict(mark), "saved": mark.saved} for mark in self.marks]
        value = {
            "target": self.target,
            "context": self.context,
            "layout": self.layout,
            "against": self.against,
            "marks": marks,
            "total": asdict(self.total),
            "saved": self.total.none - self.total.known,
            "units": self.units,
            "unit": self.unit,
            "attention": {
                "mark": self.focus + 1,
                "way": self.way,
                "looks": [asdict(look) for look in self.looks],
            },
            "warnings": list(self.warnings),
        }
        return _without_nan(value)  # type: ignore[no-any-return]


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def lens(  # noqa: PLR0913 (every option of a look, all by name)
    run: Run,
    *,
    of: str | None = None,
    through: str | None = None,
    against: Any = None,
    token: int | None = None,
    at: float | None = None,
    way: str = "mean",
    start: float = 0.0,
    stop: float | None = None,
    **given: Any,
) -> Lens:
    """How one given modality changes what the model expects of another.

    Args:
        run: a trained run.
        of: the modality that is looked at, the first given one if None.
        through: the one whose influence is asked for, the last other one if None; what else is given stays.
        against: other content for `through`, words or a content object; see the module for the default.
        token: number of the mark whose attention is told, from 1.
        at: or its time, quarter notes: the last mark that has begun. Neither: where the context saves most.
        way: "mean" or "rollout", see `attention_weights`.
        start, stop: quarter notes; only chunks that begin in between are looked at.
        given: modality -> words as on the command line, a Path, or a content object.

    Raises UserError on unknown names, contents that can't be used, and what is longer than the context.
    """
    target, context = _roles(run.vocabulary, tuple(given), of, through)
    part = (start, np.inf if stop is None else stop)
    segments = {name: _segment(run, name, value, part) for name, value in given.items()}
    contents = {name: run.vocabulary.decode(name, segment.ids) for name, segment in segments.items()}
    order, warnings = _order(run, segments, target)
    found = _charged(run, segments, order, target)
    none = _charged(run, {n: s for n, s in segments.items() if n != context}, order, target)
    others, in_words = _others(run, contents[context], segments[context], against, part)
    charges = [_charged(run, {**segments, context: other}, order, target) for other in others]
    tokenizer, content = run.vocabulary.tokenizer(target), contents[target]
    marks = _marks(tokenizer, content, segments[target], found, none, charges, start)
    focus = _focus(marks, token, at)
    looks = looks_before(run, found.stream, segments, marks[focus].token, way)
    return Lens(
        target=target,
        context=context,
        layout=", ".join("+".join(part) for part in order),
        against=in_words,
        marks=marks,
        total=_total(found, none, charges),
        focus=focus,
        way=way,
        looks=tuple(look if look.time is None else replace(look, time=look.time + start) for look in looks),
        warnings=(*warnings, *_fit_warnings(segments, target, context)),
        contents=contents,
        segments=segments,
        start=start,
        vocabulary=run.vocabulary,
    )


def _total(known: Charges, none: Charges, others: Sequence[Charges]) -> Bits:
    other = np.mean([charges.bits.sum() for charges in others]) if others else np.nan
    return Bits(float(known.bits.sum()), float(other), float(none.bits.sum()))


def _roles(
    vocabulary: Vocabulary, given: Sequence[str], of: str | None, through: str | None
) -> tuple[str, str]:
    """The modality that is looked at and the one that it is seen through."""
    for name in given:
        vocabulary.range(name)
    if len(given) < 2:
        fix = f"give two of them: {', '.join(f'--{name}' for name in vocabulary.names)}"
        raise UserError("a lens needs two modalities, one to look at and one to look through", fix=fix)
    target = given[0] if of is None else of
    vocabulary.range(target)
    if target not in given:
        raise UserError(f"'{target}' is to be looked at and is not given", "of", f'write --{target} "..."')
    context = [name for name in given if name != target][-1] if through is None else through
    if context not in given:
        what = f"'{context}' is to be looked through and is not given"
        raise UserError(what, "through", f'write --{context} "..."')
    if context == target:
        raise UserError(f"'{target}' can't be looked at through itself", "through", "name another modality")
    return target, context


def _segment(run: Run, name: str, value: Any, part: tuple[float, float]) -> Encoded:
    """What is given as ids; of content with times the chunks that begin in a part."""
    vocabulary = run.vocabulary
    segment = vocabulary.encode(name, run.content(name, value))
    if part == (0.0, np.inf):
        return segment
    cropped = crop({name: segment}, *part)
    try:
        return vocabulary.encode(name, vocabulary.decode(name, cropped[name].ids))
    except (KeyError, UserError):  # no chunk, or none that holds anything
        what = f"nothing of it begins between {part[0]:g} and {part[1]:g} quarter notes"
        raise UserError(what, name, "choose another --start and --stop") from None


def _order(run: Run, segments: Mapping[str, Encoded], target: str) -> tuple[tuple[Part, ...], list[str]]:
    """The layout that generating the target from the others would take, and what is wrong with it."""
    known = [name for name in segments if name != target]
    options = choices(run.arrangements, known, (target,))
    choice = next(c for c in options if set(c.names) == set(segments))
    untrained = f"no arrangement of the recipe shows [{choice}]: the model has never met it"
    return (*choice.before, choice.part), [] if choice.trained else [untrained]


def _charged(run: Run, segments: Mapping[str, Encoded], order: Sequence[Part], target: str) -> Charges:
    tokens, context = tokens_of(segments, order), run.net.config.context
    if tokens > context:
        what = f"together {tokens} tokens, and the model's context is {context}"
        raise UserError(what, ", ".join(segments), "look at a part of it: --start 0 --stop 64")
    return charge(run.net, run.vocabulary, segments, order, target)


def _others(
    run: Run, content: Any, segment: Encoded, against: Any, part: tuple[float, float]
) -> tuple[list[Encoded], str]:
    """What stands in the context's place, and that in words."""
    if against is None:
        return _moved(run, content, segment)
    other = _segment(run, segment.modality, against, part)
    return [other], run.vocabulary.tokenizer(segment.modality).show(other.ids)


def _moved(run: Run, content: Any, segment: Encoded) -> tuple[list[Encoded], str]:
    """The context moved by its own symmetry, once for each other step that can be; and that in words."""
    tokenizer = run.vocabulary.tokenizer(segment.modality)
    if not hasattr(tokenizer, "shift"):
        return [], ""
    found = []
    for steps in [s for s in run.recipe.data.shifts if s] or [s for s in SHIFTS if s]:
        moved = tokenizer.shift(content, steps)
        other = None if moved is None else run.vocabulary.encode(segment.modality, moved)
        if other is not None and not np.array_equal(other.ids, segment.ids):
            found.append(other)
    return found, f"the same, moved; mean of {len(found)}" if found else ""


def _marks(
    tokenizer: Tokenizer,
    content: Any,
    segment: Encoded,
    known: Charges,
    none: Charges,
    others: Sequence[Charges],
    start: float,
) -> tuple[Mark, ...]:
    words = Words(tokenizer).of_segment(segment)
    bits = [charges.bits[charges.own] for charges in (known, none, *others)]  # each (T,)
    other = np.mean(bits[2:], axis=0) if others else np.full(len(segment.ids), np.nan)
    places = known.places[known.own]
    return tuple(
        Mark(
            token=int(places[i]),
            time=None if segment.clock is None else float(segment.clock[i]) + start,
            word=words[i],
            known=float(bits[0][i]),
            other=float(other[i]),
            none=float(bits[1][i]),
        )
        for i in carriers(tokenizer, content, segment.ids).tolist()
    )


def carriers(tokenizer: Tokenizer, content: Any, ids: np.ndarray) -> np.ndarray:
    """(N,) places of the tokens that carry the content: those that the modality's own symmetry moves (of a
    note its pitch, not its length); all of them where it has no times or nothing can be moved.
    """
    everything = np.arange(len(ids))
    if tokenizer.clock(ids) is None or not hasattr(tokenizer, "shift"):
        return everything
    for steps in (1, -1, 2, -2):
        moved = tokenizer.shift(content, steps)
        other = None if moved is None else tokenizer.encode(moved)
        if other is not None and len(other) == len(ids) and (other != ids).any():
            return np.flatnonzero(other != ids)
    return everything


def _focus(marks: Sequence[Mark], token: int | None, at: float | None) -> int:
    """Index of the mark that is asked for."""
    if token is not None:
        if not 1 <= token <= len(marks):
            raise UserError(f"there is no token {token}", "token", f"1 to {len(marks)}")
        return token - 1
    if at is None:
        return int(np.argmax([mark.saved for mark in marks]))
    begun = [i for i, mark in enumerate(marks) if mark.time is not None and mark.time <= at + 1e-3]
    if not begun:
        first = marks[0].time
        fix = "it has no times: name a token" if first is None else f"the first begins at {first:g}"
        raise UserError(f"nothing has begun at {at:g} quarter notes", "at", fix)
    return begun[-1]


def _fit_warnings(segments: Mapping[str, Encoded], target: str, context: str) -> Iterator[str]:
    """What does not fit between two segments that have times."""
    mine, other = segments[target], segments[context]
    if mine.clock is None or other.clock is None:
        return
    both = min(len(mine.times), len(other.times))
    if not np.allclose(mine.times[:both], other.times[:both], atol=1e-3):
        yield f"chunks of '{context}' and '{target}' do not begin at the same times: is the meter the same?"
    elif len(other.times) < len(mine.times):
        end = mine.times[len(other.times)]
        yield f"'{context}' ends at {end:g} quarter notes, '{target}' goes on: repeat it, or write more"
