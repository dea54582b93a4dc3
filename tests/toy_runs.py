"""Untrained runs, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from multimodal_gpt.errors import UserError
from multimodal_gpt.model.gpt import GPT, gpt_config
from multimodal_gpt.recipe.load import modalities
from multimodal_gpt.recipe.schema import Recipe
from multimodal_gpt.stream.vocabulary import Vocabulary
from multimodal_gpt.training.checkpoint import save_run

TOYS = Path(__file__).parent / "toys"
WORDS_A_B = {
    name: {"plugin": str(TOYS / f"{toy}.py")}
    for name, toy in {"words": "letters", "a": "beats", "b": "beats"}.items()
}
"""The tokenizers of a recipe: words, and beats twice."""
BEATS, DRUMS = "x..x .x.. x.x. ..x. x...", "x... ...x xx.. x... .x.."
TUNE = "C4 D4 E4 F4 | G4:2 A4:0.5 B4:0.5 c5 | E4:4"
WILD = {"temperature": 3.0, "top_p": None}
"""Asked so, a network without training makes many different things."""


def untrained(
    tokenizers: dict[str, Any],
    orders: list[list[str]],
    model: dict[str, Any],
    seed: int = 1,
    **arrangement: Any,
) -> tuple[GPT, Vocabulary, Recipe]:
    """A network with random weights, always the same, its vocabulary and its recipe."""
    arrangements = [{"order": order, **arrangement} for order in orders]
    recipe = Recipe.model_validate({"tokenizers": tokenizers, "arrangements": arrangements, "model": model})
    vocabulary = Vocabulary(modalities(recipe))
    torch.manual_seed(seed)
    return GPT(gpt_config(recipe.model, vocabulary.table_size)), vocabulary, recipe


def new_run(
    path: Path, tokenizers: dict[str, Any], orders: list[list[str]], context: int, **more: Any
) -> Path:
    """The folder of a very small one. `more`: its seed, and options of its arrangements."""
    model = {"depth": 1, "width": 16, "heads": 2, "context": context}
    net, vocabulary, recipe = untrained(tokenizers, orders, model, **more)
    return save_run(path, net, vocabulary, recipe, {"step": 0, "tokens": 0})


def refused(call: Callable[..., Any], *args: Any, **options: Any) -> str:
    """The message of the UserError that a call raises."""
    with pytest.raises(UserError) as caught:
        call(*args, **options)
    return str(caught.value)
