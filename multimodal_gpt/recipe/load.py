"""Recipes: YAML file + `a.b=c` overrides -> checked Recipe, every mistake reported at once; and back."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from multimodal_gpt.errors import UserError, nearest
from multimodal_gpt.files import read_text, write_text
from multimodal_gpt.recipe.checks import cross_check, schema_problems, silent_conversions
from multimodal_gpt.recipe.listing import to_yaml
from multimodal_gpt.recipe.schema import Recipe
from multimodal_gpt.stream.arrangement import Arrangement, default_arrangements, parse_order
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.vocabulary import Vocabulary

Raw = dict[str, Any]
EXTENDS = "extends"
SUFFIXES = (".yaml", ".yml")
SAVED, END = "# Every option of a run, up to the line ...\n---\n", "...\n"
"""Around a recipe that `save_recipe` wrote: a file that begins so and does not end so was cut short."""


def names() -> dict[str, Path]:
    """Recipes that come with the package: name -> file, sorted."""
    folders = importlib.import_module("multimodal_gpt.recipes").__path__
    files = (file for folder in folders for file in sorted(Path(folder).glob("*.yaml")))
    return {file.stem: file for file in files}


def title(path: Path) -> str:
    """The first comment line of a recipe file: what it is."""
    first = read_text(path).partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def find(source: str | Path) -> Path:
    """The YAML file of a recipe: the name of one that comes with the package, or a path. Raises UserError."""
    path = Path(source).expanduser()
    if len(path.parts) == 1 and path.suffix not in SUFFIXES and str(path) in names():
        return names()[str(path)]
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    if path.is_file():
        return path
    hint = nearest(path.stem, names())
    raise UserError(f"there is no recipe '{source}'", fix=f"{hint}; a file is given as ./my.yaml")


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or path, apply `a.b=c` overrides and check everything.

    Relative paths in the file are taken from its own folder where they exist there, else from the working
    directory; paths in overrides from the working directory. Raises one UserError that lists every mistake.
    """
    path = find(source)
    raw = _read_extended(path)
    try:
        for override in overrides:
            apply_override(raw, override)
        raw = _inherited(_filled(_absolute_paths(raw, None)))
    except UserError as error:
        raise error.within(path.name) from error
    return _checked(raw, path.name)


def _checked(raw: Raw, where: str) -> Recipe:
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        problems = schema_problems(error)
    else:
        problems = silent_conversions(raw, recipe.plain()) or cross_check(recipe)
        if not problems:
            return recipe
    if len(problems) == 1:
        raise problems[0].within(where)
    raise UserError("; ".join(str(p) for p in problems), f"{where}: {len(problems)} mistakes")


def _filled(raw: Raw) -> Raw:
    """A section or a modality with nothing below it means its defaults."""
    kept = {key: value for key, value in raw.items() if value is not None}
    if isinstance(kept.get("tokenizers"), dict):
        kept["tokenizers"] = {name: {} if v is None else v for name, v in kept["tokenizers"].items()}
    return kept


# Reading YAML


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is not text; put it in quotes", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    """What a YAML text holds. Raises UserError, with the line, where it is not YAML or gives a key twice."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}: line {mark.line + 1}" if mark is not None else where
        raise UserError(f"is not YAML: {getattr(error, 'problem', None) or error}", place) from None


def _read(path: Path) -> Raw:
    text = read_text(path)
    if text.startswith(SAVED) and not text.rstrip().endswith(f"\n{END.rstrip()}"):
        raise UserError(f"is cut short: its last line is not `{END.rstrip()}`", path.name, "copy it again")
    raw = parse_yaml(text, path.name)
    if not isinstance(raw, dict):
        raise UserError("holds no recipe", path.name, "a recipe is a mapping, as in `mmgpt show demo`")
    return _absolute_paths(raw, path.resolve().parent)


def _read_extended(path: Path) -> Raw:
    raw = _read(path)
    base_name = raw.pop(EXTENDS, None)
    if base_name is None:
        return raw
    if not isinstance(base_name, str):
        raise UserError(f"{base_name!r} is not the name of a recipe", f"{path.name}: {EXTENDS}")
    beside = path.parent / base_name
    try:
        base = _read(beside if beside.is_file() else find(base_name))
    except UserError as error:
        raise error.within(f"{path.name}: {EXTENDS}") from error
    if EXTENDS in base:
        raise UserError(
            f"'{base_name}' extends another recipe itself", f"{path.name}: {EXTENDS}", "one level only"
        )
    return _merged(base, raw)


def _merged(base: Raw, top: Raw) -> Raw:
    """`top` over `base`: mappings are merged key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _inherited(raw: Raw) -> Raw:
    """With what a recipe leaves to the run in `init_from`.

    Tokenizers, model and captions are taken key by key, arrangements as a whole, but not beside a modality
    that is new: they know nothing of it.
    """
    run = raw.get("init_from")
    file = Path(str(run)) / "recipe.yaml"
    if run is None:
        return raw
    if not file.is_file():
        if "tokenizers" in raw:  # a trained run, which outlives what it began from
            return raw
        raise UserError(f"there is no trained run '{run}'", "init_from", "train it first, or mend the path")
    base = _read(file)
    given = raw.get("tokenizers")
    grown = isinstance(given, dict) and set(given) - set(base.get("tokenizers", ()))
    left = ("tokenizers", "model") if grown else ("tokenizers", "model", "arrangements")
    words = {key: value for key, value in base.get("data", {}).items() if key == "captions"}
    return _merged({**{key: base[key] for key in left if key in base}, "data": words}, raw)


# Overrides


def apply_override(raw: Raw, override: str) -> None:
    """Set one value in place: `train.steps=500`, `data.folders=[a,b]`, `train.samples.0.to=[text]`.

    The value is YAML and may hold further '='. An index one past the end appends. Raises UserError.
    """
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"'{override}' is not an override", fix="write section.key=value: train.steps=500")
    node: Any = raw
    for depth, key in enumerate(keys[:-1]):
        node = _step_into(node, key, is_list=keys[depth + 1].isdigit(), where=".".join(keys[: depth + 1]))
    _set(node, keys[-1], parse_yaml(text, f"override {dotted}"), dotted)


def _step_into(node: Any, key: str, *, is_list: bool, where: str) -> Any:
    empty: Any = [] if is_list else {}
    if isinstance(node, list):
        index = _index(node, key, where)
        if index == len(node):
            node.append(empty)
        return node[index]
    if isinstance(node, dict):
        if node.get(key) is None:
            node[key] = empty
        return node[key]
    raise UserError("has nothing below it", where.rpartition(".")[0], f"it is {node!r}")


def _set(node: Any, key: str, value: Any, where: str) -> None:
    if isinstance(node, list):
        index = _index(node, key, where)
        node[index : index + 1] = [value]
    elif isinstance(node, dict):
        node[key] = value
    else:
        raise UserError("has nothing below it", where.rpartition(".")[0], f"it is {node!r}")


def _index(items: list[Any], key: str, where: str) -> int:
    if not key.isdigit() or int(key) > len(items):
        raise UserError(f"'{key}' is not an index into a list of {len(items)}", where, "count from 0")
    return int(key)


# Paths


def _absolute_paths(raw: Raw, folder: Path | None) -> Raw:
    """A copy of `raw` in which paths that exist inside `folder` are absolute; all, where it is None."""

    def absolute(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        path = Path(value).expanduser()
        if folder is None:
            return str(path.resolve())
        return str((folder / path).resolve()) if (folder / path).exists() else value

    copy = dict(raw)
    if raw.get("init_from") is not None:
        copy["init_from"] = absolute(raw["init_from"])
    if isinstance(raw.get("data"), dict):
        copy["data"] = dict(raw["data"])
        for key in ("folders", "validation_folders"):
            if isinstance(raw["data"].get(key), list):
                copy["data"][key] = [absolute(p) for p in raw["data"][key]]
    if isinstance(raw.get("tokenizers"), dict):
        copy["tokenizers"] = {k: _with_plugin(v, absolute) for k, v in raw["tokenizers"].items()}
    return copy


def _with_plugin(options: Any, absolute: Any) -> Any:
    if not isinstance(options, dict) or not str(options.get("plugin", "")).endswith(".py"):
        return options
    return {**options, "plugin": absolute(options["plugin"])}


# What other rooms take from a recipe


def modalities(recipe: Recipe) -> list[Modality]:
    """The tokenizers of a recipe in id order, as the vocabulary wants them."""
    return [Modality(name, t.plugin or name, t.model_extra or {}) for name, t in recipe.tokenizers.items()]


def arrangements(recipe: Recipe, vocabulary: Vocabulary) -> list[Arrangement]:
    """The arrangements of a recipe; where it names none, those that suit its modalities."""
    known = list(recipe.tokenizers)
    if not recipe.arrangements:
        return default_arrangements(vocabulary)
    listed = recipe.arrangements
    return [Arrangement(parse_order(a.order, known), a.weight, a.drop, a.shuffle, a.hole) for a in listed]


def save_recipe(recipe: Recipe, path: Path) -> Path:
    """Write a recipe with every default filled in, the reverse of `load_recipe`; its comments are lost."""
    return write_text(path, f"{SAVED}{to_yaml(recipe.plain())}{END}")


def json_schema() -> Mapping[str, Any]:
    """The JSON schema of a recipe file, for editors that check and complete YAML."""
    schema = Recipe.model_json_schema()
    extends = {"type": "string", "description": "a recipe whose values hold where this one is silent"}
    schema["properties"] = {EXTENDS: extends, **schema["properties"]}
    schema["anyOf"] = [{"required": [EXTENDS]}, {"required": schema.pop("required", [])}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
