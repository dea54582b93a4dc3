"""Going on from a trained run: what it knew is kept, what is new learns, and what is frozen stays."""

import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_corpus import BEATS
from toy_finetune import IDS, adapters, data, message, recipe, vocabulary

from multimodal_gpt.cli import main
from multimodal_gpt.data.prepare import prepare
from multimodal_gpt.data.shards import open_shards
from multimodal_gpt.recipe.estimate import path_problems, survey
from multimodal_gpt.recipe.load import load_recipe
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.vocabulary import Vocabulary
from multimodal_gpt.training import run as training
from multimodal_gpt.training.checkpoint import load_weights
from multimodal_gpt.training.initial import begin, matching
from multimodal_gpt.training.run import train

pytestmark = pytest.mark.usefixtures("kept_workers")
ROOT = Path(__file__).resolve().parent.parent


# Growth


def test_old_ids_keep_their_meaning_and_their_logits(home, tmp_path):
    wanted = recipe(home, tmp_path / "run")
    grown, base = vocabulary(wanted), load_weights(home / "home")
    assert grown.names == ("letters", "beats")
    assert grown.range("letters") == base.vocabulary.range("letters")
    assert grown.tokenizer("letters").letters == "bcde", "learnt from the first corpus; the second has an a"
    torch.manual_seed(9)
    net = begin(wanted, grown).net.eval()
    before, after = (n.logits(n(IDS)) for n in (base.net, net))
    assert torch.equal(net(IDS), base.net(IDS))
    assert torch.equal(after[..., : base.vocabulary.size], before[..., : base.vocabulary.size])
    rows, old = net.embedding.weight, base.net.embedding.weight
    changed = (rows != old).any(1).nonzero().flatten()
    assert changed.tolist() == list(range(base.vocabulary.size, grown.size)), "rows without an id stay too"


def test_a_table_grows_beyond_its_padding(home, tmp_path):
    words = {"letters": {"plugin": str(home / "learner.py")}, "beats": {"plugin": BEATS, "places": 90}}
    wanted = recipe(home, tmp_path / "run", tokenizers=words)
    words = Vocabulary([*load_weights(home / "home").vocabulary.modalities], home / "home")
    grown = words.grow(Modality("beats", BEATS, {"places": 90}))
    net, base = begin(wanted, grown).net, load_weights(home / "home").net
    assert grown.table_size == len(net.embedding.weight) == 128
    assert torch.equal(net.embedding.weight[: words.size], base.embedding.weight[: words.size])
    assert torch.equal(net(IDS), base(IDS))


def test_learnt_tokenizers_are_not_learnt_anew(home, tmp_path):
    wanted = recipe(home, tmp_path / "run")
    shards = open_shards(prepare(wanted).folder, "train")
    ids = [s.ids for i in range(len(shards)) for s in shards.segments(i) if s.modality == "letters"]
    assert ids
    assert max(map(max, ids)) < 4
    alone = recipe(home, tmp_path / "alone", init_from=None, data=data(home, "new"))
    assert vocabulary(alone).tokenizer("letters").letters == "abcde"


def test_shards_change_with_what_the_run_began_from(home, tmp_path):
    base, run = tmp_path / "base", tmp_path / "run"
    shutil.copytree(home / "home", base)
    wanted = recipe(home, run, init_from=str(base), data=data(home, "new"))
    first = prepare(wanted)
    assert prepare(wanted).cached == first.cached
    before = (first.folder / "manifest.json").read_text()
    other = Vocabulary.load(base)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letters.known.letters").write_text("edcb")
    Vocabulary(other.modalities, tmp_path / "other").save(base)
    prepare(wanted)
    assert (first.folder / "manifest.json").read_text() != before


# What does not fit


def test_another_order_of_modalities_is_refused(home, tmp_path):
    words = {"beats": {"plugin": BEATS}, "letters": {"plugin": str(home / "learner.py")}}
    line = message(prepare, recipe(home, tmp_path / "run", tokenizers=words))
    assert line == (
        "tokenizers: beats, letters do not begin with those of the run: letters "
        "(leave `tokenizers` to the run, new ones aside)"
    )


def test_other_options_are_refused_with_what_differs(home, tmp_path):
    words = {"letters": {"plugin": str(home / "learner.py"), "most": 3}}
    line = message(prepare, recipe(home, tmp_path / "run", tokenizers=words))
    assert line.startswith(
        "tokenizers.letters: differs from the run that it begins from: most: absent -> 3 ("
    )


def test_another_shape_is_refused_but_not_another_context(home, tmp_path):
    model = {"depth": 2, "width": 64, "heads": 2, "context": 128, "dropout": 0.1}
    wanted = recipe(home, tmp_path / "run", model=model)
    line = message(begin, wanted, vocabulary(wanted))
    assert "home: its model has another shape: width: 32 -> 64; mlp_hidden" in line
    assert [str(p) for p in survey(wanted)[1]] == [line]  # what `mmgpt validate` says
    fitting = recipe(home, tmp_path / "run", model={**model, "width": 32})
    assert begin(fitting, vocabulary(fitting)).net.config.context == 128


def test_ids_that_mean_other_things_are_refused(home, tmp_path):
    wanted = recipe(home, tmp_path / "run", init_from=None, data=data(home, "new"))
    other = vocabulary(wanted)
    again = recipe(home, tmp_path / "run")
    line = message(begin, again, other)
    assert "home: means other things by its ids: letters." in line


def test_a_run_that_is_not_there_is_named(home, tmp_path):
    wanted = recipe(home, tmp_path / "run", init_from=str(tmp_path / "nowhere"))
    assert "nowhere" in message(prepare, wanted)
    assert "init_from: there is no trained run" in message(
        load_recipe, ROOT / "recipes/finetune.yaml", ["init_from=no"]
    )


def test_a_run_of_an_older_format_is_told_before_anything_is_trained(home, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(home / "home", old)
    info = json.loads((old / "checkpoint.json").read_text("utf-8"))
    (old / "checkpoint.json").write_text(json.dumps({**info, "format": 1}), "utf-8")
    problems = path_problems(recipe(home, tmp_path / "run", init_from=str(old), data=data(home, "new")))
    assert [str(p) for p in problems if "format" in p.what] == [
        f"init_from: {old}/checkpoint.json: is of format 1, this version reads 2 (train again)"
    ]


def test_a_run_does_not_begin_from_itself(home, tmp_path):
    load_recipe(home / "home")
    text = "init_from: is the folder of this run itself (give the new one its own: run=...)"
    assert text in message(load_recipe, home / "home", [f"init_from={home}/home"])


def test_adapters_need_a_run_to_adapt(home):
    line = message(load_recipe, home / "home", ["train.lora.rank=2"])
    assert "train.lora.rank: there is no trained run to adapt (name one: init_from=RUN)" in line


# Freezing


def test_frozen_weights_stay_bit_for_bit(home, tmp_path):
    frozen = ["embedding", "blocks.0", "q_proj", "*_norm"]
    folder = train(recipe(home, tmp_path / "run", train={"freeze": frozen})).folder
    before, after = (load_file(f / "model.safetensors") for f in (home / "home", folder))
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"embedding.weight", "norm.weight"} | {
        f"blocks.1.{name}.weight"
        for name in (
            "attention.k_proj",
            "attention.v_proj",
            "attention.o_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        )
    }
    ids = load_weights(home / "home").vocabulary.size
    assert torch.equal(before["embedding.weight"][:ids], after["embedding.weight"][:ids])
    assert not torch.equal(before["embedding.weight"][ids:], after["embedding.weight"][ids:]), (
        "new rows learn"
    )


def test_patterns_fit_parts_of_names():
    names = ["blocks.1.norm.weight", "blocks.10.norm.weight", "norm.weight", "blocks.1.attention_norm.weight"]
    assert matching(["blocks.1"], names, "") == [names[0], names[3]]
    assert matching(["norm"], names, "") == names[:3]
    assert matching(["*norm"], names, "") == names
    assert matching(["blocks.[!1]*"], [*names, "blocks.2.x"], "") == ["blocks.2.x"]
    assert matching([], names, "") == []


def test_a_pattern_that_fits_nothing_is_refused(home, tmp_path):
    wanted = recipe(home, tmp_path / "run", train={"freeze": ["blocks.0", "blocks.7"]})
    line = message(begin, wanted, vocabulary(wanted))
    assert line.startswith(
        "train.freeze: 'blocks.7' fits no weights (parts of names: embedding, weight, blocks, "
    )
    wanted = recipe(home, tmp_path / "run", train=adapters(targets=["embedding"]))
    assert "train.lora.targets: 'embedding' fits no weights (" in message(begin, wanted, vocabulary(wanted))


def test_freezing_everything_is_refused(home, tmp_path):
    words = {"letters": {"plugin": str(home / "learner.py")}}
    wanted = recipe(home, tmp_path / "run", tokenizers=words, train={"freeze": ["*"]}, data=data(home, "new"))
    assert (
        message(begin, wanted, vocabulary(wanted)) == "train.freeze: nothing is left to train (freeze less)"
    )


# Going on


@contextmanager
def stopping(total: int, label: str) -> Iterator[object]:
    """A progress line that hears Ctrl-C at step 4."""

    class Bar:
        step = 0

        def advance(self, n: int, note: str = "") -> None:
            self.step += n
            if self.step == 4:
                signal.raise_signal(signal.SIGINT)

    yield Bar()


@pytest.mark.parametrize(
    "settings", [{}, adapters(), {"freeze": ["blocks.0"]}], ids=["all", "lora", "freeze"]
)
def test_eight_steps_are_four_and_four(home, tmp_path, settings, monkeypatch):
    straight = train(recipe(home, tmp_path / "straight", train=settings)).folder
    halves = recipe(home, tmp_path / "halves", train=settings)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(training, "progress", stopping)
        train(halves)
    assert load_weights(tmp_path / "halves").info["step"] == 4
    train(halves)
    name = "lora.safetensors" if "lora" in settings else "model.safetensors"
    one, two = (load_file(folder / name) for folder in (straight, tmp_path / "halves"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_run_goes_on_only_from_where_it_began(home, tmp_path):
    shutil.copytree(home / "home", tmp_path / "base")
    wanted = recipe(home, tmp_path / "run", init_from=str(tmp_path / "base"))
    train(wanted)
    moved = recipe(home, tmp_path / "run", train={"steps": 9})
    assert train(moved).step == 9, "the same weights elsewhere"
    more = load_recipe(tmp_path / "base", [f"run={tmp_path}/base", "train.steps=9"])
    train(more)
    line = message(
        train, recipe(home, tmp_path / "run", init_from=str(tmp_path / "base"), train={"steps": 10})
    )
    assert "run: the run in init_from does not hold the weights that this one began from (" in line


def test_a_fine_tuned_run_outlives_what_it_began_from(home, tmp_path):
    shutil.copytree(home / "home", tmp_path / "base")
    folder = train(recipe(home, tmp_path / "run", init_from=str(tmp_path / "base"))).folder
    shutil.rmtree(tmp_path / "base")
    assert load_weights(folder).vocabulary.names == ("letters", "beats")


# From the command line


def test_one_line_fine_tunes(home, tmp_path, capsys):
    words = [
        "train",
        str(ROOT / "recipes/finetune.yaml"),
        f"init_from={home}/home",
        f"data.folders=[{home}/new]",
    ]
    small = [
        "train.steps=2",
        "train.tokens_per_step=128",
        "train.threads=1",
        "data.workers=1",
        "data.validation=0.2",
    ]
    with pytest.raises(SystemExit) as leaving:
        main([*words, *small, f"run={tmp_path}/run"])
    assert not leaving.value.code
    out = capsys.readouterr().out
    assert f"from    {home}/home, step 8; " in out
    loaded = load_weights(tmp_path / "run")
    assert loaded.recipe.model == load_weights(home / "home").recipe.model
    assert loaded.vocabulary.names == ("letters",)
    with pytest.raises(SystemExit):
        main([*words, *small, f"run={tmp_path}/lora", "train.lora.rank=2"])
    with pytest.raises(SystemExit) as leaving:
        main(["merge", f"{tmp_path}/lora", "--out", f"{tmp_path}/merged"])
    assert not leaving.value.code
    assert torch.equal(load_weights(tmp_path / "merged").net(IDS), load_weights(tmp_path / "lora").net(IDS))


def test_a_recipe_takes_from_the_run_what_it_does_not_say(home):
    path = ROOT / "recipes/finetune.yaml"
    begins = f"init_from={home}/home"
    silent = load_recipe(path, [begins])
    base = load_recipe(home / "home")
    assert (silent.tokenizers, silent.model, silent.arrangements) == (
        base.tokenizers,
        base.model,
        base.arrangements,
    )
    grown = load_recipe(path, [begins, f"tokenizers.beats.plugin={BEATS}", "model.dropout=0.1"])
    assert list(grown.tokenizers) == ["letters", "beats"]
    assert grown.model == base.model.model_copy(update={"dropout": 0.1})
