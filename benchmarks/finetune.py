"""What a few tunes buy: a model trained on them alone, or begun from a trained run, at equal steps.

    python benchmarks/finetune.py BASE_RUN FOLDER HELD_OUT_FOLDER --out bought tokenizers.chords.infer=true

For every number of tunes three runs on the same tunes: from fresh weights, from all weights of the base, and
with adapters beside them. Prints one JSON line each, the base itself first: bits per note and per chord of
held-out documents, everything charged (multimodal_gpt/evaluation/likelihood.py). KEY=VALUE at the end changes
the recipe of all runs; a modality that is new to the base may be among them. Runs that are there already are
not trained again.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

import multimodal_gpt as mm
from multimodal_gpt.data.prepare import prepare
from multimodal_gpt.data.shards import open_shards
from multimodal_gpt.evaluation.likelihood import segment_bits
from multimodal_gpt.recipe.load import load_recipe
from multimodal_gpt.recipe.schema import Recipe
from multimodal_gpt.stream.vocabulary import Encoded
from multimodal_gpt.training.run import train

Piece = dict[str, Encoded]
TARGETS = (("melody",), ("chords", "melody"), ("melody", "chords"))
"""(what is given, what is charged): turns by the bar."""
ADAPTERS = ("train.lora.rank=8", "train.lora.alpha=16")


def begun(options: argparse.Namespace, run: Path, files: Path, *changes: str) -> Recipe:
    """The recipe of a run that begins from the base, on the files of a folder."""
    data = [f"data.folders=[{files}]", "data.validation=0", "data.workers=1"]
    size = [f"train.steps={options.steps}", f"train.tokens_per_step={options.tokens_per_step}"]
    place = [
        f"run={run}",
        f"init_from={options.base}",
        "train.threads=1",
        f"train.save_every={options.steps}",
    ]
    return load_recipe("finetune", [*place, *data, *size, *options.changes, *changes])


def contenders(options: argparse.Namespace) -> Iterator[tuple[str, int, Recipe]]:
    """Name, tunes and recipe of every run."""
    scratch = f"train.learning_rate={load_recipe(options.base).train.learning_rate}"
    full = f"train.learning_rate={options.full_rate}"
    adapters = (*ADAPTERS, f"train.learning_rate={options.lora_rate}")
    for tunes in options.tunes:
        files = choose(options.folder, tunes, options.out / f"tunes-{tunes}")
        shards = f"data.shards={options.out}/shards-{tunes}"
        for name, changes in (
            ("scratch", (scratch,)),
            ("full", (full, shards)),
            ("lora", (*adapters, shards)),
        ):
            recipe = begun(options, options.out / f"{name}-{tunes}", files, *changes)
            yield name, tunes, recipe.model_copy(update={"init_from": None} if name == "scratch" else {})


def choose(folder: Path, tunes: int, out: Path) -> Path:
    """Copies of so many tunes of a folder, with all files that share their names, always the same."""
    names = sorted({file.stem for file in folder.iterdir()})
    chosen = set(random.Random(1).sample(names, tunes))
    out.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.stem in chosen:
            shutil.copyfile(file, out / file.name)
    return out


def held_out(options: argparse.Namespace) -> list[Piece]:
    """Held-out documents that hold everything that is asked for."""
    recipe = begun(options, options.out / "held_out", options.held_out)
    shards = open_shards(prepare(recipe).folder, "train")
    pieces = [{s.modality: s for s in shards.document(i).segments} for i in range(len(shards))]
    wanted = {name for names in TARGETS for name in names} & set(recipe.tokenizers)
    return [piece for piece in pieces if wanted <= set(piece)][: options.pieces]


def measure(run: Path, pieces: list[Piece]) -> dict[str, float]:
    """Bits per unit of every target, over all pieces."""
    opened = mm.load(run)
    found = {}
    for *given, target in TARGETS:
        names = (*given, target)
        if not set(names) <= set(opened.vocabulary.names):
            continue
        known = [{n: piece[n] for n in names} for piece in pieces]
        bits = sum(segment_bits(opened.net, opened.vocabulary, k, (names,), target) for k in known)
        units = sum(piece[target].units for piece in pieces)
        found[" | ".join((target, *given))] = round(bits / units, 3)
    return found


def main() -> None:
    """Train what is not there yet, and measure it all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--tunes", type=int, nargs="+", default=[30, 100, 300])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--tokens-per-step", type=int, default=3072)
    parser.add_argument("--pieces", type=int, default=40, help="how many held-out documents")
    parser.add_argument("--full-rate", default="1e-3")
    parser.add_argument("--lora-rate", default="3e-3")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    pieces = held_out(options)
    print(json.dumps({"run": "base", "tunes": 0, "pieces": len(pieces), **measure(options.base, pieces)}))
    for name, tunes, recipe in contenders(options):
        folder = Path(recipe.run)
        result = train(recipe)
        size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
        facts = {"run": name, "tunes": tunes, "steps": result.step, "seconds": round(result.seconds)}
        print(json.dumps({**facts, "weights_kB": round(size / 1e3), **measure(folder, pieces)}), flush=True)


if __name__ == "__main__":
    main()
