"""Workers that die, hang or never start cost their own task and nothing else, and none is left behind."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import toy_work
from hypothesis import given, settings
from hypothesis import strategies as st

from multimodal_gpt.data import pool
from multimodal_gpt.data.pool import Lost, Queue, Task, in_order
from multimodal_gpt.errors import UserError

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
EXIT = Lost("worker died", "the process that read it died (exit code 7)")
CRASH = Lost("worker died", f"the process that read it died (signal {signal.SIGSEGV})")
LATE = Lost("timed out", "takes longer than 0.5 s")


def tasks(*words, seconds=30.0):
    return [Task(word, seconds) for word in words]


def answered(words):
    return [(i, str(word).encode()) for i, word in enumerate(words)]


def test_every_task_is_answered_once():
    words = list(range(300))
    answers = list(pool.run(toy_work.make, tasks(*words), 2))
    assert sorted(answers) == answered(words)


def test_answers_in_order():
    words = [0.2, *range(1, 20), 0.1, *range(21, 30)]
    answers = list(in_order(pool.run(toy_work.make, tasks(*words), 2, ahead=6)))
    assert answers == [answer for _, answer in answered(words)]


def test_no_task_is_begun_too_far_ahead():
    words = [0.5, *range(1, 30)]
    unfinished = set(range(30))
    before_the_first = 0
    for index, _ in pool.run(toy_work.make, tasks(*words), 2, ahead=4):
        assert index < min(unfinished) + 4
        unfinished.discard(index)
        before_the_first += 0 in unfinished
    assert not unfinished and before_the_first == 3, "the others go on while the first one is read"


@settings(max_examples=50)
@given(st.integers(1, 20), st.integers(1, 4), st.none() | st.integers(0, 9), st.data())
def test_the_queue_gives_every_task_until_it_is_finished(number, workers, ahead, data):
    queue = Queue(number, workers, ahead)
    begun, finished = [], set()
    while not queue.over:
        new = queue.share()
        oldest = min(set(range(number)) - finished)
        assert all(i < oldest + max(1, number if ahead is None else ahead) for i in new)
        begun += new
        assert begun, "nothing to wait for"
        index = data.draw(st.sampled_from(begun))
        begun.remove(index)
        if data.draw(st.booleans()):
            queue.put_back([index])
        else:
            queue.finish(index)
            finished.add(index)
    assert finished == set(range(number)) and not begun


def test_shares_get_smaller_towards_the_end():
    queue, sizes = Queue(1000, 2, None), []
    while not queue.over:
        new = queue.share()
        sizes.append(len(new))
        for index in new:
            queue.finish(index)
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-1]) == (16, 1)


def test_a_dead_worker_costs_its_own_task():
    words = [*range(100), "exit", *range(101, 150), "crash", *range(151, 200), "exit"]
    answers = dict(pool.run(toy_work.make, tasks(*words), 2))
    assert {i: a for i, a in answers.items() if isinstance(a, Lost)} == {100: EXIT, 150: CRASH, 200: EXIT}
    assert sorted(answers) == list(range(201))


def test_so_does_one_that_hangs():
    words = ["sleep", 1, "spin", 3, "hang", 5]
    started = time.monotonic()
    answers = dict(pool.run(toy_work.make, tasks(*words, seconds=0.5), 2))
    assert time.monotonic() - started < 20
    assert {i: a for i, a in answers.items() if isinstance(a, Lost)} == {0: LATE, 2: LATE, 4: LATE}


def test_large_answers_and_none():
    word = "x" * 5_000_000
    assert dict(pool.run(toy_work.make, tasks(word, "", word), 2)) == {
        0: word.encode(),
        1: b"",
        2: word.encode(),
    }
    assert list(pool.run(toy_work.make, [], 2)) == []


def test_what_the_user_can_mend_is_raised_as_it_is():
    with pytest.raises(UserError) as error:
        list(pool.run(toy_work.make_refusing, tasks(1, 2), 2))
    assert str(error.value) == "my.yaml: no such letters (use others)"


def test_no_worker_starts():
    with pytest.raises(RuntimeError, match="does not start: ZeroDivisionError: oops"):
        list(pool.run(toy_work.make_failing, tasks(1, 2), 2))


def test_a_worker_that_is_killed_while_it_starts_is_replaced(tmp_path):
    make = partial(toy_work.make_killed, tmp_path / "twice", 2)
    assert list(pool.run(make, tasks("a"), 1)) == [(0, b"a")]
    make = partial(toy_work.make_killed, tmp_path / "always", 99)
    with pytest.raises(RuntimeError, match="does not start: exit code -9"):
        list(pool.run(make, tasks("a"), 1))
    assert (tmp_path / "always").stat().st_size == pool.STARTS


@on_linux
@pytest.mark.parametrize("words", [["sleep", 0, "hang"], [0.0] * 1000])
def test_closed_early_it_leaves_no_process(words):
    answers = pool.run(toy_work.make, tasks(*words), 2)
    next(answers)
    running = toy_work.workers(os.getpid())
    assert len(running) == 2
    answers.close()
    assert not any(map(toy_work.alive, running))
    assert toy_work.workers(os.getpid()) == []


@on_linux
def test_workers_stay_from_one_call_to_the_next():
    with pool.employed(2) as employ:
        assert sorted(employ(toy_work.make, tasks(*range(40)))) == answered(range(40))
        there = set(toy_work.workers(os.getpid()))
        assert there, "but for one that was still starting"
        assert sorted(employ(toy_work.make_loud, tasks("a", "b"))) == [(0, b"A"), (1, b"B")]
        assert list(employ(toy_work.make, [])) == []
        assert there <= set(toy_work.workers(os.getpid()))
    assert toy_work.workers(os.getpid()) == []


@on_linux
def test_those_that_died_or_are_busy_do_not_stay():
    with pool.employed(2) as employ:
        assert dict(employ(toy_work.make, tasks("exit", "a"))) == {0: EXIT, 1: b"a"}
        for pid in toy_work.workers(os.getpid()):
            os.kill(pid, signal.SIGKILL)
        assert list(employ(toy_work.make, tasks("b"))) == [(0, b"b")]
        answers = employ(toy_work.make, tasks("c", "sleep"))
        next(answers)
        answers.close()
        assert len(toy_work.workers(os.getpid())) <= 1, "not the one that sleeps"
        with pytest.raises(RuntimeError, match="does not start: ZeroDivisionError: oops"):
            list(employ(toy_work.make_failing, tasks("d", "e")))
        assert toy_work.workers(os.getpid()) == []


@on_linux
def test_an_error_of_the_caller_leaves_no_process():
    def caller():
        for _ in pool.run(toy_work.make, tasks(*range(100)), 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        caller()
    assert toy_work.workers(os.getpid()) == []


@on_linux
def test_no_descriptor_is_left_open():
    before = len(list(Path("/proc/self/fd").iterdir()))
    list(pool.run(toy_work.make, tasks(1, "exit", 3, "crash", 5), 2))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


HANGING = """
import toy_work
from multimodal_gpt.data.pool import Task, run
for answer in run(toy_work.make, [Task(0, 99.0)] * 16 + [Task({word!r}, 99.0)] * 2, 2):
    print(answer, flush=True)
"""


@on_linux
@pytest.mark.parametrize("word", ["sleep", "spin", "hang"])
def test_workers_end_with_a_caller_that_is_killed(word):
    command = [sys.executable, "-c", HANGING.format(word=word)]
    environment = {**os.environ, "PYTHONPATH": pool.search_path()}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        for _ in range(16):
            process.stdout.readline()
        running = toy_work.workers(process.pid)
        time.sleep(0.1)  # now they are at the last tasks
        assert len(running) == 2 and all(map(toy_work.alive, running))
        process.kill()
    assert toy_work.gone(running, 1.0)


@on_linux
@pytest.mark.parametrize("moment", [0.0, 0.1, 0.4])
def test_they_end_with_it_while_they_start(moment):
    command = [sys.executable, "-c", HANGING.format(word="sleep")]
    environment = {**os.environ, "PYTHONPATH": pool.search_path()}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        while not (running := toy_work.workers(process.pid)):
            time.sleep(0.005)
        time.sleep(moment)
        running = sorted({*running, *toy_work.workers(process.pid)})
        process.kill()
    assert toy_work.gone(running, 5.0)
