"""Counting models, compared with a slow one that keeps dictionaries."""

import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal_gpt.evaluation.ngram import DISCOUNT, Ngram

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
