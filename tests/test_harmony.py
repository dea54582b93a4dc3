"""Chord symbols: every spelling reads, every symbol comes back from its name and from its voicing."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal_gpt.errors import UserError
from multimodal_gpt.tokenizers._harmony import (
    NO_CHORD,
    QUALITIES,
    QUALITY,
    UNKNOWN,
    Symbol,
    move_codes,
    name,
    nearest_quality,
    parse_symbol,
    symbol_of,
)
from multimodal_gpt.tokenizers._voicing import recognise, voice

QUALITY_NAMES = st.sampled_from(sorted(QUALITY))
CLASSES = st.integers(0, 11)
CHORDS = st.builds(Symbol, CLASSES, QUALITY_NAMES, st.none() | CLASSES)
SYMBOLS = CHORDS | st.sampled_from([NO_CHORD, UNKNOWN])

SPELLINGS = {
    "C": ["C", "Cmaj", "CM", "C:maj", "(C)", " C ", "CMajor", "B#", "Dbb"],
    "Cm": ["Cm", "Cmin", "C-", "Cmi", "CMI", "C:min", "Cminor"],
    "C7": ["C7", "C:7", "Cdom7", "C7#9", "C7b5", "(C7)"],
    "Cmaj7": ["CM7", "Cmaj7", "CΔ7", "CΔ", "C^7", "C:maj7", "C7M", "Cj7", "CMA7", "Cma7"],
    "Cm7": ["Cm7", "C-7", "Cmin7", "CMI7", "C:min7"],
    "Cdim": ["C°", "Cdim", "Co", "Cd", "C:dim"],
    "Cdim7": ["Cdim7", "C°7", "Co7", "Cd7"],
    "Cm7b5": ["Cø", "Cø7", "Cm7b5", "C-7b5", "Cm7(b5)", "Cm7-5", "C:hdim7"],
    "Caug": ["C+", "Caug", "Ca", "C:aug"],
    "C7#5": ["C7#5", "C7+5", "C7+", "C+7", "Caug7", "Ca7", "Calt"],
    "Csus4": ["Csus4", "Csus", "C4", "C:sus4"],
    "Csus2": ["Csus2"],
    "C7sus4": ["C7sus4", "C7sus", "C9sus4", "C:sus4(b7)"],
    "C6": ["C6", "C6/9", "C69", "Cmaj6", "CM6"],
    "Cm6": ["Cm6", "C-6", "Cmin6"],
    "C5": ["C5", "Cno3"],
    "Cadd9": ["Cadd9", "C2", "Cadd2", "C(add9)"],
    "C9": ["C9"],
    "Cm9": ["Cm9", "C-9", "Cm11"],
    "Cmaj9": ["Cmaj9", "CM9", "CΔ9"],
    "CmM7": ["CmM7", "Cm(maj7)", "Cminmaj7", "C-Δ7"],
    "C7b9": ["C7b9", "C7-9", "C7(b9)", "C13b9"],
    "C11": ["C11"],
    "C13": ["C13"],
    "C/E": ["C/E", "C/e", "C:maj/3", "C / E"],
    "Am7/C": ["Am7/C", "A:min7/b3", "A-7/c"],
    "D/F#": ["D/F#", "D/f+", "D/F♯", "D/Gb"],
    "Bb": ["Bb", "B♭", "A#"],
    "B5": ["B5", "Cb5"],
    "Bb13": ["Bb13", "B♭13"],
    "F#m7b5": ["F#m7b5", "F♯ø", "Gbm7b5"],
    "N.C.": ["N.C.", "NC", "n.c.", "N", "-", "no chord"],
    "?": ["?", "X"],
}


@pytest.mark.parametrize(("house", "text"), [(h, t) for h, texts in SPELLINGS.items() for t in texts])
def test_the_usual_spellings_are_read(house, text):
    assert name(parse_symbol(text)) == house


def test_every_quality_is_spelt_in_the_list_above():
    assert {"C" + q.suffix for q in QUALITIES} <= set(SPELLINGS)


@given(SYMBOLS, st.sampled_from([None, True, False]))
def test_a_name_reads_back(symbol, sharps):
    assert parse_symbol(name(symbol, sharps)) == symbol


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("am", "'am' is no chord symbol (did you mean 'Am'?)"),
        ("foo", "'foo' is no chord symbol (a chord begins with a capital letter A to G)"),
        ("H7", "'H7' is no chord symbol (a chord begins with a capital letter A to G)"),
        ("Cxyz", "'Cxyz' is no chord symbol ('xyz' is not understood)"),
        ("C/9", "'C/9' is no chord symbol ('/9' is not understood)"),
        ("", "'' is no chord symbol (a chord begins with a capital letter A to G)"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_hint(text, message):
    with pytest.raises(UserError) as error:
        parse_symbol(text)
    assert str(error.value) == message


@given(st.text(alphabet="ABCDEFGabcdefgmijMsudo#b+-/().°ø0123456789 Δ", max_size=8))
def test_any_text_is_a_symbol_or_a_user_error(text):
    try:
        symbol = parse_symbol(text)
    except UserError:
        return
    assert parse_symbol(name(symbol)) == symbol


@given(st.sets(st.integers(0, 11)))
def test_any_tones_have_a_nearest_quality(intervals):
    found = nearest_quality(tuple(sorted(intervals)))
    exact = [q.name for q in QUALITIES if set(q.intervals) == intervals | {0}]
    assert found in QUALITY
    assert not exact or found == exact[0]


def test_a_wrong_third_is_worse_than_a_wrong_fifth():
    assert nearest_quality((0, 4, 6, 10)) == "7"
    assert nearest_quality((0, 3, 8)) == "min"


# Pitch-class sets that are one chord only, whatever its root and quality.
SETS = Counter(frozenset(Symbol(r, q.name).pitch_classes) for q in QUALITIES for r in range(12))
INVERSIONS = [
    Symbol(root, q.name, (root + interval) % 12)
    for q in QUALITIES
    for root in range(12)
    for interval in q.intervals
    if SETS[frozenset(Symbol(root, q.name).pitch_classes)] == 1
]


def test_only_these_qualities_share_their_tones():
    found = {s.quality for s in INVERSIONS}
    assert set(QUALITY) - found == {"min7", "6", "min6", "hdim7", "sus2", "sus4", "aug", "dim7"}


@pytest.mark.parametrize("lowest", [24, 48, 66])
def test_every_inversion_of_an_unambiguous_chord_is_named(lowest):
    for symbol in INVERSIONS:
        bass = lowest + (symbol.lowest - lowest) % 12
        pitches = [bass, *sorted(bass + (c - bass) % 12 for c in symbol.pitch_classes if c != symbol.lowest)]
        assert recognise(pitches) == symbol, (symbol, pitches)


@pytest.mark.parametrize("quality", [q.name for q in QUALITIES])
def test_of_equal_tones_the_bass_is_the_root(quality):
    for root in range(12):
        symbol = Symbol(root, quality)
        assert recognise([48 + root + i for i in QUALITY[quality].intervals]) == symbol


@pytest.mark.parametrize(
    ("pitches", "house"),
    [
        ([40, 48, 55], "C/E"),
        ([48, 52, 58], "C7"),
        ([42, 60, 64, 67], "C/F#"),
        ([45, 60, 64, 67], "Am7"),
        ([43, 60, 64, 69], "Am7/G"),
        ([48, 55], "C5"),
        ([60, 64], "C"),
        ([], "N.C."),
    ],
)
def test_incomplete_and_foreign_basses_are_named(pitches, house):
    assert name(recognise(pitches)) == house


def test_a_light_foreign_note_changes_nothing():
    assert name(recognise([48, 52, 55, 62], [4.0, 4.0, 4.0, 0.1])) == "C"


@given(CHORDS, st.lists(CHORDS, max_size=3))
def test_a_voicing_is_compact_and_recognised(symbol, before):
    previous = ()
    for earlier in before:
        previous = voice(earlier, previous)
    pitches = voice(symbol, previous)
    bass, *upper = pitches
    assert 40 <= bass < 52 and bass % 12 == symbol.lowest
    assert sorted({p % 12 for p in upper}) == sorted(symbol.pitch_classes)
    assert min(upper) >= 53 and max(upper) - min(upper) < 12
    if symbol in INVERSIONS:
        assert recognise(pitches) == symbol


def test_voices_move_little():
    first = voice(parse_symbol("C"))
    assert voice(parse_symbol("Am"), first)[1:] == (60, 64, 69)
    assert voice(NO_CHORD) == voice(UNKNOWN) == ()


@given(SYMBOLS, st.integers(-30, 30))
def test_moving_there_and_back(symbol, steps):
    assert symbol.moved(steps).moved(-steps) == symbol
    assert symbol.moved(12) == symbol


def test_a_bass_that_is_the_root_is_none():
    assert Symbol(5, "maj", 5) == Symbol(5, "maj")


@given(st.lists(SYMBOLS, min_size=1), st.integers(-24, 24))
def test_codes_stand_for_symbols_and_move_like_them(symbols, steps):
    codes = np.array([s.code for s in symbols])
    assert [symbol_of(code) for code in codes.tolist()] == symbols
    assert move_codes(codes, steps).tolist() == [s.moved(steps).code for s in symbols]
