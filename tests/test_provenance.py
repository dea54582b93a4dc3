"""How a generated file was made: told by the file or by what lies beside it, shown by `mmgpt show`."""

import json
import shutil

import mido
import pytest
from command_line import mmgpt

from multimodal_gpt import provenance
from multimodal_gpt.errors import UserError
from multimodal_gpt.generation.output import Piece
from multimodal_gpt.stream.document import Document, Segment
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.vocabulary import Vocabulary

REQUEST = {"to": ["melody"], "given": {"text": list(range(300))}, "words": "\N{SNOWMAN} \x1b[31m"}
INFO = {
    "made_by": "multimodal_gpt 0.1.0",
    "checkpoint": {"sha256": "ab" * 32, "step": 1200, "tokens": 9, "fingerprint": "f"},
    "seed": 7,
    "row": 2,
    "given": {"text": "a jig\x1b[31m in D \N{SNOWMAN}"},
    "to": ["melody", "chords"],
    "temperature": {"text": 0.7, "melody": 1.0},
    "top_k": None,
    "top_p": 0.95,
    "tokens": {"text": 5, "melody": 20},
    "warnings": ["'melody' was made without chords: the context is too short"],
    "request": REQUEST,
}


@pytest.fixture(scope="module")
def vocabulary():
    plain = [
        Modality(name, name, options)
        for name, options in {"text": {"encoding": "bytes"}, "melody": {}}.items()
    ]
    return Vocabulary(plain)


@pytest.fixture
def folder(vocabulary, tmp_path):
    contents = {"melody": "C4 D4", "text": "a jig"}
    segments = tuple(Segment(n, vocabulary.tokenizer(n).parse(c)) for n, c in contents.items())
    Piece(Document(segments), ("melody", "text"), INFO, 0.0, vocabulary).write(tmp_path / "tune.mid")
    return tmp_path


def lines(path) -> dict[str, str]:
    return dict(provenance.read(path).lines())


@pytest.mark.parametrize("name", ["tune.mid", "tune.json", "tune.txt", "tune.png"])
def test_every_file_of_a_piece_tells(folder, name):
    told = provenance.read(folder / name)
    assert told.told_by == folder / "tune.json" and told.info == INFO
    assert dict(told.lines()) == {
        "made by": "multimodal_gpt 0.1.0",
        "checkpoint": "ab" * 32,
        "step": "1,200",
        "given text": "a jig [31m in D \N{SNOWMAN}",
        "made": "melody, then chords",
        "seed": "7",
        "piece": "3",
        "settings": "temperature text=0.7 melody=1.0, top_p 0.95",
        "warning": "'melody' was made without chords: the context is too short",
        "told by": str(folder / "tune.json"),
    }


def test_a_midi_file_alone_tells_all_that_is_needed_to_make_it_again(folder):
    path = folder / "renamed.mid"
    shutil.move(folder / "tune.mid", path)
    told = provenance.read(path)
    assert told.told_by == path and told.info["request"] == REQUEST
    shown = {"tokens", "warnings", "top_k"}
    assert dict(told.info) == {key: value for key, value in INFO.items() if key not in shown}


def test_a_side_car_of_another_piece_is_not_believed(folder):
    (folder / "tune.json").write_text(json.dumps({**INFO, "seed": 8}))
    told = provenance.read(folder / "tune.mid")
    assert (told.told_by, told.info["seed"]) == (folder / "tune.mid", 7)
    assert lines(folder / "tune.txt")["seed"] == "8"


def test_a_side_car_with_the_longer_name(folder):
    shutil.move(folder / "tune.json", folder / "tune.piece.json")
    (folder / "tune.json").write_text('{"beats": 3}')
    assert provenance.read(folder / "tune.txt").told_by == folder / "tune.piece.json"


def test_where_nothing_tells(folder):
    def refused(path) -> str:
        with pytest.raises(UserError) as caught:
            provenance.read(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert refused(folder / "no.mid").endswith("no.mid: there is no such file")
    (folder / "tune.json").unlink()
    assert "tune.txt: nothing tells how it was made (files that mmgpt generate" in refused(
        folder / "tune.txt"
    )
    (folder / "a.json").write_text('{"seed": 1}')
    assert "does not tell how a piece was made" in refused(folder / "a.json")
    (folder / "b.json").write_text("[" * 100_000)
    assert "does not tell how a piece was made" in refused(folder / "b.json")
    (folder / "b.mid").write_bytes((folder / "tune.mid").read_bytes()[:200])
    assert "nothing tells" in refused(folder / "b.mid")
    file = mido.MidiFile()
    file.tracks.append(mido.MidiTrack([mido.MetaMessage("text", text='{"made_by"')]))
    file.save(folder / "c.mid")
    assert "nothing tells" in refused(folder / "c.mid")


def test_what_was_tampered_with_is_shown_as_far_as_it_goes(folder):
    odd = {
        "made_by": 3,
        "row": "x",
        "checkpoint": [],
        "given": "words",
        "to": 1,
        "warnings": None,
        "seed": [1],
    }
    (folder / "odd.json").write_text(json.dumps(odd))
    assert lines(folder / "odd.json") == {"made by": "3", "seed": "[1]", "told by": str(folder / "odd.json")}


def test_packing():
    word = provenance.pack(REQUEST)
    assert (
        provenance.unpack(word) == REQUEST and word.isascii() and len(word) < len(json.dumps(REQUEST)) * 0.6
    )
    for broken in (word[:-10], word[10:], "", "\N{SNOWMAN}"):
        with pytest.raises(ValueError):
            provenance.unpack(broken)
    note = json.loads(provenance.note(INFO))
    assert provenance._unpacked({**note, "request": word[:-10]}) == {
        k: v for k, v in note.items() if k != "request"
    }
    assert provenance.note({"made_by": "x", "seed": 1}) == '{"made_by": "x", "seed": 1}'


def shown(capsys, *words) -> tuple[int, str]:
    code, out, err = mmgpt(capsys, *words)
    return code, out + err


def test_show(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    code, out = shown(capsys, "show", "tune.txt")
    assert code == 0 and "seed        7\n" in out and "\x1b" not in out
    code, out = shown(capsys, "show", "tune.mid", "--json")
    assert json.loads(out) == {"told_by": "tune.json", **INFO}
    assert shown(capsys, "show", "no.mid") == (2, "mmgpt: no.mid: there is no such file\n")
    code, out = shown(capsys, "show", "tune.mid", "train.steps=3")
    assert code == 2 and out.count("\n") == 1 and "KEY=VALUE changes a recipe" in out


def test_show_still_knows_recipes(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert shown(capsys, "show", "demo")[1].startswith("run: runs/demo")
    (folder / "mine.yaml").write_text("extends: demo\nrun: runs/mine\n")
    assert shown(capsys, "show", "mine.yaml")[1].startswith("run: ")
    code, out = shown(capsys, "show", "no.yaml")
    assert code == 2 and "there is no recipe 'no.yaml'" in out
