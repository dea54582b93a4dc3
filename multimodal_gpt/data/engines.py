"""What runs tasks in worker processes, on this machine or on a cluster."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

from multimodal_gpt.data import pool
from multimodal_gpt.data.pool import Answers, Lost, Task, Work
from multimodal_gpt.recipe.schema import DataRecipe

Engine = Callable[..., Answers]
"""`pool.run` without its `workers`, or the same on Ray."""

SECONDS = 600.0
"""For each item of `in_turn`."""
AHEAD = 8
"""Items that may be ready before the oldest one is: they wait in memory."""


@contextmanager
def engine(data: DataRecipe) -> Iterator[Engine]:
    """What a recipe asks for; its workers stay until the end."""
    if data.engine == "local":
        with pool.employed(data.workers) as run:
            yield run
        return
    from multimodal_gpt.data import on_ray

    with on_ray.connected(data.workers):
        yield partial(on_ray.run, workers=data.workers)


def in_turn(run: Engine, make: Callable[[], Work], items: Sequence[Any], *, alone: bool) -> Iterator[Any]:
    """What `make()` makes of each item, unpickled, in their order.

    `alone`: this process does it itself, which is faster where there is little to do. Raises RuntimeError
    where a worker is lost.
    """
    if alone:
        work = make()
        yield from (pickle.loads(work(item)) for item in items)
        return
    tasks = [Task(item, SECONDS) for item in items]
    with closing(run(make, tasks, ahead=AHEAD)) as answers:
        for answer in pool.in_order(answers):
            if isinstance(answer, Lost):
                raise RuntimeError(f"a worker process is lost: {answer.reason}")
            yield pickle.loads(answer)
