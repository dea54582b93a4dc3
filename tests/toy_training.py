"""Training on rows that count up and down: their data, a recipe for them, and what a run has left."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset, Sampler
from toy_corpus import BEATS, LETTERS

from multimodal_gpt.model.loss import IGNORE
from multimodal_gpt.recipe.schema import Recipe
from multimodal_gpt.training import run
from multimodal_gpt.training.job import Corpus, batching
from multimodal_gpt.training.metrics import read_metrics
from multimodal_gpt.training.resume import resume_state

CONTEXT = 16
CORPUS = Corpus({"train": 40, "valid": 4}, 640, "digest")


class ToyRows(Dataset):
    """Counting up and down over a few ids, two documents a row; a batch is a function of its index alone."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rows = [self._row(index * self.rows + i) for i in range(self.rows)]
        return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}

    def _row(self, number: int) -> dict[str, torch.Tensor]:
        rng = torch.Generator().manual_seed(number)
        half = CONTEXT // 2
        start, step = torch.randint(0, 5, (2,), generator=rng).tolist()
        up = 17 + (start + torch.arange(half) * (1 + step % 2)) % 5
        down = 23 + (start - torch.arange(half)) % 5
        ids = torch.cat((up, down))
        targets = torch.cat((up[1:], torch.tensor([IGNORE]), down[1:], torch.tensor([IGNORE])))
        targets[-number % 4 - 1 :] = IGNORE
        return {
            "ids": ids.int(),
            "targets": targets.int(),
            "document": torch.tensor([0] * half + [1] * half).int(),
            "position": torch.arange(half).repeat(2).int(),
            "clock": torch.zeros(CONTEXT),
        }


class From(Sampler):
    """Indexes from `start` on; its length is that of the whole."""

    def __init__(self, start: int, total: int) -> None:
        self.start, self.total = start, total

    def __iter__(self):
        return iter(range(self.start, self.total))

    def __len__(self) -> int:
        return self.total


class ToyData(L.LightningDataModule):
    """The contract of the data room's RowsData: rows by position, kept in the checkpoint."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.rows, self.workers = batching(recipe).rows_per_batch, recipe.train.workers
        self.start = 0

    def train_dataloader(self) -> DataLoader:
        sampler = From(self.start, 10**6)
        return DataLoader(ToyRows(self.rows), batch_size=None, sampler=sampler, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader:
        first = 10**6 // self.rows
        return DataLoader(
            ToyRows(self.rows), batch_size=None, sampler=range(first, first + max(1, 8 // self.rows))
        )

    def state_dict(self) -> dict[str, int]:
        return {"start": self.trainer.fit_loop.epoch_loop.batch_progress.total.processed}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.start = state_dict["start"]


def new_recipe(
    folder: Path, name: str = "run", *, dropout: float = 0.0, width: int = 32, seed: int = 1, **train: Any
) -> Recipe:
    """A recipe of a toy run in a folder of its own; keywords are options of `train`, three are not."""
    defaults = {
        "steps": 8,
        "tokens_per_step": 64,
        "evaluate_every": 2,
        "evaluate_rows": 8,
        "log_every": 3,
    }
    return Recipe(
        run=str(folder / name),
        seed=seed,
        tokenizers={"letters": {"plugin": LETTERS}, "beats": {"plugin": BEATS}},
        model={"depth": 2, "width": width, "heads": 2, "context": CONTEXT, "dropout": dropout},
        train={**defaults, "device": "cpu", **train},
    )


def planned(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], Any]], None]:
    """Have something done at a step, while the callbacks of that step are at work."""

    class Bar:
        def __init__(self) -> None:
            self.step, self.actions = 0, {}

        def advance(self, n: int, note: str = "") -> None:
            self.step += n
            self.actions.get(self.step, lambda: None)()

    bar = Bar()

    @contextmanager
    def progress(total, label):
        bar.step = int(label.split()[-1]) if "step" in label else 0
        yield bar

    monkeypatch.setattr(run, "progress", progress)

    def plan(step: int, action) -> None:
        bar.actions[step] = action

    return plan


def captured(monkeypatch: pytest.MonkeyPatch) -> list[torch.nn.Module]:
    """The networks that are trained, in turn."""
    found = []
    real = run.TrainingModule.__init__

    def init(self, net, *rest):
        found.append(net)
        real(self, net, *rest)

    monkeypatch.setattr(run.TrainingModule, "__init__", init)
    return found


def send(number: int):
    return lambda: os.kill(os.getpid(), number)


def fit(recipe, vocabulary, *, resume: bool = False, rows: L.LightningDataModule | None = None):
    state = resume_state(Path(recipe.run), recipe) if resume else None
    return run.fit(recipe, vocabulary, rows or ToyData(recipe), CORPUS, state)


def curve(folder: Path) -> list[dict[str, str]]:
    timing = ("seconds", "tokens_per_second")
    return [{k: v for k, v in row.items() if k not in timing} for row in read_metrics(folder)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Path, two: Path) -> bool:
    a, b = weights(one), weights(two)
    return all(torch.equal(a[name], b[name]) for name in a)
