"""Export: another library computes the same from the folder, and what it can't hold is refused."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from multimodal_gpt import exporting
from multimodal_gpt.cli import main
from multimodal_gpt.errors import UserError
from multimodal_gpt.exporting import apertus_names, export
from multimodal_gpt.model.gpt import GPT, GPTConfig, gpt_config
from multimodal_gpt.recipe.schema import Recipe
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.vocabulary import Vocabulary
from multimodal_gpt.training.checkpoint import load_weights, save_run

TOYS = Path(__file__).parent / "toys"
PLUGINS = {name: str(TOYS / f"{name}.py") for name in ("letters", "beats")}
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs transformers"
)


def save(folder: Path, **model: Any) -> Path:
    """A run with random weights, larger than initial ones so that every part of the network tells."""
    tokenizers = {name: {"plugin": plugin} for name, plugin in PLUGINS.items()}
    shape = {"depth": 3, "width": 64, "heads": 4, "kv_heads": 2, "context": 64, "clock": 0.0, **model}
    recipe = Recipe(tokenizers=tokenizers, model=shape)
    vocabulary = Vocabulary([Modality(name, plugin) for name, plugin in PLUGINS.items()])
    torch.manual_seed(1)
    net = GPT(gpt_config(recipe.model, vocabulary.table_size))
    for weight in net.parameters():
        torch.nn.init.uniform_(weight, -0.4, 0.4) if weight.ndim == 2 else torch.nn.init.uniform_(weight)
    return save_run(folder, net, vocabulary, recipe, {"step": 1, "tokens": 64})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return save(tmp_path / "run")


@needs_transformers
@pytest.mark.parametrize(
    "model", [{}, {"kv_heads": None}, {"kv_heads": 1, "rotary_base": 500.0, "dropout": 0.1}], ids=str
)
def test_transformers_gives_the_same_logits(tmp_path: Path, model: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    run = save(tmp_path / "run", **model)
    folder = export(run, "transformers", plugins=PLUGINS).folder
    theirs, notes = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(notes.values())
    ours = load_weights(run, plugins=PLUGINS).net
    ids = torch.randint(0, ours.config.vocabulary_size, (2, 64), generator=torch.manual_seed(0))
    with torch.no_grad():
        expected, found = ours.logits(ours(ids)), theirs(ids).logits
    assert expected.std() > 0.1, "logits that are all alike would prove nothing"
    assert torch.allclose(found, expected, atol=1e-5)
    assert theirs.num_parameters() == ours.parameter_count
    assert (theirs.generation_config.eos_token_id, theirs.generation_config.pad_token_id) == (2, 0)


@needs_transformers
def test_the_card_turns_files_into_ids(run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    folder = export(run, "transformers", tmp_path / "out", plugins=PLUGINS).folder
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    exec(code.replace('"..."', '"abba"'), {})
    # <doc> <letters> a b b a <end>, then what the model says; it ends early where that is <eod>
    assert json.loads(capsys.readouterr().out)[:7] == [1, 16, 17, 18, 18, 17, 3]


def test_the_folder_holds_all_there_is_to_say(run: Path) -> None:
    (run / "ranks.tiktoken").touch()  # not named by the vocabulary
    done = export(run, "transformers", plugins=PLUGINS)
    assert done.folder == run / "transformers"
    names = "README.md config.json generation_config.json model.safetensors vocabulary.json"
    assert sorted(p.name for p in done.folder.iterdir()) == sorted(done.files) == names.split()
    config = json.loads((done.folder / "config.json").read_text())
    assert (config["architectures"], config["hidden_act"]) == (["ApertusForCausalLM"], "gelu")
    assert "auto_map" not in config, "no code of ours is to run"
    weights = load_file(done.folder / "model.safetensors")
    assert set(weights) == set(apertus_names(3).values())
    assert sum(w.numel() for w in weights.values()) == done.parameters
    assert Vocabulary.load(done.folder, PLUGINS).names == ("letters", "beats")
    assert "| `beats` | 22 | 23 to 27 |" in (done.folder / "README.md").read_text()


def message(run: Path, to: str = "transformers", **options: Any) -> str:
    with pytest.raises(UserError) as error:
        export(run, to, plugins=PLUGINS, **options)
    return str(error.value)


def test_the_clock_is_refused(tmp_path: Path) -> None:
    run = save(tmp_path / "run", clock=0.5)
    assert message(run) == (
        f"{run}: model.clock is 0.5: rotary angles turn with musical time, which Apertus, its shape in "
        "transformers, can't hold (train with model.clock=0)"
    )
    assert not (run / "transformers").exists()


def test_what_later_models_may_have_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Later(GPTConfig):
        gate: bool = False

    net = load_weights(run, plugins=PLUGINS).net
    net.config = Later(**vars(net.config), gate=True)
    with pytest.raises(UserError, match=r"gate is True, which Apertus, .* can't hold \(train with False\)"):
        exporting._renamed(net, run)
    net.config = Later(**{**vars(net.config), "gate": False})
    net.extra = torch.nn.Linear(2, 2, bias=False)
    with pytest.raises(UserError, match=r"the model holds extra.weight, which Apertus"):
        exporting._renamed(net, run)


def test_nothing_is_overwritten(run: Path) -> None:
    folder = run / "transformers"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    assert message(run) == f"{folder}: is there already (name another --out, or add --force)"
    export(run, "transformers", plugins=PLUGINS, force=True)
    assert (folder / "mine.txt").read_text() == "mine"
    assert message(run, out=folder / "mine.txt", force=True).startswith(
        f"{folder}/mine.txt: is there already"
    )


def test_other_formats_are_named(run: Path) -> None:
    assert message(run, "transformer") == "--to: can't export to 'transformer' (did you mean 'transformers'?)"


def test_the_verb_says_what_it_wrote(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trust = [word for name, plugin in PLUGINS.items() for word in ("--plugin", f"{name}={plugin}")]
    words = ["export", str(run), "--to", "transformers", "--out", str(run / "x"), *trust]
    with pytest.raises(SystemExit) as leaving:
        main([*words, "--json"])
    assert leaving.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["folder"], told["files"][-1]) == (str(run / "x"), "config.json")
