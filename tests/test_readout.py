"""Facts are read out of phrases, phrases are scored as the whole stream is, floors are counted by hand."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from toy_subject import TEMPLATES, TUNES, toy_run, toy_subject, wordless_subject

from multimodal_gpt.evaluation import music
from multimodal_gpt.evaluation.making import prompt_of
from multimodal_gpt.evaluation.readout import FINDER, MAJORITY, STRANGER, phrase_scores, readout
from multimodal_gpt.evaluation.tables import MODEL
from multimodal_gpt.evaluation.wording import Wording, bleu, most_common
from multimodal_gpt.stream.arrangement import Layout, to_stream
from multimodal_gpt.stream.vocabulary import END

FOLK = Wording(
    (
        "a {type}[ in {key}]",
        "a tune in {meter}[, {bars} bars][, in {key}]",
        "{title}[, a {type}][, in {key}]",
        "{given}",
    ),
    ("jig", "slip jig", "reel"),
)


@pytest.fixture(scope="module")
def subject():
    return toy_subject()


@pytest.fixture(scope="module")
def table(subject):
    return readout(subject)


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        ("a slip jig in Eb major", {"type": "slip jig", "key": "Eb major"}),
        ("a reel", {"type": "reel"}),
        ("a tune in 6/8, 32 bars, in F# minor", {"meter": "6/8", "bars": "32", "key": "F# minor"}),
        ("a tune in 6/8, in F# minor", {"meter": "6/8", "key": "F# minor"}),
        ("Old Man of Mow, a jig, in G major", {"type": "jig", "key": "G major"}),
        ("The Trouper, in Gb major", {"key": "F# major"}),
        ("Fradley Reel", {}),
        ("a polka in D major, with (brackets)", {}),
        ("a polka in H major", {}),
    ],
)
def test_facts_are_read_out_of_words(words, facts):
    assert FOLK.facts(words) == facts


def test_without_known_types_no_words_are_one():
    found = Wording(("a {type}[ in {key}]", "a tune in {meter}[, {bars} bars]"), ())
    assert found.facts("a tune in 4/4, 33 bars") == {"meter": "4/4", "bars": "33"}
    assert found.facts("a tune") == {}


def test_a_field_that_comes_twice_says_the_same():
    twice = Wording(("{key}, yes {key}",), ())
    assert twice.facts("C major, yes C major") == {"key": "C major"}
    assert twice.facts("C major, yes D major") == {}


def test_braces_and_brackets_are_characters():
    assert Wording(("a {{{type}}}[[{key}]]",), ("jig",)).facts("a {jig}[C major]") == {
        "type": "jig",
        "key": "C major",
    }


@pytest.mark.parametrize(
    ("field", "words", "others"),
    [
        ("key", "a {type} in {key}", ("type",)),
        ("meter", "a tune in {meter}", ()),
        ("type", "a {type}", ()),
        ("bars", "a tune in {meter}, {bars} bars", ("meter",)),
    ],
)
def test_the_shortest_phrase_that_says_a_field(field, words, others):
    found = FOLK.phrasing(field)
    assert (found.words, found.others) == (words, others)
    assert Wording(("{title}, in {key}",), ()).phrasing("key") is None
    assert FOLK.phrasing("tempo") is None


def test_a_phrase_of_a_value():
    assert FOLK.phrasing("bars").of("16", {"meter": "3/4", "bars": "8"}) == "a tune in 3/4, 16 bars"


def test_the_commonest_value():
    assert most_common(["b", "a", "b", "a", "c"]) == "a" and most_common([]) is None


def test_bleu_by_hand():
    pytest.importorskip("sacrebleu")
    assert bleu(["a jig in D major"], [["a reel", "a jig in D major"]]) == pytest.approx(100)
    # Of 5 words, 4 pairs, 3 triples and 2 quadruples there are 4, 3, 2 and 1 in the reference, as long.
    by_hand = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert bleu(["a jig in D minor"], [["a jig in D major"]]) == pytest.approx(by_hand)
    assert bleu(["a jig in D minor", "x"], [["a jig in D major"], ["x"]]) > by_hand


def test_scores_are_those_of_the_whole_stream(subject):
    """Phrase by phrase, without a cache: the stream as training lays it out."""
    run, piece = subject.run, subject.pieces[1]
    given = {name: piece.segments[name] for name in ("tune", "harmony")}
    prompt = prompt_of(run, "words", given)
    phrases = ["a jig in D major", "a reel", "x"]
    found = phrase_scores(run, "words", prompt, [run.vocabulary.encode("words", p).ids for p in phrases])
    place = run.vocabulary.range("words")
    allowed = torch.tensor([END, *range(place.first, place.stop)])
    for phrase, score in zip(phrases, found, strict=True):
        words = run.vocabulary.encode("words", phrase)
        stream = to_stream(
            run.vocabulary, {**given, "words": words}, Layout((("tune", "harmony"), ("words",)))
        )
        begin = int(np.flatnonzero(stream.ids == place.tag)[0])
        assert stream.ids[: begin + 1].tolist() == prompt.ids.tolist()
        ids = torch.from_numpy(stream.ids.astype(np.int64))
        logits = run.net.logits(run.net(ids[None], clock=torch.from_numpy(stream.clock)[None]))[0].double()
        by_hand = 0.0
        for at in range(begin + 1, begin + 2 + len(words.ids)):
            by_hand += float(logits[at - 1, ids[at]] - logits[at - 1, allowed].logsumexp(0))
        assert score == pytest.approx(by_hand, abs=1e-4)


def test_every_way_has_its_rows(table):
    names = [row.name for row in table.rows]
    assert "key, chosen" in names and "type, chosen" in names
    assert {"key, tags", "meter, tags", "bars, tags"} & set(names)
    assert "BLEU of written words" in names or any("sacrebleu" in note for note in table.notes)


def test_floors_are_counted_by_hand(table):
    (row,) = [row for row in table.rows if row.name == "key, chosen"]
    true = [facts["key"] for _, _, facts in TUNES]
    assert row.figures[MAJORITY].value == np.mean(
        [key == "A minor" for key in true]
    )  # of equal ones the first
    melody = toy_run().vocabulary.tokenizer("tune")
    heard = [music.key_in_words(music.heard_key(melody.parse(tune).notes)) for tune, _, _ in TUNES]
    assert row.sums[FINDER] == tuple(float(a == b) for a, b in zip(heard, true, strict=True))
    assert set(row.figures) == {MODEL, MAJORITY, FINDER, STRANGER} and row.count == 4


def test_the_likeliest_phrase_is_chosen(table, subject):
    (row,) = [row for row in table.rows if row.name == "type, chosen"]
    right = []
    for piece in subject.pieces:
        given = {name: piece.segments[name] for name in ("tune", "harmony")}
        prompt = prompt_of(subject.run, "words", given)
        said = [subject.run.vocabulary.encode("words", f"a {kind}").ids for kind in ("jig", "reel")]
        best = ("jig", "reel")[int(phrase_scores(subject.run, "words", prompt, said).argmax())]
        right.append(float(best == piece.metadata["type"]))
    assert list(row.sums[MODEL]) == right and "a {type}" in TEMPLATES


def test_without_sacrebleu_a_note_says_what_to_install(monkeypatch, subject):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    found = readout(subject)
    assert any("multimodal_gpt[evaluate]" in note for note in found.notes)
    assert not any(row.name.startswith("BLEU") for row in found.rows)


def test_a_run_that_was_not_shown_words_after_music_says_so():
    run = toy_run(orders=[["words", "tags", "tune+harmony"]])
    found = readout(toy_subject(run))
    assert not found.rows and len(found.notes) == 2
    assert not readout(wordless_subject()).rows


def test_music_longer_than_the_context_is_cut():
    found = readout(toy_subject(toy_run(context=110)))
    assert any("longer than the context" in note for note in found.notes)
    assert any(row.name == "type, chosen" for row in found.rows)
