"""Captions: templates, parts left out at random, and labels that say what was said."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_corpus import document, vocabulary

from multimodal_gpt.data.captions import (
    LABELS,
    Captions,
    caption,
    check_templates,
    parts,
    phrases,
    seeded,
)
from multimodal_gpt.data.reading import described
from multimodal_gpt.errors import UserError

TOKENIZERS = vocabulary().tokenizers
FACTS = {"kind": "reel", "key": "D", "bars": 8, "empty": ""}


def said(*templates, facts=FACTS, drop=0.0, seed=0):
    found = phrases(templates, facts, drop, seeded(seed))
    return {phrase.words: dict(phrase.facts) for phrase in found}


def test_a_phrase_needs_all_its_fields():
    templates = ["a {kind}", "in {empty}", "{kind} {missing}", "a {kind}", "{bars:d} bars", "{kind:d}"]
    assert said(*templates) == {"a reel": {"kind": "reel"}, "8 bars": {"bars": 8}}


def test_what_is_unknown_is_left_out():
    template = "a {kind}[ in {empty}][, {missing}][, {kind:d}][ of {bars} bars]"
    assert said(template) == {"a reel of 8 bars": {"kind": "reel", "bars": 8}}
    assert said(template, drop=1.0) == {"a reel": {"kind": "reel"}}
    assert said("[{missing}]", "[{kind}]", drop=1.0) == {}


def test_double_brackets_are_brackets():
    assert said("[[{kind}]][ [[{key}]]]") == {"[reel] [D]": {"kind": "reel", "key": "D"}}
    check_templates(["[[", "]]", "{{[a]}}"])


@given(st.lists(st.tuples(st.booleans(), st.text("ab{}[]", max_size=4)), max_size=6))
def test_parts_are_what_was_written(written):
    def escaped(words):
        return "".join(c * 2 if c in "{}[]" else c for c in words)

    # A blank beside each bracket, so that it doesn't merge with one of the words.
    template = "".join(f"[ {escaped(w)} ]" if optional else f" {escaped(w)} " for optional, w in written)
    read = "".join(f"<{p.words}>" if p.optional else p.words for p in parts(template))
    assert read.format() == "".join(f"< {w} >" if optional else f" {w} " for optional, w in written)


def test_each_part_is_left_out_as_often_as_asked():
    count = Counter()
    for seed in range(1000):
        (first, *_) = said("a[ {kind}][ in {key}]", drop=0.3, seed=seed).values()
        count.update(first.keys())
    assert abs(count["kind"] - 700) < 50 and abs(count["key"] - 700) < 50  # 3.4 standard deviations


def test_every_template_speaks_before_any_speaks_twice():
    for seed in range(20):
        first_two = list(said("a {kind}[ in {key}]", "{bars} bars[ of {kind}]", drop=0.5, seed=seed))[:2]
        assert sorted(words[0] for words in first_two) == ["8", "a"]


def test_captions_stand_behind_a_documents_own_words():
    captions = Captions("letters", ("a{letters}", "{given}{given}", "bb", "cc"), 2, seed=1)
    piece = described(document(letters="abc"), TOKENIZERS)
    made, used = caption(piece, captions, TOKENIZERS["letters"])
    contents = [s.content for s in made.segments]
    assert contents[0] == "abc"
    assert len(used) == len(contents) - 1 and set(contents[1:]) <= {"abcabc", "bb", "cc"}
    again, _ = caption(piece, captions, TOKENIZERS["letters"])
    assert again == made


def test_captions_differ_between_documents_and_shifts():
    captions = Captions("letters", tuple("a" * n for n in range(1, 30)), 3, seed=1)
    drawn = {
        tuple(
            s.content
            for s in caption(document(source=source), captions, TOKENIZERS["letters"], shift)[0].segments
        )
        for source in "xy"
        for shift in (0, 1)
    }
    assert len(drawn) == 4 and all(len(set(d)) == 3 for d in drawn)


@pytest.mark.parametrize("template", ["{", "{}", "{a.b}", "{a[0]}", "{0}", "[a", "a]", "[a[b]c]", "]a["])
def test_a_bad_template_is_named(template):
    with pytest.raises(UserError) as error:
        check_templates(["fine {name}", template])
    assert "data.captions.templates" in str(error.value) and repr(template) in str(error.value)


def test_labels_tell_what_each_caption_states():
    templates = ("a{first}[b{letters}]", "[{first}]{given}")
    piece = described(document(letters="abc"), {**TOKENIZERS, "letters": replace_letters()})
    known = {"letters": 3, "first": "a"}
    wordings = {
        "aab3": known,
        "aa": {"first": "a"},
        "aabc": {"first": "a"},
        "abc": {},
    }
    seen = set()
    for seed in range(30):
        captions = Captions("letters", templates, 3, seed, drop=0.5)
        made, used = caption(piece, captions, replace_letters())
        words = [s.content for s in made.segments[1:]]
        assert made.metadata[LABELS] == [wordings[w] for w in words]
        assert {k: v for k, v in made.metadata.items() if k != LABELS} == piece.metadata
        assert len(used) == len(words) == len(set(words))
        seen |= set(words)
    assert seen == set(wordings)


def replace_letters():
    return replace(TOKENIZERS["letters"], letters="abc3")


def test_what_can_not_be_parsed_has_no_label():
    captions = Captions("letters", ("a", "zz"), 2, seed=1)
    made, used = caption(document(letters="abc"), captions, TOKENIZERS["letters"])
    assert used == ("a",) and made.metadata[LABELS] == [{}]


def test_more_variants_keep_the_first_ones():
    made = [
        caption(
            document(letters="abc"),
            Captions("letters", tuple("a" * n for n in range(1, 30)), variants, seed=1),
            TOKENIZERS["letters"],
        )[0].segments
        for variants in (2, 5)
    ]
    assert made[1][: len(made[0])] == made[0] and len(made[1]) == 6
