"""Neighbours in a table whose rows are put there by hand: roots on a ring, fifths side by side."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import toy_looking
from command_line import mmgpt

from multimodal_gpt.errors import UserError
from multimodal_gpt.generation.session import Run
from multimodal_gpt.looking.embedding_map import draw_map, embedding_map
from multimodal_gpt.looking.neighbours import Neighbours, example, neighbours, open_table, say
from multimodal_gpt.looking.words import Words
from multimodal_gpt.training.checkpoint import save_run

ROOTS = "C C# D Eb E F F# G G# A Bb B".split()
ROOT, NO_CHORD, MAJOR, MINOR = 234, 246, 248, 249
"""Local ids of chords."""


@pytest.fixture(scope="module")
def run() -> Run:
    """Roots on a ring of fifths, four pitches, two letters, `a` where minor is; the rest never met."""
    tokenizers = {
        "letters": {"plugin": str(toy_looking.TOYS / "letters.py")},
        "chords": {},
        "melody": {},
    }
    run = toy_looking.toy_run(tokenizers, [["letters", "chords+melody"]])
    rows = torch.full_like(run.net.embedding.weight, 0.0)
    rows[:, 0] = 6.0  # never met: all the same
    place = {name: r.first for name, r in run.vocabulary.ranges.items()}
    for root in range(12):
        angle = 2 * np.pi * (root * 7 % 12) / 12
        rows[place["chords"] + ROOT + root, :3] = torch.tensor([0.5, np.cos(angle), np.sin(angle)])
    minor = torch.tensor([0.5, 0.0, 0.0, 2.0])
    rows[place["chords"] + MAJOR, :4] = minor * torch.tensor([1, 1, 1, -1])
    rows[place["chords"] + MINOR, :4] = minor
    rows[place["letters"], :4], rows[place["letters"] + 1, :4] = (
        2 * minor,
        minor * torch.tensor([1, 1, 1, -1]),
    )
    for pitch, angle in ((60, 0.0), (62, 0.5), (67, 1.0), (72, 0.1)):
        direction = torch.tensor([0.3, np.cos(angle), np.sin(angle)])
        rows[place["melody"] + 1 + pitch, :] = 0.0
        rows[place["melody"] + 1 + pitch, 5:8] = direction
    run.net.embedding.weight.copy_(rows)
    return run


def words(found: Neighbours) -> list[str]:
    return [near.word for near in found.nearest]


def test_a_chord_is_near_to_its_fifths(run: Run) -> None:
    (found,) = neighbours(run, "D", modality="chords", n=4)
    assert (found.word, found.tokens) == ("D", (ROOT + 2, MAJOR))
    assert set(words(found)[:2]) == {"G", "A"} and set(words(found)[2:]) == {"C", "E"}
    assert found.nearest[0].similarity > found.nearest[2].similarity


def test_of_minor_chords_minor_ones_are_near(run: Run) -> None:
    (found,) = neighbours(run, "Am", n=4)
    assert set(words(found)) == {"Dm", "Em", "Gm", "Bm"}


def test_one_sound_has_one_token_however_it_is_spelled(run: Run) -> None:
    sharp, flat = (neighbours(run, name, modality="chords")[0] for name in ("C#", "Db"))
    assert sharp == flat and sharp.word == "C#"


def test_pitches_are_found_by_name(run: Run) -> None:
    (found,) = neighbours(run, "C4", n=3)
    assert (found.modality, found.tokens) == ("melody", (61,))
    assert words(found)[0] == "C5"


def test_neighbours_of_other_modalities_are_told_in_words(run: Run) -> None:
    (found,) = neighbours(run, "a", modality="letters", n=1)
    assert [(near.word, near.modality) for near in found.nearest] == [("Cm [2/2]", "chords")]
    assert found.nearest[0].similarity == pytest.approx(1, abs=0.1)
    (own,) = neighbours(run, "a", modality="letters", among="letters")
    assert words(own) == ["b"]


def test_what_training_never_showed_is_left_out(run: Run) -> None:
    table = open_table(run)
    assert [len(table.ids(name)) for name in run.vocabulary.names] == [2, 14, 4]
    found = neighbours(run, "D", modality="chords", n=1000)[0]
    assert len(found.nearest) == 12 * 2 - 1 + 2 + 4
    assert found.unseen == run.vocabulary.size - 16 - 3 - 20
    assert max(near.similarity for near in found.nearest) < 0.999


def test_every_meaning_is_told(run: Run) -> None:
    found = neighbours(run, "D", n=1)
    assert [(f.modality, f.word) for f in found] == [("chords", "D"), ("melody", "D4")]


@pytest.mark.parametrize(
    ("token", "modality", "message"),
    [
        ("C9", None, "chords, melody: 'C9' came too rarely in training, or never"),
        ("D#4", "melody", "melody: 'D#4' came too rarely in training, or never"),
        ("c", "letters", "letters: 'c' came too rarely"),
        ("A", "letters", "'A' is no token of letters (did you mean 'a'?)"),
        ("H7", None, "'H7' is no token of letters, chords, melody"),
        ("", None, "'' is no token of letters, chords, melody"),
        ("C4 D4", None, "'C4 D4' is no token of letters, chords, melody"),
        ("C", "chrods", "did you mean 'chords'?"),
    ],
)
def test_what_is_no_token(run: Run, token: str, modality: str | None, message: str) -> None:
    with pytest.raises(UserError) as error:
        neighbours(run, token, modality=modality)
    assert message in str(error.value)


def test_an_id_that_says_nothing_alone_is_shown_in_a_word(run: Run) -> None:
    chords = Words(run.vocabulary.tokenizer("chords"))
    assert say(chords, ROOT + 2) == "D [1/2]"
    assert say(chords, MINOR) == "Cm [2/2]"
    assert say(chords, NO_CHORD) == "N.C."


def test_examples_are_legal_and_hold_the_token(run: Run) -> None:
    for name in run.vocabulary.names:
        grammar = run.vocabulary.tokenizer(name).grammar()
        for token in range(0, grammar.size, 37):
            ids, place = example(grammar, token)
            assert ids[place] == token and grammar.accepts(ids)


def test_the_map_of_roots_is_the_ring(run: Run) -> None:
    found = embedding_map(run, "D", "chords")
    assert sorted(found.words) == sorted(ROOTS)
    assert sum(found.explained) == pytest.approx(1)
    joined = {frozenset(found.words[i] for i in pair) for pair in found.links.tolist()}
    fifths = {frozenset((ROOTS[root], ROOTS[(root + 7) % 12])) for root in range(12)}
    assert joined == fifths
    np.testing.assert_allclose(np.linalg.norm(found.places, axis=1), found.places.max(), rtol=0.05)
    with pytest.raises(UserError, match="only 2 tokens like 'a'"):
        embedding_map(run, "a", "letters")


def test_the_command(run: Run, tmp_path, monkeypatch, capsys) -> None:
    save_run(tmp_path / "run", run.net, run.vocabulary, run.recipe, {"step": 0, "tokens": 0})
    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> tuple[int, str, str]:
        return mmgpt(capsys, "neighbours", *words)

    code, out, err = command("run", "D", "--modality", "chords", "-n", "2", "--map", "roots.svg")
    assert code == 0, err
    picture = (tmp_path / "roots.svg").read_bytes()
    assert picture == draw_map(embedding_map(run, "D", "chords"), "svg")
    assert out.splitlines()[0] == "near D of chords" and "roots.svg: a map of tokens of chords" in out
    code, out, err = command("run", "C4", "--json")
    assert json.loads(out)["meanings"][0]["nearest"][0]["word"] == "C5"
    assert command("run", "D", "--map", "roots.svg")[2].startswith(
        "mmgpt: roots.svg: the file is there already"
    )
    assert (
        command("run", "D", "--map", "x.gif")[2]
        == "mmgpt: x.gif: a picture can't be written as '.gif' (write .png or .svg)\n"
    )
    assert (
        command("nowhere", "D")[2]
        == "mmgpt: nowhere: there is no such run folder (train one first: mmgpt demo)\n"
    )
