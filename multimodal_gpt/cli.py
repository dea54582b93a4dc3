"""The command line: one verb, one function; imports inside the verbs, so that each loads what it needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer

from multimodal_gpt.commands import (
    compressing,
    corpora,
    evaluating,
    files,
    generating,
    looking,
    models,
    recipes,
)
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

app.command()(recipes.recipes)
app.command()(recipes.show)
app.command()(recipes.copy)
app.command()(recipes.validate)
app.command()(recipes.schema)
app.command()(corpora.fetch)
app.command()(corpora.prepare)
app.command()(models.train)
app.command()(models.merge)
app.command(cls=generating.GenerateCommand)(generating.generate)
app.command("continue", cls=generating.GenerateCommand)(generating.extend)
app.command(cls=generating.GenerateCommand)(generating.fill)
app.command(cls=generating.GenerateCommand)(generating.vary)
app.command()(files.replay)
app.command()(files.render)
app.command()(corpora.inspect)
app.command(cls=generating.GenerateCommand)(looking.lens)
app.command()(looking.neighbours)
app.command()(evaluating.evaluate)
app.command()(evaluating.compare)
app.command()(compressing.compress)
app.command()(compressing.decompress)
app.command()(models.export)
app.command()(models.demo)


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
