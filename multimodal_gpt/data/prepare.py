"""From a recipe's files to shards that are ready to train on: the whole story, in numbered steps."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from multimodal_gpt import console
from multimodal_gpt.data.captions import Captions, check_templates
from multimodal_gpt.data.copies import Answer, Brief, Copy, Rules, make_tools, make_work
from multimodal_gpt.data.corpus import PARTLY, Group, Listing, Skip, list_files, split_lines
from multimodal_gpt.data.pool import Lost, Task, run
from multimodal_gpt.data.report import REPORT, Report, kinds, split_skips
from multimodal_gpt.data.shards import (
    MANIFEST,
    SPLITS,
    StoredDocument,
    write_manifest,
    write_shards,
)
from multimodal_gpt.data.sources import (
    files_fingerprint,
    find_sources,
    kept_without_sources,
    recipe_fingerprint,
    shards_folder,
    unchanged,
)
from multimodal_gpt.data.split import Split, split_documents
from multimodal_gpt.errors import UserError
from multimodal_gpt.recipe.load import modalities
from multimodal_gpt.recipe.schema import DataRecipe, Recipe
from multimodal_gpt.stream import plugins
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.vocabulary import Encoded, Vocabulary

BYTES_PER_LIMIT = 65536
"""`seconds_per_file` is granted for every so many bytes begun: a book of a thousand pieces has its time."""


def prepare(recipe: Recipe, *, force: bool = False, progress: bool = True) -> Report:
    """Make the shards of a recipe, unless they are there and nothing they depend on has changed.

    Nothing is left behind where it fails. Raises UserError where there is nothing to prepare.
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
    with _scratch(folder) as scratch, (scratch / "spool").open("w+b") as spool:
        made = scratch / "shards"
        made.mkdir()
        # 2) Tokenizers that can read; those that learn from the corpus have learnt nothing so far
        rules = _rules(recipe, known, scratch / "readers")
        suffixes = {s for t in make_tools(rules).tokenizers.values() for s in t.suffixes}
        listing = list_files(sources, suffixes)
        # 3) Read, describe, caption and encode every document in worker processes
        found = _read_all(data, listing, rules, spool, progress=progress)
        # 4) Hold out documents
        split = split_documents([d.brief for d in found.documents], data.validation, data.limit, recipe.seed)
        if not split.train:
            raise UserError(
                "no document is left to train on" + kinds(found.skips),
                "data",
                _first_reasons(found),
            )
        # 5) Let tokenizers learn from the training documents; from here on every id has its meaning
        vocabulary = _learn(known, rules, partial(_contents, found, split.train, spool), made)
        vocabulary.save(made)
        # 6) Write the shards
        splits = {name: _write(made, name, found, split, spool, vocabulary) for name in SPLITS}
        # 7) Manifest and report, and the finished folder under its name
        _write_manifest(made, recipe, listing, suffixes, vocabulary, splits)
        report = _report(folder, found, split, listing, rules, splits)
        report = replace(report, seconds=round(time.monotonic() - started, 3))
        (made / REPORT).write_text(json.dumps(report.plain(), indent=1) + "\n", encoding="utf-8")
        _put(made, folder)
    return report


# Folders


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError("is a file where the folder of the shards should be", folder, "set data.shards")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).exists():
        raise UserError("holds other files than shards", folder, "set data.shards to a new folder")


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that is gone afterwards, as are those of runs that were killed."""
    missing = [p for p in folder.parents if not p.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}.partial-*"):
        if not _runs(left.name.rpartition("-")[2]):
            shutil.rmtree(left, ignore_errors=True)
    scratch = folder.parent / f".{folder.name}.partial-{os.getpid()}"
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        for made in missing:
            with suppress(OSError):  # it holds the shards now
                made.rmdir()


def _runs(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return int(process) != os.getpid()


def _put(made: Path, folder: Path) -> None:
    """Rename the finished folder to its name; an older one goes with the scratch folder."""
    if folder.exists():
        folder.replace(made.parent / "replaced")
    made.replace(folder)


# 2) and 5) Tokenizers


def _rules(recipe: Recipe, learners: Sequence[Modality], folder: Path) -> Rules:
    folder.mkdir()
    learning = frozenset(m.name for m in learners if hasattr(plugins.load_module(m.plugin), "fit"))
    # Fitted on nothing, a tokenizer that learns can already read, parse and describe.
    readers = tuple(plugins.fit(m, (), folder) for m in learners)
    words = recipe.data.captions
    captions = (
        Captions(words.into, tuple(words.templates), words.variants, recipe.seed) if words.templates else None
    )
    shifts = (0, *sorted(set(recipe.data.shifts) - {0}))
    return Rules(readers, folder, learning, captions, shifts)


def _learn(learners: Sequence[Modality], rules: Rules, contents: Any, folder: Path) -> Vocabulary:
    fitted = [plugins.fit(m, contents(m.name), folder) if m.name in rules.learning else m for m in learners]
    return Vocabulary(fitted, folder)


# 3) Reading


@dataclass(frozen=True)
class _Kept:
    """A document that was read: its brief, and where its pickled copies lie in the spool."""

    brief: Brief
    place: int
    size: int


@dataclass(frozen=True)
class _Found:
    documents: list[_Kept]
    skips: list[Skip]


def _read_all(
    data: DataRecipe, listing: Listing, rules: Rules, spool: IO[bytes], *, progress: bool
) -> _Found:
    """Read all groups in worker processes; what they make of them goes to the spool, in order."""
    groups = list(split_lines(listing.groups))
    found = _Found([], [])
    with _bar(len(groups), show=progress) as advance:
        for group, answer in _answers(groups, data, rules):
            _take(found, group, answer, spool)
            advance(f"{len(found.documents)} documents, {len(found.skips)} skipped")
    return found


def _answers(groups: Sequence[Group], data: DataRecipe, rules: Rules) -> Iterator[tuple[Group, bytes | Lost]]:
    """What workers make of each group; lines that cost a worker its life are read again one by one."""
    tasks = [Task(g, data.seconds_per_file * (1 + g.size // BYTES_PER_LIMIT)) for g in groups]
    with closing(run(partial(make_work, rules), tasks, data.workers or _cores())) as answers:
        for group, answer in zip(groups, answers, strict=True):
            single = list(split_lines([group], 1)) if isinstance(answer, Lost) else []
            if len(single) > 1:
                yield from _answers(single, data, rules)
            else:
                yield group, answer


def _cores() -> int:
    """Cores that this process may use, which in a container can be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _bar(total: int, *, show: bool) -> Iterator[Callable[[str], None]]:
    if not show:
        yield lambda note: None
        return
    with console.progress(total, "files") as bar:
        yield lambda note: bar.advance(1, note)


def _take(found: _Found, group: Group, answer: bytes | Lost, spool: IO[bytes]) -> None:
    if isinstance(answer, Lost):
        found.skips.append(Skip(group.title, answer.kind, answer.reason))
        return
    result: Answer = pickle.loads(answer)
    found.skips.extend(result.skips)
    for brief, copies in result.documents:
        found.documents.append(_Kept(brief, spool.tell(), len(copies)))
        spool.write(copies)


def _copies(document: _Kept, spool: IO[bytes]) -> list[Copy]:
    spool.seek(document.place)
    copies: list[Copy] = pickle.loads(spool.read(document.size))
    return copies


def _contents(found: _Found, indexes: Sequence[int], spool: IO[bytes], modality: str) -> Iterator[Any]:
    """All contents of a modality in the training documents, shifted copies included."""
    for index in indexes:
        for copy in _copies(found.documents[index], spool):
            yield from (s.content for s in copy.pending if s.modality == modality)


# 6) Writing


def _write(
    made: Path, name: str, found: _Found, split: Split, spool: IO[bytes], vocabulary: Vocabulary
) -> dict[str, Any]:
    """Write the shards of a split; gives its counts and the manifest entries of its files."""
    counter = _Counter(vocabulary)
    files = write_shards(made, name, counter.count(_stored(name, found, split, spool, vocabulary)))
    return {**counter.plain(), "files": files}


def _stored(
    name: str, found: _Found, split: Split, spool: IO[bytes], vocabulary: Vocabulary
) -> Iterator[StoredDocument]:
    """The documents of a split as they are stored, in order; shifted copies to train on only."""
    order = {name: i for i, name in enumerate(vocabulary.names)}
    for index in split.train if name == "train" else split.valid:
        source, group = found.documents[index].brief.source, split.groups[index]
        for copy in _copies(found.documents[index], spool):
            if copy.shift and name != "train":
                continue
            encoded, problems = _encode_pending(copy, vocabulary)
            found.skips.extend(Skip(source, PARTLY, p) for p in problems)
            segments = tuple(sorted([*copy.segments, *encoded], key=lambda s: order[s.modality]))
            if segments:
                yield StoredDocument(segments, dict(copy.metadata), source, group, copy.shift)


def _encode_pending(copy: Copy, vocabulary: Vocabulary) -> tuple[list[Encoded], list[str]]:
    encoded: list[Encoded] = []
    problems: list[str] = []
    for segment in copy.pending:
        try:
            encoded.append(vocabulary.encode(segment.modality, segment.content))
        except UserError as error:
            problems.append(str(error))
    return encoded, problems


class _Counter:
    """Counts documents and rows, and per modality segments, tokens and units, on their way to the shards."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.sources: set[str] = set()
        self.rows = 0
        units = {name: vocabulary.tokenizer(name).unit for name in vocabulary.names}
        empty = {"documents": 0, "segments": 0, "tokens": 0, "units": 0}
        self.modalities: dict[str, dict[str, Any]] = {n: {**empty, "unit": u} for n, u in units.items()}

    def count(self, documents: Iterator[StoredDocument]) -> Iterator[StoredDocument]:
        for document in documents:
            self.rows += 1
            new = document.source not in self.sources
            self.sources.add(document.source)
            if new:
                for name in {s.modality for s in document.segments}:
                    self.modalities[name]["documents"] += 1
            for segment in document.segments:
                entry = self.modalities[segment.modality]
                entry["segments"] += 1
                entry["tokens"] += len(segment.ids)
                entry["units"] += segment.units
            yield document

    def plain(self) -> dict[str, Any]:
        return {"documents": len(self.sources), "rows": self.rows, "modalities": self.modalities}


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
        "inputs": files_fingerprint(listing),
        "suffixes": sorted(suffixes),
        "splits": splits,
    }
    write_manifest(made, content)


def _report(
    folder: Path,
    found: _Found,
    split: Split,
    listing: Listing,
    rules: Rules,
    splits: Mapping[str, Any],
) -> Report:
    skips, partly = split_skips(found.skips)
    briefs = [d.brief for d in found.documents]
    tracks: dict[str, Counter[str]] = {}
    for brief in briefs:
        for key, value in brief.tracks:
            tracks.setdefault(key, Counter())[value] += 1
    used = Counter(t for b in briefs for t in b.templates)
    return Report(
        folder=folder,
        found=len(briefs) + len(skips),
        kept=len(briefs),
        unused=len(briefs) - len(split.train) - len(split.valid),
        skips=skips,
        partly=partly,
        ignored=listing.ignored,
        tracks={k: dict(sorted(v.items())) for k, v in sorted(tracks.items())},
        templates={t: used[t] for t in (rules.captions.templates if rules.captions else ())},
        splits={name: {k: v for k, v in s.items() if k != "files"} for name, s in splits.items()},
    )


def _first_reasons(found: _Found) -> str:
    skips, _ = split_skips(found.skips)
    first = "; ".join(f"{s.source}: {s.reason}" for s in skips[:3])
    return f"{first}; mend or replace such files, or add others" if first else "add files"
