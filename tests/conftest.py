"""Settings of the whole test run, and what all tests may share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from hypothesis import settings

from multimodal_gpt.data import pool

# The same examples on every machine; no deadline, because a busy machine is not a failure.
settings.register_profile("house", derandomize=True, deadline=None)
settings.load_profile("house")


@pytest.fixture(scope="module")
def idle_workers() -> Iterator[list[Any]]:
    """Worker processes that wait for the next test of a file."""
    idle: list[Any] = []
    yield idle
    pool._end(idle)


@pytest.fixture
def kept_workers(idle_workers: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Preparing finds its workers there already: starting one takes most of the time of a small folder."""

    @contextmanager
    def employed(workers: int) -> Iterator[Any]:
        yield partial(pool._run, idle_workers, workers or pool.cores())

    monkeypatch.setattr(pool, "employed", employed)
