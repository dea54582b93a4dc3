"""One file from a server: continued where it broke off, refused where it is not the size it should be."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from multimodal_gpt import __version__, console
from multimodal_gpt.errors import UserError

TIMEOUT = 30.0
"""Seconds without a byte before a server counts as gone."""
BLOCK = 1 << 16
"""Bytes read at once."""
LARGEST = 64 << 30
"""Bytes after which a file of unknown size is given up."""
GONE = (OSError, http.client.HTTPException)
HANDLERS = (
    urllib.request.ProxyHandler,
    urllib.request.HTTPHandler,
    urllib.request.HTTPSHandler,
    urllib.request.HTTPRedirectHandler,
    urllib.request.HTTPErrorProcessor,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.UnknownHandler,
)
"""No handler for ftp:, file: or data:, so that no server can redirect there."""


def download(url: str, path: Path, size: int | None, label: str) -> None:
    """Fetch a http or https address into `path`, going on after the bytes that are there already.

    `size` (bytes) is what the whole file must have, None where that is unknown. What has come stays for the
    next call. Raises UserError where the server can't be reached, refuses, offers another size or breaks off.
    """
    with _locked(path) as file:
        start = file.tell()
        if size is not None and start > size:
            start = _emptied(file)
        if size is None or start < size:
            _append(url, file, start, size, label)


def _append(url: str, file: IO[bytes], start: int, size: int | None, label: str) -> None:
    answer = _ask(url, start)
    if answer is None:
        return
    with answer:
        if start and not _continues(answer, start):
            start = _emptied(file)
        total = _total(answer, start)
        if size is not None and total not in (None, size):
            raise UserError(
                f"offers {total} bytes where {size} are expected", host(url), "the file has changed"
            )
        with console.progress(None if total is None else total // 1000, f"{label}, kB") as bar:
            done = _write(_blocks(answer, url), file, start, total or size or LARGEST, bar)
    if total is not None and done < total:
        what = f"broke off after {done} of {total} bytes"
        raise UserError(what, host(url), "run the same command again to continue")


def _emptied(file: IO[bytes]) -> int:
    """Begin anew; gives the new position, 0."""
    file.seek(0)
    return file.truncate()


def _ask(url: str, start: int) -> Any | None:
    """The server's answer to a request for everything from byte `start` on; None where there is no more."""
    opener = urllib.request.OpenerDirector()
    for handler in HANDLERS:
        opener.add_handler(handler())
    headers = {"User-Agent": f"multimodal_gpt/{__version__}"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        return opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            return None if error.headers.get("Content-Range") == f"bytes */{start}" else _ask(url, 0)
        raise UserError(f"answered {error.code} {error.reason}", host(url), _by_hand(url)) from error
    except GONE as error:
        raise _unreachable(url, error) from error


def host(url: str) -> str:
    """Where an address leads, without the password that may stand in it.

    Example:
        >>> host("https://me:secret@example.org:8080/tunes.zip")
        'example.org:8080'
    """
    return urlsplit(url).netloc.rpartition("@")[2]


def _continues(answer: Any, start: int) -> bool:
    """Whether the server goes on from `start` instead of sending everything again."""
    span = str(answer.headers.get("Content-Range", ""))
    return answer.status == http.client.PARTIAL_CONTENT and span.startswith(f"bytes {start}-")


def _total(answer: Any, start: int) -> int | None:
    """Bytes of the whole file, as the server says; None where it doesn't."""
    length = str(answer.headers.get("Content-Length", ""))
    return start + int(length) if length.isdigit() else None


def _blocks(answer: Any, url: str) -> Iterator[bytes]:
    try:
        while block := answer.read(BLOCK):
            yield block
    except GONE as error:
        raise _unreachable(url, error) from error


def _write(blocks: Iterator[bytes], file: IO[bytes], done: int, most: int, bar: console.Progress) -> int:
    """Append the blocks to the `done` bytes that are there; gives the new length."""
    bar.advance(done // 1000)
    for block in blocks:
        if done + len(block) > most:
            raise UserError(f"sends more than the {most} bytes expected", file.name)
        file.write(block)
        bar.advance((done + len(block)) // 1000 - done // 1000)
        done += len(block)
    return done


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """The file, open for appending, in this process alone. Raises UserError where it can't be written."""
    try:
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                yield file
            finally:
                file.flush()
                if not path.stat().st_size:  # nothing came, nothing stays
                    path.unlink()
    except BlockingIOError as error:
        raise UserError("is being downloaded by another process", path, "wait for it") from error
    except OSError as error:
        raise UserError(f"can't be written: {error.strerror}", path) from error


def _unreachable(url: str, error: Exception) -> UserError:
    reason = error.reason if isinstance(error, URLError) else error
    words = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return UserError(f"can't reach {host(url)}: {words}", fix=_by_hand(url))


def _by_hand(url: str) -> str:
    return f"download {url} by hand and add --from FILE"
