"""Bits are charged to the target alone, each token once, whatever the layout and the window."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from multimodal_gpt.evaluation.context_gain import derange, fit_chunks, matched
from multimodal_gpt.evaluation.likelihood import charged_tokens, segment_bits
from multimodal_gpt.stream.arrangement import Layout, to_stream
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.vocabulary import Vocabulary

TOYS = Path(__file__).parent / "toys"
VOCABULARY = Vocabulary([Modality(n, str(TOYS / f"{n}.py")) for n in ("letters", "beats")])


class Uniform(torch.nn.Module):
    """A model to which every id of the table is equally likely."""

    def __init__(self, context: int = 256) -> None:
        super().__init__()
        self.config = SimpleNamespace(context=context)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[int] = []

    def forward(self, ids: torch.Tensor, position: torch.Tensor, clock: torch.Tensor) -> torch.Tensor:
        self.seen.append(ids.shape[1])
        return torch.zeros(*ids.shape, VOCABULARY.table_size)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


@pytest.fixture
def segments():
    bars = VOCABULARY.tokenizer("beats").parse(" ".join(["x.x.", "..x.", "xxxx"] * 8))
    return {"letters": VOCABULARY.encode("letters", "abba"), "beats": VOCABULARY.encode("beats", bars)}


def per_token(name: str) -> float:
    """One choice among the modality's ids, `<end>` and the tags."""
    return math.log2(VOCABULARY.ranges[name].size + 1 + len(VOCABULARY.names))


@pytest.mark.parametrize(
    ("order", "target", "closings"),
    [
        ((("letters",), ("beats",)), "beats", 1),
        ((("letters",), ("beats",)), "letters", 1),
        ((("beats", "letters"),), "letters", 1),
        ((("letters", "beats"),), "beats", 24),
    ],
)
def test_own_tokens_and_closings_are_charged(segments, order, target, closings):
    bits = segment_bits(Uniform(), VOCABULARY, segments, order, target)
    assert bits == pytest.approx((len(segments[target].ids) + closings) * per_token(target))


def test_the_context_is_given_not_charged(segments):
    ids = to_stream(VOCABULARY, segments, Layout((("letters", "beats"),))).ids
    own, closing = charged_tokens(VOCABULARY, ids, "beats")
    letters = VOCABULARY.ranges["letters"]
    assert own.sum() == len(segments["beats"].ids)
    assert not (own & (ids >= letters.tag) & (ids < letters.stop)).any()
    assert not (own & closing).any()


@pytest.mark.parametrize("context", [20, 31, 64])
def test_windows_charge_each_token_once(segments, context):
    net = Uniform(context)
    bits = segment_bits(net, VOCABULARY, segments, (("letters",), ("beats",)), "beats")
    assert bits == pytest.approx((len(segments["beats"].ids) + 1) * per_token("beats"))
    assert max(net.seen) <= context
    assert len(net.seen) > 1


def test_a_derangement_moves_everything():
    for seed in range(10):
        order = derange(7, seed)
        assert sorted(order) == list(range(7))
        assert (order != np.arange(7)).all()


def test_lookalikes_share_the_class():
    metadata = [{"m": "3/4"}, {"m": "4/4"}, {"m": "3/4"}, {"m": "4/4"}, {"m": "6/8"}]
    chosen = matched(metadata, 0, lambda m: m["m"])
    assert chosen[:4].tolist() == [2, 3, 0, 1]
    assert chosen[4] != 4


def test_fit_chunks_repeats_and_cuts(segments):
    beats = segments["beats"]
    longer = fit_chunks(beats, np.arange(30) * 4.0, VOCABULARY)
    assert len(longer.edges) - 1 == 30
    np.testing.assert_array_equal(longer.times, np.arange(30) * 4.0)
    np.testing.assert_array_equal(longer.ids[: len(beats.ids)], beats.ids)
    assert len(fit_chunks(beats, np.arange(5) * 4.0, VOCABULARY).edges) - 1 == 5


@pytest.mark.parametrize("context", [24, 40, 96])
def test_what_has_no_time_is_scored_whole_behind_a_beginning_of_what_has(segments, context):
    net = Uniform(context)
    word = VOCABULARY.encode("letters", "abcde" * 30)
    order = (("beats",), ("letters",))
    bits = segment_bits(net, VOCABULARY, {"letters": word, "beats": segments["beats"]}, order, "letters")
    assert bits == pytest.approx((len(word.ids) + 1) * per_token("letters"))
    assert max(net.seen) <= context
    short = segment_bits(net, VOCABULARY, segments, order, "letters")
    assert short == pytest.approx((len(segments["letters"].ids) + 1) * per_token("letters"))


def test_a_long_word_is_scored_in_stretches(segments):
    net = Uniform(20)
    word = VOCABULARY.encode("letters", "abcde" * 30)
    bits = segment_bits(net, VOCABULARY, {"letters": word}, (("letters",),), "letters")
    assert bits == pytest.approx((len(word.ids) + 1) * per_token("letters"))
    assert len(net.seen) > 10
    assert max(net.seen) <= 20
