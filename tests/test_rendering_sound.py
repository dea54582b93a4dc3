"""Sound of MIDI files, heard by a Fourier transform."""

import mido
import numpy as np
import pytest
from toy_rendering import midi, missing, sound, soundfont

from multimodal_gpt.errors import UserError
from multimodal_gpt.rendering import audio, score


def pitch_of(samples: np.ndarray, rate: int = 44_100) -> float:
    """Hz of the strongest frequency, to a hundredth of a hertz or so."""
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 8 * len(samples)))
    return float(power.argmax() / (8 * len(samples)) * rate)


@pytest.mark.parametrize(("name", "hertz"), [("A4", 440.0), ("C4", 261.626), ("A2", 110.0), ("E6", 1318.51)])
@pytest.mark.parametrize("program", [0, 16, 40, 73])
def test_a_note_has_its_pitch(tmp_path, name, hertz, program):
    data = audio.synthesise(midi(tmp_path / "a.mid", f"{name}:4", program=program))
    assert pitch_of(sound(data)[4000:70_000, 0]) == pytest.approx(hertz, rel=5e-4)


def test_how_long_how_loud_and_silent_where_rests_are(tmp_path):
    path = midi(tmp_path / "a.mid", "A4:2 r:2 C5:2", tempo=60.0)
    heard = sound(audio.synthesise(path))
    assert 6.0 < len(heard) / 44_100 < 6.3
    assert 0.85 < np.abs(heard).max() < 1
    assert not heard[round(2.15 * 44_100) : 4 * 44_100 - 1].any()
    loud = np.abs(heard[:, 0])
    assert loud[: 2 * 44_100].max() > 0.3 and loud[4 * 44_100 : 6 * 44_100].max() > 0.3
    assert audio.synthesise(path) == audio.synthesise(path)


def test_many_notes_do_not_clip_and_tracks_stand_apart(tune):
    heard = sound(audio.synthesise(tune))
    assert np.abs(heard).max() < 0.9
    assert not np.allclose(heard[:, 0], heard[:, 1], atol=0.01)


def test_a_tempo_change_is_heard(tmp_path):
    file = mido.MidiFile(ticks_per_beat=480)
    slower = mido.MetaMessage("set_tempo", tempo=1_000_000, time=480)
    notes = [mido.Message("note_on", note=69), slower, mido.Message("note_off", note=69, time=480)]
    file.tracks.append(mido.MidiTrack(notes))
    file.save(tmp_path / "a.mid")
    assert len(sound(audio.synthesise(tmp_path / "a.mid"))) / 44_100 == pytest.approx(1.5, abs=0.2)


def test_drums_are_noise(tmp_path):
    file = mido.MidiFile()
    hits = [
        mido.Message("note_on", note=38, channel=9),
        mido.Message("note_off", note=38, channel=9, time=240),
    ]
    file.tracks.append(mido.MidiTrack(hits))
    file.save(tmp_path / "d.mid")
    power = np.abs(np.fft.rfft(sound(audio.synthesise(tmp_path / "d.mid"))[:4000, 0]))
    assert np.median(power) > 0.1 * power.max()
    with pytest.raises(UserError, match="holds no notes for a staff"):
        score.read(tmp_path / "d.mid")


def test_what_can_not_be_played(tmp_path):
    with pytest.raises(UserError, match=r"lasts 30 minutes \(20 are the most\)"):
        audio.synthesise(midi(tmp_path / "a.mid", " ".join(["C4:300"] * 6), tempo=60.0))
    (tmp_path / "b.mid").write_bytes(b"MThd")
    (tmp_path / "c.wav").write_bytes(b"")
    mido.MidiFile(tracks=[mido.MidiTrack()]).save(tmp_path / "empty.mid")
    for name, why in {
        "b.mid": "truncated",
        "c.wav": "is no MIDI file",
        "no.mid": "no such file",
        "empty.mid": "no notes",
    }.items():
        for call in (audio.synthesise, score.read):
            with pytest.raises(UserError, match=why):
                call(tmp_path / name)


@missing("midirenderer")
def test_a_soundfont_is_played(tmp_path):
    path = midi(tmp_path / "a.mid", "A4:4 A5:4")
    data = audio.play(path, soundfont(tmp_path / "sine.sf2"))
    heard = sound(data, 48_000)
    assert pitch_of(heard[4_800:90_000, 0], 48_000) == pytest.approx(441, rel=5e-4)
    assert pitch_of(heard[100_000:180_000, 0], 48_000) == pytest.approx(882, rel=5e-4)
    assert len(heard) / 48_000 == pytest.approx(4, abs=0.5) and np.abs(heard).max() < 1
    assert data == audio.play(path, tmp_path / "sine.sf2")


@missing("midirenderer")
def test_a_soundfont_that_is_none(tmp_path):
    path = midi(tmp_path / "a.mid", "A4:4")
    (tmp_path / "a.sf2").write_bytes(b"RIFF0000sfbkxxxx")
    (tmp_path / "b.sf2").write_bytes(b"OggS")
    for name, why in {
        "a.sf2": "can't be played",
        "b.sf2": "is no soundfont",
        "c.sf2": "no such file",
    }.items():
        with pytest.raises(UserError, match=why):
            audio.play(path, tmp_path / name)
