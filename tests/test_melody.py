"""Melodies: the plugin contract, any notes as a legal line, and the files they are read from."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_melody import JIG, PLUGIN, random_melody

from multimodal_gpt import conformance
from multimodal_gpt.errors import UserError
from multimodal_gpt.testing import check_tokenizer
from multimodal_gpt.tokenizers import _songs, melody
from multimodal_gpt.tokenizers._music import clean_meters


def test_conformance():
    check_tokenizer(PLUGIN, samples=[JIG, *(random_melody(seed, True) for seed in range(5))])
    check_tokenizer(melody.build(steps_per_beat=24))


notes = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(1, 3000), st.integers(0, 127)), min_size=1, max_size=40
)
signs = st.lists(
    st.tuples(st.integers(0, 4000), st.integers(0, 20), st.sampled_from([1, 2, 3, 4, 8, 16, 32]))
)


@settings(max_examples=80, deadline=None)
@given(notes, signs, st.sampled_from([12, 24]))
def test_anything_becomes_a_legal_line(rows, written, steps):
    plugin = melody.build(steps_per_beat=steps)
    content = melody.Melody(np.array(rows), clean_meters(written))
    ids = plugin.encode(content)
    assert plugin.grammar().accepts(ids)
    line = plugin.decode(ids).notes
    assert (np.diff(line[:, 0]) > 0).all() and (line[1:, 0] >= (line[:, 0] + line[:, 1])[:-1]).all()
    assert np.array_equal(plugin.encode(plugin.decode(ids)), ids)
    assert set(line[:, 2].tolist()) <= {p for _, _, p in rows}


def test_encode_is_what_it_says():
    assert PLUGIN.show(PLUGIN.encode(JIG)) == "| 6/8 @2.5 A4 0.5 | @0 D5 1 @1 C#5 0.5 | @0 B4 6"
    assert PLUGIN.clock(PLUGIN.encode(JIG)).tolist() == [
        0,
        0,
        2.5,
        2.5,
        2.5,
        3,
        3,
        3,
        3,
        3,
        4,
        4,
        4,
        6,
        6,
        6,
        6,
        6,
    ]
    assert PLUGIN.cuts(PLUGIN.encode(JIG)).tolist() == [0, 5, 13]


def test_one_note_at_a_time():
    chord = melody.Melody(np.array([[0, 96, 60], [0, 48, 67], [24, 24, 64]]))
    assert PLUGIN.decode(PLUGIN.encode(chord)).notes.tolist() == [[0, 24, 67], [24, 24, 64]]


def test_describe_draw_and_shift():
    assert PLUGIN.describe(JIG) == {
        "key": "B minor",
        "meter": "6/8",
        "tempo": 120,
        "bars": 5,
        "notes": 4,
        "lowest": "A4",
        "highest": "D5",
    }
    higher = PLUGIN.shift(melody.Melody(JIG.notes, JIG.meters, signature=(2, False)), 3)
    assert higher.signature == (-1, False) and higher.notes[0, 2] == 72
    assert PLUGIN.shift(JIG, 60) is None
    import matplotlib.figure

    axes = matplotlib.figure.Figure().subplots()
    PLUGIN.draw(JIG, axes)
    first = axes.collections[0].get_paths()[0].get_extents()
    assert (first.x0, round(first.width, 6), (first.y0 + first.y1) / 2) == (
        2.5,
        0.47,
        69,
    )  # a gap before the next


@settings(max_examples=60, deadline=None)
@given(notes, signs, st.sampled_from([12, 24]), st.integers(-130, 130))
def test_shifted_ids_are_those_of_the_shifted_melody(rows, written, steps, by):
    plugin = melody.build(steps_per_beat=steps)
    ids = plugin.encode(melody.Melody(np.array(rows), clean_meters(written)))
    moved = plugin.shift(plugin.decode(ids), by)
    got = plugin.shift_ids(ids, by)
    assert (got is None) == (moved is None)
    if moved is not None:
        assert got.dtype == np.int32 and np.array_equal(got, plugin.encode(moved))


class WrongShift(melody.MelodyTokenizer):
    def shift_ids(self, ids, steps):
        return ids


class WrongShingles(melody.MelodyTokenizer):
    def shingles(self, content):
        return content.notes[:, 2].astype(np.uint64)


class WrongParts(melody.MelodyTokenizer):
    def read_part(self, path, part, parts):
        return super().read_part(path, 0, 1)


@pytest.mark.parametrize(
    ("plugin", "check", "message"),
    [
        (WrongShift(), conformance.check_shift_ids, "shift_ids"),
        (WrongShingles(), conformance.check_shingles, "moved by 1"),
        (WrongParts(), conformance.check_read_part, "read_part in 2 parts"),
    ],
)
def test_conformance_finds_wrong_hooks(plugin, check, message, tmp_path):
    check(conformance.Case(PLUGIN, None, tmp_path, (JIG,)))
    with pytest.raises(conformance.ConformanceError, match=message):
        check(conformance.Case(plugin, None, tmp_path, (JIG,)))


def played(path, onsets, division=480, meter=(4, 4)):
    """A file of one track with a note of 20 file ticks at each onset."""
    from symusic import Note, Score, TimeSignature, Track

    score = Score(division)
    score.time_signatures.append(TimeSignature(0, *meter))
    score.tracks.append(Track("Melody", 73))
    for i, onset in enumerate(onsets):
        score.tracks[0].notes.append(Note(onset, 20, 60 + i % 12, 90))
    score.dump_midi(path)
    (item,) = PLUGIN.read(path)
    return item


@pytest.mark.parametrize(
    ("onsets", "error"),
    [
        ([0, 240, 480, 720], 0.0),  # straight eighths
        ([0, 160, 320, 480, 640, 800], 0.0),  # triplets
        ([0, 320, 480, 800, 960, 1280], 0.0),  # swung eighths
        ([0, 120, 240, 360], 0.0),  # sixteenths
        ([0, 60, 120, 180], 10.0),  # thirty-seconds: every second one moves by half a step, 20
        ([0, 243, 477, 720], 1.5),  # three too late, three too early: a human hand
    ],
)
def test_timing_error(tmp_path, onsets, error):
    item = played(tmp_path / "tune.mid", onsets)
    assert item.metadata["melody_timing_error"] == error
    (finer,) = melody.build(steps_per_beat=24).read(tmp_path / "tune.mid")
    assert finer.metadata["melody_timing_error"] == (0.0 if error == 10.0 else error)


def test_timing_error_is_that_of_the_melody(tmp_path):
    path = tmp_path / "two.mid"
    played(path, [0, 480, 960])
    PLUGIN.write(melody.Melody(np.array([[5, 40, 40], [61, 40, 43]]), name="Bass"), path, append=True)
    (item,) = PLUGIN.read(path)
    assert item.metadata["melody_timing_error"] == 0.0
    (item,) = melody.build(track="bass").read(path)
    assert item.metadata["melody_timing_error"] == 10.0  # both by a 48th of a quarter note


@pytest.mark.parametrize(
    "meter", [(5, 4), (7, 8), (12, 8), (3, 2), (2, 2), (6, 8), (3, 16), (1, 4), (15, 16)]
)
def test_no_note_is_lost_in_any_meter(tmp_path, meter):
    bar = 480 * 4 * meter[0] // meter[1]
    sixteenth = 120
    onsets = range(bar - sixteenth, 4 * bar, sixteenth)  # a pickup of a sixteenth, and three bars
    item = played(tmp_path / "tune.mid", onsets, meter=meter)
    line = PLUGIN.decode(PLUGIN.encode(item.content))
    assert (line.notes[:, 0] * 10).tolist() == list(onsets)
    assert item.metadata["melody_timing_error"] == 0.0
    ids = PLUGIN.encode(item.content)
    assert (np.diff(PLUGIN.clock(ids)[PLUGIN.cuts(ids)]) * 480 == bar).all()


def test_programs_tempos_and_many_tracks(tmp_path):
    from symusic import Note, Score, Tempo, Track

    score = Score(480)
    for tick, tempo in ((0, 90), (480, 180), (960, 30)):
        score.tempos.append(Tempo(tick, tempo))
    for program in range(128):
        score.tracks.append(Track(f"part {program}", program, program % 40 == 39))
        pitch = 30 + program // 2
        for i in range(8):
            score.tracks[-1].notes.append(Note(480 * i, 480, pitch + i % 3, 90))
    score.dump_midi(tmp_path / "many.mid")
    (item,) = PLUGIN.read(tmp_path / "many.mid")
    assert item.content.tempo == 90.0  # tempo changes move no note
    assert (item.content.notes[:, 0] == 48 * np.arange(8)).all()
    assert set(item.content.notes[:, 2].tolist()) == {93, 94, 95}  # the highest line
    assert "the highest single line" in item.metadata["melody_track"]
    (song,) = (song for _, song in _songs.songs(tmp_path / "many.mid"))
    assert sum(len(t.notes) for t in song.tracks) == 128 * 8
    for track in score.tracks:
        track.is_drum = True
    score.dump_midi(tmp_path / "drums.mid")
    assert list(PLUGIN.read(tmp_path / "drums.mid")) == []


def test_karaoke_files_are_read(tmp_path):
    path = tmp_path / "tune.kar"
    path.write_bytes(PLUGIN.write(JIG, tmp_path / "tune.mid").read_bytes())
    (item,) = PLUGIN.read(path)
    assert np.array_equal(PLUGIN.encode(item.content), PLUGIN.encode(JIG))


BOOK = "Z:common\nM:6/8\n\n" + "\n".join(
    f"X:{n}\nT:Tune {n}\nL:1/8\nK:{key}\nGAB cde|d3 B3|\n"
    for n, key in [(12, "G"), (3, "C"), (12, "D"), (12, "A"), (7, ""), (8, "F")]
).replace("K:\n", "")


@pytest.mark.parametrize("parts", [1, 2, 4, 6, 9])
def test_a_book_is_read_in_parts(tmp_path, parts):
    book = tmp_path / "book.abc"
    book.write_text(BOOK)
    whole = list(PLUGIN.read(book))
    assert [item.key for item in whole] == ["12", "3", "12.2", "12.3", "7", "8"]
    split = [list(PLUGIN.read_part(book, part, parts)) for part in range(parts)]
    assert max(map(len, split)) - min(map(len, split)) <= 1
    for got, item in zip([i for part in split for i in part], whole, strict=True):
        assert (got.key, got.metadata) == (item.key, item.metadata)
        if isinstance(item.content, UserError):
            assert str(got.content) == str(item.content)
        else:
            assert np.array_equal(PLUGIN.encode(got.content), PLUGIN.encode(item.content))
            assert str(got.content.meters[0]) == "6/8"


def test_parts_of_a_file_of_one_piece(tmp_path):
    path = PLUGIN.write(JIG, tmp_path / "jig.mid")
    assert [len(list(PLUGIN.read_part(path, part, 3))) for part in range(3)] == [1, 0, 0]
    with pytest.raises(UserError, match=r"[Nn]o such file"):
        list(PLUGIN.read_part(tmp_path / "none.mid", 1, 3))


def test_parse_note_names(tmp_path):
    typed = PLUGIN.parse("C4 D | Eb4:2 r G#5:1/2")
    assert typed.notes.tolist() == [[0, 48, 60], [48, 48, 62], [96, 96, 63], [240, 24, 80]]
    path = PLUGIN.write(typed, tmp_path / "typed.mid")
    assert PLUGIN.parse(str(path)).notes.tolist() == typed.notes.tolist()


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("C4 H4", "'H4' is no note (write notes like 'C4 D4 E4:2 r G4' "),
        ("C4:0", "'C4:0' is no note"),
        ("r r", "no notes"),
        ("missing.mid", "missing.mid: no such file"),
    ],
)
def test_parse_says_what_is_wrong(typed, message):
    with pytest.raises(UserError) as error:
        PLUGIN.parse(typed)
    assert str(error.value).startswith(message)


def test_reads_back_what_it_wrote(tmp_path):
    content = melody.Melody(JIG.notes, JIG.meters, 90.0, (2, False))
    (item,) = PLUGIN.read(PLUGIN.write(content, tmp_path / "jig.mid"))
    told = {"melody_track": "track 1 'Melody': its name", "melody_timing_error": 0.0}
    assert (item.key, item.metadata) == ("", told)
    got = item.content
    assert got.notes.tolist() == content.notes.tolist()
    assert (got.meters, got.tempo, got.signature) == (content.meters, 90.0, (2, False))


def test_a_broken_tune_is_an_item(tmp_path):
    book = tmp_path / "book.abc"
    book.write_text("X:1\nT:Good\nM:4/4\nL:1/4\nK:G\nGABc|d4|\n\nX:2\nT:No key\n\nX:3\nT:Silent\nK:C\n\n")
    items = list(PLUGIN.read(book))
    assert [item.key for item in items] == ["1", "2"]
    assert items[0].metadata["title"] == "Good"
    assert isinstance(items[1].content, UserError)
    with pytest.raises(UserError, match="has no K: line"):
        PLUGIN.encode(items[1].content)


def test_a_track_can_be_asked_for(tmp_path):
    path = PLUGIN.write(JIG, tmp_path / "two.mid")
    low = melody.Melody(JIG.notes - [0, 0, 24], JIG.meters, name="Cello")
    PLUGIN.write(low, path, append=True)
    for asked in ("cello", 2, "2"):
        (item,) = melody.build(track=asked).read(path)
        assert item.content.notes.tolist() == low.notes.tolist()
    (item,) = melody.build(track="oboe").read(path)
    assert "no track 'oboe' (tracks: track 1 'Melody', track 2 'Cello')" in str(item.content)


@pytest.mark.parametrize(
    ("options", "fix"), [({"steps_per_beat": 8}, "12 or 24"), ({"tokenization": "x"}, "remi")]
)
def test_build_refuses(options, fix):
    with pytest.raises(UserError, match=fix):
        melody.build(**options)


def test_needs_neither_torch_nor_miditok():
    code = (
        "import sys, numpy as np\n"
        "from multimodal_gpt.tokenizers import melody\n"
        "plugin = melody.build()\n"
        "plugin.decode(plugin.encode(plugin.parse('C4 D4')))\n"
        "print([m for m in ('torch', 'miditok', 'music21', 'symusic', 'mido') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_songs_refuses_other_files(tmp_path):
    with pytest.raises(UserError, match=r"[Nn]o such file"):
        _songs.songs(tmp_path / "none.mid")
    odd = tmp_path / "tune.mdi"
    odd.write_bytes(b"")
    with pytest.raises(UserError, match="did you mean"):
        _songs.songs(odd)
