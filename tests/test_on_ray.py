"""Preparing on a Ray of two workers: the same bytes, and as hard to spoil."""

import json
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import toy_work
from toy_corpus import BEATS, toy_recipe, write_corpus
from toy_shards import WILD, files, plugin, quietly

from multimodal_gpt.cli import main
from multimodal_gpt.data.pool import Lost, Task
from multimodal_gpt.errors import UserError

# What Ray itself warns of: it looks at settings of its own that are about to change, and leaves files open.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_without_ray(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError) as error:
        quietly(toy_recipe(write_corpus(tmp_path / "d", 3), tmp_path / "run", engine="ray"))
    assert str(error.value) == (
        "data.engine: Ray is not installed (pip install 'multimodal-gpt[ray]', or data.engine=local)"
    )
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def on_ray():
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    from multimodal_gpt.data import on_ray

    with on_ray.connected(2):
        yield on_ray


@pytest.mark.slow
def test_the_same_shards_as_the_local_engine(tmp_path, on_ray, monkeypatch):
    folder = write_corpus(tmp_path / "d", 40)
    (folder / "many.jsonl").write_text("\n".join(json.dumps({"letters": "abc"}) for _ in range(600)))
    monkeypatch.setattr("multimodal_gpt.data.writing.SMALL", 0)
    made = []
    for engine in ("local", "ray"):
        recipe = toy_recipe(folder, tmp_path / engine, engine=engine, workers=2, shifts=[0, 1])
        made.append(quietly(recipe))
    assert [report.kept for report in made] == [640, 640]
    local, ray = (files(report.folder) for report in made)
    for contents in (local, ray):
        del contents["report.json"], contents["report.html"]
    assert ray == local


@pytest.mark.slow
def test_no_actor_spoils_it(tmp_path, on_ray):
    folder = write_corpus(tmp_path / "d", 9)
    for name, word in {"a1": "die", "b1": "hang", "c1": "crash", "d1": "bug", "z1": "spin"}.items():
        (folder / f"{name}.letters").write_text(word)
    tokenizers = {"letters": plugin(tmp_path / "wild.py", WILD), "beats": {"plugin": BEATS}}
    data = {"engine": "ray", "workers": 2, "seconds_per_file": 2.0}
    report = quietly(toy_recipe(folder, tmp_path / "run", tokenizers=tokenizers, **data))
    assert {s.source: s.kind for s in report.skips} == {
        "d/a1": "worker died",
        "d/b1": "timed out",
        "d/c1": "worker died",
        "d/d1": "unreadable",
        "d/z1": "timed out",
    }
    assert report.kept == 9


@pytest.mark.slow
def test_tasks_are_lost_one_by_one(on_ray):
    words = [*range(200), "exit", *range(201, 300), "hang", *range(301, 400)]
    answers = dict(on_ray.run(toy_work.make, [Task(word, 2.0) for word in words], 2, ahead=100))
    lost = {i: answer.kind for i, answer in answers.items() if isinstance(answer, Lost)}
    assert lost == {200: "worker died", 300: "timed out"}
    assert all(answers[i] == str(word).encode() for i, word in enumerate(words) if i not in lost)


@pytest.mark.slow
def test_no_answer_is_too_far_ahead(on_ray):
    unfinished = set(range(20))
    for index, _ in on_ray.run(toy_work.make, [Task(w, 9.0) for w in [1.0, *range(1, 20)]], 2, ahead=4):
        assert index < min(unfinished) + 4
        unfinished.discard(index)
    assert not unfinished


@pytest.mark.slow
def test_what_the_user_can_mend_is_raised_as_it_is(on_ray):
    with pytest.raises(UserError) as error:
        list(on_ray.run(toy_work.make_refusing, [Task(1, 1.0)], 2))
    assert str(error.value) == "my.yaml: no such letters (use others)"
    with pytest.raises(RuntimeError, match=r"does not start: .*oops"):
        list(on_ray.run(toy_work.make_failing, [Task(1, 1.0)], 2))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_closed_early_it_leaves_no_actor(on_ray):
    def running():
        return [p.parent.name for p in Path("/proc").glob("[0-9]*/cmdline") if b"ray::_Actor" in read(p)]

    def read(path):
        with suppress(OSError):  # it has ended
            return path.read_bytes()
        return b""

    before = running()
    answers = on_ray.run(toy_work.make, [Task(w, 99.0) for w in [1, "hang", "sleep"]], 2)
    next(answers)
    new = [int(pid) for pid in running() if pid not in before]
    assert len(new) == 2
    answers.close()
    assert toy_work.gone(new, 20.0)


@pytest.mark.slow
def test_the_option_of_the_command_line(tmp_path, on_ray, capsys):
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "a.txt").write_text("one")
    (folder / "b.txt").write_text("two")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"run: {tmp_path / 'run'}\ntokenizers: {{text: {{}}}}\ndata: {{folders: [{folder}]}}\n")
    with pytest.raises(SystemExit) as end:
        main(["prepare", str(recipe), "--engine", "ray", "--json"])
    assert end.value.code == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out)["kept"] == 2
