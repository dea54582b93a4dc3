"""Every option of a recipe, once, with its unit and default; checks and YAML schema come from here."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values are converted by their declared type."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ModalityRecipe(BaseModel):
    """One tokenizer. Every key but `plugin` is an option of that plugin."""

    model_config = ConfigDict(extra="allow", frozen=True)
    plugin: str | None = Field(
        None, description="installed plugin, or ./file.py; the modality's own name if absent"
    )


class Captions(Section):
    """Words made from what is known about a document, in other phrases each time."""

    into: str = Field("text", description="modality that receives the captions")
    templates: list[str] = Field(
        default_factory=list,
        description="phrases with {fields} and [optional parts]; used where all fields not in [] are known",
    )
    variants: Count = Field(3, description="different captions per document, at most")
    drop: Fraction = Field(0.3, description="probability that an optional part of a phrase is left out")


class DataRecipe(Section):
    """Where documents come from and how they are split and prepared."""

    folders: list[str] = Field(default_factory=list, description="folders or files, searched recursively")
    corpora: list[str] = Field(
        default_factory=list, description="named corpora of the `corpus` extra: oneills, ryans ..."
    )
    validation_folders: list[str] = Field(
        default_factory=list, description="held-out documents of their own, if any"
    )
    validation: Fraction = Field(
        0.05, description="share of documents held out, by hash, where no folder is given"
    )
    limit: Count | None = Field(
        None, description="use at most this many documents of each split (seeded choice)"
    )
    shards: str | None = Field(None, description="folder of the prepared shards; RUN/shards if absent")
    captions: Captions = Field(default_factory=Captions)
    shifts: list[int] = Field(
        default_factory=lambda: [0],
        description="copies of every training document, each moved so many steps (music: semitones)",
    )
    shifted: Fraction | None = Field(
        None,
        description="of the times that a document is seen, the share in which it is a moved copy; if absent,"
        " every copy is seen as often as the document as it is",
    )
    workers: int = Field(0, ge=0, description="processes that prepare documents; 0 = one per core")
    engine: Literal["local", "ray"] = Field(
        "local", description="where these run: this machine, or a Ray cluster (extra `ray`)"
    )
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="source (name of a folder or corpus) -> how often its documents come in an epoch",
    )
    seconds_per_file: float = Field(
        30.0, gt=0, description="a file that takes longer is skipped and reported"
    )


class ArrangementRecipe(Section):
    """One way to lay out a document; see stream/arrangement.py."""

    order: list[str] = Field(description="modalities in order; 'a+b' = interleaved chunk by chunk")
    weight: float = Field(1.0, ge=0, description="share of documents, relative to the other arrangements")
    drop: Fraction = Field(0.0, description="probability that a segment is left out")
    shuffle: bool = Field(False, description="take the parts in random order")
    hole: Fraction = Field(0.0, description="probability of a gap that is filled at the end")


MLP_MULTIPLE = 16


def width_of(depth: int) -> int:
    """The width that goes with a depth: 3 96, 4 160 (1.3 M weights), 8 512 (25 M), 12 768 (85 M, as GPT-2).

    64 for each block, as in GPT-2, from 7 blocks on; less below.
    """
    return max(1, round(depth * min(64, 10 * depth) / 32)) * 32


def heads_of(width: int) -> int:
    """The query heads that go with a width: of 32 numbers each, of 64 from width 512 on."""
    return max(1, width // (64 if width >= 512 else 32))


class ModelRecipe(Section):
    """Shape of the transformer: `depth` alone is enough, width and heads go with it."""

    depth: Count = Field(4, description="blocks")
    width: Count = Field(
        default_factory=lambda known: width_of(known.get("depth", 4)),
        description="size of the residual stream, a multiple of heads; goes with depth if absent",
    )
    heads: Count = Field(
        default_factory=lambda known: heads_of(known.get("width", 160)),
        description="query heads; go with width if absent",
    )
    kv_heads: Count | None = Field(
        None, description="key and value heads, a divisor of heads; heads if absent"
    )
    mlp_ratio: float = Field(4.0, gt=0, description="hidden width of the MLP / width")
    context: Annotated[int, Field(ge=16)] = Field(512, description="tokens the model sees at once")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="dropout on block outputs while training"
    )
    rotary_base: float = Field(
        10_000.0, gt=0, description="slowest wavelength of the rotary embedding, tokens / 2 pi"
    )
    clock: Fraction = Field(
        0.5, description="share of the rotary angles that turn with musical time instead of place"
    )

    @property
    def mlp_hidden(self) -> int:
        """Hidden width of the MLP."""
        return math.ceil(self.width * self.mlp_ratio / MLP_MULTIPLE) * MLP_MULTIPLE

    @property
    def key_value_heads(self) -> int:
        """Key and value heads, given or not."""
        return self.kv_heads or self.heads


class SamplePrompt(Section):
    """One thing to generate while training, to look at and listen to."""

    given: dict[str, str] = Field(default_factory=dict, description="modality -> what it is given")
    to: list[str] = Field(description="modalities to generate, in order")


class LoraRecipe(Section):
    """Low-rank adapters: small products beside frozen matrices, saved without these."""

    rank: int = Field(0, ge=0, description="rank of the products; 0 = train the weights themselves")
    alpha: float = Field(16.0, gt=0, description="products count alpha / rank")
    targets: list[str] = Field(
        default_factory=lambda: ["*"], description="which linear layers, by parts of their names: [q_proj]"
    )


class TrainRecipe(Section):
    """The training run, in optimizer steps and tokens."""

    steps: Count = Field(1000, description="optimizer steps")
    tokens_per_step: Count = Field(
        4096, description="tokens per optimizer step, rounded to whole rows of context"
    )
    rows_per_batch: Count | None = Field(
        None, description="rows per micro-batch; all rows of a step if absent"
    )
    # Muon passes AdamW's last loss in 0.56 to 0.66 of its time: figures in model/optimizer.py.
    optimizer: Literal["muon", "adamw"] = Field(
        "muon", description="muon: Muon for the matrices of the blocks, AdamW for the rest; adamw: for all"
    )
    learning_rate: float = Field(
        8e-3, gt=0, description="peak learning rate; half of it for adamw, and for widths of several hundred"
    )
    schedule: Literal["wsd", "cosine"] = Field(
        "wsd", description="wsd: rise, plateau, straight fall; cosine: rise, half a cosine"
    )
    warmup: Fraction = Field(0.05, description="share of the steps with a rising learning rate")
    decay: Fraction = Field(
        0.6, description="share of the steps, at the end, with a falling learning rate; cosine has none"
    )
    weight_decay: float = Field(0.1, ge=0, description="weight decay of matrices")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW momenta")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    emphasis: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="modality -> how much its places count in the loss, 1 if absent"
    )
    average: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="validate, save and sample a running average of the weights that keeps so much of itself"
        " at every step, such as 0.99; 0 = the weights as they are",
    )
    freeze: list[str] = Field(
        default_factory=list, description="weights that stay as they are, by parts of their names: [blocks.0]"
    )
    lora: LoraRecipe = Field(default_factory=LoraRecipe)
    save_every: Count = Field(500, description="steps between checkpoints")
    keep: int = Field(
        1, ge=0, description="last checkpoints to keep, and the best in RUN/checkpoints; 0 = the last alone"
    )
    evaluate_every: Count = Field(250, description="steps between validations")
    evaluate_rows: Count = Field(64, description="rows of the validation split per validation")
    log_every: Count = Field(10, description="steps between rows of metrics.csv and progress updates")
    sample_every: int = Field(0, ge=0, description="steps between samples; 0 = none")
    samples: list[SamplePrompt] = Field(default_factory=list, description="what to generate then")
    minutes: float | None = Field(
        None, gt=0, description="stop (and save) after so many minutes, whatever the step"
    )
    precision: Literal["auto", "32", "bf16"] = Field(
        "auto", description="auto: bf16 where the device is fast at it"
    )
    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="where to train")
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        "auto",
        description="each process holds all weights (ddp) or a share (fsdp); auto: ddp for several",
    )
    devices: int = Field(
        0, ge=0, description="processes per node, one a GPU; 0 = one, or all GPUs where a strategy is named"
    )
    nodes: int = Field(0, ge=0, description="machines, each started by torchrun or srun; 0 = as they say")
    compile: bool | Literal["auto"] = Field(
        "auto", description="compile the training step; auto: on CUDA, where a compiler is found"
    )
    threads: int = Field(0, ge=0, description="CPU threads of torch; 0 = one per core")
    workers: int = Field(0, ge=0, description="processes that build rows; 0 = in the training process")
    tensorboard: bool = Field(
        False, description="also write TensorBoard logs (needs the tensorboard package)"
    )


class Recipe(Section):
    """One YAML file = one run."""

    run: str = Field("runs/new", description="folder of the run: shards, checkpoint, metrics, samples")
    seed: int = Field(1, ge=0, description="decides everything random")
    init_from: str | None = Field(
        None,
        description="trained run to begin from; tokenizers, captions, arrangements, model: its own if absent",
    )
    tokenizers: dict[str, ModalityRecipe] = Field(
        description="modalities in id order: name -> plugin options"
    )
    data: DataRecipe = Field(default_factory=DataRecipe)
    arrangements: list[ArrangementRecipe] = Field(
        default_factory=list,
        description="how documents are laid out; if absent, modalities with times take turns by the bar",
    )
    model: ModelRecipe = Field(default_factory=ModelRecipe)
    train: TrainRecipe = Field(default_factory=TrainRecipe)

    def plain(self) -> dict[str, Any]:
        """The recipe as plain values, every default filled in: what is saved with a run."""
        return self.model_dump(mode="json")
