"""One run while it lasts: what it is made of, its parts for Lightning, and what is saved of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L

from multimodal_gpt.console import Progress
from multimodal_gpt.errors import UserError
from multimodal_gpt.model.gpt import GPT
from multimodal_gpt.recipe.schema import Recipe, SamplePrompt
from multimodal_gpt.stream.vocabulary import Vocabulary
from multimodal_gpt.training.average import Average
from multimodal_gpt.training.callbacks import Board, Meter, Sampler, Saver, Stop
from multimodal_gpt.training.card import shape, versions, write_card
from multimodal_gpt.training.checkpoint import Loaded, Origin, save_run
from multimodal_gpt.training.device import Device
from multimodal_gpt.training.health import Health
from multimodal_gpt.training.metrics import MetricsFile
from multimodal_gpt.training.profiler import NoProfiler
from multimodal_gpt.training.strategy import ALONE, Team, gathered, leads, trainer_options
from multimodal_gpt.versions import CHECKPOINT_FORMAT


@dataclass(frozen=True)
class Batching:
    """How an optimizer step is cut up."""

    rows_per_batch: int
    batches_per_step: int
    context: int
    devices: int = 1

    @property
    def rows_per_step(self) -> int:
        """Rows of a step on all devices."""
        return self.rows_per_batch * self.batches_per_step * self.devices

    @property
    def tokens_per_step(self) -> int:
        """Places of all rows of a step, padding included."""
        return self.rows_per_step * self.context


def batching(recipe: Recipe, devices: int = 1) -> Batching:
    """Whole rows and whole micro-batches, as near to the recipe's tokens per step as they come.

    A step has the same rows on any number of devices. Raises UserError where they can't share them evenly.
    """
    context = recipe.model.context
    rows = max(1, round(recipe.train.tokens_per_step / context))
    batch = min(rows, recipe.train.rows_per_batch or rows)
    share, left = divmod(batch * max(1, round(rows / batch)), devices)
    if left or not share:
        what = f"{share * devices + left} rows of {context} can't be shared evenly by {devices} processes"
        fix = f"try {max(1, share) * devices * context}"
        raise UserError(what, "train.tokens_per_step", fix)
    batch = max(size for size in range(1, min(batch, share) + 1) if share % size == 0)
    return Batching(batch, share // batch, context, devices)


@dataclass(frozen=True)
class Corpus:
    """What a run is trained on: documents by split, tokens of the train split, digest of its files."""

    documents: Mapping[str, int]
    tokens: int
    digest: str


@dataclass(frozen=True, eq=False)
class Job:
    """A run: what is trained on what, where and by whom, and the step it starts from.

    `hollow`: the network without its weights, where these are spread over the team; see `strategy.gathered`.
    """

    recipe: Recipe
    vocabulary: Vocabulary
    corpus: Corpus
    net: GPT
    device: Device
    start: int
    origin: Origin | None = None
    team: Team = ALONE
    hollow: GPT | None = None

    @property
    def cut(self) -> Batching:
        """How a step is cut up among the team."""
        return batching(self.recipe, self.team.size)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.recipe.run)

    @property
    def inputs(self) -> dict[str, str | None]:
        """What a run that goes on must find as it was: vocabulary, shards, the weights that it began from."""
        origin = self.origin.sha256 if self.origin else None
        return {"fingerprint": self.vocabulary.fingerprint, "shards": self.corpus.digest, "origin": origin}


def header(job: Job) -> list[str]:
    """Six lines that say what is about to happen."""
    train, cut, corpus = job.recipe.train, job.cut, job.corpus
    total = train.steps * cut.tokens_per_step
    documents = ", ".join(f"{count:,} {split}" for split, count in corpus.documents.items())
    cuts = f", {cut.batches_per_step} micro-batches" if cut.batches_per_step > 1 else ""
    team = f", {job.team}" if job.team.size > 1 else ""
    limit = f", at most {train.minutes:g} minutes" if train.minutes else ""
    going_on = f", going on from step {job.start:,}" if job.start else ""
    return [
        f"run     {job.folder}{going_on}",
        f"device  {job.device.name}, {job.device.precision}{team}",
        f"model   {job.net.parameter_count:,} parameters: {shape(job.net.config)}",
        f"data    {documents} documents, {corpus.tokens:,} tokens of {', '.join(job.vocabulary.names)}",
        f"step    {cut.tokens_per_step:,} tokens = {cut.rows_per_step} rows of {cut.context}{cuts}",
        f"steps   {train.steps:,} = {total:,} tokens, {total / max(1, corpus.tokens):.1f} x the data{limit}",
    ]


def make_trainer(job: Job, callbacks: list[L.Callback]) -> L.Trainer:
    """Lightning's Trainer with everything of its own switched off that we do ourselves."""
    train, cut = job.recipe.train, job.cut
    rows = train.evaluate_rows if job.corpus.documents.get("valid") else 0
    batches = math.ceil(rows / cut.rows_per_batch)
    return L.Trainer(
        accelerator=job.device.accelerator,
        **trainer_options(job.team),
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
        profiler=NoProfiler(),
        default_root_dir=job.folder,
    )


def make_meter(job: Job, bar: Progress) -> Meter:
    """The callback that measures, its file cut back to the step the run starts from."""
    train, file, board = job.recipe.train, None, None
    if leads():
        file = MetricsFile(job.folder, job.vocabulary.names)
        file.begin(job.start or None)
        board = _tensorboard(job) if train.tensorboard else None
    return Meter(file, train.log_every, job.cut.tokens_per_step, bar, board)


def make_watchers(job: Job, meter: Meter, stop: Stop) -> list[L.Callback]:
    """The callbacks that check, sample and save, in this order."""
    train, recipe = job.recipe.train, job.recipe
    health = Health(job.folder, train.log_every, job.start or None)
    own = {**job.inputs, "format": CHECKPOINT_FORMAT, "recipe": recipe.plain()}
    average = Average(job.net, train.average)
    write = average.applied()(partial(save, job, meter))
    saver = Saver(train.save_every, train.keep, stop, write, own, meter, health)
    sample = average.applied()(lambda *at: write_samples(job, *at))
    sampler = Sampler(job.folder, train.sample_every, sample, meter.watch)
    averages = [average] if train.average else []  # each callback costs a step about 20 us
    return [health, *averages, *([sampler] if train.sample_every else []), saver]


def save(job: Job, meter: Meter, step: int, folder: Path) -> None:
    """Write what the run is at `step` into `folder`: everything but `resume.ckpt`. All processes call it."""
    net = gathered(job.net, job.hollow)
    if net is None or not leads():
        return
    info = {
        "origin": asdict(job.origin) if job.origin else None,
        "step": step,
        "tokens": step * job.cut.tokens_per_step,
        "seconds": round(meter.watch.seconds, 2),
        "documents": dict(job.corpus.documents),
        "parameters": job.net.parameter_count,
        "losses": meter.losses,
        "versions": versions(),
    }
    save_run(folder, net, job.vocabulary, job.recipe, info)
    write_card(folder, Loaded(net, job.vocabulary, job.recipe, info))


def write_samples(job: Job, folder: Path, step: int) -> None:
    """Generate what `train.samples` asks for with the weights as they are at `step`, into `folder`.

    All processes call it.
    """
    from multimodal_gpt.generation.session import Run

    net = gathered(job.net, job.hollow)
    if net is None or not leads():
        return
    info = {"step": step, "fingerprint": job.vocabulary.fingerprint}
    run = Run(Loaded(net, job.vocabulary, job.recipe, info))
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
