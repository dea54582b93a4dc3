"""Which files there are: sources -> groups of files, in sorted order, large ones in parts."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.tokenizer import Tokenizer

LINES = ".jsonl"
LINES_PER_GROUP = 256
"""Lines of a .jsonl file that are read as one task."""
BYTES_PER_PART = 65536
"""Bytes of a book that are read as one task."""
PARTS_AGAIN = 16
"""Parts into which one is cut that cost a worker its life."""
SMALLEST_PART = 256
"""Bytes: nothing smaller is cut again."""


@dataclass(frozen=True)
class Source:
    """Files that belong together in the recipe: a folder, a file or a named corpus.

    Args:
        label: first part of the names of its documents, made unique among the roots of a recipe.
        root: folder that the names of its files are relative to.
        files: their names below the root, sorted.
        held_out: all its documents are for validation.
    """

    label: str
    root: Path
    files: tuple[str, ...]
    held_out: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Files that share folder and stem, read as one task: one document, or the many of a book.

    Args:
        name: path below the source, with the source's label and without suffix.
        paths: sorted.
        size: bytes of all its files; of its lines, where it is a part of a .jsonl file.
        state: what changes when a file of it does: times of change in ns; of lines their SHA-256.
        lines: for a part of a .jsonl file: number of the first line (from 1), its first byte, and one past
            the last byte.
        part: which of how many parts of a book.
    """

    name: str
    paths: tuple[str, ...]
    size: int
    held_out: bool = False
    state: tuple[int | str, ...] = ()
    lines: tuple[int, int, int] | None = None
    part: tuple[int, int] = (0, 1)

    @property
    def title(self) -> str:
        """What a report calls it."""
        if self.lines:
            return f"{self.name}#{self.lines[0]}"
        part, parts = self.part
        return self.name if parts == 1 else f"{self.name} (part {part + 1} of {parts})"

    def key(self, rules: str) -> bytes:
        """(16,) bytes that change when one of its files or the rules do."""
        names = [p.rpartition("/")[2] for p in self.paths]
        content = [rules, self.name, names, self.size, self.held_out, self.state, self.lines, self.part]
        return hashlib.sha256(json.dumps(content).encode("utf-8", "surrogatepass")).digest()[:16]


@dataclass(frozen=True)
class Listing:
    """Groups by name, ignored files by suffix, a hash of the used files, and the labels of the sources."""

    groups: tuple[Group, ...]
    ignored: Mapping[str, int]
    fingerprint: str
    labels: tuple[str, ...]


def folder_source(path: Path, *, held_out: bool = False, where: str = "data.folders") -> Source:
    """All files below a folder but hidden ones; symlinked folders are followed once. Raises UserError."""
    if path.is_file():
        root = path.absolute().parent
        return Source(root.name, root, (path.name,), held_out)
    if not path.is_dir():
        raise UserError(f"there is no folder or file '{path}'", where, "check the name")
    top = str(path.absolute())
    found = tuple(file[len(top) :].lstrip("/") for file in _walk(top, set()))
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
        if _is_folder(entry):
            yield from _walk(entry.path, seen)
        else:
            yield entry.path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder that may be read; a link that leads to itself is none."""
    try:
        return entry.is_dir() and os.access(entry.path, os.R_OK | os.X_OK)
    except OSError:
        return False


def list_files(sources: Sequence[Source], suffixes: Iterable[str]) -> Listing:
    """Group the files of all sources; a file that is reached twice counts where it is held out, else
    once.

    Raises UserError where no file has one of the suffixes.
    """
    known = sorted({LINES, *suffixes}, key=lambda s: (-len(s), s))
    ignored: Counter[str] = Counter()
    groups: dict[str, Group] = {}
    seen: set[tuple[int, int]] = set()  # device and inode
    labelled = sorted(_labelled(sources), key=lambda s: not s.held_out)
    for source in labelled:
        for name in source.files:
            path = f"{source.root}/{name}"
            suffix = next((s for s in known if name.lower().endswith(s)), None)
            state = _state(path) if suffix else None
            if suffix is None or state is None:
                ignored[Path(name).suffix.lower() or Path(name).name] += 1
                continue
            if (state.st_dev, state.st_ino) in seen:
                continue
            seen.add((state.st_dev, state.st_ino))
            full = printable("/".join(part for part in (source.label, name) if part))
            # A file that may not be read changes when it may.
            changed = state.st_mtime_ns if os.access(path, os.R_OK) else -1
            # A .jsonl file holds whole documents: it never joins the other files of its stem.
            stem = full if suffix == LINES else full[: -len(suffix)]
            old = groups.get(stem, Group(stem, (), 0, source.held_out))
            groups[stem] = replace(
                old,
                paths=(*old.paths, path),
                size=old.size + state.st_size,
                state=(*old.state, state.st_size, changed),
            )
    if not groups:
        found = ", ".join(f"{n} {s}" for s, n in sorted(ignored.items())) or "nothing"
        places = ", ".join(repr(s.label or s.files[0]) for s in sources)
        fix = "files that are read: " + " ".join(sorted(known))
        raise UserError(f"no file in {places} can be used; found {found}", "data", fix)
    ordered = tuple(groups[stem] for stem in sorted(groups))
    labels = tuple(dict.fromkeys(s.label for s in labelled))
    return Listing(ordered, dict(sorted(ignored.items())), _fingerprint(ordered), labels)


def _fingerprint(groups: Iterable[Group]) -> str:
    """Changes when a name, the size or the time of change of a file does, but not with where they lie."""
    digest = hashlib.sha256()
    for group in groups:
        digest.update(group.key(""))
    return digest.hexdigest()


def _state(path: str) -> os.stat_result | None:
    """What the system knows of a file; None for a broken link, a pipe, a folder that may not be read."""
    try:
        state = os.stat(path)  # noqa: PTH116
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


def split_groups(groups: Iterable[Group], tokenizers: Mapping[str, Tokenizer]) -> Iterator[Group]:
    """The same groups, large books and .jsonl files cut into parts that workers can share out."""
    for group in groups:
        if group.paths[0].lower().endswith(LINES):
            yield from _split_lines(group, LINES_PER_GROUP)
        elif group.size > BYTES_PER_PART and _in_parts(group, tokenizers):
            parts = -(-group.size // BYTES_PER_PART)
            yield from (replace(group, size=BYTES_PER_PART, part=(i, parts)) for i in range(parts))
        else:
            yield group


def split_again(group: Group) -> list[Group]:
    """Smaller parts of a part that cost a worker its life; none where it can't be cut further."""
    if group.lines:
        single = list(_split_lines(group, 1))
        return single if len(single) > 1 else []
    part, parts = group.part
    if parts == 1 or group.size // PARTS_AGAIN < SMALLEST_PART:
        return []
    first, size = part * PARTS_AGAIN, group.size // PARTS_AGAIN
    cut = range(first, first + PARTS_AGAIN)
    return [replace(group, size=size, part=(i, parts * PARTS_AGAIN)) for i in cut]


def _in_parts(group: Group, tokenizers: Mapping[str, Tokenizer]) -> bool:
    """Whether the group is one file that all its readers can read in parts."""
    name = group.paths[0].lower()
    readers = [t for t in tokenizers.values() if name.endswith(tuple(t.suffixes))]
    books = (getattr(t, "book_suffixes", t.suffixes) if hasattr(t, "read_part") else () for t in readers)
    return len(group.paths) == 1 and all(name.endswith(tuple(suffixes)) for suffixes in books)


def _split_lines(group: Group, lines: int) -> Iterator[Group]:
    first, begin, stop = group.lines or (1, 0, group.size)
    if not stop or not os.access(group.paths[0], os.R_OK):
        yield replace(group, lines=(first, begin, stop))  # whoever reads it finds out
        return
    place, digest = begin, hashlib.sha256()
    with Path(group.paths[0]).open("rb") as file:
        file.seek(begin)
        for number, line in enumerate(file, start=first):
            place += len(line)
            digest.update(line)
            if number - first + 1 == lines or place >= stop:
                span, state = (first, begin, place), (digest.hexdigest(),)
                yield replace(group, size=place - begin, state=state, lines=span)
                first, begin, digest = number + 1, place, hashlib.sha256()
            if place >= stop:
                break


def printable(name: str) -> str:
    r"""A file name as UTF-8 can store it: bytes that are not UTF-8 become \xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
