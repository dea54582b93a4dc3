"""What a run begins from: fresh weights, or those of another run, grown, adapted and partly frozen.

V rows of the table, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor

from multimodal_gpt.errors import UserError
from multimodal_gpt.model import lora
from multimodal_gpt.model.gpt import GPT, gpt_config
from multimodal_gpt.recipe.estimate import shape_problems
from multimodal_gpt.recipe.schema import LoraRecipe, ModelRecipe, Recipe
from multimodal_gpt.stream.vocabulary import FILE_NAME, SPECIALS, Vocabulary, compare, read_manifest
from multimodal_gpt.training.checkpoint import TABLE, Origin, read_info, read_weights


@dataclass(frozen=True, eq=False)
class Beginning:
    """The network that a run trains, the run that it begins from, if any, and how many weights learn."""

    net: GPT
    origin: Origin | None
    learning: int


def begin(recipe: Recipe, vocabulary: Vocabulary) -> Beginning:
    """What a recipe trains, the same for the same seed.

    Raises UserError where the run that it begins from is missing or does not fit, or where nothing is left to
    train.
    """
    torch.manual_seed(recipe.seed)
    net, train = GPT(gpt_config(recipe.model, vocabulary.table_size)), recipe.train
    origin = None
    if recipe.init_from is not None:
        origin = _take_over(net, recipe.model, Path(recipe.init_from), vocabulary)
    if train.lora.rank:
        adapt(net, train.lora)
    names = [name for name, _ in net.named_parameters()]
    for name in matching(train.freeze, names, "train.freeze"):
        net.get_parameter(name).requires_grad_(False)
    learning = sum(p.numel() for p in net.parameters() if p.requires_grad)
    if origin is not None and vocabulary.size > origin.ids and not net.embedding.weight.requires_grad:
        learning += _train_new_rows(net.embedding.weight, origin.ids)
    if not learning:
        raise UserError("nothing is left to train", "train.freeze", "freeze less")
    return Beginning(net, origin, learning)


# The weights of another run


def _take_over(net: GPT, model: ModelRecipe, run: Path, vocabulary: Vocabulary) -> Origin:
    info = read_info(run)
    before = read_manifest(run / FILE_NAME)
    differences = compare(before, vocabulary.manifest())
    if differences:
        fix = "leave `tokenizers` to the run, new ones aside"
        raise UserError(f"means other things by its ids: {'; '.join(differences)}", run, fix)
    for problem in shape_problems(info["config"], model, run):
        raise problem
    ids = len(SPECIALS) + sum(1 + entry["size"] for entry in before["content"]["modalities"])
    weights = read_weights(run, info)
    with torch.no_grad():
        weights[TABLE] = _grown(weights[TABLE], ids, vocabulary.size, len(net.embedding.weight))
        net.load_state_dict(weights)
    return Origin(str(run), info["sha256"], info["step"], ids)


def _grown(table: Tensor, before: int, now: int, rows: int) -> Tensor:
    """(V, D) -> (rows, D): rows of the first `before` ids as they are, those of the ids up to `now` anew.

    Near the mean of the old rows, new ones learn faster than as in a new table, though they begin worse:
    nats per token of a new modality after 0, 10 and 25 steps 12.54, 7.24, 2.88 against 8.91, 6.47, 3.34
    (1 M parameters, 100 documents, one seed). Rows that have no id stay as they are: training has pushed them
    away from every answer.
    """
    fresh = table[:before].mean(0) + 0.02 * torch.randn(rows - before, table.shape[1])
    return torch.cat(
        (table[:before], fresh[: now - before], table[now:], fresh[max(now, len(table)) - before :])
    )


# What learns


def adapt(net: GPT, settings: LoraRecipe) -> None:
    """Put the adapters of a recipe on a network; everything else is frozen. Raises UserError."""
    layers = matching(settings.targets, lora.linear_layers(net), "train.lora.targets")
    lora.adapt(net, layers, settings.rank, settings.alpha / settings.rank)


def _train_new_rows(table: Tensor, first: int) -> int:
    """Let rows of a frozen table learn, from `first` on: nobody has trained them. Gives how many weights."""
    table.requires_grad_(True)
    # Without a gradient, momentum or decay (the table has none) the other rows stay, bit for bit.
    table.register_hook(
        lambda gradient: gradient.index_fill(0, torch.arange(first, device=gradient.device), 0.0)
    )
    return table[first:].numel()


def matching(patterns: Sequence[str], names: Iterable[str], where: str) -> list[str]:
    """Names of which some parts in a row fit a pattern: `blocks.1` fits `blocks.1.mlp_norm.weight`.

    A part may hold the wildcards * ? and [...]. Raises UserError where a pattern fits no name.

    Example:
        >>> matching(["q_proj", "blocks.[01]"], ["blocks.0.mlp", "blocks.2.q_proj", "norm"], "train.freeze")
        ['blocks.0.mlp', 'blocks.2.q_proj']
    """
    names = list(names)
    for pattern in patterns:
        if not any(_fits(pattern, name) for name in names):
            parts = dict.fromkeys(part for name in names for part in name.split(".") if not part.isdigit())
            raise UserError(f"'{pattern}' fits no weights", where, "parts of names: " + ", ".join(parts))
    return [name for name in names if any(_fits(pattern, name) for pattern in patterns)]


def _fits(pattern: str, name: str) -> bool:
    wanted, parts = pattern.split("."), name.split(".")
    starts = range(len(parts) - len(wanted) + 1)
    return any(all(map(fnmatchcase, parts[start:], wanted)) for start in starts)
