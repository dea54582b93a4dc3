"""The model card that is written beside the weights: what this is, and how to use it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multimodal_gpt.console import duration
from multimodal_gpt.files import write_text
from multimodal_gpt.model.gpt import GPTConfig
from multimodal_gpt.training.checkpoint import Loaded
from multimodal_gpt.versions import LIBRARIES, installed

FRAMEWORK = ("torch", "lightning")


def write_card(folder: Path, run: Loaded) -> Path:
    """Write README.md into the folder of a run; gives its path."""
    return write_text(folder / "README.md", model_card(str(folder), run))


def model_card(name: str, run: Loaded) -> str:
    """README.md as a string; `run.info` is what `job.save` puts into `checkpoint.json`."""
    info, names = run.info, run.vocabulary.names
    given = f"--{names[0]} ... " if len(names) > 1 else ""
    counts = ", ".join(f"{count:,} {split}" for split, count in info["documents"].items())
    trained = f"step {info['step']:,} of {run.recipe.train.steps:,}, {info['tokens']:,} tokens"
    return "\n".join(
        [
            f"# {name}",
            "",
            f"A decoder-only transformer over {_joined(names)}, trained with multimodal_gpt.",
            "",
            "| what | how much |",
            "|---|---|",
            f"| parameters | {info['parameters']:,} ({shape(run.net.config)}) |",
            f"| documents | {counts} |",
            f"| training | {trained}, {duration(info['seconds'])} |",
            *_origin(run),
            *(
                f"| `{m.name}` | plugin `{Path(m.plugin).name}`, {run.vocabulary.range(m.name).size:,} ids |"
                for m in run.vocabulary.modalities
            ),
            "",
            *_loss_table(info["losses"], names),
            "## Use",
            "",
            "```",
            f"mmgpt generate {name} {given}--to {names[-1]} -n 4 --seed 1 --out out/",
            f"mmgpt train {name}/recipe.yaml          # goes on from the last step",
            "```",
            "",
            f"{_contents(run)} Weights are safetensors, never pickles.",
            "",
            f"Written with {', '.join(f'{k} {v}' for k, v in versions().items())}.",
            "",
        ]
    )


def shape(config: GPTConfig) -> str:
    """A network in a few words."""
    return f"{config.depth} blocks x {config.width}, {config.heads} heads, context {config.context}"


def _origin(run: Loaded) -> list[str]:
    origin, rank = run.info["origin"], run.recipe.train.lora.rank
    if origin is None:
        return []
    adapters = f", with adapters of rank {rank}" if rank else ""
    return [
        f"| began from | `{origin['run']}`, step {origin['step']:,}, `{origin['sha256'][:16]}`{adapters} |"
    ]


def _contents(run: Loaded) -> str:
    if run.recipe.train.lora.rank:
        return (
            "This folder holds what is to be added to the run that it began from, and needs it to generate."
        )
    return "This folder holds everything that generating needs."


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
