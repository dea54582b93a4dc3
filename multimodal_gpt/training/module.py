"""The training step as Lightning wants it: thin, so that the model and the loss stay plain torch.

B batch, T tokens, V vocabulary, O owners.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from multimodal_gpt.model.gpt import GPT
from multimodal_gpt.model.loss import IGNORE
from multimodal_gpt.model.optimizer import OPTIMIZERS
from multimodal_gpt.model.schedule import SCHEDULES
from multimodal_gpt.recipe.schema import TrainRecipe
from multimodal_gpt.training.compiler import compiles
from multimodal_gpt.training.strategy import leads, settle, shard, total, whole

Batch = Mapping[str, Tensor]
"""ids, targets, document, position, each (B, T) integer."""
Owner = tuple[str, int, int]
"""Name of a modality, its first global id, just before which its tag stands, one past its last."""


WAITING = 1 << 20
"""Places whose losses wait to be counted together, at most."""


class Tally:
    """Sums of nats and targets per owner, kept on the device: adding never waits for it, counting is rare."""

    def __init__(self, owners: Sequence[Owner], vocabulary_size: int) -> None:
        self.names = [name for name, _, _ in owners]
        self._owner_of = torch.zeros(vocabulary_size, dtype=torch.long)  # (V,), 0 = structure of the stream
        for number, (_, first, stop) in enumerate(owners, start=1):
            self._owner_of[first:stop] = number
        self._sums = torch.zeros(len(owners) + 1, 2)  # (O + 1, 2): nats, targets
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, losses: Tensor, targets: Tensor) -> None:
        """Count the losses (B, T) of targets (B, T) that are not IGNORE."""
        self._waiting.append((losses, targets))
        if len(self._waiting) * losses.numel() > WAITING:
            self._count()

    def _count(self) -> None:
        if not self._waiting:
            return
        losses = torch.cat([losses.flatten() for losses, _ in self._waiting])
        targets = torch.cat([targets.flatten() for _, targets in self._waiting]).long()
        self._waiting = []
        self._owner_of, self._sums = self._owner_of.to(losses.device), self._sums.to(losses.device)
        owner = self._owner_of[targets.clamp(min=0)]
        self._sums[:, 0].index_add_(0, owner, losses)
        self._sums[:, 1].index_add_(0, owner, (targets != IGNORE).to(self._sums.dtype))

    @property
    def sums(self) -> Tensor:
        """(O + 1, 2): nats and targets of structure, then of each owner."""
        self._count()
        return self._sums

    @sums.setter
    def sums(self, sums: Tensor) -> None:
        self._waiting, self._sums = [], sums

    def read(self) -> dict[str, float]:
        """Nats per token: `loss` over everything, and by name where it occurred; empties the tally.

        Over all processes; all must call it.
        """
        nats, count = total(self.sums).double().cpu().T
        self.sums = torch.zeros_like(self.sums)
        means = {"loss": float(nats.sum() / count.sum())} if count.sum() else {}
        pairs = zip(self.names, nats[1:], count[1:], strict=True)
        return {**means, **{name: float(n / c) for name, n, c in pairs if c}}


def _emphasis(owners: Sequence[Owner], asked: Mapping[str, float], vocabulary_size: int) -> Tensor | None:
    """(V,) how much a place counts in the loss by the id that stands there, a modality's tag or one of its
    own: so all that may come next, an end included, counts alike. None where all places do.
    """
    if not asked:
        return None
    weights = torch.ones(vocabulary_size)
    for name, first, stop in owners:
        weights[first - 1 : stop] = asked.get(name, 1.0)
    return weights


class TrainingModule(L.LightningModule):
    """Loss, optimizer, learning rate, clipping; everything random is a function of (seed, step)."""

    emphasis: Tensor | None

    def __init__(self, net: GPT, owners: Sequence[Owner], settings: TrainRecipe, seed: int) -> None:
        super().__init__()
        self.net, self.settings, self.seed = net, settings, seed
        self.train_tally = Tally(owners, net.config.vocabulary_size)
        self.valid_tally = Tally(owners, net.config.vocabulary_size)
        self.learning_names: list[str] = []
        self.gradient_norms = torch.zeros(0)  # one per name
        self.gradient_norm = torch.zeros(())
        self._learning: list[nn.Parameter] = []
        self._step, self._micro = -1, 0
        self._compiled = False
        emphasis = _emphasis(owners, settings.emphasis, net.config.vocabulary_size)
        self.register_buffer("emphasis", emphasis, persistent=False)

    def __setattr__(self, name: str, value: Any) -> None:
        """Lightning notes here which hook it is in, 44 times a step: no module, so no look at all modules."""
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def configure_model(self) -> None:
        """Spread the weights over the processes, where the run is to."""
        if self.device_mesh is not None:
            shard(self.net, self.device_mesh["data_parallel"])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Nats per place of the row.

        Divided by the places, not by the targets: so micro-batches, whose numbers of targets differ, add up
        to exactly the gradient of the whole batch.
        """
        self._seed_dropout()
        emphasis = None if self.emphasis is None else self.emphasis[batch["ids"]]
        nats, losses = self.net.loss_sum(self._hidden(batch), batch["targets"], emphasis)
        self.train_tally.add(losses, batch["targets"])
        return nats / losses.numel()

    def on_validation_epoch_end(self) -> None:
        """Leave the weights as they are between training steps."""
        settle(self.net)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the losses of a validation batch."""
        with self.eager():
            losses = self.net.token_losses(self._hidden(batch), batch["targets"])  # (B, T)
        self.valid_tally.add(losses, batch["targets"])

    def _hidden(self, batch: Batch) -> Tensor:
        return self.net(batch["ids"], batch["position"], batch["document"], clock=batch["clock"])

    def on_fit_start(self) -> None:
        """Compile the network, in place: names of weights stay as they are."""
        if not self._compiled and compiles(self.settings.compile, self.device):
            self.net.compile(dynamic=False)
            self._compiled = True

    def eager(self) -> AbstractContextManager[Any]:
        """What is not compiled: all but training steps, since each new shape would cost a compilation."""
        return torch.compiler.set_stance("force_eager") if self._compiled else nullcontext()

    def _seed_dropout(self) -> None:
        """Random numbers from (seed, step, micro-batch): resuming needs no saved state.

        Micro-batches of a step are counted over all processes, as one process would do them in turn.
        """
        if not self.net.config.dropout:
            return
        self._micro = self._micro + 1 if self._step == self.global_step else 0
        self._step = self.global_step
        micro = self._micro * self.trainer.world_size + self.trainer.global_rank
        torch.manual_seed(mixed(self.seed, self._step, micro))

    def learning_rate(self, step: int) -> float:
        """The learning rate of optimizer step `step`, 0-based: a function of nothing else."""
        s = self.settings
        return s.learning_rate * SCHEDULES[s.schedule](step, s.steps, s.warmup, s.decay)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Of the recipe; the learning rate is set in `on_before_optimizer_step`."""
        s = self.settings
        return OPTIMIZERS[s.optimizer](self.net, self.learning_rate(0), s.weight_decay, s.betas)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the losses that are not yet a row of metrics."""
        checkpoint["tally"] = total(self.train_tally.sums).cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The reverse of `on_save_checkpoint`."""
        sums = checkpoint["tally"]
        self.train_tally.sums = sums if leads() else torch.zeros_like(sums)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip (Lightning's own clipping refuses fused optimizers under bf16) and set the learning rate."""
        if not self._learning:
            named = [(name, p) for name, p in self.net.named_parameters() if p.grad is not None]
            self.learning_names, self._learning = [n for n, _ in named], [p for _, p in named]
        norms = torch.stack(torch._foreach_norm([p.grad for p in self._learning if p.grad is not None]))
        norm = torch.linalg.vector_norm(norms)
        nn.utils.clip_grads_with_norm_(self._learning, self.settings.clip, norm)
        self.gradient_norms, self.gradient_norm = whole(norms), whole(norm)
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(self.global_step)


def mixed(*numbers: int) -> int:
    """A 63-bit seed from several numbers; neighbours give unrelated seeds."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
