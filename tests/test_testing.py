"""The conformance kit: what keeps the contract passes, and each broken promise is named in one line."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.plugins import Modality, build
from multimodal_gpt.testing import ConformanceError, check_tokenizer, main

TOYS = Path(__file__).parent / "toys"
LETTERS = build(Modality("letters", str(TOYS / "letters.py")))
BEATS = build(Modality("beats", str(TOYS / "beats.py")))

DEAD_END = """Grammar(
            np.array([[1, 1, 1, 1, 2], [1, 1, 1, 1, -1], [-1] * 5]),
            np.array([False, True, False]),
            np.zeros(5, bool))"""
NO_E = """Grammar(
            np.array([[1, 1, 1, 1, -1]] * 2), np.array([False, True]), np.zeros(5, bool))"""
FREE = "free_grammar(self.size)"
BUILD = 'def build(letters: str = "abcde")'
RANDOM = '"".join(random.sample("abcdefghijklmnopqrstuvwxyz", 26))'
FIT = f"import random\ndef fit(contents, folder):\n    return {{'letters': {RANDOM}}}\n"
SHUFFLED = f"import random\n    letters = {RANDOM}\n    return Letters"
HASHED = 'letters = "".join(sorted("abcdefghijklmnopqrstuvwxyz", key=hash))\n    return Letters'

MUTANTS = {
    "decode off by one": (
        "letters",
        "self.letters[i] for",
        "self.letters[i - 1] for",
        "walks: .* not a fixed point",
    ),
    "grammar refuses": (
        "letters",
        FREE,
        NO_E,
        r"samples: the grammar refuses \[0, 4\], which is encode\('ae'\)",
    ),
    "dead end": ("letters", FREE, DEAD_END, r"grammar: dead end: state \[2\] can be reached"),
    "other size": ("letters", FREE, "free_grammar(6)", "grammar: the grammar has 6 ids, size is 5"),
    "int64 ids": (
        "letters",
        "dtype=np.int32",
        "dtype=np.int64",
        "walks: .* gave an array of int64, expected int32",
    ),
    "no unit": ("letters", "return len(content)", "return 0", "walks: units.* is 0, expected an int >= 1"),
    "bad suffix": ("letters", '(".letters",)', '("letters",)', "members: suffix 'letters' is not a dot"),
    "two lines": ("beats", '"|" if', '"\\n|" if', "show: .*, expected one line"),
    "numpy value": (
        "beats",
        '"bars": len(content)',
        '"bars": np.int8(9)',
        "describe: .* expected plain values",
    ),
    "partial write": ("letters", 'content + "\\n"', "content[:9]", "files: write, then read of .* gave"),
    "odd bytes": (
        "letters",
        "read_text(path)",
        "path.read_text()",
        "bad_files: .* UnicodeDecodeError.* a UserError",
    ),
    "typed": (
        "letters",
        "if not text or set(text)",
        "if set(text)",
        r"parse: encode\(''\) gave shape \(0,\)",
    ),
    "unpicklable": (
        "letters",
        "return Letters(letters)",
        "return type('L', (Letters,), {})(letters)",
        "pickle: raised",
    ),
    "hash order": (
        "letters",
        "return Letters",
        HASHED,
        "spawn: a tokenizer rebuilt in a new process encodes .* as .*, not",
    ),
    "random build": (
        "letters",
        "return Letters",
        SHUFFLED,
        "rebuild: a tokenizer rebuilt from its options encodes",
    ),
    "random fit": (
        "letters",
        BUILD,
        FIT + BUILD,
        "fit: learning twice from the same contents gave different",
    ),
    "late clock": (
        "beats",
        "(bar * self.places + np",
        "(-bar * self.places + np",
        "clock: .* runs backwards at place",
    ),
    "float64 clock": (
        "beats",
        ".astype(np.float32)",
        ".astype(float)",
        "clock: .* array of float64, expected float32",
    ),
    "future clock": (
        "beats",
        "(bar * self.places",
        "(len(ids) + bar * self.places",
        "clock: clock of the first",
    ),
    "slow to follow": (
        "beats",
        "bar = next(bars) if token == BAR else bar",
        "bar += token == BAR and bar < 3",
        r"follow: follow\(\) told .* differs from their clock at place \[",
    ),
    "infinite clock": ("beats", "np.maximum(ids - 1, 0))", "np.inf)", "clock: .* is not finite"),
    "lost cut": (
        "beats",
        "np.flatnonzero(np.asarray(ids) == BAR)",
        "np.zeros(1, np.int64)",
        "cuts: .* expected",
    ),
    "unchecked ids": (
        "beats",
        "self._grammar.accepts(ids)",
        "True",
        r"illegal: decode accepts illegal ids \[\] as",
    ),
    "half back": (
        "beats",
        "p + steps for",
        "p + abs(steps) for",
        "shift: shift by 1, then by -1, of .* gave",
    ),
    "refuses legal": ("beats", "not self._grammar.accepts(ids)", "len(ids) > 50", "decode refuses|illegal"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_promise_is_named_in_one_line(name, tmp_path):
    toy, old, new, message = MUTANTS[name]
    source = (TOYS / f"{toy}.py").read_text()
    assert old in source
    path = tmp_path / f"{toy}.py"
    path.write_text(source.replace(old, new))
    samples = ["ae", "abcde"] if toy == "letters" else [((0, 2), (), (1, 3))]
    with pytest.raises(ConformanceError) as caught:
        check_tokenizer(path, samples=samples)
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("toy", ["letters", "beats"])
def test_toys_keep_the_contract(toy):
    report = check_tokenizer(TOYS / f"{toy}.py")
    assert {"walks", "illegal", "spawn"} <= set(report.passed)
    assert ("shift" in report.passed) == (toy == "beats")
    assert f"{toy}.py: {len(report.passed)} checks passed" in str(report)


def test_options_and_samples_are_used():
    report = check_tokenizer(TOYS / "letters.py", options={"letters": "xyz"}, samples=["zyx"])
    assert "samples" in report.passed
    with pytest.raises(ConformanceError, match="samples: raised UserError: 'abc' is not a word over 'xyz'"):
        check_tokenizer(TOYS / "letters.py", options={"letters": "xyz"}, samples=["abc"])


def test_a_built_tokenizer_needs_a_module_that_others_can_import():
    with pytest.raises(ConformanceError, match="spawn: the tokenizer does not work in a new process"):
        check_tokenizer(LETTERS)
    with pytest.raises(UserError, match="options are for a plugin given by name or path"):
        check_tokenizer(LETTERS, options={"letters": "ab"})


def test_command_line(tmp_path, capsys):
    broken = tmp_path / "broken.py"
    broken.write_text((TOYS / "letters.py").read_text().replace("return len(content)", "return 0"))
    assert main([str(TOYS / "letters.py"), "letters=abc"]) == 0
    assert "16 checks passed: members, grammar" in capsys.readouterr().out
    assert main([str(broken)]) == 1
    assert "broken.py: walks: units(" in capsys.readouterr().err
    assert main([str(TOYS / "none.py")]) == 2
    assert main([str(TOYS / "letters.py"), "letters"]) == 2
    assert "'letters' is not option=value" in capsys.readouterr().err
    assert main([]) == 2


@given(st.text("abcde", min_size=1))
def test_letters_come_back(word):
    assert LETTERS.decode(LETTERS.encode(word)) == word


bars = st.lists(st.sets(st.integers(0, 3)).map(lambda s: tuple(sorted(s))), min_size=1).map(tuple)


@given(bars.filter(any))
def test_beats_come_back(content):
    ids = BEATS.encode(content)
    assert BEATS.decode(ids) == content
    assert BEATS.cuts(ids).tolist() == [i for i, t in enumerate(ids) if t == 0]
    assert BEATS.units(content) == (ids > 0).sum()
    assert np.all(np.diff(BEATS.clock(ids)) >= 0)
    assert BEATS.parse(" ".join("".join(".x"[p in bar] for p in range(4)) for bar in content)) == content


@given(st.lists(st.integers(-1, 5), max_size=12))
def test_beats_decode_what_is_legal_and_refuse_the_rest(ids):
    if BEATS.grammar().accepts(ids):
        assert BEATS.encode(BEATS.decode(ids)).tolist() == ids
    else:
        with pytest.raises(UserError):
            BEATS.decode(ids)


def test_toys_pickle():
    for toy in (LETTERS, BEATS):
        assert pickle.loads(pickle.dumps(toy)) == toy
