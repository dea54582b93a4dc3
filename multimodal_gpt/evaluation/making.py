"""New pieces for the questions that need them: many prompts at once, laid out as training showed them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from multimodal_gpt.generation.engine import Row
from multimodal_gpt.generation.layout import Choice, choices, lay_out
from multimodal_gpt.generation.request import settings
from multimodal_gpt.generation.sampling import Sampling
from multimodal_gpt.generation.session import Run
from multimodal_gpt.stream.arrangement import Part, Stream, crop, from_stream
from multimodal_gpt.stream.vocabulary import Encoded, Vocabulary

USUAL: Sampling = settings({})[0]["how"]
"""How the command line draws where nothing else is said."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """What is known of a piece, and the numbers that decide its randomness."""

    given: Mapping[str, Encoded] = field(default_factory=dict)
    key: tuple[int, ...] = (0,)


def make(
    run: Run,
    wanted: Part,
    prompts: Sequence[Prompt],
    how: Sampling = USUAL,
    advance: Callable[[str], object] = lambda note: None,
    most: int | None = None,
) -> list[dict[str, Any] | None]:
    """One piece for each prompt, as contents by modality; None where there is no room for even the shortest.

    `wanted` is one part: several modalities take turns. Only layouts that use all of a prompt count. `most`:
    tokens that a piece may take.
    """
    rows: dict[int, Row] = {}
    for number, prompt in enumerate(prompts):
        row = _row(run, wanted, prompt, most)
        if row is not None:
            rows[number] = row
    groups: dict[Part, list[int]] = {}  # rows of one call make the same in the same order
    for number, row in sorted(rows.items(), key=lambda item: -_size(item[1])):
        groups.setdefault(row.target.order, []).append(number)
    made: dict[int, dict[str, Any]] = {}
    for group in groups.values():
        found = run.engine.generate(
            [rows[number] for number in group],
            how,
            progress=lambda count: advance(f"{count} x {'+'.join(wanted)}"),
        )
        for number, piece in zip(group, found, strict=True):
            made[number] = _contents(run.vocabulary, piece.ids, wanted)
    return [made.get(number) for number in range(len(prompts))]


def _contents(vocabulary: Vocabulary, ids: Any, wanted: Part) -> dict[str, Any]:
    parts = from_stream(vocabulary, ids)
    return {name: vocabulary.decode(name, parts[name]) for name in wanted}


def _size(row: Row) -> int:
    return len(row.prompt.ids) + sum(len(segment.ids) for segment in row.target.given.values())


def _row(run: Run, wanted: Part, prompt: Prompt, most: int | None) -> Row | None:
    """The prompt in the best layout that uses all of it and leaves room."""
    for choice in _uses(run, wanted, tuple(prompt.given)):
        stream, target = lay_out(run.vocabulary, prompt.given, choice, wanted)
        room = run.engine.context - len(stream.ids)
        room = room if most is None else min(room, most)
        if run.engine.least(target) <= room:
            return Row(stream, target, room, prompt.key)
    return None


def _uses(run: Run, wanted: Part, known: Part) -> list[Choice]:
    options = choices(run.arrangements, known, wanted)
    return [choice for choice in options if set(choice.names) == {*known, *wanted}]


def trained(run: Run, wanted: Part, known: Part) -> Choice | None:
    """The best layout in which an arrangement of the recipe shows these known modalities before or beside the
    wanted ones; None where there is none.
    """
    return next((choice for choice in _uses(run, wanted, known) if choice.trained), None)


def is_trained(run: Run, wanted: Part, known: Part) -> bool:
    """Whether there is such a layout."""
    return trained(run, wanted, known) is not None


def prompt_of(run: Run, wanted: str, given: Mapping[str, Encoded]) -> Stream | None:
    """What a model sees before the first id of one more modality, its tag the last; None where no layout
    uses all that is given.
    """
    tag = run.vocabulary.range(wanted).tag
    for choice in _uses(run, (wanted,), tuple(given)):
        if choice.part == (wanted,):
            stream, _ = lay_out(run.vocabulary, given, choice, (wanted,))
            return Stream(np.append(stream.ids, tag), np.append(stream.clock, np.float32(0)))
    return None


def fitting(run: Run, given: Mapping[str, Encoded], each: int, spare: int = 8) -> dict[str, Encoded]:
    """The first chunks of what is given, so many that the context leaves `each` tokens for the answer to
    every one of them, and some to spare; all where they fit.
    """
    longest = max(given.values(), key=lambda segment: len(segment.edges))
    chunks = len(longest.edges) - 1
    tokens = sum(len(s.ids) for s in given.values()) + (len(given) + each) * chunks
    if tokens + spare <= run.engine.context:
        return dict(given)
    low, high = 1, chunks
    while low < high:
        middle = (low + high + 1) // 2
        part = crop(given, 0.0, float(longest.times[middle]) if middle < chunks else float("inf"))
        taken = sum(len(s.ids) for s in part.values()) + (len(given) + each) * middle + spare
        low, high = (middle, high) if taken <= run.engine.context else (low, middle - 1)
    return crop(given, 0.0, float(longest.times[low]) if low < chunks else float("inf"))
