"""Prompts ask for what they say, listeners hear what is there, and each figure stands beside its null."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from toy_subject import TUNES, toy_run, toy_subject, wordless_subject

from multimodal_gpt.evaluation import guessing, music, prompts
from multimodal_gpt.evaluation.context_gain import derange
from multimodal_gpt.evaluation.control import HUMAN, WRONG, Heard, Listener, control
from multimodal_gpt.evaluation.tables import MODEL
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.vocabulary import Vocabulary
from multimodal_gpt.tokenizers._wishes import scale_of

MELODY = Vocabulary([Modality("melody", "melody")]).tokenizer("melody")


@pytest.fixture(scope="module")
def subject():
    return toy_subject()


@pytest.fixture(scope="module")
def table(subject):
    return control(subject)


def rows(table):
    return {row.name: row for row in table.rows}


# Keys


@pytest.mark.parametrize(
    ("name", "tonic", "scale"),
    [
        ("C major", 0, {0, 2, 4, 5, 7, 9, 11}),
        ("F# minor", 6, {6, 8, 9, 11, 1, 2, 3, 4, 5}),
        ("Bb major", 10, {10, 0, 2, 3, 5, 7, 9}),
    ],
)
def test_keys_have_a_tonic_and_a_scale(name, tonic, scale):
    key = music.known_key(name)
    assert key is not None and music.tonic_of(key) == tonic and music.key_in_words(key) == name
    assert set(np.flatnonzero(scale_of(key)).tolist()) == scale


def test_two_spellings_are_one_key():
    assert music.known_key("Gb major") == music.known_key("F# major")
    assert music.known_key("none") is None and music.known_key(3) is None


# Prompts


def test_facts_have_one_spelling():
    facts = {"key": "Gb major", "meter": "6/8", "bars": 16, "type": None, "title": "x"}
    assert prompts.spelt(facts) == {"key": "F# major", "meter": "6/8", "bars": "16"}
    assert prompts.spelt({"key": "nonsense", "bars": "65-128"}) == {}


def test_prompts_say_what_they_ask_for(subject):
    roles = music.roles_of(subject.run)
    for tune in prompts.tunes(subject):
        order = tune.order
        segment = order.given[order.route]
        said = subject.run.vocabulary.decode(order.route, segment.ids)
        if order.route == roles.words:
            assert all(value in said for value in order.asked.values())
            assert set(order.asked) <= {"key", "meter", "type", "bars"} and order.asked
        else:
            assert {f: v for f, v in said.items() if v != "other"} == dict(order.asked)
        assert (order.piece is None) == (order.kind == prompts.DRAWN)
        assert set(tune.made) == {"harmony", "tune"}


def test_each_route_and_kind_has_its_prompts(subject):
    kinds = [(t.order.route, t.order.kind) for t in prompts.tunes(subject)]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        (route, kind): 4 for route in ("words", "tags") for kind in (prompts.HELD_OUT, prompts.DRAWN)
    }


def test_a_tune_without_chords_in_most_documents_is_made_alone():
    subject = toy_subject()
    few = tuple(
        p
        if i == 0
        else type(p)(
            {n: s for n, s in p.segments.items() if n != "harmony"}, p.metadata, p.source, p.captions
        )
        for i, p in enumerate(subject.pieces)
    )
    bare = type(subject)(subject.run, few, few, subject.scope)
    assert prompts.part_of(bare, music.roles_of(bare.run)) == ("tune",)
    assert set(prompts.part_of(subject, music.roles_of(subject.run))) == {"tune", "harmony"}


def test_attributes_are_drawn_one_by_one():
    pool = {"key": ["C major", "D major", "A minor"], "meter": ["3/4", "4/4", "6/8"], "bars": ["8", "16"]}
    pool["type"] = [("jig", "6/8"), ("reel", "4/4"), ("reel", "2/2"), ("waltz", "3/4")]
    drawn = [prompts.draw(pool, np.random.default_rng(i)) for i in range(600)]
    for field, values in (("key", 3), ("bars", 2), ("type", 3)):
        counts = np.unique([facts[field] for facts in drawn], return_counts=True)[1]
        assert len(counts) == values and counts.min() > 0.8 * 600 / values
    assert {(facts["type"], facts["meter"]) for facts in drawn} == set(pool["type"])
    pairs = {(facts["key"], facts["bars"]) for facts in drawn}
    assert len(pairs) == 6


def test_pools_are_what_training_knows(subject):
    pool = prompts.pools(subject, music.roles_of(subject.run))
    assert pool["key"] == ["A minor", "C major", "D major", "G major"]
    assert pool["type"] == [("jig", "4/4"), ("reel", "4/4")] and pool["meter"] == ["4/4"]
    moved = toy_subject()
    moved.run.recipe = moved.run.recipe.model_copy(
        update={"data": moved.run.recipe.data.model_copy(update={"shifts": [0, 2]})}
    )
    keys = prompts.pools(moved, music.roles_of(moved.run))["key"]
    assert set(keys) == {"A minor", "B minor", "C major", "D major", "E major", "G major", "A major"}
    assert prompts.pools(toy_subject(toy_run(context=40)), music.roles_of(subject.run)).get("bars") is None


# Classifiers


def waltz(rng, beats=3, bars=12):
    """Notes in bars of so many quarter notes, the first of each bar a long one."""
    notes, now = [], 0
    for _ in range(bars):
        for length in (2, *[1] * (beats - 2)) if rng.random() < 0.8 else [1] * beats:
            notes.append((now, 48 * length, int(rng.integers(60, 72))))
            now += 48 * length
    return np.array(notes)


def test_rhythm_does_not_depend_on_bar_lines_pitch_or_place():
    tune = waltz(np.random.default_rng(0))
    moved = tune + np.array([96, 0, 5])
    assert np.allclose(guessing.rhythm(tune), guessing.rhythm(moved))
    assert guessing.rhythm(tune)[: len(guessing.LENGTHS)].sum() == pytest.approx(1)


def test_rhythm_counts_how_often_notes_follow_at_a_distance():
    even = np.array([(48 * i, 48, 60) for i in range(8)])  # quarter notes: at every lag of whole quarters
    found = guessing.rhythm(even)[len(guessing.LENGTHS) :][: len(guessing.LAGS)]
    expected = [(8 - lag // 2) / 8 if lag % 2 == 0 and lag // 2 < 8 else 0 for lag in range(1, 25)]
    assert np.allclose(found, expected)


def test_meters_are_heard_without_bar_lines():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    tunes = [(waltz(rng, beats), f"{beats}/4") for beats in (3, 4) * 40]
    features, labels = [guessing.rhythm(t) for t, _ in tunes], [m for _, m in tunes]
    guesser = guessing.Guesser(features[:60], labels[:60], 0)
    right = np.mean([a == b for a, b in zip(guesser.guess(features[60:]), labels[60:], strict=True)])
    assert guesser.classes == ("3/4", "4/4") and right > 0.9


def test_rare_classes_are_not_learnt():
    pytest.importorskip("sklearn")
    features = [np.array([float(i)]) for i in range(14)]
    guesser = guessing.Guesser(features, ["a"] * 5 + ["b"] * 5 + ["c"] * 4, 0)
    assert guesser.classes == ("a", "b")
    with pytest.raises(ValueError, match="fewer than two classes"):
        guessing.Guesser(features, ["a"] * 10 + ["b"] * 4, 0)


def test_without_scikit_learn_a_note_says_what_to_install(monkeypatch, subject):
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    listener = Listener(subject, music.roles_of(subject.run))
    assert not listener.guessers and "multimodal_gpt[evaluate]" in listener.notes[0]
    assert "type" not in listener.hear([MELODY.parse("C4 D4")])[0].facts


# Figures


def test_a_listener_hears_what_is_written(subject):
    listener = Listener(subject, music.roles_of(subject.run))
    content = MELODY.parse(TUNES[1][0])
    (heard,) = listener.hear([content])
    assert {f: heard.facts[f] for f in ("key", "meter", "bars")} == {
        "key": "D major",
        "meter": "4/4",
        "bars": "4",
    }
    assert heard.tones.sum() == len(content.notes)
    assert not listener.knows("type", "jig") and listener.knows("key", "C major")


def test_the_human_column_is_the_ceiling(table, subject):
    found = rows(table)["words, held out: key"]
    heard = [music.key_in_words(music.heard_key(MELODY.parse(t).notes)) for t, _, _ in TUNES]
    true = [facts["key"] for _, _, facts in TUNES]
    assert found.figures[HUMAN].value == np.mean([a == b for a, b in zip(heard, true, strict=True)])
    assert rows(table)["tags, held out: bars, exactly"].figures[HUMAN].value == 1


def test_model_and_null_are_counted_by_hand(table, subject):
    made = [t for t in prompts.tunes(subject) if (t.order.route, t.order.kind) == ("tags", prompts.DRAWN)]
    keys = [music.key_in_words(music.heard_key(t.made["tune"].notes)) for t in made]
    asked = [t.order.asked["key"] for t in made]
    row = rows(table)["tags, drawn: key"]
    assert row.sums[MODEL] == tuple(float(a == b) for a, b in zip(keys, asked, strict=True))
    others = derange(len(made), subject.scope.seed)
    assert row.sums[WRONG] == tuple(float(keys[i] == asked[others[i]]) for i in range(len(made)))
    assert HUMAN not in row.figures
    scale = rows(table)["tags, drawn: notes in the key's scale"]
    notes = made[0].made["tune"].notes[:, 2] % 12
    inside = scale_of(music.known_key(asked[0]))
    assert scale.sums[MODEL][0] == pytest.approx(np.mean(inside[notes]))


def test_bars_may_differ_by_one():
    from multimodal_gpt.evaluation.control import _near

    heard = Heard({"bars": "17"}, np.zeros(12))
    assert [_near(asked, heard)[0] for asked in ("15", "16", "17", "18", "19")] == [0, 1, 1, 1, 0]


def test_a_run_without_music_says_so():
    found = control(wordless_subject())
    assert not found.rows and found.notes


def test_routes_that_were_not_learnt_are_left_out():
    run = toy_run(orders=[["words", "tune+harmony"], ["tags"]])
    found = control(toy_subject(run))
    assert {row.name.partition(",")[0] for row in found.rows} == {"words"}
    assert any("no prompts in tags" in note for note in found.notes)
