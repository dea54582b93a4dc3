"""What a step under our Trainer costs over one in a bare loop, on a model with next to nothing in it.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --depth 1 --width 32 --context 16   # nothing but overhead

Prints one JSON line: CPU milliseconds a step of the bare loop, of our Trainer with its callbacks, and of the
Trainer as Lightning has it, the best of interleaved rounds (other work on the machine only ever adds), and
bare / Trainer. All build the same rows from the same shards, clip and follow the schedule.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn

from multimodal_gpt.console import progress
from multimodal_gpt.data.datamodule import RowsData
from multimodal_gpt.data.prepare import prepare
from multimodal_gpt.model.gpt import GPT, gpt_config
from multimodal_gpt.model.optimizer import OPTIMIZERS
from multimodal_gpt.model.schedule import SCHEDULES
from multimodal_gpt.recipe.load import arrangements
from multimodal_gpt.recipe.schema import Recipe
from multimodal_gpt.stream.vocabulary import Vocabulary
from multimodal_gpt.training.callbacks import Stop
from multimodal_gpt.training.device import choose_device, quiet_lightning
from multimodal_gpt.training.job import Job, batching, make_meter, make_trainer, make_watchers
from multimodal_gpt.training.module import TrainingModule
from multimodal_gpt.training.run import survey

UNCOUNTED = 20
"""Steps before the clock starts."""


class Clock(L.Callback):
    """CPU seconds at the end of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.seconds.append(time.process_time())


def per_step(seconds: Sequence[float]) -> float:
    """Milliseconds."""
    return 1e3 * (seconds[-1] - seconds[UNCOUNTED]) / (len(seconds) - 1 - UNCOUNTED)


def ours(recipe: Recipe, parts: tuple[Any, ...]) -> float:
    """Milliseconds a step under the Trainer."""
    vocabulary, rows, corpus, net = parts
    job = Job(recipe, vocabulary, corpus, net, choose_device("cpu", "32"), 0)
    owners = [(r.name, r.first, r.stop) for r in vocabulary.ranges.values()]
    module, clock = TrainingModule(net, owners, recipe.train, recipe.seed), Clock()
    with quiet_lightning(), Stop(None) as stop, progress(recipe.train.steps, "train") as bar:
        meter = make_meter(job, bar)
        trainer = make_trainer(job, [meter, *make_watchers(job, meter, stop)[:-1], clock])
        trainer.fit(module, datamodule=rows)
    return per_step(clock.seconds)


def stock(recipe: Recipe, parts: tuple[Any, ...]) -> float:
    """Milliseconds a step under Lightning's Trainer as it comes: logger, checkpoints, progress bar."""
    vocabulary, rows, _, net = parts
    owners = [(r.name, r.first, r.stop) for r in vocabulary.ranges.values()]
    module, clock = TrainingModule(net, owners, recipe.train, recipe.seed), Clock()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=recipe.train.steps,
            callbacks=[clock],
            default_root_dir=recipe.run,
        )
        trainer.fit(module, datamodule=rows)
    return per_step(clock.seconds)


def bare(recipe: Recipe, parts: tuple[Any, ...]) -> float:
    """Milliseconds a step of a loop with nothing in it that it can do without."""
    _, rows, _, net = parts
    train, seconds = recipe.train, []
    optimizer = OPTIMIZERS[train.optimizer](net, train.learning_rate, train.weight_decay, train.betas)
    for step, batch in enumerate(rows.train_dataloader()):
        hidden = net(batch["ids"], batch["position"], batch["document"], clock=batch["clock"])
        nats, losses = net.loss_sum(hidden, batch["targets"])
        (nats / losses.numel()).backward()
        nn.utils.clip_grad_norm_(net.parameters(), train.clip)
        factor = SCHEDULES[train.schedule](step, train.steps, train.warmup, train.decay)
        for group in optimizer.param_groups:
            group["lr"] = train.learning_rate * factor
        optimizer.step()
        optimizer.zero_grad()
        if step % train.log_every == 0 and not losses.sum().isfinite():
            raise ArithmeticError
        seconds.append(time.process_time())
    return per_step(seconds)


def make_recipe(folder: Path, options: argparse.Namespace) -> Recipe:
    """A run on a few made-up words, in a folder of its own."""
    (folder / "words").mkdir()
    for number in range(64):
        words = " ".join(f"word{(number * i) % 17}" for i in range(40))
        (folder / "words" / f"{number}.txt").write_text(words, "utf-8")
    shape = {"depth": options.depth, "width": options.width, "heads": 2, "context": options.context}
    train = {"steps": options.steps, "tokens_per_step": options.context, "save_every": 10**6}
    return Recipe.model_validate(
        {
            "run": str(folder / "run"),
            "tokenizers": {"text": {"encoding": "bytes"}},
            "data": {"folders": [str(folder / "words")], "validation": 0, "workers": 1},
            "model": {**shape, "clock": 0},
            "train": {**train, "optimizer": options.optimizer, "device": "cpu", "threads": 1},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        recipe = make_recipe(Path(name), options)
        shards = prepare(recipe).folder
        (Path(recipe.run)).mkdir(exist_ok=True)
        vocabulary, corpus = Vocabulary.load(shards), survey(shards)
        found: dict[str, list[float]] = {"bare": [], "ours": [], "stock": []}
        for _ in range(options.rounds):
            for contender in (bare, ours, stock):
                layout = arrangements(recipe, vocabulary)
                rows = RowsData(shards, vocabulary, layout, recipe, batching(recipe))
                torch.manual_seed(1)
                net = GPT(gpt_config(recipe.model, vocabulary.table_size))
                found[contender.__name__].append(contender(recipe, (vocabulary, rows, corpus, net)))
    facts = {"depth": options.depth, "width": options.width, "tokens_per_step": options.context}
    times = {f"{name}_ms": round(min(ms), 3) for name, ms in found.items()}
    line = {"optimizer": options.optimizer, "torch": torch.__version__, "lightning": L.__version__}
    ratios = {f"ratio_{n}": round(times["bare_ms"] / times[f"{n}_ms"], 3) for n in ("ours", "stock")}
    print(json.dumps({**facts, **line, **times, **ratios}), flush=True)


if __name__ == "__main__":
    main()
