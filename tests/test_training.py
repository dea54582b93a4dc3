"""Training: it learns, its folder tells how, and the options of a run do what they say."""

import platform
import sys
from pathlib import Path

import pytest
import torch
from toy_training import CONTEXT, ToyData, ToyRows, curve, fit, same, weights

from multimodal_gpt.errors import UserError
from multimodal_gpt.model.gpt import GPT, gpt_config
from multimodal_gpt.model.loss import IGNORE
from multimodal_gpt.training import job, run
from multimodal_gpt.training.checkpoint import load_weights
from multimodal_gpt.training.device import choose_device, cpu_has_bf16, keep_freed_memory
from multimodal_gpt.training.job import Corpus, batching
from multimodal_gpt.training.metrics import read_metrics
from multimodal_gpt.training.module import Tally

# What a run leaves


def test_a_run_fills_its_folder(make, vocabulary, capfd):
    recipe = make()
    result = fit(recipe, vocabulary)
    assert (result.ended, result.step, result.tokens) == ("steps", 8, 512)
    assert result.valid["loss"] < result.untrained["loss"]
    assert set(result.train) == {"loss", "letters", "beats"}
    files = "README.md checkpoint.json metrics.csv model.safetensors recipe.yaml resume.ckpt vocabulary.json"
    assert sorted(p.name for p in result.folder.iterdir()) == sorted([*files.split(), "checkpoints"])
    loaded = load_weights(result.folder)
    assert loaded.info["step"] == 8
    assert loaded.recipe == recipe
    card = (result.folder / "README.md").read_text()
    assert f"| all | letters | beats |\n|---|---|---|---|\n| train | {result.train['loss']:.3f} |" in card
    out, err = capfd.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == [
        "run",
        "device",
        "model",
        "data",
        "step",
        "steps",
    ]
    assert err.splitlines()[-1].startswith("train: 8/8 (100 %), train ")
    assert len(err.splitlines()) == 1


def test_metrics_have_a_row_per_log_and_validation(make, vocabulary):
    rows = read_metrics(fit(make(), vocabulary).folder)
    assert [(r["step"], r["split"]) for r in rows] == [
        ("0", "valid"),
        ("2", "valid"),
        ("3", "train"),
        ("4", "valid"),
        ("6", "train"),
        ("6", "valid"),
        ("8", "valid"),
    ]
    assert float(rows[2]["learning_rate"]) == 8e-3
    assert float(rows[2]["gradient_norm"]) > 0
    assert rows[2]["tokens"] == "192"


def test_the_last_step_is_always_validated(make, vocabulary):
    result = fit(make(evaluate_every=5), vocabulary)
    assert [r["step"] for r in read_metrics(result.folder) if r["split"] == "valid"] == ["0", "5", "8"]
    assert load_weights(result.folder).info["losses"]["valid"] == pytest.approx(result.valid)


def test_no_validation_without_held_out_documents(make, vocabulary):
    recipe = make()
    result = run.fit(recipe, vocabulary, ToyData(recipe), Corpus({"train": 40, "valid": 0}, 640, "digest"))
    assert (result.valid, result.untrained) == ({}, {})


# The same losses


def test_the_same_seed_gives_the_same_curve(make, vocabulary):
    folders = [
        fit(make(n, dropout=0.1, seed=s), vocabulary).folder for n, s in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert curve(folders[0]) == curve(folders[1]) != curve(folders[2])
    assert same(folders[0], folders[1])


def test_accumulation_is_one_big_batch(make, vocabulary):
    whole = fit(make("whole"), vocabulary).folder
    parts = fit(make("parts", rows_per_batch=2), vocabulary).folder
    for one, two in zip(curve(whole), curve(parts), strict=True):
        assert (one["step"], one["split"], one["learning_rate"]) == (
            two["step"],
            two["split"],
            two["learning_rate"],
        )
        assert float(one["loss"]) == pytest.approx(float(two["loss"]), abs=1e-5)
    expected = weights(whole)
    assert all(torch.allclose(w, expected[name], atol=1e-4) for name, w in weights(parts).items())


# Between the steps


def test_samples_are_written_with_live_weights(make, vocabulary, monkeypatch):
    seen = []
    monkeypatch.setattr(
        job, "write_samples", lambda j, folder, step: seen.append((folder.name, j.net.training))
    )
    recipe = make(sample_every=4)
    fit(recipe, vocabulary)
    assert seen == [("step-000004", False), ("step-000008", False)]
    monkeypatch.setattr(job, "write_samples", lambda *_: torch.rand(3))
    fit(make("other", sample_every=1, dropout=0.1), vocabulary)
    fit(make("without", dropout=0.1), vocabulary)
    assert same(Path(make("other").run), Path(make("without").run)), "sampling must not change training"


def test_a_sample_that_fails_is_only_told(make, vocabulary, monkeypatch, capsys):
    def fail(*_):
        raise UserError("there is nothing to say")

    monkeypatch.setattr(job, "write_samples", fail)
    assert fit(make(sample_every=4), vocabulary).step == 8
    assert "no samples at step 4: there is nothing to say" in capsys.readouterr().err


def test_the_average_is_what_a_run_leaves(make, vocabulary, capture_net):
    at = {"steps": 2, "save_every": 1, "evaluate_every": 1, "log_every": 1, "schedule": "cosine", "keep": 2}
    one, other = fit(make("one", average=0.5, **at), vocabulary), fit(make("other", **at), vocabulary)
    torch.manual_seed(1)
    start = GPT(gpt_config(make().model, vocabulary.table_size)).state_dict()
    first, second = weights(other.folder / "checkpoints" / "step-000001"), weights(other.folder)
    for name, weight in weights(one.folder).items():
        keep_1, keep_2 = 1 / 10, 2 / 11
        after_1 = keep_1 * start[name] + (1 - keep_1) * first[name]
        assert torch.allclose(weight, keep_2 * after_1 + (1 - keep_2) * second[name], atol=1e-6), name
    saved = torch.load(one.folder / "resume.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(saved[f"net.{name}"], second[name]) for name in second)
    assert one.valid["loss"] != other.valid["loss"]
    assert [r["loss"] for r in curve(one.folder) if r["split"] == "train"] == [
        r["loss"] for r in curve(other.folder) if r["split"] == "train"
    ]


def test_where_nothing_compiles_it_is_told_once(make, vocabulary, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("no C++ compiler\nand no more to say")

    monkeypatch.setattr(torch, "compile", fail)
    assert fit(make(compile=True), vocabulary).step == 8
    lines = [line for line in capsys.readouterr().err.splitlines() if "compile" in line]
    assert len(lines) == 1
    assert lines[0].endswith("torch can't compile here, training without it: no C++ compiler")
    assert fit(make("auto"), vocabulary).step == 8, "auto does not try on a CPU"
    assert "compile" not in capsys.readouterr().err


def test_tensorboard_is_asked_for_by_name(make, vocabulary, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"train.tensorboard: the package tensorboard is missing"):
        fit(make(tensorboard=True), vocabulary)


def test_a_tally_divides_by_owner():
    tally = Tally([("a", 2, 4), ("b", 4, 6)], 8)
    targets = torch.tensor([[2, 3, 4], [IGNORE, 7, 3]])
    tally.add(torch.tensor([[1.0, 2.0, 5.0], [0.0, 4.0, 6.0]]), targets)
    assert tally.read() == {"loss": 18 / 5, "a": 3.0, "b": 5.0}
    assert tally.read() == {}


def test_places_of_a_modality_count_as_often_as_asked(make, vocabulary):
    recipe, batch = make(emphasis={"letters": 3}), ToyRows(2)[0]
    net = GPT(gpt_config(recipe.model, vocabulary.table_size))
    owners = [(r.name, r.first, r.stop) for r in vocabulary.ranges.values()]
    module = run.TrainingModule(net, owners, recipe.train, 1)
    hidden = net(batch["ids"], document=batch["document"])
    losses = net.token_losses(hidden, batch["targets"]).detach()
    letters = vocabulary.ranges["letters"]
    counts = torch.where((batch["ids"] >= letters.tag) & (batch["ids"] < letters.stop), 3, 1)
    assert counts.unique().tolist() == [1, 3]
    loss = module.training_step(batch, 0).item()
    assert loss == pytest.approx(float((losses * counts).sum() / losses.numel()))
    seen = (batch["targets"] != IGNORE).sum()
    assert module.train_tally.read()["loss"] == pytest.approx(float(losses.sum() / seen)), "as without"


def test_steps_are_cut_into_whole_rows(make):
    cut = batching(make(tokens_per_step=100, rows_per_batch=4))
    assert (cut.rows_per_batch, cut.batches_per_step, cut.tokens_per_step) == (4, 2, 128)
    assert batching(make(tokens_per_step=1)).tokens_per_step == CONTEXT


def test_devices():
    assert choose_device("cpu", "32").precision == "32-true"
    assert choose_device("cpu", "bf16").precision == "bf16-mixed"
    assert choose_device("cpu", "auto").precision == ("bf16-mixed" if cpu_has_bf16() else "32-true")
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        with pytest.raises(UserError, match=r"^train.device: there is no GPU that torch can use"):
            choose_device("gpu", "auto")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_step_finds_the_memory_of_the_last_one():
    import resource  # not on every system

    def new_pages():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(4):
            torch.ones(10 * 2**20)  # 40 MiB: glibc would give that back each time
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    keep_freed_memory()
    new_pages()
    assert new_pages() < 1000


def test_bf16_trains_and_saves_float32(make, vocabulary):
    result = fit(make(precision="bf16", dropout=0.1), vocabulary)
    assert result.valid["loss"] < result.untrained["loss"]
    assert {w.dtype for w in weights(result.folder).values()} == {torch.float32}


def test_it_learns_the_toy_stream(make, vocabulary):
    result = fit(make(steps=60, tokens_per_step=256, learning_rate=1e-2, evaluate_every=60), vocabulary)
    assert result.untrained["loss"] > 3.5
    assert result.valid["loss"] < 0.5, "five starts and two strides are all there is to know"
