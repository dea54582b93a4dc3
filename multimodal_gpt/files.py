"""Text files as a user leaves them, and writes that are whole or not there."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from multimodal_gpt.errors import UserError

BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"


def read_text(path: Path) -> str:
    """All of a UTF-8 file, line ends as they are, without the byte order mark that some editors put in front.

    Raises UserError where the file can't be read or is not UTF-8, with the byte that is wrong.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}"
        fix = "save it as UTF-8, for example: iconv -f latin1 -t utf-8 OLD > NEW"
        raise UserError(what, path, fix) from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise UserError(f"can't be read: {getattr(error, 'strerror', error)}", path) from error
    return text.removeprefix(BOM)


def is_file(name: str) -> bool:
    """Whether what a user typed names a file; False for words that no file system would take as a name."""
    try:
        return Path(name).is_file()
    except (OSError, ValueError):
        return False


def write_text(path: Path, text: str) -> Path:
    """Write a UTF-8 file as a whole or not at all, the reverse of `read_text`; gives the path."""
    return write_bytes(path, (BOM + text if text.startswith(BOM) else text).encode("utf-8"))


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless they are there. Raises UserError where that can't be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder can't be made: {error.strerror}", path, "name another") from error


@contextmanager
def room(where: Path, fix: str) -> Iterator[None]:
    """Raises UserError where a disk or a quota is full."""
    try:
        yield
    except (OSError, UserError) as error:
        cause = error.__cause__ if isinstance(error, UserError) else error
        if not isinstance(cause, OSError) or cause.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError("there is no space left on the disk", where, fix) from error


def write_bytes(path: Path, data: bytes) -> Path:
    """Write a file as a whole or not at all: beside it first, then renamed; gives the path.

    Raises UserError where the folder is missing or may not be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise UserError(f"can't be written: {error.strerror}", path) from error
    finally:
        partial.unlink(missing_ok=True)
    return path
