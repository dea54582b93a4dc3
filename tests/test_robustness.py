"""Damaged files, odd folders, full disks and kills: everything accounted for, nothing left behind."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy_work
from damage import write_damaged, write_whole
from toy_corpus import toy_recipe, write_corpus

from multimodal_gpt.data import parts, pool, writing
from multimodal_gpt.data.prepare import prepare
from multimodal_gpt.errors import UserError
from multimodal_gpt.recipe.load import load_recipe
from multimodal_gpt.recipe.schema import Recipe

CHANGING = ("report.json", "report.html")


def quietly(recipe, **options):
    return prepare(recipe, progress=False, **options)


def music_recipe(folder, run, **data):
    tokenizers = {"tags": {}, "chords": {}, "melody": {}}
    data = {"folders": [str(folder)], "workers": 2, **data}
    return Recipe.model_validate({"run": str(run), "tokenizers": tokenizers, "data": data})


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name not in CHANGING}


def named(report):
    """The sources that a report and the lines beside it speak of, as often as they do."""
    lines = (report.folder / "documents.jsonl").read_text().splitlines()
    return sorted([json.loads(line)["source"] for line in lines] + [s.source for s in report.skips])


# Damaged files


@pytest.mark.parametrize("number", [200, pytest.param(5000, marks=pytest.mark.slow)])
def test_damaged_files_are_all_accounted_for(tmp_path, number):
    names = write_damaged(tmp_path / "d", write_whole(tmp_path / "whole"), number)
    before = toy_work.workers(os.getpid())
    started = time.monotonic()
    report = quietly(music_recipe(tmp_path / "d", tmp_path / "run", shifts=[0, 3], seconds_per_file=5.0))
    assert time.monotonic() - started < 60 + number / 20
    assert toy_work.workers(os.getpid()) == before
    assert named(report) == [f"d/{name}" for name in names]
    assert report.found == number == report.kept + len(report.skips)
    assert {s.kind for s in report.skips} == {"unreadable", "nothing usable"}
    assert number / 10 < report.kept < number / 2, "the damage is too small or too large to tell much"


def test_the_damage_is_the_same_every_time(tmp_path):
    for name in ("a", "b"):
        write_damaged(tmp_path / name, write_whole(tmp_path / f"whole{name}"), 50)
    assert files(tmp_path / "a") == files(tmp_path / "b")


@pytest.mark.usefixtures("kept_workers")
def test_a_large_file_of_one_piece_is_found_once(tmp_path):
    (whole,) = write_whole(tmp_path / "d", 1)
    data = whole.read_bytes()
    lyrics = b"\0\xff\5\x7f" + 127 * b"a"  # many words at the beginning of its track
    data = data[:22] + 1000 * lyrics + data[22:]
    length = int.from_bytes(data[18:22], "big") + 1000 * len(lyrics)
    whole.write_bytes(data[:18] + length.to_bytes(4, "big") + data[22:])
    assert quietly(music_recipe(tmp_path / "d", tmp_path / "run")).summary() == "1 found, 1 kept, 0 skipped"


# Odd folders


@pytest.mark.usefixtures("kept_workers")
def test_odd_folders(tmp_path):
    folder = write_corpus(tmp_path / "d", 3)
    (folder / "itself.beats").symlink_to(folder / "itself.beats")
    (folder / "nowhere.beats").symlink_to(folder / "no such file")
    (folder / "sub").mkdir()
    (folder / "sub" / "above").symlink_to(folder)
    (folder / "twice.beats").symlink_to(folder / "s000.beats")
    os.mkfifo(folder / "pipe.beats")
    (folder / "no_lines.jsonl").write_text("")
    (folder / "blank.jsonl").write_text("\n \n\n")
    (folder / 'line\nbreak "quoted".beats').write_text("x...")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.beats")).write_text("x...")
    report = quietly(toy_recipe(folder, tmp_path / "run"))
    assert report.ignored == {".beats": 3}
    assert {s.source: s.reason for s in report.skips} == {
        "d/no_lines.jsonl": "no line in it",
        "d/blank.jsonl": "no line in it",
    }
    sources = ["d/\\xff\\xfe", "d/blank.jsonl", 'd/line\nbreak "quoted"', "d/no_lines.jsonl"]
    assert named(report) == [*sources, "d/s000", "d/s001", "d/s002"]


def test_a_folder_that_can_not_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    recipe = toy_recipe(write_corpus(tmp_path / "d", 3), tmp_path / "file" / "run")
    with pytest.raises(UserError, match="file/run: the folder can't be made: Not a directory"):
        quietly(recipe)


# Full disks


def fail_at(monkeypatch, number):
    """From the `number`-th time on that data is put on disk, there is no space for it."""
    left = [number]

    def fsync(descriptor):
        left[0] -= 1
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.usefixtures("kept_workers")
@pytest.mark.parametrize("number", [1, 2, 5, 6, 7])
def test_a_full_disk(tmp_path, monkeypatch, number):
    folder, run = write_corpus(tmp_path / "d", 5), tmp_path / "run"
    before = files(quietly(toy_recipe(folder, run)).folder)
    write_corpus(folder, 9, seed=2)
    monkeypatch.setattr(parts, "BYTES_PER_PART", 1000)
    recipe = toy_recipe(folder, run, shifts=[0, 1])
    with monkeypatch.context() as patch:
        fail_at(patch, number)
        with pytest.raises(UserError) as error:
            quietly(recipe)
    assert str(error.value) == (
        f"{run}: there is no space left on the disk (free some, or set data.shards to a folder on another "
        "disk; then prepare again, it goes on)"
    )
    assert files(run / "shards") == before
    assert {p.suffix for p in (run / ".shards.parts").iterdir()} == {"", ".arrow"}
    again = quietly(recipe)
    assert (again.cached > 0) == (number > 1)
    assert files(again.folder) == files(quietly(toy_recipe(folder, tmp_path / "b", shifts=[0, 1])).folder)


@pytest.mark.usefixtures("kept_workers")
def test_a_full_disk_while_lines_are_written(tmp_path, monkeypatch):
    def add(self, written):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(writing.Lines, "add", add)
    with pytest.raises(UserError, match="there is no space left on the disk"):
        quietly(toy_recipe(write_corpus(tmp_path / "d", 5), tmp_path / "run"))
    assert [p.name for p in (tmp_path / "run").iterdir()] == [".shards.parts"]


# Kills

START = """
import os, signal, sys
from pathlib import Path
from multimodal_gpt.data import parts, pool, shards, writing
from multimodal_gpt.data import prepare as stage
from multimodal_gpt.recipe.schema import Recipe
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
def die(*given, **options):
    os.kill(os.getpid(), signal.SIGKILL)
parts.SECONDS_PER_PART = 0.5
"""
END = """
stage.prepare(Recipe.model_validate_json(Path(sys.argv[1]).read_text()), progress=False)
"""
BETWEEN_RENAMES = """
rename = Path.replace
def replace(self, target):
    rename(self, target)
    if Path(target).name == "replaced":
        die()
Path.replace = replace
"""
MOMENTS = {
    "while a shard is written": "shards.file_hash = die",
    "while lines are written": "writing.Lines.add = die",
    "with the shards written": "stage.write_page = die",
    "between the renames": BETWEEN_RENAMES,
    "after the renames": "parts.Parts.tidy = die",
}


def started(recipe, path, code=""):
    """A process that prepares, in a process group of its own."""
    path.write_text(recipe.model_dump_json())
    return subprocess.Popen(
        [sys.executable, "-c", START + code + END, str(path)],
        env={**os.environ, "PYTHONPATH": pool.search_path()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


@pytest.mark.usefixtures("kept_workers")
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_while_it_writes(tmp_path, moment):
    folder, run = write_corpus(tmp_path / "d", 8), tmp_path / "run"
    quietly(toy_recipe(folder, run, shifts=[0, 2]))
    write_corpus(folder, 9, seed=2)
    recipe = toy_recipe(folder, run, shifts=[0, 1])
    assert started(recipe, tmp_path / "recipe.json", MOMENTS[moment]).wait() == -signal.SIGKILL
    report = quietly(recipe)
    assert report.kept == 9 and report.fresh == (moment != "after the renames")
    assert sorted(p.name for p in run.iterdir()) == [".shards.parts", "shards"]
    left = [p for p in (run / ".shards.parts").iterdir() if p.name != "lock" and p.suffix != ".arrow"]
    assert not left or moment == "after the renames"
    assert files(report.folder) == files(quietly(toy_recipe(folder, tmp_path / "b", shifts=[0, 1])).folder)


@pytest.mark.usefixtures("kept_workers")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_interrupted_it_keeps_what_is_read(tmp_path):
    folder = write_corpus(tmp_path / "d", 60)
    recipe = toy_recipe(folder, tmp_path / "run", workers=2)
    interrupt = "add, left = parts.Parts.add, [20]\n"
    interrupt += "def count(*given):\n add(*given)\n left[0] -= 1\n"
    interrupt += " if not left[0]: os.kill(os.getpid(), signal.SIGINT)\n"
    process = started(recipe, tmp_path / "recipe.json", interrupt + "parts.Parts.add = count")
    running = toy_work.workers(process.pid)
    assert process.wait() == -signal.SIGINT
    assert toy_work.gone(running, 1.0)
    assert quietly(recipe).cached >= 20


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [False, True])
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_at_any_moment(tmp_path, whole_group):
    write_whole(tmp_path / "d", 150)
    options = [f"data.folders=[{tmp_path / 'd'}]", "data.workers=2"]
    undisturbed = load_recipe("own_folder", [*options, f"run={tmp_path / 'whole'}"])
    begun = time.monotonic()
    assert started(undisturbed, tmp_path / "whole.json").wait() == 0
    longest = time.monotonic() - begun
    expected = files(tmp_path / "whole" / "shards")
    rng, kills, ends = random.Random(whole_group), 0, 0
    while kills < 20 or ends == 0:
        recipe = load_recipe("own_folder", [*options, f"run={tmp_path / f'run{ends}'}"])
        process = started(recipe, tmp_path / "recipe.json")
        try:
            patience = rng.uniform(0, longest) if kills < 20 else None
            assert process.wait(patience) == 0
        except subprocess.TimeoutExpired:
            running = toy_work.workers(process.pid)
            os.killpg(process.pid, signal.SIGKILL) if whole_group else process.kill()
            process.wait()
            assert toy_work.gone(running, 2.0)
            kills += 1
            continue
        assert files(tmp_path / f"run{ends}" / "shards") == expected
        ends += 1
