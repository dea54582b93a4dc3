"""`mmgpt render`: sheet music and sound of MIDI files, from the command line."""

import json
from pathlib import Path

from command_line import mmgpt
from toy_rendering import missing, sound, soundfont

from multimodal_gpt.rendering import audio, score, sheet


def command(capsys, *words) -> tuple[int, str]:
    code, out, err = mmgpt(capsys, *words)
    return code, out + err


def test_render(tune, capsys, tmp_path):
    code, out = command(capsys, "render", tune, "--wav", "--musicxml", "--json")
    assert code == 0
    made = {Path(row["file"]).name: row["made_with"] for row in json.loads(out)}
    assert set(made) == {"tune.wav", "tune.musicxml"} and made["tune.wav"].startswith("built-in sines")
    assert (tmp_path / "tune.wav").read_bytes() == audio.synthesise(tune)
    code, out = command(capsys, "render", tune, "--wav")
    assert code == 2 and "tune.wav: the file is there already (add --force" in out
    assert command(capsys, "render", tune, "--wav", "--out", tmp_path / "new" / "place")[0] == 0
    assert (tmp_path / "new" / "place" / "tune.wav").is_file()
    assert "nothing is asked for" in command(capsys, "render", tune)[1]
    code, out = command(capsys, "render", tune, tmp_path / "no.mid", "--wav", "--out", tmp_path / "two")
    assert code == 2 and "no such file" in out and not (tmp_path / "two").exists()
    code, out = command(capsys, "render", tune, tune, "--wav", "--out", tmp_path / "two")
    assert code == 2 and "two files would be written there" in out


@missing("verovio")
def test_render_sheet(tune, capsys, tmp_path):
    code, out = command(capsys, "render", tune, "--sheet")
    assert code == 0 and "tune.sheet.svg" in out and "verovio" in out
    assert (tmp_path / "tune.sheet.svg").read_text() == sheet.engrave(score.read(tune))[0]


@missing("midirenderer")
def test_render_names_the_soundfont(tune, capsys, tmp_path):
    code, out = command(capsys, "render", tune, "--soundfont", soundfont(tmp_path / "sine.sf2"))
    assert code == 0 and "soundfont sine.sf2" in out
    assert sound((tmp_path / "tune.wav").read_bytes(), 48_000).any()
