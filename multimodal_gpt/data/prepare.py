"""From a recipe's files to shards that are ready to train on: the whole story, in numbered steps."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from multimodal_gpt.data.captions import Captions, check_templates
from multimodal_gpt.data.collect import Found, collect
from multimodal_gpt.data.copies import Rules, make_tools
from multimodal_gpt.data.corpus import Listing, list_files, split_groups
from multimodal_gpt.data.engines import Engine, engine, in_turn
from multimodal_gpt.data.inherited import inherited_modalities
from multimodal_gpt.data.parts import Parts, open_parts
from multimodal_gpt.data.reporting.page import write_page
from multimodal_gpt.data.reporting.report import DOCUMENTS, REPORT, Report, kinds, split_skips
from multimodal_gpt.data.reporting.tally import UNUSED, duplicates
from multimodal_gpt.data.shards import MANIFEST, SPLITS, write_manifest
from multimodal_gpt.data.sources import (
    check_weights,
    find_sources,
    kept_without_sources,
    recipe_fingerprint,
    rules_fingerprint,
    save_references,
    shards_folder,
    unchanged,
)
from multimodal_gpt.data.split import Split, split_documents
from multimodal_gpt.data.work import Span, make_lister, make_writer
from multimodal_gpt.data.writing import Lines, Writer, is_little, spans
from multimodal_gpt.errors import UserError
from multimodal_gpt.files import make_folder
from multimodal_gpt.recipe.load import modalities
from multimodal_gpt.recipe.schema import Recipe
from multimodal_gpt.stream import plugins
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.vocabulary import Vocabulary


def prepare(recipe: Recipe, *, force: bool = False, progress: bool = True) -> Report:
    """Make the shards of a recipe, unless they are there and nothing they depend on has changed.

    A run that was stopped, even killed, goes on where it was; files that have not changed since they were
    read are not read again. `force`: read everything again. Raises UserError where there is nothing to
    prepare.
    """
    started = time.monotonic()
    folder, data, known = shards_folder(recipe), recipe.data, modalities(recipe)
    # 1) The files, and whether anything has changed since they were prepared
    check_templates(data.captions.templates)
    there = None if force else kept_without_sources(folder, recipe)
    sources = [] if there else find_sources(data, known)
    there = there if there or force else unchanged(folder, recipe, sources)
    if there is not None:
        return there
    _check_replaceable(folder)
    with engine(data) as run, _workshop(folder, force=force) as (workshop, parts):
        made = workshop / "made"
        # 2) Tokenizers that can read; those that learn from the corpus have learnt nothing so far, but for
        #    those of the run that this one begins from
        taken = inherited_modalities(recipe, [workshop / "readers", made])
        rules = _rules(recipe, known, taken, workshop / "readers")
        tools = make_tools(rules)
        suffixes = {s for t in tools.tokenizers.values() for s in t.suffixes}
        listing = list_files(sources, suffixes)
        check_weights(data.weights, listing.labels)
        # 3) Read, describe, caption and encode every document in worker processes
        groups = list(split_groups(listing.groups, tools.tokenizers))
        found = collect(run, groups, rules, parts, data.seconds_per_file, progress=progress)
        listing, groups = replace(listing, groups=()), []  # half a kilobyte per file
        # 4) Hold out documents
        split = split_documents(found.briefs, data.validation, data.limit, recipe.seed)
        if not split.train:
            what = "no document is left to train on" + kinds(found.skips)
            raise UserError(what, "data", _first_reasons(found))
        # 5) Let tokenizers learn from the training documents; from here on every id has its meaning
        contents = partial(_contents, run, parts, [m.name for m in known], spans("train", found, split))
        fitted = tuple(_learn(known, rules, contents, made))
        vocabulary = Vocabulary(fitted, made)
        vocabulary.save(made)
        # 6) Write the shards, and a line about every document
        make = partial(make_writer, parts.folder, parts.session, fitted, made, data.weights)
        with Lines(made / DOCUMENTS) as lines:
            writer = Writer(made, vocabulary, make, run, lines)
            splits = {name: writer.write(name, spans(name, found, split)) for name in SPLITS}
            writer.list_only(spans(UNUSED, found, split))
        # 7) Manifest and report, and the finished folder under its name
        _write_manifest(made, recipe, listing, suffixes, vocabulary, splits)
        save_references(made, found.references)
        report = _report(folder, found, split, listing, data.captions.templates, splits, lines)
        report = replace(report, weights=data.weights, seconds=round(time.monotonic() - started, 3))
        (made / REPORT).write_text(json.dumps(report.plain(), indent=1) + "\n", encoding="utf-8")
        write_page(made, report, vocabulary)
        _put(made, folder)
        parts.tidy(found.keys)
    return report


# Folders


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError("is a file where the folder of the shards should be", folder, "set data.shards")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).exists():
        raise UserError("holds other files than shards", folder, "set data.shards to a new folder")


@contextmanager
def _workshop(folder: Path, *, force: bool) -> Iterator[tuple[Path, Parts]]:
    """A hidden folder beside `folder`: its parts stay for the next time, everything else in it goes."""
    missing = [p for p in folder.parents if not p.exists()]
    make_folder(folder.parent)
    workshop = folder.parent / f".{folder.name}.parts"
    try:
        with open_parts(workshop, force=force) as parts:
            _clear(workshop)
            for name in ("made", "readers"):
                (workshop / name).mkdir()
            try:
                yield workshop, parts
            finally:
                _clear(workshop)
    finally:
        for made in missing:
            with suppress(OSError):  # it holds the shards now
                made.rmdir()


def _clear(workshop: Path) -> None:
    for name in ("made", "readers", "replaced"):
        shutil.rmtree(workshop / name, ignore_errors=True)


def _put(made: Path, folder: Path) -> None:
    """Rename the finished folder to its name; an older one goes with the workshop."""
    if folder.exists():
        folder.replace(made.parent / "replaced")
    made.replace(folder)


# 2) and 5) Tokenizers


def _rules(recipe: Recipe, known: Sequence[Modality], taken: Mapping[str, Modality], folder: Path) -> Rules:
    learners = [m for m in known if hasattr(plugins.load_module(m.plugin), "fit") and m.name not in taken]
    learning = frozenset(m.name for m in learners)
    # Fitted on nothing, a tokenizer that learns can already read, parse and describe.
    readers = tuple(taken.get(m.name) or plugins.fit(m, (), folder) for m in known)
    words = recipe.data.captions
    templates = tuple(words.templates)
    captions = Captions(words.into, templates, words.variants, recipe.seed, words.drop) if templates else None
    shifts = (0, *sorted(set(recipe.data.shifts) - {0}))
    return Rules(readers, folder, learning, captions, shifts, rules_fingerprint(recipe))


def _learn(
    known: Sequence[Modality], rules: Rules, contents: Callable[[str], Iterator[Any]], folder: Path
) -> list[Modality]:
    return [
        plugins.fit(m, contents(m.name), folder) if m.name in rules.learning else reader
        for m, reader in zip(known, rules.readers, strict=True)
    ]


def _contents(
    run: Engine, parts: Parts, names: Sequence[str], training: Sequence[Span], modality: str
) -> Iterator[Any]:
    """All contents of a modality in the training documents, shifted copies included."""
    make = partial(make_lister, parts.folder, parts.session, names, modality)
    for contents in in_turn(run, make, training, alone=is_little(training)):
        yield from contents


# 7) Report


def _write_manifest(
    made: Path,
    recipe: Recipe,
    listing: Listing,
    suffixes: Iterable[str],
    vocabulary: Vocabulary,
    splits: Mapping[str, Any],
) -> None:
    content = {
        "vocabulary": vocabulary.fingerprint,
        "modalities": list(vocabulary.names),
        "recipe": recipe_fingerprint(recipe),
        "inputs": listing.fingerprint,
        "suffixes": sorted(suffixes),
        "weights": dict(recipe.data.weights),
        "shifted": recipe.data.shifted,
        "splits": splits,
    }
    write_manifest(made, content)


def _report(
    folder: Path,
    found: Found,
    split: Split,
    listing: Listing,
    templates: Iterable[str],
    splits: Mapping[str, Any],
    lines: Lines,
) -> Report:
    sums = lines.tally.plain()
    skips, partly = split_skips([*found.skips, *lines.problems])
    return Report(
        folder=folder,
        found=len(found.places) + len(skips),
        kept=len(found.places),
        unused=len(found.places) - len(split.train) - len(split.valid),
        skips=skips,
        partly=partly,
        ignored=listing.ignored,
        templates={t: lines.templates[t] for t in templates},
        splits={name: {k: v for k, v in s.items() if k != "files"} for name, s in splits.items()},
        duplicates={**duplicates(split.groups), "by_content": split.joined, "leaked": split.leaked},
        cached=found.earlier,
        tracks=sums["tracks"],
        errors=sums["errors"],
        lengths=sums["lengths"],
    )


def _first_reasons(found: Found) -> str:
    skips, _ = split_skips(found.skips)
    first = "; ".join(f"{s.source}: {s.reason}" for s in skips[:3])
    return f"{first}; mend or replace such files, or add others" if first else "add files"
