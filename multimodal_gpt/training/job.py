"""One run while it lasts: what it is made of, its parts for Lightning, and what is saved of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L

from multimodal_gpt.console import Progress
from multimodal_gpt.errors import UserError
from multimodal_gpt.files import write_text
from multimodal_gpt.model.gpt import GPT
from multimodal_gpt.recipe.schema import Recipe, SamplePrompt
from multimodal_gpt.stream.vocabulary import Vocabulary
from multimodal_gpt.training.callbacks import Board, Health, Meter, Sampler, Saver, Stop
from multimodal_gpt.training.card import Facts, model_card, versions
from multimodal_gpt.training.checkpoint import Loaded, save_run
from multimodal_gpt.training.device import Device
from multimodal_gpt.training.metrics import MetricsFile


@dataclass(frozen=True)
class Batching:
    """How an optimizer step is cut up."""

    rows_per_batch: int
    batches_per_step: int
    context: int

    @property
    def tokens_per_step(self) -> int:
        """Places of all rows of a step, padding included."""
        return self.rows_per_batch * self.batches_per_step * self.context


def batching(recipe: Recipe) -> Batching:
    """Whole rows and whole micro-batches, as near to the recipe's tokens per step as they come."""
    rows = max(1, round(recipe.train.tokens_per_step / recipe.model.context))
    rows_per_batch = min(rows, recipe.train.rows_per_batch or rows)
    return Batching(rows_per_batch, max(1, round(rows / rows_per_batch)), recipe.model.context)


@dataclass(frozen=True)
class Corpus:
    """What a run is trained on: documents by split, tokens of the train split, digest of its files."""

    documents: Mapping[str, int]
    tokens: int
    digest: str


@dataclass(frozen=True, eq=False)
class Job:
    """A run: what is trained on what, where, and the step it starts from."""

    recipe: Recipe
    vocabulary: Vocabulary
    corpus: Corpus
    net: GPT
    device: Device
    start: int

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.recipe.run)

    @property
    def shape(self) -> str:
        """The network in a few words."""
        c = self.net.config
        return f"{c.depth} blocks x {c.width}, {c.heads} heads, context {c.context}"


def header(job: Job) -> list[str]:
    """Six lines that say what is about to happen."""
    train, cut, corpus = job.recipe.train, batching(job.recipe), job.corpus
    total = train.steps * cut.tokens_per_step
    documents = ", ".join(f"{count:,} {split}" for split, count in corpus.documents.items())
    cuts = f", {cut.batches_per_step} micro-batches" if cut.batches_per_step > 1 else ""
    limit = f", at most {train.minutes:g} minutes" if train.minutes else ""
    going_on = f", going on from step {job.start:,}" if job.start else ""
    return [
        f"run     {job.folder}{going_on}",
        f"device  {job.device.name}, {job.device.precision}",
        f"model   {job.net.parameter_count:,} parameters: {job.shape}",
        f"data    {documents} documents, {corpus.tokens:,} tokens of {', '.join(job.vocabulary.names)}",
        f"step    {cut.tokens_per_step:,} tokens = "
        f"{cut.rows_per_batch * cut.batches_per_step} rows of {cut.context}{cuts}",
        f"steps   {train.steps:,} = {total:,} tokens, {total / max(1, corpus.tokens):.1f} x the data{limit}",
    ]


def make_trainer(job: Job, callbacks: list[L.Callback]) -> L.Trainer:
    """Lightning's Trainer with everything of its own switched off that we do ourselves."""
    train, cut = job.recipe.train, batching(job.recipe)
    rows = train.evaluate_rows if job.corpus.documents.get("valid") else 0
    batches = math.ceil(rows / cut.rows_per_batch)
    return L.Trainer(
        accelerator=job.device.accelerator,
        devices=1,
        precision=job.device.precision,
        max_steps=train.steps,
        max_epochs=-1,
        accumulate_grad_batches=cut.batches_per_step,
        limit_val_batches=batches,
        num_sanity_val_steps=batches,  # a full validation before step 1: the untrained model's loss
        val_check_interval=train.evaluate_every * cut.batches_per_step,  # counts micro-batches
        check_val_every_n_epoch=None,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=job.folder,
    )


def make_meter(job: Job, bar: Progress) -> Meter:
    """The callback that measures, its file cut back to the step the run starts from."""
    file = MetricsFile(job.folder, job.vocabulary.names)
    file.begin(job.start or None)
    board = _tensorboard(job) if job.recipe.train.tensorboard else None
    return Meter(file, job.recipe.train.log_every, batching(job.recipe).tokens_per_step, bar, board)


def make_watchers(job: Job, meter: Meter, stop: Stop) -> list[L.Callback]:
    """The callbacks that check, sample and save, in this order."""
    train, recipe = job.recipe.train, job.recipe
    health = Health(job.folder, train.log_every, job.start or None)
    own = {"fingerprint": job.vocabulary.fingerprint, "shards": job.corpus.digest, "recipe": recipe.plain()}
    saver = Saver(job.folder, train.save_every, stop, lambda step: save(job, meter, step), own, meter, health)
    if not train.sample_every:
        return [health, saver]
    sampler = Sampler(job.folder, train.sample_every, lambda *at: write_samples(job, *at), meter.watch)
    return [health, sampler, saver]


def save(job: Job, meter: Meter, step: int) -> None:
    """Write the folder as it stands at `step`: everything but `resume.ckpt`."""
    tokens = step * batching(job.recipe).tokens_per_step
    seconds = round(meter.watch.seconds, 2)
    info = {
        "step": step,
        "tokens": tokens,
        "seconds": seconds,
        "parameters": job.net.parameter_count,
        "losses": meter.losses,
        "versions": versions(),
    }
    save_run(job.folder, job.net, job.vocabulary, job.recipe, info)
    modalities = [
        (m.name, Path(m.plugin).name, job.vocabulary.range(m.name).size) for m in job.vocabulary.modalities
    ]
    facts = Facts(
        run=str(job.folder),
        modalities=modalities,
        documents=job.corpus.documents,
        shape=job.shape,
        parameters=job.net.parameter_count,
        step=step,
        steps=job.recipe.train.steps,
        tokens=tokens,
        seconds=seconds,
        losses=meter.losses,
    )
    write_text(job.folder / "README.md", model_card(facts))


def write_samples(job: Job, folder: Path, step: int) -> None:
    """Generate what `train.samples` asks for with the weights as they are at `step`, into `folder`."""
    from multimodal_gpt.generation.session import Run

    info = {"step": step, "fingerprint": job.vocabulary.fingerprint}
    run = Run(Loaded(job.net, job.vocabulary, job.recipe, info))
    prompts = job.recipe.train.samples or [SamplePrompt(to=list(job.vocabulary.names))]
    folder.mkdir(parents=True, exist_ok=True)
    for number, prompt in enumerate(prompts, start=1):
        given: dict[str, Any] = dict(prompt.given)
        (piece,) = run.generate(to=prompt.to, seed=job.recipe.seed, **given)
        piece.write(folder / f"{number:02d}", force=True)  # a resumed run comes by here again


def _tensorboard(job: Job) -> Board:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        fix = 'pip install "multimodal-gpt[tensorboard]", or train.tensorboard=false'
        raise UserError("the package tensorboard is missing", "train.tensorboard", fix) from None
    writer = SummaryWriter(str(job.folder / "tensorboard"), purge_step=job.start + 1 if job.start else None)

    def draw(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return draw
