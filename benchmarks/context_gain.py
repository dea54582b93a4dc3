"""What one modality tells about another: context gain of a trained run on its held-out documents, both ways.

    mmgpt train recipes/own_folder.yaml run=runs/nottingham data.folders=[train]
    data.validation_folders=[valid] python benchmarks/context_gain.py runs/nottingham melody chords

Prints one JSON line per direction: bits per unit alone and known, the gain, two nulls and true minus null,
each with its 95 % bootstrap interval over documents. Definitions: multimodal_gpt/evaluation/context_gain.py.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import multimodal_gpt as mm
from multimodal_gpt import console
from multimodal_gpt.data.shards import open_shards
from multimodal_gpt.evaluation.context_gain import Piece, measure
from multimodal_gpt.generation.layout import choices


def held_out(run: mm.Run, shards: Path, names: set[str]) -> list[Piece]:
    """Held-out documents that hold all of these modalities."""
    split = open_shards(shards, "valid")
    found = (split.document(index) for index in range(len(split)))
    pieces = [Piece({s.modality: s for s in d.segments}, d.metadata) for d in found]
    return [p for p in pieces if names <= set(p.segments)]


def main() -> None:
    """Measure both directions of one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("names", nargs=2, metavar="MODALITY")
    parser.add_argument("--shards", type=Path, help="folder of the shards; RUN/shards if absent")
    parser.add_argument("--pieces", type=int, help="use only the first so many documents")
    options = parser.parse_args()
    run = mm.load(options.run)
    pieces = held_out(run, options.shards or options.run / "shards", set(options.names))[: options.pieces]
    for target, context in (options.names, options.names[::-1]):
        choice = choices(run.arrangements, [context], (target,))[0]
        with console.progress(len(pieces), f"{target} given {context}") as bar:
            gain = measure(
                run.net,
                run.vocabulary,
                pieces,
                [*choice.before, choice.part],
                target,
                context,
                advance=bar.advance,
            )
        facts = {"run": str(options.run), "parameters": run.net.parameter_count, "layout": str(choice)}
        print(
            json.dumps({**facts, "unit": run.vocabulary.tokenizer(target).unit, **asdict(gain)}), flush=True
        )


if __name__ == "__main__":
    main()
