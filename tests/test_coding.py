"""Choices, streams and documents as bytes: as many as the likelihood says, and back again."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_coding import TURNS, bars, document, toy
from toy_runs import refused

from multimodal_gpt import compression
from multimodal_gpt.compression import arithmetic, coding
from multimodal_gpt.compression.lane import Lane
from multimodal_gpt.compression.walk import Walk
from multimodal_gpt.evaluation.likelihood import segment_bits
from multimodal_gpt.generation.session import Run
from multimodal_gpt.model.rotary import clock_numbers, turn_by, wave_numbers
from multimodal_gpt.stream.arrangement import Layout, from_stream, to_stream


@pytest.fixture(scope="module")
def run() -> Run:
    return toy(*TURNS)


# Arithmetic


WEIGHTS = st.lists(st.integers(0, arithmetic.LARGEST), min_size=2, max_size=300).filter(any)


@given(st.lists(st.tuples(WEIGHTS, st.integers(0, 299)), max_size=60))
def test_choices_come_back_in_as_many_bytes_as_their_weights_say(drawn) -> None:
    choices = [(np.array(weights, dtype=float), place % len(weights)) for weights, place in drawn]
    writer, cost = arithmetic.Writer(), 0.0
    for weights, index in choices:
        writer.put(index, weights)
        share = max(weights[index] / weights.sum(), 2.0**-24)
        cost -= math.log2(share * (1 - len(weights) / 2**24))
    data = writer.finish()
    reader = arithmetic.Reader(data)
    assert [reader.take(weights) for weights, _ in choices] == [index for _, index in choices]
    assert len(data) <= cost / 8 + 1.01


def test_a_small_difference_of_scores_makes_none_of_weights() -> None:
    rng = np.random.default_rng(0)
    scores = np.rint(rng.normal(0, 4, 1000) * arithmetic.GRID) / arithmetic.GRID
    moved = scores + rng.uniform(-0.49, 0.49, 1000) / arithmetic.GRID
    np.testing.assert_array_equal(arithmetic.weigh(scores), arithmetic.weigh(moved))
    np.testing.assert_allclose(
        arithmetic.weigh(scores), arithmetic.LARGEST * np.exp(scores - scores.max()), atol=0.51
    )


def test_what_is_no_number_is_refused() -> None:
    assert "not finite" in refused(arithmetic.weigh, np.array([0.0, np.nan]))


# Walks and windows


@pytest.mark.parametrize(
    "order", [(("letters",), ("beats", "drums")), (("drums",), ("letters",), ("beats",))]
)
def test_every_id_of_a_stream_may_come(run: Run, order) -> None:
    for seed in range(8):
        stream = to_stream(run.vocabulary, document(run, seed), Layout(order))
        lane = Lane(Walk(run.engine.rules.members, order), width=10_000)
        for token in stream.ids[1:-1].tolist():
            assert not lane.walk.done
            assert token in lane.walk.legal()
            lane.add(token)
        assert lane.walk.done
        np.testing.assert_array_equal(lane.window().ids, stream.ids[:-1])
        np.testing.assert_allclose(lane.window().clock, stream.clock[:-1])


def test_whatever_may_come_makes_whole_segments(run: Run) -> None:
    order = (("letters",), ("beats", "drums"))
    members = {name: run.engine.rules.members[name] for part in order for name in part}
    for seed in range(20):
        rng, walk, ids = np.random.default_rng(seed), Walk(members, order), [1]
        while not walk.done:
            legal = walk.legal()
            assert len(legal) == len(set(legal.tolist())) > 0
            ids.append(int(legal[-1] if len(ids) > 60 else rng.choice(legal)))
            walk.advance(ids[-1])
        for name, own in from_stream(run.vocabulary, np.array(ids)).items():
            assert run.vocabulary.tokenizer(name).grammar().accepts(own)


@pytest.mark.parametrize("width", [8, 20, 33])
def test_a_window_is_the_last_half_from_a_border_on(run: Run, width: int) -> None:
    order = (("letters",), ("beats", "drums"))
    stream = to_stream(run.vocabulary, document(run, 2), Layout(order))
    tags = {run.vocabulary.ranges[name].tag for name in ("beats", "drums")}
    lane = Lane(Walk(run.engine.rules.members, order), width)
    whole = 0
    for place, token in enumerate(stream.ids[1:-1].tolist(), 1):
        lane.add(token)
        if len(lane.ids) < width or lane.walk.done or place < 25:
            continue
        window = lane.window()
        head = len(lane._head())
        assert head < len(window.ids) < width
        assert len(window.ids) <= max(width // 2, head + 1)
        rest = window.ids[head:]
        np.testing.assert_array_equal(rest, stream.ids[place + 1 - len(rest) : place + 1])
        assert (window.clock >= 0).all()
        if rest[0] in tags:
            whole += 1
            assert window.clock[head:].max() < len(rest) * 4
            assert window.clock[window.ids == rest[-1]].size
    assert whole > 10


# Coding


def test_all_orders_of_a_recipe_come_back(run: Run) -> None:
    for names in (("beats",), ("letters",), ("drums", "beats"), ("letters", "beats", "drums")):
        segments = {name: s for name, s in document(run, 3).items() if name in names}
        coded = coding.encode(run, segments)
        found = coding.decode(run, coded.plan, coded.payload)
        assert set(found) == set(names)
        for name, segment in segments.items():
            np.testing.assert_array_equal(found[name], segment.ids)


def test_long_ones_without_times_go_in_lanes(run: Run) -> None:
    short = toy(["letters"], context=16)
    word = "".join(np.random.default_rng(0).choice(list("abcde"), 700))
    segments = {"letters": short.vocabulary.encode("letters", word)}
    coded = coding.encode(short, segments)
    assert len(coded.plan.states) == 702 // (8 * 16)
    assert (
        len(coding.encode(short, {"letters": short.vocabulary.encode("letters", "ab" * 8)}).plan.states) == 1
    )
    assert coding.encode(short, {"letters": short.vocabulary.encode("letters", "ab" * 5)}).plan.states == ()
    np.testing.assert_array_equal(
        coding.decode(short, coded.plan, coded.payload)["letters"], segments["letters"].ids
    )


def test_the_order_is_the_cheapest_that_the_recipe_has(run: Run) -> None:
    known = coding.orders(run.arrangements, ["beats", "drums"])
    assert known == [(("beats", "drums"),), (("drums", "beats"),)]
    assert coding.orders(run.arrangements, ["letters"]) == [(("letters",),)]
    segments = {name: bars(run, name, 5) for name in ("beats", "drums")}
    assert coding.cheapest(run, segments) == min(known, key=lambda o: coding._price(run, segments, o))


def reference_bits(run: Run, segments, order) -> float:
    """Bits of a stream that fits the context, from one look of the network at all of it."""
    stream = to_stream(run.vocabulary, segments, Layout(order))
    ids, clock = torch.from_numpy(stream.ids.astype(np.int64)), torch.from_numpy(stream.clock)
    with torch.no_grad():
        logits = run.net.logits(run.net(ids[None], clock=clock[None]))[0].double()
    walk, total = Walk(run.engine.rules.members, order), 0.0
    for place, token in enumerate(stream.ids[1:-1].tolist()):
        legal = walk.legal()
        scores = torch.log_softmax(logits[place, torch.from_numpy(legal)], dim=0)
        total -= float(scores[legal.tolist().index(token)]) / math.log(2)
        walk.advance(token)
    return total


@pytest.mark.parametrize("names", [("beats",), ("letters",), ("beats", "drums")])
def test_the_size_is_the_likelihood(names) -> None:
    run = toy(["letters"], ["beats+drums"], context=1024)
    run.net.embedding.weight.data *= 20  # an untrained network finds all ids equally likely
    segments = {name: s for name, s in document(run, 2, length=300).items() if name in names}
    coded = coding.encode(run, segments)
    expected = reference_bits(run, segments, coded.plan.order)
    assert sum(coded.bits.values()) == pytest.approx(expected, rel=1e-4)
    assert expected - 1 <= 8 * len(coded.payload) <= 1.01 * expected + 8
    if len(names) == 1:  # what the grammar rules out is charged there, not here
        whole = segment_bits(run.net, run.vocabulary, segments, coded.plan.order, names[0])
        assert sum(coded.bits.values()) <= whole + 1e-3


def test_predictions_are_float64_throughout(run: Run) -> None:
    """Float32 anywhere on the way would make them differ from machine to machine."""
    order = (("letters",), ("beats", "drums"))
    ids = to_stream(run.vocabulary, document(run, 1), Layout(order)).ids[1:50]
    predictor = coding.Predictor(run.net)
    places = torch.arange(9)[None]
    turned = turn_by(places, predictor.net.waves, places, predictor.net.beats)
    exact = turn_by(places, wave_numbers(2, 10_000.0, torch.float64), places, clock_numbers(2, torch.float64))
    assert all(torch.equal(mine, other) for mine, other in zip(turned, exact, strict=True))
    assert turned[0].dtype == torch.float64
    lane = Lane(Walk(run.engine.rules.members, order), 64)
    for token in ids.tolist():
        scores = predictor.predict([lane])
        window = lane.window()
        hidden = predictor.net(torch.from_numpy(window.ids)[None], clock=torch.from_numpy(window.clock)[None])
        whole = hidden[0, -1] @ predictor.net.embedding.weight.T
        assert scores.dtype == np.float64
        np.testing.assert_allclose(scores[0], whole.detach().numpy(), atol=1e-12)
        lane.add(token)
    assert run.net.embedding.weight.dtype == torch.float32


def test_known_sizes(run: Run) -> None:
    segments = document(run, 4)
    size = compression.compressed_size(run, segments)
    assert set(size.bits) == set(segments)
    assert size.payload == pytest.approx(sum(size.bits.values()) / 8, abs=1.5)
    assert size.payload + 30 < size.file < size.payload + 120
