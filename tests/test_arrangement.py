"""Arrangements: streams and back, whatever the layout."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.arrangement import (
    Arrangement,
    Gap,
    Layout,
    crop,
    default_arrangements,
    from_stream,
    merge_chunks,
    parse_order,
    sample_layout,
    stream_length,
    to_stream,
)
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.vocabulary import Encoded, Vocabulary

TOYS = Path(__file__).parent / "toys"
VOCABULARY = Vocabulary(
    [
        Modality("letters", str(TOYS / "letters.py")),
        Modality("beats", str(TOYS / "beats.py")),
        Modality("drums", str(TOYS / "beats.py")),
    ]
)
ORDERS = [
    ["letters", "beats", "drums"],
    ["letters", "beats+drums"],
    ["drums+beats", "letters"],
    ["beats+drums+letters"],
]
ARRANGEMENTS = [
    Arrangement(parse_order(o, VOCABULARY.names), drop=0.3, shuffle=i == 0, hole=0.5)
    for i, o in enumerate(ORDERS)
]


def encoded(name: str, rng: np.random.Generator, length: int) -> Encoded:
    tokenizer = VOCABULARY.tokenizer(name)
    ids = tokenizer.grammar().random_walk(rng, length)
    return Encoded(name, ids, tokenizer.clock(ids), tokenizer.cuts(ids), 1)


def document(seed: int, names=("letters", "beats", "drums")) -> dict[str, Encoded]:
    rng = np.random.default_rng(seed)
    return {n: encoded(n, rng, int(rng.integers(1, 40))) for n in names}


def lengths(segments):
    return {n: (len(s.ids), len(s.edges) - 1) for n, s in segments.items()}


@given(st.integers(0, 2**32 - 1))
def test_stream_and_back_for_every_layout(seed):
    segments = document(seed)
    chunks = {n: len(s.edges) - 1 for n, s in segments.items()}
    layout = sample_layout(ARRANGEMENTS, chunks, np.random.default_rng(seed))
    stream = to_stream(VOCABULARY, segments, layout)
    back = from_stream(VOCABULARY, stream.ids)
    kept = {n for part in layout.order for n in part}
    assert set(back) == kept
    for name in kept:
        np.testing.assert_array_equal(back[name], segments[name].ids)
    assert len(stream.ids) == len(stream.clock) == stream_length(lengths(segments), layout)


def test_plain_parts_look_as_promised():
    segments = document(3, ("letters",))
    stream = to_stream(VOCABULARY, segments, Layout((("letters",),)))
    words = VOCABULARY.show(stream.ids).split()
    assert words[:2] == ["<doc>", "<letters>"]
    assert words[-2:] == ["<end>", "<eod>"]


def test_chunks_interleave_by_time_then_by_order():
    a, b = np.array([0.0, 4.0, 8.0]), np.array([0.0, 4.0])
    assert [(s, c) for s, c, _ in merge_chunks([a, b])] == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]
    assert [(s, c) for s, c, _ in merge_chunks([b, a])][:2] == [(0, 0), (1, 0)]


def test_a_gap_is_taken_out_and_given_at_the_end():
    segments = {"beats": encoded("beats", np.random.default_rng(5), 60)}
    edges = segments["beats"].edges
    layout = Layout((("beats",),), Gap("beats", 1, 2))
    shown = VOCABULARY.show(to_stream(VOCABULARY, segments, layout).ids)
    middle = VOCABULARY.tokenizer("beats").show(segments["beats"].ids[edges[1] : edges[2]])
    assert f"<fill> <beats> {middle} <end> <eod>" in shown
    assert shown.count("<hole>") == 1


def test_drop_leaves_at_least_one_segment():
    always = [Arrangement(parse_order(["letters", "beats"], VOCABULARY.names), drop=1.0)]
    for seed in range(20):
        layout = sample_layout(always, {"letters": 1, "beats": 3}, np.random.default_rng(seed))
        assert sum(len(p) for p in layout.order) == 1


def test_weights_decide_and_unusable_arrangements_are_passed_over():
    letters = Arrangement((("letters",),), weight=3)
    beats = Arrangement((("beats",),), weight=1)
    rng = np.random.default_rng(0)
    drawn = [sample_layout([letters, beats], {"letters": 1, "beats": 1}, rng).order[0][0] for _ in range(400)]
    assert 0.68 < drawn.count("letters") / 400 < 0.82
    assert sample_layout([letters], {"beats": 1}, rng) is None


def test_the_same_seed_draws_the_same():
    chunks = {"letters": 1, "beats": 9, "drums": 4}
    drawn = [sample_layout(ARRANGEMENTS, chunks, np.random.default_rng([7, i])) for i in range(30)]
    again = [sample_layout(ARRANGEMENTS, chunks, np.random.default_rng([7, i])) for i in range(30)]
    assert drawn == again
    assert len({repr(d) for d in drawn}) > 5


def test_crop_cuts_all_clocked_segments_at_the_same_times():
    rng = np.random.default_rng(11)
    segments = {n: encoded(n, rng, 60) for n in ("letters", "beats", "drums")}
    times = segments["beats"].times
    seen = crop(segments, times[1], times[2])
    np.testing.assert_array_equal(seen["letters"].ids, segments["letters"].ids)
    edges = segments["beats"].edges
    np.testing.assert_array_equal(seen["beats"].ids, segments["beats"].ids[edges[1] : edges[2]])
    assert seen["beats"].clock[0] == 0


def test_by_default_modalities_with_times_take_turns_each_first_once():
    found = default_arrangements(VOCABULARY)
    mixed = [next(p for p in a.order if len(p) > 1) for a in found]
    assert set(mixed) == {("beats", "drums"), ("drums", "beats")}
    assert {a.order.index(m) for a, m in zip(found, mixed, strict=True)} == {0, 1}
    assert {name for a in found for name in a.names} == set(VOCABULARY.names)


def test_by_default_anything_else_comes_in_random_order():
    (only,) = default_arrangements(Vocabulary(VOCABULARY.modalities[:2]))
    assert only == Arrangement((("letters",), ("beats",)), drop=0.1, shuffle=True)


@pytest.mark.parametrize(
    ("order", "message"),
    [(["leters"], "did you mean 'letters'"), (["beats", "beats"], "may stand once"), ([], "one must")],
)
def test_orders_are_checked(order, message):
    with pytest.raises(UserError, match=message):
        parse_order(order, VOCABULARY.names)


def test_a_stream_of_mixed_up_ids_is_refused():
    letters, beats = VOCABULARY.ranges["letters"], VOCABULARY.ranges["beats"]
    with pytest.raises(UserError, match="ids of another modality under <letters>"):
        from_stream(VOCABULARY, np.array([1, letters.tag, beats.first, 3, 2]))
