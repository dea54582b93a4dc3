"""The learning rate over a run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal_gpt.model.schedule import SCHEDULES, cosine, warmup_stable_decay

SHARES = st.floats(0, 1, allow_nan=False)


def curve(steps: int, warmup: float, decay: float) -> list[float]:
    return [warmup_stable_decay(s, steps, warmup, decay) for s in range(steps)]


def test_rise_plateau_fall():
    factors = curve(100, 0.1, 0.5)
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:51] == [1.0] * 42
    assert factors[75] == pytest.approx(0.5)
    assert factors[-1] == pytest.approx(0.02)


def test_no_warmup_starts_at_the_peak_and_no_decay_ends_there():
    assert curve(10, 0.0, 0.0) == [1.0] * 10


@given(st.integers(1, 300), SHARES, SHARES)
def test_every_step_moves_the_weights_by_at_most_the_peak(steps, warmup, decay):
    factors = curve(steps, warmup, decay)
    assert all(0 < f <= 1 for f in factors)
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_past_the_end_it_is_zero():
    assert warmup_stable_decay(100, 100, 0.1, 0.5) == 0.0


def test_half_a_cosine():
    factors = [cosine(s, 100, 0.1, 0.5) for s in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:11] == [1.0, 1.0]
    assert factors[55] == pytest.approx(0.5)
    assert factors[-1] == pytest.approx(0.0003, abs=1e-4)


@given(st.integers(1, 300), SHARES)
def test_a_cosine_rises_once_and_falls(steps, warmup):
    factors = [cosine(s, steps, warmup, 0.0) for s in range(steps)]
    assert all(0 < f <= 1 for f in factors)
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_schedules_go_by_name():
    assert [SCHEDULES["wsd"], SCHEDULES["cosine"]] == [warmup_stable_decay, cosine]
