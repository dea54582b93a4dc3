"""A run that holds adapters only -> a run of its own, with everything in its folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from multimodal_gpt.errors import UserError
from multimodal_gpt.recipe.schema import LoraRecipe
from multimodal_gpt.training.card import write_card
from multimodal_gpt.training.checkpoint import load_weights, save_run
from multimodal_gpt.training.metrics import METRICS


def merge(folder: Path, out: Path, plugins: Mapping[str, str] | None = None) -> Path:
    """Write the run of `folder` into `out`, its adapters added to the weights that they began from.

    `plugins`: modality -> plugin file that you trust. Gives `out`. Raises UserError where there is nothing to
    merge, or where `out` holds something.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError("holds something already", out, "name a new folder with --out")
    run = load_weights(folder, plugins=plugins)
    if not run.recipe.train.lora.rank:
        raise UserError("holds all its weights: there is nothing to merge", folder)
    plain = run.recipe.train.model_copy(update={"lora": LoraRecipe()})
    recipe = run.recipe.model_copy(update={"run": str(out), "init_from": None, "train": plain})
    kept = {k: v for k, v in run.info.items() if k not in ("sha256", "weights", "scale", "previous")}
    merged = replace(run, recipe=recipe, info={**kept, "parameters": run.net.parameter_count})
    save_run(out, merged.net, merged.vocabulary, merged.recipe, merged.info)
    write_card(out, merged)
    if (folder / METRICS).is_file():
        shutil.copyfile(folder / METRICS, out / METRICS)
    return out
