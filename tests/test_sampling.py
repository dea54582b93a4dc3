"""Sampling functions against their definitions, id by id."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multimodal_gpt.errors import UserError
from multimodal_gpt.generation.sampling import (
    Sampling,
    bits,
    draw,
    guided,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    legal_logits,
    penalised,
    sample,
    uniforms,
    unrepeated,
)

SHARES = torch.tensor([[0.5, 0.25, 0.15, 0.1], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
LOGITS = SHARES.log()


def kept(logits: torch.Tensor) -> list[list[int]]:
    return [torch.isfinite(row).nonzero()[:, 0].tolist() for row in logits]


def test_top_k_keeps_the_k_most_likely():
    assert kept(keep_top_k(LOGITS, 2)) == [[0, 1], [2, 3]]
    assert kept(keep_top_k(LOGITS, 9)) == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize(
    ("p", "expected"),
    [(0.3, [[0], [3]]), (0.6, [[0, 1], [2, 3]]), (0.8, [[0, 1, 2], [1, 2, 3]]), (1e-9, [[0], [3]])],
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(p, expected):
    assert kept(keep_top_p(LOGITS, p)) == expected


@pytest.mark.parametrize(
    ("p", "expected"), [(0.4, [[0, 1], [1, 2, 3]]), (1.0, [[0], [3]]), (0.01, [[0, 1, 2, 3]] * 2)]
)
def test_min_p_keeps_what_is_likely_beside_the_best(p, expected):
    assert kept(keep_min_p(LOGITS, p)) == expected


def test_draw_is_the_inverse_of_the_cumulative_distribution():
    for uniform, expected in [
        (0.0, [0, 0]),
        (0.09, [0, 0]),
        (0.49, [0, 2]),
        (0.51, [1, 2]),
        (0.9999, [3, 3]),
    ]:
        assert draw(SHARES, torch.tensor([uniform, uniform])).tolist() == expected


def test_draw_never_falls_behind_the_last_column():
    ragged = torch.full((1, 7), 0.1, dtype=torch.float64)
    for shares in (ragged, ragged.softmax(-1)):
        assert draw(shares, torch.tensor([np.nextafter(1.0, 0.0)])).item() == 6
    ended = torch.tensor([[0.3, 0.7, 0.0, 0.0]], dtype=torch.float64)  # what can't come is never drawn
    assert draw(ended, torch.tensor([np.nextafter(1.0, 0.0)])).item() == 1


def test_top_p_of_many_alike():
    """More ids than are ranked at first: the whole row is."""
    logits = torch.linspace(0, 0.1, 300, dtype=torch.float64)[None]
    shares = logits.softmax(-1)[0]
    kept = torch.isfinite(keep_top_p(logits, 0.9))[0]
    assert 0.9 <= float(shares[kept].sum()) < 0.9 + float(shares.max())
    assert float(shares[~kept].max()) < float(shares[kept].min())


def test_one_temperature_for_all_or_one_each():
    logits = torch.randn(64, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    uniform = torch.as_tensor(uniforms((2,), 64))
    for warmth in (0.0, 0.7, 1.0):
        each = sample(logits, uniform, torch.full((64,), warmth), Sampling(top_p=0.9))
        assert torch.equal(sample(logits, uniform, warmth, Sampling(top_p=0.9)), each)


def test_draws_follow_temperature():
    uniform = torch.as_tensor(uniforms((1,), 20_000))
    logits = LOGITS[:1].expand(20_000, 4)
    for temperature in (0.5, 1.0, 2.0):
        column = sample(logits, uniform, torch.full((20_000,), temperature), Sampling())
        shares = np.bincount(column.numpy(), minlength=4) / 20_000
        expected = (LOGITS[0] / temperature).softmax(-1).numpy()
        assert np.abs(shares - expected).max() < 0.015


def test_temperature_zero_takes_the_most_likely_legal_id():
    allowed = torch.tensor([[False, True, True, True], [True, True, True, False]])
    zero = torch.zeros(2)
    assert sample(legal_logits(LOGITS, allowed), torch.tensor([0.99, 0.99]), zero, Sampling()).tolist() == [
        1,
        2,
    ]


def test_rows_may_have_their_own_temperature():
    uniform = torch.tensor([0.99, 0.99])
    assert sample(LOGITS, uniform, torch.tensor([0.0, 5.0]), Sampling()).tolist() == [0, 3]


def test_legality_comes_before_the_filters():
    allowed = torch.tensor([[False, False, True, True], [True, True, False, False]])
    for how in (Sampling(top_k=1), Sampling(top_p=0.01), Sampling(min_p=1.0)):
        assert sample(
            legal_logits(LOGITS, allowed), torch.tensor([0.99, 0.99]), torch.ones(2), how
        ).tolist() == [2, 1]


numbers = st.floats(width=32) | st.sampled_from([float("nan"), float("inf"), -float("inf")])


@given(
    st.lists(numbers, min_size=5, max_size=5),
    st.integers(1, 31),
    st.floats(0, 1e6),
    st.floats(0, 1, exclude_max=True),
)
def test_whatever_the_model_says_the_draw_is_legal(values, mask, temperature, uniform):
    allowed = torch.tensor([[bool(mask >> i & 1) for i in range(5)]])
    legal = legal_logits(torch.tensor([values]), allowed)
    for how in (Sampling(), Sampling(top_k=2, top_p=0.5, min_p=0.5)):
        column = sample(legal, torch.tensor([uniform]), torch.tensor([temperature]), how)
        assert allowed[0, column]
        assert torch.isfinite(bits(legal.log_softmax(-1), column)).all()


def test_bits_are_of_the_legal_distribution():
    allowed = torch.tensor([[True, True, False, False], [False, False, False, True]])
    legal = legal_logits(LOGITS, allowed)
    assert bits(legal.log_softmax(-1), torch.tensor([1, 3])).tolist() == pytest.approx([np.log2(3), 0.0])
    assert torch.isinf(legal[0, 2:]).all()


def test_random_numbers_belong_to_their_key():
    assert (uniforms((1, 2), 5) == uniforms((1, 2), 9)[:5]).all()
    assert (uniforms((1, 2), 5) != uniforms((2, 2), 5)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1}, "temperature: -1 is not a temperature (0 (always the most likely) or more)"),
        ({"temperature": {"a": float("nan")}}, "temperature: nan is not"),
        ({"top_k": 0}, "top_k: 0 ids can't be kept (1 or more)"),
        ({"top_p": 0.0}, "top_p: 0.0 is not a share (above 0, at most 1)"),
        ({"min_p": 2.0}, "min_p: 2.0 is not a share (from 0 to 1)"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: 0.0 is no penalty (above 1; 1 changes nothing)"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty: nan is no penalty"),
        ({"repetition_window": 0}, "repetition_window: a window of 0 ids holds nothing (1 or more)"),
        ({"no_repeat": 0}, "no_repeat: 0 ids can't come twice (1 or more)"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UserError) as caught:
        Sampling(**settings)
    assert str(caught.value).startswith(message)


def test_guidance_by_hand():
    known, unknown = (
        torch.tensor([[0.5, 0.25, 0.25, 0.0]]).log(),
        torch.tensor([[0.25, 0.5, 0.25, 0.0]]).log(),
    )
    shares = guided(known, unknown, 2.0).softmax(-1)
    wanted = torch.tensor([[0.5**2 / 0.25, 0.25**2 / 0.5, 0.25, 0.0]])  # known^2 / unknown
    assert torch.allclose(shares, wanted / wanted.sum())
    assert torch.equal(guided(known, unknown, 1.0).softmax(-1), known.softmax(-1))
    assert torch.equal(guided(known, unknown, 0.0).softmax(-1), unknown.softmax(-1))


histories = st.lists(st.lists(st.integers(0, 3), max_size=9), min_size=1, max_size=4)


def padded(lists: list[list[int]], width: int) -> torch.Tensor:
    """(B, width), -1 beyond the end of a list."""
    return torch.tensor([row + [-1] * (width - len(row)) for row in lists]).view(len(lists), width)


@given(histories, st.floats(0.25, 4), st.integers(1, 6), st.integers(0, 2**16))
def test_the_penalty_by_its_definition(made, penalty, window, seed):
    """Keskar et al. 2019: x / p where x > 0, else x p, for every id among the last ones."""
    logits = torch.randn(len(made), 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logits[:, seed % 4] = -torch.inf
    found = penalised(logits, padded([row[-window:] for row in made], window), penalty)
    for row, ids in enumerate(made):
        for column in range(4):
            x = float(logits[row, column])
            changed = x / penalty if x > 0 else x * penalty
            assert float(found[row, column]) == (changed if column in ids[-window:] else x)


@given(histories, st.integers(1, 5), st.integers(1, 15))
def test_no_n_ids_come_twice(made, n, mask):
    legal = torch.tensor([0.0 if mask >> column & 1 else -torch.inf for column in range(4)])
    last = [([-1] * n + row)[len(row) + 1 :] for row in made]
    found = unrepeated(legal.expand(len(made), 4), padded(made, 9), torch.tensor(last).view(len(made), n - 1))
    for row, ids in enumerate(made):
        seen = {tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)}
        start = ids[len(ids) - n + 1 :] if len(ids) >= n - 1 else None
        allowed = [column for column in range(4) if mask >> column & 1]
        fresh = [c for c in allowed if start is None or (*start, c) not in seen]
        assert torch.isfinite(found[row]).nonzero()[:, 0].tolist() == (fresh or allowed)


def test_nobody_minds_repeats_unless_asked():
    assert not Sampling().minds_repeats and not Sampling(repetition_penalty=1.0).minds_repeats
    assert Sampling(no_repeat=3).minds_repeats and Sampling(repetition_penalty=1.2).minds_repeats
