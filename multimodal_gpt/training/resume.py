"""Going on with a run: what may change in between, and what may not."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from multimodal_gpt.errors import UserError
from multimodal_gpt.recipe.schema import Recipe
from multimodal_gpt.training.checkpoint import (
    CHECKPOINT,
    DELTAS,
    OWN,
    RESUME,
    WEIGHTS,
    read_resume,
)
from multimodal_gpt.training.keep import BEST, FOLDER
from multimodal_gpt.training.metrics import METRICS
from multimodal_gpt.versions import CHECKPOINT_FORMAT

FREE_TRAIN = (
    "steps",
    "minutes",
    "save_every",
    "keep",
    "evaluate_every",
    "evaluate_rows",
    "log_every",
    "sample_every",
)

FREE_PLACE = (
    "samples",
    "device",
    "strategy",
    "devices",
    "nodes",
    "threads",
    "compile",
    "workers",
    "tensorboard",
)
FREE = {
    *("run", "init_from", "data.shards", "data.workers", "data.seconds_per_file"),
    *(f"train.{key}" for key in (*FREE_TRAIN, *FREE_PLACE)),
}
"""Options that may change when a run goes on; from there the schedule is that of the new `train.steps`."""
OTHER_RUN = "give it a folder of its own with run=..., or begin anew with --restart"


def resume_state(folder: Path, recipe: Recipe) -> dict[str, Any] | None:
    """What `resume.ckpt` holds, None for a new run.

    Raises UserError where the folder holds another run, or one that cannot go on.
    """
    path = folder / RESUME
    if not path.exists():
        if (folder / WEIGHTS).exists() or (folder / DELTAS).exists():
            raise UserError(f"holds a trained model but no {RESUME} to go on from", folder, OTHER_RUN)
        return None
    state = read_resume(path)
    if state[OWN].get("format") != CHECKPOINT_FORMAT:
        raise UserError("was written by another version", path, OTHER_RUN)
    try:
        before = Recipe.model_validate(state[OWN]["recipe"]).plain()
    except (ValidationError, KeyError, TypeError):
        raise UserError("was written by another version", path, OTHER_RUN) from None
    changes = differences(before, recipe.plain())
    if changes:
        raise UserError(f"holds a run of another recipe: {'; '.join(changes)}", folder, OTHER_RUN)
    return state


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two recipes, FREE options aside: `model.width: 128 -> 256`."""
    old, new = _flat(before), _flat(now)
    names = [n for n in dict.fromkeys([*old, *new]) if n not in FREE and old.get(n) != new.get(n)]
    return [f"{n}: {old.get(n, 'nothing')} -> {new.get(n, 'nothing')}" for n in names]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, Mapping) and value
            else {f"{prefix}{key}": value}
        )
    return flat


def clear(folder: Path) -> None:
    """Take away what an earlier run left in the folder; shards stay."""
    for name in (RESUME, WEIGHTS, DELTAS):
        (folder / f"{name}.partial").unlink(missing_ok=True)
    for name in (RESUME, CHECKPOINT, WEIGHTS, DELTAS, METRICS):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / FOLDER / BEST, ignore_errors=True)
    for made in sorted([*(folder / "samples").glob("step-*"), *(folder / FOLDER).glob("step-*")]):
        shutil.rmtree(made)
