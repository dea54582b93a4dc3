"""A running average of the weights, beside those that learn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from multimodal_gpt.training.strategy import share, whole


class Average(L.Callback):
    """What is validated, sampled and saved for use; `resume.ckpt` holds it and the weights that learn.

    Lightning's own WeightAveraging copies the module with all that hangs on it, and puts the average where a
    run that goes on looks for its weights.

    Off by default: with a falling learning rate it gains nothing at the end. Held-out nats per token of 828
    folk tunes, 150 steps, keep 0.99: 0.935 averaged and 0.932 not (Muon; at step 90 1.050 and 1.079), 1.211
    and 1.197 (AdamW).

    Args:
        net: whose weights are averaged.
        keep: share of the average that stays at every step; less in the first steps, so that the random
            weights of the beginning are soon forgotten. 0 = no average: the weights as they are.
    """

    def __init__(self, net: nn.Module, keep: float) -> None:
        self.net, self.keep = net, keep
        self._average: list[Tensor] = []
        self._loaded: dict[str, Tensor] = {}
        self._step = -1

    def _learning(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.net.named_parameters() if p.requires_grad}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin with the weights as they are, or with what was saved."""
        self._step = trainer.global_step
        if self.keep:
            parts = [(p, self._loaded.get(name, p)) for name, p in self._learning().items()]
            self._average = [share(average, p).to(p.device).clone() for p, average in parts]
            self._loaded = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Follow the weights after the last micro-batch of a step."""
        if trainer.global_step == self._step or not self._average:
            return
        self._step = trainer.global_step
        keep = min(self.keep, self._step / (self._step + 9))
        torch._foreach_lerp_(self._average, list(self._learning().values()), 1 - keep)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validate the average."""
        self._swap()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Learn on with the weights."""
        self._swap()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The average is what the run leaves."""
        self._swap()
        self._average = []

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network holds the average until the end of the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        weights = list(self._learning().values()) if self._average else []
        for weight, average in zip(weights, self._average, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """The average by names of weights, whole; all processes must call it."""
        return {name: whole(a).cpu() for name, a in zip(self._learning(), self._average, strict=False)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The reverse of `state_dict`; takes effect when training starts."""
        self._loaded = state_dict
