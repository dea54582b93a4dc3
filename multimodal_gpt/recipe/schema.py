"""Every option of a recipe, once, with its unit and default; checks and YAML schema come from here."""

from __future__ import annotations

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
    """Text written from what is known about a document, one phrasing per template and variant."""

    into: str = Field("text", description="modality that receives the captions")
    templates: list[str] = Field(
        default_factory=list, description="phrases with {fields}; used where every field is known"
    )
    variants: Count = Field(3, description="captions per document, different phrasings of the same facts")


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
    workers: int = Field(0, ge=0, description="processes that prepare documents; 0 = one per core")
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


class ModelRecipe(Section):
    """Shape of the transformer."""

    depth: Count = Field(4, description="blocks")
    width: Count = Field(128, description="size of the residual stream, a multiple of heads")
    heads: Count = Field(4, description="query heads")
    kv_heads: Count | None = Field(
        None, description="key and value heads, a divisor of heads; heads if absent"
    )
    mlp_ratio: float = Field(2.667, gt=0, description="hidden width of the gated MLP / width")
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


class SamplePrompt(Section):
    """One thing to generate while training, to look at and listen to."""

    given: dict[str, str] = Field(default_factory=dict, description="modality -> what it is given")
    to: list[str] = Field(description="modalities to generate, in order")


class TrainRecipe(Section):
    """The training run, in optimizer steps and tokens."""

    steps: Count = Field(1000, description="optimizer steps")
    tokens_per_step: Count = Field(
        4096, description="tokens per optimizer step, rounded to whole rows of context"
    )
    rows_per_batch: Count | None = Field(
        None, description="rows per micro-batch; all rows of a step if absent"
    )
    learning_rate: float = Field(3e-3, gt=0, description="peak learning rate")
    warmup: Fraction = Field(0.05, description="share of the steps with a rising learning rate")
    decay: Fraction = Field(0.6, description="share of the steps, at the end, with a falling learning rate")
    weight_decay: float = Field(0.1, ge=0, description="AdamW weight decay of matrices")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW momenta")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    save_every: Count = Field(500, description="steps between checkpoints")
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
    threads: int = Field(0, ge=0, description="CPU threads of torch; 0 = one per core")
    workers: int = Field(0, ge=0, description="processes that build rows; 0 = in the training process")
    tensorboard: bool = Field(
        False, description="also write TensorBoard logs (needs the tensorboard package)"
    )


class Recipe(Section):
    """One YAML file = one run."""

    run: str = Field("runs/new", description="folder of the run: shards, checkpoint, metrics, samples")
    seed: int = Field(1, ge=0, description="decides everything random")
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
