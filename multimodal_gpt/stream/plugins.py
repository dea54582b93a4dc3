"""Finds and builds plugins: built in, published through an entry point, or a file of the user's own."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from multimodal_gpt.errors import UserError, nearest
from multimodal_gpt.stream.tokenizer import Tokenizer

GROUP = "multimodal_gpt.tokenizers"
FILE_PREFIX = "file:"
MEMBERS = ("size suffixes unit read write parse encode decode grammar clock cuts units describe show").split()


@dataclass(frozen=True)
class Modality:
    """One line of a recipe's `tokenizers`: a name in the stream, the plugin behind it, and its options."""

    name: str
    plugin: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_file(self) -> bool:
        """Whether the plugin is a file of the user's own."""
        return self.plugin.endswith(".py")


def built_in() -> tuple[str, ...]:
    """Names of the plugins that come with the package: file name = plugin name."""
    folder = importlib.import_module(GROUP).__path__
    names = (m.name for m in pkgutil.iter_modules(folder) if not m.name.startswith("_"))
    return tuple(sorted(names))


@cache
def _published() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in entry_points(group=GROUP):
        if entry.name in found or entry.name in built_in():
            raise UserError(
                f"two plugins are called '{entry.name}'",
                entry.value,
                "uninstall one, or name a file in the recipe",
            )
        found[entry.name] = entry
    return found


def available() -> tuple[str, ...]:
    """Names of all installed plugins, built in and published."""
    return tuple(sorted({*built_in(), *_published()}))


def _module_name(path: Path) -> str:
    return f"mmgpt_plugin_{path.stem}_{file_hash(path)[:12]}"


def is_loaded(plugin: str) -> bool:
    """Whether a plugin file, as it is now, runs in this process already."""
    return Path(plugin).is_file() and _module_name(Path(plugin)) in sys.modules


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(
            f"there is no plugin file '{path}'", fix="a path is taken from the recipe's own folder"
        )
    name = _module_name(path)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError("is not a Python file", path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"the plugin fails on import: {type(error).__name__}: {error}", path) from error
    return module


def load_module(plugin: str) -> ModuleType:
    """The module of a plugin, by installed name or by path to a `.py` file. Raises UserError."""
    if plugin.endswith(".py"):
        return _load_file(Path(plugin))
    if plugin in built_in():
        return importlib.import_module(f"{GROUP}.{plugin}")
    if plugin in _published():
        entry = _published()[plugin]
        try:
            loaded = entry.load()
        except Exception as error:
            raise UserError(f"plugin '{plugin}' fails on import: {error}", entry.value) from error
        return loaded if isinstance(loaded, ModuleType) else sys.modules[loaded.__module__]
    raise UserError(
        f"there is no plugin '{plugin}'",
        "tokenizers",
        f"{nearest(plugin, available())}; a file is given as ./{plugin}.py",
    )


def fit(modality: Modality, contents: Any, folder: Path) -> Modality:
    """Let a plugin learn from the training contents, where it can; gives the modality with its final options.

    Files that it writes go into `folder`, under names that begin with the modality's: two may share a plugin.
    """
    module = load_module(modality.plugin)
    if not hasattr(module, "fit"):
        return modality
    where = f"tokenizers.{modality.name}"
    try:
        with TemporaryDirectory(prefix=".fit-", dir=folder) as made:
            options = module.fit(contents, Path(made), **modality.options)
            names = {f.name: _placed(f, folder, modality.name) for f in sorted(Path(made).iterdir())}
    except UserError as error:
        raise error.within(where) from error
    except TypeError as error:
        raise UserError(f"wrong options for plugin '{modality.plugin}': {error}", where) from error
    files = {FILE_PREFIX + old: FILE_PREFIX + new for old, new in names.items()}
    options = {k: files.get(v, v) if isinstance(v, str) else v for k, v in options.items()}
    return Modality(modality.name, modality.plugin, options)


def _placed(file: Path, folder: Path, modality: str) -> str:
    """Move a file into a folder, under a name that begins with the modality's; gives that."""
    name = file.name if file.name.startswith(f"{modality}.") else f"{modality}.{file.name}"
    return file.replace(folder / name).name


def build(modality: Modality, folder: Path | None = None) -> Tokenizer:
    """Build a tokenizer; options like `"file:ranks"` become absolute paths inside `folder`.

    Raises UserError naming the modality where the plugin, its options or its contract are wrong.
    """
    where = f"tokenizers.{modality.name}"
    module = load_module(modality.plugin)
    if not hasattr(module, "build"):
        raise UserError("the plugin does not define build(**options)", modality.plugin)
    options = {k: _resolve(v, folder, where) for k, v in modality.options.items()}
    try:
        tokenizer = module.build(**options)
    except UserError as error:
        raise error.within(where) from error
    except TypeError as error:
        raise UserError(f"wrong options for plugin '{modality.plugin}': {error}", where) from error
    missing = [m for m in MEMBERS if not hasattr(tokenizer, m)]
    if missing:
        raise UserError(
            f"the plugin's tokenizer lacks {', '.join(missing)}",
            modality.plugin,
            "see multimodal_gpt.stream.tokenizer",
        )
    return tokenizer  # type: ignore[no-any-return]


def _resolve(value: Any, folder: Path | None, where: str) -> Any:
    if not (isinstance(value, str) and value.startswith(FILE_PREFIX)):
        return value
    path = (folder or Path()) / value.removeprefix(FILE_PREFIX)
    if not path.is_file():
        raise UserError(
            f"file '{path.name}' is missing", where, "it stands beside vocabulary.json; copy it back"
        )
    return path.resolve()


def files_of(modality: Modality) -> tuple[str, ...]:
    """Names of the files that the options refer to, which travel with every saved vocabulary."""
    values = (v for v in modality.options.values() if isinstance(v, str))
    return tuple(sorted(v.removeprefix(FILE_PREFIX) for v in values if v.startswith(FILE_PREFIX)))


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
