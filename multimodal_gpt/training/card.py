"""The model card that is written beside the weights: what this is, and how to use it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multimodal_gpt.console import duration
from multimodal_gpt.versions import LIBRARIES, installed

FRAMEWORK = ("torch", "lightning")


@dataclass(frozen=True)
class Facts:
    """What a card tells. `losses`: split -> modality (and `loss` for all) -> nats per token."""

    run: str
    modalities: Sequence[tuple[str, str, int]]
    documents: Mapping[str, int]
    shape: str
    parameters: int
    step: int
    steps: int
    tokens: int
    seconds: float
    losses: Mapping[str, Mapping[str, float]]


def model_card(facts: Facts) -> str:
    """README.md as a string."""
    names = [name for name, _, _ in facts.modalities]
    first, last = names[0], names[-1]
    given = f"--{first} ... " if len(names) > 1 else ""
    seconds = duration(facts.seconds)
    counts = ", ".join(f"{count:,} {split}" for split, count in facts.documents.items())
    return "\n".join(
        [
            f"# {facts.run}",
            "",
            f"A decoder-only transformer over {_joined(names)}, trained with multimodal_gpt.",
            "",
            "| what | how much |",
            "|---|---|",
            f"| parameters | {facts.parameters:,} ({facts.shape}) |",
            f"| documents | {counts} |",
            f"| training | step {facts.step:,} of {facts.steps:,}, {facts.tokens:,} tokens, {seconds} |",
            *(f"| `{name}` | plugin `{plugin}`, {size:,} ids |" for name, plugin, size in facts.modalities),
            "",
            *_loss_table(facts.losses, names),
            "## Use",
            "",
            "```",
            f"mmgpt generate {facts.run} {given}--to {last} -n 4 --seed 1 --out out/",
            f"mmgpt train {facts.run}/recipe.yaml          # goes on from the last step",
            "```",
            "",
            "This folder holds everything that generating needs. Weights are safetensors, never pickles.",
            "",
            f"Written with {', '.join(f'{k} {v}' for k, v in versions().items())}.",
            "",
        ]
    )


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _loss_table(losses: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> list[str]:
    """Last losses in nats per token, a row per split; nothing where none was measured."""
    splits = [split for split in losses if losses[split]]
    if not splits:
        return []
    columns = ("loss", *names)
    rows = [[f"{losses[s][c]:.3f}" if c in losses[s] else "-" for c in columns] for s in splits]
    head = [
        "Last loss, nats per token:",
        "",
        f"| split | all | {' | '.join(names)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    return [*head, *(f"| {split} | {' | '.join(row)} |" for split, row in zip(splits, rows, strict=True)), ""]


def versions() -> dict[str, Any]:
    """Python and the libraries that a run depends on, with their versions."""
    return {
        "python": platform.python_version(),
        **installed((*LIBRARIES, *FRAMEWORK)),
    }
