"""Which of several attempts at a piece is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.document import Document
from multimodal_gpt.stream.vocabulary import Encoded

Judge = Callable[[Document], float]
"""A metric of one's own: the higher, the better."""
LIKELIHOOD, AGREEMENT, OWN = "likelihood", "agreement", "own"
"""By the model's own likelihood, by what most attempts have in common, by a function of the caller's."""
NAMES = (LIKELIHOOD, AGREEMENT)
LONGEST = 4
"""Ids of the longest run that counts where there are no times."""


def check_judge(judge: Any) -> None:
    """Raises UserError where this is no way to choose."""
    if not callable(judge) and judge not in (*NAMES, OWN):
        fix = f"{', '.join(NAMES)}, or in Python a function of the document"
        raise UserError(f"can't choose by '{judge}'", "best_by", fix)


def most_agreed(attempts: Sequence[Mapping[str, Encoded]], names: Sequence[str]) -> int:
    """The attempt that has most in common with the others, the first of equals: what least depends on chance
    (minimum Bayes risk; Kumar and Byrne 2004).

    Args:
        attempts: segments by modality.
        names: the modalities that count, each as much.
    """
    held = [{name: _items(attempt[name]) for name in names} for attempt in attempts]
    shared = [[sum(_overlap(a[n], b[n]) for n in names) for b in held if b is not a] for a in held]
    return int(np.argmax([sum(row) for row in shared]))


def _items(segment: Encoded) -> Counter[Any]:
    """What is compared: ids and when they come, or runs of ids where nothing tells when."""
    ids = segment.ids.tolist()
    if segment.clock is not None:
        return Counter(zip(np.round(segment.clock, 3).tolist(), ids, strict=True))
    runs = (zip(*(ids[k:] for k in range(length)), strict=False) for length in range(1, LONGEST + 1))
    return Counter(run for same in runs for run in same)


def _overlap(first: Counter[Any], second: Counter[Any]) -> float:
    """Dice's coefficient: 1 for equals, 0 where nothing is shared."""
    return 2 * (first & second).total() / max(1, first.total() + second.total())
