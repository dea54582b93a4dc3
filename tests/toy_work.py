"""What worker processes are given to do in tests, and which of them there are."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from multimodal_gpt.data.pool import CALL
from multimodal_gpt.errors import UserError

BAD_WORDS = ("exit", "crash", "sleep", "spin", "hang")


def make() -> Callable[[Any], bytes]:
    return do


def make_loud() -> Callable[[Any], bytes]:
    return lambda word: do(word).upper()


def make_refusing() -> Callable[[Any], bytes]:
    raise UserError("no such letters", "my.yaml", "use others")


def make_failing() -> Callable[[Any], bytes]:
    raise ZeroDivisionError("oops")


def make_killed(counts: Path, times: int) -> Callable[[Any], bytes]:
    """Its first `times` workers are killed while they start."""
    with counts.open("a") as file:
        file.write(".")
    if counts.stat().st_size <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return do


def do(word: Any) -> bytes:
    if word == "exit":
        os._exit(7)
    if word == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if word == "sleep":
        time.sleep(60)
    while word == "spin":
        pass
    if word == "hang":
        ctypes.PyDLL(None).pause()  # in C, and without ever giving up the interpreter's lock
    if isinstance(word, float):
        time.sleep(word)
    return str(word).encode()


def workers(parent: int | None = None) -> list[int]:
    """Workers of a pool that are children of `parent`, else all that there are (Linux)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            above = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        if CALL.encode() in command and parent in (None, above):
            found.append(int(folder.name))
    return found


def gone(pids: list[int], seconds: float) -> bool:
    """Whether these processes end within some time."""
    until = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
