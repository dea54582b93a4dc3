"""Files -> documents: what joins, what is skipped and why."""

import json
import os
from pathlib import Path

import pytest
from toy_corpus import document, vocabulary

from multimodal_gpt.data import corpus
from multimodal_gpt.data.corpus import (
    LINES_PER_GROUP,
    PARTS_AGAIN,
    folder_source,
    list_files,
    split_again,
    split_groups,
)
from multimodal_gpt.data.reading import NOTHING, PARTLY, UNREADABLE, Skip, described, read_group
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


def read_all(groups, tokenizers=TOKENIZERS):
    return [r for g in groups for r in read_group(g, tokenizers).results]


def read(folder, tokenizers=TOKENIZERS):
    results = read_all(split_groups(listing(folder).groups, tokenizers), tokenizers)
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
    return read_group(group, tokenizers).results


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


class LongBook(Book):
    def read_part(self, path, part, parts):
        pieces = list(self.read(path))
        yield from pieces[len(pieces) * part // parts : len(pieces) * (part + 1) // parts]


@pytest.mark.parametrize("text", ["\n".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), "A", "ABCDEFGHIJ", "?\n!"])
def test_a_large_book_is_shared_out(tmp_path, monkeypatch, text):
    tokenizers = {"one": LongBook("one"), "two": LongBook("two")}
    whole = read_book(tmp_path / "d", text)
    (group,) = list_files([folder_source(tmp_path / "d")], [".book"]).groups
    monkeypatch.setattr(corpus, "BYTES_PER_PART", 4)
    monkeypatch.setattr(corpus, "SMALLEST_PART", 0)
    parts = list(split_groups([group], tokenizers))
    assert len(parts) == -(-group.size // 4) and len({p.key("rules") for p in parts}) == len(parts)
    plain = {"letters": TOKENIZERS["letters"], **tokenizers}
    assert read_all(parts, plain) == whole
    if len(parts) > 1:
        smaller = [small for part in parts for small in split_again(part)]
        assert len(smaller) == PARTS_AGAIN * len(parts) and read_all(smaller, plain) == whole
    assert list(split_groups([group], {"one": Book("one"), "two": LongBook("two")})) == [group]


def test_a_book_that_can_not_be_read_is_named_once(tmp_path, monkeypatch):
    class Damaged(LongBook):
        def read(self, path):
            raise UserError("is damaged", path)
            yield

    folder = write(tmp_path / "d", b_book="A\nB\nC")
    (group,) = list_files([folder_source(folder)], [".book"]).groups
    monkeypatch.setattr(corpus, "BYTES_PER_PART", 1)
    tokenizers = {"one": Damaged("one")}
    assert read_all(split_groups([group], tokenizers), tokenizers) == [Skip("d/b", UNREADABLE, "is damaged")]


def test_lines_of_json(tmp_path):
    lines = [
        {"letters": "abc", "beats": "x...", "title": "T", "list": [1, 2], "none": None},
        {"letters": ["ab", "cd"]},
        {"beats": "far/b.beats"},
    ]
    bad = ["", "{nope", "[1]", '{"title": "x"}', '{"letters": 5}', '{"letters": "xyz"}']
    folder = write(tmp_path / "d", l_jsonl="\n".join([*map(json.dumps, lines), *bad]))
    write(tmp_path / "d", far__b_beats=".x..")
    results = read_all(g for g in split_groups(listing(folder).groups, TOKENIZERS) if g.lines)
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
    groups = list(split_groups(listing(folder).groups, TOKENIZERS))
    assert len(groups) == 3
    every = [f"d/l.jsonl#{i}" for i in range(1, count + 1)]
    assert [r.source for r in read_all(groups)] == every
    single = [small for g in groups for small in split_again(g)]
    assert len(single) == count and [r.source for r in read_all(single)] == every
    assert split_again(single[0]) == []


def test_lines_that_are_added_leave_the_others_as_they_were(tmp_path):
    lines = ['{"letters": "abc"}'] * (2 * LINES_PER_GROUP)
    keys = []
    for count in (len(lines), len(lines) - 1, len(lines)):
        folder = write(tmp_path / "d", l_jsonl="".join(f"{line}\n" for line in lines[:count]))
        keys.append([g.key("rules") for g in split_groups(listing(folder).groups, TOKENIZERS)])
    assert keys[0] == keys[2] and keys[0][0] == keys[1][0] and keys[0][1] != keys[1][1]


def test_what_is_computed_outranks_what_was_given():
    piece = described(
        Document(document(letters="abc").segments, {"letters": 99, "title": "T"}, "d"), TOKENIZERS
    )
    assert piece.metadata == {"letters": 3, "first": "a", "title": "T"}
