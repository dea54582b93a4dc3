"""Batches for the trainer: the same on any number of workers, exact after a resume, across epochs."""

import pickle
import shutil
import warnings
from dataclasses import dataclass

import lightning as L
import pytest
import torch
from toy_corpus import toy_recipe, vocabulary, write_corpus

from multimodal_gpt.data.datamodule import Batches, RowsData, data_summary
from multimodal_gpt.data.prepare import prepare
from multimodal_gpt.data.shards import open_shards, read_manifest, write_manifest
from multimodal_gpt.errors import UserError
from multimodal_gpt.recipe.load import arrangements
from multimodal_gpt.stream.vocabulary import EOD

pytestmark = pytest.mark.usefixtures("kept_workers")
VOCABULARY = vocabulary()
CONTEXT = 48


@dataclass(frozen=True)
class Cut:
    rows_per_batch: int = 2
    batches_per_step: int = 1
    context: int = CONTEXT


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    recipe = toy_recipe(write_corpus(folder / "d", 12, bars=20), folder / "run", validation=0.2)
    prepare(recipe, progress=False)
    return folder


def rows_data(corpus, cut=Cut(), **train):
    recipe = toy_recipe(corpus / "d", corpus / "run", train={"steps": 8, "evaluate_rows": 3, **train})
    return RowsData(corpus / "run" / "shards", VOCABULARY, arrangements(recipe, VOCABULARY), recipe, cut)


class Net(L.LightningModule):
    """Keeps every batch it was shown; a linear layer, so that the order of batches shows in the weights."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer = torch.nn.Linear(CONTEXT, 1)
        self.seen, self.valid = [], []

    def training_step(self, batch, index):
        self.seen.append(batch)
        return self.layer(batch["ids"].float()).square().mean()

    def validation_step(self, batch, index):
        self.valid.append(batch)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class SaveAt(L.Callback):
    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


def train(data, steps, folder, save=None, resume=None, accumulate=1):
    net = Net()
    with warnings.catch_warnings():
        for advice in ("many workers", "not resumable", "treespec", "GPU available"):
            warnings.filterwarnings("ignore", f".*{advice}.*")
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=steps,
            max_epochs=-1,
            accumulate_grad_batches=accumulate,
            callbacks=[SaveAt(*save)] if save else [],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            val_check_interval=4 * accumulate,
            check_val_every_n_epoch=None,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        trainer.fit(net, datamodule=data, ckpt_path=resume, weights_only=True)
    return net


def same(a, b):
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_eight_steps_are_four_and_four(corpus, tmp_path, workers, accumulate):
    cut = Cut(batches_per_step=accumulate)
    whole = train(rows_data(corpus, cut), 8, tmp_path, accumulate=accumulate)
    path = tmp_path / "at4.ckpt"
    first = train(rows_data(corpus, cut, workers=workers), 4, tmp_path, (4, path), None, accumulate)
    second = train(rows_data(corpus, cut, workers=workers), 8, tmp_path, None, path, accumulate)
    same(first.seen + second.seen, whole.seen)
    assert len(whole.seen) == 8 * accumulate
    assert torch.equal(second.layer.weight, whole.layer.weight)
    epochs = rows_data(corpus, cut).train_rows.epochs
    assert epochs.locate(2 * 8 * accumulate)[0] > epochs.locate(2 * 4 * accumulate)[0] >= 1


def test_a_run_that_is_stopped_between_saves_goes_on_from_the_save(corpus, tmp_path):
    whole = train(rows_data(corpus), 8, tmp_path)
    path = tmp_path / "at3.ckpt"
    train(rows_data(corpus), 7, tmp_path, (3, path))
    again = train(rows_data(corpus), 8, tmp_path, None, path)
    same(again.seen, whole.seen[3:])


def test_a_resumed_run_may_be_cut_up_otherwise(corpus, tmp_path):
    whole = train(rows_data(corpus), 8, tmp_path)
    path = tmp_path / "at4.ckpt"
    train(rows_data(corpus), 4, tmp_path, (4, path))
    data = rows_data(corpus, Cut(rows_per_batch=1))
    data.load_state_dict(torch.load(path, weights_only=True)["RowsData"])
    rows = [row for batch in data.train_dataloader() for row in batch["ids"]]
    expected = [row for batch in whole.seen[4:] for row in batch["ids"]]
    assert not rows, "8 steps of 1 row are 8 rows: all of them are trained on"
    data.batches = 16
    rows = [row for batch in data.train_dataloader() for row in batch["ids"]]
    assert all(torch.equal(a, b) for a, b in zip(rows, expected, strict=True))


def test_every_document_is_seen_in_every_epoch(corpus):
    data = rows_data(corpus, steps=40)
    epochs = data.train_rows.epochs
    first, second = len(epochs.plan(0)), len(epochs.plan(1))
    assert epochs.locate(first - 1) == (0, first - 1)
    assert epochs.locate(first) == (1, 0)
    assert epochs.locate(first + second) == (2, 0)
    for epoch, begin, count in ((0, 0, first), (1, first, second)):
        rows = [data.train_rows[i] for i in range(begin, begin + count)]
        plan = epochs.plan(epoch)
        assert sum(int((r["ids"] == EOD).sum()) for r in rows) == len(plan.order), epoch
        shown = {piece.document for r in range(count) for piece in plan.row(r)}
        assert shown == set(range(len(data.train_rows.stock.shards))), epoch


def weighted(corpus, tmp_path, **weights):
    """The same shards, with weights in their manifest."""
    folder = tmp_path / "shards"
    shutil.copytree(corpus / "run" / "shards", folder)
    write_manifest(folder, {**read_manifest(folder), "weights": weights})
    recipe = toy_recipe(corpus / "d", corpus / "run", train={"steps": 8, "evaluate_rows": 3})
    return RowsData(folder, VOCABULARY, arrangements(recipe, VOCABULARY), recipe, Cut())


def test_weights_count_in_training_only(corpus, tmp_path):
    label = open_shards(corpus / "run" / "shards", "valid").document(0).source.split("/")[0]
    data, plain = weighted(corpus, tmp_path, **{label: 2.5}), rows_data(corpus)
    seen = [len(data.train_rows.epochs.plan(epoch).layouts) for epoch in range(2)]
    documents = len(plain.train_rows.stock.shards)
    assert sum(seen) == 5 * documents and data_summary(data).seen == seen[0]
    assert str(data_summary(data)).startswith(f"{documents} documents seen {seen[0]} times, ")
    same(list(data.val_dataloader()), list(plain.val_dataloader()))


def test_validation_documents_that_fit_are_whole(corpus):
    data = rows_data(corpus, Cut(context=64))
    plan = data.valid_rows.epochs.plan(0)
    assert plan.layouts.document.tolist() == list(range(len(data.valid_rows.stock.shards)))
    assert not (plan.cut & (plan.layouts.lengths <= 64)).any()
    assert not data.valid_rows.epochs.fill and data.train_rows.epochs.fill


def test_epochs_that_are_known_are_not_planned_again(corpus):
    data = rows_data(corpus)
    data.train_rows.epochs.locate(100)
    counts = list(data.train_rows.epochs.counts)
    fresh = rows_data(corpus)
    fresh.load_state_dict({"rows": 100, "epochs": counts})
    place = fresh.train_rows.epochs.locate(100)
    assert place == data.train_rows.epochs.locate(100) and not fresh.train_rows.epochs.plans
    assert torch.equal(fresh.train_rows[100]["ids"], data.train_rows[100]["ids"])


def test_devices_share_a_batch_without_overlap():
    one = list(Batches(rows=4, start=3, stop=5))
    two = [list(Batches(rows=2, start=3, stop=5, rank=r, devices=2)) for r in range(2)]
    assert [a + b for a, b in zip(*two, strict=True)] == one == [[12, 13, 14, 15], [16, 17, 18, 19]]


def test_validation_rows_never_change(corpus, tmp_path):
    first, second = (train(rows_data(corpus), steps, tmp_path) for steps in (4, 8))
    count = len(first.valid)
    assert 0 < sum(len(b["ids"]) for b in first.valid) <= 3
    same(second.valid[:count], first.valid)
    same(second.valid[count:], first.valid)


def test_no_validation_documents_no_validation(corpus, tmp_path):
    recipe = toy_recipe(corpus / "d", tmp_path / "run", validation=0)
    folder = prepare(recipe, progress=False).folder
    assert (
        RowsData(folder, VOCABULARY, arrangements(recipe, VOCABULARY), recipe, Cut()).val_dataloader() == []
    )


def test_rows_travel_to_workers_without_tokenizers(corpus):
    data = rows_data(corpus)
    sent = pickle.dumps(data.train_rows)
    assert b"toys" not in sent and b"letters" in sent
    assert torch.equal(pickle.loads(sent)[3]["ids"], data.train_rows[3]["ids"])


def test_the_summary_says_what_an_epoch_is(corpus):
    data = rows_data(corpus)
    summary = data_summary(data)
    plan = data.train_rows.epochs.plan(0)
    assert (summary.documents, summary.rows) == (len(data.train_rows.stock.shards), len(plan))
    assert summary.tokens == sum(int((data.train_rows[i]["document"] >= 0).sum()) for i in range(len(plan)))
    assert summary.utilisation == pytest.approx(summary.tokens / (CONTEXT * summary.rows))
    assert "rows an epoch" in str(summary) and "documents cut into windows" in str(summary)


def test_a_damaged_shard_stops_a_run_before_it_starts(corpus, tmp_path):
    recipe = toy_recipe(corpus / "d", tmp_path / "run")
    shard = prepare(recipe, progress=False).folder / "train-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:50])
    with pytest.raises(UserError, match="the shard is damaged: 50 of"):
        RowsData(shard.parent, VOCABULARY, arrangements(recipe, VOCABULARY), recipe, Cut())
