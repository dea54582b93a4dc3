"""Worker processes that survive a crash or a hang of any of them, with answers in the order of the
tasks.

Not multiprocessing's pools: one dead worker breaks a ProcessPoolExecutor for all tasks, and spawned ones
run the caller's main script again. Here a worker is a fresh interpreter at the end of a pipe. It ends when
its pipe does, and for every task it sets itself an alarm that the kernel keeps even while C code hangs: so
it outlives a killed caller by one task's time at most.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import IO, Any

from multimodal_gpt.errors import UserError

READY = b"ready"
WINDOW = 1024
"""Tasks that may be finished before the oldest one is: bounds the memory behind a slow file."""
TASKS_PER_MESSAGE = 16
CALL = "import sys; from multimodal_gpt.data.pool import serve; serve(int(sys.argv[1]))"

Work = Callable[[Any], bytes]


@dataclass(frozen=True)
class Task:
    """Something to do and the wall-clock seconds that it may take."""

    what: Any
    seconds: float


@dataclass(frozen=True)
class Lost:
    """In place of an answer: the worker was ended while it was at this task. Kind, and reason in words."""

    kind: str
    reason: str


Answers = Generator["bytes | Lost", None, None]


def run(make: Callable[[], Work], tasks: Sequence[Task], workers: int) -> Answers:
    """The answer of `make()(task.what)` for each task, in order; `make` is called once in every worker.

    Raises UserError where `make` does in a worker, RuntimeError where no worker starts.
    """
    crew = _Crew(pickle.dumps(make), tasks, workers)
    try:
        yield from crew.answers()
    finally:
        crew.dismiss()


class _Crew:
    """Running workers, what each is at, and answers that wait for their turn."""

    def __init__(self, make: bytes, tasks: Sequence[Task], workers: int) -> None:
        self.make, self.tasks = make, tasks
        self.again: deque[int] = deque()
        self.next_task = self.next_answer = 0
        self.done: dict[int, bytes | Lost] = {}
        self.per_message = min(TASKS_PER_MESSAGE, max(1, len(tasks) // (8 * workers)))
        self.workers = [_start(make) for _ in range(min(workers, len(tasks)))]

    def answers(self) -> Answers:
        while self.next_answer < len(self.tasks):
            self._hand_out()
            busy = {w.pipe: w for w in self.workers if w.doing or not w.ready}
            for pipe in wait(list(busy)):
                self._listen(busy[pipe])  # type: ignore[index]
            while self.next_answer in self.done:
                yield self.done.pop(self.next_answer)
                self.next_answer += 1

    def _hand_out(self) -> None:
        for worker in self.workers:
            if worker.ready and not worker.doing:
                indexes = [i for _ in range(self.per_message) if (i := self._take()) is not None]
                worker.doing.extend(indexes)
                if indexes:
                    worker.tell([self.tasks[i] for i in indexes])

    def _take(self) -> int | None:
        if self.again:
            return self.again.popleft()
        if self.next_task >= min(len(self.tasks), self.next_answer + WINDOW):
            return None
        self.next_task += 1
        return self.next_task - 1

    def _listen(self, worker: _Worker) -> None:
        try:
            message = worker.pipe.recv_bytes()
        except (EOFError, OSError):
            self._bury(worker)
            return
        if worker.ready:
            self.done[worker.doing.popleft()] = message
        elif message == READY:
            worker.ready = True
        else:
            raise pickle.loads(message)

    def _bury(self, worker: _Worker) -> None:
        code = worker.process.wait()
        if not worker.ready:
            raise RuntimeError(f"a worker process does not start: {worker.last_words()}")
        if worker.doing:
            index = worker.doing.popleft()
            self.done[index] = _lost(code, self.tasks[index].seconds)
        self.again.extendleft(reversed(worker.doing))
        worker.end()
        self.workers[self.workers.index(worker)] = _start(self.make)

    def dismiss(self) -> None:
        for worker in self.workers:
            worker.end()


def _lost(code: int, seconds: float) -> Lost:
    if code == -signal.SIGALRM:
        return Lost("timed out", f"takes longer than {seconds:g} s")
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return Lost("worker died", f"the process that read it died ({how})")


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    pipe: Connection
    log: IO[bytes]
    ready: bool = False
    doing: deque[int] = field(default_factory=deque)

    def tell(self, tasks: list[Task]) -> None:
        with suppress(OSError):  # it is dead: the next `_listen` finds out
            self.pipe.send(tasks)

    def last_words(self) -> str:
        self.log.seek(0)
        lines = self.log.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self.process.returncode}"

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.pipe.close()
        self.log.close()


def _start(make: bytes) -> _Worker:
    ours, theirs = Pipe()
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`
    path = os.pathsep.join(p or str(Path.cwd()) for p in sys.path)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", CALL, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # C libraries print there
            stderr=log,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": path},
        )
    finally:
        theirs.close()
    worker = _Worker(process, ours, log)
    with suppress(OSError):  # it died at once: `_listen` finds out and says why
        ours.send_bytes(make)
    return worker


def serve(descriptor: int) -> None:
    """The life of a worker: gets what to call, then answers tasks until its pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    pipe: Connection = Connection(descriptor)
    try:
        work = pickle.loads(pipe.recv_bytes())()
    except UserError as error:
        pipe.send_bytes(pickle.dumps(error))
        return
    try:
        pipe.send_bytes(READY)
        while True:
            for task in pipe.recv():
                signal.setitimer(signal.ITIMER_REAL, task.seconds)
                answer = work(task.what)
                signal.setitimer(signal.ITIMER_REAL, 0)
                pipe.send_bytes(answer)
    except (EOFError, OSError):
        return  # the caller is gone or has no more work
