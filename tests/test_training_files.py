"""Training from files: the same on real rows, and a broken batch names its files."""

import signal
from pathlib import Path

import pytest
import torch
from toy_training import CONTEXT, curve, same, send

from multimodal_gpt.errors import UserError
from multimodal_gpt.model.gpt import GPT
from multimodal_gpt.recipe.schema import Recipe
from multimodal_gpt.training import health, run
from multimodal_gpt.training.checkpoint import load_weights

pytestmark = pytest.mark.usefixtures("kept_workers")


@pytest.fixture
def songs(tmp_path):
    """A folder of 12 documents, a word and some bars each."""
    folder = tmp_path / "songs"
    folder.mkdir()
    for number in range(12):
        word = "abcde"[number % 5] * (2 + number % 3)
        (folder / f"{number:02d}.letters").write_text(word)
        (folder / f"{number:02d}.beats").write_text("\n".join(["x..x", ".x..", "xx.x"][: 1 + number % 3]))
    return folder


def from_files(make, songs: Path, name: str, **options) -> Recipe:
    recipe = make(name, rows_per_batch=1, tokens_per_step=32, **options)
    data = {"folders": [str(songs)], "validation": 0.2, "workers": 1}
    return Recipe.model_validate({**recipe.plain(), "data": data})


@pytest.mark.parametrize("workers", [0, 2])
def test_eight_steps_are_four_and_four_on_real_rows(make, songs, at_step, workers):
    straight = from_files(make, songs, "straight", workers=workers, dropout=0.1, log_every=1)
    result = run.train(straight)
    assert result.tokens > 2 * 12 * CONTEXT / 2, "the run must cross the border of an epoch"
    halves = from_files(make, songs, "halves", workers=workers, dropout=0.1, log_every=1)
    at_step(4, send(signal.SIGINT))
    with pytest.raises(SystemExit):
        run.train(halves)
    at_step(4, lambda: None)
    run.train(halves)
    rows = [r for r in curve(result.folder) if (r["step"], r["split"]) != ("4", "valid")]
    assert curve(Path(halves.run)) == rows
    assert same(result.folder, Path(halves.run))


def test_more_steps_on_real_rows(make, songs):
    run.train(from_files(make, songs, "run"))
    assert run.train(from_files(make, songs, "run", steps=11)).step == 11
    anew = run.train(from_files(make, songs, "run", steps=3, width=64), restart=True)
    assert (anew.step, load_weights(anew.folder).net.config.width) == (3, 64)


def test_samples_are_files_one_can_open(make, songs):
    samples = [{"given": {"letters": "abba"}, "to": ["beats"]}, {"to": ["letters"]}]
    folder = run.train(from_files(make, songs, "run", steps=2, sample_every=2, samples=samples)).folder
    made = folder / "samples" / "step-000002"
    assert "x" in next(made.glob("01*.beats")).read_text()
    assert set(next(made.glob("02*.letters")).read_text().strip()) <= set("abcde")


def test_the_files_of_a_broken_batch_are_named(make, songs, at_step, monkeypatch):
    asked, seen = [], []
    real = health.sources

    def sources(trainer, first, stop):
        asked.extend(trainer.datamodule.train_rows[row]["targets"] for row in range(first, stop))
        return real(trainer, first, stop)

    def broken(self, hidden, targets, emphasis):
        seen.append(targets[0])
        return hidden.sum() * float("nan"), torch.zeros(targets.shape)

    monkeypatch.setattr(health, "sources", sources)
    at_step(5, lambda: monkeypatch.setattr(GPT, "loss_sum", broken))
    with pytest.raises(UserError, match=r"the loss is not finite at step 6, in rows of \S+") as error:
        run.train(from_files(make, songs, "run"))
    assert [t.tolist() for t in asked] == [seen[0].tolist()], "the rows of the first broken micro-batch"
    assert any(f"{songs.name}/{path.stem}" in str(error.value) for path in songs.iterdir())


def test_a_changed_corpus_is_noticed(make, songs):
    recipe = from_files(make, songs, "run")
    run.train(recipe)
    (songs / "00.letters").write_text("edcba")
    with pytest.raises(UserError, match="the shards are not those that the run was trained on"):
        run.train(recipe)
