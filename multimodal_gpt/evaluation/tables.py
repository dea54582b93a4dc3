"""What a question to a run is answered with: a table of figures, each beside its floors and nulls.

N documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

LOWER, HIGHER = "lower", "higher"
"""What is better; else the name of the column to come close to, or "" where nothing is."""
RESAMPLES = 2000
MODEL = "model"
"""Name of the column with the figures of the run itself."""


@dataclass(frozen=True)
class Figure:
    """An estimate, with its 95 % bootstrap interval where there is one."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        return self.said("+.3f")

    def said(self, form: str) -> str:
        """In words: value [low, high]."""
        if self.low is None or self.high is None:
            return format(self.value, form)
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"


@dataclass(frozen=True, eq=False)
class Row:
    """One thing measured.

    Args:
        name: what of what, such as "melody given chords".
        unit: of the figures, such as "bits per note" or "%".
        better: LOWER, HIGHER, the column to come close to, or "".
        count: documents or pieces it was measured on.
        figures: column -> figure; what was not measured is missing.
        sources: (N,) names of the documents, where each has its share in `sums`.
        units: (N,) denominators: a figure is sum(sums) / sum(units).
        sums: column -> (N,) numerators.
    """

    name: str
    unit: str
    better: str
    count: int
    figures: Mapping[str, Figure]
    sources: tuple[str, ...] = ()
    units: tuple[float, ...] = ()
    sums: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Table:
    """Answers to one question.

    Args:
        name: short, in one word: the question's name on the command line.
        title: the question.
        about: how to read it, and whose idea it is.
        columns: names of figures, MODEL first.
        rows: what was measured.
        notes: what was left out and why, and what to beware of.
    """

    name: str
    title: str
    about: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def ratio(sums: Sequence[float] | np.ndarray, units: Sequence[float] | np.ndarray, seed: int = 0) -> Figure:
    """sum(sums) / sum(units) over documents, (N,) each, resampled 2,000 times (paired: the same documents
    of both). One document has no interval.
    """
    top, bottom = np.asarray(sums, dtype=float), np.asarray(units, dtype=float)
    if len(bottom) == 1:
        return Figure(float(top[0] / bottom[0]))
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(bottom), (RESAMPLES, len(bottom)))
    totals = bottom[draws].sum(1)
    ratios = top[draws].sum(1)[totals > 0] / totals[totals > 0]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Figure(float(top.sum() / bottom.sum()), float(low), float(high))


def ratio_row(
    name: str,
    unit: str,
    better: str,
    sums: Mapping[str, Sequence[float] | np.ndarray],
    units: Sequence[float] | np.ndarray,
    sources: Sequence[str] = (),
) -> Row:
    """A row whose figures are ratios of sums over documents, by column (N,) each, with intervals."""
    plain = {column: tuple(float(v) for v in values) for column, values in sums.items()}
    figures = {column: ratio(values, units) for column, values in plain.items()}
    shares = tuple(float(v) for v in units)
    return Row(name, unit, better, len(shares), figures, tuple(sources), shares, plain)


def to_plain(table: Table) -> dict[str, Any]:
    """A table as values that JSON holds, the reverse of `from_plain`."""
    return {
        "name": table.name,
        "title": table.title,
        "about": table.about,
        "columns": list(table.columns),
        "notes": list(table.notes),
        "rows": [_plain_row(row) for row in table.rows],
    }


def _plain_row(row: Row) -> dict[str, Any]:
    figures = {name: [f.value, f.low, f.high] for name, f in row.figures.items()}
    plain: dict[str, Any] = {"name": row.name, "unit": row.unit, "better": row.better, "count": row.count}
    plain["figures"] = figures
    if row.sums:
        sums = {name: [round(v, 4) for v in values] for name, values in row.sums.items()}
        plain["documents"] = {"sources": list(row.sources), "units": list(row.units), "sums": sums}
    return plain


def from_plain(plain: Mapping[str, Any]) -> Table:
    """The reverse of `to_plain`. Raises KeyError, TypeError or ValueError where it is no table."""
    rows = tuple(_row_of(row) for row in plain["rows"])
    name, title, about = (str(plain[key]) for key in ("name", "title", "about"))
    return Table(name, title, about, tuple(plain["columns"]), rows, tuple(plain["notes"]))


def _row_of(plain: Mapping[str, Any]) -> Row:
    figures = {name: Figure(*values) for name, values in plain["figures"].items()}
    told = plain.get("documents", {"sources": (), "units": (), "sums": {}})
    sums = {name: tuple(values) for name, values in told["sums"].items()}
    name, unit, better = (str(plain[key]) for key in ("name", "unit", "better"))
    shares = tuple(told["units"])
    return Row(name, unit, better, int(plain["count"]), figures, tuple(told["sources"]), shares, sums)
