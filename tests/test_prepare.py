"""From a folder to shards: every file accounted for, byte-identical, atomic, and no worker can spoil it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_corpus import BEATS, LETTERS, toy_recipe, write_corpus
from toy_shards import WILD, documents, files, plugin, quietly

from multimodal_gpt.data.reporting.report import load_report
from multimodal_gpt.data.shards import open_shards
from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.vocabulary import Vocabulary

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
