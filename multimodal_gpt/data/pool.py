"""Worker processes that survive a crash or a hang of any of them, with answers as they come.

Not multiprocessing's pools: one dead worker breaks a ProcessPoolExecutor for all tasks, and spawned ones
run the caller's main script again. Here a worker is a fresh interpreter at the end of a pipe. It ends when
its pipe does (on Linux also when the caller is killed while the worker is busy), and for every task it sets
itself an alarm that the kernel keeps even while C code hangs: so elsewhere it outlives a killed caller by
one task's time at most.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import IO, Any

from multimodal_gpt.errors import UserError

READY = b"ready"
STDERR = 2
TASKS_PER_MESSAGE = 16
SHARES = 8
"""A worker gets one in so many, times the workers, of the tasks that are left."""
STARTS = 3
"""Workers in a row that may be killed while they start: out of memory, they are among the first to go."""
CALL = """
import os, sys
descriptor, caller = map(int, sys.argv[1:])
if sys.platform == "linux":
    import ctypes, signal
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with the caller
if os.getppid() == caller:  # else it was killed before that
    from multimodal_gpt.data.pool import serve
    serve(descriptor)
"""

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""For the libraries below numpy, unless the user has set it: their threads wait by spinning, which took a
third of all CPU time where two workers shared two cores.
"""

Work = Callable[[Any], bytes]


@dataclass(frozen=True, slots=True)
class Task:
    """Something to do and the wall-clock seconds that it may take."""

    what: Any
    seconds: float


@dataclass(frozen=True)
class Lost:
    """In place of an answer: the worker was ended while it was at this task. Kind, and reason in words."""

    kind: str
    reason: str


Answers = Generator[tuple[int, "bytes | Lost"], None, None]


def run(
    make: Callable[[], Work], tasks: Sequence[Task], workers: int, *, ahead: int | None = None
) -> Answers:
    """(index of the task, answer of `make()(task.what)`) as they come; `make` is called once in every
    worker.

    `workers`: 0 = one per core. `ahead`: tasks that may be begun beyond the oldest one that is not finished,
    where the caller keeps answers until it is. Raises UserError where `make` does in a worker, RuntimeError
    where no worker starts.
    """
    with employed(workers) as employ:
        yield from employ(make, tasks, ahead=ahead)


@contextmanager
def employed(workers: int) -> Iterator[Callable[..., Answers]]:
    """`run` without its `workers`, whose workers stay from one call to the next: a start takes them half a
    second.
    """
    idle: list[_Worker] = []
    try:
        yield partial(_run, idle, workers or cores())
    finally:
        _end(idle)


def _run(
    idle: list[_Worker],
    workers: int,
    make: Callable[[], Work],
    tasks: Sequence[Task],
    *,
    ahead: int | None = None,
) -> Answers:
    crew = _Crew(pickle.dumps(make), tasks, workers, ahead, idle)
    try:
        yield from crew.answers()
    finally:
        idle += crew.dismiss()


def cores() -> int:
    """Cores that this process may use, which in a container can be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(answers: Answers) -> Generator[bytes | Lost, None, None]:
    """The answers in the order of the tasks."""
    early: dict[int, bytes | Lost] = {}
    following = 0
    for index, answer in answers:
        early[index] = answer
        while following in early:
            yield early.pop(following)
            following += 1


class Queue:
    """Indexes of tasks: those that nobody has begun, in order, and those to be begun again before them."""

    def __init__(self, tasks: int, workers: int, ahead: int | None) -> None:
        self.tasks, self.workers = tasks, workers
        self.ahead = tasks if ahead is None else max(1, ahead)
        self._again: deque[int] = deque()
        self._next = self._oldest = 0
        self._finished = set[int]()

    @property
    def over(self) -> bool:
        """Whether all tasks are finished."""
        return self._oldest == self.tasks

    def share(self) -> list[int]:
        """Tasks to begin, for one worker: ever fewer, so that all workers end at about the same time (guided
        self-scheduling: Polychronopoulos and Kuck 1987). Empty where there is none now.
        """
        stop = min(self.tasks, self._oldest + self.ahead)
        left = len(self._again) + max(0, stop - self._next)
        number = min(TASKS_PER_MESSAGE, -(-left // (SHARES * self.workers)))
        taken = [self._again.popleft() for _ in range(min(number, len(self._again)))]
        fresh = range(self._next, self._next + number - len(taken))
        self._next = fresh.stop
        return [*taken, *fresh]

    def put_back(self, indexes: Iterable[int]) -> None:
        """Tasks to begin again."""
        self._again.extendleft(reversed(list(indexes)))

    def finished(self, done: list[tuple[int, bytes | Lost]]) -> Answers:
        """Give the answers in a list that is then empty, and note that their tasks have them."""
        for index, answer in done:
            self.finish(index)
            yield index, answer
        done.clear()

    def finish(self, index: int) -> None:
        """Note that a task has its answer."""
        self._finished.add(index)
        while self._oldest in self._finished:
            self._finished.discard(self._oldest)
            self._oldest += 1


class _Crew:
    """Running workers, and what each is at."""

    def __init__(
        self, make: bytes, tasks: Sequence[Task], workers: int, ahead: int | None, idle: list[_Worker]
    ) -> None:
        self.make, self.tasks, self.number = make, tasks, min(workers, len(tasks))
        self.queue, self.idle = Queue(len(tasks), workers, ahead), idle
        self.done: list[tuple[int, bytes | Lost]] = []
        self.workers: list[_Worker] = []
        self.failed_starts = 0

    def answers(self) -> Answers:
        while not self.queue.over:
            while len(self.workers) < self.number:
                self.workers.append(self.idle.pop() if self.idle else _start())
                self.workers[-1].begin(self.make)
            self._hand_out()
            busy = {w.pipe: w for w in self.workers if w.doing or not w.ready}
            for pipe in wait(list(busy)):
                self._listen(busy[pipe])  # type: ignore[index]
            yield from self.queue.finished(self.done)

    def _hand_out(self) -> None:
        for worker in self.workers:
            if worker.ready and not worker.doing:
                worker.doing.extend(self.queue.share())
                if worker.doing:
                    worker.tell([self.tasks[index] for index in worker.doing])

    def _listen(self, worker: _Worker) -> None:
        try:
            message = worker.pipe.recv_bytes()
        except (EOFError, OSError):
            self._bury(worker)
            return
        if worker.ready:
            self.done.append((worker.doing.popleft(), message))
        elif message == READY:
            worker.ready, self.failed_starts = True, 0
        else:
            raise pickle.loads(message)

    def _bury(self, worker: _Worker) -> None:
        code = worker.process.wait()
        if not worker.ready:
            self.failed_starts += 1
            if code >= 0 or self.failed_starts == STARTS:
                raise RuntimeError(f"a worker process does not start: {worker.last_words()}")
        if worker.doing:
            index = worker.doing.popleft()
            self.done.append((index, _lost(code, self.tasks[index].seconds)))
        self.queue.put_back(worker.doing)
        worker.end()
        self.workers.remove(worker)

    def dismiss(self) -> list[_Worker]:
        """End the workers that are busy; gives the others."""
        _end([w for w in self.workers if w.doing or not w.ready])
        return [w for w in self.workers if w.ready and not w.doing]


def _end(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.process.kill()  # all of them before `end` waits for one
    for worker in workers:
        worker.end()


def _lost(code: int, seconds: float) -> Lost:
    if code == -signal.SIGALRM:
        return timed_out(seconds)
    return died(f"signal {-code}" if code < 0 else f"exit code {code}")


def timed_out(seconds: float) -> Lost:
    """A task that took too long."""
    return Lost("timed out", f"takes longer than {seconds:g} s")


def died(how: str) -> Lost:
    """A task that a worker did not survive."""
    return Lost("worker died", f"the process that read it died ({how})")


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    pipe: Connection
    log: IO[bytes]
    ready: bool = False
    doing: deque[int] = field(default_factory=deque)

    def begin(self, make: bytes) -> None:
        self.ready = False
        self.tell(make)

    def tell(self, message: bytes | list[Task]) -> None:
        with suppress(OSError):  # it is dead: the next `_listen` finds out and says why
            self.pipe.send(message)

    def last_words(self) -> str:
        self.log.seek(0)
        lines = self.log.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self.process.returncode}"

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.pipe.close()
        self.log.close()


def _start() -> _Worker:
    ours, theirs = Pipe()
    log = _log()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", CALL, str(theirs.fileno()), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # C libraries print there
            stderr=log,
            pass_fds=[theirs.fileno()],
            env={**ONE_THREAD, **os.environ, "PYTHONPATH": search_path()},
        )
    finally:
        theirs.close()
    return _Worker(process, ours, log)


def _log() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile()
    except OSError:  # the disk is full
        return open(os.devnull, "w+b")  # noqa: PTH123 - closed in `end`


def search_path() -> str:
    """A PYTHONPATH with which another interpreter finds all that this one does."""
    return os.pathsep.join(p or str(Path.cwd()) for p in sys.path)


def serve(descriptor: int) -> None:
    """The life of a worker: gets what to call, then tasks to answer, and again, until its pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    pipe: Connection = Connection(descriptor)
    log, nowhere = os.dup(STDERR), os.open(os.devnull, os.O_WRONLY)
    with suppress(EOFError, OSError):  # the caller is gone or has no more work
        while True:
            message = pipe.recv()
            if isinstance(message, bytes):
                os.dup2(log, STDERR)
                try:
                    work: Work = pickle.loads(message)()
                except UserError as error:
                    pipe.send_bytes(pickle.dumps(error))
                    return
                pipe.send_bytes(READY)
                os.dup2(nowhere, STDERR)  # a million warnings fill a disk
            else:
                _answer(message, work, pipe)


def _answer(tasks: list[Task], work: Work, pipe: Connection) -> None:
    for task in tasks:
        signal.setitimer(signal.ITIMER_REAL, task.seconds)
        answer = work(task.what)
        signal.setitimer(signal.ITIMER_REAL, 0)
        pipe.send_bytes(answer)
