"""Checkpoints besides the last: the last few and the best, whatever happens to the disk."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file
from toy_corpus import toy_recipe, write_corpus

from multimodal_gpt.errors import UserError
from multimodal_gpt.recipe.schema import Recipe
from multimodal_gpt.training import callbacks, checkpoint, keep, run
from multimodal_gpt.training.checkpoint import load_weights
from multimodal_gpt.training.keep import best_loss, keep_last
from multimodal_gpt.training.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("kept_workers")


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("songs"), 24)


@pytest.fixture
def make(songs: Path, tmp_path: Path):
    def recipe(name: str = "run", **train: Any) -> Recipe:
        defaults = {
            "steps": 8,
            "tokens_per_step": 64,
            "save_every": 2,
            "evaluate_every": 2,
            "evaluate_rows": 4,
        }
        model = {"depth": 1, "width": 16, "heads": 2, "context": 32}
        sections = {"model": model, "train": {**defaults, "device": "cpu", "threads": 1, **train}}
        return toy_recipe(songs, tmp_path / name, validation=0.2, **sections)

    return recipe


def kept(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "checkpoints").iterdir())


def test_the_last_few_and_the_best_are_kept(make) -> None:
    folder = run.train(make(keep=3)).folder
    assert kept(folder) == ["best", "step-000004", "step-000006", "step-000008"]
    for step in (4, 6, 8):
        place = folder / "checkpoints" / f"step-{step:06d}"
        assert load_weights(place).info["step"] == step
        assert (place / "resume.ckpt").stat().st_size > 0
    valid = {int(r["step"]): float(r["loss"]) for r in read_metrics(folder) if r["split"] == "valid"}
    best = load_weights(folder / "checkpoints" / "best")
    del valid[0]  # untrained
    assert best.info["step"] == min(valid, key=valid.get)
    assert best_loss(folder) == min(valid.values())


def test_a_link_costs_nothing(make) -> None:
    folder = run.train(make(keep=2)).folder
    newest = folder / "checkpoints" / "step-000008"
    assert (newest / "resume.ckpt").samefile(folder / "resume.ckpt")
    older = load_file(folder / "checkpoints" / "step-000006" / "model.safetensors")
    assert any(not w.equal(older[n]) for n, w in load_file(folder / "model.safetensors").items())


def test_by_default_the_last_and_the_best(make) -> None:
    assert kept(run.train(make()).folder) == ["best"]
    assert not (run.train(make("none", keep=0)).folder / "checkpoints").exists()


def test_one_can_go_on_from_an_older_checkpoint(make) -> None:
    straight = run.train(make("straight", keep=3)).folder
    older = straight / "checkpoints" / "step-000004"
    recipe = make("straight", keep=0)
    again = Recipe.model_validate({**recipe.plain(), "run": str(older)})
    before = (straight / "model.safetensors").read_bytes()
    assert run.train(again).step == 8
    assert (straight / "model.safetensors").read_bytes() == before
    a, b = load_file(older / "model.safetensors"), load_file(straight / "model.safetensors")
    assert all(w.equal(b[n]) for n, w in a.items())


def test_a_worse_validation_does_not_replace_the_best(tmp_path: Path) -> None:
    saved: list[int] = []
    meter = SimpleNamespace(losses={"valid": {}}, watch=callbacks.Stopwatch())
    health: Any = SimpleNamespace(folder=tmp_path)
    saver = callbacks.Saver(1, 1, Any, lambda step, folder: saved.append(step), {}, meter, health)
    for step, loss in enumerate([math.nan, 2.0, 3.0, 2.0, 1.5, math.nan, math.inf]):
        meter.losses["valid"] = {"loss": loss}
        saver.on_validation_end(SimpleNamespace(sanity_checking=False, global_step=step), Any)
    assert saved == [1, 4]


def test_starting_anew_forgets_them(make) -> None:
    folder = run.train(make(keep=3)).folder
    (folder / "checkpoints" / "mine").mkdir()
    run.train(make(keep=3, steps=2, decay=0.1), restart=True)
    assert kept(folder) == ["best", "mine", "step-000002"]
    assert load_weights(folder / "checkpoints" / "best").info["step"] == 2


def test_a_disk_without_links(make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(keep.os, "link", refuse)
    folder = run.train(make(keep=2)).folder
    assert load_weights(folder / "checkpoints" / "step-000006").info["step"] == 6
    assert kept(folder) == ["best", "step-000006", "step-000008"]


def test_a_later_step_of_an_earlier_life_goes(make, tmp_path: Path) -> None:
    folder = run.train(make(keep=0)).folder
    for step in (2, 10):
        (folder / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    keep_last(folder, 8, 2)
    assert kept(folder) == ["step-000002", "step-000008"]
    keep_last(folder, 8, 1)
    assert kept(folder) == []


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("place", "name"), [(checkpoint, "save_file"), (callbacks, "sync")])
def test_a_full_disk_leaves_the_last_checkpoint_whole(make, monkeypatch, place: Any, name: str) -> None:
    recipe = make(keep=0)
    real, calls = getattr(place, name), 0

    def second_fails(*args: Any) -> None:
        nonlocal calls
        calls += 1
        real(*args)
        if calls == 2:
            full()

    monkeypatch.setattr(place, name, second_fails)
    with pytest.raises(UserError, match=r"step 4 can't be saved: .*No space left.*checkpoint is untouched"):
        run.train(recipe)
    monkeypatch.undo()
    folder = Path(recipe.run)
    assert load_weights(folder).info["step"] == (2 if place is checkpoint else 4), "weights come first"
    assert not list(folder.glob("*.partial")), "what is not whole takes no room"
    assert run.train(recipe).step == 8


def test_that_others_can_not_be_kept_is_only_told(make, monkeypatch, capsys) -> None:
    monkeypatch.setattr(callbacks, "keep_last", full)
    assert run.train(make(keep=2)).step == 8
    assert "warning: step 4 can't be kept besides the last: " in capsys.readouterr().err


def test_that_the_best_can_not_be_kept_is_only_told(make, monkeypatch, capsys) -> None:
    real = checkpoint.save_file

    def refuse_best(weights: Any, path: Path) -> None:
        full() if path.parent.name == "best" else real(weights, path)

    monkeypatch.setattr(checkpoint, "save_file", refuse_best)
    assert run.train(make()).step == 8
    assert "warning: the best checkpoint, step 2, can't be kept: " in capsys.readouterr().err
