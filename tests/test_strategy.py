"""Several processes: the same run as one, whoever goes on with it, and it ends in good order."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_corpus import toy_recipe, write_corpus

from multimodal_gpt.errors import UserError
from multimodal_gpt.recipe.load import load_recipe, save_recipe
from multimodal_gpt.recipe.schema import Recipe, TrainRecipe
from multimodal_gpt.training import launch as launching
from multimodal_gpt.training import run
from multimodal_gpt.training.checkpoint import load_weights
from multimodal_gpt.training.job import batching
from multimodal_gpt.training.metrics import read_metrics
from multimodal_gpt.training.module import TrainingModule
from multimodal_gpt.training.strategy import Team, assemble

LIMIT = 120
"""Seconds that processes may take before a test gives up on them."""


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("songs"), 24)


@pytest.fixture
def make(songs: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe of 4 rows a step in 2 micro-batches, in its own folder; keywords are options of `train`."""

    def recipe(name: str, **train: Any) -> Recipe:
        model = {"depth": 2, "width": 32, "heads": 2, "context": 32, "dropout": 0.1}
        defaults = {"steps": 6, "tokens_per_step": 128, "rows_per_batch": 2, "evaluate_every": 3}
        more = {"evaluate_rows": 4, "log_every": 1, "device": "cpu", "threads": 1}
        sections = {"model": model, "train": {**defaults, **more, **train}}
        return toy_recipe(songs, tmp_path / name, validation=0.2, **sections)

    return recipe


# Processes: as torchrun would start them, but forked from one that has imported everything


def play(recipe: Recipe, rank: int, stop_at: int | None = None) -> None:
    """Train; `stop_at`: the step at which the last process, and it alone, hears SIGTERM."""
    last = rank == int(os.environ["WORLD_SIZE"]) - 1

    class Bar:
        step = 0

        def advance(self, n: int, note: str = "") -> None:
            self.step += n
            if last and self.step == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

    @contextmanager
    def progress(total: int, label: str):
        yield Bar()

    run.progress = progress
    run.train(recipe)


def fail_in_rows(recipe: Recipe, rank: int) -> None:
    """Train; the losses of the second process, and those alone, are no numbers from the third step on."""
    step = TrainingModule.training_step

    def broken(self, batch, batch_idx):
        return step(self, batch, batch_idx) * (float("nan") if rank == 1 and batch_idx == 2 else 1)

    TrainingModule.training_step = broken
    run.train(recipe)


def together(folder: Path, work: Callable[..., None], *args: Any, processes: int = 2) -> list[int]:
    """Exit codes; what process N prints is in folder/out-N."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["multimodal_gpt.training.run"])
    port = launching._free_port()
    started = [
        context.Process(target=_one, args=(folder, launching._told(i, processes, port), work, i, args))
        for i in range(processes)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(LIMIT)
        process.kill()
    return [process.exitcode for process in started]


def _one(folder: Path, told: dict[str, str], work: Callable[..., None], rank: int, args: Any) -> None:
    os.environ.update(told)
    with (folder / f"out-{rank}").open("w") as out:
        sys.stdout = sys.stderr = out
        try:
            work(args[0], rank, *args[1:])
        except UserError as error:
            print(error)
            raise SystemExit(2) from None
        except Exception:
            traceback.print_exc()
            raise SystemExit(1) from None


def curve(folder: Path | str) -> list[dict[str, str]]:
    timing = ("seconds", "tokens_per_second")
    return [{k: v for k, v in row.items() if k not in timing} for row in read_metrics(Path(folder))]


def assert_same_run(one: Path | str, two: Path | str, missing: int = 0) -> None:
    """Equal losses at every step, equal norms, equal weights; `missing` rows may lack in the second."""
    rows = {(r["step"], r["split"]): r for r in curve(two)}
    expected = curve(one)
    assert len(rows) == len(expected) - missing
    for row in expected:
        found = rows.get((row["step"], row["split"]), row)
        for key in ("loss", "loss_letters", "loss_beats", "gradient_norm", "learning_rate"):
            assert (found[key] == "") == (row[key] == "")
            assert not row[key] or float(found[key]) == pytest.approx(float(row[key]), rel=1e-4), (row, key)
        assert found["tokens"] == row["tokens"]
    a, b = (load_file(Path(folder) / "model.safetensors") for folder in (one, two))
    assert set(a) == set(b)
    for name, weight in a.items():
        assert torch.allclose(weight, b[name], atol=2e-4), name


# The same run


def test_two_processes_are_one_that_accumulates(make, tmp_path: Path) -> None:
    run.train(make("one"))
    assert together(tmp_path, play, make("two")) == [0, 0]
    assert_same_run(make("one").run, make("two").run)
    said = (tmp_path / "out-0").read_text()
    assert re.search(r"device  CPU, 1 threads, \S+, 2 processes, DDP\n", said)
    assert "step    128 tokens = 4 rows of 32\n" in said
    assert (tmp_path / "out-1").read_text() == "", "the first alone speaks"


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_share_of_the_weights_each_is_the_same_run(make, tmp_path: Path, optimizer: str) -> None:
    options = {"optimizer": optimizer, "average": 0.5, "sample_every": 3}
    run.train(make("one", **options))
    assert together(tmp_path, play, make("two", strategy="fsdp", **options)) == [0, 0]
    assert_same_run(make("one").run, make("two").run)
    assert "2 processes, FSDP" in (tmp_path / "out-0").read_text()
    samples = [sorted(p.name for p in Path(make(n).run).glob("samples/*/*")) for n in ("one", "two")]
    assert samples[0] == samples[1] != []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("ddp", None),
        pytest.param(None, "fsdp", marks=pytest.mark.slow),
        pytest.param("fsdp", "ddp", marks=pytest.mark.slow),
        pytest.param("fsdp", None, marks=pytest.mark.slow),
    ],
)
def test_others_may_go_on(make, tmp_path: Path, before: str | None, after: str | None) -> None:
    run.train(make("straight"))
    size = {None: 1, "ddp": 2, "fsdp": 2}
    halves = {kind: make("halves", strategy=kind or "auto") for kind in (before, after)}
    assert together(tmp_path, play, halves[before], 3, processes=size[before]) == [143] * size[before]
    assert load_weights(Path(halves[before].run)).info["step"] == 3
    said = (tmp_path / "out-0").read_text().splitlines()[-1]
    assert said == f"stopped at step 3; continue with: mmgpt train {halves[before].run}/recipe.yaml"
    assert together(tmp_path, play, halves[after], processes=size[after]) == [0] * size[after]
    assert_same_run(make("straight").run, halves[after].run, missing=1)


# Ending


def test_a_loss_that_is_not_finite_anywhere_stops_all(make, tmp_path: Path) -> None:
    assert together(tmp_path, fail_in_rows, make("run", save_every=2)) == [2, 2]
    told = (tmp_path / "out-0").read_text().splitlines()[-1]
    assert " is not finite at step 3, in rows of songs" in told
    assert "(the last good checkpoint is step 2; lower" in told
    assert (tmp_path / "out-1").read_text() == ""


def test_what_is_wrong_is_told_once(make, tmp_path: Path) -> None:
    recipe = make("run")
    (Path(recipe.data.folders[0]) / "s000.beats").rename(tmp_path / "s000.beats")
    empty = toy_recipe(tmp_path / "nothing", tmp_path / "run", train={"threads": 1, "device": "cpu"})
    (tmp_path / "nothing").mkdir()
    (tmp_path / "s000.beats").rename(Path(recipe.data.folders[0]) / "s000.beats")
    assert together(tmp_path, play, empty) == [2, 2]
    assert (tmp_path / "out-0").read_text().count("\n") == 1
    assert (tmp_path / "out-1").read_text() == ""


# Started from the command line


def mmgpt(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "multimodal_gpt", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=LIMIT)


@pytest.mark.slow
def test_the_command_line_starts_them(make, tmp_path: Path) -> None:
    save_recipe(make("one"), tmp_path / "my.yaml")
    run.train(load_recipe(tmp_path / "my.yaml"))
    done = mmgpt(tmp_path, "train", "./my.yaml", "train.devices=2", "run=two", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["step"], result["ended"], result["folder"]) == (6, "steps", "two")
    assert done.stderr.count("run     ") == 1, "printed once"
    assert_same_run(make("one").run, tmp_path / "two")
    again = mmgpt(tmp_path, "train", "./my.yaml", "train.devices=3", "run=three")
    assert (again.returncode, again.stdout) == (2, "")
    told = "mmgpt: train.tokens_per_step: 4 rows of 32 can't be shared evenly by 3 processes (try 96)\n"
    assert again.stderr == told


@pytest.mark.slow
def test_ctrl_c_saves_once(make, tmp_path: Path) -> None:
    save_recipe(make("run", steps=10**6), tmp_path / "my.yaml")
    command = [sys.executable, "-m", "multimodal_gpt", "train", "./my.yaml", "train.devices=2"]
    started = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in started.stderr:
        if line.startswith("train: "):
            break
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does: all processes of the group
    out, err = started.communicate(timeout=LIMIT)
    assert started.returncode == 130, err
    step = load_weights(tmp_path / "run").info["step"]
    assert (
        out.splitlines()[-1]
        == f"stopped at step {step}; continue with: mmgpt train {tmp_path}/run/recipe.yaml"
    )
    assert err.count("stopping after this step") == 1


def test_the_one_to_blame() -> None:
    def ends(code: int, after: float = 0.0) -> subprocess.Popen[bytes]:
        code = f"import sys, time; time.sleep({after}); sys.exit({code})"
        return subprocess.Popen([sys.executable, "-S", "-c", code])

    assert launching._wait([ends(0), ends(0)]) is None
    assert launching._wait([ends(0, after=0.5), ends(1)]) == 1
    assert launching._wait([ends(2, after=0.5), ends(1)]) == 0, "it has said what is wrong"


def test_who_waits_for_a_failed_one_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "GRACE", 0.1)
    waits = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    fails = subprocess.Popen([sys.executable, "-S", "-c", "raise SystemExit(1)"])
    assert launching._wait([waits, fails]) == 1
    assert waits.returncode == -signal.SIGKILL


# Who is who

TORCHRUN = {"LOCAL_RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "1"}
TORCHRUN |= {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_STEP_NUM_TASKS": "8"}


@pytest.mark.parametrize("told", [TORCHRUN, SLURM], ids=["torchrun", "slurm"])
def test_the_launcher_says_who_is_who(told: dict[str, str]) -> None:
    team = assemble(TrainRecipe(strategy="fsdp"), told)
    assert team == Team(rank=5, size=8, local=4, sharded=True, started=True)
    assert (team.nodes, str(team)) == (2, "8 processes on 2 nodes, FSDP")
    assert assemble(TrainRecipe(devices=4, nodes=2), told).sharded is False
    with pytest.raises(UserError) as error:
        assemble(TrainRecipe(devices=8), told)
    assert str(error.value) == (
        "train.devices: 8 are asked for, 4 were started (leave it away: torchrun and SLURM say it)"
    )


def test_without_a_launcher() -> None:
    assert assemble(TrainRecipe(), {}) == Team()
    assert assemble(TrainRecipe(strategy="fsdp", device="cpu"), {}) == Team()
    assert assemble(TrainRecipe(devices=2), {}) == Team(size=2, local=2, started=False)
    batch_script = {key: value for key, value in SLURM.items() if key != "SLURM_STEP_NUM_TASKS"}
    assert assemble(TrainRecipe(), batch_script) == Team(), "nobody else was started"
    with pytest.raises(UserError, match=r"^train.nodes: 2 nodes need somebody who starts them \(start it"):
        assemble(TrainRecipe(nodes=2, devices=2), {})


@pytest.mark.parametrize("rows_per_batch", [None, 1, 2, 3, 5, 8])
@pytest.mark.parametrize("rows", [1, 4, 6, 7, 8])
def test_a_step_has_the_same_rows_on_any_number_of_devices(rows: int, rows_per_batch: int | None) -> None:
    train = {"tokens_per_step": 16 * rows, "rows_per_batch": rows_per_batch}
    recipe = Recipe.model_validate({"tokenizers": {}, "model": {"context": 16}, "train": train})
    alone = batching(recipe)
    for devices in range(1, 10):
        try:
            cut = batching(recipe, devices)
        except UserError as error:
            assert alone.rows_per_step % devices, error
            continue
        assert cut.tokens_per_step == alone.tokens_per_step
        assert cut.rows_per_batch <= alone.rows_per_batch
