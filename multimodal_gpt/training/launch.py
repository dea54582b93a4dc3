"""Starting the processes of a run on one machine, and ending them together."""

from __future__ import annotations

import io
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any

from multimodal_gpt.console import warn
from multimodal_gpt.recipe.load import save_recipe
from multimodal_gpt.recipe.schema import Recipe

GRACE = 15.0
"""Seconds that the others have to end by themselves after one has failed."""
SHOWN = 4000
"""Bytes of what a failed process had to say."""

Child = subprocess.Popen[bytes]


def launch(recipe: Recipe, processes: int, *, restart: bool = False) -> None:
    """Train a recipe in several processes of this machine and wait for them.

    They get what torchrun would tell them. Ctrl-C and SIGTERM are passed on. Raises SystemExit with the code
    of the first process that failed.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        words = ["train", str(save_recipe(recipe, folder / "recipe.yaml")), *(["--restart"] * restart)]
        command = [sys.executable, "-m", "multimodal_gpt", *words]
        port = _free_port()
        errors = [stack.enter_context(TemporaryFile()) for _ in range(processes - 1)]
        children = [
            subprocess.Popen(
                command,
                env={**os.environ, **_told(rank, processes, port)},
                stdout=_stream(sys.stdout) if rank == 0 else subprocess.DEVNULL,
                stderr=errors[rank - 1] if rank else _stream(sys.stderr),
            )
            for rank in range(processes)
        ]
        with _passing_on(children):
            failed = _wait(children)
        if failed is None:
            return
        if failed:
            _show(failed, errors[failed - 1])
        code = children[failed].returncode
        if code < 0:
            warn(f"process {failed} of {processes} was killed by {signal.Signals(-code).name}")
        raise SystemExit(code if code > 0 else 128 - code)


def _told(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process, all on one machine."""
    ranks = dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) | {"GROUP_RANK": "0"}
    sizes = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(size))
    return {**ranks, **sizes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _stream(stream: Any) -> IO[Any] | None:
    """The stream itself where a process can write to it; None = that of this process."""
    try:
        stream.fileno()
    except (AttributeError, OSError, io.UnsupportedOperation):
        return None
    return stream


@contextmanager
def _passing_on(children: Sequence[Child]) -> Iterator[None]:
    """Send signals on to the processes, which save and stop."""

    def heard(number: int, frame: Any) -> None:
        for child in children:
            child.send_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, heard) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(children: Sequence[Child]) -> int | None:
    """Wait for all; the number of the one to blame, None where all went well.

    Where one has failed, the others would wait for it: they are ended after GRACE. To blame is the first that
    failed, but number 0 where it has told the user what is wrong.
    """
    failed, deadline = None, math.inf
    try:
        while None in (codes := [child.poll() for child in children]) and time.monotonic() < deadline:
            if failed is None and any(codes):
                failed = next(i for i, code in enumerate(codes) if code)
                deadline = time.monotonic() + GRACE
            time.sleep(0.05)
    finally:
        for child in children:
            child.kill()
            child.wait()
    codes = [child.returncode for child in children]
    if failed is None or codes[0] == 2:
        return next((i for i, code in enumerate(codes) if code), None)
    return failed


def _show(rank: int, errors: IO[bytes]) -> None:
    size = errors.seek(0, io.SEEK_END)
    errors.seek(max(0, size - SHOWN))
    for line in errors.read().decode("utf-8", "replace").splitlines():
        print(f"process {rank}: {line}", file=sys.stderr)
