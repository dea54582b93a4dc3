"""Figures are ratios of sums with paired intervals, and come back from JSON as they were."""

import json

import numpy as np
import pytest

from multimodal_gpt.evaluation.tables import (
    LOWER,
    MODEL,
    Figure,
    Table,
    from_plain,
    ratio,
    ratio_row,
    to_plain,
)


def test_a_ratio_is_one_of_sums_not_a_mean_of_ratios():
    figure = ratio([10.0, 0.0, 2.0], [10, 10, 4])
    assert figure.value == pytest.approx(0.5)
    assert figure.low is not None and figure.high is not None
    assert figure.low <= 0.5 <= figure.high


def test_documents_that_agree_leave_no_doubt():
    figure = ratio(np.full(50, 3.0), np.full(50, 10))
    assert (figure.low, figure.high) == pytest.approx((0.3, 0.3))


def test_one_document_has_no_interval():
    assert ratio([3.0], [10]) == Figure(0.3)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        units = rng.integers(50, 150, 60)
        figure = ratio(rng.normal(2.0 * units, 30.0), units, seed=trial)
        covered += figure.low <= 2.0 <= figure.high
    assert 88 <= covered <= 100


def test_a_table_comes_back_from_json():
    row = ratio_row("tune", "bits/note", LOWER, {MODEL: [10.0, 30.0]}, [10, 10], ["a", "b"])
    table = Table("likelihood", "How well?", "Bits.", (MODEL,), (row,), ("one note",))
    back = from_plain(json.loads(json.dumps(to_plain(table))))
    assert to_plain(back) == to_plain(table)
    assert back.rows[0].figures[MODEL].value == pytest.approx(2.0)
    assert back.rows[0].sums[MODEL] == (10.0, 30.0)


def test_a_figure_says_its_interval_where_it_has_one():
    assert Figure(1.0, 0.5, 1.5).said(".2f") == "1.00 [0.50, 1.50]"
    assert Figure(1.0).said(".2f") == "1.00"
