"""Every choice of the architecture at equal time: the default against itself with one thing changed.

    python benchmarks/architecture.py --out compared --text input.txt --music TRAIN_FOLDER VALID_FOLDER
    python benchmarks/architecture.py --out compared --clock --music TRAIN_FOLDER VALID_FOLDER

All contenders train in turns, a step at a time, in one process and one thread: whoever has used the least
time goes next, so what else the machine does hits all alike. Equal are the CPU seconds of training, the rows
and their order, optimizer, learning rate and seed; the schedule follows the share of the seconds used. Prints
one JSON line per data and contender: held-out nats per token, bits per unit (text: byte; music: note, what
the melody's own tokens cost in rows as trained), and `worse`: by how many nats per token it is worse than the
default, with the 95 % paired bootstrap interval over held-out documents (text: stretches of 1,024 bytes).
`other weights` is the default from other random weights: what luck alone does.

With --clock: half of the angles on the clock or none, segments after one another or turns by the bar. Bits
per note alone and known, the gain of each from the other, and by how many bits per note each is worse than
the default.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from multimodal_gpt.data.datamodule import RowsData
from multimodal_gpt.data.prepare import prepare
from multimodal_gpt.data.shards import open_shards
from multimodal_gpt.evaluation.documents import Piece, holding
from multimodal_gpt.evaluation.likelihood import LN2, segment_bits
from multimodal_gpt.evaluation.tables import Figure, ratio
from multimodal_gpt.model.attention import seen_in
from multimodal_gpt.model.gpt import GPT, MLP, GPTConfig, gpt_config, initialise
from multimodal_gpt.model.loss import IGNORE
from multimodal_gpt.model.norm import RMSNorm
from multimodal_gpt.model.optimizer import OPTIMIZERS
from multimodal_gpt.model.rotary import turn_by
from multimodal_gpt.model.schedule import SCHEDULES
from multimodal_gpt.recipe.load import arrangements, load_recipe
from multimodal_gpt.recipe.schema import ModelRecipe, TrainRecipe
from multimodal_gpt.stream.arrangement import Arrangement, Part
from multimodal_gpt.stream.vocabulary import Vocabulary
from multimodal_gpt.training.job import Batching

Batch = Mapping[str, Tensor]
Line = dict[str, object]
SHARE = 10_000
"""Steps of a schedule that is asked by share of the time."""
TURNS = (("chords", "melody"),), (("melody", "chords"),)
SEGMENTS = (("chords",), ("melody",)), (("melody",), ("chords",))
COMBINATIONS: dict[str, tuple[float, Sequence[Sequence[Part]]]] = {
    "clock, turns": (0.5, TURNS),
    "no clock, turns": (0.0, TURNS),
    "clock, segments": (0.5, SEGMENTS),
    "no clock, segments": (0.0, SEGMENTS),
}


class Placed(GPT):
    """Learned absolute positions, added to the embedding, in place of all angles that count tokens (0)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.places = nn.Embedding(config.context, config.width)
        nn.init.normal_(self.places.weight, std=0.02)
        self.waves.zero_()

    def forward(self, ids, position=None, document=None, cache=None, counts=None, clock=None):
        """Hidden states (B, T, D) of ids (B, T), without a cache."""
        position = torch.arange(ids.shape[1])[None] if position is None else position
        turn = turn_by(position, self.waves, clock, self.beats)
        mask, x = None if document is None else seen_in(document), self.embedding(ids) + self.places(position)
        for block in self.blocks:
            x = block(x, turn, mask, None)
        return self.norm(x)


class SquaredReLU(MLP):
    """down(relu(up(x)) ** 2) (So et al. 2021)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.relu(self.up_proj(x)).square())


def untied(config: GPTConfig) -> GPT:
    """The default with a table of its own for what comes in."""
    net = GPT(config)
    table = net.embedding.input = nn.Embedding(config.vocabulary_size, config.width)
    nn.init.normal_(table.weight, std=0.02)
    net.embedding.forward = table.forward
    return net


class SwiGLU(MLP):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020), with as many weights: two thirds as wide."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(width, hidden * 2 // 3)
        self.gate_proj = nn.Linear(width, hidden * 2 // 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def with_mlp(kind: type[MLP], config: GPTConfig) -> GPT:
    """The default with another kind of MLP."""
    net = GPT(config)
    for block in net.blocks:
        block.mlp = kind(config.width, config.mlp_hidden)
    initialise(net)
    return net


def renormed(make: Callable[[RMSNorm], nn.Module], names: str | tuple[str, ...], config: GPTConfig) -> GPT:
    """The default with something else in place of the norms whose names end so."""
    net = GPT(config)
    for owner in list(net.modules()):
        for name, norm in list(owner.named_children()):
            if isinstance(norm, RMSNorm) and name.endswith(names):
                setattr(owner, name, make(norm))
    return net


def started(config: GPTConfig, *, like_gpt2: bool) -> GPT:
    """The default from GPT-2's weights (all 0.02, but less in outputs of blocks), or with outputs at zero."""
    net = GPT(config)
    for name, weight in net.blocks.named_parameters():
        last = name.endswith(("o_proj.weight", "down_proj.weight"))
        if like_gpt2 and weight.ndim == 2:
            nn.init.normal_(weight, std=0.02 / math.sqrt(2 * config.depth) if last else 0.02)
        elif last:
            nn.init.zeros_(weight)
    return net


VARIANTS: dict[str, Callable[[GPTConfig], GPT]] = {
    "default": GPT,
    "other weights": GPT,
    "learned positions": Placed,
    "LayerNorm": partial(renormed, lambda n: nn.LayerNorm(n.normalized_shape, eps=n.eps, bias=False), "norm"),
    "no QK-norm": partial(renormed, lambda _: nn.Identity(), ("q_norm", "k_norm")),
    "2 of 4 kv heads": lambda config: GPT(replace(config, kv_heads=2)),
    "1 of 4 kv heads": lambda config: GPT(replace(config, kv_heads=1)),
    "ReLU^2": partial(with_mlp, SquaredReLU),
    "SwiGLU": partial(with_mlp, SwiGLU),
    "untied table": untied,
    "all 0.02": partial(started, like_gpt2=True),
    "zero outputs": partial(started, like_gpt2=False),
    "clock 0": lambda config: GPT(replace(config, clock=0.0)),
    "clock 1": lambda config: GPT(replace(config, clock=1.0)),
}


@dataclass(frozen=True)
class Data:
    """What all variants train on: number of a step -> its batch; and what they are scored on: batches, each
    with the number (B, T) of the document that every place belongs to. `own`: first id and one past the last
    of what `units` (N,) of every document counts.
    """

    name: str
    table_size: int
    context: int
    clock: float
    batch: Callable[[int], Batch]
    held_out: Sequence[tuple[Batch, np.ndarray]]
    own: tuple[int, int]
    units: np.ndarray


def text_data(path: Path, seed: int, tokens: int) -> Data:
    """Bytes; the last tenth is held out, each of its rows scored alone."""
    context, stretch = 256, 4
    raw = torch.from_numpy(np.frombuffer(path.read_bytes(), np.uint8).astype(np.int64))
    train, valid = raw[: len(raw) * 9 // 10], raw[len(raw) * 9 // 10 :]

    def cut(source: Tensor, starts: np.ndarray) -> Batch:
        rows = source[torch.from_numpy(starts)[:, None] + torch.arange(context + 1)]
        return {"ids": rows[:, :-1], "targets": rows[:, 1:]}

    def batch(number: int) -> Batch:
        rng = np.random.default_rng([seed, number])
        return cut(train, rng.integers(0, len(train) - context, tokens // context))

    held_out = []
    for number, start in enumerate(range(0, len(valid) - context * stretch, context * stretch)):
        starts = start + context * np.arange(stretch)
        held_out.append((cut(valid, starts), np.full((stretch, context), number)))
    size, units = -(-int(raw.max() + 1) // 64) * 64, np.full(len(held_out), stretch * context)
    return Data("text", size, context, 0.0, batch, held_out, (0, size), units)


def shards_of(folders: Sequence[Path], out: Path) -> tuple[Path, Vocabulary]:
    """Prepared shards of a training and a held-out folder, every tune in its own key alone."""
    train, valid = (folder.resolve() for folder in folders)
    data = [f"data.folders=[{train}]", f"data.validation_folders=[{valid}]", "data.shifts=[0]"]
    folder = prepare(load_recipe("own_folder", [*data, f"run={out.resolve()}", "data.workers=1"])).folder
    return Path(folder), Vocabulary.load(Path(folder))


def rows_of(shards: Path, vocabulary: Vocabulary, laid_out: Sequence[Arrangement], seed: int, cut: Batching):
    """The rows of a training run, and its batch by the number of a step."""
    rows = RowsData(shards, vocabulary, laid_out, load_recipe("own_folder", [f"seed={seed}"]), cut)
    count = cut.rows_per_batch
    return rows, lambda step: stacked([rows.train_rows[step * count + i] for i in range(count)])


def stacked(rows: Sequence[Batch]) -> Batch:
    """Rows as a batch."""
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def music_data(folders: Sequence[Path], out: Path, seed: int, tokens: int) -> Data:
    """The rows of the recipe own_folder; the held-out documents laid out once, whatever the seed."""
    shards, vocabulary = shards_of(folders, out)
    cut = Batching(tokens // 512, 1, 512)
    rows, batch = rows_of(shards, vocabulary, arrangements(load_recipe("own_folder"), vocabulary), seed, cut)
    valid, split = rows.valid_rows, open_shards(shards, "valid")
    plan, held_out = valid.epochs.plan(0), []
    for number in range(len(plan)):
        row = stacked([valid[number]])
        documents = np.array([*(piece.document for piece in plan.row(number)), 0])  # the last: padding
        held_out.append((row, documents[row["document"].numpy()]))
    place, documents = vocabulary.range("melody"), map(split.document, range(len(split)))
    units = np.array([sum(s.units for s in d.segments if s.modality == "melody") for d in documents])
    own, size = (place.first, place.stop), vocabulary.table_size
    return Data("music", size, cut.context, 0.5, batch, held_out, own, units)


@dataclass(eq=False)
class Contender:
    """A network while it trains; `facts` says what it is."""

    net: GPT
    batch: Callable[[int], Batch]
    facts: Line
    steps: int = 0
    seconds: float = 0.0


def take_step(one: Contender, optimizer: Optimizer, budget: float) -> None:
    """One step; only training is timed."""
    train, batch = TrainRecipe(), one.batch(one.steps)
    share = int(SHARE * min(1.0, one.seconds / budget))
    factor = SCHEDULES[train.schedule](share, SHARE, train.warmup, train.decay)
    begun = time.process_time()
    for group in optimizer.param_groups:
        group["lr"] = train.learning_rate * factor
    nats, losses = one.net.loss_sum(hidden(one.net, batch), batch["targets"])
    (nats / losses.numel()).backward()
    nn.utils.clip_grad_norm_(one.net.parameters(), train.clip)
    optimizer.step()
    optimizer.zero_grad()
    one.seconds += time.process_time() - begun
    one.steps += 1


def hidden(net: GPT, batch: Batch) -> Tensor:
    """(B, T, D)."""
    return net(batch["ids"], batch.get("position"), batch.get("document"), clock=batch.get("clock"))


def race(contenders: Sequence[Contender], budget: float) -> None:
    """Train all for so many CPU seconds each, with the optimizer of the product."""
    train = TrainRecipe()
    settings = train.learning_rate, train.weight_decay, train.betas
    optimizers = {c: OPTIMIZERS[train.optimizer](c.net, *settings) for c in contenders}
    warm = Contender(GPT(contenders[0].net.config), contenders[0].batch, {})
    take_step(warm, OPTIMIZERS[train.optimizer](warm.net, *settings), budget)
    while (one := min(contenders, key=lambda c: c.seconds)).seconds < budget:
        take_step(one, optimizers[one], budget)
    for one in contenders:
        one.facts |= {"steps": one.steps, "seconds": one.seconds, "parameters": one.net.parameter_count}


@torch.no_grad()
def score(net: GPT, data: Data) -> np.ndarray:
    """(4, N) per held-out document: nats and targets, nats of its own ids and units."""
    sums = np.zeros((4, len(data.units)))
    for batch, document in data.held_out:
        targets = batch["targets"]
        losses = net.token_losses(hidden(net, batch), targets).double().numpy()
        own = ((targets >= data.own[0]) & (targets < data.own[1])).numpy()
        for row, values in zip(sums, (losses, (targets != IGNORE).numpy(), losses * own), strict=False):
            np.add.at(row, document, values)
    sums[3] = np.where(sums[2] > 0, data.units, 0)
    return sums


def rounded(interval: Figure) -> dict[str, float]:
    """For printing."""
    return {key: round(value, 4) for key, value in asdict(interval).items()}


def compare(data: Data, names: Sequence[str], seconds: float, seed: int) -> Iterator[Line]:
    """Train and score the variants, the default first."""
    shape = ModelRecipe(depth=4, width=128, heads=4, context=data.context, clock=data.clock)
    config, contenders = gpt_config(shape, data.table_size), []
    for name in names:
        torch.manual_seed(seed + 1000 * (name == "other weights"))
        facts: Line = {"data": data.name, "variant": name, "seed": seed}
        contenders.append(Contender(VARIANTS[name](config), data.batch, facts))
    race(contenders, seconds)
    base = None
    for one in contenders:
        nats, targets, own, units = found = score(one.net, data)
        base = found if base is None else base
        worse = ratio(nats - base[0], targets)
        told = {"nats": nats.sum() / targets.sum(), "bits_per_unit": own.sum() / LN2 / units.sum()}
        told["percent"] = 100 * (nats.sum() / base[0].sum() - 1)
        told = {key: round(value, 4) for key, value in told.items()}
        yield {**one.facts, **told, "worse": rounded(worse)}


def compare_clocks(folders: Sequence[Path], out: Path, seconds: float, seed: int) -> Iterator[Line]:
    """Train and measure the four combinations, the default first."""
    shards, vocabulary = shards_of(folders, out)
    contenders = []
    for name, (clock, orders) in COMBINATIONS.items():
        laid_out = [Arrangement(order, drop=0.25) for order in orders]
        _, batch = rows_of(shards, vocabulary, laid_out, seed, Batching(2, 1, 1024))
        torch.manual_seed(seed)
        shape = ModelRecipe(depth=4, width=128, heads=4, context=1024, clock=clock)
        config = gpt_config(shape, vocabulary.table_size)
        contenders.append(Contender(GPT(config), batch, {"variant": name, "seed": seed}))
    race(contenders, seconds)
    pieces, base = held_out_pieces(shards), {}
    units = {n: np.array([p.segments[n].units for p in pieces]) for n in ("melody", "chords")}
    for one, (_, orders) in zip(contenders, COMBINATIONS.values(), strict=True):
        costs = dict(piece_bits(one.net, vocabulary, pieces, orders))
        base = base or costs
        told = {" ".join(key): round(bits.sum() / units[key[0]].sum(), 4) for key, bits in costs.items()}
        worse = {" ".join(k): rounded(ratio(b - base[k], units[k[0]])) for k, b in costs.items()}
        gains = {n: rounded(ratio(costs[n, "alone"] - costs[n, "known"], units[n])) for n in units}
        yield {**one.facts, "bits_per_unit": told, "worse": worse, "gains": gains}


def held_out_pieces(shards: Path) -> list[Piece]:
    """Held-out documents that hold chords and a melody."""
    split = open_shards(shards, "valid")
    documents = map(split.document, range(len(split)))
    pieces = (Piece({s.modality: s for s in d.segments}, d.metadata) for d in documents)
    return list(holding(pieces, "chords", "melody"))


def piece_bits(
    net: GPT, vocabulary: Vocabulary, pieces: Sequence[Piece], orders: Sequence[Sequence[Part]]
) -> Iterator[tuple[tuple[str, str], np.ndarray]]:
    """Bits (N,) of every piece's melody and chords, each alone and knowing the other."""
    for target, order in zip(("melody", "chords"), orders, strict=True):
        for how, laid_out in (("alone", ((target,),)), ("known", order)):
            names = [name for part in laid_out for name in part]
            known = [{name: piece.segments[name] for name in names} for piece in pieces]
            bits = [segment_bits(net, vocabulary, segments, laid_out, target) for segments in known]
            yield (target, how), np.array(bits)


def main() -> None:
    """Compare on what is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--music", type=Path, nargs=2, metavar=("TRAIN", "VALID"), help="folders of tunes")
    parser.add_argument("--text", type=Path, help="a file; its last tenth is held out")
    parser.add_argument("--clock", action="store_true", help="compare clock and arrangement")
    parser.add_argument("--out", type=Path, required=True, help="folder for the prepared music")
    parser.add_argument("--seconds", type=float, default=100.0, help="CPU seconds for each contender")
    parser.add_argument("--tokens", type=int, default=1536, help="tokens per step, without --clock")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), help="variants beside the default")
    options = parser.parse_args()
    if not options.music and (options.clock or not options.text):
        parser.error("give --music, or --text without --clock")
    torch.set_num_threads(1)
    names, found = [n for n in VARIANTS if n in ("default", *(options.only or VARIANTS))], []
    if options.clock:
        found.append(compare_clocks(options.music, options.out, options.seconds, options.seed))
    if options.music and not options.clock:
        music = music_data(options.music, options.out, options.seed, options.tokens)
        found.append(compare(music, names, options.seconds, options.seed))
    if options.text:
        names = [n for n in names if not n.startswith("clock")]
        text = text_data(options.text, options.seed, options.tokens)
        found.append(compare(text, names, options.seconds, options.seed))
    for line in chain.from_iterable(found):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
