"""What the shards of a recipe are made from, and whether that has changed since they were."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from multimodal_gpt import __version__
from multimodal_gpt.data.corpus import Source, folder_source, list_files
from multimodal_gpt.data.inherited import inherited_fingerprint
from multimodal_gpt.data.parts import Reference, is_unchanged
from multimodal_gpt.data.reporting.report import Report, load_report
from multimodal_gpt.data.shards import MANIFEST, SPLITS, read_manifest
from multimodal_gpt.errors import UserError, nearest
from multimodal_gpt.recipe.load import modalities
from multimodal_gpt.recipe.schema import DataRecipe, Recipe
from multimodal_gpt.stream import plugins
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.versions import installed

REFERENCES = "references.jsonl"
"""Path, bytes and time of change of every file that a line of a .jsonl file names."""


def shards_folder(recipe: Recipe) -> Path:
    """Where the shards of a recipe are: `data.shards`, else RUN/shards."""
    return Path(recipe.data.shards) if recipe.data.shards else Path(recipe.run) / "shards"


def find_sources(data: DataRecipe, known: Sequence[Modality]) -> list[Source]:
    """The folders and corpora that a recipe names. Raises UserError where one is missing or none is named."""
    sources = [folder_source(Path(f)) for f in data.folders]
    sources += [_corpus_source(name, known) for name in data.corpora]
    where = "data.validation_folders"
    sources += [folder_source(Path(f), held_out=True, where=where) for f in data.validation_folders]
    if not any(not s.held_out for s in sources):
        raise UserError("names no data to train on", "data", "data.folders=[my_folder]")
    return sources


def _corpus_source(name: str, known: Sequence[Modality]) -> Source:
    """A named corpus, from the first plugin that knows the name."""
    refusal: UserError | None = None
    for modality in known:
        corpus = getattr(plugins.load_module(modality.plugin), "corpus", None)
        try:
            files = corpus(name) if corpus else None
        except UserError as error:
            refusal = refusal or error
            continue
        if files:
            base = Path(os.path.commonpath([Path(f).parent for f in files]))
            listed = sorted(Path(f).relative_to(base).as_posix() for f in files)
            return Source(name, base, tuple(listed))
    if refusal is not None:
        raise refusal.within("data.corpora")
    raise UserError(f"no tokenizer of this recipe knows the corpus '{name}'", "data.corpora")


def recipe_fingerprint(recipe: Recipe) -> str:
    """Hash of everything but the files that the shards depend on: recipe, plugin files and library
    versions.

    Folders count by their names, so that shards may move to another machine with their data or without.
    """
    data = recipe.data.model_dump(mode="json", exclude={"workers", "seconds_per_file", "shards", "engine"})
    for key in ("folders", "validation_folders"):
        data[key] = [Path(f).name for f in data[key]]
    return _hash([recipe.seed, data, _readers(recipe)])


def rules_fingerprint(recipe: Recipe) -> str:
    """Hash of what a document's copies depend on beside its files."""
    data = recipe.data.model_dump(mode="json", include={"captions", "shifts"})
    return _hash([recipe.seed, data, _readers(recipe)])


def _readers(recipe: Recipe) -> list[Any]:
    known = [
        (m.name, plugins.file_hash(Path(m.plugin)) if m.is_file else m.plugin, dict(m.options))
        for m in modalities(recipe)
    ]
    return [__version__, known, inherited_fingerprint(recipe), installed()]


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def kept_without_sources(folder: Path, recipe: Recipe) -> Report | None:
    """The report of shards whose data is no longer there, as on a machine that only trains."""
    named = [*recipe.data.folders, *recipe.data.validation_folders]
    if any(Path(f).exists() for f in named) or recipe.data.corpora or not (folder / MANIFEST).is_file():
        return None
    same = not named or read_manifest(folder)["recipe"] == recipe_fingerprint(recipe)
    return load_report(folder) if same else None


def unchanged(folder: Path, recipe: Recipe, sources: Sequence[Source]) -> Report | None:
    """The report of shards that are whole and made from the same recipe and the same files; else None."""
    try:
        manifest = read_manifest(folder)
        if manifest["recipe"] != recipe_fingerprint(recipe):
            return None
        listing = list_files(sources, manifest["suffixes"])
        whole = all(
            (folder / entry["name"]).is_file() and (folder / entry["name"]).stat().st_size == entry["bytes"]
            for split in SPLITS
            for entry in manifest["splits"][split]["files"]
        )
        same = manifest["inputs"] == listing.fingerprint and _references_unchanged(folder)
        return load_report(folder) if whole and same else None
    except (UserError, KeyError):
        return None


def save_references(folder: Path, references: Iterable[Reference]) -> None:
    """Note the files that lines of .jsonl files name."""
    text = "".join(json.dumps(reference) + "\n" for reference in sorted(references))
    if text:
        (folder / REFERENCES).write_text(text, encoding="utf-8")


def _references_unchanged(folder: Path) -> bool:
    path = folder / REFERENCES
    if not path.is_file():
        return True
    with path.open(encoding="utf-8") as file:
        return all(is_unchanged(json.loads(line)) for line in file)


def check_weights(weights: Iterable[str], labels: Sequence[str]) -> None:
    """Raises UserError where a weight is given to a source that there is not."""
    for name in weights:
        if name not in labels:
            raise UserError(f"no source is called '{name}'", "data.weights", nearest(name, labels))
