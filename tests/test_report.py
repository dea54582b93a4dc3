"""What preparing came to: sums in constant memory, on screen, in report.json and as a page."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_corpus import BEATS, LETTERS, toy_recipe, write_corpus

from multimodal_gpt.data.batches import StoredDocument
from multimodal_gpt.data.prepare import prepare
from multimodal_gpt.data.reading import PARTLY, Skip
from multimodal_gpt.data.reporting import page
from multimodal_gpt.data.reporting.examples import CHUNKS, choose, excerpt, read_lines
from multimodal_gpt.data.reporting.histogram import histogram
from multimodal_gpt.data.reporting.page import track_option, write_page
from multimodal_gpt.data.reporting.report import Report, load_report
from multimodal_gpt.data.reporting.tally import MOST_VALUES, OTHERS, Tally, cut, duplicates
from multimodal_gpt.data.shards import open_shards, write_manifest, write_shards
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.vocabulary import Vocabulary

DRAWN = f"""
from multimodal_gpt.stream.plugins import load_module
Beats = load_module({BEATS!r}).Beats

class Drawn(Beats):
    def draw(self, content, axes):
        if len(content) == 13:
            raise ZeroDivisionError("no ink")
        hits = [4 * bar + place for bar, places in enumerate(content) for place in places]
        axes.plot(hits, [1] * len(hits), "o")

def build(places=4, track=""):
    return Drawn(places)
"""
HOSTILE = "d/<script>alert('x')</script>&\""
WORDS = "a\x00b\udcff</style><img src=http://example.org/x.png onerror=alert(1)>"


def line(source="d/a", split="train", tokens=None, **changes):
    known = {"source": source, "group": source, "split": split, "title": "", "weight": 1.0}
    return {**known, "tracks": {}, "errors": {}, "tokens": {"a": 1} if tokens is None else tokens, **changes}


def report(**changes):
    none = {"skips": (), "partly": (), "ignored": {}, "tracks": {}, "templates": {}, "splits": {}}
    return Report(**{"folder": Path("run/shards"), "found": 0, "kept": 0, "unused": 0, **none, **changes})


@pytest.fixture
def vocabulary(tmp_path):
    (tmp_path / "drawn.py").write_text(DRAWN)
    return Vocabulary([Modality("letters", LETTERS), Modality("beats", str(tmp_path / "drawn.py"))])


def make_shards(folder, vocabulary, contents, metadata=None):
    """Shards and lines of documents, name -> bars; the last is for validation, all have a moved copy."""
    folder.mkdir()
    stored, tally = [], Tally()
    with (folder / "documents.jsonl").open("w", encoding="utf-8") as file:
        for name, bars in contents.items():
            parts = (vocabulary.encode("letters", "abc"), vocabulary.encode("beats", bars))
            facts = {"title": WORDS, **(metadata or {})}
            moved = (vocabulary.encode("beats", ((3,),)),)
            stored.append(StoredDocument(moved, facts, name, name, 1))
            stored.append(StoredDocument(parts, facts, name, name))
            split = "valid" if len(stored) == 2 * len(contents) else "train"
            sizes = {p.modality: len(p.ids) for p in parts}
            why = {"beats_track": "track 1 'x'", "letters_track": WORDS}
            known = line(
                name, split, sizes, title=WORDS, tracks=why, errors={"beats_error": len(tally.plain())}
            )
            file.write(json.dumps(known) + "\n")
            tally.add(known)
    splits = {"train": stored[:-2], "valid": stored[-2:]}
    files = {name: {"files": write_shards(folder, name, documents)} for name, documents in splits.items()}
    write_manifest(folder, {"modalities": list(vocabulary.names), "splits": files})
    counts = {"documents": len(contents), "rows": 2 * len(contents), "modalities": {}}
    return report(found=len(contents), kept=len(contents), splits={"train": counts}, **tally.plain())


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text of its scripts and table cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.cells, self.inside = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts.append(data)
        if self.inside == "td":
            self.cells[-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=60))
def test_a_histogram_counts_every_document_in_its_bin(sizes):
    tally = Tally()
    for size in sizes:
        tally.add(line(tokens={"a": size}))
    shape = tally.plain()["lengths"]["a"]
    assert shape["counts"] == np.histogram(sizes, shape["edges"])[0].tolist()
    assert shape["edges"] == sorted(set(shape["edges"])) and len(shape["counts"]) <= 25
    assert shape["edges"][0] <= min(sizes) and shape["edges"][-1] > shape["longest"] == max(sizes)
    assert shape["median"] == cut(sorted(sizes)[-(-len(sizes) // 2) - 1])


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60))
def test_errors_are_summed_up(values):
    tally = Tally()
    for value in [*values, float("nan"), float("inf")]:
        tally.add(line(errors={"grid_error": value}))
    found = tally.plain()["errors"]["grid_error"]
    assert found["documents"] == len(values) and found["max"] == max(values)
    assert found["mean"] == pytest.approx(np.mean(values), abs=1e-4)
    exact = sorted(values)[-(-95 * len(values) // 100) - 1]
    assert found["p95"] == pytest.approx(exact, rel=0.01)
    assert json.loads(json.dumps(found)) == found


def test_a_tally_does_not_grow():
    tally = Tally()
    for number in range(MOST_VALUES + 200):
        size, offset = 1000 + number * 37, 1000 + number / 7
        tally.add(line(tracks={"a_track": f"track {number}"}, tokens={"a": size}, errors={"e_error": offset}))
    tracks = tally.plain()["tracks"]["a_track"]
    assert len(tracks) == MOST_VALUES + 1 and tracks[OTHERS] == 200
    assert len(tally._tokens["a"].counts) < 600 and len(tally._errors["e_error"].counts) < 30


def test_documents_left_out_have_no_length():
    tally = Tally()
    tally.add(line(tokens={"a": 5}))
    tally.add(line(split="unused", tokens={"a": 500}, tracks={"a_track": "the only one"}))
    assert tally.plain()["lengths"]["a"]["longest"] == 5
    assert tally.plain()["tracks"] == {"a_track": {"the only one": 1}}
    assert Tally().plain() == {"tracks": {}, "errors": {}, "lengths": {}}


def test_versions_of_a_piece_are_counted():
    assert duplicates(["a", "b", "a", "c", "c", "c"]) == {"groups": 2, "documents": 5}
    assert duplicates([]) == {"groups": 0, "documents": 0}


def full_report(folder):
    counts = {"documents": 1200, "segments": 1300, "tokens": 45678, "units": 9000, "unit": "hit"}
    return report(
        folder=folder,
        found=13,
        kept=1,
        skips=tuple(Skip(f"d/{i}", "unreadable", "broken") for i in range(12)),
        partly=(Skip("d/x", PARTLY, "no beats"),),
        ignored={".wav": 2},
        tracks={"beats_track": {"track 1": 3, "track 2": 9}},
        templates={"{nope}": 0},
        splits={"train": {"documents": 1200, "rows": 2400, "modalities": {"beats": counts}}},
        errors={"grid_error": {"mean": 0.4, "p95": 2.1, "max": 13.3, "documents": 388}},
        duplicates={"groups": 2, "documents": 5},
        cached=1000,
        lengths={"beats": {"edges": [1, 2], "counts": [3], "median": 1, "longest": 1}},
        weights={"d": 0.5},
    )


def test_a_report_on_screen(tmp_path, capsys):
    made = full_report(tmp_path)
    (tmp_path / "report.html").touch()
    made.print()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [str(tmp_path), "13 found, 1 kept, 12 skipped: 12 unreadable"]
    assert f"  ... all 12 are listed in {tmp_path / 'report.json'}" in lines
    assert "beats_track: 9 x track 2, 3 x track 1" in lines
    assert "grid_error: mean 0.4, 95 % at most 2.1, largest 13.3, in 388 documents" in lines
    assert "5 documents are versions of 2 pieces, never split up" in lines
    assert "in an epoch: d x 0.5" in lines
    assert "1,000 had been read by an earlier run" in lines
    assert lines[-4].split() == ["split", "modality", "documents", "copies", "tokens", "units"]
    assert lines[-3].split() == ["train", "all", "1,200", "2,400", "45,678"]
    assert lines[-2].split() == ["beats", "1,200", "1,300", "45,678", "9,000", "hits"]
    assert lines[-1] == f"all documents, lengths and pictures: {tmp_path / 'report.html'}"


def test_a_report_is_saved_and_read(tmp_path):
    made = full_report(tmp_path)
    (tmp_path / "report.json").write_text(json.dumps(made.plain()))
    assert load_report(tmp_path) == replace(made, fresh=False)
    saved = made.plain()
    for later in ("errors", "duplicates", "cached", "lengths", "weights"):
        del saved[later]
    (tmp_path / "report.json").write_text(json.dumps(saved))
    assert load_report(tmp_path).cached == 0


BARS = (((0,), (1, 2), (3,)), ((0, 1),), ((2,), (3,)), ((1,),), ((0,), (2,)))


def test_the_page_needs_nothing_else(tmp_path, vocabulary):
    names = [HOSTILE, *(f"d/{i}" for i in range(3)), "e/1"]
    made = make_shards(tmp_path / "s", vocabulary, dict(zip(names, BARS, strict=True)))
    hostile = {"skips": (Skip(HOSTILE, WORDS, WORDS),), "partly": (Skip(HOSTILE, PARTLY, WORDS),)}
    made = replace(made, templates={WORDS: 0}, ignored={WORDS: 1}, weights={WORDS: 2.0}, **hostile)
    text = write_page(tmp_path / "s", made, vocabulary).read_text("utf-8")
    elements = Elements(text)
    assert len(elements.scripts) == 1 and "filter" in elements.scripts[0]
    assert {tag for tag, _ in elements.tags} & {"link", "iframe", "a", "object", "base"} == set()
    attributes = [pair for _, found in elements.tags for pair in found.items()]
    assert not [name for name, _ in attributes if name.startswith("on")]
    loaded = [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
    assert len(loaded) == 3 and all(value.startswith("data:image/png;base64,") for value in loaded)
    assert not re.search(r"url\(|@import", text)
    assert elements.cells.count(HOSTILE) == 4, "skipped, kept in part, name and group of its own row"
    shown = WORDS.replace("\0", "\ufffd").replace("\udcff", "?")
    assert elements.cells.count(shown) == 6 + 2 * 5, "reasons, suffix, template, track; in rows"


def test_only_the_script_of_the_page_may_run(tmp_path, vocabulary):
    made = make_shards(tmp_path / "s", vocabulary, {"d/a": BARS[0], "d/b": BARS[1]})
    elements = Elements(write_page(tmp_path / "s", made, vocabulary).read_text("utf-8"))
    rules = next(
        m["content"] for m in elements.all("meta") if m.get("http-equiv") == "Content-Security-Policy"
    )
    digest = base64.b64encode(hashlib.sha256("".join(elements.scripts).encode()).digest()).decode()
    assert rules.startswith("default-src 'none';") and f"script-src 'sha256-{digest}'" in rules


def test_the_same_report_gives_the_same_page(tmp_path, vocabulary):
    made = make_shards(tmp_path / "s", vocabulary, dict(zip("abcde", BARS, strict=True)))
    pages = [write_page(tmp_path / "s", made, vocabulary).read_bytes() for _ in range(2)]
    assert pages[0] == pages[1]
    pictures = {i["src"] for i in Elements(pages[0].decode()).all("img")}
    assert len(pictures) == 3, "three different documents"
    assert all(base64.b64decode(p.partition(",")[2]).startswith(b"\x89PNG") for p in pictures)


def test_the_page_lists_so_many_documents(tmp_path, vocabulary, monkeypatch):
    monkeypatch.setattr(page, "ROWS", 2)
    monkeypatch.setattr(page, "SKIPS", 3)
    made = make_shards(tmp_path / "s", vocabulary, dict(zip("abcde", BARS, strict=True)))
    made = replace(made, skips=tuple(Skip(f"d/{i}", "unreadable", f"reason {i}") for i in range(5)))
    text = write_page(tmp_path / "s", made, vocabulary).read_text("utf-8")
    assert "The first 2; 3 more are in documents.jsonl." in text and "2 of 2 rows" in text
    assert "The first 3; all are in report.json." in text and "5 unreadable" in text
    assert "reason 2" in text and "reason 3" not in text


def test_a_picture_that_fails_costs_only_itself(tmp_path, vocabulary):
    made = make_shards(tmp_path / "s", vocabulary, {"a": BARS[0], "b": ((0,),) * 13, "c": BARS[1]})
    text = write_page(tmp_path / "s", made, vocabulary).read_text("utf-8")
    assert "Not drawn: ZeroDivisionError: no ink." in text
    assert len(Elements(text).all("img")) == 2
    plain = Vocabulary([Modality("letters", LETTERS), Modality("beats", BEATS)])
    text = write_page(tmp_path / "s", made, plain).read_text("utf-8")
    assert text.count("Not drawn: none of its modalities can be drawn.") == 3


def test_captions_are_shown_with_an_example(tmp_path, vocabulary):
    made = make_shards(tmp_path / "s", vocabulary, dict(zip("ab", BARS, strict=False)), {"key": "D major"})
    made = replace(made, templates={"a tune[ in {key}]": 2, "a {nope}": 0})
    text = write_page(tmp_path / "s", made, vocabulary).read_text("utf-8")
    cells = Elements(text).cells
    place = cells.index("a tune[ in {key}]")
    assert cells[place : place + 6] == ["a tune[ in {key}]", "2", "a tune in D major", "a {nope}", "0", ""]


def test_how_to_take_another_track(vocabulary):
    assert track_option("beats_track", vocabulary) == "tokenizers.beats.track=NAME"
    assert track_option("drawn_track", vocabulary) == "tokenizers.beats.track=NAME"
    assert track_option("letters_track", vocabulary) == track_option("nobody_track", vocabulary) == ""


def test_examples_have_most_to_draw_and_come_from_all_sources():
    both, one = {"beats": 9, "letters": 2}, {"letters": 2}
    lines = [line(f"d/{i}", tokens=one) for i in range(4)] + [
        line(f"d/{i}", tokens=both) for i in range(4, 8)
    ]
    chosen = choose(lines, ["beats"])
    assert len(chosen) == 3 and set(chosen) < {f"d/{i}" for i in range(4, 8)}
    assert chosen == choose(lines[::-1], ["beats"])
    others = [line("e/0", tokens=one), line("f/0", "unused", both), line("g/0", tokens={})]
    assert set(choose(lines + others, ["beats"])) == {*chosen[:2], "e/0"}
    assert choose([line("x", tokens=both)], []) == ["x"]


def test_an_excerpt_begins_where_nothing_is_silent(vocabulary):
    def bars(*hits):
        rows = [()] * (max(hits) + 1)
        for hit in hits:
            rows[hit] = (1,)
        return vocabulary.encode("beats", tuple(rows))

    silent, rest = CHUNKS, (1,)
    assert excerpt([bars(2)], vocabulary) == ({"beats": ((), (), rest)}, 0)
    found, before = excerpt([bars(silent + 1, 3 * CHUNKS)], vocabulary)
    assert before == CHUNKS and found["beats"][:3] == ((), rest, ()) and len(found["beats"]) == CHUNKS
    assert excerpt([vocabulary.encode("letters", "abc")], vocabulary) == ({}, 0)


def test_a_histogram_is_drawn_to_scale():
    svg = ElementTree.fromstring(histogram([1, 2, 4, 9], [2, 0, 8], "tokens"))
    tips = [g.find("title").text for g in svg.findall("g")]
    assert tips == ["1 to 1 tokens: 2", "2 to 3 tokens: 0", "4 to 8 tokens: 8"]
    tall = [float(re.search(r"v([\d.]+)", g.findall("path")[1].get("d"))[1]) for g in svg.findall("g")]
    assert tall[1] == 0 and tall[2] == 4 * tall[0] > 0
    assert [t.text for t in svg.findall("text")] == ["4", "8", "1", "2", "4", "9"]
    assert ElementTree.fromstring(histogram([0, 1], [0], "tokens")) is not None


def test_preparing_writes_the_page(tmp_path):
    (tmp_path / "drawn.py").write_text(DRAWN)
    tokenizers = {"letters": {"plugin": LETTERS}, "beats": {"plugin": str(tmp_path / "drawn.py")}}
    recipe = toy_recipe(write_corpus(tmp_path / "d", 9), tmp_path / "run", tokenizers=tokenizers, shifts=[1])
    made = prepare(recipe, progress=False)
    lines = list(read_lines(made.folder / "documents.jsonl"))
    assert sorted(entry["source"] for entry in lines) == [f"d/s{i:03d}" for i in range(9)]
    elements = Elements((made.folder / "report.html").read_text("utf-8"))
    assert len(elements.all("img")) == 3 and len(elements.all("svg")) == 2
    assert {entry["source"] for entry in lines} <= set(elements.cells)
    lengths = [len(s.ids) for split in ("train", "valid") for s in beats(made.folder, split)]
    assert sum(made.lengths["beats"]["counts"]) == 9
    assert made.lengths["beats"]["longest"] == max(lengths)


def beats(folder, split):
    shards = open_shards(folder, split)
    found = [shards.document(i) for i in range(len(shards))]
    return [s for d in found if d.shift == 0 for s in d.segments if s.modality == "beats"]
