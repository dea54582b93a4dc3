"""What `mmgpt inspect` shows: a run, a folder of shards, or a file as the tokenizers see it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from multimodal_gpt import console
from multimodal_gpt.errors import UserError
from multimodal_gpt.stream import plugins
from multimodal_gpt.stream.vocabulary import FILE_NAME, Vocabulary, read_manifest

SHOWN_DOCUMENTS = 3
SHOWN_CHARACTERS = 400
"""Of each segment: enough to see what it is."""


@dataclass(frozen=True)
class Table:
    """One table of findings."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Findings:
    """What was found: tables, then readable lines."""

    kind: str
    path: str
    tables: tuple[Table, ...]
    lines: tuple[str, ...] = field(default=())

    def plain(self) -> dict[str, Any]:
        """All of it as JSON holds it: each table as a list of records."""
        tables = {t.title: [dict(zip(t.columns, row, strict=True)) for row in t.rows] for t in self.tables}
        return {**asdict(self), "tables": tables, "lines": list(self.lines)}

    def print(self) -> None:
        """Print all of it."""
        for table in self.tables:
            console.table(table.title, table.columns, table.rows)
            console.say("")
        for line in self.lines:
            console.say(line)


def inspect_path(path: Path, recipe: str = "demo", trusted: Mapping[str, str] | None = None) -> Findings:
    """Look at a run, a folder of shards, or a file read by the tokenizers of `recipe`. Raises UserError."""
    if not path.exists():
        raise UserError("does not exist", path)
    if path.is_file():
        return inspect_file(path, recipe, trusted)
    if (path / "checkpoint.json").is_file():
        return inspect_run(path)
    if (path / "manifest.json").is_file():
        return inspect_shards(path, trusted)
    if (path / "shards" / "manifest.json").is_file():
        return inspect_shards(path / "shards", trusted)
    fix = "give one of its files; or prepare it: mmgpt prepare own_folder data.folders=[...]"
    raise UserError("is neither a trained run nor a folder of shards", path, fix)


# A run


def inspect_run(folder: Path) -> Findings:
    """The model card of a run in tables: sizes, vocabulary, arrangements, last metrics."""
    from multimodal_gpt.recipe.load import load_recipe
    from multimodal_gpt.training.checkpoint import read_info, weights_file
    from multimodal_gpt.training.metrics import losses_of, read_metrics

    info, recipe = read_info(folder), load_recipe(folder / "recipe.yaml")
    facts = {"step": info["step"], "tokens": info["tokens"], **info["config"]}
    facts["weights"] = f"{weights_file(folder, info).stat().st_size / 1e6:.1f} MB"
    if info.get("origin"):
        facts["began from"] = f"{info['origin']['run']}, step {info['origin']['step']}"
    facts["made from"] = ", ".join([*recipe.data.corpora, *recipe.data.folders])
    layouts = [(" ".join(a.order), a.weight, a.drop, a.shuffle, a.hole) for a in recipe.arrangements]
    last = {row["split"]: row for row in read_metrics(folder)}
    names = ("loss", *recipe.tokenizers)
    losses = [(s, row["step"], *(losses_of(row).get(n) for n in names)) for s, row in last.items()]
    return Findings(
        "run",
        str(folder),
        (
            Table("run", ("what", "value"), tuple(facts.items())),
            vocabulary_table(folder),
            Table("arrangements", ("order", "weight", "drop", "shuffle", "hole"), tuple(layouts)),
            Table("last losses, nats per token", ("split", "step", *names), tuple(losses)),
        ),
    )


def vocabulary_table(folder: Path) -> Table:
    """Modalities of a saved vocabulary with their id ranges."""
    entries = read_manifest(folder / FILE_NAME)["content"]["modalities"]
    rows = [(e["name"], e["plugin"], e["size"], e["tag"] + 1, e["tag"] + e["size"]) for e in entries]
    return Table("vocabulary", ("modality", "plugin", "ids", "first", "last"), tuple(rows))


# Shards


def inspect_shards(folder: Path, trusted: Mapping[str, str] | None = None) -> Findings:
    """Counts and lengths per split and modality, and a few documents as their tokenizers show them."""
    from multimodal_gpt.data.shards import SPLITS, open_shards

    vocabulary = Vocabulary.load(folder, trusted)
    splits = {name: open_shards(folder, name) for name in SPLITS}
    rows = [row for name, shards in splits.items() for row in _length_rows(name, shards)]
    columns = ("split", "modality", "segments", "tokens", "shortest", "median", "longest")
    counts = tuple((name, len(shards)) for name, shards in splits.items())
    train = splits[SPLITS[0]]
    lines = [
        line
        for i in range(min(SHOWN_DOCUMENTS, len(train)))
        for line in _document(train.document(i), vocabulary)
    ]
    tables = (
        Table("documents", ("split", "documents"), counts),
        Table("lengths, tokens per segment", columns, tuple(rows)),
        vocabulary_table(folder),
    )
    return Findings("shards", str(folder), tables, tuple(lines))


def _length_rows(split: str, shards: Any) -> Iterator[tuple[Any, ...]]:
    lengths = shards.lengths
    for index, name in enumerate(shards.names):
        tokens = lengths.tokens[lengths.modality == index]
        if len(tokens):
            middle = int(np.median(tokens))
            yield split, name, len(tokens), int(tokens.sum()), int(tokens.min()), middle, int(tokens.max())


def _document(document: Any, vocabulary: Vocabulary) -> Iterator[str]:
    moved = f" (moved by {document.shift})" if document.shift else ""
    yield f"{document.source}{moved}: {_facts(document.metadata)}"
    for segment in document.segments:
        yield f"  <{segment.modality}> {_short(vocabulary.tokenizer(segment.modality).show(segment.ids))}"


def _facts(metadata: Mapping[str, Any]) -> str:
    return _short(", ".join(f"{key}={value}" for key, value in sorted(metadata.items())))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 4] + " ..."


# A file


def inspect_file(path: Path, recipe: str, trusted: Mapping[str, str] | None = None) -> Findings:
    """What each tokenizer of a recipe, or of a trained run, reads from a file."""
    with open_tokenizers(recipe, trusted) as vocabulary:
        readers = [n for n in vocabulary.names if path.suffix.lower() in vocabulary.tokenizer(n).suffixes]
        if not readers:
            known = sorted({s for n in vocabulary.names for s in vocabulary.tokenizer(n).suffixes})
            raise UserError(
                f"no tokenizer of '{recipe}' reads '{path.suffix}'", path, "known: " + " ".join(known)
            )
        found = {name: list(_pieces(vocabulary, name, path)) for name in readers}
    rows = [_file_row(name, pieces) for name, pieces in found.items()]
    lines = [
        line
        for name, pieces in found.items()
        for piece in pieces[:SHOWN_DOCUMENTS]
        for line in piece.lines(name)
    ]
    columns = ("modality", "pieces", "tokens", "units", "unit")
    return Findings("file", str(path), (Table("read", columns, tuple(rows)),), tuple(lines))


@dataclass(frozen=True)
class _Piece:
    key: str
    tokens: int
    units: int
    unit: str
    facts: str
    shown: str

    def lines(self, modality: str) -> list[str]:
        return [f"<{modality}> {self.key} {self.facts}".rstrip(), f"  {self.shown}"]


def _pieces(vocabulary: Vocabulary, name: str, path: Path) -> Iterator[_Piece]:
    tokenizer = vocabulary.tokenizer(name)
    try:
        for item in tokenizer.read(path):
            encoded = vocabulary.encode(name, item.content)
            facts = _facts({**tokenizer.describe(item.content), **item.metadata})
            shown = _short(tokenizer.show(encoded.ids))
            yield _Piece(item.key, len(encoded.ids), encoded.units, tokenizer.unit, facts, shown)
    except UserError as error:
        raise error.within(path) if str(path) not in str(error) else error from error


def _file_row(name: str, pieces: list[_Piece]) -> tuple[Any, ...]:
    unit = pieces[0].unit if pieces else "-"
    return name, len(pieces), sum(p.tokens for p in pieces), sum(p.units for p in pieces), unit


@contextmanager
def open_tokenizers(recipe: str, trusted: Mapping[str, str] | None = None) -> Iterator[Vocabulary]:
    """The tokenizers of a trained run, or of a recipe before they have learnt anything."""
    from multimodal_gpt.recipe.load import load_recipe, modalities

    if (Path(recipe) / FILE_NAME).is_file():
        yield Vocabulary.load(Path(recipe), trusted)
        return
    with TemporaryDirectory() as folder:
        unlearnt = [plugins.fit(m, [], Path(folder)) for m in modalities(load_recipe(recipe))]
        yield Vocabulary(unlearnt, Path(folder))
