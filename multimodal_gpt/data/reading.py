"""Groups of files -> documents, with a word on everything in them that can't be used."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from multimodal_gpt.data.corpus import Group, printable
from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.document import Document, Segment
from multimodal_gpt.stream.tokenizer import Item, Tokenizer

NOTHING, UNREADABLE, PARTLY = "nothing usable", "unreadable", "kept in part"
"""Kinds of `Skip` that reading can give."""


@dataclass(frozen=True)
class Skip:
    """A file or piece that is not used (or, `PARTLY`, not all of it), its kind and the reason in words."""

    source: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Reading:
    """What a group gave: documents in the order of the files, a Skip for everything that can't be used, and
    (path, bytes, time of change in ns) of files that its lines name, or that could not be read now.
    """

    results: list[Document | Skip]
    references: tuple[tuple[str, int, int], ...] = ()


def read_group(group: Group, tokenizers: Mapping[str, Tokenizer]) -> Reading:
    """Everything in the files of a group."""
    return _read_lines(group, tokenizers) if group.lines else _read_files(group, tokenizers)


def failing(path: str | Path, error: BaseException) -> Iterator[tuple[str, int, int]]:
    """A reference that never is unchanged, where the machine failed and not the file: it is read again next
    time.
    """
    if isinstance(error, OSError | MemoryError) or isinstance(error.__cause__, OSError | MemoryError):
        yield str(path), -1, 0


@dataclass
class _Piece:
    """A document while its views are being collected."""

    segments: dict[str, list[Any]] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, modality: str, item: Item, path: Path) -> None:
        if isinstance(item.content, UserError):
            self.fail(item.content, path)
        elif modality in self.segments:
            self.problems.append(f"{path.name} is not used for {modality}: another file of the same name is")
        else:
            self.segments[modality] = [item.content]
        self.tell(item.metadata)

    def tell(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = {**metadata, **self.metadata}

    def fail(self, error: UserError, path: Path | None) -> None:
        reason = _reason(error, path)
        if reason not in self.problems:
            self.problems.append(reason)

    def join(self, other: _Piece) -> None:
        self.segments = {**other.segments, **self.segments}
        self.tell(other.metadata)
        self.problems += [p for p in other.problems if p not in self.problems]

    def results(self, source: str, names: Iterable[str], nothing: str) -> list[Document | Skip]:
        if not self.segments:
            kind, reason = (UNREADABLE, self.problems[0]) if self.problems else (NOTHING, nothing)
            return [Skip(source, kind, reason)]
        segments = tuple(Segment(n, content) for n in names for content in self.segments.get(n, ()))
        partly = [Skip(source, PARTLY, problem) for problem in self.problems]
        return [Document(segments, plain(self.metadata), source), *partly]


def _reason(error: UserError, path: Path | None) -> str:
    where = error.where.replace(str(path), "").strip(": ") if path else error.where
    return str(UserError(error.what, where))


def _read_files(group: Group, tokenizers: Mapping[str, Tokenizer]) -> Reading:
    pieces: dict[str, _Piece] = {}
    whole = _Piece()
    readers: list[str] = []
    failed: list[tuple[str, int, int]] = []
    for path in map(Path, group.paths):
        for name, tokenizer in tokenizers.items():
            if not path.name.lower().endswith(tuple(tokenizer.suffixes)):
                continue
            readers.append(name)
            for item in _items(tokenizer, path, group.part):
                if isinstance(item, UserError):
                    whole.fail(item, path)
                    failed += failing(path, item)
                else:
                    pieces.setdefault(item.key, _Piece()).add(name, item, path)
    if not pieces and group.part[0] + 1 < group.part[1]:
        return Reading([])  # the last part, which never is empty where the book is not, speaks for all
    return Reading(_results(group, tokenizers, pieces, whole, readers), tuple(failed))


def _results(
    group: Group,
    tokenizers: Mapping[str, Tokenizer],
    pieces: dict[str, _Piece],
    whole: _Piece,
    readers: Sequence[str],
) -> list[Document | Skip]:
    nothing = f"nothing of {_listed(readers)} in it"
    keyed = [key for key in pieces if key]
    if len(keyed) == 1 and "" in pieces:  # a lone piece of a book: what its other files say is about it
        pieces[keyed[0]].join(pieces.pop(""))
    if len(pieces) <= 1:
        only = next(iter(pieces), "")
        whole.join(pieces.get(only, _Piece()))
        return whole.results(_source(group, only), tokenizers, nothing)
    results = [Skip(group.name, PARTLY, problem) for problem in whole.problems]
    documents = (pieces[k].results(_source(group, k), tokenizers, nothing) for k in pieces)
    return [*(r for found in documents for r in found), *results]


def _source(group: Group, key: str) -> str:
    return printable(f"{group.name}#{key}") if key else group.name


def _listed(names: Sequence[str]) -> str:
    unique = list(dict.fromkeys(names))
    return " or ".join(filter(None, [", ".join(unique[:-1]), unique[-1]])) if unique else "any modality"


def _items(tokenizer: Tokenizer, path: Path, part: tuple[int, int]) -> Iterator[Item | UserError]:
    try:
        # Only tokenizers that have it are asked for a part.
        yield from tokenizer.read(path) if part[1] == 1 else tokenizer.read_part(path, *part)  # type: ignore[attr-defined]
    except UserError as error:
        yield error
    except Exception as error:  # a plugin's mistake must cost one file, not the whole run
        wrong = UserError(f"the tokenizer fails: {type(error).__name__}: {error}")
        wrong.__cause__ = error
        yield wrong


def _read_lines(group: Group, tokenizers: Mapping[str, Tokenizer]) -> Reading:
    first, begin, stop = group.lines or (1, 0, 0)
    path = Path(group.paths[0])
    with path.open("rb") as file:
        file.seek(begin)
        lines = file.read(stop - begin).split(b"\n")
    results: list[Document | Skip] = []
    references: dict[str, tuple[str, int, int]] = {}
    for number, line in enumerate(lines, start=first):
        if line.strip():
            reader = _LineReader(tokenizers, path.parent, references)
            results += reader.read(line, f"{group.name}#{number}")
    if not results and (begin, stop) == (0, path.stat().st_size):
        results.append(Skip(group.name, NOTHING, "no line in it"))
    return Reading(results, tuple(references.values()))


@dataclass(frozen=True)
class _LineReader:
    """Reads a line of a .jsonl file in `folder`; notes the files that it names in `references`."""

    tokenizers: Mapping[str, Tokenizer]
    folder: Path
    references: dict[str, tuple[str, int, int]]

    def read(self, line: bytes, source: str) -> list[Document | Skip]:
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except ValueError as error:
            return [Skip(source, UNREADABLE, f"is not JSON: {error}")]
        if not isinstance(record, dict):
            return [Skip(source, UNREADABLE, "is not a JSON object")]
        told = {k: v for k, v in record.items() if k not in self.tokenizers and v is not None}
        piece = _Piece(metadata=told)
        for name in self.tokenizers:
            given = record.get(name)
            for value in given if isinstance(given, list) else [] if given is None else [given]:
                self._parse(piece, name, value)
        nothing = f"no key of this line is a modality ({_listed(list(self.tokenizers))})"
        return piece.results(source, self.tokenizers, nothing)

    def _parse(self, piece: _Piece, name: str, value: Any) -> None:
        """Add one value: what a file of the plugin's holds, or what the plugin makes of the words."""
        if not isinstance(value, str):
            piece.fail(UserError(f"{name} is {value!r}, not a string"), None)
            return
        tokenizer = self.tokenizers[name]
        path = self.folder / value
        try:
            if value.lower().endswith(tuple(tokenizer.suffixes)) and _is_file(path):
                content = self._first(piece, name, path)
            else:
                content = tokenizer.parse(value)
        except UserError as error:
            piece.fail(error, None)
            self._note(path, error)
            return
        except Exception as error:
            piece.fail(UserError(f"the tokenizer fails: {type(error).__name__}: {error}", name), None)
            self._note(path, error)
            return
        piece.segments.setdefault(name, []).append(content)

    def _note(self, path: Path, error: Exception) -> None:
        self.references.update((reference[0], reference) for reference in failing(path, error))

    def _first(self, piece: _Piece, name: str, path: Path) -> Any:
        state = path.stat()
        self.references[str(path)] = (str(path), state.st_size, state.st_mtime_ns)
        item = next(iter(self.tokenizers[name].read(path)), None)
        if item is None:
            raise UserError(f"nothing of {name} in {path.name}")
        if isinstance(item.content, UserError):
            raise item.content
        piece.tell(item.metadata)
        return item.content


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # far too long for a name, or a zero byte in it
        return False


def described(document: Document, tokenizers: Mapping[str, Tokenizer]) -> Document:
    """The document with everything that can be computed about it in its metadata.

    What is computed outranks what was given, since it also holds for a shifted copy; among modalities
    the first wins.
    """
    computed: dict[str, Any] = {}
    for name in document.modalities:
        computed = {**tokenizers[name].describe(document.content(name)), **computed}
    return replace(document, metadata=plain({**document.metadata, **computed}))


def plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata that JSON can hold: numpy scalars as numbers, other objects as their str."""
    return {str(key): _plain_value(value) for key, value in metadata.items()}


def _plain_value(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Mapping):
        return plain(value)
    if isinstance(value, list | tuple):
        return [_plain_value(v) for v in value]
    return value.item() if hasattr(value, "item") else str(value)
