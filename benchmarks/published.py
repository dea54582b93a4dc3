"""Data sets whose figures others have published: what a run of ours needs for each held-out note or letter.

    python benchmarks/published.py chorales Jsb16thSeparated.json --out jsb [KEY=VALUE ...]
    python benchmarks/published.py shakespeare input.txt --out shakespeare [KEY=VALUE ...]

"chorales": Bach's on the grid of sixteenths, by examples/chorales, on the splits of the public file. A note
is a pitch, new or held, of one voice at one step, as in the tables of papers: 4 x steps.
"shakespeare": the 1,115,394 letters that nanoGPT and others train on, by text_only; the last tenth is held
out, as there.

Trains on "train" (or goes on where --out stands) and prints one JSON line per held-out split. A piece is
charged whole, with every id that is no pitch or letter (places, the last id, `<end>`), by the weights of the
last step; one longer than the context is read through windows that overlap by half
(multimodal_gpt/evaluation/likelihood.py). `cpu_minutes` are those of training in this call.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

import multimodal_gpt as mm
from multimodal_gpt.evaluation.likelihood import segment_bits
from multimodal_gpt.files import make_folder, write_text
from multimodal_gpt.recipe.load import load_recipe
from multimodal_gpt.recipe.schema import Recipe
from multimodal_gpt.training.run import train

EXAMPLE = Path(__file__).parent.parent / "examples" / "chorales"
TRAIN, VALID = "train", "valid"


def chorales_apart(file: Path) -> dict[str, str]:
    """What the files of each split hold."""
    chorales = json.loads(file.read_text("utf-8"))
    return {name: json.dumps({name: chorales[name]}) for name in (TRAIN, VALID, "test")}


def letters_apart(file: Path) -> dict[str, str]:
    """What the files of each split hold."""
    letters = file.read_text("utf-8")
    there = int(0.9 * len(letters))
    return {TRAIN: letters[:there], VALID: letters[there:]}


@dataclass(frozen=True)
class Published:
    """A data set: how it is split into files, and which recipe learns from them."""

    recipe: str
    modality: str
    unit: str
    suffix: str
    apart: Callable[[Path], Mapping[str, str]]
    plugins: Mapping[str, str] = field(default_factory=dict)


SETS = {
    "chorales": Published(
        str(EXAMPLE / "chorales.yaml"),
        "voices",
        "note",
        ".json",
        chorales_apart,
        {"voices": str(EXAMPLE / "voices.py")},
    ),
    "shakespeare": Published("text_only", "text", "character", ".txt", letters_apart),
}


def split(chosen: Published, file: Path, folder: Path) -> dict[str, Path]:
    """One file for each split; those that are there already stay, for a run that goes on."""
    make_folder(folder)
    paths = {}
    for name, content in chosen.apart(file).items():
        paths[name] = folder / f"{name}{chosen.suffix}"
        if not paths[name].is_file():
            write_text(paths[name], content)
    return paths


def recipe_of(chosen: Published, paths: dict[str, Path], run: Path, changes: list[str]) -> Recipe:
    """The data set's recipe on these files, on one core."""
    data = [f"data.folders=[{paths[TRAIN]}]", f"data.validation_folders=[{paths[VALID]}]"]
    return load_recipe(chosen.recipe, [f"run={run}", "train.threads=1", *data, *changes])


def score(run: mm.Run, chosen: Published, file: Path) -> dict[str, float]:
    """Pieces, units and nats per unit of a file."""
    tokenizer = run.vocabulary.tokenizer(chosen.modality)
    pieces = [run.vocabulary.encode(chosen.modality, item.content) for item in tokenizer.read(file)]
    layout = ((chosen.modality,),)
    whole = ({chosen.modality: piece} for piece in pieces)
    bits = sum(segment_bits(run.net, run.vocabulary, piece, layout, chosen.modality) for piece in whole)
    units = sum(piece.units for piece in pieces)
    return {
        "pieces": len(pieces),
        f"{chosen.unit}s": units,
        f"nats_per_{chosen.unit}": round(bits * math.log(2) / units, 4),
    }


def main() -> None:
    """Train what is not yet trained, and score what is held out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=SETS)
    parser.add_argument("file", type=Path, help="Jsb16thSeparated.json, or tinyshakespeare's input.txt")
    parser.add_argument("--out", type=Path, required=True, help="folder for the splits and the run")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    chosen = SETS[options.set]
    paths = split(chosen, options.file, options.out.resolve() / "splits")
    began = time.process_time()
    done = train(recipe_of(chosen, paths, options.out.resolve() / "run", options.changes))
    minutes = (time.process_time() - began) / 60
    facts = {"parameters": done.parameters, "steps": done.step, "cpu_minutes": round(minutes, 1)}
    run = mm.load(done.folder, plugins=dict(chosen.plugins))
    for name in [name for name in paths if name != TRAIN]:
        print(json.dumps({"split": name, **facts, **score(run, chosen, paths[name])}), flush=True)


if __name__ == "__main__":
    main()
