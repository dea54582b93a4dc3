"""Tokenizers that a run takes over, as they are, from the one it begins from: ids keep their meaning."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multimodal_gpt.errors import UserError
from multimodal_gpt.recipe.load import load_recipe, modalities
from multimodal_gpt.recipe.schema import Recipe
from multimodal_gpt.stream import plugins
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.vocabulary import FILE_NAME, read_manifest

FIX = "leave `tokenizers` to the run, new ones aside"


def inherited_modalities(recipe: Recipe, folders: Sequence[Path]) -> dict[str, Modality]:
    """Modalities of the run that a recipe begins from, ready to use; the files they need go into `folders`.

    Empty where the recipe begins from nothing. Raises UserError where the recipe asks for other options, or
    for another order of ids.
    """
    if recipe.init_from is None:
        return {}
    run = Path(recipe.init_from)
    if not (run / "recipe.yaml").is_file():
        raise UserError(f"there is no trained run '{run}'", "init_from", "train it first, or mend the path")
    before, now = modalities(load_recipe(run / "recipe.yaml")), modalities(recipe)
    _check_names([m.name for m in before], [m.name for m in now])
    saved = {e["name"]: e for e in read_manifest(run / FILE_NAME)["content"]["modalities"]}
    taken = {}
    for old, new in zip(before, now, strict=False):
        _check_options(old, new)
        taken[new.name] = Modality(new.name, new.plugin, saved[new.name]["options"])
        for name in plugins.files_of(taken[new.name]):
            for folder in folders:
                shutil.copyfile(run / name, folder / name)
    return taken


def _check_names(before: Sequence[str], now: Sequence[str]) -> None:
    if list(now[: len(before)]) != list(before):
        what = f"{', '.join(now)} do not begin with those of the run: {', '.join(before)}"
        raise UserError(what, "tokenizers", FIX)


def _check_options(before: Modality, now: Modality) -> None:
    old, new = _facts(before), _facts(now)
    names = [n for n in dict.fromkeys([*old, *new]) if old.get(n) != new.get(n)]
    if names:
        changes = "; ".join(f"{n}: {old.get(n, 'absent')} -> {new.get(n, 'absent')}" for n in names)
        raise UserError(f"differs from the run that it begins from: {changes}", f"tokenizers.{now.name}", FIX)


def _facts(modality: Modality) -> Mapping[str, Any]:
    """Plugin files by their names: what they do is compared by what the ids mean, once they are built."""
    plugin = Path(modality.plugin).name if modality.is_file else modality.plugin
    return {"plugin": plugin, **modality.options}


def inherited_fingerprint(recipe: Recipe) -> str:
    """Hash of what every id means in the run that a recipe begins from; "" where there is none."""
    if recipe.init_from is None:
        return ""
    return str(read_manifest(Path(recipe.init_from) / FILE_NAME)["fingerprint"])
