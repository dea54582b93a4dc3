"""Training: it learns, it resumes exactly, it stops in good order, and it says what is wrong in one line."""

import functools
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset, Sampler

from multimodal_gpt.errors import UserError
from multimodal_gpt.model.gpt import GPT, gpt_config
from multimodal_gpt.model.loss import IGNORE
from multimodal_gpt.recipe.schema import Recipe
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.vocabulary import Vocabulary
from multimodal_gpt.training import health, job, run
from multimodal_gpt.training.checkpoint import load_weights
from multimodal_gpt.training.device import choose_device, cpu_has_bf16
from multimodal_gpt.training.job import Corpus, batching
from multimodal_gpt.training.metrics import read_metrics
from multimodal_gpt.training.module import Tally
from multimodal_gpt.training.resume import differences, resume_state

pytestmark = pytest.mark.usefixtures("kept_workers")
TOYS = Path(__file__).parent / "toys"
LETTERS, BEATS = (str(TOYS / f"{name}.py") for name in ("letters", "beats"))
CONTEXT = 16
CORPUS = Corpus({"train": 40, "valid": 4}, 640, "digest")


class ToyRows(Dataset):
    """Counting up and down over a few ids, two documents a row; a batch is a function of its index alone."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rows = [self._row(index * self.rows + i) for i in range(self.rows)]
        return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}

    def _row(self, number: int) -> dict[str, torch.Tensor]:
        rng = torch.Generator().manual_seed(number)
        half = CONTEXT // 2
        start, step = torch.randint(0, 5, (2,), generator=rng).tolist()
        up = 17 + (start + torch.arange(half) * (1 + step % 2)) % 5
        down = 23 + (start - torch.arange(half)) % 5
        ids = torch.cat((up, down))
        targets = torch.cat((up[1:], torch.tensor([IGNORE]), down[1:], torch.tensor([IGNORE])))
        targets[-number % 4 - 1 :] = IGNORE
        return {
            "ids": ids.int(),
            "targets": targets.int(),
            "document": torch.tensor([0] * half + [1] * half).int(),
            "position": torch.arange(half).repeat(2).int(),
            "clock": torch.zeros(CONTEXT),
        }


class From(Sampler):
    """Indexes from `start` on; its length is that of the whole."""

    def __init__(self, start: int, total: int) -> None:
        self.start, self.total = start, total

    def __iter__(self):
        return iter(range(self.start, self.total))

    def __len__(self) -> int:
        return self.total


class ToyData(L.LightningDataModule):
    """The contract of the data room's RowsData: rows by position, kept in the checkpoint."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.rows, self.workers = batching(recipe).rows_per_batch, recipe.train.workers
        self.start = 0

    def train_dataloader(self) -> DataLoader:
        sampler = From(self.start, 10**6)
        return DataLoader(ToyRows(self.rows), batch_size=None, sampler=sampler, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader:
        first = 10**6 // self.rows
        return DataLoader(
            ToyRows(self.rows), batch_size=None, sampler=range(first, first + max(1, 8 // self.rows))
        )

    def state_dict(self) -> dict[str, int]:
        return {"start": self.trainer.fit_loop.epoch_loop.batch_progress.total.processed}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.start = state_dict["start"]


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary([Modality("letters", LETTERS), Modality("beats", BEATS)])


@pytest.fixture
def make(tmp_path):
    """A recipe of a toy run in its own folder; keywords are options of `train`, three are not."""

    def recipe(name: str = "run", *, dropout: float = 0.0, width: int = 32, seed: int = 1, **train) -> Recipe:
        defaults = {
            "steps": 8,
            "tokens_per_step": 64,
            "evaluate_every": 2,
            "evaluate_rows": 8,
            "log_every": 3,
        }
        return Recipe(
            run=str(tmp_path / name),
            seed=seed,
            tokenizers={"letters": {"plugin": LETTERS}, "beats": {"plugin": BEATS}},
            model={"depth": 2, "width": width, "heads": 2, "context": CONTEXT, "dropout": dropout},
            train={**defaults, "device": "cpu", **train},
        )

    return recipe


@pytest.fixture
def at_step(monkeypatch):
    """Have something done at a step, while the callbacks of that step are at work."""

    class Bar:
        def __init__(self) -> None:
            self.step, self.actions = 0, {}

        def advance(self, n: int, note: str = "") -> None:
            self.step += n
            self.actions.get(self.step, lambda: None)()

    bar = Bar()

    @contextmanager
    def progress(total, label):
        bar.step = int(label.split()[-1]) if "step" in label else 0
        yield bar

    monkeypatch.setattr(run, "progress", progress)

    def plan(step: int, action) -> None:
        bar.actions[step] = action

    return plan


@pytest.fixture
def capture_net(monkeypatch):
    """The networks that are trained, in turn."""
    found = []
    real = run.TrainingModule.__init__

    def init(self, net, *rest):
        found.append(net)
        real(self, net, *rest)

    monkeypatch.setattr(run.TrainingModule, "__init__", init)
    return found


def send(number: int):
    return lambda: os.kill(os.getpid(), number)


def fit(recipe, vocabulary, *, resume: bool = False, rows: L.LightningDataModule | None = None):
    state = resume_state(Path(recipe.run), recipe) if resume else None
    return run.fit(recipe, vocabulary, rows or ToyData(recipe), CORPUS, state)


def curve(folder: Path) -> list[dict[str, str]]:
    timing = ("seconds", "tokens_per_second")
    return [{k: v for k, v in row.items() if k not in timing} for row in read_metrics(folder)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Path, two: Path) -> bool:
    a, b = weights(one), weights(two)
    return all(torch.equal(a[name], b[name]) for name in a)


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


# Stopping


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(make, vocabulary, at_step, capsys, number, code):
    recipe = make(rows_per_batch=1)
    at_step(3, send(number))
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        fit(recipe, vocabulary)
    assert stopped.value.code == code
    assert signal.getsignal(number) == before
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"stopped at step 3; continue with: mmgpt train {recipe.run}/recipe.yaml"
    assert fit(recipe, vocabulary, resume=True).step == 8


def test_the_second_ctrl_c_kills(make, vocabulary, at_step, capsys):
    recipe = make(save_every=2)

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_step(3, twice)
    with pytest.raises(SystemExit) as stopped:
        fit(recipe, vocabulary)
    assert stopped.value.code == 130
    assert "stopped at step 2; continue" in capsys.readouterr().out


def test_the_minutes_are_kept(make, vocabulary):
    recipe = make(minutes=1e-6)
    result = fit(recipe, vocabulary)
    assert (result.ended, result.step) == ("minutes", 1)
    assert result.valid
    assert fit(make(), vocabulary, resume=True).step == 8


def test_a_loss_that_is_not_finite_stops_the_run(make, vocabulary, at_step, monkeypatch):
    recipe = make(save_every=2)

    def broken(self, hidden, targets, emphasis):
        return hidden.sum() * float("nan"), torch.zeros(targets.shape)

    at_step(4, lambda: monkeypatch.setattr(GPT, "loss_sum", broken))
    with pytest.raises(UserError) as error:
        fit(recipe, vocabulary)
    assert str(error.value) == (
        f"{recipe.run}: the loss is not finite at step 5 "
        "(the last good checkpoint is step 4; lower train.learning_rate or train.clip)"
    )
    assert load_weights(Path(recipe.run)).info["step"] == 4


def breaking(module: torch.nn.Module) -> None:
    """Let the gradients of what comes before a module be infinite; the loss stays what it is."""
    module.register_full_backward_hook(lambda m, inputs, outputs: (inputs[0] * float("inf"),))


@pytest.mark.parametrize("rows_per_batch", [1, 4])
def test_the_weight_whose_gradient_breaks_is_named(make, vocabulary, at_step, capture_net, rows_per_batch):
    recipe = make(rows_per_batch=rows_per_batch)
    at_step(2, lambda: breaking(capture_net[0].blocks[1].mlp.up_proj))
    with pytest.raises(UserError, match=r"the gradient of blocks.1.mlp_norm.weight is not finite at step 3 "):
        fit(recipe, vocabulary)


def test_weights_that_are_not_finite_are_never_saved(make, vocabulary, at_step, capture_net):
    recipe = make(save_every=2)

    def poison():
        with torch.no_grad():
            capture_net[0].blocks[1].mlp.up_proj.weight[0, 0] = float("inf")

    at_step(4, poison)
    with pytest.raises(UserError, match=r"blocks.1.mlp.up_proj.weight is not finite at step 4 .*is step 2;"):
        fit(recipe, vocabulary)
    assert load_weights(Path(recipe.run)).info["step"] == 2


def test_a_full_disk_leaves_the_last_checkpoint(make, vocabulary, at_step, monkeypatch):
    recipe = make(save_every=2)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    at_step(3, lambda: monkeypatch.setattr(L.Trainer, "save_checkpoint", full))
    with pytest.raises(
        UserError, match=r"step 4 can't be saved.*No space left.*the last checkpoint is untouched"
    ):
        fit(recipe, vocabulary)
    monkeypatch.undo()
    assert load_weights(Path(recipe.run)).info["step"] == 4, "weights are written first"
    assert fit(recipe, vocabulary, resume=True).step == 8


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


def test_bf16_trains_and_saves_float32(make, vocabulary):
    result = fit(make(precision="bf16", dropout=0.1), vocabulary)
    assert result.valid["loss"] < result.untrained["loss"]
    assert {w.dtype for w in weights(result.folder).values()} == {torch.float32}


def test_it_learns_the_toy_stream(make, vocabulary):
    result = fit(make(steps=60, tokens_per_step=256, learning_rate=1e-2, evaluate_every=60), vocabulary)
    assert result.untrained["loss"] > 3.5
    assert result.valid["loss"] < 0.5, "five starts and two strides are all there is to know"


# From files


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
