"""Text: whatever is typed comes back, nothing typed is special, every legal walk is visible UTF-8."""

import base64
import pickle
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal_gpt.errors import UserError
from multimodal_gpt.stream import plugins
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.testing import check_tokenizer
from multimodal_gpt.tokenizers import _utf8, text

CAPTIONS = [
    f"a {kind} in {key} {mode}"
    for kind in ("jig", "slow waltz")
    for key in "DG"
    for mode in ("major", "minor")
]
BYTES = text.build("bytes")
BPE = text.Text(text.learn(CAPTIONS * 3, 300), text.PATTERN)
ODD = [
    "<melody>",
    "<|endoftext|><|endofprompt|>",
    "a\x00b",
    "line\r\nline\r\n",
    "x\r",
    "x\n",
    "\n\n x",
    "\N{ZERO WIDTH NO-BREAK SPACE}x",
    "\N{MUSICAL SYMBOL G CLEF} \N{WOMAN}\N{ZERO WIDTH JOINER}\N{MICROSCOPE}",
    "\x85x\u2028\x1c",
]
words = st.text(min_size=1).filter(_utf8.is_visible)


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
@given(content=words | st.sampled_from(ODD))
def test_any_visible_text_comes_back(tokenizer, content):
    ids = tokenizer.encode(content)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == content
    assert tokenizer.grammar().accepts(ids)
    assert len(tokenizer.show(ids).splitlines()) == 1


@given(st.lists(st.integers(-1, 300), max_size=8))
def test_other_ids_are_refused_or_decode_to_visible_text(ids):
    try:
        content = BPE.decode(np.array(ids))
    except UserError:
        assert not BPE.grammar().accepts(ids)
    else:
        assert _utf8.is_visible(content)
        assert BPE.decode(BPE.encode(content)) == content


@given(st.binary(max_size=8) | st.text(max_size=4).map(lambda s: s.encode("utf-8", "surrogatepass")))
def test_the_machine_agrees_with_pythons_decoder(data):
    try:
        legal = _utf8.is_visible(data.decode("utf-8"))
    except UnicodeDecodeError:
        legal = False
    assert BYTES.grammar().accepts(np.frombuffer(data, dtype=np.uint8)) == legal


def test_the_machine_knows_every_character():
    step, final = _utf8.machine()
    for code in [*range(0xD800), *range(0xE000, 0x110000, 13), 0x10FFFF]:
        state = 0
        for byte in chr(code).encode():
            state = step[state, byte]
        assert state >= 0
        assert final[state] == (chr(code) not in _utf8.BLANKS), hex(code)
    for data in (b"\xc0\x80", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf5", b"\x80"):
        assert not BYTES.grammar().accepts(np.frombuffer(data, dtype=np.uint8))


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u200b\ufeff\u00a0\u3000", "\x00"])
def test_blank_text_is_refused(blank):
    for refuse in (BYTES.encode, BYTES.parse):
        with pytest.raises(UserError, match="holds no visible character"):
            refuse(blank)


def test_lone_surrogates_are_replaced():
    assert BPE.decode(BPE.encode("a\ud800b")) == "a\ufffdb"


def test_what_a_user_types_never_costs_less_than_characters():
    assert BYTES.encode("<melody>").tolist() == list(b"<melody>")
    assert len(BPE.encode("<|endoftext|>" * 100)) >= 300


def test_blanks_that_make_tiktoken_panic():
    content = " " * 1_200_000 + "a"
    ids = BPE.encode(content)
    assert BPE._bytes(ids) == content.encode()


@pytest.mark.parametrize("content", ODD)
def test_files_round_trip(content, tmp_path):
    path = BPE.write(content, tmp_path / "x.txt")
    assert [(i.key, i.content) for i in BPE.read(path)] == [("", content)]
    assert BPE.parse(str(path)) == content


def test_files_as_users_leave_them(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9\r\n")
    assert [i.content for i in BPE.read(path)] == ["caf\u00e9"]
    path.write_bytes(b" \r\n\n")
    assert list(BPE.read(path)) == []
    path.write_bytes("caf\u00e9".encode("latin1"))
    with pytest.raises(
        UserError, match=r"x\.txt: is not UTF-8: byte 3 is 0xe9 \(save it as UTF-8, for example: iconv"
    ):
        list(BPE.read(path))
    with pytest.raises(UserError, match="can't be read: No such file"):
        list(BPE.read(tmp_path / "none.txt"))


def test_append_adds_below(tmp_path):
    path = BPE.write("one", tmp_path / "x.txt")
    BPE.write("two", path, append=True)
    assert path.read_text() == "one\ntwo\n"


def test_parse_takes_words_that_only_look_like_a_file(tmp_path):
    for typed in ("none.txt", "x" * 5000 + ".txt", "\x00.txt", "a jig"):
        assert BPE.parse(typed) == typed
    (tmp_path / "blank.txt").write_text("\n")
    with pytest.raises(UserError, match="no visible character"):
        BPE.parse(str(tmp_path / "blank.txt"))


def test_described_by_characters():
    assert (BPE.describe("a jig"), BPE.units("a jig")) == ({"characters": 5}, 5)
    assert BPE.show(BPE.encode("x" * 500)) == repr("x" * 97 + "...")


def test_learning_merges_what_is_frequent(tmp_path):
    modality = plugins.fit(Modality("text", "text", {"vocabulary": 300}), iter(CAPTIONS * 3), tmp_path)
    assert modality.options == {"encoding": "bpe", "ranks": "file:text.tiktoken"}
    tokenizer = plugins.build(modality, tmp_path)
    assert 256 < tokenizer.size <= 300
    assert len(tokenizer.encode("a slow waltz in D major")) < 10
    lines = (tmp_path / "text.tiktoken").read_text().splitlines()
    assert [line.split()[1] for line in lines] == [str(i) for i in range(tokenizer.size)]
    assert [base64.b64decode(line.split()[0]) for line in lines[:256]] == [bytes([b]) for b in range(256)]


def test_two_modalities_of_one_plugin_keep_their_own_ranks(tmp_path):
    lyrics, text = (Modality(name, "text", {"vocabulary": 300}) for name in ("lyrics", "text"))
    lyrics = plugins.fit(lyrics, iter(["la la la"] * 9), tmp_path)
    text = plugins.fit(text, iter(CAPTIONS * 3), tmp_path)
    assert lyrics.options["ranks"] == "file:lyrics.text.tiktoken"
    assert text.options["ranks"] == "file:text.tiktoken"
    sizes = [plugins.build(modality, tmp_path).size for modality in (lyrics, text)]
    assert 256 < sizes[0] < sizes[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lyrics.text.tiktoken", "text.tiktoken"]


def test_learning_does_not_depend_on_the_order_of_texts():
    shuffled = random.Random(1).sample(CAPTIONS * 3, len(CAPTIONS) * 3)
    assert text.learn(shuffled, 300) == BPE.ranks


def test_learning_from_nothing_leaves_the_bytes():
    assert text.learn([], 1024) == BYTES.ranks
    with pytest.raises(UserError, match=r"vocabulary is 100 .a whole number from 256 on"):
        text.learn([], 100)


def test_own_ranks_are_copied_beside_the_run(tmp_path):
    own = text.write_ranks(BPE.ranks, tmp_path / "own.tiktoken")
    (tmp_path / "run").mkdir()
    modality = plugins.fit(Modality("text", "text", {"ranks": str(own)}), [], tmp_path / "run")
    assert plugins.build(modality, tmp_path / "run").ranks == BPE.ranks


def test_unlearnt_ranks_are_asked_for():
    with pytest.raises(
        UserError, match=r"tokenizers\.words: the ranks of encoding 'bpe' are learnt when shards"
    ):
        plugins.build(Modality("words", "text"))


def test_a_named_encoding_is_kept_with_the_run(tmp_path, monkeypatch):
    import tiktoken

    ranks = {token: 2 * rank for token, rank in BPE.ranks.items()}  # with gaps, as where special tokens lie
    found = tiktoken.Encoding(
        "gpt2", pat_str=text.PATTERN, mergeable_ranks=ranks, special_tokens={"<|x|>": 3}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", {"gpt2": found}.__getitem__)
    assert text.build("gpt2").ranks == BPE.ranks
    modality = plugins.fit(Modality("text", "text", {"encoding": "gpt2"}), [], tmp_path)
    monkeypatch.undo()
    tokenizer = plugins.build(modality, tmp_path)
    assert (tokenizer.ranks, tokenizer.pattern) == (BPE.ranks, found._pat_str)
    assert BPE.encode("<|x|>").tolist() == tokenizer.encode("<|x|>").tolist()


def test_a_named_encoding_out_of_reach_names_the_way_out(monkeypatch):
    import tiktoken

    def unreachable(name):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tiktoken, "get_encoding", unreachable)
    with pytest.raises(UserError, match=r"can't download its encoding 'gpt2' .*use encoding: bpe"):
        text.build("gpt2")
    with pytest.raises(UserError, match=r"unknown encoding 'gtp2' .did you mean 'gpt2'"):
        text.build("gtp2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[1:], "the ranks of 255 tokens are not 0 .. 254"),
        (lambda lines: [*lines[:9], "??? 9", *lines[10:]], "line 10 is not a token in base64 and its rank"),
        (lambda lines: [*lines, "AA== 256"], "line 257 gives the same token again"),
        (lambda lines: [*lines[:255], "AAA= 255"], "1 of the 256 single bytes are missing"),
        (lambda lines: [*lines, "YWI= 300"], "the ranks of 257 tokens are not 0 .. 256"),
    ],
)
def test_a_damaged_table_is_refused(change, message, tmp_path):
    path = text.write_ranks(BYTES.ranks, tmp_path / "text.tiktoken")
    path.write_text("\n".join(change(path.read_text().splitlines())))
    with pytest.raises(UserError, match=message):
        text.read_ranks(path)


def test_pickles_small_and_equal():
    BPE.grammar()
    packed = pickle.dumps(BPE)
    assert len(packed) < 10_000
    assert pickle.loads(packed).encode("a jig").tolist() == BPE.encode("a jig").tolist()


@pytest.mark.parametrize("options", [{"encoding": "bytes"}, {"vocabulary": 300}], ids=["bytes", "bpe"])
def test_keeps_the_contract(options):
    assert "spawn" in check_tokenizer("text", samples=[*CAPTIONS * 3, *ODD], options=options).passed
