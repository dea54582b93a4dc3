"""Contents as plain values that JSON holds, and back: how a request remembers what it was given.

Numbers, strings, lists, tuples, dicts, numpy arrays, and dataclasses of the plugin's own module: what plugins
make contents of. Nothing is executed: a class is taken only where the module has a dataclass of that name.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.tokenizer import Tokenizer


def to_plain(value: Any) -> Any:
    """A content as plain values. Raises UserError where it holds something else."""
    plain: Any = value
    if isinstance(value, np.generic):
        plain = value.item()
    elif isinstance(value, list):
        plain = [to_plain(v) for v in value]
    elif isinstance(value, tuple):
        plain = {"tuple": [to_plain(v) for v in value]}
    elif isinstance(value, dict):
        plain = {"dict": [[to_plain(k), to_plain(v)] for k, v in value.items()]}
    elif isinstance(value, np.ndarray):
        plain = {"array": value.tolist(), "type": value.dtype.str}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        held = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        plain = {"class": type(value).__name__, "fields": held}
    elif not (value is None or isinstance(value, str | int | float)):
        raise UserError(f"a {type(value).__name__} can't be kept as plain values")
    return plain


def from_plain(plain: Any, tokenizer: Tokenizer) -> Any:
    """The reverse of `to_plain`, for a content of this tokenizer. Raises UserError where it is damaged."""
    try:
        return _from_plain(plain, vars(sys.modules[type(tokenizer).__module__]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"a content is damaged: {type(error).__name__} {error}") from error


def _from_plain(plain: Any, known: dict[str, Any]) -> Any:
    if isinstance(plain, list):
        return [_from_plain(p, known) for p in plain]
    if not isinstance(plain, dict):
        return plain
    if "tuple" in plain:
        return tuple(_from_plain(p, known) for p in plain["tuple"])
    if "dict" in plain:
        return {_from_plain(k, known): _from_plain(v, known) for k, v in plain["dict"]}
    if "array" in plain:
        return np.array(plain["array"], dtype=np.dtype(plain["type"]))
    kind = known.get(plain["class"])
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise UserError(f"this plugin has no class '{plain['class']}'")
    return kind(**{name: _from_plain(p, known) for name, p in plain["fields"].items()})
