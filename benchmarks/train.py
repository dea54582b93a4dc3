"""Tokens per second of our trainer against nanoGPT, LitGPT and transformers; all in one run, taking turns.

    python benchmarks/train.py [--size small|base] [--precision 32|bf16] [--threads 1] [--rounds 6]
    pip install --target PEERS --no-deps litgpt transformers accelerate psutil jsonargparse
    PYTHONPATH=PEERS python benchmarks/train.py             # with peers that the environment lacks

Contenders, each in a process of its own:

    "ours, muon"             `multimodal_gpt.training.run.train` itself with its default optimizer, but for
                             validation, and checkpoints before the end
    "ours, adamw"            the same with train.optimizer=adamw, which the others have
    "nanogpt"                GPT-2's shape (LayerNorm, GELU, learned places, no biases) in nanoGPT's bare loop
    "litgpt"                 litgpt.GPT, shaped like Llama, trained as litgpt's pretrain.py does it
    "transformers, loop"     LlamaForCausalLM in the bare loop
    "transformers, Trainer"  LlamaForCausalLM under transformers.Trainer

All have a tied table, the same depth, width, heads, context, batch, threads and precision (float32, or bf16
autocast), a fused AdamW (but for muon), gradients clipped at norm 1, a learning rate set at every step, and
look at every 10th loss. A peer's MLP is as wide as makes its parameters as many as ours, within 2 %. The ids
are those of our packed rows, made-up words in BPE, without padding; the peers draw theirs from one array in
memory, as nanoGPT does. A contender that can't run is skipped, with the reason.

A turn is --chunk steps of --rows rows, while nobody else computes. The first (imports, warming up) isn't
counted, and each round begins with another contender. Prints a JSON line per contender: medians over rounds,
and `ratio` to nanogpt in the same round, by CPU seconds of the process (wall seconds on a GPU), with the
least and the greatest. Then a line for each of ours against the best peer. Exit code 1: one did not run.

With --device gpu the clock waits for the device, and --compile compiles everyone: neither has been run.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor, nn
from torch.nn import functional as F

from multimodal_gpt.data.datamodule import RowsData
from multimodal_gpt.data.prepare import prepare
from multimodal_gpt.model.gpt import GPT, gpt_config
from multimodal_gpt.model.optimizer import OPTIMIZERS
from multimodal_gpt.recipe.load import arrangements
from multimodal_gpt.recipe.schema import Recipe
from multimodal_gpt.stream.vocabulary import Vocabulary
from multimodal_gpt.training import run
from multimodal_gpt.training.job import batching

SIZES = {"small": (4, 160, 5), "base": (6, 384, 6)}  # depth, width, heads: 1.4 and 11 M parameters
IDS = 1007  # and 16 special ids and a tag: a table of 1,024 rows
RATE, DECAY, BETAS, CLIP = 1e-3, 0.1, (0.9, 0.95), 1.0
CLOCKS = {"cpu": "cpu", "cuda": "wall"}  # whose seconds ratios are of
LOG_EVERY = 10  # steps, as our recipes have it

LossOf = Callable[[nn.Module, Tensor, Tensor], Tensor]  # of a network, ids and targets


@dataclass(frozen=True)
class Setting:
    """What all contenders share; `rows` of a step, `chunk` steps of a turn, `parameters` of ours."""

    folder: Path
    depth: int
    width: int
    heads: int
    context: int
    rows: int
    steps: int
    chunk: int
    precision: str
    device: str
    threads: int
    compile: bool
    vocabulary: int = 0
    parameters: int = 0


class Turns:
    """The clock of a contender: after `chunk` steps it tells what they took, and waits for its next turn."""

    def __init__(self, pipe: Connection, setting: Setting) -> None:
        self.pipe, self.setting, self.parameters, self.done = pipe, setting, 0, 0
        self.began = self.next()

    def next(self) -> tuple[float, float]:
        """When the next turn begins; where none comes, the process ends."""
        try:
            self.pipe.recv()
        except EOFError:
            raise SystemExit from None
        return self.now()

    def now(self) -> tuple[float, float]:
        """CPU seconds of this process, and wall seconds."""
        if self.setting.device == "cuda":
            torch.cuda.synchronize()
        return time.process_time(), time.perf_counter()

    def step(self) -> None:
        self.done += 1
        if self.done % self.setting.chunk == 0:
            cpu, wall = (now - then for now, then in zip(self.now(), self.began, strict=True))
            self.pipe.send({"parameters": self.parameters, "cpu": cpu, "wall": wall})
            self.began = self.next()


def make_recipe(s: Setting, optimizer: str) -> Recipe:
    """Ours; what isn't said is as every recipe has it."""
    place = {"precision": s.precision, "threads": s.threads, "compile": s.compile}
    place["device"] = "gpu" if s.device == "cuda" else "cpu"
    steps = {"steps": s.steps, "tokens_per_step": s.rows * s.context, "save_every": 10**6}
    files = {"folders": [str(s.folder / "words")], "shards": str(s.folder / "shards")}
    return Recipe.model_validate(
        {
            "run": str(s.folder / optimizer),
            "tokenizers": {"text": {"encoding": "bpe", "vocabulary": IDS}},
            "data": {**files, "validation": 0, "workers": 1},
            "model": {"depth": s.depth, "width": s.width, "heads": s.heads, "context": s.context},
            "train": {**steps, **place, "optimizer": optimizer, "log_every": LOG_EVERY},
        }
    )


def ours(optimizer: str, setting: Setting, turns: Turns) -> None:
    """`train` itself, with one callback more, ahead of the one that saves at the end."""
    turns.parameters, watchers = setting.parameters, run.make_watchers
    clock = LambdaCallback(on_train_batch_end=lambda *_: turns.step())
    with patch.object(run, "make_watchers", lambda *job: [clock, *watchers(*job)]):
        run.train(make_recipe(setting, optimizer))


class Block(nn.Module):
    """Of GPT-2, as nanoGPT writes it."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads, linear = heads, partial(nn.Linear, bias=False)
        self.norm_1, self.norm_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = linear(width, 3 * width), linear(width, width)
        self.up, self.down = linear(width, hidden), linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm_1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class GPT2(nn.Module):
    """As nanoGPT writes it; ids and targets (B, T) -> mean nats."""

    def __init__(self, s: Setting, hidden: int) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(s.vocabulary, s.width), nn.Embedding(s.context, s.width)
        blocks = (Block(s.width, s.heads, hidden) for _ in range(s.depth))
        self.blocks = nn.Sequential(*blocks, nn.LayerNorm(s.width, bias=False))
        for weight in (p for p in self.parameters() if p.ndim == 2):
            nn.init.normal_(weight, std=0.02)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.table(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        logits = F.linear(self.blocks(x), self.table.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def litgpt(s: Setting, turns: Turns) -> None:
    """As its pretrain.py, without what that measures and prints."""
    from litgpt import GPT as LitGPT
    from litgpt import Config
    from litgpt.utils import chunked_cross_entropy

    sizes = {"n_layer": s.depth, "n_embd": s.width, "n_head": s.heads, "block_size": s.context}
    table = {"vocab_size": s.vocabulary, "padded_vocab_size": s.vocabulary}
    plain = {"bias": False, "parallel_residual": False, "rotary_percentage": 1.0}
    kinds = {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP"}

    def make(hidden: int) -> nn.Module:
        net = LitGPT(Config(name="llama", intermediate_size=hidden, **sizes, **table, **plain, **kinds))
        net.transformer.wte.weight = net.lm_head.weight
        return net

    precision = "bf16-mixed" if s.precision == "bf16" else "32-true"
    fabric = L.Fabric(accelerator=s.device, devices=1, precision=precision)
    loop(as_many(make, s), lambda net, x, y: chunked_cross_entropy(net(x), y), s, turns, fabric)


def llama(s: Setting) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": s.width, "num_hidden_layers": s.depth, "num_attention_heads": s.heads}
    table = {"vocab_size": s.vocabulary, "max_position_embeddings": s.context, "tie_word_embeddings": True}
    kind = partial(LlamaConfig, use_cache=False, **shape, **table)
    return as_many(lambda hidden: LlamaForCausalLM(kind(intermediate_size=hidden)), s)


def transformers_trainer(s: Setting, turns: Turns) -> None:
    """Its Trainer as it comes, without checkpoints and progress bars."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    clock = TrainerCallback()
    clock.on_step_end = lambda *_, **__: turns.step()
    stream = torch.from_numpy(np.load(s.folder / "ids.npy"))
    steps = {"max_steps": s.steps, "per_device_train_batch_size": s.rows, "logging_steps": LOG_EVERY}
    steps |= {"save_strategy": "no", "report_to": [], "disable_tqdm": True}
    rates = {"learning_rate": RATE, "weight_decay": DECAY, "adam_beta2": BETAS[1], "max_grad_norm": CLIP}
    place = {"use_cpu": s.device == "cpu", "dataloader_pin_memory": s.device == "cuda"}
    place |= {"bf16": s.precision == "bf16", "torch_compile": s.compile}
    turns.parameters = count(net := llama(s))
    arguments = TrainingArguments(str(s.folder / "trainer"), **steps, **rates, **place)
    data = [{"input_ids": row, "labels": row} for row in stream.split(s.context)]
    Trainer(net, arguments, train_dataset=data, callbacks=[clock]).train()


CONTENDERS: dict[str, Callable[[Setting, Turns], None]] = {
    **{f"ours, {optimizer}": partial(ours, optimizer) for optimizer in OPTIMIZERS},
    "nanogpt": lambda s, turns: loop(as_many(partial(GPT2, s), s), GPT2.__call__, s, turns),
    "litgpt": litgpt,
    "transformers, loop": lambda s, turns: loop(llama(s), lambda net, x, _: net(x, labels=x).loss, s, turns),
    "transformers, Trainer": transformers_trainer,
}
OURS = [f"ours, {optimizer}" for optimizer in OPTIMIZERS]


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def as_many(make: Callable[[int], nn.Module], setting: Setting) -> nn.Module:
    """The network whose MLPs are as wide as parameters like ours allow, to a multiple of 8."""
    with torch.device("meta"):
        few, more = (count(make(hidden)) for hidden in (8, 16))
    net = make(8 + 8 * round((setting.parameters - few) / (more - few)))
    if abs(count(net) / setting.parameters - 1) > 0.02:
        raise ValueError(f"{count(net):,} parameters, ours are {setting.parameters:,}")
    return net


def batches(s: Setting) -> Iterator[list[Tensor]]:
    """Ids and targets (B, T) of every step, from random places of the stream: nanoGPT's get_batch."""
    stream = torch.from_numpy(np.load(s.folder / "ids.npy"))
    for _ in range(s.steps):
        starts = torch.randint(len(stream) - s.context, (s.rows,)).tolist()
        pair = [torch.stack([stream[i + d : i + d + s.context] for i in starts]) for d in (0, 1)]
        if s.device == "cuda":
            pair = [part.pin_memory().to("cuda", non_blocking=True) for part in pair]
        yield pair


def loop(net: nn.Module, loss_of: LossOf, s: Setting, turns: Turns, fabric: L.Fabric | None = None) -> None:
    """nanoGPT's train.py without gradient accumulation and checkpoints; through Fabric, if given."""
    turns.parameters, weights = count(net), list(net.to(s.device).parameters())
    matrices, others = ([p for p in weights if (p.ndim == 2) == flat] for flat in (True, False))
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, fused=True)
    if s.compile:
        net.compile()
    if fabric:
        net, optimizer = fabric.setup(net, optimizer)
    mixed = s.precision == "bf16" and not fabric
    for step, (ids, targets) in enumerate(batches(s)):
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / s.steps))
        with torch.autocast(s.device, torch.bfloat16, enabled=mixed):
            loss = loss_of(net, ids, targets)
        if fabric:
            fabric.backward(loss)
            fabric.clip_gradients(net, optimizer, max_norm=CLIP)
        else:
            loss.backward()
            nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % LOG_EVERY == 0:
            loss.item()
        turns.step()


def make_words(folder: Path) -> None:
    """Texts of made-up words, frequent and rare ones."""
    folder.mkdir()
    rng, frequencies = random.Random(1), [1 / place for place in range(5, 4005)]
    words = ["".join(rng.choices("aeioubdgklmnprst", k=rng.randint(2, 8))) for _ in range(4000)]
    for number in range(300):
        text = " ".join(rng.choices(words, frequencies, k=rng.randint(200, 1000)))
        (folder / f"{number:03d}.txt").write_text(text, "utf-8")


def make_data(setting: Setting) -> Setting:
    """Prepare shards, put their first rows into one array for the peers, and count our parameters."""
    make_words(setting.folder / "words")
    recipe = make_recipe(setting, "muon")
    vocabulary = Vocabulary.load(shards := prepare(recipe).folder)
    rows = RowsData(shards, vocabulary, arrangements(recipe, vocabulary), recipe, batching(recipe)).train_rows
    found = [rows[i] for i in range(512)]
    padding = torch.cat([row["document"] for row in found]).lt(0).float().mean().item()
    if padding > 0.01:
        raise SystemExit(f"{padding:.1%} of our rows are padding")
    np.save(setting.folder / "ids.npy", torch.cat([row["ids"] for row in found]).numpy())
    net = GPT(gpt_config(recipe.model, vocabulary.table_size))
    return replace(setting, vocabulary=vocabulary.table_size, parameters=net.parameter_count)


def compete(name: str, setting: Setting, pipe: Connection) -> None:
    """A contender's process: its steps, or why there are none."""
    sys.stdout = sys.stderr
    turns = Turns(pipe, setting)
    torch.set_num_threads(setting.threads)
    torch.manual_seed(1)
    try:
        CONTENDERS[name](setting, turns)
    except Exception as error:  # whatever a peer raises, the others go on
        pipe.send({"skipped": f"{type(error).__name__}: {error}".splitlines()[0]})


def take_turns(setting: Setting) -> dict[str, list[dict[str, Any]]]:
    """What each contender told in each turn, or in its last why it did not run."""
    context, names, pipes = multiprocessing.get_context("spawn"), list(CONTENDERS), {}
    told = {name: [] for name in names}
    for name in names:
        pipes[name], end = context.Pipe()
        context.Process(target=compete, args=(name, setting, end), daemon=True).start()
        end.close()
    for _ in range(setting.steps // setting.chunk):
        names = [*names[1:], names[0]]
        for name in names:
            if told[name] and "skipped" in told[name][-1]:
                continue
            try:
                pipes[name].send("go")
                told[name].append(pipes[name].recv())
            except (EOFError, OSError):
                told[name].append({"skipped": "its process ended"})
    return told


def report(setting: Setting, told: dict[str, list[dict[str, Any]]]) -> None:
    tokens, by = setting.chunk * setting.rows * setting.context, CLOCKS[setting.device]
    ran = {name: answers[1:] for name, answers in told.items() if "skipped" not in answers[-1]}
    speeds = {name: [tokens / a[by] for a in answers] for name, answers in ran.items()}
    for name, answers in told.items():
        if name not in ran:
            print(json.dumps({"contender": name, **answers[-1]}))
            continue
        cpu, wall = (round(statistics.median(tokens / a[key] for a in ran[name])) for key in ("cpu", "wall"))
        line = {"contender": name, "parameters": answers[-1]["parameters"], "rounds": len(ran[name])}
        line |= {"tokens_per_cpu_second": cpu, "tokens_per_second": wall}
        print(json.dumps(line | (against(speeds[name], speeds["nanogpt"]) if "nanogpt" in ran else {})))
    peers = {name: statistics.median(s) for name, s in speeds.items() if name not in OURS}
    for name in (n for n in OURS if n in ran and peers):
        best = max(peers, key=lambda peer: peers[peer])
        line = {"ratio_of": name, "to": best, **against(speeds[name], speeds[best])}
        print(json.dumps({**line, "precision": setting.precision, "threads": setting.threads}))


def against(speeds: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """The median of the rounds' ratios, and the least and the greatest."""
    ratios = [round(a / b, 3) for a, b in zip(speeds, others, strict=True)]
    return {"ratio": round(statistics.median(ratios), 3), "range": [min(ratios), max(ratios)]}


def main() -> int:
    """Run all contenders; the exit code is 1 where one of ours did not run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small", help="1.4 M or 11 M parameters")
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--compile", action="store_true")
    for name, default in {"context": 256, "rows": 16, "threads": 1, "rounds": 6, "chunk": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{default} if absent")
    options = vars(parser.parse_args())
    shape = dict(zip(("depth", "width", "heads"), SIZES[options.pop("size")], strict=True))
    options["device"] = "cuda" if options["device"] == "gpu" else "cpu"
    options["steps"] = options["chunk"] * (1 + options.pop("rounds"))
    with tempfile.TemporaryDirectory() as folder:
        setting = make_data(Setting(folder=Path(folder), **shape, **options))
        report(setting, told := take_turns(setting))
    return 1 if any("skipped" in told[name][-1] for name in OURS) else 0


if __name__ == "__main__":
    sys.exit(main())
