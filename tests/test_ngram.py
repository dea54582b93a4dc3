"""Counting models, compared with a slow one that keeps dictionaries."""

import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal_gpt.evaluation.ngram import DISCOUNT, Ngram, sounding
from multimodal_gpt.stream.vocabulary import Encoded

SIZE = 3
WORDS = st.lists(st.integers(0, SIZE - 1), max_size=12)


def slow_bits(sequences: list[list[int]], order: int, sequence: list[int]) -> list[float]:
    """Interpolated Kneser-Ney by its definition; START = SIZE + 1 stands before a sequence, SIZE ends it."""

    def grams(ids: list[int], length: int) -> list[tuple[tuple[int, ...], int]]:
        padded = [SIZE + 1] * length + ids + [SIZE]
        return [(tuple(padded[i : i + length]), padded[i + length]) for i in range(len(ids) + 1)]

    counts: list[dict] = []
    for length in range(order + 1):
        seen = defaultdict(lambda: defaultdict(int))
        if length == order:
            for ids in sequences:
                for history, token in grams(ids, length):
                    seen[history][token] += 1
        else:
            for history, token in {g for ids in sequences for g in grams(ids, length + 1)}:
                seen[history[1:]][token] += 1
        counts.append(seen)
    bits = []
    for place in range(len(sequence) + 1):
        chance = 1 / (SIZE + 1)
        for length in range(order + 1):
            history, token = grams(sequence, length)[place]
            known = counts[length].get(history)
            if known:
                total = sum(known.values())
                chance = (max(known.get(token, 0) - DISCOUNT, 0) + DISCOUNT * len(known) * chance) / total
        bits.append(-math.log2(chance))
    return bits


@given(st.lists(WORDS, min_size=1, max_size=6), WORDS, st.integers(0, 4))
def test_it_is_interpolated_kneser_ney(training, sequence, order):
    fast = Ngram([np.array(ids, dtype=np.int64) for ids in training], SIZE, order)
    found = fast.bits(np.array(sequence, dtype=np.int64))
    assert found == pytest.approx(slow_bits(training, order, sequence), rel=1e-9)


@given(st.lists(WORDS, min_size=1, max_size=4), WORDS)
def test_chances_add_up(training, history):
    model = Ngram([np.array(ids, dtype=np.int64) for ids in training], SIZE, 2)
    after = [model.bits(np.array([*history, token]))[len(history)] for token in range(SIZE)]
    ends = model.bits(np.array(history, dtype=np.int64))[-1]
    assert sum(2.0**-b for b in [*after, ends]) == pytest.approx(1.0)


def test_a_longer_history_tells_more_where_there_is_one():
    training = [np.tile([0, 0, 1], 20)] * 3
    alone, two = Ngram(training, SIZE, 0), Ngram(training, SIZE, 2)
    assert two.bits(training[0]).sum() < 0.3 * alone.bits(training[0]).sum()


def test_nothing_to_count_is_refused():
    with pytest.raises(ValueError, match="nothing"):
        Ngram([], SIZE)


def test_what_is_known_beside_a_token_helps_to_guess_it():
    rng = np.random.default_rng(0)
    training = [rng.integers(0, SIZE, 200) for _ in range(5)]
    beside = [np.append(ids, SIZE).astype(np.uint64) for ids in training]  # it tells the token itself
    blind, seeing = Ngram(training, SIZE, 2), Ngram(training, SIZE, 2, beside)
    asked = rng.integers(0, SIZE, 200)
    known = seeing.chances(asked, np.append(asked, SIZE).astype(np.uint64))
    assert blind.bits(asked).mean() > 1.4
    assert -np.log2(known).mean() < 0.2


def test_what_sounds_is_what_has_begun_before_the_token_is_known():
    def segment(clock: list[float]) -> Encoded:
        ids = np.arange(len(clock), dtype=np.int32)
        return Encoded("m", ids, np.array(clock, dtype=np.float32), np.zeros(1, np.int64), 1)

    target, context = segment([0, 1, 1, 2]), segment([0, 1, 2])
    symbols = sounding(target, context)
    assert len(symbols) == 5
    assert symbols[0] == symbols[1]  # before the first token, and after it: only what began at 0
    assert symbols[2] == symbols[3] != symbols[1]  # both tokens before them began at 1
    assert symbols[4] != symbols[3]
    with pytest.raises(ValueError, match="no times"):
        sounding(target, Encoded("n", target.ids, None, target.cuts, 1))
