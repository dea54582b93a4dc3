"""Whatever is asked of a melody or of chords holds for every walk of the grammar that it gives."""

import numpy as np
import pytest

from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.limits import is_possible
from multimodal_gpt.tokenizers import chords, melody
from multimodal_gpt.tokenizers._music import TICKS

TUNE = "C4 D4:0.5 E4:0.5 G4:2 A4 r G4 F#4 D4"
CHART = "| C | G7 Am | F | C |"
TUNES, CHARTS = melody.build(), chords.build()
C_MAJOR = {0, 2, 4, 5, 7, 9, 11}


def walks(tokenizer, wishes, length=60, seed=0, number=6):
    rng = np.random.default_rng(seed)
    grammar = tokenizer.limited(wishes, rng)
    assert is_possible(grammar)
    found = [grammar.random_walk(rng, length) for _ in range(number)]
    assert all(tokenizer.grammar().accepts(ids) for ids in found), "still legal without the wishes"
    return [tokenizer.decode(ids) for ids in found]


def rhythm(content):
    return content.notes[:, :2].tolist(), content.meters


def test_key_range_meter_and_ending():
    wishes = {"key": "C major", "range": "G3-C6", "meter": "6/8", "ending": "E"}
    for found in walks(TUNES, wishes):
        pitches = found.notes[:, 2]
        assert set((pitches % 12).tolist()) <= C_MAJOR
        assert pitches.min() >= 55 and pitches.max() <= 84
        assert [(m.numerator, m.denominator) for m in found.meters] == [(6, 8)]
        assert pitches[-1] % 12 == 4


def test_an_ending_begins_on_a_beat_unless_the_rhythm_is_given():
    for found in walks(TUNES, {"meter": "6/8", "ending": "E"}, 200):
        onset = found.notes[-1, 0] % (3 * TICKS)
        assert onset % (TICKS // 2) == 0
    like = TUNES.parse("C4 D4:0.5 E4:0.25 G4:0.25")
    ended = walks(TUNES, {"rhythm": like, "ending": "E"})
    assert all(rhythm(f) == rhythm(TUNES.decode(TUNES.encode(like))) for f in ended)
    assert {int(f.notes[-1, 2]) % 12 for f in ended} == {4}


def test_a_minor_key_has_its_raised_sixth_and_seventh():
    heard = {int(p) % 12 for found in walks(TUNES, {"key": "A minor"}, 300) for p in found.notes[:, 2]}
    assert heard == C_MAJOR | {6, 8}


def test_the_rhythm_is_locked():
    like = TUNES.parse(TUNE)
    found = walks(TUNES, {"rhythm": like, "key": "C major"})
    assert all(rhythm(f) == rhythm(TUNES.decode(TUNES.encode(like))) for f in found)
    assert len({tuple(f.notes[:, 2].tolist()) for f in found}) > 1, "the pitches are free"


def test_the_pitches_are_locked():
    like = TUNES.parse(TUNE)
    found = walks(TUNES, {"pitches": like})
    assert all(f.notes[:, 2].tolist() == like.notes[:, 2].tolist() for f in found)
    assert len({str(rhythm(f)) for f in found}) > 1, "the rhythm is free"
    assert {(m.numerator, m.denominator) for f in found for m in f.meters} == {(4, 4)}


def test_a_share_of_the_notes_varies():
    like = TUNES.parse(TUNE)
    before = TUNES.decode(TUNES.encode(like))
    for share, most in ((0.25, 2), (1.0, 8)):
        found = walks(TUNES, {"vary": like, "share": share})
        changed = [np.flatnonzero(f.notes[:, 2] != before.notes[:, 2]) for f in found]
        assert all(rhythm(f) == rhythm(before) for f in found)
        assert 0 < max(map(len, changed)) <= most
        assert len({i for c in changed for i in c.tolist()}) <= most, "the same notes in all pieces"


def test_chords_in_a_key_with_an_ending():
    for found in walks(CHARTS, {"key": "G major", "meter": "3/4", "ending": "D7/F#"}):
        scale = {(p + 7) % 12 for p in C_MAJOR}
        tones = {p for e in found.events if e.symbol.root is not None for p in e.symbol.pitch_classes}
        assert tones <= scale
        last = found.events[-1].symbol
        assert (last.root, last.quality, last.bass) == (2, "7", 6)
        assert {(m.numerator, m.denominator) for m in found.meters} == {(3, 4)}


def test_chords_change_when_others_do():
    like = CHARTS.parse(CHART)
    pattern = [t for t in CHARTS.encode(like).tolist() if t < chords._chord_tokens.ROOT]
    symbols = set()
    grammar = CHARTS.limited({"rhythm": like}, np.random.default_rng(0))
    for seed in range(6):
        ids = grammar.random_walk(np.random.default_rng(seed), 40)
        assert CHARTS.grammar().accepts(ids)
        assert [t for t in ids.tolist() if t < chords._chord_tokens.ROOT] == pattern
        symbols |= set(ids.tolist())
    assert len(symbols) > 20


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"kay": "D"}, "there is no wish 'kay' (did you mean 'key'?"),
        ({"key": "H"}, "key: 'H' is no key"),
        ({"range": "C5-C4"}, "range: 'C5-C4' is no range"),
        ({"meter": "7/5"}, "meter: '7/5' is no meter of the grid"),
        ({"ending": "H"}, "ending: 'H' is no note"),
        ({"share": 0.2}, "share: a share of nothing"),
    ],
)
def test_wishes_that_cannot_be_read(wishes, words):
    with pytest.raises(UserError) as error:
        TUNES.limited(wishes, np.random.default_rng(0))
    assert str(error.value).startswith(words)


def test_wishes_that_contradict_each_other_allow_nothing():
    like = TUNES.parse(TUNE)
    rng = np.random.default_rng(0)
    assert not is_possible(TUNES.limited({"rhythm": like, "meter": "3/4"}, rng))
    assert not is_possible(TUNES.limited({"key": "C major", "ending": "F#"}, rng))
    assert not is_possible(TUNES.limited({"pitches": like, "key": "F major"}, rng))
