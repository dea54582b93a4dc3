"""Checkpoints besides the last one: RUN/checkpoints/step-000500 of the last few, RUN/checkpoints/best."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.vocabulary import FILE_NAME as VOCABULARY
from multimodal_gpt.stream.vocabulary import read_manifest
from multimodal_gpt.training.checkpoint import CHECKPOINT, DELTAS, RECIPE, RESUME, WEIGHTS, read_info

FOLDER, BEST = "checkpoints", "best"


def keep_last(run: Path, step: int, count: int) -> None:
    """Keep the last `count` checkpoints of a run, of which its folder holds the one of `step`.

    Files are linked: saving puts new files in the place of old ones and never writes into them, so that an
    older checkpoint costs its size and no time. Raises OSError.
    """
    if count > 1:
        _link_all(run, run / FOLDER / f"step-{step:06d}")
    found = sorted((run / FOLDER).glob("step-*"), key=_step_of)
    kept = [folder for folder in found if _step_of(folder) <= step][-count:] if count > 1 else []
    for folder in found:
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def _step_of(folder: Path) -> int:
    number = folder.name.removeprefix("step-")
    return int(number) if number.isdigit() else -1


def _link_all(run: Path, target: Path) -> None:
    partial = target.with_name(f".{target.name}.partial")
    for folder in (partial, target):
        shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in _files(run):
        if (run / name).is_file():
            _link(run / name, partial / name)
    partial.rename(target)


def _files(run: Path) -> list[str]:
    """Names of what makes a checkpoint, those that its vocabulary needs included."""
    modalities = read_manifest(run / VOCABULARY)["content"]["modalities"]
    needed = [name for entry in modalities for name in entry["files"]]
    return [WEIGHTS, DELTAS, CHECKPOINT, RECIPE, RESUME, VOCABULARY, "README.md", *needed]


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a disk without hard links
        shutil.copyfile(source, target)


def best_loss(run: Path) -> float:
    """Validation loss of the best checkpoint of a run, nats per token; infinite where there is none yet."""
    try:
        return float(read_info(run / FOLDER / BEST)["losses"]["valid"]["loss"])
    except (UserError, KeyError, TypeError, ValueError):
        return math.inf
