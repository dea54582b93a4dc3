"""A generated file tells how to make it again, byte for byte. The model is untrained."""

import json
import shutil
from pathlib import Path

import pytest
import toy_runs
from command_line import mmgpt

import multimodal_gpt as mm
from multimodal_gpt import provenance, replaying
from multimodal_gpt.cli import main
from multimodal_gpt.generation.output import write_all

ASK = {"text": "a jig", "to": "chords+melody", "n": 2, "seed": 4, "temperature": 3.0, "max_tokens": 60}


def make_run(path: Path, seed: int) -> Path:
    tokenizers = {"text": {"encoding": "bytes"}, "chords": {}, "melody": {}}
    orders = [["text", "chords+melody"], ["melody", "text"]]
    return toy_runs.new_run(path, tokenizers, orders, 200, seed=seed)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Two runs, and pieces that the first of them made."""
    home = tmp_path_factory.mktemp("home")
    run = mm.load(make_run(home / "runs" / "a", 1), device="cpu")
    make_run(home / "runs" / "b", 2)
    write_all(run.generate(**ASK), home / "out", svg=True)
    (melody,) = run.generate(text="x", to="melody", temperature=5.0, max_tokens=60)
    melody.write(home / "out" / "tune.mid")
    (words,) = run.generate(melody=home / "out" / "tune.mid", to="text", n=1, max_tokens=20)
    words.write(home / "out" / "words")
    (longer,) = run.extend(chords="C | F", melody="C4 D4 E4 F4 G4:4", bars=1, temperature=2.0)
    longer.write(home / "out" / "longer")
    unlike = {"repetition_penalty": 1.3, "repetition_window": 9, "no_repeat": 2}
    (tune,) = run.generate(text="x", to="melody", max_tokens=60, **unlike)
    tune.write(home / "out" / "unlike")
    (chosen,) = run.generate(text="x", to="melody", max_tokens=60, best_of=4, best_by=_few_notes)
    chosen.write(home / "out" / "chosen")
    return home


def _few_notes(document) -> float:
    return -len(document.content("melody").notes)


@pytest.fixture
def out(home, tmp_path, monkeypatch) -> Path:
    """A copy of the pieces, beside the runs."""
    shutil.copytree(home, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return Path("out")


FILES = {
    "0001.mid": ["0001.json", "0001.mid", "0001.png", "0001.svg"],
    "0002.svg": ["0002.json", "0002.mid", "0002.png", "0002.svg"],
    "words.txt": ["words.json", "words.txt"],
    "words.json": ["words.json", "words.txt"],
    "longer.mid": ["longer.json", "longer.mid", "longer.png"],
    "chosen.mid": ["chosen.json", "chosen.mid", "chosen.png"],
    "unlike.mid": ["unlike.json", "unlike.mid", "unlike.png"],
}


@pytest.mark.parametrize("name", FILES)
def test_a_piece_is_made_again(out, name):
    done = replaying.replay(out / name, device="cpu")
    found = {file: verdict for file, verdict in done.compared.items() if verdict == "identical"}
    assert found == done.compared and done.identical and done.run == Path("runs/a")
    # What was given as a drawing is drawn with what was made: words for a tune have its picture.
    assert set(FILES[name]) <= set(found) and done.missing == done.warnings == ()


def test_a_midi_file_that_travelled_alone(out, tmp_path):
    shutil.copy(out / "0002.mid", tmp_path / "gift.mid")
    done = replaying.replay(tmp_path / "gift.mid", run=Path("runs/a"), out=tmp_path / "new", device="cpu")
    assert done.compared == {"gift.mid": "identical"} and set(done.missing) == {"gift.json", "gift.png"}
    assert (tmp_path / "new" / "gift.json").read_bytes() == (out / "0002.json").read_bytes()


def test_what_differs_is_named(out):
    data = bytearray((out / "0001.mid").read_bytes())
    data[-7] ^= 1
    (out / "0001.mid").write_bytes(data)
    (out / "0001.svg").write_bytes(b"")
    done = replaying.replay(out / "0001.json", device="cpu")
    size = len(data)
    assert (
        done.compared["0001.mid"]
        == f"differs from byte {size - 7:,} on ({size:,} bytes before, {size:,} now)"
    )
    assert done.compared["0001.svg"].startswith("differs from byte 0 on (0 bytes before")
    assert done.compared["0001.json"] == "identical" and not done.identical


def refused(*args, **options) -> str:
    message = toy_runs.refused(replaying.replay, *args, device="cpu", **options)
    assert "\n" not in message
    return message


def test_refusals(out, tmp_path):
    path = out / "0001.mid"
    why = refused(path, run=Path("runs/b"))
    assert why.startswith("runs/b: its weights are ") and why.endswith(
        "(name the run that made it, as it was then)"
    )
    assert refused(path, run=Path("out")) == "out: is no trained run (name its folder with --run)"
    assert "the files to compare with are there" in refused(path, out=out)
    replaying.replay(path, out=tmp_path / "new", device="cpu")
    assert "the file is there already" in refused(path, out=tmp_path / "new")
    shutil.rmtree("runs/a")
    assert "no run here has the weights" in refused(path)
    (tmp_path / "a.txt").write_text("words")
    assert "nothing tells how it was made" in refused(tmp_path / "a.txt")


def test_damaged_provenance(out, tmp_path):
    info = json.loads((out / "words.json").read_text())

    def told(**changes) -> str:
        kept = {key: value for key, value in {**info, **changes}.items() if value is not None}
        (tmp_path / "a.json").write_text(json.dumps(kept))
        return refused(tmp_path / "a.json", run=Path("runs/a"))

    assert told(request=None).endswith("does not tell what was asked for (it was made by an older version)")
    assert "does not tell which checkpoint made it" in told(checkpoint=[])
    assert told(row=1).endswith("piece 1 of 1 can't be (its provenance is damaged)")
    assert told(attempt=1).endswith("attempt 1 of 1 can't be (its provenance is damaged)")
    assert "the request is damaged" in told(request={"to": ["text"]})
    assert "a.json" in told(request={**info["request"], "given": {"melody": {"class": "os", "fields": {}}}})


def test_another_version_is_told(out):
    info = json.loads((out / "words.json").read_text())
    (out / "words.json").write_text(json.dumps({**info, "made_by": "multimodal_gpt 0.0.1"}))
    done = replaying.replay(out / "words.txt", device="cpu")
    assert done.compared["words.txt"] == "identical" and not done.identical
    assert done.warnings == (f"it was made by multimodal_gpt 0.0.1, this is multimodal_gpt {mm.__version__}",)


def test_what_was_asked_for_is_shown(out):
    lines = dict(provenance.read(out / "longer.mid").lines())
    assert (lines["continued"], lines["bars"], lines["given chords"]) == ("chords, melody", "1", "C | F")
    assert "no_repeat" not in lines["settings"]
    lines = dict(provenance.read(out / "unlike.mid").lines())
    assert lines["settings"].endswith("repetition_penalty 1.3, no_repeat 2, max_tokens 60")
    assert "kept" not in lines
    (out / "chosen.json").unlink()
    lines = dict(provenance.read(out / "chosen.mid").lines())
    assert lines["kept"] in [f"attempt {number} of 4, by own" for number in (1, 2, 3, 4)]


def test_an_older_piece_is_made_again(out):
    """Settings that are younger than it are neither missed nor told."""
    how = json.loads((out / "longer.json").read_text())["request"]["how"]
    assert list(how) == ["temperature", "top_k", "top_p", "min_p", "guidance"]
    assert replaying.replay(out / "longer.json", device="cpu").identical


def test_the_verb(out, capsys):
    def command(*words) -> tuple[int, str, str]:
        return mmgpt(capsys, *words)

    code, said, _ = command("replay", out / "words.txt", "--device", "cpu")
    assert code == 0 and "words.txt" in said and "identical" in said
    (out / "words.txt").write_text("other words\n")
    code, said, _ = command("replay", out / "words.txt", "--device", "cpu", "--json")
    told = json.loads(said)
    assert code == 1 and told["identical"] is False and told["compared"]["words.json"] == "identical"
    code, said, error = command("replay", out / "words.txt", "--run", "runs/b")
    assert (code, said) == (2, "") and error.count("\n") == 1 and "its weights are" in error


def test_pictures_and_sheet_music_beside_what_is_generated(out, capsys, tmp_path):
    pytest.importorskip("verovio", reason="verovio is not installed")
    ask = [
        "--chords",
        "C | F",
        "--to",
        "melody,text",
        "--svg",
        "--sheet",
        "--max-tokens",
        "30",
        "--device",
        "cpu",
    ]
    with pytest.raises(SystemExit) as leaving:
        main(["generate", "runs/a", *ask, "--out", str(tmp_path / "new")])
    assert not leaving.value.code, capsys.readouterr().err
    kinds = ["json", "mid", "png", "sheet.svg", "svg", "txt"]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [f"0001.{kind}" for kind in kinds]
    assert "<svg" in (tmp_path / "new" / "0001.sheet.svg").read_text()[:200]
    assert ".svg .sheet.svg" in capsys.readouterr().out
