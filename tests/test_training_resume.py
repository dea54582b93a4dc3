"""A run that goes on: eight steps are four and four, and what may not go on is refused."""

import functools
import signal
from pathlib import Path

import pytest
import torch
from toy_training import CORPUS, ToyData, curve, fit, same, send, weights

from multimodal_gpt.errors import UserError
from multimodal_gpt.training import job, run
from multimodal_gpt.training.checkpoint import load_weights
from multimodal_gpt.training.job import Corpus
from multimodal_gpt.training.metrics import read_metrics
from multimodal_gpt.training.resume import differences, resume_state

# The same weights


@pytest.mark.parametrize(
    ("workers", "dropout", "rows_per_batch"), [(0, 0.0, 4), (0, 0.2, 2), (2, 0.2, 4)], ids=str
)
def test_eight_steps_are_four_and_four(make, vocabulary, at_step, workers, dropout, rows_per_batch):
    options = {"workers": workers, "dropout": dropout, "rows_per_batch": rows_per_batch}
    straight = fit(make("straight", **options), vocabulary).folder
    halves = make("halves", **options)
    at_step(4, send(signal.SIGINT))
    with pytest.raises(SystemExit):
        fit(halves, vocabulary)
    assert load_weights(Path(halves.run)).info["step"] == 4
    at_step(4, lambda: None)
    fit(halves, vocabulary, resume=True)
    rows = curve(Path(halves.run))
    missed = [row for row in curve(straight) if row not in rows]
    assert [(row["step"], row["split"]) for row in missed] == [("4", "valid")], (
        "it was stopped before that validation"
    )
    assert [row for row in curve(straight) if row in rows] == rows
    assert same(straight, Path(halves.run))


def test_more_steps_after_the_end(make, vocabulary, capsys):
    fit(make(), vocabulary)
    assert fit(make(), vocabulary, resume=True).ended == "before"
    assert "for more: train.steps=16" in capsys.readouterr().out
    result = fit(make(steps=12), vocabulary, resume=True)
    assert (result.step, result.ended) == (12, "steps")
    assert [r["step"] for r in read_metrics(result.folder) if r["split"] == "train"] == ["3", "6", "9", "12"]


def test_rows_after_the_checkpoint_are_written_again(make, vocabulary, at_step):
    recipe = make(save_every=4)
    at_step(7, lambda: (_ for _ in ()).throw(OSError("the power is out")))
    with pytest.raises(OSError, match="power"):
        fit(recipe, vocabulary)
    file = Path(recipe.run) / "metrics.csv"
    assert read_metrics(file.parent)[-1]["step"] == "6"
    with file.open("a") as metrics:
        metrics.write("7,tra")
    at_step(7, lambda: None)
    fit(recipe, vocabulary, resume=True)
    fit(make("straight", save_every=4), vocabulary)
    rows, straight = curve(file.parent), curve(file.parent.parent / "straight")
    assert rows == [r for r in straight if (r["step"], r["split"]) != ("4", "valid")] or rows == straight


def test_eight_steps_with_an_average_are_four_and_four(make, vocabulary, at_step):
    straight = fit(make("straight", average=0.9), vocabulary)
    halves = make("halves", average=0.9)
    at_step(4, send(signal.SIGINT))
    with pytest.raises(SystemExit):
        fit(halves, vocabulary)
    at_step(4, lambda: None)
    result = fit(halves, vocabulary, resume=True)
    assert same(straight.folder, result.folder)
    assert straight.valid == result.valid


@pytest.fixture
def traced(monkeypatch):
    """Compiling without a compiler, and fast: torch traces, and runs what it has traced as it is."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    yield
    torch.compiler.reset()


def test_eight_compiled_steps_are_four_and_four(make, vocabulary, at_step, traced, monkeypatch):
    plain = fit(make("plain", rows_per_batch=2), vocabulary)
    straight = fit(make("straight", rows_per_batch=2, compile=True), vocabulary)
    assert straight.valid["loss"] == pytest.approx(plain.valid["loss"], abs=1e-4)
    assert weights(straight.folder).keys() == weights(plain.folder).keys()
    halves = make("halves", rows_per_batch=2, compile=True, sample_every=3)
    monkeypatch.setattr(job, "write_samples", lambda j, folder, step: j.net(torch.zeros(1, step).long()))
    at_step(4, send(signal.SIGINT))
    with pytest.raises(SystemExit):
        fit(halves, vocabulary)
    at_step(4, lambda: None)
    assert same(fit(halves, vocabulary, resume=True).folder, straight.folder)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_it_trains_and_resumes_on_a_gpu(make, vocabulary, at_step):
    straight = fit(make("straight", device="gpu", dropout=0.1), vocabulary)
    assert straight.valid["loss"] < straight.untrained["loss"]
    halves = make("halves", device="gpu", dropout=0.1)
    at_step(4, send(signal.SIGINT))
    with pytest.raises(SystemExit):
        fit(halves, vocabulary)
    at_step(4, lambda: None)
    result = fit(halves, vocabulary, resume=True)
    assert result.valid["loss"] == pytest.approx(straight.valid["loss"], abs=1e-3)
    assert next(load_weights(result.folder, "cuda").net.parameters()).is_cuda


# What may not go on


def test_another_recipe_is_refused_with_what_differs(make, vocabulary):
    fit(make(), vocabulary)
    with pytest.raises(UserError) as error:
        resume_state(Path(make().run), make(width=64, learning_rate=1e-3, log_every=1))
    assert str(error.value) == (
        f"{make().run}: holds a run of another recipe: model.width: 32 -> 64; "
        "train.learning_rate: 0.008 -> 0.001 "
        "(give it a folder of its own with run=..., or begin anew with --restart)"
    )


def test_other_shards_are_refused(make, vocabulary):
    recipe = make()
    fit(recipe, vocabulary)
    state = resume_state(Path(recipe.run), recipe)
    with pytest.raises(UserError, match="the shards are not those that the run was trained on"):
        run.fit(recipe, vocabulary, ToyData(recipe), Corpus(CORPUS.documents, 640, "other"), state)


def test_a_run_of_another_format_does_not_go_on(make, vocabulary):
    recipe = make()
    path = fit(recipe, vocabulary).folder / "resume.ckpt"
    state = torch.load(path, weights_only=True)
    state["multimodal_gpt"]["format"] = 1
    torch.save(state, path)
    with pytest.raises(UserError, match=r"resume.ckpt: was written by another version \(give it a folder"):
        resume_state(Path(recipe.run), recipe)


def test_weights_alone_are_not_trained_over(make, vocabulary):
    recipe = make()
    (fit(recipe, vocabulary).folder / "resume.ckpt").unlink()
    with pytest.raises(UserError, match=r"holds a trained model but no resume.ckpt to go on from"):
        resume_state(Path(recipe.run), recipe)


def test_beginning_anew_replaces_what_was_there(make, vocabulary):
    recipe = make(width=64)
    fit(make(), vocabulary)
    assert fit(recipe, vocabulary).step == 8
    assert load_weights(Path(recipe.run)).net.config.width == 64
    assert len(read_metrics(Path(recipe.run))) == 7


def test_options_that_only_steer_may_change(make):
    assert differences(make().plain(), make(steps=99, save_every=1, threads=2, workers=3).plain()) == []
    assert differences({"model": {"depth": 2}}, {"model": {}}) == [
        "model.depth: 2 -> nothing",
        "model: nothing -> {}",
    ]
