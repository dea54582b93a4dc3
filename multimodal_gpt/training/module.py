"""The training step as Lightning wants it: thin, so that the model and the loss stay plain torch.

B batch, T tokens, V vocabulary, O owners.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from multimodal_gpt.model.gpt import GPT, IGNORE
from multimodal_gpt.model.optimizer import adamw
from multimodal_gpt.model.schedule import warmup_stable_decay
from multimodal_gpt.recipe.schema import TrainRecipe

Batch = Mapping[str, Tensor]
"""ids, targets, document, position, each (B, T) integer."""
Owner = tuple[str, int, int]
"""Name of a modality, its first global id, one past its last."""


class Tally:
    """Sums of nats and targets per owner, kept on the device: adding never waits for it."""

    def __init__(self, owners: Sequence[Owner], vocabulary_size: int) -> None:
        self.names = [name for name, _, _ in owners]
        self._owner_of = torch.zeros(vocabulary_size, dtype=torch.long)  # (V,), 0 = structure of the stream
        for number, (_, first, stop) in enumerate(owners, start=1):
            self._owner_of[first:stop] = number
        self.sums = torch.zeros(len(owners) + 1, 2)  # (O + 1, 2): nats, targets

    def add(self, losses: Tensor, targets: Tensor) -> None:
        """Count the losses (B, T) of targets (B, T) that are not IGNORE."""
        self._owner_of, self.sums = self._owner_of.to(losses.device), self.sums.to(losses.device)
        owner = self._owner_of[targets.clamp(min=0).flatten().long()]
        self.sums[:, 0].index_add_(0, owner, losses.flatten())
        self.sums[:, 1].index_add_(0, owner, (targets != IGNORE).flatten().to(self.sums.dtype))

    def read(self) -> dict[str, float]:
        """Nats per token: `loss` over everything, and by name where it occurred; empties the tally."""
        nats, count = self.sums.double().cpu().T
        self.sums = torch.zeros_like(self.sums)
        means = {"loss": float(nats.sum() / count.sum())} if count.sum() else {}
        pairs = zip(self.names, nats[1:], count[1:], strict=True)
        return {**means, **{name: float(n / c) for name, n, c in pairs if c}}


class TrainingModule(L.LightningModule):
    """Loss, optimizer, learning rate, clipping; everything random is a function of (seed, step)."""

    def __init__(self, net: GPT, owners: Sequence[Owner], settings: TrainRecipe, seed: int) -> None:
        super().__init__()
        self.net, self.settings, self.seed = net, settings, seed
        self.train_tally = Tally(owners, net.config.vocabulary_size)
        self.valid_tally = Tally(owners, net.config.vocabulary_size)
        self.gradient_norm = torch.zeros(())
        self._step, self._micro = -1, 0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Nats per place of the row.

        Divided by the places, not by the targets: so micro-batches, whose numbers of targets differ, add up
        to exactly the gradient of the whole batch.
        """
        self._seed_dropout()
        losses = self._losses(batch)
        self.train_tally.add(losses.detach(), batch["targets"])
        return losses.mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the losses of a validation batch."""
        self.valid_tally.add(self._losses(batch), batch["targets"])

    def _losses(self, batch: Batch) -> Tensor:
        hidden = self.net(batch["ids"], batch["position"], batch["document"], clock=batch["clock"])
        return self.net.token_losses(hidden, batch["targets"])  # (B, T)

    def _seed_dropout(self) -> None:
        """Random numbers from (seed, step, micro-batch): resuming needs no saved state."""
        if not self.net.config.dropout:
            return
        self._micro = self._micro + 1 if self._step == self.global_step else 0
        self._step = self.global_step
        torch.manual_seed(mixed(self.seed, self._step, self._micro))

    def learning_rate(self, step: int) -> float:
        """The learning rate of optimizer step `step`, 0-based: a function of nothing else."""
        s = self.settings
        return s.learning_rate * warmup_stable_decay(step, s.steps, s.warmup, s.decay)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; the learning rate is set in `on_before_optimizer_step`."""
        s = self.settings
        return adamw(self.net, self.learning_rate(0), s.weight_decay, s.betas)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the losses that are not yet a row of metrics."""
        checkpoint["tally"] = self.train_tally.sums.cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The reverse of `on_save_checkpoint`."""
        self.train_tally.sums = checkpoint["tally"]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip (Lightning's own clipping refuses fused optimizers under bf16) and set the learning rate."""
        self.gradient_norm = nn.utils.clip_grad_norm_(self.net.parameters(), self.settings.clip)
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(self.global_step)


def mixed(*numbers: int) -> int:
    """A 63-bit seed from several numbers; neighbours give unrelated seeds."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
