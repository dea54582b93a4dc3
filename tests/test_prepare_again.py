"""Preparing once more: only what has changed is read again, and what was cut short goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from toy_corpus import BEATS, LETTERS, toy_recipe, write_corpus
from toy_shards import documents, files, plugin, quietly

from multimodal_gpt.data.parts import open_parts
from multimodal_gpt.errors import UserError


@pytest.mark.usefixtures("kept_workers")
def test_nothing_is_done_twice(tmp_path):
    folder = write_corpus(tmp_path / "d", 6)
    recipe = toy_recipe(folder, tmp_path / "run")
    first = quietly(recipe)
    before = files(first.folder)
    again = quietly(recipe)
    assert not again.fresh and files(first.folder) == before
    assert again.summary() == first.summary()
    assert quietly(recipe, force=True).fresh


@pytest.mark.usefixtures("kept_workers")
def test_what_has_changed_is_prepared_again(tmp_path):
    folder = write_corpus(tmp_path / "d", 6)
    quietly(toy_recipe(folder, tmp_path / "run"))
    assert not quietly(toy_recipe(folder, tmp_path / "run", workers=2, model={"depth": 1})).fresh
    assert quietly(toy_recipe(folder, tmp_path / "run", validation=0.5)).fresh
    assert quietly(toy_recipe(folder, tmp_path / "run")).fresh
    (folder / "s000.beats").write_text("xxxx")
    assert quietly(toy_recipe(folder, tmp_path / "run")).fresh
    (folder / "new.beats").write_text("xxxx")
    assert quietly(toy_recipe(folder, tmp_path / "run")).kept == 7


@pytest.mark.usefixtures("kept_workers")
def test_a_damaged_shard_is_made_again(tmp_path):
    recipe = toy_recipe(write_corpus(tmp_path / "d", 6), tmp_path / "run")
    shard = quietly(recipe).folder / "train-00000.arrow"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100])
    assert quietly(recipe).fresh and shard.read_bytes() == whole


@pytest.mark.usefixtures("kept_workers")
def test_shards_serve_where_the_data_is_not(tmp_path):
    folder = write_corpus(tmp_path / "d", 6)
    recipe = toy_recipe(folder, tmp_path / "run")
    made = quietly(recipe).folder
    shutil.rmtree(folder)
    assert not quietly(recipe).fresh
    with pytest.raises(UserError, match="there is no folder"):
        quietly(toy_recipe(folder, tmp_path / "run", validation=0.5))
    no_source = toy_recipe(folder, tmp_path / "other", folders=[], shards=str(made))
    assert quietly(no_source).folder == made


def started(code):
    """A process that prepares, with the toys within reach."""
    path = os.pathsep.join([*(p or str(Path.cwd()) for p in sys.path), str(Path(__file__).parent)])
    return subprocess.Popen(
        [sys.executable, "-c", "from pathlib import Path; from toy_corpus import *\n" + code],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


STOPPED = """
import os, signal
from multimodal_gpt.data import parts
from multimodal_gpt.data.prepare import prepare
parts.BYTES_PER_PART = 1
flush, left = parts.Parts.flush, [{flushes}]
def flush_and_die(self):
    flush(self)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
parts.Parts.flush = flush_and_die
prepare(toy_recipe(Path({folder!r}), Path({run!r}), shifts=[0, 1]), progress=False)
"""


@pytest.mark.usefixtures("kept_workers")
def test_killed_it_goes_on_where_it_was_and_ends_with_the_same_bytes(tmp_path):
    folder = write_corpus(tmp_path / "d", 30)
    whole = files(quietly(toy_recipe(folder, tmp_path / "whole", shifts=[0, 1])).folder)
    process = started(STOPPED.format(folder=str(folder), run=str(tmp_path / "run"), flushes=7))
    assert process.wait() == -signal.SIGKILL
    left = tmp_path / "run" / ".shards.parts"
    assert not (tmp_path / "run" / "shards").exists() and len(list(left.glob("part-*.arrow"))) == 7
    report = quietly(toy_recipe(folder, tmp_path / "run", shifts=[0, 1]))
    assert report.cached == 7
    changing = ("report.json", "report.html")
    after = files(report.folder)
    assert {k: v for k, v in after.items() if k not in changing} == {
        k: v for k, v in whole.items() if k not in changing
    }
    assert sorted(p.suffix for p in left.iterdir() if p.name != "lock") == [".arrow"] * len(
        list(left.glob("p*"))
    )


@pytest.mark.usefixtures("kept_workers")
def test_only_changed_files_are_read_again(tmp_path):
    folder = write_corpus(tmp_path / "d", 20)
    first = quietly(toy_recipe(folder, tmp_path / "run"))
    assert first.cached == 0
    (folder / "s003.beats").write_text("xxxx\nxxxx")
    (folder / "s004.beats").unlink()
    (folder / "s004.letters").unlink()
    (folder / "new.letters").write_text("abcde")
    second = quietly(toy_recipe(folder, tmp_path / "run"))
    assert (second.kept, second.cached) == (20, 18)
    fresh = files(quietly(toy_recipe(folder, tmp_path / "fresh")).folder)
    assert files(second.folder)["train-00000.arrow"] == fresh["train-00000.arrow"]
    assert quietly(toy_recipe(folder, tmp_path / "run", shifts=[0, 2])).cached == 0
    assert quietly(toy_recipe(folder, tmp_path / "run", validation=0.3, shifts=[0, 2])).cached == 20
    assert quietly(toy_recipe(folder, tmp_path / "run"), force=True).cached == 0


@pytest.mark.usefixtures("kept_workers")
def test_a_file_that_the_disk_did_not_give_is_read_again(tmp_path):
    folder, failing = write_corpus(tmp_path / "d", 9), tmp_path / "failing"
    read, plugin = "def read(self, path: Path) -> Iterator[Item]:\n", tmp_path / "letters.py"
    fails = f"        if path.stem == 's004' and Path({str(failing)!r}).exists(): raise OSError(5, 'EIO')\n"
    plugin.write_text(Path(LETTERS).read_text().replace(read, read + fails))
    assert fails in plugin.read_text()
    tokenizers = {"letters": {"plugin": str(plugin)}, "beats": {"plugin": BEATS}}
    recipe = toy_recipe(folder, tmp_path / "run", tokenizers=tokenizers)
    failing.touch()
    before = quietly(recipe)
    assert [s.reason for s in before.partly] == ["the tokenizer fails: OSError: [Errno 5] EIO"]
    failing.unlink()
    after = quietly(recipe)
    assert (after.fresh, after.kept, after.cached, after.partly) == (True, 9, 8, ())
    assert not quietly(recipe).fresh


@pytest.mark.usefixtures("kept_workers")
def test_a_file_named_in_a_line_is_watched(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    (tmp_path / "x.beats").write_text("x...")
    lines = [json.dumps({"letters": "abc", "beats": "../x.beats"}), json.dumps({"letters": "ddd"})]
    (folder / "list.jsonl").write_text("\n".join(lines))
    recipe = toy_recipe(folder, tmp_path / "run", validation=0)
    assert quietly(recipe).fresh and not quietly(recipe).fresh
    (tmp_path / "x.beats").write_text("xx..\nx...")
    again = quietly(recipe)
    assert again.fresh and again.cached == 0
    assert len(documents(again.folder, "train")[0].segments[1].ids) == 5


def test_two_processes_do_not_prepare_the_same_shards(tmp_path):
    folder = write_corpus(tmp_path / "d", 3)
    recipe = toy_recipe(folder, tmp_path / "run")
    with (
        open_parts_of(tmp_path / "run"),
        pytest.raises(UserError, match="another process is preparing these shards"),
    ):
        quietly(recipe)
    assert quietly(recipe).kept == 3


@contextmanager
def open_parts_of(run):
    run.mkdir()
    with open_parts(run / ".shards.parts") as parts:
        yield parts


PICKLED = f"""
from dataclasses import dataclass
from pathlib import Path
from multimodal_gpt.stream.plugins import load_module
from multimodal_gpt.stream.tokenizer import Item
Letters = load_module({LETTERS!r}).Letters

class Word:
    def __init__(self, letters): self.letters = letters

@dataclass(frozen=True)
class Words(Letters):
    def read(self, path):
        yield from (Item(i.key, Word(i.content), i.metadata) for i in super().read(path))
    def encode(self, content): return super().encode(content.letters)
    def units(self, content): return super().units(content.letters)
    def describe(self, content): return super().describe(content.letters)

def fit(contents, folder, **options):
    return {{}}

def build():
    return Words("abcde")
"""


def test_content_that_json_can_not_hold_is_read_again_by_every_process(tmp_path):
    folder = write_corpus(tmp_path / "d", 9)
    words = {"letters": plugin(tmp_path / "words.py", PICKLED), "beats": {"plugin": BEATS}}
    recipe = toy_recipe(folder, tmp_path / "run", tokenizers=words)
    assert quietly(recipe).kept == 9
    (folder / "new.beats").write_text("x...")
    again = quietly(recipe)
    assert (again.kept, again.cached) == (10, 3)  # those without letters
