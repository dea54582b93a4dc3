"""The demo: what it counts as a fault, and the whole of it in its quick form."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import mido
import pytest

from multimodal_gpt.demo import DIRECTIONS, fault_of


def midi(path: Path, notes: int) -> Path:
    """A MIDI file of some notes, one after the other."""
    on_off = [("note_on", 0), ("note_off", 480)] * notes
    track = mido.MidiTrack(mido.Message(kind, note=60, velocity=64, time=time) for kind, time in on_off)
    file = mido.MidiFile()
    file.tracks.append(track)
    file.save(path)
    return path


def test_a_file_that_opens_and_holds_something_has_no_fault(tmp_path: Path) -> None:
    words = tmp_path / "a.txt"
    words.write_text("a slow waltz\n", "utf-8")
    assert fault_of(words) == ""
    assert fault_of(midi(tmp_path / "a.mid", 3)) == ""


def test_faults_are_named(tmp_path: Path) -> None:
    (tmp_path / "cut.mid").write_bytes(midi(tmp_path / "a.mid", 3).read_bytes()[:30])
    (tmp_path / "odd.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "blank.txt").write_text(" \n", "utf-8")
    (tmp_path / "a.json").write_text("", "utf-8")
    assert fault_of(midi(tmp_path / "silent.mid", 0)) == "silent.mid: 0 notes, 0 played"
    assert fault_of(tmp_path / "cut.mid").startswith("cut.mid does not open: ")
    assert fault_of(tmp_path / "odd.txt").startswith("odd.txt: ")
    assert fault_of(tmp_path / "blank.txt").startswith("blank.txt: ")
    assert fault_of(tmp_path / "a.json") == "a.json is empty"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("music21") is None, reason='needs pip install "multimodal-gpt[corpus]"')
def test_the_quick_demo_works_in_all_directions(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "multimodal_gpt", "demo", "--quick", "--json"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["legal"] is True
    assert [answer["direction"] for answer in result["answers"]] == [d.name for d in DIRECTIONS]
    assert result["trained"]["loss"] < result["untrained"]["loss"]
    for answer in result["answers"]:
        assert all((tmp_path / path).is_file() for path in answer["files"])
