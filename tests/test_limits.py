"""Limits allow exactly what both sides allow."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multimodal_gpt.errors import UserError
from multimodal_gpt.stream import limits
from multimodal_gpt.stream.grammar import Grammar, free_grammar
from multimodal_gpt.stream.limits import along, both, is_possible, only

SIZE = 3
WALKS = [np.array(w) for n in range(1, 6) for w in product(range(SIZE), repeat=n)]


@st.composite
def grammars(draw):
    states = draw(st.integers(2, 4))
    cells = draw(st.lists(st.integers(-1, states - 1), min_size=states * SIZE, max_size=states * SIZE))
    final = draw(st.lists(st.booleans(), min_size=states - 1, max_size=states - 1))
    cut = draw(st.lists(st.booleans(), min_size=SIZE, max_size=SIZE))
    return Grammar(np.reshape(cells, (states, SIZE)), np.array([False, *final]), np.array(cut))


@settings(max_examples=50)
@given(grammars(), grammars())
def test_both_accepts_what_each_accepts(first, second):
    together = both(first, second)
    assert [together.accepts(w) for w in WALKS] == [first.accepts(w) and second.accepts(w) for w in WALKS]
    assert (together.cut == first.cut).all()


@settings(max_examples=20)
@given(grammars(), st.lists(st.booleans(), min_size=SIZE, max_size=SIZE))
def test_only_takes_ids_out(grammar, allowed):
    fewer = only(grammar, np.array(allowed))
    for walk in WALKS:
        assert fewer.accepts(walk) == (grammar.accepts(walk) and all(allowed[i] for i in walk))


def test_along_allows_one_choice_after_the_other():
    choices = np.array([[1, 0, 1], [0, 1, 0]], dtype=bool)
    grammar = along(choices, np.array([False, True, False]))
    assert [w.tolist() for w in WALKS if grammar.accepts(w)] == [[0, 1], [2, 1]]


def test_what_cannot_be_is_seen():
    free = free_grammar(SIZE)
    assert is_possible(free)
    assert not is_possible(only(free, np.zeros(SIZE, dtype=bool)))
    nothing_after = along([[1, 0, 0]], free.cut)
    assert not is_possible(both(nothing_after, along([[0, 1, 1]], free.cut)))


def test_a_table_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(limits, "CELLS", 20)
    long = along([np.ones(SIZE)] * 30, np.zeros(SIZE, dtype=bool))
    with pytest.raises(UserError, match="too large a table"):
        both(long, free_grammar(SIZE))
