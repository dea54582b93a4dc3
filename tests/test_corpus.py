"""Files -> documents: what joins, what is skipped and why, captions, the split."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_corpus import document, vocabulary

from multimodal_gpt.data.captions import Captions, caption, check_templates, phrases
from multimodal_gpt.data.copies import Brief
from multimodal_gpt.data.corpus import (
    LINES_PER_GROUP,
    NOTHING,
    PARTLY,
    UNREADABLE,
    Skip,
    described,
    folder_source,
    list_files,
    read_group,
    split_lines,
)
from multimodal_gpt.data.split import CROWD, bare_title, split_documents
from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.document import Document
from multimodal_gpt.stream.tokenizer import Item

TOKENIZERS = vocabulary().tokenizers
SUFFIXES = [s for t in TOKENIZERS.values() for s in t.suffixes]


def write(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def listing(*folders, held_out=()):
    sources = [folder_source(f, held_out=f in held_out) for f in folders]
    return list_files(sources, SUFFIXES)


def read(folder, tokenizers=TOKENIZERS):
    groups = split_lines(listing(folder).groups)
    results = [r for g in groups for r in read_group(g, tokenizers)]
    documents = {
        r.source: {s.modality: s.content for s in r.segments} for r in results if isinstance(r, Document)
    }
    skips = {r.source: (r.kind, r.reason) for r in results if isinstance(r, Skip)}
    return documents, skips


def test_files_of_one_stem_are_one_document(tmp_path):
    folder = write(tmp_path / "d", a_letters="abc", a_beats="x...", sub__a_LETTERS="de")
    documents, skips = read(folder)
    assert documents == {"d/a": {"letters": "abc", "beats": ((0,),)}, "d/sub/a": {"letters": "de"}}
    assert skips == {}


def test_other_files_are_counted_hidden_ones_are_not(tmp_path):
    folder = write(tmp_path / "d", a_letters="abc", b_wav="", sub__c_wav="", e_PDF="")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "a.letters").write_text("abc")
    (folder / ".b.letters").write_text("abc")
    found = listing(folder)
    assert [g.name for g in found.groups] == ["d/a"]
    assert found.ignored == {".pdf": 1, ".wav": 2}


def test_links_are_followed_once(tmp_path):
    folder = write(tmp_path / "d", a_letters="abc")
    (folder / "loop").symlink_to(folder)
    other = write(tmp_path / "other", b_letters="ab")
    (folder / "far").symlink_to(other)
    (folder / "broken.letters").symlink_to(tmp_path / "nowhere")
    found = listing(folder)
    assert [g.name for g in found.groups] == ["d/a", "d/far/b"]
    assert found.ignored == {".letters": 1}


def test_a_file_in_two_folders_is_held_out_where_one_says_so(tmp_path):
    folder = write(tmp_path / "d", a_letters="abc", valid__b_letters="ab")
    found = listing(folder, folder / "valid", held_out=[folder / "valid"])
    assert [(g.name, g.held_out) for g in found.groups] == [("d/a", False), ("valid/b", True)]


def test_folders_of_one_name_do_not_mix(tmp_path):
    first, second = (
        write(tmp_path / "x" / "d", a_letters="a"),
        write(tmp_path / "y" / "d", a_beats="x..."),
    )
    assert [g.name for g in listing(first, second).groups] == ["d/a", "d~2/a"]


def test_single_files_join_by_stem_and_do_not_mix_with_those_of_other_folders(tmp_path):
    folder, other = tmp_path / "d", tmp_path / "e" / "d"
    write(folder, a_letters="abc", a_beats="x...", b_letters="a")
    write(other, a_letters="de")
    found = listing(
        folder / "a.letters",
        other / "a.letters",
        folder / "a.beats",
        held_out=[other / "a.letters"],
    )
    assert [(g.name, len(g.paths), g.held_out) for g in found.groups] == [
        ("d/a", 2, False),
        ("d~2/a", 1, True),
    ]


def test_bytes_that_are_no_name_do_not_stop_anything(tmp_path):
    folder = write(tmp_path / "d", a_letters="abc")
    (Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.letters"))).write_text("de")
    documents, _ = read(folder)
    assert documents == {"d/a": {"letters": "abc"}, "d/caf\\xe9": {"letters": "de"}}
    assert all(name.encode("utf-8") for name in documents)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "there is no folder or file"),
        ({}, "is empty"),
        (
            {"a_wav": "", "b_wav": ""},
            "no file in 'd' can be used; found 2 .wav (files that are read: .beats .jsonl .letters)",
        ),
    ],
)
def test_folders_without_anything_usable(tmp_path, files, message):
    folder = tmp_path / "d"
    if files is not None:
        folder.mkdir()
        write(folder, **files)
    with pytest.raises(UserError) as error:
        listing(folder)
    assert message in str(error.value)


def test_skips_say_why(tmp_path):
    folder = write(tmp_path / "d", none_beats="....", bad_beats="xx", part_beats="xx", part_letters="abc")
    documents, skips = read(folder)
    assert documents == {"d/part": {"letters": "abc"}}
    assert skips == {
        "d/none": (NOTHING, "nothing of beats in it"),
        "d/bad": (UNREADABLE, "'xx' is not bars such as 'x...'"),
        "d/part": (PARTLY, "'xx' is not bars such as 'x...'"),
    }


class Book:
    """Reads each line of a file as a piece of its own; "?" can't be read."""

    suffixes = (".book",)

    def __init__(self, modality: str) -> None:
        self.modality = modality

    def read(self, path):
        for key, line in enumerate(path.read_text().split("\n"), start=1):
            content = UserError("is a riddle", path) if line == "?" else f"{self.modality}:{line}"
            yield Item(str(key), content, {"title": line, "by": self.modality})
            if line == "!":
                raise ZeroDivisionError("oops")


def read_book(folder, text, **more):
    folder = write(folder, b_book=text, **more)
    source = folder_source(folder)
    tokenizers = {**TOKENIZERS, "one": Book("one"), "two": Book("two")}
    (group,) = list_files([source], [*SUFFIXES, ".book"]).groups
    return read_group(group, tokenizers)


def test_pieces_of_a_book_are_joined_by_key(tmp_path):
    first, riddle, last = read_book(tmp_path / "d", "A\n?\nB")
    assert (first.source, last.source) == ("d/b#1", "d/b#3")
    assert [s.content for s in last.segments] == ["one:B", "two:B"]
    assert first.metadata == {"title": "A", "by": "one"}
    assert riddle == Skip("d/b#2", UNREADABLE, "is a riddle")


def test_a_lone_piece_of_a_book_takes_the_words_beside_it(tmp_path):
    (piece,) = read_book(tmp_path / "d", "A", b_letters="abc")
    assert piece.source == "d/b#1"
    assert [s.content for s in piece.segments] == ["abc", "one:A", "two:A"]


def test_words_beside_a_book_of_many_are_their_own_document(tmp_path):
    results = read_book(tmp_path / "d", "A\nB", b_letters="abc")
    assert sorted(r.source for r in results) == ["d/b", "d/b#1", "d/b#2"]


def test_a_mistake_in_a_plugin_costs_what_it_reads(tmp_path):
    (piece, problem) = read_book(tmp_path / "d", "!")
    assert [s.content for s in piece.segments] == ["one:!", "two:!"]
    assert problem == Skip("d/b#1", PARTLY, "the tokenizer fails: ZeroDivisionError: oops")


def test_lines_of_json(tmp_path):
    lines = [
        {"letters": "abc", "beats": "x...", "title": "T", "list": [1, 2], "none": None},
        {"letters": ["ab", "cd"]},
        {"beats": "far/b.beats"},
    ]
    bad = ["", "{nope", "[1]", '{"title": "x"}', '{"letters": 5}', '{"letters": "xyz"}']
    folder = write(tmp_path / "d", l_jsonl="\n".join([*map(json.dumps, lines), *bad]))
    write(tmp_path / "d", far__b_beats=".x..")
    groups = [g for g in split_lines(listing(folder).groups) if g.lines]
    results = [r for g in groups for r in read_group(g, TOKENIZERS)]
    first, second, third, *skips = results
    assert [s.content for s in first.segments] == ["abc", ((0,),)]
    assert (first.source, first.metadata) == ("d/l.jsonl#1", {"title": "T", "list": [1, 2]})
    assert [s.content for s in second.segments] == ["ab", "cd"]
    assert third.segments[0].content == ((1,),)
    assert [(s.source[10:], s.kind) for s in skips] == [
        ("5", UNREADABLE),
        ("6", UNREADABLE),
        ("7", NOTHING),
        ("8", UNREADABLE),
        ("9", UNREADABLE),
    ]
    assert skips[3].reason == "letters is 5, not a string"


def test_a_long_file_of_lines_is_shared_out(tmp_path):
    count = 2 * LINES_PER_GROUP + 3
    folder = write(tmp_path / "d", l_jsonl="\n".join('{"letters": "abc"}' for _ in range(count)))
    groups = list(split_lines(listing(folder).groups))
    assert len(groups) == 3
    sources = [r.source for g in groups for r in read_group(g, TOKENIZERS)]
    assert sources == [f"d/l.jsonl#{i}" for i in range(1, count + 1)]


def test_what_is_computed_outranks_what_was_given():
    piece = described(
        Document(document(letters="abc").segments, {"letters": 99, "title": "T"}, "d"), TOKENIZERS
    )
    assert piece.metadata == {"letters": 3, "first": "a", "title": "T"}


# Captions


def test_a_phrase_needs_all_its_fields():
    templates = ["a {kind}", "in {key}", "{kind} {missing}", "a {kind}", "{n:d} bars", "{kind:d}"]
    facts = {"kind": "reel", "key": "", "n": 0}
    assert list(phrases(templates, facts)) == ["a reel", "0 bars"]


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


@pytest.mark.parametrize("template", ["{", "{}", "{a.b}", "{a[0]}", "{0}"])
def test_a_bad_template_is_named(template):
    with pytest.raises(UserError) as error:
        check_templates(["fine {name}", template])
    assert "data.captions.templates" in str(error.value) and repr(template) in str(error.value)


# Split


def briefs(*sources, title="", held_out=False):
    return [Brief(s, title, held_out, (), ()) for s in sources]


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
