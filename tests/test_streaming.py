"""Pieces that are watched while they are made: the same pieces, chunk by chunk. The model is untrained."""

import threading

import numpy as np
import pytest
from command_line import mmgpt
from toy_runs import BEATS, DRUMS, TUNE, WILD, WORDS_A_B, new_run, refused

import multimodal_gpt as mm
from multimodal_gpt.generation.engine import Engine
from multimodal_gpt.generation.harvest import splits_anywhere
from multimodal_gpt.stream.grammar import Grammar, free_grammar


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    orders = [["words", "a+b"], ["b+a"]]
    return new_run(tmp_path_factory.mktemp("streaming") / "run", WORDS_A_B, orders, 256, hole=0.2, drop=0.1)


@pytest.fixture(scope="module")
def run(folder):
    return mm.load(folder, device="cpu")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    names = {"text": {"encoding": "bytes"}, "tags": {}, "chords": {}, "melody": {}}
    home = tmp_path_factory.mktemp("real")
    return mm.load(new_run(home / "run", names, [["text", "tags", "chords+melody"]], 512), device="cpu")


CASES = {
    "one": ("generate", {"to": "a", "bars": 3}),
    "together": ("generate", {"to": "a+b", "words": "abba"}),
    "in turn": ("generate", {"to": "words,b,a", "bars": 2, "max_tokens": 60}),
    "beside": ("generate", {"to": "a", "b": DRUMS}),
    "more": ("extend", {"a": BEATS, "bars": 2}),
    "more of both": ("extend", {"a": BEATS, "b": DRUMS, "bars": 3}),
    "more words": ("extend", {"words": "ab", "to": "words", "max_tokens": 40}),
    "a gap": ("fill", {"a": BEATS, "bars": (2, 4)}),
    "two gaps": ("fill", {"a": BEATS, "b": DRUMS, "bars": (2, 3)}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [0, 3])
def test_it_is_the_same_piece(run, case, seed):
    verb, asked = CASES[case]
    (whole,) = getattr(run, verb)(seed=seed, **asked, **WILD)
    stream = run.stream(verb, seed=seed, **asked, **WILD)
    chunks = list(stream)
    assert stream.piece.info == whole.info
    assert stream.piece.document.segments == whole.document.segments
    assert stream.piece.made_spans == whole.made_spans
    for name in whole.made:
        ids = np.concatenate([c.ids for c in chunks if c.modality == name]).tolist()
        all_ids = run.vocabulary.encode(name, whole.content(name)).ids.tolist()
        (begin, stop) = whole.spans[name][0]
        if name == "words":
            assert all_ids[-len(ids) :] == ids and len(all_ids) == len(ids) + 2 * (verb == "extend")
        else:
            made = [bar for n, bar in enumerate(whole.content(name)) if begin <= 4 * n < stop]
            assert [c.content or () for c in chunks if c.modality == name] == [
                (b,) if b else () for b in made
            ]
            assert [c.begin for c in chunks if c.modality == name] == [
                max(begin, 0.0) + 4.0 * n for n in range(len(made))
            ]


def test_a_wish_is_kept_and_varying_can_be_watched(real):
    (whole,) = real.vary(melody=TUNE, share=0.5, seed=2, **WILD)
    stream = real.stream("vary", melody=TUNE, share=0.5, seed=2, **WILD)
    chunks = list(stream)
    assert [(c.begin, c.length) for c in chunks] == [(0.0, 4.0), (4.0, 4.0), (8.0, 4.0)]
    assert [len(c.content.notes) for c in chunks] == [4, 4, 1]
    assert stream.piece.info == whole.info


def test_each_chunk_comes_as_soon_as_it_is_finished(run, monkeypatch):
    taken = []
    follow = Engine.follow

    def watched(engine, row, how):
        steps = follow(engine, row, how)
        while True:
            try:
                taken.append(next(steps))
            except StopIteration as end:
                return end.value
            yield taken[-1]

    monkeypatch.setattr(Engine, "follow", watched)
    stream = run.stream(to="a+b", bars=6, **WILD)
    seen = 0
    for chunk in stream:
        seen += len(chunk.ids) + 1  # and the tag, or END, that closes it
        assert len(taken) == seen
    assert seen == len(taken)
    del taken[:]
    letters = [(len(c.ids), len(taken)) for c in run.stream(to="words", max_tokens=30, **WILD)]
    assert letters == [(1, n + 2) for n in range(len(letters))], "one letter later, or with END"


def test_who_stops_asking_leaves_nothing_behind(run, monkeypatch):
    taken = []
    follow = Engine.follow

    def counted(engine, row, how):
        try:
            yield from (taken.append(token) or token for token in follow(engine, row, how))
        finally:
            taken.append("closed")

    monkeypatch.setattr(Engine, "follow", counted)
    threads = threading.active_count()
    stream = run.stream(to="a", bars=20, **WILD)
    assert next(stream).modality == "a"
    before = len(taken)
    assert threading.active_count() == threads and len(taken) == before < 20 * 5
    stream.close()
    assert taken[-1] == "closed" and len(taken) == before + 1
    assert refused(lambda: stream.piece) == "the piece was given up before its end (ask for it anew)"
    for _ in run.stream(to="a", bars=20, **WILD):
        break
    assert taken[-1] == "closed"
    assert run.generate(to="a", bars=2)[0].content("a")


def test_the_rest_is_made_when_the_piece_is_asked_for(run):
    (whole,) = run.generate(to="a+b", bars=8, **WILD)
    stream = run.stream(to="a+b", bars=8, **WILD)
    first = [next(stream) for _ in range(3)]
    second = next(c for c in stream)
    assert [c.modality for c in [*first, second]] == ["a", "b", "a", "b"]
    assert stream.piece.info == whole.info and stream.piece is stream.piece
    assert 0 < stream.piece.seconds < 60


def test_words_join_to_the_text(real):
    texts = set()
    for seed in range(12):
        stream = real.stream(to="text", seed=seed, max_tokens=60, **WILD)
        parts = [c.content for c in stream]
        texts.add("".join(parts))
        assert "".join(parts) == stream.piece.content("text")
        assert all(c.isprintable() or c.isspace() or len(c) == 1 for part in parts for c in part)
    assert any(len(c.encode()) > 1 for text in texts for c in text), (
        "or nothing is shown about split characters"
    )
    assert max(map(len, texts)) > 10


def test_tags_come_as_a_whole(real):
    stream = real.stream(to="tags", **WILD)
    (chunk,) = stream
    assert chunk.content == stream.piece.content("tags") and chunk.begin is chunk.length is None


def test_where_a_segment_may_be_split(real):
    grammars = {name: real.vocabulary.tokenizer(name).grammar() for name in ("text", "tags")}
    assert splits_anywhere(grammars["text"]) and not splits_anywhere(grammars["tags"])
    assert splits_anywhere(free_grammar(3))
    pair = Grammar(np.array([[1, -1], [-1, 1]]), np.array([False, True]), np.zeros(2, dtype=bool))
    assert not splits_anywhere(pair), "1 may follow 0 and may not begin"
    couples = Grammar(
        np.array([[1, 1], [2, 2], [1, 1]]), np.array([False, True, False]), np.zeros(2, dtype=bool)
    )
    assert not splits_anywhere(couples), "after an end, one more is no end"


def test_what_cannot_be_watched(run):
    assert refused(run.stream, to="a", n=2) == (
        "n: one piece at a time can be watched (leave out n and best_of)"
    )
    assert refused(run.stream, to="a", best_of=2).startswith("n: one piece at a time")
    assert refused(run.stream, "generates", to="a") == (
        "verb: 'generates' can't be asked of a run (did you mean 'generate'?)"
    )
    assert refused(run.stream, "fill", a=BEATS, bars=(5, 6)) == "bars: 'a' has no bars 5 to 6 (it has 5)"


def test_the_command_line_shows_it_and_writes_the_same_files(folder, tmp_path, capsys):
    asked = ["generate", folder, "--to", "words,a+b", "--bars", 2, "--max-tokens", 40, "--temperature", 3]
    assert mmgpt(capsys, *asked, "--out", tmp_path / "quiet")[0] == 0
    code, out, _ = mmgpt(capsys, *asked, "--stream", "--out", tmp_path / "live")
    assert code == 0
    for path in (tmp_path / "quiet").iterdir():
        assert (tmp_path / "live" / path.name).read_bytes() == path.read_bytes()
    word = (tmp_path / "live" / "0001.letters").read_text().strip()
    lines = out.splitlines()
    assert lines[0] == f"words: {word}" and [line[:4] for line in lines[1:5]] == ["a: |", "b: |"] * 2
    assert "0001.letters" in out


def test_the_command_line_goes_on_and_refuses_two(folder, tmp_path, capsys):
    more = ["continue", folder, "--a", BEATS, "--bars", 2, "--stream", "--out", tmp_path / "more"]
    code, out, _ = mmgpt(capsys, *more)
    assert code == 0 and [line[:4] for line in out.splitlines()[:2]] == ["a: |", "a: |"]
    code, _, told = mmgpt(capsys, *more, "-n", 2, "--force")
    assert code != 0 and told.strip() == (
        "mmgpt: --stream: one piece at a time can be watched (leave out --number and --best-of)"
    )
    code, out, told = mmgpt(capsys, *more, "--force", "--json")
    assert code == 0 and out.startswith("[") and "a: |" in told
