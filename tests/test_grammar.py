"""Grammars: legality is a table."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.grammar import UNREACHABLE, Grammar, free_grammar

# Sentences over {0: open, 1: word, 2: close}: open word+ close, again and again; `open` begins a chunk.
TABLE = np.array([[1, -1, -1], [-1, 2, -1], [-1, 2, 3], [1, -1, -1]], dtype=np.int32)
SENTENCES = Grammar(TABLE, np.array([False, False, False, True]), np.array([True, False, False]))


def test_walk_follows_the_table_and_refuses_the_rest():
    assert SENTENCES.walk(np.array([0, 1, 1])) == 2
    assert SENTENCES.accepts(np.array([0, 1, 2, 0, 1, 1, 2]))
    assert not SENTENCES.accepts(np.array([0, 1]))
    with pytest.raises(UserError, match="token 1 may not come at place 0"):
        SENTENCES.walk(np.array([1]))


@pytest.mark.parametrize("bad", [-1, 3, 99])
def test_ids_outside_the_table_are_refused(bad):
    assert not SENTENCES.accepts(np.array([bad]))


def test_distances_count_the_fewest_tokens():
    assert SENTENCES.to_final.tolist() == [3, 2, 1, 0]
    assert SENTENCES.closable.tolist() == [True, False, False, True]
    assert SENTENCES.to_close.tolist() == [0, 2, 1, 0]


def test_a_dead_end_is_unreachably_far():
    grammar = Grammar(
        np.array([[1, 2], [-1, -1], [-1, -1]]), np.array([False, False, True]), np.zeros(2, bool)
    )
    assert grammar.to_final.tolist() == [1, UNREACHABLE, 0]
    assert grammar.random_walk(np.random.default_rng(0), 5).tolist() == [1]


@given(st.integers(0, 2**32 - 1), st.integers(0, 40))
def test_random_walks_are_legal(seed, length):
    walk = SENTENCES.random_walk(np.random.default_rng(seed), length)
    assert SENTENCES.accepts(walk)
    assert length <= len(walk) <= length + 4 or len(walk) == 3


def test_a_free_grammar_takes_anything_but_nothing():
    grammar = free_grammar(4)
    assert grammar.accepts(np.array([3, 3, 0]))
    assert not grammar.accepts(np.array([]))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="final must be"):
        Grammar(TABLE, np.array([False]), np.zeros(3, bool))
    with pytest.raises(ValueError, match="state 0 is final"):
        Grammar(TABLE, np.ones(4, bool), np.zeros(3, bool))
