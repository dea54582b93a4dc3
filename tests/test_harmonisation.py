"""Measures of harmony by hand and by other ways to them; the table of an untrained run."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from toy_subject import TUNES, toy_run, toy_subject, wordless_subject

from multimodal_gpt.evaluation import harmony_floors, harmony_measures, music
from multimodal_gpt.evaluation.harmony import HUMAN, MARKOV, STRANGER, TEMPLATE, TONIC, harmonisation
from multimodal_gpt.evaluation.making import Prompt, fitting, is_trained, make
from multimodal_gpt.evaluation.tables import MODEL
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.vocabulary import Vocabulary

VOCABULARY = Vocabulary([Modality("chords", "chords"), Modality("melody", "melody")])


def chords(text):
    return music.harmony_of(VOCABULARY.tokenizer("chords").parse(text).table)


def notes(text):
    return VOCABULARY.tokenizer("melody").parse(text).notes


def test_chords_as_sets_of_tones():
    found = chords("| C7 | Am | . | F#m7b5 |")
    assert [np.flatnonzero(row).tolist() for row in found.tones] == [[0, 4, 7, 10], [0, 4, 9], [0, 4, 6, 9]]
    assert [np.flatnonzero(row).tolist() for row in found.triad] == [[0, 4, 7], [0, 4, 9], [0, 6, 9]]
    assert found.klass.tolist() == [0, 21, 18]
    bar = 4 * 48
    assert found.at(np.array([0, bar - 1, bar, 2 * bar, 3 * bar])).tolist() == [0, 0, 1, 1, 2]
    assert chords("| C | N.C. | C |").at(np.array([0, bar, 2 * bar])).tolist() == [0, -1, 1]


def test_a_chord_on_its_own_is_the_same_as_a_written_one():
    for klass, symbol in ((0, "C"), (2, "D"), (21, "Am")):
        alone, written = music.one_chord(klass, 192), chords(f"| {symbol} |")
        for part in ("start", "stop", "tones", "triad", "label", "klass"):
            assert getattr(alone, part).tolist() == getattr(written, part).tolist()


def test_entropy_coverage_and_distance_of_chords():
    half, quarter = 0.5 * math.log(2), 0.25 * math.log(4)
    found = chords("| C | C | G | Am |")
    assert harmony_measures.chord_entropy(found) == pytest.approx(half + 2 * quarter)
    assert harmony_measures.chord_coverage(found) == 3
    far = [tonal_distance((0, 4, 7), (7, 11, 2)), tonal_distance((7, 11, 2), (9, 0, 4))]
    assert harmony_measures.chord_distance(found) == pytest.approx(sum(far) / 2)
    assert harmony_measures.chord_distance(chords("| C |")) == 0


def tonal_distance(first, second):
    """Harte et al. (2006), written out."""

    def centroid(tones):
        angles = [(7 * math.pi / 6, 1.0), (3 * math.pi / 2, 1.0), (2 * math.pi / 3, 0.5)]
        return [
            sum(size * wave(tone * angle) for tone in tones) / len(tones)
            for angle, size in angles
            for wave in (math.sin, math.cos)
        ]

    return math.dist(centroid(first), centroid(second))


def test_chord_tones_and_proper_others():
    # Over C: c e g are its tones; d before e is proper, f before c is not, the last a has no next note.
    tune = notes("C4 D4 E4 F4 C4 G4 G4 A4")
    assert harmony_measures.chord_tone_ratio(tune, chords("| C | C |")) == pytest.approx((5 + 1) / (5 + 3))
    again = notes("D4 D4 E4 E4")  # a note that is struck again passes nowhere
    assert harmony_measures.chord_tone_ratio(again, chords("| C |")) == pytest.approx((2 + 1) / 4)
    late = notes("C4:4 F4 F4 F4 F4")  # the second bar has no chord
    assert harmony_measures.chord_tone_ratio(late, chords("| C | N.C. |")) == 1.0
    assert math.isnan(harmony_measures.chord_tone_ratio(late[1:], chords("| C | N.C. |")))


def test_consonance_is_weighted_by_time():
    # g over c e g: fifth 1, minor third 1, unison 1. f: fourth 0, minor second -1, minor seventh -1.
    tune = notes("G4:3 F4:1")
    assert harmony_measures.consonance(tune, chords("| C |")) == pytest.approx((3 * 3 + 1 * -2) / (4 * 3))
    assert math.isnan(harmony_measures.consonance(tune, chords("| N.C. | C |")))


def test_distance_of_notes_from_chords():
    tune = notes("G4:3 F4:1")
    expected = (3 * tonal_distance((7,), (0, 4, 7)) + tonal_distance((5,), (0, 4, 7))) / 4
    assert harmony_measures.melody_distance(tune, chords("| C |")) == pytest.approx(expected)


def test_time_in_a_chord_counts_what_reaches_over():
    inside, under = harmony_measures.time_in_chord(notes("C4:8 B4:4"), chords("| C | Dm7 | N.C. |"))
    assert (inside, under) == (4 * 48 + 4 * 48, 8 * 48)  # c is the seventh of Dm7


def test_vendi_counts_what_is_different():
    assert harmony_measures.vendi(np.eye(5)) == pytest.approx(5)
    assert harmony_measures.vendi(np.ones((5, 5))) == pytest.approx(1)
    two = np.kron(np.eye(2), np.ones((3, 3)))
    assert harmony_measures.vendi(two) == pytest.approx(2)
    mixed = np.array([[1, 0.5], [0.5, 1]])  # eigenvalues 0.75 and 0.25
    assert harmony_measures.vendi(mixed) == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    )


def test_bars_know_what_sounds_longest():
    lines = music.bars_of(VOCABULARY.tokenizer("melody").parse("C4:9").meters, 9 * 48)
    assert lines.tolist() == [0, 192, 384, 576]
    assert music.bar_classes(chords("| C Am Am Am | G7 F | N.C. |"), lines).tolist() == [21, 5, -1]
    assert music.bar_tones(notes("C4:3 D4:2"), lines)[:2, [0, 2]].tolist() == [[144, 48], [0, 48]]


def test_chords_are_repeated_to_a_length():
    table = VOCABULARY.tokenizer("chords").parse("| C | G |").table
    found = music.repeated(table, 384, 500)
    assert found[:, :2].tolist() == [[0, 192], [192, 192], [384, 116]]


def test_the_template_prefers_triads_of_the_key():
    heard = np.zeros((3, 12))
    heard[0, [0, 4, 7]] = 48
    heard[1, [4, 7]] = 48  # C major, or E minor
    assert harmony_floors.template(heard, 0, False).tolist() == [0, 0, 0]
    assert harmony_floors.template(heard, 4, True)[2] == 16
    only_minor = np.zeros((1, 12))
    only_minor[0, [9, 4]] = 48  # A major has both tones too, but is outside of C major
    assert harmony_floors.template(only_minor, 0, False).tolist() == [21]


def test_the_markov_model_sums_over_all_ways(monkeypatch):
    rng = np.random.default_rng(0)
    known = [rng.integers(0, 24, 9) for _ in range(4)]
    tones = [rng.integers(0, 3, (9, 12)) * 48.0 for _ in range(4)]
    model = harmony_floors.learn(known, tones)
    for table in (model.first, model.move, model.sound):
        assert np.allclose(np.exp(table).sum(axis=-1), 1)
    small = harmony_floors.Learnt(model.first[:3], model.move[:3, :3], model.sound[:3])
    heard = tones[0][:4]
    share = harmony_floors.NOTES * heard / heard.sum(axis=1, keepdims=True)
    weight = np.zeros((4, 3))
    for way in itertools.product(range(3), repeat=4):
        score = small.first[way[0]] + sum(small.move[a, b] for a, b in itertools.pairwise(way))
        score += sum(share[bar] @ small.sound[klass] for bar, klass in enumerate(way))
        for bar, klass in enumerate(way):
            weight[bar, klass] += math.exp(score)
    assert harmony_floors.decode(small, heard).tolist() == weight.argmax(axis=1).tolist()


def test_the_markov_model_learns_what_it_is_shown():
    classes = np.array([0, 7, 0, 7, 0, 7])
    heard = music.TRIADS[classes] * 48
    model = harmony_floors.learn([classes] * 20, [heard] * 20)
    assert harmony_floors.decode(model, heard).tolist() == classes.tolist()


def test_classes_are_turned():
    assert harmony_floors.turned(np.array([0, 11, 12, 23, -1]), 2).tolist() == [2, 1, 14, 13, -1]


# The question


@pytest.fixture(scope="module")
def table():
    return harmonisation(toy_subject())


def test_the_human_column_is_that_of_the_human_chords(table):
    rows = {row.name.partition(",")[0]: row for row in table.rows}
    subject = toy_subject()
    found = []
    for piece in subject.pieces:
        tune, harmony = (
            subject.run.vocabulary.decode(name, piece.segments[name].ids) for name in ("tune", "harmony")
        )
        found.append(harmony_measures.consonance(tune.notes, music.harmony_of(harmony.table)))
    assert rows["PCS"].figures[HUMAN].value == pytest.approx(np.mean(found))
    assert rows["CHE"].figures[TONIC].value == 0 and rows["CC"].figures[TONIC].value == 1
    assert rows["PCS"].figures[HUMAN].value > rows["PCS"].figures[STRANGER].value
    assert rows["PCS"].sources == ("tune0", "tune1", "tune2", "tune3")


def test_accuracies_stand_beside_their_floors(table):
    for kind in ("drawn", "likeliest"):
        (row,) = [row for row in table.rows if row.name == f"bar accuracy, {kind}"]
        assert set(row.figures) == {MODEL, STRANGER, TONIC, TEMPLATE, MARKOV}
        assert row.units == (3.0, 4.0, 4.0, 4.0)
        assert row.figures[TEMPLATE].value > row.figures[STRANGER].value
        assert 0 <= row.figures[MODEL].value <= 1


def test_variety_is_between_one_and_all(table):
    one, across = [row for row in table.rows if row.unit == "Vendi score"]
    assert 1 <= one.figures[MODEL].value <= 4 and one.figures[TONIC].value == 1
    assert 1 <= across.figures[HUMAN].value <= 4


def test_a_run_without_music_says_so():
    found = harmonisation(wordless_subject())
    assert not found.rows and "no melody with chords" in found.notes[0]


def test_roles_go_by_plugins_not_by_names():
    assert music.roles_of(toy_run()) == music.Roles("tune", "harmony", "tags", "words")
    assert music.roles_of(wordless_subject().run) == music.Roles(words="words")


# Making


def test_a_long_melody_is_cut_to_what_fits():
    subject = toy_subject(toy_run(context=70))
    tune = subject.pieces[1].segments["tune"]
    short = fitting(subject.run, {"tune": tune}, 6)["tune"]
    assert 0 < len(short.ids) < len(tune.ids)
    assert short.ids.tolist() == tune.ids[: len(short.ids)].tolist() and len(short.ids) in tune.edges
    (made,) = make(subject.run, ("harmony",), [Prompt({"tune": short})])
    assert made is not None
    again = subject.run.vocabulary.encode("harmony", made["harmony"])
    assert again.times.tolist() == short.times.tolist()
    assert fitting(toy_run(), {"tune": tune}, 6)["tune"] is tune


def test_pieces_depend_on_their_own_prompt_alone():
    subject = toy_subject()
    prompts = [Prompt({"tune": p.segments["tune"]}, (0, i)) for i, p in enumerate(subject.pieces)]
    together = make(subject.run, ("harmony",), prompts)
    (alone,) = make(subject.run, ("harmony",), prompts[2:3])
    assert together[2]["harmony"].table.tolist() == alone["harmony"].table.tolist()


def test_no_room_makes_nothing():
    subject = toy_subject(toy_run(context=40))
    assert make(subject.run, ("harmony",), [Prompt({"tune": subject.pieces[1].segments["tune"]})]) == [None]
    assert is_trained(subject.run, ("harmony",), ("tune",))
    assert not is_trained(toy_run(orders=[["words", "tune"], ["harmony"]]), ("harmony",), ("tune",))


def test_tunes_without_chords_in_what_fits_are_left_out():
    bare = ("C4:4 D4:4 E4:4 F4:4", "| N.C. | N.C. | N.C. | C |", {"key": "C major", "type": "reel"})
    found = harmonisation(toy_subject(toy_run(context=50), tunes=[*TUNES[:1], bare]))
    assert {row.count for row in found.rows if row.unit == "share of bars"} == {1}
    assert any("or have none" in note for note in found.notes)
