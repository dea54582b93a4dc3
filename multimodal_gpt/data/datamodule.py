"""Rows for the trainer: batches of tensors whose order is a pure function of (seed, position), so that
resuming is exact.

Letters: B rows of a batch, T context.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from multimodal_gpt.data.layouts import Stock, open_stock
from multimodal_gpt.data.packing import Plan, epoch_plan
from multimodal_gpt.data.rows import build_row, targets_of
from multimodal_gpt.data.shards import open_shards
from multimodal_gpt.recipe.schema import Recipe
from multimodal_gpt.stream.arrangement import Arrangement, Ranged
from multimodal_gpt.stream.vocabulary import Range

VALIDATION_SEED = 0
"""Rows of the valid split are the same whatever the seed of the run."""


class Cut(Protocol):
    """How an optimizer step is cut into micro-batches of rows."""

    @property
    def rows_per_batch(self) -> int:
        """Rows of a micro-batch, on each device."""
        ...

    @property
    def batches_per_step(self) -> int:
        """Micro-batches of an optimizer step."""
        ...

    @property
    def context(self) -> int:
        """Tokens of a row."""
        ...


@dataclass(frozen=True)
class _Ranges:
    ranges: Mapping[str, Range]


@dataclass(eq=False)
class Epochs:
    """Global row -> (epoch, row within it), however many rows each epoch has.

    fill: cut documents until rows are full, see `epoch_plan`.
    counts: rows of the epochs that are known, which are planned again only where their rows are needed.
    """

    stock: Stock
    seed: int
    fill: bool = True
    counts: list[int] = field(default_factory=list)
    plans: dict[int, Plan] = field(default_factory=dict)

    def locate(self, index: int) -> tuple[int, int]:
        """The epoch of a global row, and its place there."""
        first = epoch = 0
        while True:
            if epoch == len(self.counts):
                self.counts.append(len(self.plan(epoch)))
            if index < first + self.counts[epoch]:
                return epoch, index - first
            first, epoch = first + self.counts[epoch], epoch + 1

    def plan(self, epoch: int) -> Plan:
        """The plan of an epoch; the last two are kept, since batches reach across the border."""
        if epoch not in self.plans:
            self.plans = {e: p for e, p in self.plans.items() if e == epoch - 1}
            self.plans[epoch] = epoch_plan(self.stock, self.seed, epoch, fill=self.fill)
        return self.plans[epoch]


class Rows(Dataset[dict[str, Tensor]]):
    """Row `index` of endless epochs as tensors (T,): ids, targets, document, position, clock."""

    def __init__(self, vocabulary: Ranged, epochs: Epochs) -> None:
        self.stock, self.epochs = epochs.stock, epochs
        self.vocabulary = _Ranges(dict(vocabulary.ranges))  # worker processes need nothing else of it

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        epoch, place = self.epochs.locate(index)
        pieces = self.epochs.plan(epoch).row(place)
        row = build_row(self.stock.shards, self.vocabulary, pieces, self.stock.context)
        return {
            "ids": torch.from_numpy(row.ids.astype(np.int64)),
            "targets": torch.from_numpy(targets_of(row)),
            "document": torch.from_numpy(row.document.astype(np.int64)),
            "position": torch.from_numpy(row.position.astype(np.int64)),
            "clock": torch.from_numpy(row.clock),
        }


class Batches(Sampler[list[int]]):
    """Global rows of each micro-batch of one device, from micro-batch `start` to `stop` - 1.

    With several devices a micro-batch is `devices` runs of `rows` neighbours; device `rank` takes its
    own. Its length is `stop`: Lightning counts the micro-batches of the whole run, those before a resume
    included.
    """

    def __init__(self, rows: int, start: int, stop: int, rank: int = 0, devices: int = 1) -> None:
        self.rows, self.start, self.stop, self.rank, self.devices = rows, start, stop, rank, devices

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.start, self.stop):
            first = (batch * self.devices + self.rank) * self.rows
            yield list(range(first, first + self.rows))

    def __len__(self) -> int:
        return self.stop


class RowsData(L.LightningDataModule):
    """Batches of packed rows from prepared shards, as many as the run has steps; validation rows that
    never change.

    Args:
        folder: of the shards.
        vocabulary: whose ids the rows hold.
        arrangements: how documents are laid out.
        recipe: for its seed, steps, workers and evaluate_rows.
        cut: how a step is cut up.
    """

    def __init__(
        self,
        folder: Path,
        vocabulary: Ranged,
        arrangements: Sequence[Arrangement],
        recipe: Recipe,
        cut: Cut,
    ) -> None:
        super().__init__()
        self.cut, self.workers = cut, recipe.train.workers
        self.batches = recipe.train.steps * cut.batches_per_step
        self.train_rows = _rows(folder, "train", vocabulary, arrangements, cut.context, recipe.seed)
        self.valid_rows = _rows(folder, "valid", vocabulary, arrangements, cut.context, VALIDATION_SEED)
        self.evaluate_rows = recipe.train.evaluate_rows
        self._start_row = 0

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Micro-batches of dict(ids, targets, document, position, clock), each (B, T)."""
        rank, devices = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        start = self._start_row // (self.cut.rows_per_batch * devices)
        self.train_rows.epochs.locate(self._start_row)  # planned here once, workers begin with a copy
        sampler = Batches(self.cut.rows_per_batch, start, self.batches, rank, devices)
        return self._loader(self.train_rows, sampler, self.workers)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]] | list[Any]:
        """`evaluate_rows` rows of the valid split, always the same; [] where it is empty."""
        if not len(self.valid_rows.stock.shards):
            return []
        rows = min(self.evaluate_rows, len(self.valid_rows.epochs.plan(0)))
        size = self.cut.rows_per_batch
        batches = [list(range(i, min(i + size, rows))) for i in range(0, rows, size)]
        return self._loader(self.valid_rows, batches, 0)

    def _loader(self, rows: Rows, batches: Any, workers: int) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(rows, batch_sampler=batches, num_workers=workers, persistent_workers=workers > 0)

    def state_dict(self) -> dict[str, Any]:
        """Global rows that are trained on, and rows of the epochs so far, so that no old epoch is
        planned again.

        Lightning's own count of processed batches: a loader's is a prefetched batch ahead, a hook's one
        behind.
        """
        rows = self._start_row
        if self.trainer is not None:
            total: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
            rows = total.processed * self.cut.rows_per_batch * self.trainer.world_size
        self.train_rows.epochs.locate(rows)
        return {"rows": rows, "epochs": list(self.train_rows.epochs.counts)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, also with other workers, micro-batches or devices."""
        self._start_row = state_dict["rows"]
        self.train_rows.epochs.counts = list(state_dict["epochs"])


def _rows(
    folder: Path,
    split: str,
    vocabulary: Ranged,
    arrangements: Sequence[Arrangement],
    context: int,
    seed: int,
) -> Rows:
    """Rows of a split. Those of the valid split hold every document once and, where it fits, whole: they
    measure what a model of whole documents knows, and there are too few for padding to cost anything.
    """
    shards, training = open_shards(folder, split), split == "train"
    stock = open_stock(shards, arrangements, context, shards.weights if training else None)
    return Rows(vocabulary, Epochs(stock, seed, fill=training))


@dataclass(frozen=True)
class Summary:
    """What an epoch is, for a header.

    Args:
        documents: of the split.
        seen: times that they are seen in this epoch.
        utilisation: share of all positions that hold a token.
        repeated: share of all positions that hold headers and specials that a cut repeats.
        cut: documents seen in windows.
        filling: of these, documents that would fit and are cut to fill rows.
        shortened: documents that lose tokens of a segment without time.
        unused: documents that no arrangement names.
    """

    documents: int
    seen: int
    rows: int
    tokens: int
    utilisation: float
    repeated: float
    cut: int
    filling: int
    shortened: int
    unused: int

    def __str__(self) -> str:
        full = f"{100 * self.utilisation:.1f} % full"
        full += f" ({100 * self.repeated:.1f} % repeated headers)" if self.repeated >= 5e-4 else ""
        filling = f" ({self.filling:,} of them to fill rows)" if self.filling else ""
        often = f"{self.documents:,} documents seen {self.seen:,} times"
        parts = [often] if self.seen != self.documents - self.unused else []
        parts += [f"{self.rows:,} rows an epoch", full]
        parts += [f"{self.cut:,} documents cut into windows{filling}"] if self.cut else []
        parts += [f"{self.shortened:,} with a shortened header"] if self.shortened else []
        parts += [f"{self.unused:,} of no use to the arrangements"] if self.unused else []
        return ", ".join(parts)


def data_summary(data: RowsData) -> Summary:
    """What the first epoch of the train split is made of."""
    stock, plan = data.train_rows.stock, data.train_rows.epochs.plan(0)
    fits = plan.layouts.lengths <= stock.context
    return Summary(
        documents=len(stock.shards),
        seen=len(plan.layouts),
        rows=len(plan),
        tokens=plan.tokens,
        utilisation=plan.utilisation,
        repeated=plan.repeated,
        cut=int(plan.cut.sum()),
        filling=int((plan.cut & fits).sum()),
        shortened=int(plan.shortened.sum()),
        unused=stock.unused,
    )
