"""A recipe as YAML text in which every option is explained by its own description."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import yaml
from pydantic import BaseModel

from multimodal_gpt.recipe.schema import Recipe

COMMENT_COLUMN = 46


def to_yaml(values: Mapping[str, Any], *, comments: bool = False) -> str:
    """A resolved recipe (`Recipe.plain()`) as YAML, each option with its description behind it where wanted.

    Reading it gives back the same recipe.
    """
    return "\n".join(_section(values, Recipe, 0, comments)) + "\n"


def _section(values: Mapping[str, Any], model: type[BaseModel], depth: int, comments: bool) -> list[str]:
    lines: list[str] = []
    for name, field in model.model_fields.items():
        note = (field.description or "") if comments else ""
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            heading = [f"# {_summary(inner)}"] if comments and not depth else []
            lines += ["", *heading, f"{'  ' * depth}{name}:"]
            lines += _section(values[name], inner, depth + 1, comments)
        elif name == "tokenizers":
            lines += ["", *([f"# {note}"] if note else []), "tokenizers:"]
            lines += [_entry(key, _plugin(options), 1) for key, options in values[name].items()]
        else:
            lines += _value(name, values[name], depth, note)
    return [line for i, line in enumerate(lines) if line or (i and depth == 0)]


def _summary(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").split("\n")[0].rstrip(".")


def _plugin(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if not (key == "plugin" and value is None)}


def _value(name: str, value: Any, depth: int, note: str) -> list[str]:
    if isinstance(value, list) and value and not all(isinstance(v, int | float) for v in value):
        head = [_annotated(f"{'  ' * depth}{name}:", note)]
        return head + [f"{'  ' * depth}- {_flow(item)}" for item in value]
    return [_annotated(_entry(name, value, depth), note)]


def _entry(name: str, value: Any, depth: int) -> str:
    return f"{'  ' * depth}{_flow(name)}: {_flow(value)}"


def _annotated(line: str, note: str) -> str:
    return f"{line:<{COMMENT_COLUMN}}  # {note}" if note else line


def _flow(value: Any) -> str:
    return _written(value) if isinstance(value, Mapping | list | tuple) else _known(value)


@lru_cache(maxsize=1024, typed=True)  # a run writes the same names and numbers with every checkpoint
def _known(value: Any) -> str:
    return _written(value)


def _written(value: Any) -> str:
    text = _dump(value, escape=False)
    return text if text.isprintable() else _dump(value, escape=True)  # YAML folds raw line separators


def _dump(value: Any, *, escape: bool) -> str:
    text: str = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, allow_unicode=not escape, width=float("inf")
    )
    return text.removesuffix("\n").removesuffix("\n...")
