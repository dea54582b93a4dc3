"""Continue, fill, keep a rhythm, count bars: known things stay, asked ones hold. The model is untrained."""

import json
from functools import partialmethod

import numpy as np
import pytest
from toy_runs import BEATS, DRUMS, TUNE, WILD, WORDS_A_B, new_run, refused

import multimodal_gpt as mm
from multimodal_gpt.generation.choosing import most_agreed
from multimodal_gpt.generation.clock import Clock
from multimodal_gpt.generation.engine import Engine
from multimodal_gpt.generation.request import from_plain_request
from multimodal_gpt.generation.sampling import Sampling
from multimodal_gpt.generation.walker import Plan
from multimodal_gpt.stream.arrangement import Gap, Layout, to_stream
from multimodal_gpt.stream.vocabulary import Encoded

CHART = "| C | G7 | Am F |"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    orders = [["words", "a+b"], ["b+a"]]
    folder = new_run(tmp_path_factory.mktemp("tasks") / "run", WORDS_A_B, orders, 256, hole=0.2, drop=0.1)
    return mm.load(folder, device="cpu")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    names = {"chords": {}, "melody": {}}
    home = tmp_path_factory.mktemp("real")
    return mm.load(new_run(home / "run", names, [["chords+melody"]], 256, drop=0.1, hole=0.1), device="cpu")


def bars(piece, name="a"):
    return piece.content(name)


def parsed(words):
    return tuple(tuple(i for i, c in enumerate(bar) if c == "x") for bar in words.split())


@pytest.mark.parametrize("given", [{}, {"words": "ab"}])
@pytest.mark.parametrize("to", ["a", "b", "a+b", "b,a", "words,a"])
def test_exactly_so_many_bars(run, given, to):
    for count in (1, 3) if not given or "words" not in to else ():
        for piece in run.generate(to=to, bars=count, n=3, max_tokens=80, **given, **WILD):
            assert all(len(bars(piece, name)) == count for name in set(piece.made) - {"words"})


def test_bars_that_do_not_go_with_what_is_given(run):
    (piece,) = run.generate(to="a", b=DRUMS, bars=5)
    assert len(bars(piece)) == 5
    assert refused(run.generate, to="a", b=DRUMS, bars=4) == (
        "bars: 4 bars of 'a' are asked for, what is given has room for 5 (leave it out)"
    )
    assert refused(run.generate, to="a", bars=0) == "bars: 0 bars can't be made (1 or more)"


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("given", [{}, {"words": "ab"}])
def test_it_goes_on_from_what_is_known(run, count, given):
    for piece in run.extend(a=BEATS, bars=count, n=4, **given, **WILD):
        assert piece.made == ("a",)
        assert bars(piece)[:5] == parsed(BEATS) and len(bars(piece)) == 5 + count
        assert piece.made_spans["a"] == ((20.0, float("inf")),)


def test_as_far_as_the_model_likes(run):
    found = {len(bars(piece)) for piece in run.extend(a=BEATS, n=12, max_tokens=60, **WILD)}
    assert min(found) > 5 and len(found) > 1


def test_two_go_on_together(run):
    for piece in run.extend(a=BEATS, b=DRUMS, bars=3, n=4, **WILD):
        assert sorted(piece.made) == ["a", "b"]
        assert bars(piece)[:5] == parsed(BEATS) and bars(piece, "b")[:5] == parsed(DRUMS)
        assert len(bars(piece)) == len(bars(piece, "b")) == 8


def test_one_goes_on_as_far_as_the_other(run):
    for piece in run.extend(a=BEATS, b=f"{DRUMS} x... x...", to="a", n=4, **WILD):
        assert piece.made == ("a",)
        assert bars(piece)[:5] == parsed(BEATS) and len(bars(piece)) == 7
    assert refused(run.extend, a=BEATS, b="x...", to="a") == (
        "a: what is given ends where 'a' is to go on (give more of it, or none)"
    )


def test_what_has_no_bars_goes_on_too(run):
    for piece in run.extend(words="ab", to="words", n=3, max_tokens=40, **WILD):
        assert piece.content("words").startswith("ab") and len(piece.content("words")) > 2


@pytest.mark.parametrize("given", [{}, {"words": "ab"}, {"b": DRUMS}])
@pytest.mark.parametrize("gap", [(2, 3), (4, 4), (1, 2), (4, 5)])
def test_a_gap_is_filled_and_nothing_else_moves(run, given, gap):
    first, last = gap
    found = set()
    for piece in run.fill(a=BEATS, bars=gap, to="a", n=6, **given, **WILD):
        assert bars(piece)[: first - 1] == parsed(BEATS)[: first - 1]
        assert bars(piece)[last:] == parsed(BEATS)[last:] and len(bars(piece)) == 5
        assert piece.made_spans["a"] == ((4.0 * (first - 1), 4.0 * last if last < 5 else float("inf")),)
        assert not piece.info["warnings"]
        found.add(bars(piece))
    assert len(found) > 1


def test_a_gap_in_two_modalities(run):
    for piece in run.fill(a=BEATS, b=DRUMS, bars=(2, 3), n=3, **WILD):
        for name, words in (("a", BEATS), ("b", DRUMS)):
            assert bars(piece, name)[0] == parsed(words)[0] and bars(piece, name)[3:] == parsed(words)[3:]


def test_gaps_that_are_not_there(run):
    assert refused(run.fill, a=BEATS, bars=(5, 6)) == "bars: 'a' has no bars 5 to 6 (it has 5)"
    assert refused(run.fill, a=BEATS, bars=(3, 2)).startswith("bars: 3-2 are no bars")
    assert refused(run.fill, a=BEATS, to="b", bars=(1, 2)).startswith("to: 'b' is not given")
    assert refused(run.extend, words="ab", bars=2).startswith("nothing is given that has bars")


def test_a_piece_longer_than_the_context(run):
    """Only a window around the place is shown to the model; the rest is put back."""
    long = " ".join([*BEATS.split(), "xxxx", "xx.x"] * 20)
    assert sum(1 + len(bar) for bar in parsed(long)) > 1.5 * run.engine.context
    for given, count in (({}, 2), ({"words": "ab"}, 2), ({"b": f"{long} x... x..."}, None)):
        (piece,) = run.extend(a=long, to="a", bars=count, **given, **WILD)
        assert bars(piece)[:140] == parsed(long) and len(bars(piece)) == 142
        for gap in ((3, 4), (70, 71), (138, 139)):
            (piece,) = run.fill(a=long, bars=gap, to="a", **given, **WILD)
            assert bars(piece)[: gap[0] - 1] == parsed(long)[: gap[0] - 1]
            assert bars(piece)[gap[1] :] == parsed(long)[gap[1] :]


def test_real_tunes_go_on_and_gaps_are_filled(real):
    tokenizer = real.vocabulary.tokenizer("melody")
    before = tokenizer.decode(tokenizer.encode(tokenizer.parse(TUNE)))
    (piece,) = real.extend(melody=TUNE, chords=CHART, bars=2, **WILD)
    assert piece.content("melody").notes[: len(before.notes)].tolist() == before.notes.tolist()
    (piece,) = real.fill(melody=TUNE, chords=CHART, to="melody", bars=(2, 2), **WILD)
    after = piece.content("melody").notes
    bar = 4 * 48
    assert after[after[:, 0] < bar].tolist() == before.notes[before.notes[:, 0] < bar].tolist()
    assert after[after[:, 0] >= 2 * bar].tolist() == before.notes[before.notes[:, 0] >= 2 * bar].tolist()


def test_wishes_hold(real):
    asked = {"melody": {"key": "D major", "range": "D4-D5", "ending": "D"}, "chords": {"key": "D major"}}
    for piece in real.generate(to="chords+melody", bars=2, n=2, wishes=asked, **WILD):
        pitches = piece.content("melody").notes[:, 2]
        assert pitches.min() >= 62 and pitches.max() <= 74 and pitches[-1] % 12 == 2
        assert set((pitches % 12).tolist()) <= {2, 4, 6, 7, 9, 11, 1}


@pytest.mark.parametrize("given", [{}, {"chords": CHART}])
def test_the_same_rhythm_over_other_pitches(real, given):
    like = real.vocabulary.tokenizer("melody").parse(TUNE)
    for piece in real.generate(to="melody", wishes={"melody": {"rhythm": TUNE}}, n=2, **given, **WILD):
        assert (piece.content("melody").notes[:, :2] == like.notes[:, :2]).all()


def test_wishes_that_cannot_be_met(real):
    def ask(**wishes):
        return refused(real.generate, to="melody", chords="| C | G |", wishes={"melody": wishes})

    assert ask(rhythm=TUNE) == (
        "wishes: nothing that meets all wishes goes with what is given: 'melody' "
        "(ask for less, or give something else)"
    )
    assert ask(key="C major", ending="F#").startswith("melody: no such thing can be")
    assert ask(kay="C").startswith("melody: there is no wish 'kay'")
    assert refused(real.generate, to="chords", wishes={"melody": {"key": "C"}}).startswith(
        "wishes: 'melody' is not made"
    )


def test_nothing_can_be_wished_of_a_plugin_that_takes_no_wishes(run):
    assert refused(run.generate, to="words", wishes={"words": {"key": "C"}}).startswith(
        "words: nothing can be wished of 'words'"
    )


def test_a_request_survives_as_plain_values(real):
    asked = {"melody": {"rhythm": TUNE, "key": "C major"}}
    pieces = real.generate(to="melody", chords=CHART, n=2, seed=7, wishes=asked, temperature={"melody": 1.5})
    plain = json.loads(json.dumps(pieces[0].info["request"]))
    request = from_plain_request(plain, real.vocabulary)
    assert request.how == Sampling({"melody": 1.5}, None, 0.95, None, None)
    assert request.shown == {"chords": CHART, "melody.rhythm": TUNE}
    assert pieces[0].info["given"] == {"chords": CHART}
    again = real.answer(request)
    assert [p.info for p in again] == [p.info for p in pieces]
    assert [p.content("melody").notes.tolist() for p in again] == [
        p.content("melody").notes.tolist() for p in pieces
    ]
    assert "damaged" in refused(from_plain_request, {**plain, "to": 3}, real.vocabulary)
    assert "damaged" in refused(
        from_plain_request,
        {**plain, "given": {"chords": {"class": "Chords", "fields": {"x": 1}}}},
        real.vocabulary,
    )


LAYOUTS = {
    "plain": ("extend", {"a": BEATS}, None),
    "together": ("extend", {"a": BEATS, "b": DRUMS}, None),
    "beside": ("extend", {"a": BEATS, "b": f"{DRUMS} x... x...", "to": "a"}, None),
    "a gap": ("fill", {"a": BEATS, "bars": (2, 3)}, ("a", 1, 3)),
    "a gap beside": ("fill", {"a": BEATS, "b": DRUMS, "to": "a", "bars": (2, 4)}, ("a", 1, 4)),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_the_model_sees_what_it_saw_in_training(run, monkeypatch, case):
    """Ids and times, token by token: those of the stream of a finished document in the same layout."""
    verb, asked, gap = LAYOUTS[case]
    rows, made, times = [], [], []
    generate, tell = Engine.generate, Clock.times

    def watched(engine, asked_rows, *args, **options):
        rows.extend(asked_rows)
        made.extend(generate(engine, asked_rows, *args, **options))
        return made[-len(asked_rows) :]

    def told(clock, walker, ids):
        found = tell(clock, walker, ids)
        times.append(float(found[0]))
        return found

    monkeypatch.setattr(Engine, "generate", watched)
    monkeypatch.setattr(Clock, "times", told)
    (piece,) = getattr(run, verb)(**asked, **WILD)
    names = piece.document.modalities
    segments = {name: run.vocabulary.encode(name, piece.content(name)) for name in names}
    order = tuple(tuple(part.split("+")) for part in piece.info["layouts"][0].split(", "))
    stream = to_stream(run.vocabulary, segments, Layout(order, gap and Gap(*gap)))
    seen = np.concatenate([rows[0].prompt.ids, made[0].ids])
    assert seen.tolist() == stream.ids[:-1].tolist()
    known = len(seen) - len(times)
    prefix = Plan(run.engine.rules, [rows[0].target], [rows[0].budget]).programs[0].prefix
    before = np.concatenate([rows[0].prompt.clock, prefix.clock])
    assert before.tolist() == stream.clock[:known].tolist()
    assert times[:-1] == stream.clock[known:-2].tolist(), "all but END, which is never read"


@pytest.mark.parametrize("case", LAYOUTS)
def test_cached_and_uncached_make_the_same(run, monkeypatch, case):
    verb, asked, _ = LAYOUTS[case]
    found = [bars(p) for p in getattr(run, verb)(**asked, n=3, **WILD)]
    monkeypatch.setattr(Engine, "generate", partialmethod(Engine.generate, cached=False))
    assert [bars(p) for p in getattr(run, verb)(**asked, n=3, **WILD)] == found


def test_of_several_attempts_the_likeliest_is_kept(run):
    alone = run.generate(to="words", n=4, seed=5, **WILD)
    (one,) = run.generate(to="words", n=1, seed=5, best_of=6, **WILD)
    likeliest = run.generate(to="words", n=4, seed=5, best_of=6, **WILD)

    def surprise(piece):
        return piece.info["bits"]["words"] / (piece.info["tokens"]["words"] + 1)

    assert one.content("words") == likeliest[0].content("words")
    assert all(surprise(b) <= surprise(a) + 1e-9 for a, b in zip(alone, likeliest, strict=True))
    assert any(b.info["attempt"] for b in likeliest)
    assert refused(run.generate, to="words", best_of=0).startswith("best_of: 0 attempts")


def test_of_several_attempts_the_one_that_others_agree_with_is_kept(run):
    asked = run.questions.ask("generate", {"to": "a", "bars": 4, "seed": 5, "best_of": 6, **WILD})
    attempts = [run.answer(asked, attempt=number)[0].content("a") for number in range(6)]
    hits = [{(n, hit) for n, bar in enumerate(bars, 1) for hit in (-1, *bar)} for bars in attempts]
    shared = [sum(2 * len(a & b) / (len(a) + len(b)) for b in hits if b is not a) for a in hits]
    (kept,) = run.generate(to="a", bars=4, seed=5, best_of=6, best_by="agreement", **WILD)
    assert kept.info["attempt"] == int(np.argmax(shared))
    assert kept.content("a") == attempts[kept.info["attempt"]]
    assert kept.info["request"]["best_by"] == "agreement"
    assert "best_by" not in asked.plain()
    assert refused(run.generate, to="a", best_by="luck") == (
        "best_by: can't choose by 'luck' (likelihood, agreement, or in Python a function of the document)"
    )


def test_of_several_attempts_one_is_kept_by_a_metric_of_ones_own(run):
    def hits(document):
        return sum(map(len, document.content("a")))

    asked = run.questions.ask("generate", {"to": "a", "bars": 4, "seed": 5, "best_of": 6, **WILD})
    attempts = [run.answer(asked, attempt=number)[0].document for number in range(6)]
    (most,) = run.generate(to="a", bars=4, seed=5, best_of=6, best_by=hits, **WILD)
    (least,) = run.generate(to="a", bars=4, seed=5, best_of=6, best_by=lambda d: -hits(d), **WILD)
    assert hits(most.document) == max(map(hits, attempts)) > min(map(hits, attempts)) == hits(least.document)
    assert most.info["request"]["best_by"] == "own"
    assert refused(run.generate, to="a", best_by="own") == (
        "best_by: nobody tells which attempt is best (give the function again)"
    )


def test_what_most_attempts_have_in_common():
    def timed(ids, times):
        return Encoded("a", np.array(ids), np.array(times, dtype=np.float32), np.array([0]), 0)

    def timeless(ids):
        return Encoded("b", np.array(ids), None, np.array([], dtype=np.int64), 0)

    at_times = [timed([1, 2], [0, 1]), timed([1, 2], [0, 2]), timed([3, 2], [0, 2]), timed([4, 4], [5, 6])]
    assert most_agreed([{"a": segment} for segment in at_times], ["a"]) == 1
    in_order = [timeless([1, 2, 3]), timeless([3, 2, 1]), timeless([1, 2, 4]), timeless([1, 2])]
    assert most_agreed([{"b": segment} for segment in in_order], ["b"]) == 3
    assert most_agreed([{"b": timeless([1])}, {"b": timeless([1])}], ["b"]) == 0, "the first of equals"


@pytest.fixture
def sure(run):
    """The run, with opinions: an untrained model has none."""
    run.net.embedding.weight.mul_(64)
    yield run
    run.net.embedding.weight.div_(64)


def test_guidance_by_its_ends(sure):
    """0: as if nothing stood before; 1: as it is; far: something else again."""
    run = sure
    asked = {"to": "a+b", "bars": 3, "n": 4, "seed": 2, **WILD}
    alone = [bars(p) for p in run.generate(**asked)]
    told = [bars(p) for p in run.generate(words="abba", **asked)]
    assert alone != told
    assert [bars(p) for p in run.generate(words="abba", guidance=0.0, **asked)] == alone
    assert [bars(p) for p in run.generate(words="abba", guidance=1.0, **asked)] == told
    far = run.generate(words="abba", guidance=8.0, **asked)
    assert [bars(p) for p in far] not in (alone, told)
    assert all(len(bars(p)) == 3 for p in far)
    (piece,) = run.generate(to="a", bars=2, guidance=2.0)
    assert piece.info["warnings"] == ["nothing stands before 'a' in [a]: nothing guides it"]
    assert refused(run.generate, to="a", guidance=-1.0).startswith("guidance: -1.0 is no weight")


@pytest.mark.parametrize(
    "case", [("extend", {"a": BEATS, "words": "ab"}), ("fill", {"a": BEATS, "bars": (2, 3)})]
)
def test_guided_cached_and_uncached_make_the_same(run, monkeypatch, case):
    verb, asked = case
    asked = {"words": "ab", "to": "a", "guidance": 2.0, "n": 3, **asked, **WILD}
    found = [bars(p) for p in getattr(run, verb)(**asked)]
    monkeypatch.setattr(Engine, "generate", partialmethod(Engine.generate, cached=False))
    assert [bars(p) for p in getattr(run, verb)(**asked)] == found


CASES = [
    ("generate", {"to": "words"}, None),
    ("generate", {"to": "a", "bars": 4}, 4),
    ("generate", {"to": "a+b", "words": "abba"}, None),
    ("generate", {"to": "b,a", "bars": 3}, 3),
    ("generate", {"to": "a", "b": DRUMS}, 5),
    ("extend", {"a": BEATS}, None),
    ("extend", {"a": BEATS, "words": "ab", "bars": 2}, 7),
    ("extend", {"a": BEATS, "b": DRUMS, "bars": 3}, 8),
    ("fill", {"a": BEATS, "bars": (2, 4)}, 5),
    ("fill", {"a": BEATS, "b": DRUMS, "bars": (3, 3)}, 5),
]


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 5.0, 50.0])
def test_ten_thousand_pieces_are_legal(run, temperature):
    """200 of each case at each temperature; the model is untrained, so at 50 its choices are all but even."""
    for verb, asked, count in CASES:
        for piece in getattr(run, verb)(**asked, n=200, temperature=temperature, top_p=None, max_tokens=80):
            for name in piece.made:
                tokenizer, content = run.vocabulary.tokenizer(name), piece.content(name)
                assert tokenizer.grammar().accepts(tokenizer.encode(content))
                assert name == "words" or count in (None, len(content))
