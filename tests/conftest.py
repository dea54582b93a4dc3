"""Settings of the whole test run, and what all tests may share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
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


# Training on toy rows; torch is loaded by those who ask for it


@pytest.fixture(scope="module")
def vocabulary() -> Any:
    """That of the toys."""
    import toy_corpus

    return toy_corpus.vocabulary()


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Any]:
    """A recipe of a toy run in its own folder; keywords are options of `train`, three are not."""
    import toy_training

    return partial(toy_training.new_recipe, tmp_path)


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have something done at a step, while the callbacks of that step are at work."""
    import toy_training

    return toy_training.planned(monkeypatch)


@pytest.fixture
def capture_net(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The networks that are trained, in turn."""
    import toy_training

    return toy_training.captured(monkeypatch)


# Going on from a trained run


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two corpora and a run `home` that has learnt the letters of the first: b, c, d and e."""
    import toy_finetune

    return toy_finetune.write_home(tmp_path_factory.mktemp("home"))


# Music to read and to play


@pytest.fixture
def tune(tmp_path: Path) -> Path:
    """The MIDI file of a tune with chords."""
    import toy_rendering

    return toy_rendering.write_tune(tmp_path / "tune.mid")
