"""A run that has learnt some letters, and recipes that go on from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_corpus import BEATS, LETTERS, write_corpus

from multimodal_gpt.data.prepare import prepare
from multimodal_gpt.errors import UserError
from multimodal_gpt.recipe.schema import Recipe
from multimodal_gpt.stream.vocabulary import Vocabulary
from multimodal_gpt.training.run import train

IDS = torch.tensor([[1, 16, 17, 18, 19, 3, 2, 1, 16, 18, 3, 2]])
LEARNER = f"""
from pathlib import Path
from multimodal_gpt.stream.plugins import load_module
Letters = load_module({LETTERS!r}).Letters

def fit(contents, folder, most=9, known=None):
    letters = sorted(set("".join(contents)))[:most] or list("abcde")
    (folder / "known.letters").write_text("".join(letters))
    return {{"known": "file:known.letters"}}

def build(most=9, known=None):
    return Letters(Path(known).read_text() if known else "abcde")
"""


def write_home(home: Path) -> Path:
    """Two corpora and a run `home` that has learnt the letters of the first: b, c, d and e."""
    (home / "learner.py").write_text(LEARNER)
    write_corpus(home / "old", 30)
    for file in (home / "old").glob("*.letters"):
        file.write_text(file.read_text().replace("a", "b") + "cde")
    write_corpus(home / "new", 30, seed=2)
    words = {"letters": {"plugin": str(home / "learner.py")}}
    train(recipe(home, home / "home", tokenizers=words, init_from=None, data=data(home, "old")))
    return home


def data(home: Path, corpus: str) -> dict[str, Any]:
    return {"folders": [str(home / corpus)], "validation": 0.2, "workers": 1}


def recipe(home: Path, folder: Path, **sections: Any) -> Recipe:
    """The recipe of a run that goes on from `home` with the second corpus and a new modality, beats."""
    model = {"depth": 2, "width": 32, "heads": 2, "context": 64}
    settings = {"steps": 8, "tokens_per_step": 128, "evaluate_every": 4, "evaluate_rows": 2, "log_every": 1}
    words = {"letters": {"plugin": str(home / "learner.py")}, "beats": {"plugin": BEATS}}
    asked = sections.pop("train", {})
    values = {
        "run": str(folder),
        "init_from": str(home / "home"),
        "tokenizers": words,
        "data": {**data(home, "new"), "shards": str(home / "shards")},
        "model": model,
        "train": {**settings, "device": "cpu", "threads": 1, **asked},
    }
    return Recipe.model_validate({**values, **sections})


def adapters(**settings: Any) -> dict[str, Any]:
    return {"lora": {"rank": 2, **settings}, "learning_rate": 1e-2}


def vocabulary(wanted: Recipe) -> Vocabulary:
    return Vocabulary.load(prepare(wanted).folder)


def message(action: Callable[..., object], *arguments: object) -> str:
    """The one line of the UserError that an action ends in."""
    with pytest.raises(UserError) as error:
        action(*arguments)
    line = str(error.value)
    assert "\n" not in line
    return line
