"""What a run will cost, told by its recipe: parameters, tokens, and the shape that a depth gives."""

from __future__ import annotations

import pytest

from multimodal_gpt.recipe.estimate import estimate, survey
from multimodal_gpt.recipe.load import load_recipe
from multimodal_gpt.recipe.schema import ModelRecipe


def test_a_tokenizer_that_learns_is_counted_at_its_largest() -> None:
    facts, problems = survey(load_recipe("text_only", ["tokenizers.text.vocabulary=300", "data.folders=[/]"]))
    assert not problems
    assert facts is not None
    assert (facts.sizes, facts.learnt) == ({"text": 300}, ("text",))


@pytest.mark.parametrize("kv_heads", [None, 2])
def test_parameters_are_counted_as_the_model_counts_them(kv_heads: int | None) -> None:
    from multimodal_gpt.model.gpt import GPT, gpt_config

    overrides = [
        "model.kv_heads=" + ("null" if kv_heads is None else str(kv_heads)),
        "model.width=96",
        "model.heads=4",
    ]
    recipe = load_recipe("text_only", overrides)
    facts = estimate(recipe, {"a": 100, "b": 7})
    assert facts.parameters == GPT(gpt_config(recipe.model, facts.table)).parameter_count


def test_steps_hold_whole_rows() -> None:
    changes = ["model.context=300", "train.tokens_per_step=1000", "train.steps=2000"]
    facts = estimate(load_recipe("text_only", changes), {"a": 9})
    assert (facts.tokens_per_step, facts.tokens) == (900, 900 * 2000)


@pytest.mark.parametrize(
    ("given", "shape"),
    [
        ({}, (4, 160, 5)),
        ({"depth": 6}, (6, 352, 11)),
        ({"depth": 8}, (8, 512, 8)),
        ({"depth": 12}, (12, 768, 12)),
        ({"depth": 6, "width": 192}, (6, 192, 6)),
        ({"width": 192}, (4, 192, 6)),
        ({"depth": 8, "heads": 4}, (8, 512, 4)),
    ],
)
def test_width_and_heads_go_with_depth(given, shape):
    model = ModelRecipe(**given)
    assert (model.depth, model.width, model.heads) == shape
    assert (model.width % (2 * model.heads)) == 0
    assert ModelRecipe(**model.model_dump()) == model


@pytest.mark.parametrize("depth", range(1, 49))
def test_any_depth_gives_a_shape(depth):
    model = ModelRecipe(depth=depth)
    assert model.width % (2 * model.heads) == 0
    assert 32 <= model.width // model.heads <= 64
    assert model.width >= ModelRecipe(depth=max(1, depth - 1)).width
