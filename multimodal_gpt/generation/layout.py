"""How a wish is laid out as a stream: what is known comes before the target or takes turns with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from multimodal_gpt.errors import UserError, nearest
from multimodal_gpt.generation.target import Filling, Target
from multimodal_gpt.stream.arrangement import Arrangement, Gap, Layout, Part, Stream, to_stream
from multimodal_gpt.stream.vocabulary import FILL, Encoded, Vocabulary


@dataclass(frozen=True)
class Choice:
    """One way to lay out a prompt and its target.

    Args:
        before: known parts, in order.
        part: the target's modalities in order, known ones that take turns with it included.
        trained: whether an arrangement of the recipe has shown it to the model.
    """

    before: tuple[Part, ...]
    part: Part
    trained: bool

    @property
    def names(self) -> tuple[str, ...]:
        """All modalities, in order of first appearance."""
        return tuple(name for part in (*self.before, self.part) for name in part)

    def __str__(self) -> str:
        return ", ".join("+".join(part) for part in (*self.before, self.part))


def parse_wish(to: str | Sequence[str], known: Sequence[str]) -> tuple[Part, ...]:
    """`"a,b+c"` or `["a", "b+c"]` -> `(("a",), ("b", "c"))`. Raises UserError on unknown or double names."""
    items = to.split(",") if isinstance(to, str) else list(to)
    wish = tuple(tuple(name.strip() for name in item.split("+")) for item in items)
    names = [name for part in wish for name in part]
    for name in names:
        if name not in known:
            raise UserError(f"there is no modality '{name}' in this run", "to", nearest(name, known))
        if names.count(name) > 1:
            raise UserError(f"'{name}' is asked for twice", "to")
    if not names:
        raise UserError("nothing is asked for", "to", f"known: {', '.join(known)}")
    return wish


def choices(arrangements: Sequence[Arrangement], known: Sequence[str], wanted: Part) -> list[Choice]:
    """Ways to lay out known segments and a target, best first; the last ones use ever fewer known segments.

    An arrangement is the better, the more known names it gives before or beside the target; then if
    it shows every known chunk before the target's chunk of the same time; then the less it lacks;
    then by weight and place.
    """
    found = []
    for place, arrangement in enumerate(arrangements):
        choice = _arranged(arrangement, known, wanted)
        if choice is not None and arrangement.weight > 0:
            rank = _rank(arrangement, choice, wanted)
            found.append((*rank, -arrangement.weight, place, choice))
    ranked = [item[-1] for item in sorted(found, key=lambda item: item[:-1])]
    plain = [Choice(tuple((n,) for n in known[i:]), wanted, trained=False) for i in range(len(known) + 1)]
    useful = [c for c in ranked if not known or len(c.names) > len(wanted)]
    blind = [c for c in ranked if c not in useful]
    return list(dict.fromkeys([*useful, *plain[:-1], *blind, plain[-1]]))


def _arranged(arrangement: Arrangement, known: Sequence[str], wanted: Part) -> Choice | None:
    """The layout that an arrangement gives, None where it does not make these modalities in one part."""
    for place, part in enumerate(arrangement.order):
        if set(wanted) <= set(part):
            others = arrangement.order if arrangement.shuffle else arrangement.order[:place]
            before = [tuple(n for n in other if n in known) for other in others if other != part]
            members = tuple(n for n in part if n in known or n in wanted)
            return Choice(tuple(p for p in before if p), members, trained=True)
    return None


def _rank(arrangement: Arrangement, choice: Choice, wanted: Part) -> tuple[int, bool, int]:
    blind = choice.part[-1] not in wanted
    asked = set(choice.names)
    stop = max(i for i, part in enumerate(arrangement.order) if set(wanted) <= set(part))
    shown = arrangement.order if arrangement.shuffle else arrangement.order[: stop + 1]
    lacking = sum(n not in asked for part in shown for n in part) if arrangement.drop == 0 else 0
    return -len(choice.names), blind, lacking


def lay_out(
    vocabulary: Vocabulary,
    segments: Mapping[str, Encoded],
    choice: Choice,
    wanted: Part,
    begun: Mapping[str, Encoded] | None = None,
    chunks: int | None = None,
) -> tuple[Stream, Target]:
    """The prompt, `<doc>` and the parts before the target, and the target itself.

    `begun`: how wanted ones begin; `chunks`: how many are made of each.
    """
    stream = to_stream(vocabulary, segments, Layout(choice.before))
    prompt = Stream(stream.ids[:-1], stream.clock[:-1])  # the target comes before <eod>
    given = {n: segments[n] for n in choice.part if n not in wanted}
    return prompt, Target(choice.part, given, {n: s for n, s in (begun or {}).items() if n in wanted}, chunks)


def lay_out_gap(
    vocabulary: Vocabulary,
    segments: Mapping[str, Encoded],
    choice: Choice,
    gap: Gap,
    lasts: Sequence[float],
) -> tuple[Stream, Target]:
    """The same where the target fills a gap in one of the segments, whose chunks last so many quarter notes:
    the prompt is all but the gap.
    """
    stream = to_stream(vocabulary, segments, Layout((*choice.before, choice.part), gap))
    stop = int(np.flatnonzero(stream.ids == FILL)[0])
    begin = float(segments[gap.modality].times[gap.start])
    filling = Filling(begin, tuple(lasts), in_turns=len(choice.part) > 1)
    return Stream(stream.ids[:stop], stream.clock[:stop]), Target((gap.modality,), gap=filling)
