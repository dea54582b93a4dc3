"""The lens adds up to the likelihood, sees what one modality tells of another, and draws it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_looking
from command_line import mmgpt
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from multimodal_gpt.errors import UserError
from multimodal_gpt.evaluation.likelihood import segment_bits
from multimodal_gpt.generation.session import Run
from multimodal_gpt.looking.attention_weights import attention_weights, mean_weights, rollout, weights
from multimodal_gpt.looking.lens import Lens, carriers, lens
from multimodal_gpt.looking.lens_picture import colours, draw
from multimodal_gpt.looking.looks import Look, largest
from multimodal_gpt.looking.words import Words
from multimodal_gpt.stream.arrangement import Layout, Stream, to_stream
from multimodal_gpt.stream.plugins import load_module
from multimodal_gpt.training.checkpoint import save_run

ORDERS = [["letters", "beats+drums"], ["beats+drums", "letters"]]
BEATS, DRUMS = "x... .x.. ..x.", "x.x. .x.. x.x."


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    plugin = toy_looking.drawn_plugin(tmp_path_factory.mktemp("plugins"))
    tokenizers = {
        "letters": {"plugin": str(toy_looking.TOYS / "letters.py")},
        "beats": {"plugin": plugin},
        "drums": {"plugin": plugin},
    }
    return toy_looking.toy_run(tokenizers, ORDERS)


@pytest.fixture(scope="module")
def seen(run: Run) -> Lens:
    return lens(run, drums=DRUMS, beats=BEATS)


# Attention


class Calls(TorchFunctionMode):
    """Keeps what goes into attention and what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[torch.Tensor, ...]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            self.found.append((*args[:3], result))
        return result


def test_weights_are_a_plain_softmax() -> None:
    query, key = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8)
    found = weights(query, key)
    for head in range(4):
        for place in range(5):
            scores = key[0, head // 2, : place + 1] @ query[0, head, place] / 8**0.5
            expected = F.pad(scores.exp() / scores.exp().sum(), (0, 4 - place))
            torch.testing.assert_close(found[0, head, place], expected)


def test_weights_are_those_that_the_model_used(run: Run) -> None:
    ids, clock = torch.arange(1, 20), torch.arange(19) / 2
    with Calls() as calls:
        run.net(ids[None], clock=clock[None])
    assert len(calls.found) == 2
    for query, key, value, result in calls.found:
        spread = weights(query, key) @ value.repeat_interleave(2, dim=1)
        torch.testing.assert_close(spread, result, atol=1e-5, rtol=1e-4)
    found = attention_weights(run.net, ids, clock)
    expected = torch.cat([weights(query, key).mean(dim=1) for query, key, *_ in calls.found])
    torch.testing.assert_close(found, expected)


def test_rows_of_attention_sum_to_1_and_look_back_only(run: Run) -> None:
    layers = attention_weights(run.net, torch.arange(1, 30), torch.zeros(29))
    for found in (*layers, mean_weights(layers), rollout(layers)):
        torch.testing.assert_close(found.sum(dim=-1), torch.ones(29))
        assert (found.triu(1) == 0).all()


def test_rollout_multiplies_the_blocks() -> None:
    first = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    second = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert rollout(first[None]).tolist() == [[1.0, 0.0], [0.5, 0.5]]
    assert rollout(torch.stack([first, second])).tolist() == [[1.0, 0.0], [0.5, 0.5]]
    assert rollout(torch.stack([first, first])).tolist() == [[1.0, 0.0], [0.75, 0.25]]


# Bits


def test_the_lens_adds_up_to_the_likelihood(run: Run, seen: Lens) -> None:
    order = [tuple(part.split("+")) for part in seen.layout.split(", ")]
    assert order == [("beats", "drums")]

    def bits(segments):
        return segment_bits(run.net, run.vocabulary, segments, order, "drums")

    assert seen.total.known == pytest.approx(bits(seen.segments))
    assert seen.total.none == pytest.approx(bits({"drums": seen.segments["drums"]}))
    tokenizer = run.vocabulary.tokenizer("beats")
    shifted = [tokenizer.shift(seen.contents["beats"], steps) for steps in range(-5, 7) if steps]
    others = [run.vocabulary.encode("beats", content) for content in shifted if content is not None]
    assert len(others) == 1  # the hits leave one place free
    assert seen.total.other == pytest.approx(bits({**seen.segments, "beats": others[0]}))


def test_each_mark_costs_what_its_token_does(run: Run, seen: Lens) -> None:
    """Against the definition: softmax over the target's ids, the tags and <end> at the place before."""
    stream = to_stream(run.vocabulary, seen.segments, Layout((("beats", "drums"),)))
    ids, clock = torch.from_numpy(stream.ids.astype(np.int64)), torch.from_numpy(stream.clock)
    logits = run.net.logits(run.net(ids[None], clock=clock[None]))[0].double()
    place = run.vocabulary.ranges["drums"]
    allowed = [3, *(r.tag for r in run.vocabulary.ranges.values()), *range(place.first, place.stop)]
    assert [mark.word for mark in seen.marks] == ["0", "2", "1", "0", "2"]
    assert [mark.time for mark in seen.marks] == [0.0, 2.0, 5.0, 8.0, 10.0]
    for mark in seen.marks:
        scores = logits[mark.token - 1, allowed].log_softmax(0) / np.log(2)
        assert mark.known == pytest.approx(-float(scores[allowed.index(int(ids[mark.token]))]))
        assert stream.clock[mark.token] == mark.time


def test_marks_of_what_has_no_symmetry_are_all_its_tokens(run: Run) -> None:
    found = lens(run, letters="abba", beats=BEATS)
    assert found.layout == "beats, letters"
    assert [(mark.word, mark.time) for mark in found.marks] == [(c, None) for c in "abba"]
    assert sum(mark.known for mark in found.marks) < found.total.known  # <end> is charged too


def test_what_can_not_be_moved_is_marked_whole(run: Run) -> None:
    assert [mark.word for mark in lens(run, drums="x..x", beats="x...").marks] == ["|", "0", "3"]


def test_of_a_note_the_pitch_is_marked_and_of_a_harmony_its_root() -> None:
    melody, chords = (load_module(name).build() for name in ("melody", "chords"))
    tune = melody.parse("D4 F#4 A4:2 | G4")
    ids = melody.encode(tune)
    assert melody.show(ids[carriers(melody, tune, ids)]) == "D4 F#4 A4 G4"
    changes = chords.parse("| D | G7/B |")
    ids = chords.encode(changes)
    assert carriers(chords, changes, ids).tolist() == [1, 4, 6]  # D; G and its bass


def test_another_context_can_be_named(run: Run, seen: Lens) -> None:
    found = lens(run, drums=DRUMS, beats=BEATS, against="..x. x... x...")
    assert found.against == "| 2 | 0 | 0"
    other = run.vocabulary.encode("beats", ((2,), (0,), (0,)))
    expected = segment_bits(
        run.net, run.vocabulary, {**seen.segments, "beats": other}, [("beats", "drums")], "drums"
    )
    assert found.total.other == pytest.approx(expected)
    assert found.total.known == pytest.approx(seen.total.known)


def test_what_else_is_given_stays(run: Run) -> None:
    found = lens(run, drums=DRUMS, letters="ab", beats=BEATS, through="beats")
    assert found.layout == "letters, beats+drums"
    rest = {name: found.segments[name] for name in ("letters", "drums")}
    expected = segment_bits(run.net, run.vocabulary, rest, [("letters",), ("beats", "drums")], "drums")
    assert found.total.none == pytest.approx(expected)


def test_a_context_without_symmetry_has_no_other(run: Run) -> None:
    found = lens(run, drums=DRUMS, letters="ab")
    assert np.isnan(found.total.other) and all(np.isnan(mark.other) for mark in found.marks)
    assert found.plain()["total"]["other"] is None
    json.dumps(found.plain(), allow_nan=False)


def test_a_part_of_a_piece_keeps_its_times(run: Run, seen: Lens) -> None:
    part = lens(run, drums=DRUMS, beats=BEATS, start=4, stop=12)
    assert [mark.time for mark in part.marks] == [5.0, 8.0, 10.0]
    alone = lens(run, drums=".x.. x.x.", beats=".x.. ..x.")
    assert part.total == alone.total
    assert lens(run, drums=DRUMS, beats=BEATS, start=4, at=8).focus == 1


def test_a_trained_model_is_seen_through() -> None:
    """Where drums repeat the beats, beats save bits on every hit, and other beats mislead."""
    plugin = str(toy_looking.TOYS / "beats.py")
    tokenizers = {"beats": {"plugin": plugin}, "drums": {"plugin": plugin}}
    run = toy_looking.toy_run(tokenizers, [["beats", "drums"]], depth=2, kv_heads=4, context=64)
    _teach_copies(run)
    found = lens(run, drums="x... ..x. .x..", beats="x... ..x. .x..", against=".x.. x... ..x.")
    assert all(mark.known < 0.3 and mark.none > 0.8 and mark.other > 2 for mark in found.marks)
    assert found.total.known < found.total.none < found.total.other


def _copies(run: Run, order: tuple[tuple[str], ...]) -> list[Stream]:
    """Any three bars of one beat each, twice."""
    streams = []
    for places in product(range(4), repeat=3):
        bars = run.vocabulary.encode("beats", tuple((place,) for place in places))
        segments = {"beats": bars, "drums": replace(bars, modality="drums")}
        streams.append(to_stream(run.vocabulary, segments, Layout(order)))
    return streams


def _teach_copies(run: Run) -> None:
    rng = np.random.default_rng(0)
    net = run.net.train().requires_grad_(True)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    first, second = (_copies(run, order) for order in ((("beats",), ("drums",)), (("drums",), ("beats",))))
    for _ in range(200):
        rows = [(first if rng.random() < 0.7 else second)[rng.integers(len(first))] for _ in range(16)]
        ids = torch.from_numpy(np.stack([r.ids for r in rows]).astype(np.int64))
        clock = torch.from_numpy(np.stack([r.clock for r in rows]))
        loss = net.loss(net(ids[:, :-1], clock=clock[:, :-1]), ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval().requires_grad_(False)


# Focus and looks


def test_the_focus_is_where_the_context_saves_most(run: Run, seen: Lens) -> None:
    saved = [mark.saved for mark in seen.marks]
    assert seen.focus == saved.index(max(saved))
    assert lens(run, drums=DRUMS, beats=BEATS, token=2).focus == 1
    assert lens(run, drums=DRUMS, beats=BEATS, at=7.9).focus == 2


def test_looks_are_all_tokens_before(run: Run, seen: Lens) -> None:
    mark = seen.marks[seen.focus]
    assert [look.token for look in seen.looks] == list(range(mark.token))
    assert sum(look.share for look in seen.looks) == pytest.approx(1)
    stream = to_stream(run.vocabulary, seen.segments, Layout((("beats", "drums"),)))
    ids, clock = torch.from_numpy(stream.ids.astype(np.int64)), torch.from_numpy(stream.clock)
    layers = attention_weights(run.net, ids, clock)
    rolled = lens(run, drums=DRUMS, beats=BEATS, way="rollout")
    for found, way in ((seen, mean_weights), (rolled, rollout)):
        expected = way(layers)[mark.token - 1, : mark.token].tolist()
        assert [look.share for look in found.looks] == pytest.approx(expected, abs=1e-5)
    assert [look.word for look in seen.looks][:5] == ["<doc>", "<mix>", "<beats>", "|", "0"]
    assert [look.modality for look in seen.looks][:5] == ["", "", "", "beats", "beats"]


def test_tokens_of_one_word_are_told_as_one() -> None:
    looks = [
        Look(0, "", None, "<doc>", 0.25),
        Look(1, "chords", 0.0, "D", 0.2),
        Look(2, "chords", 0.0, "D", 0.3),
        Look(3, "chords", 4.0, "D", 0.25),
    ]
    assert [(look.word, look.time, look.share) for look in largest(looks, 2)] == [
        ("D", 0.0, 0.5),
        ("<doc>", None, 0.25),
    ]


def test_tokens_that_say_nothing_alone_say_their_word() -> None:
    run = toy_looking.toy_run({"chords": {}}, [["chords"]])
    segment = run.vocabulary.encode("chords", run.vocabulary.tokenizer("chords").parse("| D . G | Am/C |"))
    words = Words(run.vocabulary.tokenizer("chords")).of_segment(segment)
    assert words[:3] == ["|", "D", "D"]
    assert words[3].startswith("@") and words[4:6] == ["G", "G"]
    assert words[6:] == ["|", "Am/C", "Am/C", "Am/C"]


# Errors


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"drums": DRUMS}, "a lens needs two modalities"),
        ({"drums": DRUMS, "bets": BEATS}, "did you mean 'beats'?"),
        ({"drums": DRUMS, "beats": BEATS, "of": "letters"}, "'letters' is to be looked at and is not given"),
        ({"drums": DRUMS, "beats": BEATS, "of": "leters"}, "did you mean 'letters'?"),
        ({"drums": DRUMS, "beats": BEATS, "through": "letters"}, "'letters' is to be looked through"),
        ({"drums": DRUMS, "beats": BEATS, "through": "drums"}, "can't be looked at through itself"),
        ({"drums": DRUMS, "beats": "y"}, "beats: 'y' is not bars"),
        ({"drums": DRUMS, "beats": BEATS, "token": 6}, "token: there is no token 6 (1 to 5)"),
        ({"drums": DRUMS, "beats": BEATS, "at": -1.0}, "nothing has begun at -1 quarter notes"),
        ({"letters": "ab", "beats": BEATS, "at": 1.0}, "it has no times: name a token"),
        ({"drums": DRUMS, "beats": BEATS, "way": "meen"}, "did you mean 'mean'?"),
        ({"drums": DRUMS, "beats": BEATS, "start": 90.0}, "nothing of it begins between 90 and inf"),
        ({"drums": "x... ....", "beats": BEATS, "start": 4.0}, "drums: nothing of it begins between 4 and"),
        ({"drums": "xxxx " * 60, "beats": BEATS}, "and the model's context is 256 (look at a part of it"),
    ],
)
def test_what_can_not_be_looked_at(run: Run, wish: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        lens(run, **wish)
    assert message in str(error.value)


def test_what_does_not_fit_is_told(run: Run) -> None:
    assert lens(run, drums=DRUMS, beats="x...").warnings == (
        "'beats' ends at 4 quarter notes, 'drums' goes on: repeat it, or write more",
    )
    assert lens(run, beats=BEATS, letters="a", drums=DRUMS, of="letters").warnings == ()


# Pictures


def test_blue_is_likelier_and_red_is_not() -> None:
    likelier, neither, less = colours([2.0, 0.0, -2.0])
    assert likelier[2] > likelier[0] and less[0] > less[2]
    assert neither[0] == pytest.approx(neither[2], abs=0.02)
    assert colours([9.0])[0].tolist() == colours([3.0])[0].tolist()


def test_the_picture_colours_what_the_plugin_drew(seen: Lens) -> None:
    def drawn(saved: float) -> str:
        marks = tuple(replace(mark, known=1.0, other=1.0, none=1.0 + saved) for mark in seen.marks)
        return draw(replace(seen, marks=marks), "svg").decode()

    blue, red = (len(re.findall(hexadecimal, drawn(9.0))) for hexadecimal in ("#1f5fa8", "#b2182b"))
    assert (blue, red) == (2 * len(seen.marks) + 1, 1)  # boxes, bars and the legend
    assert drawn(-9.0).count("#b2182b") == 2 * len(seen.marks) + 1


def test_the_same_lens_gives_the_same_picture(run: Run, seen: Lens) -> None:
    assert draw(seen) == draw(seen)
    assert draw(seen).startswith(b"\x89PNG")
    assert draw(lens(run, letters="abba", drums=DRUMS)).startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"can't be written as '\.gif'"):
        draw(seen, "gif")


# The command


def test_the_command(run: Run, tmp_path: Path, monkeypatch, capsys) -> None:
    save_run(tmp_path / "run", run.net, run.vocabulary, run.recipe, {"step": 0, "tokens": 0})
    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> tuple[int, str, str]:
        return mmgpt(capsys, "lens", "run", "--drums", DRUMS, *words)

    code, out, err = command("--beats", BEATS, "--out", "pictures/lens.svg")
    assert code == 0, err
    assert (tmp_path / "pictures" / "lens.svg").read_text().startswith("<?xml")
    assert "with beats  with other  without  saved" in out and "bits with the given beats" in out
    code, out, err = command("--beats", BEATS, "--json", "--token", "2")
    found = json.loads(out)
    assert (len(found["marks"]), found["attention"]["mark"], found["target"]) == (5, 2, "drums")
    message = "mmgpt: pictures/lens.svg: the file is there already (name another, or add --force)\n"
    assert command("--beats", BEATS, "--out", "pictures/lens.svg") == (2, "", message)
    assert command("--beets", BEATS)[2].count("\n") == 1
    assert command()[2].startswith("mmgpt: a lens needs two modalities")
