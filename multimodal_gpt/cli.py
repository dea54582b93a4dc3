"""The command line: one verb, one function; imports inside the verbs, so that each loads what it needs."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from multimodal_gpt import console
from multimodal_gpt.asking import check_free, check_modalities, parse_plugins, parse_temperature, split_given
from multimodal_gpt.errors import UserError

TRACEBACK = "MMGPT_TRACEBACK"
"""Set to 1 to see the full traceback of an error."""

app = typer.Typer(
    name="mmgpt",
    help="Train your own model on your own text and MIDI, and ask it in any direction.",
    epilog="Begin with: mmgpt demo",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="name of a recipe, or path to a YAML file")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="as in train.steps=500")
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON value for a program to read")]
Force = Annotated[bool, typer.Option("--force", help="replace what is already there")]
Plugin = Annotated[list[str] | None, typer.Option(help="NAME=FILE.py, a tokenizer file that you trust")]
Restart = Annotated[bool, typer.Option("--restart", help="begin anew instead of continuing")]


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the recipes that come with the package.

    Example: mmgpt recipes
    """
    from multimodal_gpt.recipe import load

    rows = [(name, load.title(path)) for name, path in load.names().items()]
    if as_json:
        _print_json([{"name": name, "title": title} for name, title in rows])
    else:
        console.table("", ["recipe", "what it is"], rows)


@app.command()
def show(recipe: RecipeName, overrides: Overrides = None, as_json: Json = False) -> None:
    """Print a recipe, every default filled in, every option explained.

    Example: mmgpt show demo train.steps=200
    """
    from multimodal_gpt.recipe.listing import to_yaml
    from multimodal_gpt.recipe.load import load_recipe

    resolved = load_recipe(recipe, overrides or ()).plain()
    if as_json:
        _print_json(resolved)
    else:
        console.say(to_yaml(resolved, comments=True).rstrip("\n"))


@app.command()
def copy(
    recipe: RecipeName,
    path: Annotated[Path | None, typer.Argument(metavar="[PATH]", help="./RECIPE.yaml if absent")] = None,
    force: Force = False,
) -> None:
    """Copy a recipe to a file of your own, comments and all.

    Example: mmgpt copy own_folder my.yaml
    """
    from multimodal_gpt.files import read_text, write_text
    from multimodal_gpt.recipe.load import find

    source = find(recipe)
    target = path or Path(source.name)
    target = target / source.name if target.is_dir() else target
    if target.exists() and not force:
        raise UserError("the file exists already", target, "name another path, or add --force")
    console.say(str(write_text(target, read_text(source))))


@app.command()
def validate(recipe: RecipeName, overrides: Overrides = None, as_json: Json = False) -> None:
    """Check a recipe and its folders, and say how large the run is.

    Example: mmgpt validate ./my.yaml data.folders=[my_midi]
    """
    from multimodal_gpt.recipe.estimate import survey
    from multimodal_gpt.recipe.load import load_recipe

    checked = load_recipe(recipe, overrides or ())
    facts, problems = survey(checked)
    problems += _corpus_problems(checked)
    if problems or facts is None:
        raise UserError("; ".join(map(str, problems)), recipe)
    if as_json:
        _print_json({"recipe": checked.plain(), "estimate": vars(facts)})
    else:
        console.table(f"{recipe} is valid", ["what", "how much"], facts.rows())


def _corpus_problems(recipe: Any) -> list[UserError]:
    from multimodal_gpt.data.sources import find_sources
    from multimodal_gpt.recipe.load import modalities

    problems = []
    for name in recipe.data.corpora:
        alone = recipe.data.model_copy(update={"folders": [], "validation_folders": [], "corpora": [name]})
        try:
            find_sources(alone, modalities(recipe))
        except UserError as error:
            problems.append(error)
    return problems


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors that know YAML.

    Example: mmgpt schema > recipe.schema.json
    """
    from multimodal_gpt.recipe.load import json_schema

    _print_json(json_schema())


@app.command()
def prepare(
    recipe: RecipeName, overrides: Overrides = None, force: Force = False, as_json: Json = False
) -> None:
    """Turn folders into shards; say what was kept and skipped, and why.

    Example: mmgpt prepare own_folder data.folders=[my_midi]
    """
    from multimodal_gpt.data.prepare import prepare as prepare_shards
    from multimodal_gpt.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    with _stdout_for_result(as_json):
        report = prepare_shards(loaded, force=force)
    if as_json:
        _print_json(report.plain())
    else:
        _say_lines([str(report.folder), *report.lines()])


@app.command()
def train(
    recipe: RecipeName, overrides: Overrides = None, restart: Restart = False, as_json: Json = False
) -> None:
    """Train a model, or continue where it stopped. Ctrl-C saves first.

    Example: mmgpt train own_folder data.folders=[my_midi] run=runs/mine
    """
    from multimodal_gpt.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    from multimodal_gpt.training.run import train as train_run

    with _stdout_for_result(as_json):
        result = train_run(loaded, restart=restart)
    if as_json:
        _print_json(vars(result))


class _GenerateCommand(TyperCommand):
    """Takes `--NAME VALUE` for every modality of the run, whatever their names."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {option for p in self.params for option in (*p.opts, *p.secondary_opts)} | {"--help"}
        rest, ctx.obj = split_given(args, known)
        return super().parse_args(ctx, rest)


@app.command(cls=_GenerateCommand)
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
    from multimodal_gpt.generation import session
    from multimodal_gpt.generation.output import write_all

    limits = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "max_tokens": max_tokens}
    wish: dict[str, Any] = {"to": to, "n": number, "seed": seed, "temperature": heat, **limits, **given}
    with _stdout_for_result(as_json), console.progress(parts * number, "generate") as bar:
        opened = session.load(run, device=device, plugins=trusted)
        pieces = opened.generate(**wish, progress=bar.advance)
        files = write_all(pieces, out, force=force)
    for warning in dict.fromkeys(w for piece in pieces for w in piece.info["warnings"]):
        console.warn(warning)
    if as_json:
        _print_json([{"files": paths, **piece.info} for piece, paths in zip(pieces, files, strict=True)])
    else:
        rows = [_piece_row(piece, paths) for piece, paths in zip(pieces, files, strict=True)]
        console.table("", ["piece", "made", "files"], rows)


def _piece_row(piece: Any, paths: Sequence[Path]) -> tuple[str, str, str]:
    tokenizer = piece.vocabulary.tokenizer
    made = [f"{name}: {piece.info['units'][name]} {tokenizer(name).unit}s" for name in piece.made]
    kinds = " ".join(path.suffix for path in paths[1:])
    return str(piece.info["row"] + 1), ", ".join(made), f"{paths[0]} {kinds}".rstrip()


@app.command()
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

    with _stdout_for_result(as_json):
        findings = inspect_path(path, recipe, parse_plugins(plugin or ()))
    if as_json:
        _print_json(findings.plain())
    else:
        findings.print()


@app.command()
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

    with _stdout_for_result(as_json):
        result = run_demo(out, quick=quick, restart=restart)
    if as_json:
        _print_json(result.plain())
    else:
        result.print()


@contextlib.contextmanager
def _stdout_for_result(as_json: bool) -> Iterator[None]:
    """With --json, everything but the result goes to stderr."""
    if not as_json:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _say_lines(lines: Sequence[str]) -> None:
    for line in lines:
        console.say(line)


def _print_json(value: Any) -> None:
    console.say(json.dumps(value, indent=1, default=str, ensure_ascii=False))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code: 2 for a mistake of the user's, 130 for Ctrl-C."""
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    try:
        words = list(sys.argv[1:] if arguments is None else arguments)
        code = app(args=words or ["--help"], prog_name="mmgpt", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:  # `mmgpt show demo | head`: whoever read has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get(TRACEBACK) == "1" or not (isinstance(error, UserError) or _is_usage(error)):
            raise
        print(f"mmgpt: {_message(error)}", file=sys.stderr)
        return 2


def _is_usage(error: Exception) -> bool:
    """Whether it is about the command line; Typer's classes moved between versions, this method did not."""
    return hasattr(error, "format_message")


def _message(error: Any) -> str:
    if isinstance(error, UserError):
        return str(error)
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "mmgpt"
    return f"{' '.join(error.format_message().split())} (see {path} --help)"
