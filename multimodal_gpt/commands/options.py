"""Options that several verbs share, and how a verb answers."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from multimodal_gpt import console

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="name of a recipe, or path to a YAML file")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="as in train.steps=500")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="folder of a trained run")]
Device = Annotated[str, typer.Option(help="auto, cpu or gpu")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON value for a program to read")]
Force = Annotated[bool, typer.Option("--force", help="replace what is already there")]
Plugin = Annotated[list[str] | None, typer.Option(help="NAME=FILE.py, a tokenizer file that you trust")]
Restart = Annotated[bool, typer.Option("--restart", help="begin anew instead of continuing")]


@contextlib.contextmanager
def stdout_for_result(as_json: bool) -> Iterator[None]:
    """With --json, everything but the result goes to stderr."""
    if not as_json:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield


def say_lines(lines: Sequence[str]) -> None:
    """Print the lines to stdout."""
    for line in lines:
        console.say(line)


def print_json(value: Any) -> None:
    """Print one JSON value to stdout."""
    console.say(json.dumps(value, indent=1, default=str, ensure_ascii=False))
