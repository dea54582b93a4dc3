"""Going on from a trained run: what it knew is kept, what is new learns, and only what learnt is saved."""

import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_corpus import BEATS, LETTERS, write_corpus

from multimodal_gpt.cli import main
from multimodal_gpt.data.prepare import prepare
from multimodal_gpt.data.shards import open_shards
from multimodal_gpt.errors import UserError
from multimodal_gpt.generation.session import load
from multimodal_gpt.model import lora
from multimodal_gpt.recipe.estimate import path_problems, survey
from multimodal_gpt.recipe.load import load_recipe
from multimodal_gpt.recipe.schema import Recipe
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.vocabulary import Vocabulary
from multimodal_gpt.training import run as training
from multimodal_gpt.training.checkpoint import load_weights
from multimodal_gpt.training.initial import begin, matching
from multimodal_gpt.training.merge import merge
from multimodal_gpt.training.run import train

pytestmark = pytest.mark.usefixtures("kept_workers")
ROOT = Path(__file__).resolve().parent.parent
IDS = torch.tensor([[1, 16, 17, 18, 19, 3, 2, 1, 16, 18, 3, 2]])
LEARNER = f"""
from pathlib import Path
from multimodal_gpt.stream.plugins import load_module
Letters = load_module({LETTERS!r}).Letters

def fit(contents, folder, most=9, known=None):
    letters = sorted(set("".join(contents)))[:most] or list("abcde")
    (folder / "known.letters").write_text("".join(letters))
    return {{"known": "file:known.letters"}}

def build(most=9, known=None):
    return Letters(Path(known).read_text() if known else "abcde")
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with two corpora and a run `home` that has learnt the letters of the first: b, c, d and e."""
    home = tmp_path_factory.mktemp("home")
    (home / "learner.py").write_text(LEARNER)
    write_corpus(home / "old", 30)
    for file in (home / "old").glob("*.letters"):
        file.write_text(file.read_text().replace("a", "b") + "cde")
    write_corpus(home / "new", 30, seed=2)
    words = {"letters": {"plugin": str(home / "learner.py")}}
    train(recipe(home, home / "home", tokenizers=words, init_from=None, data=data(home, "old")))
    return home


def data(home: Path, corpus: str) -> dict:
    return {"folders": [str(home / corpus)], "validation": 0.2, "workers": 1}


def recipe(home: Path, folder: Path, **sections) -> Recipe:
    """The recipe of a run that goes on from `home` with the second corpus and a new modality, beats."""
    model = {"depth": 2, "width": 32, "heads": 2, "context": 64}
    settings = {"steps": 8, "tokens_per_step": 128, "evaluate_every": 4, "evaluate_rows": 2, "log_every": 1}
    words = {"letters": {"plugin": str(home / "learner.py")}, "beats": {"plugin": BEATS}}
    asked = sections.pop("train", {})
    values = {
        "run": str(folder),
        "init_from": str(home / "home"),
        "tokenizers": words,
        "data": {**data(home, "new"), "shards": str(home / "shards")},
        "model": model,
        "train": {**settings, "device": "cpu", "threads": 1, **asked},
    }
    return Recipe.model_validate({**values, **sections})


def adapters(**settings) -> dict:
    return {"lora": {"rank": 2, **settings}, "learning_rate": 1e-2}


def vocabulary(wanted: Recipe) -> Vocabulary:
    return Vocabulary.load(prepare(wanted).folder)


def message(action, *arguments) -> str:
    with pytest.raises(UserError) as error:
        action(*arguments)
    line = str(error.value)
    assert "\n" not in line
    return line


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


# Adapters


def test_adapters_change_nothing_before_they_learn(home, tmp_path):
    wanted = recipe(home, tmp_path / "run")
    words = vocabulary(wanted)
    plain = begin(wanted, words)
    adapted = begin(recipe(home, tmp_path / "run", train=adapters()), words)
    assert torch.equal(adapted.net(IDS), plain.net(IDS))
    assert set(plain.net.state_dict()) < set(adapted.net.state_dict())
    assert len(lora.deltas(adapted.net)) == 2 * 2 * 6, "two matrices for six layers in each of two blocks"


def test_only_adapters_and_new_rows_learn(home, tmp_path):
    wanted = recipe(home, tmp_path / "run", train=adapters(targets=["q_proj", "blocks.1.mlp"]))
    words = vocabulary(wanted)
    start = begin(wanted, words)
    net = start.net
    learning = {name for name, p in net.named_parameters() if p.requires_grad}
    layers = (
        "blocks.0.attention.q_proj",
        "blocks.1.attention.q_proj",
        *(f"blocks.1.mlp.{x}_proj" for x in ("up", "down")),
    )
    assert learning == {
        "embedding.weight",
        *(f"{layer}.lora_{way}" for layer in layers for way in ("up", "down")),
    }
    net.loss(net(IDS), IDS).backward()
    assert {name for name, p in net.named_parameters() if p.grad is not None} == learning
    touched = net.embedding.weight.grad.abs().sum(1) > 0
    assert not touched[: start.origin.ids].any()
    assert touched[start.origin.ids : words.size].all()
    counted = sum(p.numel() for n, p in net.named_parameters() if n in learning and n != "embedding.weight")
    assert start.learning == counted + net.embedding.weight[start.origin.ids :].numel()


def test_merged_weights_do_the_same(home, tmp_path):
    wanted = recipe(home, tmp_path / "run", train=adapters(alpha=6))
    net = begin(wanted, vocabulary(wanted)).net.eval()
    for value in lora.deltas(net).values():
        torch.nn.init.normal_(value, std=0.3)
    weights = {n: w for n, w in net.state_dict().items() if "lora" not in n}
    whole = lora.merged(weights, lora.deltas(net), scale=3.0)
    plain = begin(recipe(home, tmp_path / "run"), vocabulary(wanted)).net.eval()
    unadapted = plain(IDS)
    plain.load_state_dict(whole)
    assert torch.allclose(plain(IDS), net(IDS), atol=1e-5)
    assert not torch.allclose(unadapted, net(IDS), atol=1e-1)


@pytest.fixture(scope="module")
def adapted(home) -> Path:
    """A run that trained adapters and the rows of a new modality."""
    return train(recipe(home, home / "adapted", train=adapters())).folder


def test_only_deltas_are_saved(home, adapted):
    assert not (adapted / "model.safetensors").exists()
    saved = load_file(adapted / "lora.safetensors")
    assert {name.rpartition(".")[2] for name in saved} == {"lora_down", "lora_up", "new_rows"}
    assert (adapted / "lora.safetensors").stat().st_size < (
        home / "home" / "model.safetensors"
    ).stat().st_size / 2
    info = json.loads((adapted / "checkpoint.json").read_text())
    base = json.loads((home / "home" / "checkpoint.json").read_text())
    assert info["origin"] == {"run": str(home / "home"), "sha256": base["sha256"], "step": 8, "ids": 21}
    card = (adapted / "README.md").read_text()
    assert (
        f"| began from | `{home / 'home'}`, step 8, `{base['sha256'][:16]}`, with adapters of rank 2 |"
        in card
    )
    assert "needs it to generate" in card


def test_a_run_with_adapters_is_a_run_like_any_other(home, adapted, capsys):
    loaded, base = load_weights(adapted), load_weights(home / "home")
    assert set(loaded.net.state_dict()) == set(base.net.state_dict()), "merged in memory"
    state = torch.load(adapted / "resume.ckpt", weights_only=True)["state_dict"]
    first = base.vocabulary.size
    assert torch.equal(loaded.net.embedding.weight[:first], base.net.embedding.weight[:first])
    assert torch.equal(loaded.net.embedding.weight, state["net.embedding.weight"])
    layer = "net.blocks.1.mlp.up_proj"
    learnt = state[f"{layer}.weight"] + 8 * state[f"{layer}.lora_up"] @ state[f"{layer}.lora_down"]
    assert torch.allclose(loaded.net.blocks[1].mlp.up_proj.weight, learnt, atol=1e-6)
    assert not torch.equal(learnt, base.net.blocks[1].mlp.up_proj.weight)
    (piece,) = load(adapted).generate(to="beats", letters="bcd", max_tokens=20)
    assert piece.document.modalities
    with pytest.raises(SystemExit):
        main(["inspect", str(adapted)])
    assert f"{home / 'home'}, step 8" in capsys.readouterr().out


def test_the_base_is_found_beside_the_run(home, adapted, tmp_path):
    shutil.copytree(home / "home", tmp_path / "home")
    shutil.copytree(adapted, tmp_path / "adapted")
    describe(tmp_path / "adapted", run="/elsewhere/home")
    assert torch.equal(load_weights(tmp_path / "adapted").net(IDS), load_weights(adapted).net(IDS))


def describe(folder: Path, **origin) -> None:
    info = json.loads((folder / "checkpoint.json").read_text())
    info["origin"] |= origin
    (folder / "checkpoint.json").write_text(json.dumps(info))


def test_a_missing_base_is_named(adapted, tmp_path):
    shutil.copytree(adapted, tmp_path / "run")
    describe(tmp_path / "run", run="/elsewhere/base")
    assert message(load_weights, tmp_path / "run") == (
        f"{tmp_path}/run: needs the run that it began from: /elsewhere/base "
        "(put it there or beside run; `mmgpt merge` makes a run that needs no other)"
    )


def test_another_base_is_refused(home, adapted, tmp_path):
    shutil.copytree(adapted, tmp_path / "run")
    longer = load_recipe(home / "home", [f"run={tmp_path}/home", "train.steps=2"])
    describe(tmp_path / "run", run=str(train(longer).folder))
    assert "(it is at step 2 now, not 8; put the old one back, or train again)" in message(
        load_weights, tmp_path / "run"
    )


@pytest.mark.parametrize("origin", [{"ids": 3}, {"ids": "x"}, {"more": 1}])
def test_a_damaged_origin_is_named(adapted, tmp_path, origin):
    shutil.copytree(adapted, tmp_path / "run")
    describe(tmp_path / "run", **origin)
    assert "lora.safetensors: " in message(load_weights, tmp_path / "run")


def test_merging_makes_a_run_that_needs_no_other(home, adapted, tmp_path):
    alone = merge(adapted, tmp_path / "alone")
    assert torch.equal(load_weights(alone).net(IDS), load_weights(adapted).net(IDS))
    assert load_weights(alone).recipe.init_from is None
    assert "needs it to generate" not in (alone / "README.md").read_text()
    assert str(home / "home") in (alone / "README.md").read_text()
    assert (alone / "metrics.csv").read_text() == (adapted / "metrics.csv").read_text()
    assert "holds something already (name a new folder with --out)" in message(merge, adapted, alone)
    assert message(merge, alone, tmp_path / "again") == (
        f"{alone}: holds all its weights: there is nothing to merge"
    )


def test_adapters_on_adapters(home, adapted, tmp_path):
    second = train(recipe(home, tmp_path / "second", init_from=str(adapted), train=adapters())).folder
    alone = merge(second, tmp_path / "alone")
    assert torch.equal(load_weights(alone).net(IDS), load_weights(second).net(IDS))
    assert load_weights(second).info["origin"]["run"] == str(adapted)
    assert "new_rows" not in load_file(second / "lora.safetensors"), "no id is new to the run before"


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
