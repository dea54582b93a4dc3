"""Verbs on runs: train, ask, and the tour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from multimodal_gpt import console
from multimodal_gpt.asking import check_free, check_modalities, parse_plugins, parse_temperature, split_given
from multimodal_gpt.commands.files import Sheet, Svg, add_sheets, check_sheets
from multimodal_gpt.commands.options import (
    Force,
    Json,
    Overrides,
    Plugin,
    RecipeName,
    Restart,
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


class GenerateCommand(TyperCommand):
    """Takes `--NAME VALUE` for every modality of the run, whatever their names."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep what is given per modality in the context and parse the rest."""
        known = {option for p in self.params for option in (*p.opts, *p.secondary_opts)} | {"--help"}
        rest, ctx.obj = split_given(args, known)
        return super().parse_args(ctx, rest)


def generate(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a trained run")],
    to: Annotated[str, typer.Option(help="modalities to generate, in order: melody,chords")],
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="how many pieces")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="the same seed gives the same files")] = 0,
    out: Annotated[Path, typer.Option(help="folder for the files")] = Path("out"),
    temperature: Annotated[
        str, typer.Option(help="one number, or one per modality: text=0.7,melody=1.0")
    ] = "0.9",
    top_k: Annotated[int | None, typer.Option(min=1, help="sample among the k likeliest")] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="sample within this probability")] = 0.95,
    min_p: Annotated[float | None, typer.Option(min=0, max=1, help="least share of the likeliest")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="longest answer per modality")] = None,
    plugin: Plugin = None,
    svg: Svg = False,
    sheet: Sheet = False,
    device: Annotated[str, typer.Option(help="auto, cpu or gpu")] = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Ask a trained run: some modalities given, others wanted.

    Give any modality of the run as --NAME VALUE: --text "a waltz", --chords "Am F C G", --melody tune.mid.

    Example: mmgpt generate runs/demo --text "a jig in D major" --to melody,chords -n 4 --out out
    """
    given: Mapping[str, str] = ctx.obj
    heat, trusted = parse_temperature(temperature), parse_plugins(plugin or ())
    parts = check_modalities(run, given, to)
    check_free(out, number, force=force)
    if sheet:
        check_sheets()
    from multimodal_gpt.generation import session
    from multimodal_gpt.generation.output import write_all

    limits = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "max_tokens": max_tokens}
    wish: dict[str, Any] = {"to": to, "n": number, "seed": seed, "temperature": heat, **limits, **given}
    with stdout_for_result(as_json), console.progress(parts * number, "generate") as bar:
        opened = session.load(run, device=device, plugins=trusted)
        pieces = opened.generate(**wish, progress=bar.advance)
        files = write_all(pieces, out, force=force, svg=svg)
        files = add_sheets(files, force=force) if sheet else files
    for warning in dict.fromkeys(w for piece in pieces for w in piece.info["warnings"]):
        console.warn(warning)
    if as_json:
        print_json([{"files": paths, **piece.info} for piece, paths in zip(pieces, files, strict=True)])
    else:
        rows = [_piece_row(piece, paths) for piece, paths in zip(pieces, files, strict=True)]
        console.table("", ["piece", "made", "files"], rows)


def _piece_row(piece: Any, paths: Sequence[Path]) -> tuple[str, str, str]:
    tokenizer = piece.vocabulary.tokenizer
    made = [f"{name}: {piece.info['units'][name]} {tokenizer(name).unit}s" for name in piece.made]
    kinds = " ".join("".join(path.suffixes) for path in paths[1:])
    return str(piece.info["row"] + 1), ", ".join(made), f"{paths[0]} {kinds}".rstrip()


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a trained run")],
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
