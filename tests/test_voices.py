"""The second worked example: four voices on a grid, told by what changes."""

import json
from pathlib import Path

import mido
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.figure import Figure

from multimodal_gpt.errors import UserError
from multimodal_gpt.recipe.load import load_recipe, modalities
from multimodal_gpt.stream.plugins import Modality, build
from multimodal_gpt.testing import check_tokenizer

FOLDER = Path(__file__).parent.parent / "examples" / "chorales"
PLUGIN = str(FOLDER / "voices.py")
VOICES = build(Modality("voices", PLUGIN))
CADENCE = np.array([[67, 62, 59, 55]] * 4 + [[67, 60, 60, 48]] * 6 + [[67, 60, 55, 48]] * 10)
GRIDS = st.integers(1, 70).flatmap(
    lambda steps: arrays(
        np.int64, (steps, 4), elements=st.sampled_from([-1, 24, 60, 61, 96]), fill=st.just(60)
    )
)


@given(GRIDS)
def test_music_comes_back(grid):
    ids = VOICES.encode(grid)
    assert VOICES.grammar().accepts(ids)
    assert np.array_equal(VOICES.decode(ids), grid)
    assert VOICES.clock(ids)[-1] == len(grid) / 4
    assert VOICES.units(grid) == grid.size


@given(GRIDS)
def test_what_is_held_takes_no_id(grid):
    before = np.vstack((np.full((1, 4), -1), grid[:-1]))
    shown = VOICES.show(VOICES.encode(grid)).split()
    assert sum(word[0] in "SATB" for word in shown) == (grid != before).sum()
    voices = dict.fromkeys("SATB")
    for word in (w for w in shown if w[0] in "SATB"):
        assert voices[word[0]] != word
        voices[word[0]] = word


def test_a_cadence_in_ids():
    assert VOICES.show(VOICES.encode(CADENCE)) == "4: S67 A62 T59 B55 | 1: A60 T60 B48 2.5: T55 ||"
    assert VOICES.clock(VOICES.encode(CADENCE)).tolist() == [0] * 5 + [1] * 4 + [2.5] * 2 + [5]


@pytest.mark.parametrize("held", [1, 15, 16, 17, 32, 33, 100])
def test_long_notes(held):
    grid = np.concatenate((CADENCE[:1], CADENCE[-1:].repeat(held, axis=0), CADENCE[:1]))
    for piece in (grid, grid[:-1]):
        assert np.array_equal(VOICES.decode(VOICES.encode(piece)), piece)


def test_moving_moves_every_pitch_and_no_place():
    moved = VOICES.shift(CADENCE, 3)
    assert moved[0].tolist() == [70, 65, 62, 58]
    assert VOICES.show(VOICES.encode(moved)) == "4: S70 A65 T62 B58 | 1: A63 T63 B51 2.5: T58 ||"
    assert VOICES.shift(CADENCE, 29).max() == 96
    assert VOICES.shift(CADENCE, 30) is None
    assert VOICES.shift(CADENCE, -25) is None


def test_rests_do_not_move():
    grid = np.array([[-1, 60, 55, -1], [67, -1, 55, 48]])
    assert VOICES.shift(grid, 1).tolist() == [[-1, 61, 56, -1], [68, -1, 56, 49]]


def test_keeps_the_contract():
    rest = np.full((3, 4), -1)
    assert "spawn" in check_tokenizer(PLUGIN, samples=[CADENCE, rest]).passed


def test_only_higher_voices_come_before_lower_ones():
    ids = VOICES.encode(CADENCE)
    ids[1], ids[2] = ids[2], ids[1]
    with pytest.raises(UserError, match="no music in four voices"):
        VOICES.decode(ids)


def test_reads_all_splits_of_the_public_file(tmp_path):
    path = tmp_path / "chorales.json"
    chorales = {"train": [CADENCE.tolist(), CADENCE[:5].tolist()], "test": [CADENCE[:9].tolist()]}
    path.write_text(json.dumps(chorales))
    items = list(VOICES.read(path))
    assert [(i.key, len(i.content)) for i in items] == [("train/000", 20), ("train/001", 5), ("test/000", 9)]


@pytest.mark.parametrize(
    ("chorale", "message"),
    [
        ([[60, 60, 60]], r"not 1 to 20,000 steps of four pitches"),
        ([], r"not 1 to 20,000 steps of four pitches"),
        ([[60, 60, 60, 12]], r"12 is no pitch .24 to 96, or -1 for a rest"),
        ("C major", r"not 1 to 20,000 steps"),
    ],
)
def test_a_broken_chorale_spoils_no_other(tmp_path, chorale, message):
    path = tmp_path / "chorales.json"
    path.write_text(json.dumps({"train": [chorale, CADENCE.tolist()]}))
    broken, whole = VOICES.read(path)
    assert isinstance(broken.content, UserError)
    with pytest.raises(UserError, match=message):
        raise broken.content
    assert np.array_equal(whole.content, CADENCE)


def test_what_is_no_json_is_named(tmp_path):
    path = tmp_path / "chorales.json"
    path.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        list(VOICES.read(path))


def test_a_file_has_a_track_for_each_voice(tmp_path):
    path = VOICES.write(CADENCE, tmp_path / "x.mid", note="seed 1")
    file = mido.MidiFile(path)
    assert [t.name for t in file.tracks] == ["soprano", "alto", "tenor", "bass"]
    assert [m.note for m in file.tracks[3] if m.type == "note_on"] == [55, 48]
    assert sum(m.time for m in file.tracks[3]) == len(CADENCE) * 120
    assert "seed 1" in [m.text for m in file.tracks[0] if m.type == "text"]


def test_any_four_tracks_are_heard(tmp_path):
    file = mido.MidiFile(ticks_per_beat=96)
    for pitch in (67, 60, 55, 48):
        on, off = (
            mido.Message(kind, note=pitch, time=time) for kind, time in (("note_on", 0), ("note_off", 97))
        )
        file.tracks.append(mido.MidiTrack([on, off]))
    file.save(tmp_path / "x.mid")
    (item,) = VOICES.read(tmp_path / "x.mid")
    assert item.content.tolist() == [[67, 60, 55, 48]] * 4
    VOICES.write(CADENCE, tmp_path / "x.mid", append=True)
    (item,) = VOICES.read(tmp_path / "x.mid")
    assert np.array_equal(item.content, CADENCE)


def test_other_music_is_none_of_it(tmp_path):
    file = mido.MidiFile()
    file.tracks.append(mido.MidiTrack([mido.Message("note_on", note=60, time=0)]))
    file.save(tmp_path / "x.mid")
    assert list(VOICES.read(tmp_path / "x.mid")) == []


def test_typed_music(tmp_path):
    assert (
        VOICES.parse("67 62 59 43, 69 -1 57 42").tolist() == [[67, 62, 59, 43]] * 4 + [[69, -1, 57, 42]] * 4
    )
    path = VOICES.write(CADENCE, tmp_path / "x.mid")
    assert np.array_equal(VOICES.parse(str(path)), CADENCE)
    with pytest.raises(
        UserError, match=r"'C major' is no music in four voices .write a chord per quarter note"
    ):
        VOICES.parse("C major")


def test_the_recipe_shows_the_model_every_key():
    recipe = load_recipe(FOLDER / "chorales.yaml", [f"data.folders=[{FOLDER}]"])
    (voices,) = modalities(recipe)
    assert build(voices).unit == "note"
    assert len({shift % 12 for shift in recipe.data.shifts}) == 12


def test_voices_are_drawn_as_lines():
    axes = Figure().subplots()
    VOICES.draw(np.where(CADENCE == 62, -1, CADENCE), axes, color="red")
    lines = [[segment.tolist() for segment in voice.get_segments()] for voice in axes.collections]
    assert lines[:2] == [[[[0, 67], [5, 67]]], [[[1, 60], [5, 60]]]]
    assert {tuple(voice.get_colors()[0]) for voice in axes.collections} == {(1, 0, 0, 1)}
