"""Evaluations of several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.evaluation.evaluate import Evaluation
from multimodal_gpt.evaluation.tables import MODEL, Figure, Row, Table, ratio

ABOUT = """One column for each run: its own figure, floors and nulls left out. `NAME - FIRST`: by how much
a run's figure is above that of the first, with a 95 % paired bootstrap over documents, where both were
measured on the same ones."""


def compare(evaluations: Sequence[Evaluation], names: Sequence[str]) -> tuple[Table, ...]:
    """For every question that was put to any of them, a table with a column for each run.

    Raises UserError where two runs have one name.
    """
    if len(set(names)) < len(names):
        raise UserError("two runs have the same name", fix="name each once")
    questions = dict.fromkeys(table.name for one in evaluations for table in one.tables)
    return tuple(_side_by_side(question, evaluations, names) for question in questions)


def _side_by_side(question: str, evaluations: Sequence[Evaluation], names: Sequence[str]) -> Table:
    found = {
        name: table
        for name, one in zip(names, evaluations, strict=True)
        for table in one.tables
        if table.name == question
    }
    keys = dict.fromkeys((row.name, row.unit) for table in found.values() for row in table.rows)
    rows = []
    for key in keys:
        same = {n: row for n, table in found.items() for row in table.rows if (row.name, row.unit) == key}
        rows.append(_joined({name: row for name, row in same.items() if MODEL in row.figures}, names[0]))
    columns = dict.fromkeys([*names, *(column for row in rows for column in row.figures)])
    first = next(iter(found.values()))
    return replace(first, about=ABOUT, columns=tuple(columns), rows=tuple(rows), notes=())


def _joined(same: dict[str, Row], first: str) -> Row:
    """One row of several runs that measured the same."""
    figures = {name: row.figures[MODEL] for name, row in same.items()}
    for name, row in same.items():
        if name != first and first in same:
            apart = difference(row, same[first])
            if apart is not None:
                figures[f"{name} - {first}"] = apart
    some = next(iter(same.values()))
    return Row(some.name, some.unit, some.better, some.count, figures)


def difference(row: Row, other: Row) -> Figure | None:
    """How far a row's figure is above another's; None where they were not measured on the same documents."""
    if not row.sums or MODEL not in row.sums or MODEL not in other.sums:
        return None
    if row.sources != other.sources or not np.allclose(row.units, other.units):
        return None
    return ratio(np.array(row.sums[MODEL]) - np.array(other.sums[MODEL]), row.units)
