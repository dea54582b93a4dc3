"""Verbs on files that were generated: how was it made, make it again, make something else of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from multimodal_gpt import console, provenance
from multimodal_gpt.commands.options import print_json
from multimodal_gpt.errors import UserError


def is_piece(name: str, recipes: Sequence[str]) -> bool:
    """Whether `show` was asked about a file, not about a recipe."""
    suffix = Path(name).suffix.lower()
    return (
        bool(suffix) and suffix not in (".yaml", ".yml") and name not in recipes and not Path(name).is_dir()
    )


def show_piece(path: Path, overrides: Sequence[str], as_json: bool) -> None:
    """Print how a file was made. Raises UserError where nothing tells."""
    if overrides:
        raise UserError(
            f"'{overrides[0]}' means nothing here", path, "KEY=VALUE changes a recipe, not a file"
        )
    told = provenance.read(path)
    if as_json:
        print_json({"told_by": told.told_by, **told.info})
    else:
        console.table(str(path), ["what", "how"], told.lines())
