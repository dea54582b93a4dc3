"""Archives that others made: only plain files, only inside one folder, only so many bytes."""

from __future__ import annotations

import gzip
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

from multimodal_gpt.errors import UserError

Kind = Literal["zip", "tar.gz"]
Member = tuple[str, Callable[[], Any] | None]
"""Name inside the archive, and how to open it; None for links and devices, which are never unpacked."""

BLOCK = 1 << 20
"""Bytes read at once."""
MOST_GROWTH = 100
"""Bytes unpacked per byte of archive; scores shrink tenfold, deflate can reach a thousand."""
ALWAYS_ALLOWED = 64 << 20
"""Bytes that even the smallest archive may unpack to."""
MOST_FILES = 1_000_000
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError, NotImplementedError)


@dataclass(frozen=True)
class Unpacked:
    """What came out: number of files, their bytes, and the names of the links and devices left out."""

    files: int
    bytes: int
    left_out: tuple[str, ...]


class _Limited:
    """A stream that refuses to give more than `limit` bytes, whatever the headers inside it promise."""

    def __init__(self, stream: gzip.GzipFile, limit: int) -> None:
        self._stream, self._left = stream, limit

    def read(self, count: int) -> bytes:
        block = self._stream.read(min(count, self._left + 1))
        self._left -= len(block)
        if self._left < 0:
            raise _too_large()
        return block


def unpack(
    archive: Path, into: Path, kind: Kind, *, folder: str = "", keep: Sequence[str] = ("*",)
) -> Unpacked:
    """Unpack the files below `folder` of an archive that match one of the patterns `keep`.

    A pattern is matched, whatever the case, against the path below `folder`; `*` also matches '/'. Hidden
    files are left out. Raises UserError for a damaged archive, a path that leads outside, too many files or
    bytes; what was written until then stays.
    """
    limit = max(ALWAYS_ALLOWED, MOST_GROWTH * archive.stat().st_size)
    try:
        return _write_members(_members(archive, kind, limit), into, limit, partial(_wanted, folder, keep))
    except UserError as error:
        raise error.within(archive.name) from error
    except DAMAGED as error:
        raise UserError(f"can't be unpacked as {kind}: {error}", archive) from error
    except OSError as error:  # a full disk; gzip.BadGzipFile is one, too
        raise UserError(f"can't be unpacked as {kind}: {error.strerror or error}", archive) from error


def _members(archive: Path, kind: Kind, limit: int) -> Iterator[Member]:
    return _zip_members(archive) if kind == "zip" else _tar_members(archive, limit)


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            if not info.is_dir():
                is_plain = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
                yield info.filename, partial(opened.open, info) if is_plain else None


def _tar_members(archive: Path, limit: int) -> Iterator[Member]:
    with (
        gzip.open(archive) as stream,
        tarfile.open(fileobj=_Limited(stream, limit), mode="r|") as opened,  # type: ignore[call-overload]
    ):
        for info in opened:
            if not info.isdir():
                yield info.name, partial(opened.extractfile, info) if info.isreg() else None


def _write_members(
    members: Iterator[Member], into: Path, limit: int, wanted: Callable[[PurePosixPath], PurePosixPath | None]
) -> Unpacked:
    files, written, left_out = set(), 0, []
    for name, opener in members:
        path = wanted(_inside(name))
        if path is None:
            continue
        if opener is None:
            left_out.append(name)
            continue
        target = into / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with opener() as source, target.open("wb") as out:
            written += _copy(source, out, limit - written)
        files.add(path)
        if len(files) > MOST_FILES:
            raise UserError(f"holds more than {MOST_FILES} files")
    return Unpacked(len(files), written, tuple(left_out))


def _inside(name: str) -> PurePosixPath:
    """The path of a member. Raises UserError where it leads out of the folder that it is unpacked into."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise UserError(f"holds a path that leads outside: {name!r}", fix="nothing was unpacked")
    return path


def _wanted(folder: str, keep: Sequence[str], path: PurePosixPath) -> PurePosixPath | None:
    """The path below `folder` of a member that is wanted, else None."""
    if not path.is_relative_to(folder) or path == PurePosixPath(folder):
        return None
    below = path.relative_to(folder)
    if any(part.startswith(".") or part == "__MACOSX" for part in below.parts):
        return None
    return below if any(fnmatchcase(str(below).lower(), pattern.lower()) for pattern in keep) else None


def _copy(source: IO[bytes], out: IO[bytes], most: int) -> int:
    """Copy a stream, at most so many bytes; gives how many."""
    count = 0
    while block := source.read(BLOCK):
        count += len(block)
        if count > most:
            raise _too_large()
        out.write(block)
    return count


def _too_large() -> UserError:
    what = f"grows to more than {MOST_GROWTH} times its size"
    return UserError(what, fix="nothing was unpacked; unpack it by hand if you trust it")
