"""Verbs that judge runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from multimodal_gpt import console
from multimodal_gpt.asking import check_run, parse_plugins, parse_specialists
from multimodal_gpt.commands.options import Device, Json, Plugin, RunFolder, print_json, stdout_for_result
from multimodal_gpt.errors import UserError

FEW = 5
"""Columns with which a terminal has room for intervals."""


def evaluate(
    run: RunFolder,
    data: Annotated[
        Path | None, typer.Option(help="folder to judge by; what was held out in training if absent")
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="questions, by comma: likelihood,gain,harmony,...; all if absent")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="fewer documents and samples: a minute or two")
    ] = False,
    documents: Annotated[int | None, typer.Option(min=3, help="score at most so many documents")] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="make so many pieces for each question that needs new ones")
    ] = None,
    specialist: Annotated[
        list[str] | None, typer.Option(help="NAME=RUN, a run that knows nothing but this modality")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="decides everything random")] = 0,
    out: Annotated[Path | None, typer.Option(help="folder of the results; RUN/evaluation if absent")] = None,
    plugin: Plugin = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Judge a run: figures that can be compared across tokenizers, each beside its floor and its null.

    Prints tables and writes evaluation.json and evaluation.html.

    Example: mmgpt evaluate runs/demo --quick
    """
    trusted = parse_plugins(plugin or ())
    check_run(run)
    special = parse_specialists(specialist or ())
    from multimodal_gpt.evaluation import evaluate as judge
    from multimodal_gpt.evaluation.subject import QUICK, Scope
    from multimodal_gpt.generation import session

    asked = [word.strip() for word in only.split(",")] if only else []
    judge.questions(asked)
    scope = replace(QUICK if quick else Scope(), seed=seed)
    scope = replace(scope, documents=documents or scope.documents, samples=samples or scope.samples)
    with stdout_for_result(as_json), console.progress(None, "evaluate") as bar:
        opened = session.load(run, device=device, plugins=trusted)
        others = {name: session.load(path, device=device, plugins=trusted) for name, path in special.items()}
        found = judge.evaluate(
            opened,
            data=data,
            only=asked,
            scope=scope,
            specialists=others,
            advance=lambda note: bar.advance(1, note),
        )
        written = judge.save(found, out or run / "evaluation")
    _tell(found, written, as_json)


def _tell(found: Any, written: Sequence[Path], as_json: bool) -> None:
    """Print an evaluation and where it was written."""
    from multimodal_gpt.evaluation.tables import to_plain

    if as_json:
        print_json({"files": written, **found.facts, "tables": [to_plain(t) for t in found.tables]})
        return
    for line in found.facts["skipped"]:
        console.warn(line)
    _print_tables(found.tables)
    for path in written:
        console.say(str(path))


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="runs that were evaluated")],
    as_json: Json = False,
) -> None:
    """Put evaluated runs side by side; differences are paired, document by document, where they can be.

    Example: mmgpt compare runs/small runs/base
    """
    if len(runs) < 2:
        raise UserError("one run can't be compared", fix="mmgpt compare RUN RUN")
    from multimodal_gpt.evaluation.compare import compare as side_by_side
    from multimodal_gpt.evaluation.evaluate import load
    from multimodal_gpt.evaluation.tables import to_plain

    found = side_by_side([load(run) for run in runs], _names(runs))
    if as_json:
        print_json([to_plain(table) for table in found])
    else:
        _print_tables(found)


def _names(runs: Sequence[Path]) -> list[str]:
    """The last part of each path, as many parts as tell them apart."""
    paths = [run.parts for run in runs]
    for count in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-count:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return [str(run) for run in runs]


def _print_tables(tables: Sequence[Any]) -> None:
    from multimodal_gpt.evaluation.page import number

    for table in tables:
        every = len(table.columns) <= FEW
        rows = []
        for row in table.rows:
            cells = []
            for place, column in enumerate(table.columns):
                figure = row.figures.get(column)
                words = "-" if figure is None else number(figure.value)
                if figure is not None and figure.low is not None and (every or place == 0):
                    words += f" [{number(figure.low)}, {number(figure.high)}]"
                cells.append(words)
            rows.append((row.name, row.unit, str(row.count), *cells))
        if rows:
            console.table(table.title, ("", "unit", "n", *table.columns), rows)
        for note in table.notes:
            console.say(f"  {table.name}: {note}")
