"""Files come back from as few bytes as the likelihood says; whatever is wrong is said on one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import mmgpt
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toy_coding import SMALL, TOY, TURNS, toy
from toy_looking import toy_run
from toy_runs import new_run, refused

from multimodal_gpt import compression
from multimodal_gpt.compression import archive, arithmetic, coding, container, files
from multimodal_gpt.compression.container import Kind
from multimodal_gpt.generation.session import Run


@pytest.fixture(scope="module")
def run() -> Run:
    return toy(*TURNS)


@pytest.fixture(scope="module")
def text_run() -> Run:
    return toy_run({"text": {"encoding": "bytes"}}, [["text"]], context=32, **SMALL)


# Files


CRLF, MARK = b"one\r\ntwo\r\n", "\N{ZERO WIDTH NO-BREAK SPACE}".encode()
ANY = st.one_of(
    st.binary(max_size=40), st.text(max_size=20).map(lambda t: t.encode("utf-8", "surrogatepass"))
)


@settings(max_examples=20)
@given(ANY)
@example(b"")
@example(b"\n")
@example(b" \t\n")
@example(b"a word")
@example(b"a word\n\n")
@example(CRLF)
@example(CRLF[:-1])
@example(MARK + CRLF)
@example(MARK + b"no line end")
@example(MARK + MARK + b"two marks")
@example(b"<melody> <end> <eod> <|endoftext|>")
@example(b"zero\0byte")
@example("na\u00efve caf\u00e9 in Latin 1, and some more of it".encode("latin-1"))
@example(b"half a character \xe2\x82")
@example(b"\xff\xfea\0b\0")
@example("e\u0301 and \u00e9 are not made one".encode())
def test_text_of_any_bytes_comes_back(text_run: Run, data: bytes) -> None:
    contents = files._bytes(text_run.vocabulary, "text", data, ".txt")
    made = compression.compress(text_run, contents, verify=False)
    assert compression.decompress(text_run, made.data).data == data
    assert len(made.data) < len(data) + 100


def test_most_text_is_modelled_not_stored(text_run: Run) -> None:
    for data in (CRLF, MARK + b"no line end", b"a word\n", "in caf\u00e9s, Latin 1".encode("latin-1")):
        contents = files._bytes(text_run.vocabulary, "text", data, ".txt")
        assert (contents.kind, contents.why) == (Kind.BYTES, "")
        assert len(contents.patch) < 30
    assert files._bytes(text_run.vocabulary, "text", b"\n \n", ".txt").why == "holds no text"


def test_a_long_text_comes_back(text_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "long.log"
    path.write_bytes(b"to be, or not to be; that is the question \xf0\x9f\x8e\xb5\n" * 12)
    said = refused(compression.compress, text_run, path)
    assert said == f"{path}: no modality of this run reads '.log' (name one with --modality: text)"
    seen: list[int] = []
    contents = files.read(text_run, path, ("text",))
    coded = coding.encode(text_run, contents.segments, seen.append)
    assert len(coded.plan.states) == 2
    assert sum(seen) == coded.plan.tokens
    ids = coding.decode(text_run, coded.plan, coded.payload)
    found = files.restored(text_run.vocabulary, ids, Kind.BYTES, ".log", contents.patch)
    assert found == path.read_bytes()


def test_a_file_that_is_smaller_without_the_network_is_stored(text_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "same.txt"
    path.write_bytes(b"again " * 60)
    made = compression.compress(text_run, path)
    assert made.header.kind == Kind.STORED
    assert made.contents.why == "xz makes it smaller"
    assert compression.decompress(text_run, made.data).data == path.read_bytes()


def test_a_tune_comes_back_as_it_is_decoded(tmp_path: Path) -> None:
    run = toy_run({"chords": {}, "melody": {}}, [["chords+melody"]], context=256, **SMALL)
    melody, chords = (run.vocabulary.tokenizer(name) for name in ("melody", "chords"))
    path = tmp_path / "tune.mid"
    melody.write(melody.parse("C4 E4 G4 C5 B4 G4 E4 D4 C4:4"), path)
    chords.write(chords.parse("| C | G | C |"), path, append=True)
    made = compression.compress(run, path)
    assert made.header.order == "chords+melody"
    found = compression.decompress(run, made.data)
    again = tmp_path / "again.mid"
    again.write_bytes(found.data)
    for tokenizer in (melody, chords):
        before, after = (next(iter(tokenizer.read(p))).content for p in (path, again))
        np.testing.assert_array_equal(tokenizer.encode(before), tokenizer.encode(after))
    twice = compression.compress(run, again)
    assert container.unpack(twice.data)[1] == container.unpack(made.data)[1]


def test_words_and_times_do_not_share_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "beat.beats").write_bytes(b"x.x.\n..xx\n")
    said = refused(files.read, run, tmp_path / "beat.beats", ("letters", "beats"))
    assert said.startswith("--modality: letters and beats can't share a file")
    (tmp_path / "none.beats").write_bytes(b"....\n")
    assert refused(files.read, run, tmp_path / "none.beats").endswith("none.beats: holds no beats or drums")


def test_a_book_is_not_a_piece(tmp_path: Path) -> None:
    run = toy_run({"chords": {}, "melody": {}}, [["chords+melody"]], context=256, **SMALL)
    path = tmp_path / "book.abc"
    path.write_text("X:1\nM:4/4\nL:1/4\nK:C\nCDEF|\n\nX:2\nM:4/4\nL:1/4\nK:C\nGABc|\n", "utf-8")
    assert "holds 2 pieces (compress them one by one)" in refused(compression.compress, run, path)


# What is wrong


def word_file(run: Run, folder: Path) -> bytes:
    path = folder / "word.letters"
    path.write_bytes(b"abcdeabcdeedcba\n")
    return compression.compress(run, path).data


def test_any_byte_that_is_wrong_is_noticed(run: Run, tmp_path: Path) -> None:
    data = word_file(run, tmp_path)
    assert compression.decompress(run, data).data == b"abcdeabcdeedcba\n"
    for place in range(len(data)):
        for mask in (1, 0x80, 0xFF):
            broken = bytes([*data[:place], data[place] ^ mask, *data[place + 1 :]])
            assert refused(compression.decompress, run, broken).startswith(
                ("is no .mgz", "the file is damaged")
            )
        assert refused(compression.decompress, run, data[:place]).startswith(
            ("is no .mgz", "the file is dam")
        )
    assert "damaged" in refused(compression.decompress, run, data + b"\0")


@settings(max_examples=20)
@given(st.data())
def test_a_forged_file_is_refused_and_does_not_hang(run: Run, tmp_path_factory, data) -> None:
    """With the right CRC whatever a header or a payload says, it says it on one line."""
    header, payload = container.unpack(word_file(run, tmp_path_factory.getbasetemp()))
    changes = st.fixed_dictionaries(
        {},
        optional={
            "tokens": st.integers(0, 2**62),
            "states": st.lists(st.integers(0, 3), max_size=3).map(tuple),
            "order": st.sampled_from(["", "beats", "beats+drums", "letters,letters", "what", "+,"]),
            "kind": st.sampled_from(Kind),
            "patch": st.binary(max_size=6),
            "size": st.integers(0, 2**62),
        },
    )
    wrong = dataclasses.replace(header, **data.draw(changes))
    forged = container.pack(wrong, data.draw(st.sampled_from([payload, b"", b"\xff" * 9])))
    if forged != container.pack(header, payload):
        try:
            assert compression.decompress(run, forged).data
        except Exception as error:
            assert "\n" not in str(error)
            assert type(error).__name__ == "UserError"


def test_headers_come_back() -> None:
    header = container.Header(
        "00" * 8, "ab" * 4, "cd" * 8, Kind.BYTES, 2**40, 700, (0, 3, 300), ".txt", "text", "2.13", b"\0x"
    )
    assert container.unpack(container.pack(header, b"payload")) == (header, b"payload")


def test_a_newer_format_is_named(run: Run, tmp_path: Path) -> None:
    data = bytearray(word_file(run, tmp_path))
    data[3] = 2
    data[-4:] = container.zlib.crc32(bytes(data[:-4])).to_bytes(4, "big")
    assert (
        refused(compression.decompress, run, bytes(data)) == "is of format 2, this version reads 1 (upgrade)"
    )


def test_another_run_is_refused_with_both_hashes(run: Run, tmp_path: Path) -> None:
    data = word_file(run, tmp_path)
    other = toy(["letters"])
    other.info = {"sha256": "fe" * 32}
    said = refused(compression.decompress, other, data)
    assert "weights 0000000000000000..., those of this run are fefefefefefefefe..." in said


def other_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    real = coding.Predictor.predict

    def predict(self, lanes):
        scores = real(self, lanes)
        return scores + 0.5 * np.sin(np.arange(scores.size).reshape(scores.shape))

    monkeypatch.setattr(coding.Predictor, "predict", predict)


def test_other_arithmetic_is_named(run: Run, tmp_path: Path, monkeypatch) -> None:
    data = word_file(run, tmp_path)
    other_arithmetic(monkeypatch)
    said = refused(compression.decompress, run, data)
    assert said.startswith(f"the arithmetic of this machine ({torch.__version__} ")
    assert "differs from that of the one that compressed it" in said


def test_what_does_not_come_back_is_not_kept(run: Run, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "word.letters"
    path.write_bytes(b"abcdeabcdeedcba\n")
    real = archive.decompress

    def decompress(*args, **options):
        other_arithmetic(monkeypatch)
        return real(*args, **options)

    monkeypatch.setattr(archive, "decompress", decompress)
    assert "does not come back" in refused(compression.compress, run, path)


# The command line


PLUGINS = [word for name in TOY for word in ("--plugin", f"{name}={TOY[name]['plugin']}")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    new_run(tmp_path / "run", TOY, [["letters", "beats+drums"]], 64)
    (tmp_path / "beat.beats").write_bytes(b"x.x.\n..xx\n")
    return tmp_path


def test_both_ways_on_the_command_line(folder: Path, capsys) -> None:
    beat, packed = folder / "beat.beats", folder / "beat.beats.mgz"
    code, out, _ = mmgpt(capsys, "compress", folder / "run", beat, *PLUGINS)
    assert code == 0
    assert out.startswith(f"{packed}: 10 bytes -> {packed.stat().st_size}, ")
    code, _, err = mmgpt(capsys, "compress", folder / "run", beat, *PLUGINS)
    assert (code, err) == (
        2,
        f"mmgpt: {packed}: the file is there already (name another with --out, or add --force)\n",
    )
    again = folder / "again.beats"
    code, out, _ = mmgpt(capsys, "decompress", folder / "run", packed, "--out", again, "--json", *PLUGINS)
    assert json.loads(out)["order"] == "beats+drums"
    assert again.read_text("utf-8") == beat.read_text("utf-8")
    assert not list(folder.glob(".*partial"))


def test_one_modality_and_json(folder: Path, capsys) -> None:
    options = ["--modality", "drums", "--no-verify", "--json", "--out", folder / "x.mgz"]
    code, out, _ = mmgpt(capsys, "compress", folder / "run", folder / "beat.beats", *options, *PLUGINS)
    told = json.loads(out)
    assert (code, told["kind"], told["order"], told["units"]) == (0, "contents", "drums", {"drums": 4})
    assert told["bytes_out"] == (folder / "x.mgz").stat().st_size
    assert mmgpt(capsys, "decompress", folder / "run", folder / "x.mgz", *PLUGINS)[0] == 0
    assert (folder / "x.beats").read_bytes() == b"x.x.\n..xx\n"


def test_what_is_missing_is_said(folder: Path, capsys, monkeypatch) -> None:
    beat = folder / "beat.beats"
    said = mmgpt(capsys, "compress", folder / "run", beat, "--modality", "drum", *PLUGINS)[2]
    assert "there is no modality 'drum' in this vocabulary (did you mean 'drums'?)" in said
    said = mmgpt(capsys, "decompress", folder / "run", folder / "none.mgz")[2]
    assert said.endswith("none.mgz: can't be read: No such file or directory\n")
    said = mmgpt(capsys, "decompress", folder / "run", beat)[2]
    assert said.endswith("beat.beats: is no .mgz file (mmgpt compress makes them)\n")
    monkeypatch.setattr(arithmetic.importlib.util, "find_spec", lambda name: None)
    said = mmgpt(capsys, "compress", folder / "run", beat)[2]
    assert said == 'mmgpt: constriction is not installed (pip install "multimodal-gpt[compress]")\n'
