"""Adapters: they alone learn and are saved, their run is like any other, and they can be merged."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_finetune import IDS, adapters, message, recipe, vocabulary

from multimodal_gpt.cli import main
from multimodal_gpt.generation.session import load
from multimodal_gpt.model import lora
from multimodal_gpt.recipe.load import load_recipe
from multimodal_gpt.training.checkpoint import load_weights
from multimodal_gpt.training.initial import begin
from multimodal_gpt.training.merge import merge
from multimodal_gpt.training.run import train

pytestmark = pytest.mark.usefixtures("kept_workers")


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
