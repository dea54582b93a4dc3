"""Densities against another implementation, stretches against a plain search, files that are broken."""

from __future__ import annotations

import numpy as np
import pytest
from toy_subject import TUNES, toy_run, toy_subject, wordless_subject

from multimodal_gpt.evaluation import novelty, overlap
from multimodal_gpt.evaluation.realism import HUMAN, opens, readable, realism
from multimodal_gpt.evaluation.tables import MODEL
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.vocabulary import Vocabulary

MELODY = Vocabulary([Modality("melody", "melody")]).tokenizer("melody")


def notes(text):
    return MELODY.parse(text).notes


def feature(name, text, bars=1):
    return overlap.FEATURES[name](notes(text), bars).tolist()


# Overlap


def test_features_by_hand():
    tune = "C4 E4:2 c5 C4"
    assert feature("pitch count", tune) == [3] and feature("pitch range", tune) == [12]
    assert feature("mean interval", tune) == [pytest.approx((4 + 8 + 12) / 3)]
    assert feature("pitch class histogram", tune)[:5] == [0.75, 0, 0, 0, 0.25]
    moves = np.array(feature("pitch class transitions", tune)).reshape(12, 12)
    assert moves[0, 4] == moves[4, 0] == moves[0, 0] == pytest.approx(1 / 3) and moves.sum() == pytest.approx(
        1
    )
    assert feature("notes a bar", tune, bars=2) == [2]
    assert feature("mean time between notes", tune) == [pytest.approx(4 / 3)]
    quarter, half = (overlap.LENGTHS.tolist().index(length) for length in (1, 2))
    histogram = feature("note length histogram", tune)
    assert (histogram[quarter], histogram[half], sum(histogram)) == (0.75, 0.25, 1)


def test_a_single_note_has_all_features():
    assert all(np.isfinite(f(notes("C4"), 1)).all() for f in overlap.FEATURES.values())


def test_distances_by_hand():
    features = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    assert overlap.within(features).tolist() == pytest.approx([5, 1, 18**0.5])
    assert overlap.distances(features[:1], features[1:]).tolist() == [[5, 1]]


@pytest.mark.parametrize("seed", range(5))
def test_areas_are_those_of_scipy(seed):
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(seed)
    first, second = rng.normal(0, 1, 200), rng.normal(seed / 2, 1 + seed / 4, 150)
    grid = np.linspace(min(first.min(), second.min()), max(first.max(), second.max()), 4001)
    lower = np.minimum(stats.gaussian_kde(first)(grid), stats.gaussian_kde(second)(grid))
    assert overlap.overlapped_area(first, second) == pytest.approx(np.trapezoid(lower, grid), abs=2e-3)


def test_areas_at_the_ends():
    same = np.random.default_rng(0).normal(0, 1, 500)
    assert overlap.overlapped_area(same, same) > 0.98
    assert overlap.overlapped_area(same, same + 100) < 0.01
    assert overlap.overlapped_area(np.ones(4), np.ones(5)) == 1
    assert np.isnan(overlap.overlapped_area(np.ones(1), np.ones(5)))


def test_a_set_is_more_like_its_own_kind():
    rng = np.random.default_rng(0)
    human = [rng.normal(0, 1, 3) for _ in range(40)]
    alike, unlike = ([rng.normal(shift, 1, 3) for _ in range(30)] for shift in (0, 3))
    assert overlap.likeness(alike, human) > 0.9 and overlap.likeness(unlike, human) < 0.6


# Novelty


def tune_of(pitches):
    return np.array([(48 * i, 48, p) for i, p in enumerate(pitches)])


def plain_run(tune, tunes):
    """The longest common stretch of intervals, in notes, by looking everywhere."""
    steps = np.diff(tune[:, 2]).tolist()
    best = 0
    for other in tunes:
        theirs = np.diff(other[:, 2]).tolist()
        for i in range(len(steps)):
            for j in range(len(theirs)):
                length = 0
                while (
                    i + length < len(steps)
                    and j + length < len(theirs)
                    and steps[i + length] == theirs[j + length]
                ):
                    length += 1
                best = max(best, length)
    return best + 1


def test_runs_are_those_of_a_plain_search():
    rng = np.random.default_rng(0)
    tunes = [tune_of(rng.integers(60, 66, rng.integers(2, 60))) for _ in range(12)]
    known = novelty.Known(tunes[:8])
    for tune in tunes[8:]:
        assert novelty.longest_run(tune, known) == plain_run(tune, tunes[:8])
    moved = tunes[0] + np.array([7, 3, 5])
    assert novelty.longest_run(moved, known) == len(tunes[0])
    assert novelty.longest_run(tune_of([60]), known) == 1
    assert novelty.longest_run(tunes[0], novelty.Known([])) == 1


@pytest.mark.parametrize("length", [1, 2, 5])
def test_shares_are_those_of_a_plain_search(length):
    rng = np.random.default_rng(1)
    train, other = tune_of(rng.integers(60, 64, 80)), tune_of(rng.integers(60, 64, 50))

    def all_of(tune):
        steps = np.diff(tune[:, 2]).tolist()
        return [tuple(steps[i : i + length]) for i in range(len(steps) - length + 1)]

    there = set(all_of(train))
    expected = (sum(stretch in there for stretch in all_of(other)), len(all_of(other)))
    assert novelty.copied(other, novelty.Known([train]), length) == expected


def test_too_short_tunes_have_no_stretches():
    assert novelty.copied(tune_of(range(60, 72)), novelty.Known([tune_of(range(40, 90))])) == (0, 0)
    assert novelty.copied(tune_of(range(60, 73)), novelty.Known([tune_of(range(40, 90))])) == (1, 1)


# Files and the question


def test_files_that_do_not_open(tmp_path):
    good = MELODY.write(MELODY.parse("C4 D4"), tmp_path / "good.mid")
    assert readable(good)
    broken = tmp_path / "broken.mid"
    broken.write_bytes(good.read_bytes()[:30])
    empty = tmp_path / "empty.mid"
    empty.write_bytes(b"")
    assert not readable(broken) and not readable(empty) and not readable(tmp_path / "none.mid")


def test_what_can_not_be_written_does_not_open():
    subject = toy_subject()
    tokenizer = subject.run.vocabulary.tokenizer("harmony")
    silent = tokenizer.parse("| C |")
    silent = type(silent)(silent.table[:0], silent.meters, end=192)
    assert not opens(subject, {"harmony": silent})
    assert opens(subject, {"tune": MELODY.parse("C4"), "harmony": tokenizer.parse("| C |")})


@pytest.fixture(scope="module")
def rows():
    return {row.name: row for row in realism(toy_subject()).rows}


def test_an_untrained_model_writes_files_that_open(rows):
    for name in ("opens in two readers", "the same at temperature 3"):
        assert rows[name].figures[MODEL].value == 1
    assert rows["opens in two readers"].figures[HUMAN].value == 1


def test_what_was_learnt_by_heart_is_found(rows):
    """The held-out tunes are the training tunes here."""
    assert rows["longest known run of all"].figures[HUMAN].value == max(len(notes(t)) for t, _, _ in TUNES)
    assert (
        rows["overlap: pitch range"].figures[HUMAN].value > rows["overlap: pitch range"].figures[MODEL].value
    )
    assert rows["known stretches of 12 intervals"].figures[MODEL].value == 0
    assert rows["overlap: mean of these"].figures[MODEL].value == pytest.approx(
        np.mean([rows[f"overlap: {name}"].figures[MODEL].value for name in overlap.FEATURES])
    )


def test_without_prompts_tunes_are_made_from_nothing():
    run = toy_run(orders=[["tune+harmony"], ["words"], ["tags"]])
    found = realism(toy_subject(run))
    assert {row.name: row.count for row in found.rows}["opens in two readers"] == 4


def test_without_training_documents_there_is_no_novelty():
    subject = toy_subject()
    found = realism(type(subject)(subject.run, subject.pieces, (), subject.scope))
    assert not any("known" in row.name for row in found.rows)
    assert any("novelty" in note for note in found.notes)


def test_a_run_without_music_says_so():
    assert not realism(wordless_subject()).rows
