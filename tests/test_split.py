"""What is held out: whole pieces, the same on every machine and in any order, and never all or nothing."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multimodal_gpt.data.copies import Brief
from multimodal_gpt.data.duplicates import sketch
from multimodal_gpt.data.split import CROWD, bare_title, split_documents


def briefs(*sources, title="", held_out=False):
    return [Brief(s, title, held_out, {}, {}, ()) for s in sources]


def sketched(**shingles):
    return [replace(b, sketch=sketch(s)) for b, s in zip(briefs(*shingles), shingles.values(), strict=True)]


def numbers(*seeds):
    """Fifty shingles for each seed."""
    drawn = [np.random.default_rng(s).integers(0, 2**64, 50, dtype=np.uint64) for s in seeds]
    return np.concatenate(drawn)


@given(st.integers(2, 60), st.floats(0.01, 0.99))
def test_no_side_of_the_split_is_empty(count, share):
    split = split_documents(briefs(*(f"d/{i}" for i in range(count))), share, None, 1)
    assert split.train and split.valid
    assert sorted(split.train + split.valid) == list(range(count))


@given(st.permutations(range(40)))
def test_the_split_does_not_depend_on_order(order):
    names = [f"d/{i}" for i in range(40)]
    expected = {names[i] for i in split_documents(briefs(*names), 0.2, None, 1).valid}
    mixed = [names[i] for i in order]
    assert {mixed[i] for i in split_documents(briefs(*mixed), 0.2, None, 1).valid} == expected


def test_versions_of_a_piece_stay_together():
    names = [f"d/{i:03d}{suffix}" for i in range(50) for suffix in ("", ".tracks")]
    found = briefs(*names) + [
        b for i in range(50) for v in (1, 2) for b in briefs(f"e/{i}#{v}", title=f"The Tune {i} ({v})")
    ]
    split = split_documents(found, 0.3, None, 1)
    sides = [{split.groups[i] for i in side} for side in (split.train, split.valid)]
    assert len(set(split.groups)) == 100 and not sides[0] & sides[1]


def test_a_title_shared_by_a_crowd_is_none():
    found = briefs(*(f"d/{i}" for i in range(CROWD + 1)), title="Untitled")
    assert len(set(split_documents(found, 0.5, None, 1).groups)) == CROWD + 1


def test_held_out_folders_are_the_split_and_limits_hold():
    found = briefs("a/1", "a/2", "a/3") + briefs("b/1", "b/2", held_out=True)
    split = split_documents(found, 0.5, None, 1)
    assert (split.train, split.valid) == ((0, 1, 2), (3, 4))
    few = split_documents(found, 0.5, 1, 1)
    assert len(few.train) == len(few.valid) == 1


def test_a_share_of_nothing_holds_out_nothing():
    assert split_documents(briefs("a", "b"), 0.0, None, 1).valid == ()
    assert split_documents(briefs("a"), 0.5, None, 1).valid == ()


@pytest.mark.parametrize(
    ("title", "bare"),
    [
        ("Séamus' Jig, The (2)", "seamus jig"),
        ("The Seamus Jig", "seamus jig"),
        ("  A--Reel!", "reel"),
        ("The", "the"),
        ("(3)", ""),
    ],
)
def test_bare_titles(title, bare):
    assert bare_title(title) == bare


def test_near_duplicates_stay_together():
    found = sketched(c=numbers(1, 2), a=numbers(3), b=numbers(1, 2, 4), d=numbers(5), e=numbers(5))
    found[4] = replace(found[4], title="Known as d too")
    split = split_documents(found, 0.5, None, 1)
    assert split.groups == ("b", "a", "b", "d", "d")
    assert split.joined == 4


def test_names_and_contents_join_in_turn():
    found = sketched(a=numbers(1), b=numbers(2), c=numbers(1), d=numbers(3))
    found[1:3] = [replace(b, title=f"The Reel ({n})") for n, b in enumerate(found[1:3])]
    assert split_documents(found, 0.5, None, 1).groups == ("a", "a", "a", "d")
    same_title = [replace(b, title="Reel") for b in sketched(a=numbers(1), b=numbers(1))]
    assert split_documents(same_title, 0.5, None, 1).joined == 0


@settings(max_examples=25)
@given(st.permutations(range(24)))
def test_groups_do_not_depend_on_order(order):
    found = sketched(**{f"d{i}": numbers(i // 3, 200 + i // 3, 100 + i) for i in range(24)})
    expected = dict(zip((b.source for b in found), split_documents(found, 0.3, None, 1).groups, strict=True))
    assert len(set(expected.values())) == 8
    mixed = [found[i] for i in order]
    groups = split_documents(mixed, 0.3, None, 1).groups
    assert dict(zip((b.source for b in mixed), groups, strict=True)) == expected


@given(st.integers(1, 9), st.floats(0.01, 0.99))
def test_what_most_documents_repeat_is_not_held_out(others, share):
    same = sketched(**{f"same{i}": numbers(0) for i in range(10)})
    split = split_documents(same + briefs(*(f"d/{i}" for i in range(others))), share, None, 1)
    assert set(range(10)) <= set(split.train)
    assert split.valid
    alone = split_documents(same, share, None, 1)
    assert alone.train and alone.valid


def test_versions_of_training_documents_in_held_out_folders_are_counted():
    pieces = [*briefs("t/a", "t/b"), *briefs("v/a", "v/c", held_out=True)]
    same = [replace(b, title="Tune") if b.source.endswith("/a") else b for b in pieces]
    assert split_documents(same, 0.1, None, 1).leaked == 1
    assert split_documents(pieces, 0.1, None, 1).leaked == 0
