"""Archives of tunes, and a server that answers well and badly."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from multimodal_gpt.errors import UserError
from multimodal_gpt.fetch import datasets

TUNES = {
    "set/a.abc": b"X:1\nT:A\nK:C\nCDEF|\n" * 40,
    "set/more/b.ABC": bytes(range(256)) * 20,
    "set/readme.txt": b"read me",
}
KEEP = ["*.abc"]
WANTED = {name: content for name, content in TUNES.items() if name.lower().endswith(".abc")}


def zipped(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(members: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return buffer.getvalue()


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != datasets.NOTE)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def refusal(call: Callable[..., object], *arguments: Any, **named: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **named)
    return str(caught.value)


class Server(ThreadingHTTPServer):
    """Serves `files`; `ranges`: whether it can continue; `breaks_at`: bytes after which it hangs up."""

    daemon_threads = True
    files: dict[str, bytes]
    ranges = True
    breaks_at: int | None = None
    says_length = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked = {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"

    asked: list[tuple[str, str | None, int]]
    """What was asked for: path, Range header, status of the answer."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        content, span = self.server.files.get(self.path), self.headers["Range"]
        start = int(re.findall(r"\d+", span)[0]) if span and self.server.ranges else 0
        if self.path == "/elsewhere":
            return self.answer(302, {"Location": "file:///etc/passwd"}, b"")
        if content is None:
            return self.answer(404, {}, b"no")
        if start and start >= len(content):
            return self.answer(416, {"Content-Range": f"bytes */{len(content)}"}, b"")
        length = {"Content-Length": str(len(content) - start)} if self.server.says_length else {}
        if start:
            length["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self.answer(206 if start else 200, length, content[start : self.server.breaks_at])

    def answer(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        self.server.asked.append((self.path, self.headers["Range"], status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass
