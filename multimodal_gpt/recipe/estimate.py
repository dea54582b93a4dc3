"""What a recipe will cost, found without torch: tokenizers are built, weights counted by formula."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from multimodal_gpt.errors import UserError, nearest
from multimodal_gpt.recipe.load import modalities
from multimodal_gpt.recipe.schema import ModelRecipe, Recipe
from multimodal_gpt.stream import plugins
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.vocabulary import SPECIALS, TABLE_MULTIPLE
from multimodal_gpt.versions import check_format

BYTES_PER_WEIGHT = 16
"""float32 weight, gradient and two moments of AdamW."""


LONGEST_KEPT = 2048
"""Tokens of the longest document whose shares of attention are kept; `model.blockwise.LONGEST`."""


@dataclass(frozen=True)
class Estimate:
    """Facts about a run before it starts; sizes of `learnt` modalities are known only after `prepare`."""

    sizes: Mapping[str, int]
    learnt: tuple[str, ...]
    table: int
    parameters: int
    tokens_per_step: int
    tokens: int
    memory: int

    def rows(self) -> list[tuple[str, str]]:
        """What to print: (what, how much)."""
        about = {name: "about " if name in self.learnt else "" for name in self.sizes}
        ids = ", ".join(f"{name} {about[name]}{size}" for name, size in self.sizes.items())
        return [
            ("ids", ids),
            ("embedding table", f"{self.table} rows"),
            ("parameters", f"{self.parameters / 1e6:.2f} M"),
            ("tokens per step", f"{self.tokens_per_step:,}"),
            ("tokens in all", f"{self.tokens / 1e6:.1f} M"),
            ("memory in training", f"about {self.memory / 2**20:,.0f} MiB"),
        ]


def estimate(recipe: Recipe, sizes: Mapping[str, int], learnt: tuple[str, ...] = ()) -> Estimate:
    """Weights, tokens and memory of a run over modalities of these sizes."""
    model, train = recipe.model, recipe.train
    ids = len(SPECIALS) + sum(1 + size for size in sizes.values())
    table = -(-ids // TABLE_MULTIPLE) * TABLE_MULTIPLE
    rows = max(1, round(train.tokens_per_step / model.context))
    parameters = parameter_count(model, table)
    floats = _floats_per_token(model, table) + (train.device != "gpu") * _shares_per_token(model)
    activations = (train.rows_per_batch or rows) * model.context * floats * 4
    return Estimate(
        sizes=dict(sizes),
        learnt=learnt,
        table=table,
        parameters=parameters,
        tokens_per_step=rows * model.context,
        tokens=rows * model.context * train.steps,
        memory=parameters * BYTES_PER_WEIGHT + activations,
    )


def parameter_count(model: ModelRecipe, table: int) -> int:
    """Weights of the transformer; the embedding table counts once, as it is also the output layer."""
    width, head_width = model.width, model.width // model.heads
    attention = 2 * width * width + 2 * width * model.key_value_heads * head_width
    norms = 2 * width + 2 * head_width
    return table * width + model.depth * (attention + 2 * width * model.mlp_hidden + norms) + width


def _floats_per_token(model: ModelRecipe, table: int) -> int:
    """What the backward pass keeps: about 14 D + 2 H per block; logits, softmax and their gradient."""
    return model.depth * (14 * model.width + 2 * model.mlp_hidden) + 3 * table


def _shares_per_token(model: ModelRecipe) -> int:
    """What attention keeps on a CPU, at most: half of a row per head, and no document fills more."""
    return model.depth * model.heads * min(model.context, LONGEST_KEPT) // 2


def survey(recipe: Recipe) -> tuple[Estimate | None, list[UserError]]:
    """Build every tokenizer, look at every path: the estimate unless a tokenizer fails, and all mistakes."""
    problems = [p for m in modalities(recipe) for p in option_problems(m)]
    sizes: dict[str, int] = {}
    learnt: list[str] = []
    for modality in modalities(recipe):
        try:
            sizes[modality.name], learns = _size(modality)
            learnt += [modality.name] if learns else []
        except UserError as error:
            known = any(p.where == f"tokenizers.{modality.name}" for p in problems)
            problems += [] if known else [error]
    problems += path_problems(recipe)
    complete = len(sizes) == len(recipe.tokenizers)
    return (estimate(recipe, sizes, tuple(learnt)) if complete else None), problems


def option_problems(modality: Modality) -> list[UserError]:
    """Options that the plugin's `build` does not take, with the nearest that it does."""
    module = plugins.load_module(modality.plugin)
    parameters = inspect.signature(getattr(module, "build", lambda: None)).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return []
    where, wrong = f"tokenizers.{modality.name}", [key for key in modality.options if key not in parameters]
    return [UserError(f"unknown option '{key}'", where, nearest(key, parameters)) for key in wrong]


def _size(modality: Modality) -> tuple[int, bool]:
    """Ids of a tokenizer; and whether that is a guess, because it will learn from the corpus."""
    module = plugins.load_module(modality.plugin)
    if not hasattr(module, "fit"):
        return plugins.build(modality).size, False
    with TemporaryDirectory() as folder:  # learning from nothing is quick, and finds options that are wrong
        fitted = plugins.fit(modality, [], Path(folder))
        size = plugins.build(fitted, Path(folder)).size
    if fitted.options.items() <= modality.options.items():
        return size, False
    return max(size, _largest(modality, module)), True


def _largest(modality: Modality, module: ModuleType) -> int:
    """How much it may learn: its option `vocabulary`, where it has one."""
    default = inspect.signature(module.fit).parameters.get("vocabulary")
    return int(modality.options.get("vocabulary", getattr(default, "default", 0)))


def path_problems(recipe: Recipe) -> list[UserError]:
    """Folders and files of the recipe that are not there."""
    places = {"data.folders": recipe.data.folders, "data.validation_folders": recipe.data.validation_folders}
    missing = [(where, path) for where, paths in places.items() for path in paths if not Path(path).exists()]
    problems = [UserError(f"'{path}' does not exist", where) for where, path in missing]
    if recipe.init_from is not None:
        problems += _origin_problems(Path(recipe.init_from), recipe.model)
    if not recipe.data.folders and not recipe.data.corpora:
        problems.append(UserError("names no folder and no corpus", "data", "add data.folders=[my_folder]"))
    return problems


def _origin_problems(run: Path, model: ModelRecipe) -> Iterator[UserError]:
    try:
        info = json.loads((run / "checkpoint.json").read_bytes())
        check_format(info["format"], run / "checkpoint.json")
    except UserError as error:
        yield error.within("init_from")
    except (OSError, ValueError, KeyError, TypeError):
        yield UserError(f"there is no trained run '{run}'", "init_from", "train it first")
    else:
        yield from shape_problems(info.get("config", {}), model, run)


def shape_problems(before: Mapping[str, Any], model: ModelRecipe, run: Path) -> Iterator[UserError]:
    """What keeps the weights of a run, whose shape was `before`, from being those of a model."""
    now = {name: getattr(model, name) for name in ("depth", "width", "heads", "rotary_base", "clock")}
    now |= {"kv_heads": model.key_value_heads, "mlp_hidden": model.mlp_hidden}
    changes = [f"{n}: {before.get(n)} -> {value}" for n, value in now.items() if before.get(n) != value]
    if changes:
        what = f"its model has another shape: {'; '.join(changes)}"
        yield UserError(what, run, "leave `model` to the run")
