"""A run folder: saved and loaded whole, every damage named, nothing unpickled."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from multimodal_gpt.errors import UserError
from multimodal_gpt.model.gpt import GPT, gpt_config
from multimodal_gpt.recipe.load import load_recipe
from multimodal_gpt.recipe.schema import Recipe
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.vocabulary import Vocabulary
from multimodal_gpt.training import checkpoint
from multimodal_gpt.training.checkpoint import OWN, load_weights, read_resume, save_run

TOYS = Path(__file__).parent / "toys"
MODALITIES = [Modality(name, str(TOYS / f"{name}.py")) for name in ("letters", "beats")]
FILES = ("model.safetensors", "checkpoint.json", "vocabulary.json", "recipe.yaml")


def recipe(width: int = 32, names: tuple[str, ...] = ("letters", "beats")) -> Recipe:
    tokenizers = {m.name: {"plugin": m.plugin} for m in MODALITIES if m.name in names}
    return Recipe(tokenizers=tokenizers, model={"depth": 1, "width": width, "heads": 2, "context": 32})


def save(folder: Path, step: int = 7, seed: int = 0, width: int = 32) -> GPT:
    vocabulary = Vocabulary(MODALITIES)
    torch.manual_seed(seed)
    net = GPT(gpt_config(recipe(width).model, vocabulary.table_size))
    save_run(folder, net, vocabulary, recipe(width), {"step": step, "tokens": 100 * step})
    return net


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "run")
    return tmp_path / "run"


class Bomb:
    """Unpickling it raises the alarm."""

    def __reduce__(self):
        return alarm, ()


def alarm():
    raise AssertionError("code in a file was run")


def message(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        load_weights(folder)
    line = str(error.value)
    assert "\n" not in line
    return line


def test_save_and_load_give_the_same(tmp_path):
    net = save(tmp_path)
    loaded = load_weights(tmp_path)
    ids = torch.arange(12)[None]
    assert torch.equal(loaded.net(ids), net.eval()(ids))
    assert not loaded.net.training
    assert loaded.vocabulary.names == ("letters", "beats")
    assert (loaded.info["step"], loaded.info["tokens"]) == (7, 700)
    assert loaded.recipe == recipe()
    assert not list(tmp_path.glob("*.partial"))


def test_loading_draws_no_random_numbers(folder):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load_weights(folder)
    assert torch.equal(torch.rand(1), expected)


def test_saving_again_replaces(folder):
    net = save(folder, step=8, seed=1)
    loaded = load_weights(folder)
    assert loaded.info["step"] == 8
    assert torch.equal(loaded.net.embedding.weight, net.embedding.weight)


@pytest.mark.parametrize("moment", ["json", "weights"])
def test_a_crash_while_saving_leaves_one_whole_checkpoint(folder, monkeypatch, moment):
    old = load_weights(folder).net.embedding.weight

    def crash(*_):
        raise KeyboardInterrupt

    if moment == "json":
        monkeypatch.setattr(checkpoint, "_write_json", crash)
    else:
        monkeypatch.setattr(Path, "replace", lambda *_: None)  # not even the weights' new name is on the disk
        monkeypatch.setattr(checkpoint, "write_text", lambda path, content: path.write_text(content))
        monkeypatch.setattr(checkpoint, "save_recipe", lambda *_: None)
    try:
        save(folder, step=8, seed=1)
    except KeyboardInterrupt:
        assert moment == "json"
    monkeypatch.undo()
    loaded = load_weights(folder)
    assert (loaded.info["step"], loaded.info["tokens"]) == (7, 700)
    assert torch.equal(loaded.net.embedding.weight, old)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert message(folder).startswith(f"{folder / name}: the file is missing (")


def test_a_missing_folder_is_named(tmp_path):
    assert (
        message(tmp_path / "no")
        == f"{tmp_path}/no/checkpoint.json: the file is missing (there is no such folder)"
    )


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_a_truncated_file_is_named(folder, name, keep):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(len(data) * keep)])
    assert name in message(folder)


def test_a_recipe_cut_anywhere_is_named(folder):
    lines = (folder / "recipe.yaml").read_text().splitlines(keepends=True)
    for kept in range(1, len(lines)):
        for end in ("", lines[kept][: len(lines[kept]) // 2]):
            (folder / "recipe.yaml").write_text("".join(lines[:kept]) + end)
            assert "recipe.yaml" in message(folder)
            with pytest.raises(UserError, match=r"^recipe\.yaml"):
                load_recipe(folder)  # as `mmgpt train RUN` does, to go on


@pytest.mark.parametrize(
    ("name", "place"),
    [
        *(("model.safetensors", p) for p in (0.001, 0.1, 0.5, 0.999)),
        ("vocabulary.json", 0.1),
        ("vocabulary.json", 0.5),
    ],
)
def test_a_changed_byte_is_noticed(folder, name, place):
    data = bytearray((folder / name).read_bytes())
    data[int(len(data) * place)] ^= 1
    (folder / name).write_bytes(data)
    assert name in message(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_pickle_is_never_loaded(folder, name):
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    assert name in message(folder)


def test_a_pickle_with_the_right_hash_is_no_safetensors_file(folder):
    torch.save({"embedding.weight": Bomb()}, folder / "model.safetensors")
    sign(folder)
    assert "model.safetensors: is not a safetensors file" in message(folder)


def sign(folder: Path) -> None:
    """Make `checkpoint.json` describe whatever weights are there."""
    info = json.loads((folder / "checkpoint.json").read_text())
    info["sha256"] = checkpoint.file_hash(folder / "model.safetensors")
    (folder / "checkpoint.json").write_text(json.dumps(info))


@pytest.mark.parametrize(
    "content", ["[]", "7", "{}", '{"format": 2}', '{"format": 2, "step": "7"}', "[" * 99999]
)
def test_json_of_another_kind_is_damage(folder, content):
    (folder / "checkpoint.json").write_text(content)
    assert "checkpoint.json: the file is damaged (copy it again" in message(folder)


@pytest.mark.parametrize(("number", "fix"), [(1, "train again"), (3, "upgrade")])
def test_other_formats_say_what_to_do(folder, number, fix):
    info = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps({**info, "format": number}))
    assert f"checkpoint.json: is of format {number}, this version reads 2 ({fix})" in message(folder)


@pytest.mark.parametrize("named", [None, "../other/model.safetensors", 7])
def test_weights_are_in_one_of_two_files(folder, named):
    info = json.loads((folder / "checkpoint.json").read_text())
    assert info.pop("weights") == "model.safetensors"
    (folder / "checkpoint.json").write_text(json.dumps(info | ({"weights": named} if named else {})))
    assert load_weights(folder).info["step"] == 7
    (folder / "checkpoint.json").write_text(json.dumps({**info, "weights": "lora.safetensors"}))
    assert "lora.safetensors: the file is missing (" in message(folder)


def test_deltas_that_are_whole_weights_are_damaged(folder):
    (folder / "model.safetensors").rename(folder / "lora.safetensors")
    info = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps({**info, "weights": "lora.safetensors"}))
    assert "lora.safetensors: is damaged: " in message(folder)


def test_weights_of_another_run_do_not_fit(folder, tmp_path):
    save(tmp_path / "other", seed=3)
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    assert "model.safetensors: is damaged or not the file that checkpoint.json describes" in message(folder)


def test_a_vocabulary_of_another_run_does_not_fit(folder, tmp_path):
    Vocabulary(MODALITIES[:1]).save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "vocabulary.json", folder)
    assert "vocabulary.json: belongs to other weights" in message(folder)


def test_a_recipe_of_another_run_does_not_fit(folder, tmp_path):
    save(tmp_path / "other", width=64)
    shutil.copy(tmp_path / "other" / "recipe.yaml", folder)
    assert (
        "checkpoint.json: does not match recipe.yaml: width is 32, not 64; mlp_hidden is 128, not 256"
        in message(folder)
    )


def test_weights_of_another_vocabulary_size_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    weights["embedding.weight"] = torch.zeros(128, 32)
    save_file(weights, folder / "model.safetensors")
    sign(folder)
    assert "embedding.weight is (128, 32), not (64, 32)" in message(folder)


def test_missing_and_extra_weights_are_named(folder):
    weights = load_file(folder / "model.safetensors")
    weights["extra"] = weights.pop("norm.weight")
    save_file(weights, folder / "model.safetensors")
    sign(folder)
    assert "norm.weight is missing, not (32,); extra is (32,), not there" in message(folder)


# resume.ckpt


def resume_message(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_resume(path)
    return str(error.value)


def test_resume_gives_back_what_was_saved(tmp_path):
    state = {
        "state_dict": {"w": torch.ones(3)},
        "loops": {},
        "optimizer_states": [],
        "callbacks": {},
        OWN: {"step": 3},
    }
    torch.save(state, tmp_path / "resume.ckpt")
    assert read_resume(tmp_path / "resume.ckpt")[OWN] == {"step": 3}


def test_a_damaged_resume_file_is_named(tmp_path):
    path = tmp_path / "resume.ckpt"
    assert resume_message(path).startswith(f"{path}: the file is missing (")
    torch.save({"state_dict": {"w": torch.ones(500)}}, path)
    assert resume_message(path).startswith(f"{path}: is not a checkpoint of ours (")
    path.write_bytes(path.read_bytes()[:900])
    assert resume_message(path).startswith(f"{path}: is damaged or not a checkpoint of ours (BadZipFile) (")
    path.write_bytes(b"")
    assert resume_message(path).startswith(f"{path}: is damaged or not a checkpoint of ours (")


def test_a_changed_byte_in_resume_is_noticed(tmp_path):
    path = tmp_path / "resume.ckpt"
    torch.save({"state_dict": {"w": torch.ones(5000)}}, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "resume.ckpt: is damaged" in resume_message(path)


@pytest.mark.parametrize(
    "dump", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))], ids=["zip", "plain"]
)
def test_a_pickle_posing_as_resume_is_never_run(tmp_path, dump):
    path = tmp_path / "resume.ckpt"
    dump({"state_dict": Bomb()}, path)
    assert resume_message(path).startswith(f"{path}: is damaged or not a checkpoint of ours (")
