from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal_gpt.errors import UserError
from multimodal_gpt.tokenizers import _roles
from multimodal_gpt.tokenizers._bars import on_grid
from multimodal_gpt.tokenizers._music import (
    METERS,
    TICKS,
    Meter,
    Song,
    Track,
    align_meters,
    bar_lines,
    clean_meters,
    find_key,
    key_name,
    normalise_meter,
    note_name,
    one_line,
    parse_key,
    parse_mode,
    parse_note,
    shift_signature,
    sort_notes,
)

SIGNATURES = [(sharps, minor) for sharps in range(-7, 8) for minor in (False, True)]


def line(pitches, length=TICKS, start=0):
    return np.array([(start + i * length, length, p) for i, p in enumerate(pitches)])


def blocks(roots, length=4 * TICKS):
    return np.array([(i * length, length, r + k) for i, r in enumerate(roots) for k in (0, 4, 7)])


@pytest.mark.parametrize(
    ("written", "usable"),
    [
        ((6, 8), (6, 8)),
        ((2, 2), (4, 4)),
        ((3, 2), (6, 4)),
        ((4, 1), (16, 4)),
        ((20, 4), (10, 4)),
        ((24, 16), (12, 8)),
        ((4, 16), (2, 8)),
        ((6, 32), (3, 16)),
        ((1, 64), (1, 16)),
        ((0, 4), (4, 4)),
        ((4, 7), (4, 4)),
        ((4, 2**255), (4, 4)),
    ],
)
def test_normalise_meter(written, usable):
    assert normalise_meter(*written) == usable


@given(st.integers(1, 300), st.sampled_from([1, 2, 4, 8, 16]))
def test_a_usable_meter_divides_the_written_bar(numerator, denominator):
    n, d = normalise_meter(numerator, denominator)
    assert n in METERS[d]
    assert (numerator * d * 4) % (denominator * n * 4) == 0


def test_meters_change_at_bar_lines():
    meters = clean_meters([(0, 3, 4), (100, 3, 4), (200, 6, 8), (250, 2, 4)])
    assert meters == (Meter(0, 3, 4), Meter(200, 6, 8), Meter(250, 2, 4))
    assert align_meters(meters) == (Meter(0, 3, 4), Meter(288, 2, 4))
    starts, written = bar_lines(meters, 400)
    assert starts.tolist() == [0, 144, 288, 384]
    assert written.tolist() == [[3, 4], [3, 4], [2, 4], [2, 4]]
    assert clean_meters([]) == (Meter(0, 4, 4),)


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 16), st.sampled_from([4, 8])), max_size=6))
def test_bars_follow_one_another(written):
    starts, meters = bar_lines(clean_meters(written), 4000)
    lengths = meters[:, 0] * 4 * TICKS // meters[:, 1]
    assert starts[0] == 0 and (starts[:-1] + lengths[:-1] == starts[1:]).all()
    assert starts[-1] < 4000 <= starts[-1] + lengths[-1]


def test_key_names_and_back():
    for signature in SIGNATURES:
        assert parse_key(key_name(signature)) == signature
    assert key_name((6, True)) == "D# minor" and key_name((-6, False)) == "Gb major"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("F#m", "F# minor"),
        ("Edor", "E minor"),
        ("A Mixolydian", "A major"),
        ("Bb", "Bb major"),
        ("B♭ minor", "Bb minor"),
        ("Am clef=treble", "A minor"),
        ("E Phr", "E minor"),
        ("CM", "C major"),
        ("G clef=bass", "G major"),
        ("d minor", "D minor"),
    ],
)
def test_parse_key(text, name):
    assert key_name(parse_key(text)) == name


def test_what_is_no_key():
    assert [parse_key(t) for t in ("", "none", "HP", "Xmin", "C banana")] == [None] * 5
    assert [parse_mode(t) for t in ("Edor", "A Mixolydian", "Am", "none")] == ["dorian", "mixolydian", "", ""]


@pytest.mark.parametrize("steps", range(12))
def test_finds_the_key_of_a_tune(steps):
    major = line(np.array([60, 62, 64, 65, 67, 69, 71, 72, 67, 64, 60, 60, 60]) + steps)
    minor = line(np.array([57, 59, 60, 62, 64, 65, 64, 60, 57, 56, 57, 57]) + steps)
    assert find_key(major) == shift_signature((0, False), steps)
    assert find_key(minor) == shift_signature((0, True), steps)


def test_find_key_respects_a_signature():
    assert find_key(np.zeros((0, 3), dtype=np.int64)) == (0, False)
    sharps = find_key(line([60, 62, 64, 65, 67, 69, 71, 72, 67, 64, 60]), sharps=6)[0]
    assert abs(sharps - 6) <= 1


@given(st.integers(0, 127), st.booleans())
def test_note_names_and_back(pitch, flats):
    assert parse_note(note_name(pitch, flats)) == pitch


def test_parse_note():
    assert [parse_note(t) for t in ("C4", "D", "eb5", "B#3", "C-1", "G9")] == [60, 62, 75, 60, 0, 127]
    assert [parse_note(t) for t in ("H4", "C10", "A9", "", "4", "C-2")] == [None] * 6


def test_one_line_keeps_the_highest():
    notes = np.array([[0, 96, 60], [0, 48, 67], [48, 48, 64], [48, 48, 62]])
    assert one_line(notes).tolist() == [[0, 48, 67], [48, 48, 64]]


def song(*tracks):
    return Song("", tuple(Track(name, 0, drum, notes) for name, notes, drum in tracks))


def roles(*tracks):
    found = _roles.choose_roles(song(*tracks))
    return found.melody, found.chords


HIGH, LOW = line([72, 74, 76, 77] * 4), line([40, 43, 45, 40] * 4)
CHORDS = blocks([48, 53, 55, 48])
MIXED = sort_notes(np.concatenate([HIGH, CHORDS]))
SOUNDS = [HIGH, LOW, CHORDS, MIXED]
NAMES = ["", "Melody", "Piano", "Violin", "Soprano", "Chords", "Lead guitar", "Melody chords", "Bass"]


@pytest.mark.parametrize(
    ("tracks", "expected"),
    [
        ([("", HIGH, False), ("", CHORDS, False)], (0, 1)),
        ([("", CHORDS, False), ("", LOW, False), ("", HIGH, False)], (2, 0)),
        (
            [
                ("Bass", LOW, False),
                ("Lead Vocals", LOW + np.array([0, 0, 12]), False),
                ("Violin", HIGH, False),
            ],
            (1, None),
        ),
        ([("MELODY", LOW, False), ("Flute", HIGH, False), ("Chords", HIGH, False)], (0, 2)),
        ([("Piano", HIGH, False)], (0, None)),
        ([("Piano", CHORDS, False), ("", HIGH, False)], (1, 0)),
        ([("", CHORDS, False)], (None, 0)),
        ([("piano", MIXED, False), ("MIDI 01", CHORDS, False)], (0, 1)),
        ([("piano", MIXED, False)], (0, 0)),
        ([("Drums", HIGH, True)], (None, None)),
        ([], (None, None)),
        (
            [("Soprano", HIGH, False), ("Alto", HIGH - np.array([0, 0, 5]), False), ("Bass", LOW, False)],
            (0, None),
        ),
    ],
)
def test_roles(tracks, expected):
    assert roles(*tracks) == expected


def test_roles_say_why():
    found = _roles.choose_roles(song(("", HIGH, False), ("Gtr", CHORDS, False)))
    assert found.why == {"melody": "track 1: a single line", "chords": "track 2 'Gtr': 100% block chords"}


def test_the_upper_line_of_a_mixed_track():
    tune = line([72, 74, 76, 77, 79, 77, 76, 74] * 4, length=2 * TICKS)
    tune = tune[np.arange(len(tune)) % 8 != 5]  # a rest, in which only the accompaniment moves
    arpeggio = line([48, 52, 55, 52] * 32, length=TICKS // 2)
    chords = blocks([45] * 16)
    mixed = Track("", 0, False, sort_notes(np.concatenate([arpeggio, chords, tune])))
    assert _roles.choose_roles(Song("", (mixed,))).melody == 0
    assert _roles.melody_notes(mixed).tolist() == tune.tolist()


rows = st.lists(
    st.tuples(st.integers(0, 900), st.integers(1, 300), st.integers(30, 90)), min_size=1, max_size=40
)


@given(rows)
def test_what_a_track_sounds_like(played):
    notes = sort_notes(np.array(played))
    track = Track("", 0, False, notes)
    onsets = sorted({onset for onset, _, _ in played})
    begun = [sum(n[0] == onset for n in played) for onset in onsets]
    # A moment is an eighth of a quarter note; a shorter note counts as lasting a little longer.
    late = TICKS // 8
    heard = [sum(n[0] <= o < n[0] + max(n[1], late + 1) - late for n in played) for o in onsets]
    top = [max(n[2] for n in played if n[0] == onset) for onset in onsets]
    assert track.onsets == len(onsets)
    assert track.block == np.mean([b >= 3 for b in begun])
    assert track.single == np.mean([h <= 1 for h in heard])
    assert track.register == np.median(top)
    assert track.line[:, 2].tolist() == top and track.line[:, 0].tolist() == onsets


def upper_line(played):
    """`skyline` note by note."""
    top = {}
    for note in sort_notes(np.array(played)).tolist():
        top[note[0]] = note
    kept = []
    for onset, duration, pitch in top.values():
        covered = any(o < onset < o + d - TICKS // 16 and p > pitch for o, d, p in top.values())
        first = onset // (4 * TICKS) * 4 * TICKS - 16 * TICKS
        around = [p for o, _, p in played if first <= o < first + 32 * TICKS]
        if not covered and pitch > border(around):
            kept.append((onset, duration, pitch))
    return one_line(np.array(kept)).tolist()


def border(pitches):
    if max(pitches) - min(pitches) <= 16:
        return -1
    apart = {}
    for cut in range(min(pitches), max(pitches)):
        below = [p for p in pitches if p <= cut]
        above = [p for p in pitches if p > cut]
        means = np.float64(sum(below)) / len(below) - np.float64(sum(above)) / len(above)
        apart[cut] = float(len(below)) * len(above) * means**2
    return max(apart, key=apart.get)


@given(rows)
def test_skyline_note_by_note(played):
    assert _roles.skyline(np.array(played)).tolist() == upper_line(played)


@given(rows)
def test_skyline_of_a_table_cut_in_pieces(played):
    whole = _roles.skyline(np.array(played)).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_roles, "_CELLS", 50)
        assert _roles.skyline(np.array(played)).tolist() == whole


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(SOUNDS), st.booleans()), max_size=5))
def test_the_melody_alone_is_chosen_as_with_the_chords(tracks):
    piece = song(*tracks)
    both = _roles.choose_roles(piece)
    assert _roles.choose_melody(piece) == (both.melody, both.why["melody"])


def test_find_track():
    piece = song(("Flute", HIGH, False), ("Flute 2", LOW, False))
    assert [_roles.find_track(piece, w) for w in ("flute", "2", 2, "FLUTE 2", "ute 2")] == [0, 1, 1, 1, 1]
    with pytest.raises(UserError, match=r"no track 'oboe' \(tracks: track 1 'Flute', track 2 'Flute 2'\)"):
        _roles.find_track(piece, "oboe")
    with pytest.raises(UserError, match="2 tracks match 'flu'"):
        _roles.find_track(piece, "flu")


def moved(lengths, strong, bar=144):
    """Where measures of these lengths begin on the grid; `strong`: which lines are repeats."""
    starts = np.cumsum([0, *lengths])
    notes = np.array([(s, n, 60) for s, n in zip(starts[:-1], lengths, strict=True)])
    bars = np.array([(s, 2 if i in strong else 1) for i, s in enumerate(starts)])
    meter = Meter(0, bar * 8 // (4 * TICKS), 8)
    return on_grid(notes, np.zeros((0, 2), dtype=np.int64), bars, (meter,))[0][:, 0].tolist()


@pytest.mark.parametrize(
    ("lengths", "strong", "starts"),
    [
        ([144, 144], (), [0, 144]),
        ([24, 144, 120], (), [120, 144, 288]),  # a pickup and the bar that makes up for it
        ([24, 144, 120, 24, 144, 120], (3,), [120, 144, 288, 408, 432, 576]),  # the same, repeated
        ([24, 144, 120, 144, 144], (3,), [120, 144, 288, 432, 576]),  # the next strain has no pickup
        ([144, 144, 24, 144], (2,), [0, 144, 408, 432]),  # a pickup after a full bar
        ([144, 168, 144], (), [0, 144, 432]),  # a bar that is too long
        ([72], (), [0]),
    ],
)
def test_measures_go_to_bars(lengths, strong, starts):
    assert moved(lengths, strong) == starts
