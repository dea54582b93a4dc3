"""A trained run as a folder: weights, vocabulary, recipe, and what is needed to go on training exactly.

    model.safetensors  checkpoint.json  vocabulary.json (+ files it names)  recipe.yaml    to generate
    lora.safetensors   instead, where only adapters learnt: what is to be added to the weights of another run
    resume.ckpt                                                                            to train on

Nothing is unpickled: weights are safetensors, `resume.ckpt` is read with torch's `weights_only`.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from multimodal_gpt.errors import UserError
from multimodal_gpt.files import write_text
from multimodal_gpt.model import lora
from multimodal_gpt.model.gpt import GPT, gpt_config
from multimodal_gpt.recipe.load import load_recipe, save_recipe
from multimodal_gpt.recipe.schema import Recipe
from multimodal_gpt.stream.plugins import file_hash
from multimodal_gpt.stream.vocabulary import FILE_NAME as VOCABULARY
from multimodal_gpt.stream.vocabulary import Vocabulary, read_manifest
from multimodal_gpt.versions import CHECKPOINT_FORMAT, check_format

WEIGHTS, CHECKPOINT, RECIPE, RESUME = "model.safetensors", "checkpoint.json", "recipe.yaml", "resume.ckpt"
DELTAS = "lora.safetensors"
TABLE, NEW_ROWS = "embedding.weight", "embedding.new_rows"
COPY_AGAIN = "copy it again from where the run was trained, or train again"


@dataclass(frozen=True)
class Origin:
    """The run that another one began from: its folder, the hash of its weights, its step and its ids."""

    run: str
    sha256: str
    step: int
    ids: int


@dataclass(frozen=True, eq=False)
class Loaded:
    """A trained run: the network in eval mode, what its ids mean, its recipe, `checkpoint.json` as `info`."""

    net: GPT
    vocabulary: Vocabulary
    recipe: Recipe
    info: Mapping[str, Any]


def save_run(folder: Path, net: GPT, vocabulary: Vocabulary, recipe: Recipe, info: Mapping[str, Any]) -> Path:
    """Write everything that generating needs into `folder`; the reverse is `load_weights`.

    `info` is plain values and holds at least `step` and `tokens`, and `origin` where the run began from
    another one: with adapters, only what is to be added to that is written. After a crash at any moment the
    folder holds the old checkpoint or the new one: `checkpoint.json` describes both while the weights change
    places.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not _holds(folder, vocabulary):
        vocabulary.save(folder)
    save_recipe(recipe, folder / RECIPE)
    name, weights = WEIGHTS, dict(net.state_dict())
    about: dict[str, Any] = {"format": CHECKPOINT_FORMAT, "config": asdict(net.config)}
    about["fingerprint"] = vocabulary.fingerprint
    if recipe.train.lora.rank:
        name, weights = DELTAS, _deltas(net, vocabulary, Origin(**info["origin"]))
        about["scale"] = recipe.train.lora.alpha / recipe.train.lora.rank
    partial = folder / f"{name}.partial"
    save_file({key: weight.detach().cpu().contiguous() for key, weight in weights.items()}, partial)
    sync(partial)
    current = {"weights": name, "sha256": file_hash(partial), **info}
    _write_json(folder / CHECKPOINT, {**about, **current, "previous": _current(folder)})
    partial.replace(folder / name)
    return folder


def _deltas(net: GPT, vocabulary: Vocabulary, origin: Origin) -> dict[str, Tensor]:
    """What the adapters learnt, and the rows of ids that the origin does not know."""
    rows = {NEW_ROWS: net.embedding.weight[origin.ids :]} if vocabulary.size > origin.ids else {}
    return {**lora.deltas(net), **rows}


def _holds(folder: Path, vocabulary: Vocabulary) -> bool:
    try:
        return bool(read_manifest(folder / VOCABULARY)["fingerprint"] == vocabulary.fingerprint)
    except UserError:
        return False


def _current(folder: Path) -> dict[str, Any] | None:
    """What `checkpoint.json` says of the weights that are there now; None where there are none."""
    try:
        info = read_info(folder)
    except UserError:
        return None
    return {key: info[key] for key in ("sha256", "step", "tokens")}


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=1) + "\n")


def sync(path: Path) -> None:
    """Wait until a file is on the disk, so that renaming it cannot leave an empty one behind."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def read_info(folder: Path) -> dict[str, Any]:
    """`checkpoint.json` of a run, where it describes the weights that are there. Raises UserError."""
    path = folder / CHECKPOINT
    try:
        info = json.loads(path.read_bytes())
        check_format(info["format"], path)
        complete = all(isinstance(info[k], t) for k, t in _REQUIRED.items())
    except FileNotFoundError:
        fix = "a trained run has one; train first" if folder.is_dir() else "there is no such folder"
        raise UserError("the file is missing", path, fix) from None
    except OSError as error:
        raise UserError(f"can't be read: {error.strerror}", path) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        complete = False
    if not complete:
        raise UserError("the file is damaged", path, COPY_AGAIN)
    weights = weights_file(folder, info)
    if not weights.is_file():
        raise UserError("the file is missing", weights, COPY_AGAIN)
    return _matching(info, weights)


_REQUIRED = {"fingerprint": str, "config": dict, "sha256": str, "step": int, "tokens": int}


def weights_file(folder: Path, info: Mapping[str, Any]) -> Path:
    """Where the weights of a run are: all of them, or what is to be added to another run's."""
    return folder / (DELTAS if info.get("weights") == DELTAS else WEIGHTS)


def _matching(info: dict[str, Any], weights: Path) -> dict[str, Any]:
    digest = file_hash(weights)
    if info["sha256"] == digest:
        return info
    previous = info.get("previous")
    if isinstance(previous, dict) and previous.get("sha256") == digest:
        return {**info, **previous}
    raise UserError(f"is damaged or not the file that {CHECKPOINT} describes", weights, COPY_AGAIN)


def load_weights(
    folder: Path, device: torch.device | str = "cpu", plugins: Mapping[str, str] | None = None
) -> Loaded:
    """Open a trained run, the reverse of `save_run`.

    Args:
        folder: the run.
        device: where the weights go.
        plugins: modality -> plugin file of yours to use instead of the recorded one.

    Raises UserError naming the file where one is missing, damaged or does not fit the others.
    """
    folder = Path(folder)
    info = read_info(folder)
    if read_manifest(folder / VOCABULARY)["fingerprint"] != info["fingerprint"]:
        raise UserError("belongs to other weights", folder / VOCABULARY, COPY_AGAIN)
    recipe = _recipe(folder / RECIPE)
    vocabulary = Vocabulary.load(folder, plugins)
    config = gpt_config(recipe.model, vocabulary.table_size)
    if asdict(config) != info["config"]:
        what = f"does not match {RECIPE}: {_differences(info['config'], asdict(config))}"
        raise UserError(what, folder / CHECKPOINT, COPY_AGAIN)
    with _Unfilled():
        net = GPT(config)
    weights = read_weights(folder, info)
    _check_names(weights, net, weights_file(folder, info))
    net.load_state_dict(weights, assign=True)
    return Loaded(net.to(device).eval().requires_grad_(False), vocabulary, recipe, info)


class _Unfilled(TorchFunctionMode):
    """Weights that will be replaced are not drawn. Pages that nobody writes to take no memory; for those of
    the meta device torch imports its compiler, which takes two seconds.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else options["tensor"]
        return func(*args, **options)


def _recipe(path: Path) -> Recipe:
    if not path.is_file():
        raise UserError("the file is missing", path, COPY_AGAIN)
    try:
        return load_recipe(path)
    except UserError as error:
        raise error.within(path.parent) from error


def read_weights(folder: Path, info: Mapping[str, Any]) -> dict[str, Tensor]:
    """All weights of a run by name; deltas are added to the run that they began from.

    Args:
        folder: the run.
        info: what `read_info` gives for it.

    Raises UserError where a file is damaged, or that other run is missing or another one by now.
    """
    path = weights_file(folder, info)
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"is not a safetensors file: {error}", path, COPY_AGAIN) from None
    return _merged(folder, info, weights) if path.name == DELTAS else weights


def _merged(folder: Path, info: Mapping[str, Any], deltas: dict[str, Tensor]) -> dict[str, Tensor]:
    try:
        origin, scale = Origin(**info["origin"]), float(info["scale"])
        base, base_info = _find_origin(folder, origin)
        weights = lora.merged(read_weights(base, base_info), deltas, scale)
        if NEW_ROWS in deltas:
            weights[TABLE] = torch.cat((weights[TABLE][: origin.ids], deltas[NEW_ROWS]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"is damaged: {error}", weights_file(folder, info), COPY_AGAIN) from None
    return weights


def _find_origin(folder: Path, origin: Origin) -> tuple[Path, dict[str, Any]]:
    """The run that `folder` began from: where it was, or beside `folder`."""
    places = [Path(origin.run), folder.resolve().parent / Path(origin.run).name]
    fix = f"put it there or beside {folder.name}; `mmgpt merge` makes a run that needs no other"
    for place in places:
        if (place / CHECKPOINT).is_file():
            info = read_info(place)
            if info["sha256"] == origin.sha256:
                return place, info
            fix = f"it is at step {info['step']} now, not {origin.step}; put the old one back, or train again"
    raise UserError(f"needs the run that it began from: {origin.run}", folder, fix)


def _check_names(weights: Mapping[str, Tensor], net: GPT, path: Path) -> None:
    expected = {name: tuple(weight.shape) for name, weight in net.state_dict().items()}
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    if found != expected:
        what = f"holds other weights than {RECIPE} and {VOCABULARY} ask for: {_differences(found, expected)}"
        raise UserError(what, path, COPY_AGAIN)


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first three differences of two mappings, readable."""
    names = [n for n in dict.fromkeys([*wanted, *found]) if found.get(n) != wanted.get(n)]
    lines = [f"{n} is {found.get(n, 'missing')}, not {wanted.get(n, 'there')}" for n in names[:3]]
    return "; ".join(lines) + (f"; {len(names) - 3} more" if len(names) > 3 else "")


# Going on: resume.ckpt


def read_resume(path: Path) -> dict[str, Any]:
    """The state of training, checked before Lightning sees it; no code in it runs. Raises UserError."""
    fix = "continue from a copy of the run, or start it again with --restart"
    try:
        with zipfile.ZipFile(path) as records:
            broken = records.testzip()  # torch itself does not look at the checksums
        if broken:
            raise zipfile.BadZipFile(broken)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError("the file is missing", path, fix) from None
    except Exception as error:  # torch raises half a dozen kinds, from zip, pickle and tensor storage
        what = f"is damaged or not a checkpoint of ours ({type(error).__name__})"
        raise UserError(what, path, fix) from None
    wanted = ("state_dict", "loops", "optimizer_states", "callbacks", OWN)
    if not isinstance(state, dict) or any(key not in state for key in wanted):
        raise UserError("is not a checkpoint of ours", path, fix)
    return state


OWN = "multimodal_gpt"
"""Key of our own part of `resume.ckpt`: step, fingerprint, shards and the recipe, as plain values."""
