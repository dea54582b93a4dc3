"""The story of a training run: from a recipe to a folder that can be asked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L

from multimodal_gpt.console import progress, say
from multimodal_gpt.errors import UserError
from multimodal_gpt.recipe.load import arrangements, modalities
from multimodal_gpt.recipe.schema import Recipe
from multimodal_gpt.stream.vocabulary import Vocabulary
from multimodal_gpt.training.callbacks import Stop, Stopped
from multimodal_gpt.training.checkpoint import OWN, RECIPE, RESUME, read_info
from multimodal_gpt.training.device import choose_device, keep_freed_memory, quiet_lightning, set_threads
from multimodal_gpt.training.initial import begin
from multimodal_gpt.training.job import (
    Batching,
    Corpus,
    Job,
    batching,
    header,
    make_meter,
    make_trainer,
    make_watchers,
    save,
)
from multimodal_gpt.training.launch import launch
from multimodal_gpt.training.metrics import losses_of, read_metrics
from multimodal_gpt.training.module import TrainingModule
from multimodal_gpt.training.resume import OTHER_RUN, clear, resume_state
from multimodal_gpt.training.strategy import ALONE, Team, assemble, from_first, hollow, member

State = Mapping[str, Any]
SHARDS_CHANGED = "the shards are not those that the run was trained on"
WEIGHTS_CHANGED = "the run in init_from does not hold the weights that this one began from"


@dataclass(frozen=True)
class RunResult:
    """A trained run. Losses are nats per token: `loss` over everything, and by modality.

    `ended`: "steps" (all done), "minutes" (time was over) or "before" (nothing was left to do).
    """

    folder: Path
    ended: str
    step: int
    tokens: int
    seconds: float
    parameters: int
    untrained: Mapping[str, float]
    train: Mapping[str, float]
    valid: Mapping[str, float]

    @property
    def tokens_per_second(self) -> float:
        """Speed of training alone: validating, saving and sampling left out."""
        return self.tokens / max(self.seconds, 1e-9)


def train(recipe: Recipe, *, restart: bool = False) -> RunResult:
    """Train the model of a recipe, or go on where its run folder stands; with `restart`, begin anew.

    Ctrl-C (SIGTERM) saves, says how to go on and raises SystemExit(130) (143). Raises UserError where
    the recipe, the data or what is in the run folder does not allow it.
    """
    team = assemble(recipe.train)
    cut = batching(recipe, team.size)
    if not team.started:
        launch(recipe, team.size, restart=restart)
        step = read_info(Path(recipe.run))["step"]
        return _result(Path(recipe.run), "steps" if step >= recipe.train.steps else "minutes")
    with member(team, choose_device(recipe.train.device, recipe.train.precision).accelerator):
        return _train(recipe, team, cut, restart)


def _train(recipe: Recipe, team: Team, cut: Batching, restart: bool) -> RunResult:
    # 1) The run: a new one, or one that goes on with the same recipe.
    state = None if restart else resume_state(Path(recipe.run), recipe)

    # 2) Shards: prepared where they are missing, or were made from something else.
    from multimodal_gpt.data.prepare import prepare

    shards = from_first(lambda: prepare(recipe).folder)
    trusted = {m.name: m.plugin for m in modalities(recipe) if m.is_file}
    vocabulary, corpus = Vocabulary.load(shards, trusted), survey(shards)

    # 3) Rows: whole documents packed, the same for the same seed on any number of workers.
    from multimodal_gpt.data.datamodule import RowsData

    rows = RowsData(shards, vocabulary, arrangements(recipe, vocabulary), recipe, cut)

    # 4) to 6) Model, Trainer, folder.
    return fit(recipe, vocabulary, rows, corpus, state, team)


def survey(shards: Path) -> Corpus:
    """Counts and digest from the manifest of prepared shards."""
    from multimodal_gpt.data.shards import read_manifest

    splits = read_manifest(shards)["splits"]
    documents = {name: split["documents"] for name, split in splits.items()}
    tokens = sum(entry["tokens"] for entry in splits["train"]["modalities"].values())
    hashes = "".join(entry["sha256"] for split in splits.values() for entry in split["files"])
    return Corpus(documents, tokens, hashlib.sha256(hashes.encode()).hexdigest())


def fit(
    recipe: Recipe,
    vocabulary: Vocabulary,
    rows: L.LightningDataModule,
    corpus: Corpus,
    state: State | None = None,
    team: Team = ALONE,
) -> RunResult:
    """Steps 4 to 6 of `train`, on any rows; `state` is what `resume_state` gave.

    Every process of a team calls it, as `member` of that team.
    """
    # 4) The model: fresh weights, or those of the run that this one begins from.
    set_threads(recipe.train.threads, team.local)
    device = choose_device(recipe.train.device, recipe.train.precision)
    if device.accelerator == "cpu":
        keep_freed_memory()
    beginning, start = begin(recipe, vocabulary), state[OWN]["step"] if state else 0
    net = beginning.net
    shape = hollow(net) if team.sharded else None
    job = Job(recipe, vocabulary, corpus, net, device, start, beginning.origin, team, shape)
    if not from_first(lambda: _begin(job, state, beginning.learning)):
        return _result(job.folder, "before")

    # 5) Lightning runs the steps; our callbacks do what happens between them.
    owners = [(r.name, r.first, r.stop) for r in vocabulary.ranges.values()]
    module = TrainingModule(net, owners, recipe.train, recipe.seed)
    label = f"train from step {job.start}" if job.start else "train"
    with (
        quiet_lightning(),
        Stop(recipe.train.minutes) as stop,
        progress(recipe.train.steps - job.start, label) as bar,
    ):
        meter = make_meter(job, bar)
        trainer = make_trainer(job, [meter, *make_watchers(job, meter, stop)])
        try:
            trainer.fit(
                module, datamodule=rows, ckpt_path=job.folder / RESUME if state else None, weights_only=True
            )
            if job.corpus.documents.get("valid") and meter.validated_step != trainer.global_step:
                trainer.validate(module, datamodule=rows, verbose=False)
        except (Stopped, SystemExit):  # SystemExit is what Lightning makes of a second Ctrl-C
            if not stop.number:
                raise
    if stop.number:
        _say_goodbye(job, stop.number)

    # 6) The folder, with what the last validation said.
    save(job, meter, trainer.global_step, job.folder)
    ended = "steps" if trainer.global_step >= recipe.train.steps else "minutes"
    return from_first(lambda: _result(job.folder, ended))


def _begin(job: Job, state: State | None, learning: int) -> bool:
    """Check what a resumed run stands on, or clear the folder for a new one; False where all is done."""
    changed = [k for k, v in job.inputs.items() if state is not None and state[OWN].get(k) != v]
    if changed:
        what = WEIGHTS_CHANGED if changed == ["origin"] else SHARDS_CHANGED
        raise UserError(what, job.folder, OTHER_RUN)
    if job.start >= job.recipe.train.steps:
        say(f"{job.folder} has all its {job.start} steps; for more: train.steps={2 * job.start}")
        return False
    if state is None:
        clear(job.folder)
    job.folder.mkdir(parents=True, exist_ok=True)
    for line in [*header(job), *_origin(job, learning)]:
        say(line)
    return True


def _origin(job: Job, learning: int) -> list[str]:
    """A line about what the run begins from and how much of it learns; none where it is new and all does."""
    total = job.net.parameter_count
    if job.origin is None and learning == total:
        return []
    place = f"{job.origin.run}, step {job.origin.step:,}" if job.origin else "fresh weights"
    return [f"from    {place}; {learning:,} of {total:,} parameters learn"]


def _say_goodbye(job: Job, number: int) -> None:
    try:
        step = read_info(job.folder)["step"]
        say(f"stopped at step {step}; continue with: mmgpt train {job.folder / RECIPE}")
    except UserError:
        say("stopped; nothing was saved")
    raise SystemExit(128 + number)


def _result(folder: Path, ended: str) -> RunResult:
    """What there is to say of a run, from its folder."""
    info, rows = read_info(folder), read_metrics(folder)
    by_split = {s: [losses_of(r) for r in rows if r["split"] == s] for s in ("train", "valid")}
    first = [losses_of(r) for r in rows if r["split"] == "valid" and r["step"] == "0"]
    return RunResult(
        folder=folder,
        ended=ended,
        step=info["step"],
        tokens=info["tokens"],
        seconds=info["seconds"],
        parameters=info["parameters"],
        untrained=first[0] if first else {},
        train=by_split["train"][-1] if by_split["train"] else {},
        valid=by_split["valid"][-1] if by_split["valid"] else {},
    )
