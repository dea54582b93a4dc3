"""How full rows are: one document per row, best fit alone, and as they are trained on, on real lengths.

    python benchmarks/packing.py runs/nottingham/shards recipes/own_folder.yaml --contexts 512 1024 2048
    python benchmarks/packing.py

The second line uses a synthetic corpus whose tunes have the lengths of folk tunes. Prints a JSON line per
context, means over the first epochs: documents seen, how many are longer than the context, and by method

    utilisation        share of all positions that hold a token
    net                the same without headers and specials that a cut repeats
    rows               an epoch
    cut, cut_to_fill   share of documents in windows, and of those that would fit
    windows            pieces of documents that are cut; least, median: tokens of these
    seconds            CPU seconds to plan an epoch
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from multimodal_gpt.data.layouts import Stock, draw, open_stock
from multimodal_gpt.data.packing import Plan, epoch_plan
from multimodal_gpt.data.shards import Shards, StoredDocument, open_shards, write_manifest, write_shards
from multimodal_gpt.recipe.load import load_recipe
from multimodal_gpt.stream.arrangement import Arrangement, parse_order
from multimodal_gpt.stream.vocabulary import Encoded

EPOCHS = 3


@dataclass(frozen=True)
class Fill:
    """What the rows of an epoch are like; see the top of the file."""

    method: str
    utilisation: float
    net: float
    rows: float
    cut: float
    cut_to_fill: float
    windows: float
    least: float
    median: float
    seconds: float


def padded(stock: Stock, epoch: int) -> Plan:
    """One piece per row, cut where it must be."""
    plan = epoch_plan(stock, 1, epoch, fill=False)
    return Plan(plan.layouts, plan.windows, plan.lengths, plan.order, np.arange(len(plan.order) + 1))


def best_fit(stock: Stock, epoch: int) -> Plan:
    """Cut where it must be, then best fit."""
    return epoch_plan(stock, 1, epoch, fill=False)


def filled(stock: Stock, epoch: int) -> Plan:
    """What the trainer gets."""
    return epoch_plan(stock, 1, epoch)


def measure(stock: Stock, method: Callable[[Stock, int], Plan]) -> Fill:
    """Means over epochs."""
    found = []
    for epoch in range(EPOCHS):
        start = time.process_time()
        plan = method(stock, epoch)
        seconds = time.process_time() - start
        fits = plan.layouts.lengths <= stock.context
        windows = plan.lengths[plan.order[plan.order >= len(plan.layouts)]]
        cut, filling = plan.cut.mean(), (plan.cut & fits).mean()
        net = plan.utilisation - plan.repeated
        sizes = (windows.min(), np.median(windows)) if len(windows) else (np.nan, np.nan)
        found.append((plan.utilisation, net, len(plan), cut, filling, len(windows), *sizes, seconds))
    return Fill(method.__name__, *np.mean(found, axis=0).round(4).tolist())


def synthetic(folder: Path, documents: int) -> Shards:
    """Tunes of 16 to 96 bars, most of them 32, of 4 to 24 tokens each, with harmony of 3 to 9 tokens a bar
    and a title of 8 to 40 tokens.
    """
    rng = np.random.default_rng(1)

    def line(name: str, bars: int, low: int, high: int) -> Encoded:
        sizes = rng.integers(low, high, size=bars)
        edges = np.cumsum(sizes)
        clock = np.repeat(np.arange(bars) * 4.0, sizes).astype(np.float32)
        return Encoded(name, np.zeros(edges[-1], np.int32), clock, np.append(0, edges[:-1]), bars)

    def tune(number: int) -> StoredDocument:
        bars = int(rng.choice([16, 24, 32, 48, 64, 96], p=[0.2, 0.1, 0.4, 0.15, 0.1, 0.05]))
        title = Encoded("text", np.zeros(rng.integers(8, 41), np.int32), None, np.empty(0, np.int64), 1)
        segments = (title, line("chords", bars, 3, 10), line("melody", bars, 4, 25))
        return StoredDocument(segments, {}, f"made/{number}", f"made/{number}")

    files = write_shards(folder, "train", map(tune, range(documents)))
    write_manifest(
        folder, {"modalities": ["text", "chords", "melody"], "splits": {"train": {"files": files}}}
    )
    return open_shards(folder, "train")


def arrangements_of(recipe: str, names: Sequence[str]) -> list[Arrangement]:
    """The arrangements of a recipe, without reading the files of its tokenizers."""
    known = (*names, *load_recipe(recipe, ["data.folders=[.]"]).tokenizers)
    return [
        Arrangement(parse_order(a.order, known), a.weight, a.drop, a.shuffle, a.hole)
        for a in load_recipe(recipe, ["data.folders=[.]"]).arrangements
    ]


def main() -> None:
    """Compare the methods at every context."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="a run or its shards; synthetic if absent")
    parser.add_argument("recipe", nargs="?", default="own_folder", help="with arrangements")
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--documents", type=int, default=2000, help="of the synthetic corpus")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.folder is None:
            shards = synthetic(Path(folder), options.documents)
        else:
            inner = options.folder / "shards"
            shards = open_shards(inner if inner.is_dir() else options.folder, "train")
        arrangements = arrangements_of(options.recipe, shards.names)
        for context in options.contexts:
            stock = open_stock(shards, arrangements, context)
            lengths = draw(stock, 1, 0).lengths
            facts = {
                "context": context,
                "documents": len(lengths),
                "longer": float((lengths > context).mean()),
            }
            for method in (padded, best_fit, filled):
                print(json.dumps({**facts, **asdict(measure(stock, method))}), flush=True)


if __name__ == "__main__":
    main()
