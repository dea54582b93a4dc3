"""Verbs on runs: train, merge, export, and the tour."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multimodal_gpt import console
from multimodal_gpt.asking import parse_plugins
from multimodal_gpt.commands.options import (
    Force,
    Json,
    Overrides,
    Plugin,
    RecipeName,
    Restart,
    RunFolder,
    print_json,
    stdout_for_result,
)


def train(
    recipe: RecipeName, overrides: Overrides = None, restart: Restart = False, as_json: Json = False
) -> None:
    """Train a model, or continue where it stopped. Ctrl-C saves first.

    Example: mmgpt train own_folder data.folders=[my_midi] run=runs/mine
    """
    from multimodal_gpt.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    from multimodal_gpt.training.run import train as train_run

    with stdout_for_result(as_json):
        result = train_run(loaded, restart=restart)
    if as_json:
        print_json(vars(result))


def merge(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run that trained adapters")],
    out: Annotated[Path, typer.Option(help="folder of the new run")],
    plugin: Plugin = None,
) -> None:
    """Make a run with adapters (train.lora) one that needs no other: its weights added up.

    Example: mmgpt merge runs/finetune --out runs/merged
    """
    trusted = parse_plugins(plugin or ())
    from multimodal_gpt.training.merge import merge as merge_run

    console.say(str(merge_run(run, out, trusted)))


def export(
    run: RunFolder,
    to: Annotated[str, typer.Option(help="whose format: transformers")],
    out: Annotated[Path | None, typer.Option(help="folder to write; RUN/transformers if absent")] = None,
    plugin: Plugin = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a trained run for another library: no code of ours is needed to open it.

    Example: mmgpt export runs/demo --to transformers --out shared/demo
    """
    from multimodal_gpt.exporting import export as export_run

    with stdout_for_result(as_json):
        done = export_run(run, to, out, plugins=parse_plugins(plugin or ()), force=force)
    if as_json:
        print_json(vars(done))
    else:
        console.say(f"{done.folder}: {done.parameters:,} parameters; README.md there says how to use it")


def demo(
    out: Annotated[Path | None, typer.Option(help="folder of the run; runs/demo if absent")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="a tiny model for a minute: does it all work?")
    ] = False,
    restart: Restart = False,
    as_json: Json = False,
) -> None:
    """Prepare real tunes, train a small model, generate four ways.

    Example: mmgpt demo
    """
    from multimodal_gpt.demo import run_demo

    with stdout_for_result(as_json):
        result = run_demo(out, quick=quick, restart=restart)
    if as_json:
        print_json(result.plain())
    else:
        result.print()
