"""The same as `pool.run` on Ray (extra `ray`), for people with a cluster: actors in place of processes.

All machines must see the same files under the same names, and have the same version of this package.
"""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from multimodal_gpt.data import pool
from multimodal_gpt.data.pool import Answers, Lost, Queue, Task, Work
from multimodal_gpt.errors import UserError

GRACE = 10.0
"""Seconds beyond its time after which an actor ends itself, should whoever watches it be gone."""
STORE_BYTES = 256 * 2**20
"""Shared memory of a local Ray for answers on their way; more of them than that go to disk."""


def run(
    make: Callable[[], Work], tasks: Sequence[Task], workers: int, *, ahead: int | None = None
) -> Answers:
    """As `pool.run`, on the cluster that RAY_ADDRESS names or that this process is connected to, else on a
    Ray of its own.

    `workers`: 0 = as many as the cluster has CPUs.
    """
    with connected(workers) as ray:
        crew = _Crew(ray, make, tasks, workers or int(ray.cluster_resources().get("CPU", 1)), ahead)
        try:
            yield from crew.answers()
        finally:
            crew.dismiss()


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        fix = "pip install 'multimodal-gpt[ray]', or data.engine=local"
        raise UserError("Ray is not installed", "data.engine", fix) from None
    return ray


@contextmanager
def connected(workers: int) -> Iterator[Any]:
    """The module `ray` with a connection, the one that there is or a new one until the end."""
    ray = _ray()
    if ray.is_initialized():
        yield ray
        return
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(address="auto", **quiet)
    else:
        # Its workers import what this process can; nobody is told that it runs.
        surroundings = {"PYTHONPATH": pool.search_path(), "RAY_USAGE_STATS_ENABLED": "0"}
        with _environment(surroundings):
            number = workers or pool.cores()
            store = {"object_store_memory": STORE_BYTES}
            ray.init(address="local", num_cpus=number, include_dashboard=False, **store, **quiet)
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


class _Actor:
    """What runs on the cluster."""

    def __init__(self, make: bytes) -> None:
        self.refusal = b""
        try:
            self.work: Work = pickle.loads(make)()
        except UserError as error:
            self.refusal = pickle.dumps(error)

    def ready(self) -> bytes:
        """A pickled UserError where `make` raised one."""
        return self.refusal

    def answers(self, tasks: bytes) -> list[bytes]:
        """The answers of some pickled tasks."""
        made = []
        for task in pickle.loads(tasks):
            signal.setitimer(signal.ITIMER_REAL, task.seconds + GRACE)
            made.append(self.work(task.what))
            signal.setitimer(signal.ITIMER_REAL, 0)
        return made


@dataclass(eq=False)
class _Member:
    """An actor, what it has been asked last, and by when it has to answer (seconds of time.monotonic)."""

    actor: Any
    call: Any
    ready: bool = False
    doing: list[int] = field(default_factory=list)
    until: float = float("inf")


class _Crew:
    """Actors, and what each is at.

    An actor gets several tasks at once. Where it dies or takes longer than for one of them, each is done
    again by itself: so none is blamed for another.
    """

    def __init__(
        self, ray: Any, make: Callable[[], Work], tasks: Sequence[Task], workers: int, ahead: int | None
    ) -> None:
        self.ray, self.tasks, self.number = ray, tasks, min(workers, len(tasks))
        self.make = ray.put(pickle.dumps(make))
        self.remote = ray.remote(num_cpus=1, max_restarts=0)(_Actor)
        self.queue, self.alone = Queue(len(tasks), workers, ahead), deque[int]()
        self.done: list[tuple[int, bytes | Lost]] = []
        self.members: list[_Member] = []

    def answers(self) -> Answers:
        while not self.queue.over:
            while len(self.members) < self.number:
                actor = self.remote.remote(self.make)
                self.members.append(_Member(actor, actor.ready.remote()))
            self._hand_out()
            self._listen()
            yield from self.queue.finished(self.done)

    def _hand_out(self) -> None:
        for member in self.members:
            if member.ready and not member.doing:
                member.doing = self._take()
                tasks = [self.tasks[index] for index in member.doing]
                if tasks:
                    member.until = time.monotonic() + max(task.seconds for task in tasks)
                    member.call = member.actor.answers.remote(pickle.dumps(tasks))

    def _take(self) -> list[int]:
        if self.alone:
            return [self.alone.popleft()]
        return self.queue.share()

    def _listen(self) -> None:
        busy = {m.call: m for m in self.members if m.doing or not m.ready}
        first = min((m.until for m in busy.values()), default=0.0)
        patience = None if first == float("inf") else max(0.0, first - time.monotonic())
        heard, _ = self.ray.wait(list(busy), num_returns=1, timeout=patience)
        for call in heard:
            self._hear(busy[call])
        late = [m for call, m in busy.items() if call not in heard and m.until <= time.monotonic()]
        for member in late:
            self._bury(member, pool.timed_out(self.tasks[member.doing[0]].seconds))

    def _hear(self, member: _Member) -> None:
        try:
            answer = self.ray.get(member.call)
        except self.ray.exceptions.RayError as error:
            if not member.ready:
                what = str(error).strip().splitlines()[-1]
                raise RuntimeError(f"a worker process does not start: {what}") from None
            self._bury(member, pool.died(type(error).__name__))
            return
        if member.ready:
            self.done += zip(member.doing, answer, strict=True)
            member.doing, member.until = [], float("inf")
        elif answer:
            raise pickle.loads(answer)
        else:
            member.ready = True

    def _bury(self, member: _Member, lost: Lost) -> None:
        self.ray.kill(member.actor)
        self.members.remove(member)
        if len(member.doing) == 1:
            self.done.append((member.doing[0], lost))
        else:
            self.alone.extend(member.doing)

    def dismiss(self) -> None:
        for member in self.members:
            self.ray.kill(member.actor)
