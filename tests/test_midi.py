from __future__ import annotations

import mido
import numpy as np
import pytest
import symusic
from hypothesis import given
from hypothesis import strategies as st

from multimodal_gpt.errors import UserError
from multimodal_gpt.tokenizers import _midi
from multimodal_gpt.tokenizers._music import Meter, Track, sort_notes


def track(*rows, name="Melody", program=73, drum=False):
    return Track(name, program, drum, np.array(rows, dtype=np.int64).reshape(-1, 3))


def chunk(kind, hexadecimal):
    data = bytes.fromhex(hexadecimal)
    return kind + len(data).to_bytes(4, "big") + data


HEAD = "0000 0001 0060"  # type 0, 1 track, 96 ticks per quarter note
TUNE = """
00 ff 58 04 06 03 24 08  # 6/8
00 ff 59 02 02 00        # D major
00 ff 51 03 0a 2c 2a     # 90 quarter notes per minute
00 90 3e 40  30 80 3e 40 # D4, an eighth
00 90 42 40  03 80 42 40 # F#4, a thirty-second
00 ff 2f 00
"""


def midi(head=HEAD, events=TUNE):
    events = " ".join(line.partition("#")[0] for line in events.splitlines())
    return chunk(b"MThd", head) + chunk(b"MTrk", events)


def write(tmp_path, data):
    path = tmp_path / "tune.mid"
    path.write_bytes(data)
    return path


def test_load(tmp_path):
    song = _midi.load(write(tmp_path, midi()))
    assert song.tracks[0].notes.tolist() == [[0, 24, 62], [24, 2, 66]]
    assert (song.meters, song.signature, song.tempo) == ((Meter(0, 6, 8),), (2, False), 90.0)
    assert (song.key, song.symbols) == ("", None)


def test_no_notes_is_no_error(tmp_path):
    song = _midi.load(write(tmp_path, midi(events="00 ff 2f 00")))
    assert (song.tracks, song.meters, song.tempo, song.signature) == ((), (Meter(0),), 120.0, None)


LATE = "00 90 3e 40  30 80 3e 40  ff ff ff 7f 90 3e 40  30 80 3e 40  00 ff 2f 00"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is an empty file"),
        (b"RIFF", "is not a MIDI file"),
        (midi()[:10], "is truncated or damaged"),
        (midi()[:40], "is truncated or damaged"),
        (midi(head="0000 0001 0000"), "it says no length of a quarter note"),
        (midi(head="0000 0001 e728"), "counts time in SMPTE frames, not in beats"),
        (midi(events=LATE), "is damaged, or longer than 20,000 quarter notes"),
        (
            midi(head="0000 0001 0001", events="00 ff 58 04 01 04 24 08 85 00 90 3e 40 81 80 00 80 3e 40"),
            None,
        ),
        (b"MThd" + b"\0" * 5_000_000, "has 5,000,004 bytes, more than 4,000,000"),
    ],
)
def test_damaged_files(tmp_path, data, message):
    path = write(tmp_path, data)
    if message is None:
        assert len(_midi.load(path).tracks) <= 1
        return
    with pytest.raises(UserError) as error:
        _midi.load(path)
    assert message in str(error.value) and str(error.value).startswith(str(path))


def test_too_many_bars(tmp_path, monkeypatch):
    monkeypatch.setattr(_midi, "MAX_BARS", 10)
    path = _midi.write_tracks(tmp_path / "long.mid", [track((3000, 48, 60))])
    with pytest.raises(UserError, match="has more than 10 bars"):
        _midi.load(path)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        _midi.load(tmp_path / "none.mid")


@given(st.binary(max_size=200))
def test_any_bytes_load_or_are_refused(tail):
    for data in (tail, b"MThd\0\0\0\6\0\0\0\1\0\x60MTrk" + tail, midi()[:30] + tail):
        try:
            _midi.song_of_score(_midi.parse(data, "x"), "")
        except UserError as error:
            assert len(str(error).splitlines()) == 1


rows = st.lists(
    st.tuples(st.integers(0, 10_000), st.integers(1, 500), st.integers(0, 127)), min_size=1, max_size=30
)


@given(rows)
def test_write_then_load(tmp_path_factory, notes):
    # MIDI can't tell two notes of one pitch apart while both sound.
    last = {}
    kept = [n for n in sorted(notes) if last.get(n[2], 0) <= n[0] and not last.update({n[2]: n[0] + n[1]})]
    path = tmp_path_factory.mktemp("midi") / "notes.mid"
    meters = (Meter(0, 3, 4), Meter(144, 6, 8))
    _midi.write_tracks(path, [track(*kept)], meters=meters, tempo=100, signature=(-3, True), note="seed 1")
    song = _midi.load(path)
    assert song.tracks[0].notes.tolist() == sort_notes(np.array(kept)).tolist()
    assert (song.meters, song.tempo, song.signature) == (meters, 100.0, (-3, True))
    assert (song.tracks[0].name, song.tracks[0].program) == ("Melody", 73)
    assert symusic.Score(path).note_num() == len(kept)


def test_what_is_in_the_file(tmp_path):
    path = tmp_path / "two.mid"
    two = [track((0, 48, 60)), track((0, 96, 48), name="Chörds", program=24)]
    _midi.write_tracks(path, two, title="A tune", note="from É", signature=(6, True))
    file = mido.MidiFile(path, charset="utf-8")
    assert file.type == 1 and file.ticks_per_beat == 480
    names = [[m.name for m in t if m.type == "track_name"] for t in file.tracks]
    assert names == [["A tune"], ["Melody"], ["Chörds"]]
    texts = {m.type: m for m in file.tracks[0]}
    assert (texts["text"].text, texts["key_signature"].key) == ("from É", "D#m")
    assert [{m.channel for m in t if not m.is_meta} for t in file.tracks] == [set(), {0}, {1}]


def test_the_same_bytes_twice(tmp_path):
    for name in ("a.mid", "b.mid"):
        _midi.write_tracks(tmp_path / name, [track((0, 48, 60))], note="x")
    assert (tmp_path / "a.mid").read_bytes() == (tmp_path / "b.mid").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mid", "b.mid"]


def test_append_leaves_the_rest_untouched(tmp_path):
    path = write(tmp_path, midi())  # type 0, 96 ticks per quarter note
    before = [str(m) for m in mido.MidiFile(path).tracks[0]]
    _midi.write_tracks(path, [track((24, 48, 70), name="More")], append=True, tempo=33)
    file = mido.MidiFile(path)
    assert [str(m) for m in file.tracks[0]] == before
    assert (file.type, len(file.tracks), {m.channel for m in file.tracks[1] if not m.is_meta}) == (1, 2, {1})
    song = _midi.load(path)
    assert [t.notes.tolist() for t in song.tracks] == [[[0, 24, 62], [24, 2, 66]], [[24, 48, 70]]]


def test_channels_skip_the_drums(tmp_path):
    many = [track((0, 48, 60), name=str(i)) for i in range(17)]
    many[3] = track((0, 48, 36), name="drums", drum=True)
    path = _midi.write_tracks(tmp_path / "many.mid", many)
    channels = [{m.channel for m in t if not m.is_meta} for t in mido.MidiFile(path).tracks[1:]]
    assert channels[3] == {9} and {9} not in channels[:3] + channels[4:]
    assert len(_midi.load(path).tracks) == 17


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="ends later than MIDI can write"):
        _midi.write_tracks(tmp_path / "late.mid", [track((2**27, 48, 60))])
    with pytest.raises(UserError, match="no track can be added"):
        _midi.write_tracks(tmp_path / "none.mid", [track((0, 48, 60))], append=True)
    with pytest.raises(UserError, match="can't be written"):
        _midi.write_tracks(tmp_path / "no folder" / "x.mid", [track((0, 48, 60))])
    assert not list(tmp_path.iterdir())
