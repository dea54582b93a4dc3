"""Chords: the plugin contract, the stream's shape, and what is typed."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_chords import BAR, CHORDS, names, onsets, read_one

from multimodal_gpt.errors import UserError
from multimodal_gpt.testing import check_tokenizer
from multimodal_gpt.tokenizers._harmony import NO_CHORD, QUALITY, UNKNOWN, Symbol, parse_symbol
from multimodal_gpt.tokenizers._music import METERS, TICKS, Meter
from multimodal_gpt.tokenizers.chords import Event, chords_of

symbols = st.builds(
    Symbol, st.integers(0, 11), st.sampled_from(sorted(QUALITY)), st.none() | st.integers(0, 11)
)
anything = symbols | st.sampled_from([NO_CHORD, UNKNOWN])
some_meters = st.sampled_from([(n, d) for d, row in METERS.items() for n in row])


@st.composite
def contents(draw):
    """Chords at any tick, also off the grid, with gaps, repeats and changes of meter."""
    pieces = draw(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 500), anything), max_size=12))
    pieces.insert(draw(st.integers(0, len(pieces))), (0, 96, draw(symbols)))
    events, tick = [], draw(st.integers(0, 200))
    for gap, duration, symbol in pieces:
        events.append(Event(tick + gap, duration, symbol))
        tick += gap + duration
    first, second = draw(some_meters), draw(some_meters)
    change = Meter(0, *first).bar * draw(st.integers(1, 6))
    meters = (Meter(0, *first),) if first == second else (Meter(0, *first), Meter(change, *second))
    return chords_of(events, meters, end=tick + draw(st.integers(0, 400)))


# ----------------------------------------------------------------------------------------- the stream


def test_keeps_the_contract():
    samples = [CHORDS.parse("3/4: G . D7/F# | Em N.C. C | ? | 6/8: A7 . | x3")]
    assert len(check_tokenizer("chords", samples=samples).passed) >= 16


@given(contents())
@settings(max_examples=80)
def test_encoding_is_legal_and_a_fixed_point(content):
    try:
        ids = CHORDS.encode(content)
    except UserError:  # a later change at the same position has replaced the only chord
        assert max(e.duration for e in content.events if e.symbol.root is not None) <= 96
        return
    assert CHORDS.grammar().accepts(ids)
    again = CHORDS.decode(ids)
    assert np.array_equal(CHORDS.encode(again), ids)
    assert CHORDS.decode(CHORDS.encode(again)).events == again.events
    assert CHORDS.units(content) == CHORDS.units(again) == len(again.events)
    clock = CHORDS.clock(ids)
    assert (np.diff(clock) >= 0).all() and clock[-1] < again.end / TICKS
    assert CHORDS.clock(ids)[CHORDS.cuts(ids)][0] == 0


@given(contents())
def test_chords_move_by_less_than_a_position(content):
    try:
        again = CHORDS.decode(CHORDS.encode(content))
    except UserError:
        return
    kept = {e.tick: e.symbol for e in content.events}
    for event in again.events:
        near = [s for tick, s in kept.items() if abs(tick - event.tick) <= TICKS // 12]
        assert event.symbol in near or event.symbol == NO_CHORD


def test_the_stream_reads_as_documented():
    ids = CHORDS.encode(CHORDS.parse("| C | . . C/E . |"))
    bar, root, quality = ids[:3].tolist()
    place, bass = ids[6], ids[-1]
    assert ids.tolist() == [bar, root, quality, bar, root, quality, place, root, quality, bass]
    assert CHORDS.clock(ids).tolist() == [0, 0, 0, 4, 4, 4, 6, 6, 6, 6]
    assert CHORDS.cuts(ids).tolist() == [0, 3]
    assert CHORDS.units(CHORDS.decode(ids)) == 2


def test_every_bar_is_a_legal_stream_of_its_own_and_tells_its_harmony():
    ids = CHORDS.encode(CHORDS.parse("3/4: G | D7 . G | . | 6/8: C F | ."))
    edges = [*CHORDS.cuts(ids).tolist(), len(ids)]
    shown = [CHORDS.show(ids[a:b]) for a, b in pairwise(edges)]
    assert all(CHORDS.grammar().accepts(ids[a:b]) for a, b in pairwise(edges))
    assert shown == ["3/4: | G |", "3/4: | D7 . G |", "3/4: | G |", "6/8: | C F |", "6/8: | F |"]


@pytest.mark.parametrize(
    ("meter", "length"), [((1, 4), 12), ((6, 8), 72), ((16, 4), 192), ((3, 16), 36), ((7, 8), 84)]
)
def test_positions_stay_inside_the_bar_and_begin_after_the_bar_line(meter, length):
    bar = CHORDS.encode(CHORDS.parse("{}/{}: C".format(*meter)))[:1]
    place = CHORDS.encode(CHORDS.parse("| C . . E |"))[3] - 36
    legal = np.flatnonzero(CHORDS.grammar().next_state[CHORDS.grammar().walk(bar)] >= 0) - place
    assert legal[(legal >= 0) & (legal < 192)].tolist() == list(range(1, length))


def test_a_segment_without_a_chord_may_not_end():
    grammar = CHORDS.grammar()
    ids = CHORDS.encode(CHORDS.parse("? | N.C. | C"))
    assert [grammar.final[grammar.walk(ids[:n])] for n in (2, 4, 6, len(ids))] == [False, False, False, True]
    with pytest.raises(UserError, match="ends too early"):
        CHORDS.decode(ids[:4])
    with pytest.raises(UserError, match="no chord"):
        CHORDS.encode(chords_of([Event(0, BAR, NO_CHORD)], end=BAR))


def test_repeats_are_one_event_and_gaps_are_silence():
    c, g = parse_symbol("C"), parse_symbol("G")
    events = (Event(0, BAR, c), Event(BAR, BAR, c), Event(3 * BAR, BAR // 2, g))
    content = CHORDS.decode(CHORDS.encode(chords_of(events, end=6 * BAR)))
    assert names(content) == ["C", "N.C.", "G", "N.C."]
    assert onsets(content) == [0, 8, 12, 14]
    assert content.end == 6 * BAR
    short = CHORDS.decode(CHORDS.encode(chords_of(events, end=4 * BAR)))
    assert names(short) == ["C", "N.C.", "G"], "inside its last bar a chord goes on to the end"


@given(contents(), st.integers(-12, 12))
def test_shift_moves_every_chord(content, steps):
    moved = CHORDS.shift(content, steps)
    for before, after in zip(content.events, moved.events, strict=True):
        assert after == Event(before.tick, before.duration, before.symbol.moved(steps))
    assert CHORDS.shift(moved, -steps).events == content.events


@given(contents(), st.integers(-30, 30))
def test_shifted_ids_are_those_of_the_shifted_content(content, steps):
    try:
        ids = CHORDS.encode(content)
    except UserError:
        return
    moved = CHORDS.shift_ids(ids, steps)
    assert moved.dtype == np.int32
    assert np.array_equal(moved, CHORDS.encode(CHORDS.shift(content, steps)))


@given(content=contents())
@settings(max_examples=20)
def test_a_written_file_is_read_as_the_same_chords(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("chords") / "out.mid"
    try:
        ids = CHORDS.encode(content)
    except UserError:
        return
    CHORDS.write(CHORDS.decode(ids), path, note="seed 1")
    assert np.array_equal(CHORDS.encode(read_one(path).content), ids)


def test_names_stand_above_the_notes():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.add_subplot()
    CHORDS.draw(CHORDS.parse("C . | Am G"), axes)
    assert [(t.get_text(), t.get_position()[0]) for t in axes.texts] == [("C", 0), ("Am", 4), ("G", 6)]
    voices, changes = axes.collections
    assert [line[0][0] for line in changes.get_segments()] == [0, 4, 6]
    boxes = [path.get_extents() for path in voices.get_paths()]
    assert len(boxes) == 3 * 3 and {box.x0 for box in boxes} == {0, 4, 6}
    pitches = {round((box.y0 + box.y1) / 2) % 12 for box in boxes if box.x0 == 6}
    assert pitches == {7, 11, 2}


# --------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Am F C G", "| Am | F | C | G |"),
        ("Am, F, C, G", "| Am | F | C | G |"),
        ("Am F x2", "| Am | F | Am | F |"),
        ("| C | Am F | G7 |", "| C | Am F | G7 |"),
        ("C / / G", "| C | C | C | G |"),
        ("|C . . G|%|", "| C . . G | C . . G |"),
        ("3/4: G D Em C", "3/4: | G | D | Em | C |"),
        ("3/4: G | 2/2 D A | 6/8: Em", "3/4: | G | 4/4: D A | 6/8: Em |"),
        ("C | N.C. | C B♭/d", "| C | N.C. | C Bb/D |"),
        (". C", "| . | C |"),
    ],
)
def test_charts_are_read_and_shown(text, shown):
    ids = CHORDS.encode(CHORDS.parse(text))
    assert CHORDS.show(ids) == shown
    assert np.array_equal(CHORDS.encode(CHORDS.parse(shown)), ids)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Am foo", "chords 'Am foo': 'foo' is no chord symbol (a chord begins with a capital letter A to G)"),
        ("am F", "chords 'am F': 'am' is no chord symbol (did you mean 'Am'?)"),
        ("N.C.", """chords 'N.C.': no chord in it (write them as in "Am F C G" or "3/4: | G | D7 G |")"""),
        ("", "chords '': 0 bars (write 1 to 2,000)"),
        ("C x999999999", "chords 'C x999999999': 999999999 bars (write 1 to 2,000)"),
        ("5/7: C", "chords '5/7: C': '5/7' is no usable meter (for example 3/4, 4/4 or 6/8)"),
    ],
)
def test_mistakes_are_told_in_one_line(text, message):
    with pytest.raises(UserError) as error:
        CHORDS.parse(text)
    assert str(error.value) == message


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"^nowhere\.mid: "):
        CHORDS.parse("nowhere.mid")
