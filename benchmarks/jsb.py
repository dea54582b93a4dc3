"""Bach's chorales on the grid of sixteenths: nats per note of a run of examples/chorales, valid and test.

    python benchmarks/jsb.py Jsb16thSeparated.json --out jsb [KEY=VALUE ...]

Takes the splits of the public file, trains on train (or goes on where --out stands) and prints one JSON line
per split. A note is a pitch, new or held, of one voice at one step, as in the tables of papers: 4 x steps. A
chorale is charged whole, with every id that is no pitch: places, the last id and `<end>`; one longer than
the context is read through windows that overlap by half (multimodal_gpt/evaluation/likelihood.py).
`cpu_minutes` are those of training in this call.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch

import multimodal_gpt as mm
from multimodal_gpt.evaluation.likelihood import segment_bits
from multimodal_gpt.files import make_folder, write_text
from multimodal_gpt.recipe.load import load_recipe
from multimodal_gpt.recipe.schema import Recipe
from multimodal_gpt.training.run import train

CHORALES = Path(__file__).parent.parent / "examples" / "chorales"
SPLITS = ("train", "valid", "test")


def split(file: Path, folder: Path) -> dict[str, Path]:
    """One file for each split; those that are there already stay, for a run that goes on."""
    make_folder(folder)
    paths = {name: folder / f"{name}.json" for name in SPLITS}
    chorales = json.loads(file.read_text("utf-8"))
    for name, path in paths.items():
        if not path.is_file():
            write_text(path, json.dumps({name: chorales[name]}))
    return paths


def recipe_of(paths: dict[str, Path], run: Path, changes: list[str]) -> Recipe:
    """The recipe of the example on these files."""
    data = [f"data.folders=[{paths['train']}]", f"data.validation_folders=[{paths['valid']}]"]
    return load_recipe(str(CHORALES / "chorales.yaml"), [f"run={run}", *data, *changes])


def score(run: mm.Run, file: Path) -> dict[str, float]:
    """Chorales, notes and nats per note of a file."""
    tokenizer = run.vocabulary.tokenizer("voices")
    pieces = [run.vocabulary.encode("voices", item.content) for item in tokenizer.read(file)]
    bits = sum(segment_bits(run.net, run.vocabulary, {"voices": p}, (("voices",),), "voices") for p in pieces)
    notes = sum(piece.units for piece in pieces)
    return {"chorales": len(pieces), "notes": notes, "nats_per_note": round(bits * math.log(2) / notes, 4)}


def main() -> None:
    """Train what is not yet trained, and score both held-out splits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="Jsb16thSeparated.json")
    parser.add_argument("--out", type=Path, required=True, help="folder for the splits and the run")
    parser.add_argument("--splits", nargs="+", default=["valid", "test"], choices=SPLITS)
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    paths = split(options.file, options.out.resolve() / "splits")
    began = time.process_time()
    done = train(recipe_of(paths, options.out.resolve() / "run", options.changes))
    minutes = (time.process_time() - began) / 60
    facts = {"parameters": done.parameters, "steps": done.step, "cpu_minutes": round(minutes, 1)}
    run = mm.load(done.folder, plugins={"voices": str(CHORALES / "voices.py")})
    for name in options.splits:
        print(json.dumps({"split": name, **facts, **score(run, paths[name])}), flush=True)


if __name__ == "__main__":
    main()
