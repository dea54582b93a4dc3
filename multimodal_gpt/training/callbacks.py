"""What happens between the steps: metrics, checkpoints, samples, and stopping in good order."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from safetensors import SafetensorError

from multimodal_gpt.console import Progress, warn
from multimodal_gpt.errors import UserError
from multimodal_gpt.training.checkpoint import OWN, RESUME, sync
from multimodal_gpt.training.health import Health
from multimodal_gpt.training.keep import BEST, FOLDER, best_loss, keep_last
from multimodal_gpt.training.metrics import MetricsFile, Stopwatch
from multimodal_gpt.training.module import TrainingModule
from multimodal_gpt.training.strategy import from_first, largest, leads, meet, several

Board = Callable[[Mapping[str, float], int], None]
"""Something that draws curves: called with values by name, and the step."""


class Meter(L.Callback):
    """Losses, norms and speed: rows of `metrics.csv` and the note on the progress line.

    Args:
        file: where rows go; None in a process that does not lead.
        log_every: steps between rows of the train split.
        tokens_per_step: places of the rows of one optimizer step.
        bar: the progress line.
        board: gets the same numbers.
    """

    def __init__(
        self,
        file: MetricsFile | None,
        log_every: int,
        tokens_per_step: int,
        bar: Progress,
        board: Board | None = None,
    ) -> None:
        self.file, self.log_every, self.tokens_per_step = file, log_every, tokens_per_step
        self.bar, self.board = bar, board
        self.watch = Stopwatch()
        self.losses: dict[str, dict[str, float]] = {"train": {}, "valid": {}}
        self.speed = 0.0
        self.validated_step = -1
        self._step = self._logged_step = 0
        self._logged_at = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._step = trainer.global_step
        self.watch.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the last micro-batch of a step: a row where one is due, and the progress line."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if self._step % self.log_every == 0:
            self._log(cast(TrainingModule, pl_module))
        self.bar.advance(1, self._note())

    def _log(self, module: TrainingModule) -> None:
        seconds = self.watch.seconds
        tokens = (self._step - self._logged_step) * self.tokens_per_step
        self.speed = tokens / max(seconds - self._logged_at, 1e-9)
        self._logged_step, self._logged_at = self._step, seconds
        self.losses["train"] = module.train_tally.read()
        more = {
            "learning_rate": module.learning_rate(self._step - 1),
            "gradient_norm": float(module.gradient_norm),
            "tokens_per_second": round(self.speed, 1),
        }
        self._write("train", more)

    def _write(self, split: str, more: Mapping[str, float]) -> None:
        losses = {k if k == "loss" else f"loss_{k}": v for k, v in self.losses[split].items()}
        numbers = {**losses, **more}
        place = {"step": self._step, "split": split, "tokens": self._step * self.tokens_per_step}
        if self.file is not None:
            self.file.append({**place, "seconds": round(self.watch.seconds, 2), **numbers})
        if self.board is not None:
            self.board({f"{split}/{key}": value for key, value in numbers.items()}, self._step)

    def _note(self) -> str:
        words = [f"{split} {by['loss']:.3f}" for split, by in self.losses.items() if "loss" in by]
        words += [f"{self.speed:,.0f} tokens/s"] if self.speed else []
        return "  ".join(words)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        self.watch.stop()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A row of the valid split; Lightning's sanity check before step 1 measures the untrained model."""
        self.losses["valid"] = cast(TrainingModule, pl_module).valid_tally.read()
        self._write("valid", {})
        self.validated_step = self._step
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self.watch.start()

    def state_dict(self) -> dict[str, Any]:
        """Numbers that a resumed run goes on from."""
        return {
            "losses": self.losses,
            "logged_step": self._logged_step,
            "logged_at": self._logged_at,
            "seconds": self.watch.seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        self.losses = state_dict["losses"]
        self._logged_step, self._logged_at = state_dict["logged_step"], state_dict["logged_at"]
        self.watch.before = state_dict["seconds"]


ECHO = 1.0
"""Seconds in which a second signal is the first once more: the terminal sends Ctrl-C to every process of a
run, and so does the one that started them."""


class Stopped(Exception):
    """The run was stopped by a signal, after saving."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Stop:
    """Whether the run should end early: Ctrl-C or SIGTERM once (twice kills), or its minutes are over."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, minutes: float | None) -> None:
        self.number, self._heard_at = 0, -math.inf
        self._deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        """Catch the signals from here on, in the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in self.SIGNALS}
            self.install()
        return self

    def install(self) -> None:
        """Catch the signals, again: Lightning puts its own handler of SIGTERM in front when it starts."""
        for number in self._before:
            signal.signal(number, self._heard)

    def __exit__(self, *_: object) -> None:
        """Leave the signals as they were."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if time.monotonic() - self._heard_at < (ECHO if several() else 0.0):
            return
        if self.number:
            raise KeyboardInterrupt
        self.number, self._heard_at = number, time.monotonic()
        warn("stopping after this step, to save; once more to stop at once")

    @property
    def late(self) -> bool:
        """Whether the minutes are over."""
        return time.monotonic() >= self._deadline


class Saver(L.Callback):
    """Writes the run every `every` steps, at the end and when it is to stop: weights, then `resume.ckpt`.

    Comes last in the list of callbacks, since it may end the run.

    Args:
        every: steps.
        keep: how many of the last checkpoints to keep; 0 = not even the best besides the last.
        stop: asked after every step.
        save: writes everything but `resume.ckpt`; called with the step and the folder.
        own: our part of `resume.ckpt`, plain values; see `checkpoint.read_resume`.
        meter: whose clock stands still meanwhile.
        health: asked before saving, so that no broken weights replace good ones; it knows the folder.
    """

    def __init__(
        self,
        every: int,
        keep: int,
        stop: Stop,
        save: Callable[[int, Path], None],
        own: Mapping[str, Any],
        meter: Meter,
        health: Health,
    ) -> None:
        self.folder, self.every, self.keep, self.stop = health.folder, every, keep, stop
        self.save, self.own, self.meter, self.health = save, own, meter, health
        self._step, self._best = -1, math.inf

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals back from Lightning."""
        self._step, self._best = trainer.global_step, from_first(lambda: best_loss(self.folder))
        self.stop.install()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is due, between two optimizer steps."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        number, late = (int(x) for x in largest(self.stop.number, self.stop.late))
        self.stop.number = number
        if number or late or self._step % self.every == 0 or self._step == trainer.max_steps:
            with self.meter.watch.paused():
                self.write(trainer)
        if number:
            raise Stopped(number)
        trainer.should_stop = trainer.should_stop or bool(late)

    def write(self, trainer: L.Trainer) -> None:
        """Save now. Raises UserError where the disk refuses; the last checkpoint is whole then."""
        self.health.check_weights(trainer)
        partial = self.folder / f"{RESUME}.partial"
        try:
            self.save(self._step, self.folder)
            trainer.save_checkpoint(partial, weights_only=False)
            if leads():
                sync(partial)
                partial.replace(self.folder / RESUME)
            meet()  # nobody leaves before it is on the disk
        except (OSError, RuntimeError, SafetensorError) as error:
            for file in self.folder.glob("*.partial"):
                file.unlink(missing_ok=True)
            fix = "the last checkpoint is untouched; make room and train on"
            raise UserError(f"step {self._step} can't be saved: {error}", self.folder, fix) from error
        self.health.saved_step = self._step
        self._keep_last()

    def _keep_last(self) -> None:
        try:
            if leads():
                keep_last(self.folder, self._step, self.keep)
        except (OSError, UserError) as error:
            warn(f"step {self._step} can't be kept besides the last: {error}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the weights where they are the best so far; that a disk is full is only told here."""
        loss = self.meter.losses["valid"].get("loss", math.inf)
        if not self.keep or trainer.sanity_checking or not loss < self._best:
            return
        self._best = loss
        try:
            with self.meter.watch.paused():
                self.save(trainer.global_step, self.folder / FOLDER / BEST)
        except (OSError, RuntimeError, SafetensorError, UserError) as error:
            warn(f"the best checkpoint, step {trainer.global_step}, can't be kept: {error}")

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add our own part."""
        checkpoint[OWN] = {**self.own, "step": self._step}

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count the micro-batches so far as if they had been cut as they are now, on other devices."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        step = checkpoint[OWN]["step"]
        more = step * trainer.accumulate_grad_batches - progress["total"]["processed"]
        for counts in (progress["total"], progress["current"]):
            counts.update({name: count + more for name, count in counts.items()})


class Sampler(L.Callback):
    """Generates every `every` steps with the weights as they are; what goes wrong there is only told.

    `write` is called with the folder `samples/step-000500` of the run, and the step.
    """

    def __init__(
        self, folder: Path, every: int, write: Callable[[Path, int], None], watch: Stopwatch
    ) -> None:
        self.folder, self.every, self.write, self.watch = folder, every, write, watch
        self._step = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Know where the run begins."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Sample where it is due."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if self._step % self.every:
            return
        module = cast(TrainingModule, pl_module)
        with self.watch.paused(), torch.random.fork_rng(), torch.no_grad(), module.eager():
            module.net.eval()
            try:
                self.write(self.folder / "samples" / f"step-{self._step:06d}", self._step)
            except Exception as error:  # a sample is never worth a run
                warn(f"no samples at step {self._step}: {error or type(error).__name__}")
            finally:
                module.net.train()
