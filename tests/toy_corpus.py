"""A small folder of toy documents, and recipes for it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from multimodal_gpt.recipe.schema import Recipe
from multimodal_gpt.stream.document import Document, Segment
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.vocabulary import Vocabulary

TOYS = Path(__file__).parent / "toys"
LETTERS, BEATS = str(TOYS / "letters.py"), str(TOYS / "beats.py")
MODALITIES = (Modality("letters", LETTERS), Modality("beats", BEATS))


def vocabulary() -> Vocabulary:
    return Vocabulary(MODALITIES)


def write_corpus(folder: Path, documents: int, bars: int = 12, seed: int = 1) -> Path:
    """Documents s000, s001 ...: all have beats of up to `bars` bars, two of three have letters."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(documents):
        rows = ["".join(rng.choice("x...") for _ in range(4)) for _ in range(rng.randrange(bars))]
        (folder / f"s{i:03d}.beats").write_text("\n".join(["x...", *rows]))
        if i % 3:
            (folder / f"s{i:03d}.letters").write_text("".join(rng.choices("abcde", k=rng.randint(1, 9))))
    return folder


def toy_recipe(folder: Path, run: Path, **changes: Any) -> Recipe:
    """A recipe for `folder`; keys of `changes` are sections, or values of `data`."""
    sections = {k: changes.pop(k) for k in list(changes) if k in Recipe.model_fields}
    tokenizers = {"letters": {"plugin": LETTERS}, "beats": {"plugin": BEATS}}
    data = {"folders": [str(folder)], "workers": 1, **changes}
    return Recipe.model_validate({"run": str(run), "tokenizers": tokenizers, "data": data, **sections})


def document(source: str = "d", **segments: Any) -> Document:
    return Document(tuple(Segment(n, c) for n, c in segments.items()), {}, source)
