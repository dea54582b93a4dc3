"""Folders, books and .jsonl files -> documents, lazily and in sorted order, with a word on every file."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.document import Document, Segment
from multimodal_gpt.stream.tokenizer import Item, Tokenizer

LINES = ".jsonl"
LINES_PER_GROUP = 256
"""Lines of a .jsonl file that are read as one task."""
NOTHING, UNREADABLE, PARTLY = "nothing usable", "unreadable", "kept in part"
"""Kinds of `Skip` that reading can give."""


@dataclass(frozen=True)
class Source:
    """Files that belong together in the recipe: a folder, a file or a named corpus.

    Args:
        label: first part of the names of its documents, made unique among the roots of a recipe.
        root: folder that the names of its files are relative to.
        files: (name, path), sorted.
        held_out: all its documents are for validation.
    """

    label: str
    root: Path
    files: tuple[tuple[str, Path], ...]
    held_out: bool = False


@dataclass(frozen=True)
class Group:
    """Files that share folder and stem, read as one task: one document, or the many of a book.

    Args:
        name: path below the source, with the source's label and without suffix.
        paths: sorted.
        size: bytes of all its files.
        lines: for a part of a .jsonl file: number of the first line (from 1), its first byte, and one
            past
            the last byte.
    """

    name: str
    paths: tuple[Path, ...]
    size: int
    held_out: bool = False
    lines: tuple[int, int, int] | None = None

    @property
    def title(self) -> str:
        """What a report calls it."""
        return f"{self.name}#{self.lines[0]}" if self.lines else self.name


@dataclass(frozen=True)
class Listing:
    """Groups by name, ignored files by suffix, and (name, bytes, time of change in ns) of the used files."""

    groups: tuple[Group, ...]
    ignored: Mapping[str, int]
    files: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Skip:
    """A file or piece that is not used (or, `PARTLY`, not all of it), its kind and the reason in words."""

    source: str
    kind: str
    reason: str


def folder_source(path: Path, *, held_out: bool = False, where: str = "data.folders") -> Source:
    """All files below a folder but hidden ones; symlinked folders are followed once. Raises UserError."""
    if path.is_file():
        root = path.absolute().parent
        return Source(root.name, root, ((path.name, path),), held_out)
    if not path.is_dir():
        raise UserError(f"there is no folder or file '{path}'", where, "check the name")
    top = str(path.absolute())
    found = tuple((file[len(top) :].lstrip("/"), Path(file)) for file in _walk(top, set()))
    if not found:
        raise UserError(f"the folder '{path}' is empty", where, "put files in it, or name another folder")
    return Source(path.resolve().name, path.absolute(), found, held_out)


def _walk(folder: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    # os.scandir and strings, not Path: 4 times as fast, which counts with 100,000 files.
    place = os.stat(folder)  # noqa: PTH116
    if (place.st_dev, place.st_ino) in seen:
        return
    seen.add((place.st_dev, place.st_ino))
    with os.scandir(folder) as found:
        entries = sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)
    for entry in entries:
        if entry.is_dir() and os.access(entry.path, os.R_OK | os.X_OK):
            yield from _walk(entry.path, seen)
        else:
            yield entry.path


def list_files(sources: Sequence[Source], suffixes: Iterable[str]) -> Listing:
    """Group the files of all sources; a file that is reached twice counts where it is held out, else
    once.

    Raises UserError where no file has one of the suffixes.
    """
    known = sorted({LINES, *suffixes}, key=lambda s: (-len(s), s))
    ignored: Counter[str] = Counter()
    groups: dict[str, Group] = {}
    files: dict[tuple[int, int], tuple[str, int, int]] = {}  # by device and inode
    for source in sorted(_labelled(sources), key=lambda s: not s.held_out):
        for name, path in source.files:
            suffix = next((s for s in known if name.lower().endswith(s)), None)
            state = _state(path) if suffix else None
            if suffix is None or state is None:
                ignored[path.suffix.lower() or path.name] += 1
                continue
            if (state.st_dev, state.st_ino) in files:
                continue
            full = _printable("/".join(part for part in (source.label, name) if part))
            files[state.st_dev, state.st_ino] = (full, state.st_size, state.st_mtime_ns)
            # A .jsonl file holds whole documents: it never joins the other files of its stem.
            stem = full if suffix == LINES else full[: -len(suffix)]
            old = groups.get(stem, Group(stem, (), 0, source.held_out))
            groups[stem] = replace(old, paths=(*old.paths, path), size=old.size + state.st_size)
    if not groups:
        found = ", ".join(f"{n} {s}" for s, n in sorted(ignored.items())) or "nothing"
        places = ", ".join(repr(s.label or s.files[0][0]) for s in sources)
        fix = "files that are read: " + " ".join(sorted(known))
        raise UserError(f"no file in {places} can be used; found {found}", "data", fix)
    ordered = tuple(groups[stem] for stem in sorted(groups))
    return Listing(ordered, dict(sorted(ignored.items())), tuple(sorted(files.values())))


def _state(path: Path) -> os.stat_result | None:
    """What the system knows of a file; None for a broken link, a pipe, a folder that may not be read."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state if stat.S_ISREG(state.st_mode) else None


def _labelled(sources: Sequence[Source]) -> Iterator[Source]:
    """The sources with labels made unique: two folders called `tunes` become `tunes` and `tunes~2`."""
    labels: dict[Path, str] = {}
    taken: Counter[str] = Counter()
    for source in sources:
        root = source.root.resolve()
        if root not in labels:
            taken[source.label] += 1
            again = taken[source.label]
            labels[root] = source.label if again == 1 else f"{source.label}~{again}"
        yield replace(source, label=labels[root])


def split_lines(groups: Iterable[Group], lines: int = LINES_PER_GROUP) -> Iterator[Group]:
    """The same groups, .jsonl files cut into parts of so many `lines`, which workers can share out."""
    for group in groups:
        path = group.paths[0]
        if not path.name.lower().endswith(LINES):
            yield group
            continue
        first, begin, stop = group.lines or (1, 0, group.size)
        place = begin
        with path.open("rb") as file:
            file.seek(begin)
            for number, line in enumerate(file, start=first):
                place += len(line)
                if number - first + 1 == lines or place >= stop:
                    yield replace(group, size=place - begin, lines=(first, begin, place))
                    first, begin = number + 1, place
                if place >= stop:
                    break


def read_group(group: Group, tokenizers: Mapping[str, Tokenizer]) -> list[Document | Skip]:
    """The documents of a group in the order of the files, and a Skip for everything that can't be used."""
    return _read_lines(group, tokenizers) if group.lines else _read_files(group, tokenizers)


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


def _read_files(group: Group, tokenizers: Mapping[str, Tokenizer]) -> list[Document | Skip]:
    pieces: dict[str, _Piece] = {}
    whole = _Piece()
    readers: list[str] = []
    for path in group.paths:
        for name, tokenizer in tokenizers.items():
            if not path.name.lower().endswith(tuple(tokenizer.suffixes)):
                continue
            readers.append(name)
            for item in _items(tokenizer, path):
                if isinstance(item, UserError):
                    whole.fail(item, path)
                else:
                    pieces.setdefault(item.key, _Piece()).add(name, item, path)
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
    return _printable(f"{group.name}#{key}") if key else group.name


def _printable(name: str) -> str:
    r"""A file name as UTF-8 can store it: bytes that are not UTF-8 become \xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _listed(names: Sequence[str]) -> str:
    unique = list(dict.fromkeys(names))
    return " or ".join(filter(None, [", ".join(unique[:-1]), unique[-1]])) if unique else "any modality"


def _items(tokenizer: Tokenizer, path: Path) -> Iterator[Item | UserError]:
    try:
        yield from tokenizer.read(path)
    except UserError as error:
        yield error
    except Exception as error:  # a plugin's mistake must cost one file, not the whole run
        yield UserError(f"the tokenizer fails: {type(error).__name__}: {error}")


def _read_lines(group: Group, tokenizers: Mapping[str, Tokenizer]) -> list[Document | Skip]:
    first, begin, stop = group.lines or (1, 0, 0)
    (path,) = group.paths
    with path.open("rb") as file:
        file.seek(begin)
        lines = file.read(stop - begin).split(b"\n")
    results: list[Document | Skip] = []
    for number, line in enumerate(lines, start=first):
        if line.strip():
            results += _read_line(line, f"{group.name}#{number}", path.parent, tokenizers)
    return results


def _read_line(
    line: bytes, source: str, folder: Path, tokenizers: Mapping[str, Tokenizer]
) -> list[Document | Skip]:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        return [Skip(source, UNREADABLE, f"is not JSON: {error}")]
    if not isinstance(record, dict):
        return [Skip(source, UNREADABLE, "is not a JSON object")]
    piece = _Piece(metadata={k: v for k, v in record.items() if k not in tokenizers and v is not None})
    for name, tokenizer in tokenizers.items():
        given = record.get(name)
        for value in given if isinstance(given, list) else [] if given is None else [given]:
            _parse(piece, name, tokenizer, value, folder)
    nothing = f"no key of this line is a modality ({_listed(list(tokenizers))})"
    return piece.results(source, tokenizers, nothing)


def _parse(piece: _Piece, name: str, tokenizer: Tokenizer, value: Any, folder: Path) -> None:
    """Add one value of a line: what a file of the plugin's holds, or what the plugin makes of the words."""
    if not isinstance(value, str):
        piece.fail(UserError(f"{name} is {value!r}, not a string"), None)
        return
    try:
        path = folder / value
        if value.lower().endswith(tuple(tokenizer.suffixes)) and _is_file(path):
            item = next(iter(tokenizer.read(path)), None)
            if item is None:
                raise UserError(f"nothing of {name} in {value}")
            if isinstance(item.content, UserError):
                raise item.content
            piece.tell(item.metadata)
            content = item.content
        else:
            content = tokenizer.parse(value)
    except UserError as error:
        piece.fail(error, None)
        return
    except Exception as error:
        piece.fail(UserError(f"the tokenizer fails: {type(error).__name__}: {error}", name), None)
        return
    piece.segments.setdefault(name, []).append(content)


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
