"""Near duplicates: what a sketch estimates, what is joined, and what the plugins' shingles stand for."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_corpus import vocabulary

from multimodal_gpt.data.duplicates import ENOUGH, VALUES, near, sketch, sketch_document
from multimodal_gpt.stream.document import Segment
from multimodal_gpt.tokenizers import melody, text
from multimodal_gpt.tokenizers._music import TICKS, sort_notes

TOYS = vocabulary().tokenizers
TOKENIZERS = {"melody": melody.build(), "text": text.build("bytes"), **TOYS}
RNG = np.random.default_rng
NOTES = st.lists(st.tuples(st.integers(0, 6), st.integers(40, 80)), min_size=1, max_size=60)


def numbers(count, seed):
    return RNG(seed).integers(0, 2**64, count, dtype=np.uint64)


def tune(seed=0, count=64):
    """A walk of quarters and eighths."""
    rng = RNG(seed)
    lengths = rng.choice([TICKS, TICKS // 2], count)
    pitches = 60 + np.clip(np.cumsum(rng.integers(-4, 5, count)), -20, 20)
    return melody.Melody(np.stack([np.cumsum(lengths) - lengths, lengths, pitches], axis=1))


def shingles(content):
    return set(TOKENIZERS["melody"].shingles(content).tolist())


def of(**contents):
    return sketch_document([Segment(n, c) for n, c in contents.items()], TOKENIZERS)


def groups(sketches):
    labels = near(sketches)
    return {frozenset(i for i, label in enumerate(labels) if label == one) for one in labels}


def estimate(a, b):
    return np.mean(np.frombuffer(a, "<u4") == np.frombuffer(b, "<u4"))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
def test_a_sketch_estimates_similarity(share):
    common = round(2 * 100 * share / (1 + share))  # of 100 shingles each
    estimates = []
    for seed in range(100):
        drawn = numbers(200, seed)
        estimates.append(estimate(sketch(drawn[:100]), sketch(drawn[100 - common : 200 - common])))
    exact = common / (200 - common)
    assert abs(np.mean(estimates) - exact) < 4 * np.sqrt(exact * (1 - exact) / VALUES / 100) + 1e-9


def test_a_sketch_is_of_a_set_of_any_size():
    drawn = numbers(10_000, 1)
    assert sketch(drawn) == sketch(np.repeat(drawn[::-1], 2)) and len(sketch(drawn)) == 4 * VALUES
    assert sketch(drawn[: ENOUGH - 1]) == b"" and sketch(drawn[:ENOUGH]) != b""


@settings(max_examples=30)
@given(st.permutations(range(30)))
def test_near_ones_are_joined_in_any_order(order):
    drawn = numbers(30 * 100, 2).reshape(30, 100)
    drawn[:15, :80] = drawn[0, :80]  # similarity 0.67
    sketches = [sketch(row) for row in drawn]
    expected = {frozenset(range(15)), *(frozenset([i]) for i in range(15, 30))}
    assert groups(sketches) == expected
    mixed = groups([sketches[i] for i in order])
    assert {frozenset(order[i] for i in group) for group in mixed} == expected


def test_a_label_is_the_first_of_its_group():
    a, b = sketch(numbers(20, 1)), sketch(numbers(20, 2))
    assert near([b, a, b"", a, b"", b, b"short", b"short"]) == [0, 1, 2, 1, 4, 0, 6, 6]
    assert near([]) == []


def test_a_crowd_takes_no_time():
    common = numbers(80, 1)
    sketches = [sketch(np.concatenate([common, numbers(10, i)])) for i in range(3000)]
    assert len(groups(sketches)) == 1


def test_few_of_what_differs_is_joined():
    assert len(groups([sketch(numbers(80, i)) for i in range(3000)])) == 3000


# Documents


def test_the_modality_with_most_shingles_speaks_for_a_document():
    words = "a tune that my father heard from the old fiddler of the village on a wet evening in June"
    assert of(melody=tune(1), text=words) == of(melody=tune(1)) == of(text="a reel", melody=tune(1))
    assert of(text=words, melody=tune(1, 9)) == of(text=words) != of(melody=tune(1))


def test_short_documents_are_joined_where_equal():
    short = melody.Melody(tune(1).notes[:5])
    assert len(of(melody=short)) == 8
    assert of(melody=short, letters="abc") == of(melody=short, letters="abc")
    assert len({of(melody=short), of(melody=short, letters="abc"), of(letters="abc"), of(letters="ab")}) == 4
    assert of(letters="unknown") == of() == b"" or of() != of(letters="unknown") == b""


# Shingles of notes


@given(NOTES, st.integers(-30, 30))
def test_shingles_of_notes_do_not_move(rows, steps):
    gaps, pitches = np.array(rows).T
    onsets = np.cumsum(gaps) * 12
    content = melody.Melody(sort_notes(np.stack([onsets, np.full_like(onsets, 12), pitches], axis=1)))
    tokenizer = TOKENIZERS["melody"]
    found = tokenizer.shingles(content)
    assert found.dtype == np.uint64 and len(found) <= max(0, len(rows) - 7)
    np.testing.assert_array_equal(tokenizer.shingles(tokenizer.shift(content, steps)), found)


def test_versions_of_a_tune_share_their_shingles():
    notes = tune(3).notes
    slower = melody.Melody(notes * [2, 2, 1])
    later = melody.Melody(notes + np.array([36, 0, 0]))
    doubled = melody.Melody(sort_notes(np.concatenate([notes, notes - [0, 0, 12]])))
    halves = np.concatenate([notes, notes + np.array([TICKS // 4, 0, 0])])  # each note struck twice
    repeated = melody.Melody(np.concatenate([notes, notes + np.array([notes[-1, :2].sum(), 0, 0])]))
    for version in (slower, later, doubled, melody.Melody(sort_notes(halves))):
        assert shingles(version) == shingles(tune(3))
    assert shingles(repeated) > shingles(tune(3))
    changed = notes.copy()
    changed[::16, 2] += 1
    assert len(groups([of(melody=m) for m in (tune(3), repeated, melody.Melody(changed), tune(4))])) == 2


def test_rhythm_counts():
    notes = tune(3).notes.copy()
    notes[:, 0] = np.cumsum(RNG(5).choice([12, 24, 48], len(notes)))
    assert len(shingles(melody.Melody(notes)) & shingles(tune(3))) < 5


# Shingles of words


def test_shingles_of_words():
    tokenizer = TOKENIZERS["text"]
    assert len(tokenizer.shingles("one two three four")) == 0
    a = tokenizer.shingles("The quick brown Fox jumps over")
    np.testing.assert_array_equal(a, tokenizer.shingles("the 'quick' brown fox,\njumps OVER!"))
    assert len(a) == 2
    assert set(a.tolist()) < set(tokenizer.shingles("and the quick brown fox jumps over it").tolist())
    assert len(tokenizer.shingles("\ud800 a b c d e")) == 1


def test_sketches_are_the_same_on_every_machine():
    steps = np.arange(40)
    scale = melody.Melody(np.stack([steps * TICKS, np.full(40, TICKS), 60 + steps**2 % 13], axis=1))
    made = of(melody=scale) + of(text="eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf")
    assert len(made) == 8 * VALUES
    assert hashlib.sha256(made).hexdigest()[:16] == "a766543d8895c5c9"
