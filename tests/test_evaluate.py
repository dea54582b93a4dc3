"""A run is judged by its held-out documents or by a folder; the answers are tables, JSON and a page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from command_line import mmgpt
from toy_corpus import BEATS, LETTERS, toy_recipe, write_corpus
from toy_runs import new_run, refused

from multimodal_gpt.data.prepare import prepare
from multimodal_gpt.evaluation.compare import compare
from multimodal_gpt.evaluation.compressed import compressed
from multimodal_gpt.evaluation.context_gain import context_gain, derange
from multimodal_gpt.evaluation.documents import held_out, read_folder, spread, training
from multimodal_gpt.evaluation.evaluate import RESULT, evaluate, load, questions, save
from multimodal_gpt.evaluation.likelihood import segment_bits
from multimodal_gpt.evaluation.page import best_of, number, page
from multimodal_gpt.evaluation.prediction import prediction
from multimodal_gpt.evaluation.subject import Scope, Subject
from multimodal_gpt.evaluation.tables import LOWER, MODEL, Figure, Row
from multimodal_gpt.generation import session

TOKENIZERS = {"letters": {"plugin": LETTERS}, "beats": {"plugin": BEATS}}
PLUGINS = {"letters": LETTERS, "beats": BEATS}
ORDERS = [["letters", "beats"], ["beats", "letters"]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of documents, and two runs; one has its shards."""
    folder = tmp_path_factory.mktemp("place")
    corpus = write_corpus(folder / "corpus", 24)
    for seed in (1, 2):
        new_run(folder / f"run{seed}", TOKENIZERS, ORDERS, 128, seed=seed, drop=0.2)
    prepare(toy_recipe(corpus, folder / "run1", validation=0.5), progress=False)
    return folder


@pytest.fixture(scope="module")
def subject(place: Path) -> Subject:
    run = session.load(place / "run1", plugins=PLUGINS)
    return Subject(run, held_out(run), training(run))


def test_documents_of_the_shards_are_those_of_the_folder(place, subject):
    pieces, skips = read_folder(subject.run, place / "corpus")
    assert len(pieces) == 24
    assert not skips
    by_name = {piece.source.rpartition("/")[2]: piece for piece in pieces}
    known = [*subject.pieces, *subject.training]
    assert len(known) == 24
    for piece in known:
        again = by_name[piece.source.rpartition("/")[2]]
        assert set(piece.segments) == set(again.segments)
        for name, segment in piece.segments.items():
            np.testing.assert_array_equal(segment.ids, again.segments[name].ids)
            assert segment.units == again.segments[name].units


def test_rare_kinds_of_documents_are_among_the_few(subject):
    few = spread(subject.pieces, 4)
    assert len(few) == 4
    assert {frozenset(piece.segments) for piece in few} == {
        frozenset({"beats"}),
        frozenset({"beats", "letters"}),
    }
    assert spread(subject.pieces, None) == subject.pieces


def test_the_likelihood_is_that_of_the_documents(subject):
    table = prediction(subject)
    rows = {row.name: row for row in table.rows}
    bits = [
        segment_bits(
            subject.run.net, subject.run.vocabulary, {"beats": p.segments["beats"]}, [["beats"]], "beats"
        )
        for p in subject.pieces
    ]
    units = [p.segments["beats"].units for p in subject.pieces]
    assert rows["beats"].figures[MODEL].value == pytest.approx(sum(bits) / sum(units))
    assert {"untrained", "n-gram", "last token", "zlib", "xz", "zstd"} <= set(rows["beats"].figures)
    assert rows["letters, by words"].figures[MODEL].value > 1
    assert rows["beats given letters"].count == sum("letters" in p.segments for p in subject.pieces)


def test_a_net_that_ignores_its_context_gains_nothing(subject, monkeypatch):
    monkeypatch.setattr(
        "multimodal_gpt.evaluation.subject.segment_bits",
        lambda net, vocabulary, segments, order, target: 2.0 * len(segments[target].ids),
    )
    monkeypatch.setattr(
        "multimodal_gpt.evaluation.context_gain.segment_bits",
        lambda net, vocabulary, segments, order, target: 3.0 * len(segments[target].ids),
    )
    fresh = Subject(subject.run, subject.pieces)
    row = {row.name: row for row in context_gain(fresh).rows}["beats given letters"]
    tokens = sum(len(p.segments["beats"].ids) for p in fresh.pieces if "letters" in p.segments)
    hits = sum(p.segments["beats"].units for p in fresh.pieces if "letters" in p.segments)
    assert row.figures[MODEL].value == 0
    assert row.figures["stranger"].value == pytest.approx(-tokens / hits)
    assert row.figures["true - lookalike"].value == pytest.approx(tokens / hits)


def test_a_specialist_that_is_better_is_the_base(subject, place):
    other = session.load(place / "run2", plugins=PLUGINS)
    pieces = [p for p in subject.pieces if "letters" in p.segments]
    helped = Subject(subject.run, subject.pieces, specialists={"letters": other})
    alone, special = subject.bits("letters", (), pieces), helped.specialist_bits("letters", pieces)
    assert special is not None
    assert not np.allclose(alone, special)
    row = {row.name: row for row in context_gain(helped).rows}["letters given beats"]
    true = subject.bits("letters", ("beats",), pieces)
    base = min(alone.sum(), special.sum())
    assert row.figures[MODEL].value == pytest.approx((base - true.sum()) / sum(row.units))
    assert "specialist" in prediction(helped).columns


def test_what_was_saved_is_read_again(place, subject, tmp_path):
    found = evaluate(subject.run, only=["likelihood"], scope=Scope(documents=4))
    written = save(found, tmp_path / "made")
    assert [path.name for path in written] == [RESULT, "evaluation.html"]
    back = load(tmp_path / "made")
    assert page(back) == page(found) == written[1].read_text("utf-8")
    assert back.facts["documents"] == 4


def test_the_page_needs_nothing_else(subject):
    source = page(evaluate(subject.run, only=["likelihood", "gain"], scope=Scope(documents=6)))
    assert "<svg" in source
    assert not re.search(r'(src|href)="?http', source)
    assert "<script" not in source


def test_runs_are_compared_document_by_document(place, subject):
    other = session.load(place / "run2", plugins=PLUGINS)
    data = place / "corpus"
    found = [evaluate(run, data=data, only=["likelihood"]) for run in (subject.run, other)]
    tables = compare(found, ["one", "two"])
    row = next(row for row in tables[0].rows if row.name == "beats")
    assert row.figures["two - one"].value == pytest.approx(
        row.figures["two"].value - row.figures["one"].value
    )
    assert row.figures["two - one"].low < row.figures["two - one"].value
    less = evaluate(other, data=data, only=["likelihood"], scope=Scope(documents=5))
    row = next(row for row in compare([found[0], less], ["one", "two"])[0].rows if row.name == "beats")
    assert set(row.figures) == {"one", "two"}


def test_real_bytes_agree_with_the_likelihood(subject):
    row = next(row for row in compressed(subject).rows if row.name == "beats")
    promised, paid = row.figures["likelihood"].value, row.figures[MODEL].value
    rounding = 16 * row.count / sum(row.units)  # a document closes with whole bytes
    assert promised <= paid <= 1.01 * promised + rounding
    assert row.figures["with header"].value > paid


def test_the_best_figure_is_told_apart():
    figures = {MODEL: Figure(1.0), "other": Figure(2.0), "human": Figure(1.9)}
    assert best_of(Row("a", "u", LOWER, 1, figures)) == MODEL
    assert best_of(Row("a", "u", "human", 1, figures)) == "other"
    assert best_of(Row("a", "u", "", 1, figures)) == ""
    assert [number(v) for v in (0.12345, 85.23, 1e5)] == ["0.123", "85.2", "100,000"]


def test_the_command_prints_and_writes(place, tmp_path, capsys):
    plugins = [word for name, path in PLUGINS.items() for word in ("--plugin", f"{name}={path}")]
    words = ["evaluate", place / "run1", *plugins, "--quick", "--only", "likelihood", "--out", tmp_path / "e"]
    code, out, err = mmgpt(capsys, *words)
    assert code == 0, err
    assert "bits/hit" in out
    assert json.loads((tmp_path / "e" / RESULT).read_text("utf-8"))["documents"] == 12
    code, out, _ = mmgpt(capsys, *words, "--json")
    assert json.loads(out)["tables"][0]["name"] == "likelihood"
    mmgpt(capsys, *words[:1], place / "run2", *words[2:-1], tmp_path / "f", "--data", place / "corpus")
    code, out, err = mmgpt(capsys, "compare", tmp_path / "e", tmp_path / "f")
    assert code == 0, err
    assert "beats" in out


def test_what_cannot_be_judged_is_one_line(place, tmp_path, capsys):
    run = session.load(place / "run2", plugins=PLUGINS)
    assert "--data FOLDER" in refused(evaluate, run)
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(evaluate, run, data=tmp_path / "empty")
    (tmp_path / "a.letters").write_text("xyz")
    assert "no document" in refused(evaluate, run, data=tmp_path / "a.letters")
    assert "gain" in refused(questions, ["gian"])
    assert "mmgpt evaluate" in refused(load, tmp_path)
    (tmp_path / RESULT).write_text("{}")
    assert "damaged" in refused(load, tmp_path)
    code, _, err = mmgpt(capsys, "compare", tmp_path)
    assert code == 2
    assert "RUN RUN" in err


def test_a_derangement_of_two_swaps_them():
    assert derange(2, 0).tolist() == [1, 0]
