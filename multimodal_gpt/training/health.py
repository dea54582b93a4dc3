"""Losses, gradients and weights that are not finite: found, named, and never saved."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor

from multimodal_gpt.errors import UserError
from multimodal_gpt.training.module import TrainingModule
from multimodal_gpt.training.strategy import largest, shared, whole

NAMED = 3
"""Sources of a batch that a message names."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What there is to check of a micro-batch, on the device until it is.

    Args:
        number: of the micro-batch in the run, 0-based.
        step: that it belongs to, 1-based.
        norms: of the gradients, one per weight, after the last micro-batch of a step.
    """

    number: int
    step: int
    loss: Tensor
    norms: Tensor | None

    @property
    def total(self) -> Tensor:
        """Finite just when all of it is."""
        return self.loss if self.norms is None else self.loss + self.norms.sum()


class Health(L.Callback):
    """Stops the run where a loss or a gradient is not finite, and before weights are saved that are not.

    Looks every `every` steps and at saves, since looking means waiting for the device; tells where it began.

    Args:
        folder: of the run.
        every: steps.
        saved_step: of the last good checkpoint; None where there is none.
    """

    def __init__(self, folder: Path, every: int, saved_step: int | None) -> None:
        self.folder, self.every, self.saved_step = folder, every, saved_step
        self._seen: list[Seen] = []
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Know where the run begins."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss and, after a step, the gradients; look where it costs nothing or is due."""
        done = trainer.global_step != self._step
        self._step = trainer.global_step
        norms = cast(TrainingModule, pl_module).gradient_norms if done else None
        number = trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1
        self._seen.append(Seen(number, self._step + (not done), outputs["loss"].detach(), norms))
        if done and self._step % self.every == 0:
            self.check(trainer)

    def check(self, trainer: L.Trainer) -> None:
        """Raise UserError where something was not finite since the last check; all processes call it."""
        seen, self._seen = self._seen, []
        (broken,) = largest(any(not math.isfinite(float(s.total)) for s in seen))
        if broken:
            raise shared(self._error(*_finding(seen, trainer)))

    def check_weights(self, trainer: L.Trainer) -> None:
        """Raise UserError where weights are not finite, or what made them; all processes call it."""
        self.check(trainer)
        module = cast(TrainingModule, trainer.lightning_module)
        norms = whole(torch.stack(torch._foreach_norm([p.detach() for p in module.net.parameters()])))
        (broken,) = largest(not bool(norms.isfinite().all()))
        if broken:
            names = [name for name, _ in module.net.named_parameters()]
            raise shared(self._error(f"{_last_broken(names, norms)} is not finite at step {self._step}", []))

    def _error(self, what: str, sources: list[str]) -> UserError:
        more = f" and {len(sources) - NAMED} more" if len(sources) > NAMED else ""
        rows = f", in rows of {', '.join(sources[:NAMED])}{more}" if sources else ""
        last = f"the last good checkpoint is step {self.saved_step}" if self.saved_step else "none is saved"
        return UserError(what + rows, self.folder, f"{last}; lower train.learning_rate or train.clip")


def _finding(seen: Iterable[Seen], trainer: L.Trainer) -> tuple[str, list[str]]:
    """The first thing that is not finite, and the sources of the rows that it comes from."""
    for s in seen:
        if not math.isfinite(float(s.loss)):
            return f"the loss is not finite at step {s.step}", sources(trainer, s.number, s.number + 1)
        if s.norms is not None and not math.isfinite(float(s.total)):
            names = cast(TrainingModule, trainer.lightning_module).learning_names
            what = f"the gradient of {_last_broken(names, s.norms)} is not finite at step {s.step}"
            return what, sources(trainer, s.number + 1 - trainer.accumulate_grad_batches, s.number + 1)
    return "the loss of another process is not finite", []


def _last_broken(names: list[str], norms: Tensor) -> str:
    """The last weight, in the order of the forward pass, whose norm is not finite: a backward pass breaks
    gradients from the end on.
    """
    return names[int((~norms.isfinite()).nonzero()[-1])]


def sources(trainer: L.Trainer, first: int, stop: int) -> list[str]:
    """Where the rows of micro-batches first .. stop - 1 of all processes are from; [] if data can't say."""
    data: Any = getattr(trainer, "datamodule", None)
    rows = getattr(data, "train_rows", None)
    if rows is None:
        return []
    size = data.cut.rows_per_batch * trainer.world_size
    found: dict[str, None] = {}
    for index in range(first * size, stop * size):
        epoch, place = rows.epochs.locate(index)
        for piece in rows.epochs.plan(epoch).row(place):
            found[str(rows.stock.shards.document(piece.document).source)] = None
    return list(found)
