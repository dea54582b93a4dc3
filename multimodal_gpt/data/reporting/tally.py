"""Sums over the documents of a corpus, added one by one: choices, errors, lengths; memory does not grow."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

DIGITS = 3
"""Significant digits that are kept of a number: about 900 different ones per power of ten."""
MOST_VALUES = 1000
"""Different values of a key that are counted by name; what comes later is counted together."""
OTHERS = "others"
BINS = 20
"""About so many bars in a histogram."""
UNUSED = "unused"
"""Split of documents that the recipe's limit leaves out."""


class Tally:
    """What a report says of all documents together, gathered from their lines in `documents.jsonl`.

    Give every line to `add` in the order of the file, then `Report(..., **tally.plain())`.
    """

    def __init__(self) -> None:
        self._tracks: dict[str, Counter[str]] = {}
        self._errors: dict[str, _Numbers] = {}
        self._tokens: dict[str, _Numbers] = {}

    def add(self, line: Mapping[str, Any]) -> None:
        """Count one document: its `tracks` and `errors`, and its `tokens` unless its `split` is "unused"."""
        for key, value in line["tracks"].items():
            counter = self._tracks.setdefault(key, Counter())
            counter[value if value in counter or len(counter) < MOST_VALUES else OTHERS] += 1
        for key, value in line["errors"].items():
            if math.isfinite(value):
                self._errors.setdefault(key, _Numbers()).add(value)
        for name, tokens in line["tokens"].items() if line["split"] != UNUSED else ():
            self._tokens.setdefault(name, _Numbers()).add(tokens)

    def plain(self) -> dict[str, dict[str, Any]]:
        """The fields `tracks`, `errors` and `lengths` of a `Report`.

        A 95th percentile or median is right to three digits, everything else is exact.
        """
        return {
            "tracks": {k: dict(sorted(v.items())) for k, v in sorted(self._tracks.items())},
            "errors": {k: v.summary() for k, v in sorted(self._errors.items())},
            "lengths": {k: v.histogram() for k, v in self._tokens.items()},
        }


def duplicates(groups: Iterable[str]) -> dict[str, int]:
    """Groups that hold more than one document, and the documents in them, from the group of each document.

    Example:
        >>> duplicates(["a", "b", "a", "c", "a"])
        {'groups': 1, 'documents': 3}
    """
    several = [n for n in Counter(groups).values() if n > 1]
    return {"groups": len(several), "documents": sum(several)}


class _Numbers:
    """Counts of numbers, cut to three significant digits."""

    def __init__(self) -> None:
        self.counts: Counter[float] = Counter()
        self.number, self.total = 0, 0.0
        self.least, self.most = math.inf, -math.inf

    def add(self, value: float) -> None:
        self.counts[cut(value)] += 1
        self.number, self.total = self.number + 1, self.total + value
        self.least, self.most = min(self.least, value), max(self.most, value)

    def percentile(self, share: float) -> float:
        """The least number that this share of all is at most."""
        seen = 0
        for value, count in sorted(self.counts.items()):
            seen += count
            if seen >= share * self.number:
                return value
        return self.most

    def summary(self) -> dict[str, float]:
        mean = round(self.total / self.number, 4)
        return {"mean": mean, "p95": self.percentile(0.95), "max": self.most, "documents": self.number}

    def histogram(self) -> dict[str, Any]:
        edges = bin_edges(self.least, self.most)
        counts, place = [0] * (len(edges) - 1), 0
        for value, count in sorted(self.counts.items()):
            while value >= edges[place + 1]:
                place += 1
            counts[place] += count
        return {"edges": edges, "counts": counts, "median": self.percentile(0.5), "longest": self.most}


def cut(value: float) -> float:
    """A number cut to three significant digits, towards zero: it stays in the bin that it is in.

    Example:
        >>> cut(123456), cut(7), cut(0.012399), cut(0.0)
        (123000, 7, 0.0123, 0.0)
    """
    if isinstance(value, int):
        step: int = 10 ** max(0, len(str(abs(value))) - DIGITS)
        return abs(value) // step * step * (1 if value >= 0 else -1)
    mantissa, _, power = f"{value:.16e}".partition("e")
    return float(f"{mantissa[: mantissa.index('.') + DIGITS]}e{power}")


def bin_edges(least: float, most: float) -> list[int]:
    """Edges of about 20 bins from `least` to beyond `most`: equally wide, or where `most` is many times
    `least`, each wider than the one before. An edge has at most three significant digits, as `cut` leaves.

    Example:
        >>> bin_edges(3, 9)
        [3, 4, 5, 6, 7, 8, 9, 10]
        >>> bin_edges(1, 1000)[:9]
        [1, 2, 3, 5, 7, 11, 15, 22, 31]
    """
    low, high = max(int(least), 1), int(most)
    if high <= 8 * low:
        step = max(_round_step((high - low) / BINS), 10 ** max(0, len(str(high)) - DIGITS))
        return list(range(low // step * step, high + step + 1, step))
    factor = (high / low) ** (1 / BINS)
    return sorted({_two_digits(low * factor**i) for i in range(BINS + 2)})


def _two_digits(value: float) -> int:
    step: int = 10 ** max(0, len(str(int(value))) - 2)
    return int(value + 1e-9) // step * step


def _round_step(width: float) -> int:
    power: int = 10 ** max(0, len(str(int(width))) - 1)
    return next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= width)
