"""From a folder to shards: every file accounted for, byte-identical, atomic, and no worker can spoil it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from toy_corpus import BEATS, LETTERS, toy_recipe, write_corpus

from multimodal_gpt.data.parts import open_parts
from multimodal_gpt.data.prepare import prepare
from multimodal_gpt.data.reporting.report import load_report
from multimodal_gpt.data.shards import open_shards
from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.vocabulary import Vocabulary

WILD = f"""
import importlib.util, os, signal, sys, time
from pathlib import Path
from dataclasses import dataclass, field
from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.plugins import load_module
Letters = load_module({LETTERS!r}).Letters

@dataclass(frozen=True)
class Wild(Letters):
    def read(self, path):
        word = path.read_text()
        if word == "hang":
            time.sleep(60)
        if word == "spin":
            while True: pass
        if word == "die":
            os._exit(7)
        if word == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if word == "bug":
            raise ZeroDivisionError("oops")
        print("noise on stdout")
        yield from super().read(path)

    def parse(self, text):
        if text == "die":
            os._exit(7)
        return super().parse(text)

    def describe(self, content):
        if content == "bad":
            raise KeyError("describe")
        return {{**super().describe(content), "word_track": content[0]}}

    def shift(self, content, steps):
        return content[steps:] + content[:steps] if content != "ddd" else None

    def compose(self, metadata):
        return "e" * metadata["bars"] if metadata["bars"] < 3 else None

def build(letters="abcdeABC"):
    return Wild(letters)
"""

LEARNER = f"""
from pathlib import Path
from multimodal_gpt.stream.plugins import load_module
Letters = load_module({LETTERS!r}).Letters

def fit(contents, folder, letters="abcde"):
    known = sorted(set("".join(contents))) or list(letters)
    (folder / "known.letters").write_text("".join(known))
    return {{"known": "file:known.letters"}}

def build(letters="abcde", known=None):
    return Letters(Path(known).read_text() if known else letters)
"""


def plugin(path, source):
    path.write_text(source)
    return {"plugin": str(path)}


def quietly(recipe, **options):
    return prepare(recipe, progress=False, **options)


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def documents(folder, split):
    shards = open_shards(folder, split, verify=True)
    return [shards.document(i) for i in range(len(shards))]


def test_a_folder_becomes_shards(tmp_path):
    folder = write_corpus(tmp_path / "d", 20)
    (folder / "none.beats").write_text("....")
    report = quietly(toy_recipe(folder, tmp_path / "run"))
    assert report.folder == tmp_path / "run" / "shards" and report.fresh
    assert report.summary() == "21 found, 20 kept, 1 skipped: 1 nothing usable"
    vocabulary = Vocabulary.load(report.folder)
    sources = []
    for split in ("train", "valid"):
        for d in documents(report.folder, split):
            sources.append(d.source)
            stem = folder.parent / d.source
            for s in d.segments:
                content = vocabulary.decode(s.modality, s.ids)
                (expected,) = vocabulary.tokenizers[s.modality].read(stem.with_suffix(f".{s.modality}"))
                assert content == expected.content
                assert s.units == vocabulary.tokenizers[s.modality].units(content)
            assert d.metadata["bars"] == len(d.segments[-1].cuts)
    assert sorted(sources) == [f"d/s{i:03d}" for i in range(20)]
    assert sorted(sources) != sources, "the valid split should hold some from the middle"


@pytest.mark.usefixtures("kept_workers")
def test_counts_of_the_report_are_those_of_the_shards(tmp_path):
    report = quietly(toy_recipe(write_corpus(tmp_path / "d", 20), tmp_path / "run", shifts=[1, -1]))
    for split, counts in report.splits.items():
        stored = documents(report.folder, split)
        assert counts["rows"] == len(stored)
        assert counts["documents"] == len({d.source for d in stored})
        for name, entry in counts["modalities"].items():
            segments = [s for d in stored for s in d.segments if s.modality == name]
            assert entry["segments"] == len(segments)
            assert entry["tokens"] == sum(len(s.ids) for s in segments)
            assert entry["units"] == sum(s.units for s in segments)
    assert load_report(report.folder).plain() == {**report.plain(), "fresh": False}


def test_shards_do_not_depend_on_workers(tmp_path):
    folder = write_corpus(tmp_path / "d", 60)
    made = [
        files(quietly(toy_recipe(folder, tmp_path / f"run{n}", workers=n, shifts=[0, 1])).folder)
        for n in (1, 3)
    ]
    for contents in made:
        report = json.loads(contents.pop("report.json"))
        contents.pop("report.html")
        assert report["kept"] == 60
    assert made[0] == made[1]
    assert set(made[0]) == {
        "train-00000.arrow",
        "valid-00000.arrow",
        "documents.jsonl",
        "manifest.json",
        "vocabulary.json",
    }


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


def test_no_worker_spoils_it(tmp_path):
    folder = write_corpus(tmp_path / "d", 9)
    for name, word in {
        "a1": "die",
        "b1": "hang",
        "c1": "crash",
        "d1": "bug",
        "e1": "bad",
        "z1": "spin",
    }.items():
        (folder / f"{name}.letters").write_text(word)
    tokenizers = {"letters": plugin(tmp_path / "wild.py", WILD), "beats": {"plugin": BEATS}}
    lines = ['{"beats": "x..."}', '{"letters": "die"}', '{"letters": "abc"}']
    (folder / "lines.jsonl").write_text("\n".join(lines))
    recipe = toy_recipe(folder, tmp_path / "run", workers=2, seconds_per_file=1.0, tokenizers=tokenizers)
    started = time.monotonic()
    report = quietly(recipe)
    assert time.monotonic() - started < 30
    assert {s.source: (s.kind, s.reason) for s in report.skips} == {
        "d/a1": ("worker died", "the process that read it died (exit code 7)"),
        "d/b1": ("timed out", "takes longer than 1 s"),
        "d/c1": ("worker died", "the process that read it died (signal 11)"),
        "d/d1": ("unreadable", "the tokenizer fails: ZeroDivisionError: oops"),
        "d/e1": ("failed", "KeyError: 'describe'"),
        "d/lines.jsonl#2": ("worker died", "the process that read it died (exit code 7)"),
        "d/z1": ("timed out", "takes longer than 1 s"),
    }
    assert (report.found, report.kept) == (18, 11)
    assert sum(report.tracks["word_track"].values()) == 7


@pytest.mark.usefixtures("kept_workers")
def test_shifted_copies(tmp_path):
    folder = write_corpus(tmp_path / "d", 0)
    for name, word, bars in [
        ("a", "abc", "x..."),
        ("b", "ddd", "x..."),
        ("c", "abc", "...x"),
        ("e", "", ".x.."),
    ]:
        (folder / f"{name}.beats").write_text(bars)
        (folder / f"{name}.letters").write_text(word)
    tokenizers = {"letters": plugin(tmp_path / "wild.py", WILD), "beats": {"plugin": BEATS}}
    data = {"shifts": [1], "shifted": 0.25, "validation": 0}
    recipe = toy_recipe(folder, tmp_path / "run", **data, tokenizers=tokenizers)
    vocabulary = Vocabulary.load(quietly(recipe).folder)
    found = [
        (d.source, d.shift, *(vocabulary.decode(s.modality, s.ids) for s in d.segments))
        for d in documents(tmp_path / "run" / "shards", "train")
    ]
    assert found == [
        ("d/a", 0, "abc", ((0,),)),
        ("d/a", 1, "bca", ((1,),)),
        ("d/b", 0, "ddd", ((0,),)),  # its letters refuse to move
        ("d/c", 0, "abc", ((3,),)),  # its beats do
        ("d/e", 0, "e", ((1,),)),  # letters composed from the number of bars
        ("d/e", 1, "e", ((2,),)),
    ]
    assert open_shards(tmp_path / "run" / "shards", "train").weights.tolist() == [1.5, 0.5, 1, 1, 1.5, 0.5]


@pytest.mark.usefixtures("kept_workers")
def test_captions_are_alternatives(tmp_path):
    folder = write_corpus(tmp_path / "d", 12, bars=4)
    captions = {"into": "letters", "templates": ["aaa", "{first}{first}", "{nope}"], "variants": 2}
    report = quietly(toy_recipe(folder, tmp_path / "run", captions=captions))
    assert report.templates == {"aaa": 12, "{first}{first}": 8, "{nope}": 0}
    assert any("{nope}" in line for line in report.lines())
    counts = {tuple(s.modality for s in d.segments) for d in documents(report.folder, "train")}
    assert counts == {("letters", "beats"), ("letters", "letters", "letters", "beats")}


def test_tokenizers_learn_from_the_training_documents(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    held_out = tmp_path / "valid"
    held_out.mkdir()
    (folder / "a.letters").write_text("ab")
    (folder / "b.letters").write_text("ca")
    (held_out / "c.letters").write_text("cd")
    (held_out / "d.letters").write_text("bc")
    tokenizers = {"letters": plugin(tmp_path / "learner.py", LEARNER), "beats": {"plugin": BEATS}}
    recipe = toy_recipe(folder, tmp_path / "run", tokenizers=tokenizers, validation_folders=[str(held_out)])
    report = quietly(recipe)
    vocabulary = Vocabulary.load(report.folder)
    assert vocabulary.tokenizers["letters"].letters == "abc"
    assert [d.source for d in documents(report.folder, "valid")] == ["valid/d"]
    assert [(s.source, s.kind) for s in report.partly] == [("valid/c", "kept in part")]


def test_named_corpora_come_from_plugins(tmp_path):
    folder = write_corpus(tmp_path / "site" / "deep", 4)
    source = f"""
from pathlib import Path
from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.plugins import load_module
build = load_module({LETTERS!r}).build

def corpus(name):
    if name != "toys":
        raise UserError(f"there is no corpus {{name!r}}", fix="known: toys")
    return sorted(Path({str(folder)!r}).iterdir())
"""
    tokenizers = {"letters": plugin(tmp_path / "named.py", source), "beats": {"plugin": BEATS}}
    recipe = toy_recipe(folder, tmp_path / "run", folders=[], corpora=["toys"], tokenizers=tokenizers)
    assert quietly(recipe).kept == 4
    assert documents(tmp_path / "run" / "shards", "train")[0].source.startswith("toys/s00")
    with pytest.raises(UserError) as error:
        quietly(toy_recipe(folder, tmp_path / "run", folders=[], corpora=["toy"], tokenizers=tokenizers))
    assert str(error.value) == "data.corpora: there is no corpus 'toy' (known: toys)"
    with pytest.raises(UserError, match="no tokenizer of this recipe knows the corpus 'toys'"):
        quietly(toy_recipe(folder, tmp_path / "run2", folders=[], corpora=["toys"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"folders": ["{tmp}/nowhere"]},
            "data.folders: there is no folder or file '{tmp}/nowhere' (check the name)",
        ),
        ({"folders": []}, "data: names no data to train on (data.folders=[my_folder])"),
        (
            {"folders": ["{tmp}/empty"]},
            "data.folders: the folder '{tmp}/empty' is empty (put files in it, or name another folder)",
        ),
        (
            {"folders": ["{tmp}/useless"]},
            "data: no file in 'useless' can be used; found 1 .wav "
            "(files that are read: .beats .jsonl .letters)",
        ),
        (
            {"folders": ["{tmp}/bad"]},
            "data: no document is left to train on: 1 nothing usable, 1 unreadable (bad/a: 'xx' is not bars "
            "such as 'x...'; bad/b: nothing of beats in it; mend or replace such files, or add others)",
        ),
        (
            {"shards": "{tmp}/useless"},
            "{tmp}/useless: holds other files than shards (set data.shards to a new folder)",
        ),
        (
            {"captions": {"into": "letters", "templates": ["{"]}},
            "data.captions.templates: '{{' is not a template: Single '}}' encountered in format string",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_left(tmp_path, changes, message):
    (tmp_path / "empty").mkdir()
    for name, text in {
        "useless/a.wav": "",
        "bad/a.beats": "xx",
        "bad/b.beats": "....",
        "d/a.beats": "x...",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def here(value):
        return [v.format(tmp=tmp_path) for v in value] if isinstance(value, list) else value

    changes = {k: v.format(tmp=tmp_path) if isinstance(v, str) else here(v) for k, v in changes.items()}
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as error:
        quietly(toy_recipe(tmp_path / "d", tmp_path / "runs" / "run", **changes))
    if "templates" not in message:
        assert str(error.value) == message.format(tmp=tmp_path)
    else:
        assert str(error.value).startswith("data.captions.templates: '{' is not a template")
    assert sorted(tmp_path.rglob("*")) == before


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


def test_preparing_never_imports_torch():
    code = (
        "import sys, multimodal_gpt.data.prepare, multimodal_gpt.data.packing\nprint('torch' in sys.modules)"
    )
    path = os.pathsep.join(p or str(Path.cwd()) for p in sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"
