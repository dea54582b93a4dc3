"""Pieces longer than the context: windows, seams, and what holds over them. The models are untrained."""

from dataclasses import replace

import numpy as np
import pytest
from command_line import mmgpt
from toy_runs import TUNE, WILD, WORDS_A_B, new_run, refused

import multimodal_gpt as mm
from multimodal_gpt.errors import UserError
from multimodal_gpt.generation.clock import Clock
from multimodal_gpt.generation.drafting import Job, _harvested
from multimodal_gpt.generation.engine import Engine
from multimodal_gpt.generation.sampling import Sampling
from multimodal_gpt.generation.target import end_of
from multimodal_gpt.stream.arrangement import Layout, from_stream, to_stream
from multimodal_gpt.stream.grammar import Grammar
from multimodal_gpt.stream.limits import resumed
from multimodal_gpt.stream.vocabulary import Encoded

LONG = " ".join(["x..x .x.. x.x. ..x. x... xxxx .... xx.x"] * 3)
COUNT = 24
LONG_TUNE = " | ".join([TUNE, "z:1 F4:3"] * 4)
CHART = "| C | G7 | Am F | Dm G | " * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    orders = [["words", "a+b"], ["b+a"], ["b", "a"]]
    return new_run(tmp_path_factory.mktemp("windows") / "run", WORDS_A_B, orders, 48, drop=0.1)


@pytest.fixture(scope="module")
def run(folder):
    return mm.load(folder, device="cpu")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    names = {"chords": {}, "melody": {}}
    home = tmp_path_factory.mktemp("real")
    return mm.load(new_run(home / "run", names, [["chords+melody"]], 120, drop=0.1), device="cpu")


def parsed(words):
    return tuple(tuple(i for i, c in enumerate(bar) if c == "x") for bar in words.split())


def windows(piece):
    """How many the first part was made in."""
    _, _, count = piece.info["layouts"][0].partition(" (")
    return int(count.split()[0]) if count else 1


CASES = {
    "one": ("generate", {"to": "a", "bars": COUNT}, COUNT),
    "together": ("generate", {"to": "a+b", "bars": COUNT}, COUNT),
    "in turn": ("generate", {"to": "b,a", "bars": COUNT}, COUNT),
    "beside": ("generate", {"to": "a", "b": LONG}, COUNT),
    "beside and told": ("generate", {"to": "a", "b": LONG, "words": "abba"}, COUNT),
    "words too": ("generate", {"to": "words,a+b", "bars": COUNT, "max_tokens": 1000}, COUNT),
    "more": ("extend", {"a": LONG, "bars": COUNT}, 2 * COUNT),
    "more of both": ("extend", {"a": LONG, "b": LONG, "bars": COUNT}, 2 * COUNT),
    "more beside": ("extend", {"a": "x..x .x..", "b": LONG, "to": "a"}, COUNT),
}


def quick(case, temperature):
    slow = [] if temperature or case in ("together", "words too", "more of both") else [pytest.mark.slow]
    return pytest.param(case, temperature, marks=slow)


@pytest.mark.parametrize(("case", "temperature"), [quick(c, t) for c in CASES for t in (0.0, 50.0)])
def test_exactly_so_many_bars_in_many_windows(run, case, temperature):
    verb, asked, count = CASES[case]
    how = {"temperature": temperature, "top_p": None}
    pieces = getattr(run, verb)(n=2, **asked, **how)
    for piece in pieces:
        for name in {"a", "b"} & set(piece.document.modalities):
            assert len(piece.content(name)) == count
        known = {name: parsed(asked[name]) for name in ("a", "b") if name in asked}
        assert all(piece.content(name)[: len(bars)] == bars for name, bars in known.items())
        assert not piece.info["warnings"]
        assert windows(piece) >= 3 or case in ("words too", "in turn")
    stream = run.stream(verb, **asked, **how)
    chunks = list(stream)
    told = pieces[0].info
    assert stream.piece.info == {**told, "request": {**told["request"], "n": 1}}
    for name in set(stream.piece.made) - {"words"}:
        bars = [c.content[0] if c.content else () for c in chunks if c.modality == name]
        assert list(stream.piece.content(name)[-len(bars) :]) == bars
        times = [c.begin for c in chunks if c.modality == name]
        assert np.diff(times).tolist() == [4.0] * (len(bars) - 1)


@pytest.mark.parametrize("case", ["one", "together", "beside", "beside and told", "more of both"])
def test_every_window_looks_as_in_training(run, monkeypatch, case):
    """Ids and times, token by token, those of the stream of what the window holds; and no chunk twice."""
    verb, asked, _ = CASES[case]
    seen, times = [], []
    generate, tell = Engine.generate, Clock.times

    def watched(engine, rows, *args, **options):
        times.append([])
        made = generate(engine, rows, *args, **options)
        seen.append((rows[0], made[0], times[-1]))
        return made

    def told(clock, walker, ids):
        found = tell(clock, walker, ids)
        times[-1].append(float(found[0]))
        return found

    monkeypatch.setattr(Engine, "generate", watched)
    monkeypatch.setattr(Clock, "times", told)
    (piece,) = getattr(run, verb)(**asked, **WILD)
    whole = {n: run.vocabulary.encode(n, piece.content(n)) for n in piece.document.modalities}
    shown = dict.fromkeys(piece.made, 0)
    for row, made, clock in seen:
        ids = np.concatenate([row.prompt.ids, made.ids])
        assert len(ids) <= run.engine.context
        parts = {n: encoded(run, n, local) for n, local in from_stream(run.vocabulary, ids).items()}
        turns = tuple(n for n in row.target.order if n in parts)
        before = [(name,) for name in parts if name not in turns]
        stream = to_stream(run.vocabulary, parts, Layout((*before, turns)))
        assert ids.tolist() == stream.ids[:-1].tolist()
        assert clock[:-1] == stream.clock[len(ids) - len(clock) : -2].tolist()
        for name, segment in parts.items():
            known = len(segment.ids)
            if name in piece.made:
                known = sum(len(s.ids) for s in [row.target.begun.get(name)] if s is not None)
                shown[name] += known
            first = segment.ids[:known].tobytes()
            assert first in whole[name].ids.tobytes(), "what is shown again is a stretch of the piece"
    assert all(count > 0 for count in shown.values())


def test_a_lone_chunk_lasts_until_others_begin(run):
    begun, member = encoded(run, "a", [0, 1, 4]), run.engine.rules.members["a"]
    assert end_of(begun, member) == 3.0, "nobody says when the next bar begins"
    assert end_of(begun, member, [0.0, 4.0, 8.0]) == 4.0
    two = encoded(run, "a", [0, 1, 0, 4])
    assert end_of(two, member, [0.0, 4.0, 9.0]) == 8.0, "as long as the one before"


def encoded(run, name, ids):
    tokenizer = run.vocabulary.tokenizer(name)
    return Encoded(name, ids, tokenizer.clock(ids), tokenizer.cuts(ids), 0)


def test_what_is_kept_is_not_shaped_by_the_end_of_the_room(run, monkeypatch):
    """With ten times the room, the same choices: the rounds that would differ are left to the next window."""
    prompts = []
    told = Job._row

    def noted(job, query, draft, prompt):
        row = told(job, query, draft, prompt)
        prompts.append((prompt, row))
        return row

    monkeypatch.setattr(Job, "_row", noted)
    run.generate(to="a+b", bars=2 * COUNT, **WILD)
    how = Sampling(**WILD)
    dropped = 0
    for prompt, row in prompts:
        (tight,) = prompt.engine.generate([row], how)
        (wide,) = prompt.engine.generate([replace(row, budget=10 * row.budget)], how)
        kept = _harvested(prompt, tight)
        dropped += sum(kept.made.values()) - sum(map(len, kept.kept.values()))
        free = _harvested(replace(prompt, budget=10 * row.budget), wide)
        for name, ids in kept.kept.items():
            assert free.made[name] >= len(ids) and free.kept[name][: len(ids)] == ids
    assert dropped > 0 and len(prompts) >= 3


@pytest.mark.parametrize("temperature", [0.9, 30.0])
def test_wishes_hold_over_the_seams(real, temperature):
    asked = {
        "melody": {"key": "D major", "range": "D4-D5", "ending": "D", "meter": "6/8"},
        "chords": {"key": "D major", "ending": "D", "meter": "6/8"},
    }
    how = {"temperature": temperature, "top_p": None}
    for piece in real.generate(to="chords+melody", bars=12, n=2, wishes=asked, **how):
        pitches = piece.content("melody").notes[:, 2]
        assert pitches.min() >= 62 and pitches.max() <= 74 and pitches[-1] % 12 == 2
        assert set((pitches % 12).tolist()) <= {2, 4, 6, 7, 9, 11, 1}
        segment = real.vocabulary.encode("melody", piece.content("melody"))
        assert segment.times.tolist() == [3.0 * n for n in range(12)]
        assert windows(piece) >= 3


def test_modalities_that_do_not_keep_step(real):
    """One in 6/8 and one in 5/4: what takes turns is not at the same time; all the same, so many bars."""
    asked = {"melody": {"meter": "6/8"}, "chords": {"meter": "5/4"}}
    (piece,) = real.generate(to="chords+melody", bars=9, wishes=asked, **WILD)
    for name, length in (("melody", 3.0), ("chords", 5.0)):
        times = real.vocabulary.encode(name, piece.content(name)).times
        assert times.tolist() == [length * n for n in range(9)]
    assert windows(piece) >= 3


@pytest.mark.parametrize("given", [{}, {"chords": CHART}])
def test_a_rhythm_goes_on_over_the_seams(real, given):
    like = real.vocabulary.tokenizer("melody").parse(LONG_TUNE)
    for wish in ("rhythm", "vary"):
        asked = {"melody": {wish: LONG_TUNE}}
        for piece in real.generate(to="melody", bars=16, wishes=asked, n=2, **given, **WILD):
            made = piece.content("melody").notes
            assert (made[:, :2] == like.notes[:, :2]).all()
            same = (made[:, 2] == like.notes[:, 2]).mean()
            assert same < 0.5 if wish == "rhythm" else 0.6 < same < 1
            assert windows(piece) >= (3 if given else 2)


def test_chords_for_a_tune_longer_than_the_context(real):
    (piece,) = real.generate(to="chords", melody=LONG_TUNE, wishes={"chords": {"key": "C major"}}, **WILD)
    ends = [real.vocabulary.encode(n, piece.content(n)).times[-1] for n in ("melody", "chords")]
    assert ends[0] == ends[1] == 15 * 4.0 and windows(piece) >= 3


def test_most_tokens(run):
    asked = {"to": "a+b", "bars": COUNT}
    told = refused(run.generate, max_tokens=60, **asked)
    assert told.startswith("max_tokens: 60 tokens are too few for 'a+b' (it takes ")
    least = int(told.split("takes ")[1].split()[0])
    for most in (least, least + 20, 3 * least):
        for piece in run.generate(max_tokens=most, n=2, **asked, **WILD):
            assert len(piece.content("a")) == len(piece.content("b")) == COUNT
            tokens = sum(piece.info["tokens"][name] + COUNT for name in "ab")
            assert tokens <= most


def test_only_what_cannot_be_is_refused(run):
    assert refused(run.generate, to="a", words="ab" * 30, bars=2).startswith(
        "words: prompt is longer than the context: 63 tokens given, context 48"
    )
    (piece,) = run.generate(to="a", words="ab" * 16, bars=COUNT, **WILD)
    assert len(piece.content("a")) == COUNT and windows(piece) > 10


def test_bits_are_of_what_is_kept(run):
    (piece,) = run.generate(to="a", bars=COUNT, temperature=0.0)
    tokens = piece.info["tokens"]["a"]
    assert 0.2 * tokens < piece.info["bits"]["a"] < 4 * tokens


def test_a_long_piece_is_made_again(folder, tmp_path, capsys):
    asked = ["generate", folder, "--to", "a+b", "--bars", COUNT, "-n", 2, "--temperature", 3]
    assert mmgpt(capsys, *asked, "--out", tmp_path / "out")[0] == 0
    code, out, _ = mmgpt(capsys, "replay", tmp_path / "out" / "0002.json", "--run", folder)
    assert code == 0 and "identical" in out and "differs" not in out


def test_a_walk_goes_on_from_any_border():
    rng = np.random.default_rng(3)
    tried = 0
    for _ in range(300):
        table = rng.integers(-1, 5, (5, 4)).astype(np.int32)
        final = np.array([False, *(rng.random(4) < 0.5)])
        grammar = Grammar(table, final, np.array([True, False, False, False]))
        walk = rng.integers(0, 4, 12)
        for border in np.flatnonzero(walk == 0)[1:]:
            try:
                state = grammar.walk(walk[:border])
            except UserError:
                continue
            rest = resumed(grammar, state, grammar.final)
            assert rest.accepts(walk[border:]) == grammar.accepts(walk)
            assert (
                (not rest.final[0] and not (rest.next_state[0, 1:] >= 0).any())
                or state == 0
                or (rest.next_state is grammar.next_state)
            )
            tried += grammar.accepts(walk)
    assert tried > 5
