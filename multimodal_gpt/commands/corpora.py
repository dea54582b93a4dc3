"""Verbs on data: download, prepare, look into."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from multimodal_gpt import console
from multimodal_gpt.asking import parse_plugins
from multimodal_gpt.commands.options import (
    Force,
    Json,
    Overrides,
    Plugin,
    RecipeName,
    print_json,
    say_lines,
    stdout_for_result,
)


def fetch(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="a data set, or a YAML file")] = None,
    to: Annotated[Path | None, typer.Option(help="folder for its files; data/NAME if absent")] = None,
    from_file: Annotated[Path | None, typer.Option("--from", help="the file, downloaded by hand")] = None,
    accepted: Annotated[bool, typer.Option("--accept-licence", help="do not ask")] = False,
    trust: Annotated[bool, typer.Option("--trust", help="take a file without a published checksum")] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Download a public data set, its licence accepted first; without NAME, list what there is.

    Example: mmgpt fetch nottingham
    """
    from multimodal_gpt.fetch import datasets as data_sets

    if name is None:
        _list_data_sets([data_sets.load_entry(known) for known in data_sets.names()], as_json)
        return
    entry = data_sets.load_entry(name)
    folder = to or Path("data") / entry.name
    with stdout_for_result(as_json):
        found = data_sets.present(entry, folder, force=force)
        if found is None:
            say_lines(entry.lines())
            data_sets.check_accepted(entry, accepted, typer.confirm)
            found = data_sets.fetch(entry, folder, archive=from_file, trust=trust)
    if as_json:
        print_json({**vars(found), "licence": entry.data.licence.name})
    else:
        say_lines(found.lines())


def _list_data_sets(entries: Sequence[Any], as_json: bool) -> None:
    if as_json:
        print_json([{"name": entry.name, **entry.data.model_dump()} for entry in entries])
    else:
        columns = ["data set", "what it is", "download", "licence"]
        console.table("", columns, [entry.row() for entry in entries])


def prepare(
    recipe: RecipeName,
    overrides: Overrides = None,
    engine: Annotated[str | None, typer.Option(help="local, or ray: same as data.engine=ray")] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Turn folders into shards; say what was kept and skipped, and why.

    Example: mmgpt prepare own_folder data.folders=[my_midi]
    """
    from multimodal_gpt.data.prepare import prepare as prepare_shards
    from multimodal_gpt.recipe.load import load_recipe

    chosen = [f"data.engine={engine}"] if engine else []
    loaded = load_recipe(recipe, [*(overrides or ()), *chosen])
    with stdout_for_result(as_json):
        report = prepare_shards(loaded, force=force)
    if as_json:
        print_json(report.plain())
    else:
        report.print()


def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="a run, a folder of shards, or a file")],
    recipe: Annotated[str, typer.Option(help="whose tokenizers read the file")] = "demo",
    plugin: Plugin = None,
    as_json: Json = False,
) -> None:
    """Look into a run, a folder of shards, or a file.

    Example: mmgpt inspect tune.mid
    """
    from multimodal_gpt.inspection import inspect_path

    with stdout_for_result(as_json):
        findings = inspect_path(path, recipe, parse_plugins(plugin or ()))
    if as_json:
        print_json(findings.plain())
    else:
        findings.print()
