"""Asking a run: wishes, layouts, files. The model is untrained: everything must be legal all the same."""

import json
from pathlib import Path

import mido
import numpy as np
import pytest
import symusic
from toy_runs import TOYS, new_run, refused

import multimodal_gpt as mm
from multimodal_gpt.errors import UserError
from multimodal_gpt.generation import session
from multimodal_gpt.generation.layout import Choice, choices, parse_wish
from multimodal_gpt.generation.output import write_all
from multimodal_gpt.stream.arrangement import Arrangement, merge_chunks

TRACKS = '''
class Tracks(Beats):
    """Beats in a file that can hold several tracks, with a picture."""

    suffixes = (".tracks",)

    def write(self, content, path, *, append=False, note=""):
        bars = ("".join("x" if p in bar else "." for p in range(self.places)) for bar in content)
        before = path.read_text() if append else ""
        path.write_text(f"{before}{' '.join(bars)} # {note}\\n")
        return path

    def draw(self, content, axes):
        for number, bar in enumerate(content):
            axes.text(number * self.places, 1.0, "$x", clip_on=False)
            axes.plot([number * self.places + p for p in bar], [self.places] * len(bar), "o")


def build(places=4):
    return Tracks(places)
'''
ORDERS = [["letters", "beats+drums"], ["beats+drums", "letters"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("run")
    (home / "tracks.py").write_text((TOYS / "beats.py").read_text() + TRACKS)
    return make_run(home / "run", str(home / "tracks.py"), context=256)


def make_run(path: Path, beats: str, context: int) -> Path:
    toys = {"letters": str(TOYS / "letters.py"), "beats": beats, "drums": beats}
    return new_run(path, {name: {"plugin": plugin} for name, plugin in toys.items()}, ORDERS, context)


@pytest.fixture(scope="module")
def run(folder):
    return mm.load(folder, device="cpu")


def contents(pieces):
    return [tuple((s.modality, s.content) for s in p.document.segments) for p in pieces]


def test_words_to_files(run, tmp_path):
    pieces = run.generate(letters="abba", to=["beats", "drums"], n=3, seed=4)
    assert [p.document.modalities for p in pieces] == [("letters", "beats", "drums")] * 3
    assert pieces[0].made == ("beats", "drums") and pieces[0].content("letters") == "abba"
    written = pieces[0].write(tmp_path / "waltz.tracks")
    assert [p.name for p in written] == ["waltz.tracks", "waltz.json", "waltz.png"]
    tracks = (tmp_path / "waltz.tracks").read_text().splitlines()
    assert [t.split(" # ")[0].split() for t in tracks] == [
        ["".join("x" if p in bar else "." for p in range(4)) for bar in pieces[0].content(n)]
        for n in ("beats", "drums")
    ]
    car = json.loads((tmp_path / "waltz.json").read_text())
    assert (car["seed"], car["row"], car["given"], car["to"]) == (
        4,
        0,
        {"letters": "abba"},
        ["beats", "drums"],
    )
    assert car["checkpoint"]["sha256"] == run.info["sha256"]
    assert car["layouts"] == ["letters, beats", "letters, beats+drums"] and car["warnings"] == []
    assert set(car["bits"]) == {"beats", "drums"} and min(car["bits"].values()) > 0
    assert json.loads(tracks[0].split(" # ")[1])["seed"] == 4
    assert (tmp_path / "waltz.png").read_bytes().startswith(b"\x89PNG")


def test_made_chunks_take_turns_with_given_ones(run):
    """Every bar of one gets a bar of the other, and the given bars stay as they are."""
    for piece in run.generate(beats="x... ..x. xxxx", to="drums", n=5):
        assert piece.content("beats") == ((0,), (2,), (0, 1, 2, 3))
        assert len(piece.content("drums")) == 3


def test_two_together(run):
    for piece in run.generate(letters="ab", to="beats+drums", n=5, max_tokens=60):
        assert len(piece.content("beats")) == len(piece.content("drums"))
        assert piece.info["layouts"] == ["letters, beats+drums"]


def test_same_seed_same_files(folder, run, tmp_path):
    ask = {"letters": "abba", "to": "beats,drums", "temperature": 2.0, "seed": 3}
    again = mm.load(folder, device="cpu")
    write_all(run.generate(n=2, **ask), tmp_path / "a")
    write_all(again.generate(n=2, **ask), tmp_path / "b")
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == [f"000{n}.{s}" for n in (1, 2) for s in ("json", "png", "tracks")]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert contents(run.generate(n=5, **ask))[:2] == contents(again.generate(n=2, **ask))
    assert contents(run.generate(n=2, **{**ask, "seed": 4})) != contents(run.generate(n=2, **ask))


DIRECTIONS = [
    ({}, "letters"),
    ({}, "beats+drums,letters"),
    ({"letters": "abba"}, "beats,drums"),
    ({"letters": "abba"}, "beats+drums"),
    ({"beats": "x..x .x.. x..."}, "drums,letters"),
    ({"drums": "x..x .x.. x..."}, "letters,beats"),
    ({"beats": "x... x...", "drums": "...x x..."}, "letters"),
]


def legal(run, directions, count: int) -> None:
    for number, (given, to) in enumerate(directions):
        for piece in run.generate(to=to, n=count, temperature=5.0, top_p=None, seed=number, **given):
            for name in piece.made:
                tokenizer = run.vocabulary.tokenizer(name)
                content = piece.content(name)
                assert tokenizer.units(content) >= 1
                assert tokenizer.grammar().accepts(tokenizer.encode(content))
            assert sum(piece.info["tokens"].values()) < run.engine.context


def test_an_untrained_model_makes_legal_pieces(run):
    legal(run, DIRECTIONS, 7)


@pytest.mark.slow
def test_an_untrained_model_makes_legal_pieces_a_thousand_times(run):
    legal(run, DIRECTIONS, 1000)


REAL = {"text": {"encoding": "bytes"}, "chords": {}, "melody": {}}
REAL_DIRECTIONS = [
    ({}, "melody"),
    ({"text": "a jig in D \N{SNOWMAN} <melody>"}, "melody,chords"),
    ({"text": "a jig"}, "chords+melody"),
    ({"chords": "Am F C G"}, "melody,text"),
]


@pytest.fixture(scope="module")
def real_run(tmp_path_factory):
    orders = [["text", "chords+melody"], ["chords+melody", "text"]]
    return mm.load(new_run(tmp_path_factory.mktemp("real") / "run", REAL, orders, context=160), device="cpu")


def test_an_untrained_model_makes_real_files(real_run, tmp_path):
    legal(real_run, REAL_DIRECTIONS, 2)
    (piece,) = real_run.generate(chords="Am F C G", to="melody,text", temperature=5.0)
    written = piece.write(tmp_path / "tune.mid")
    assert [p.name for p in written] == ["tune.mid", "tune.txt", "tune.json", "tune.png"]
    for (
        name
    ) in piece.document.modalities:  # an untrained model's meters may clash: one file has one meter at a time
        tokenizer = real_run.vocabulary.tokenizer(name)
        (item,) = tokenizer.read(tmp_path / f"tune{tokenizer.suffixes[0]}")
        assert tokenizer.units(item.content) >= 1
    (answer,) = real_run.generate(melody=tmp_path / "tune.mid", to="chords", temperature=5.0)
    assert len(answer.info["layouts"]) == 1 and answer.info["warnings"] == []


QUESTIONS = [
    ({"text": "a jig in D major"}, "melody,chords"),
    ({"melody": "D4 F#4 A4 D5:2 r A4:3"}, "chords"),
    ({"chords": "Am F C G"}, "melody"),
    ({"melody": "D4 F#4 A4 D5:2 r A4:3"}, "text"),
]


def opens(piece, folder: Path) -> None:
    """What was made, written and opened: music by two readers with a note in each track, words as UTF-8."""
    for number, name in enumerate(piece.made):
        tokenizer = piece.vocabulary.tokenizer(name)
        path = folder / f"piece{tokenizer.suffixes[0]}"
        tokenizer.write(piece.content(name), path, append=number > 0)
    if piece.made == ("text",):
        assert path.read_text("utf-8").strip()
        return
    tracks = [t for t in mido.MidiFile(path).tracks if any(m.type == "note_on" for m in t)]
    score = symusic.Score(path)
    assert len(tracks) == len(score.tracks) == len(piece.made)
    assert all(len(track.notes) for track in score.tracks)


@pytest.mark.parametrize("count", [3, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("given", "to"), QUESTIONS, ids=["tune", "harmony", "line", "words"])
def test_every_file_of_an_untrained_model_opens(real_run, tmp_path, given, to, count):
    pieces = real_run.generate(**given, to=to, n=count, seed=5, temperature=5.0, top_p=None)
    assert len(pieces) == count
    for piece in pieces:
        opens(piece, tmp_path)


def test_modalities_that_take_turns_keep_step(real_run):
    def bar_lines(piece, name):
        segment = piece.vocabulary.encode(name, piece.content(name))
        return segment.times.tolist()

    for piece in real_run.generate(chords="6/8: C F | 3/4: G | 6/8: C", to="melody", n=4, temperature=5.0):
        assert bar_lines(piece, "melody") == bar_lines(piece, "chords") == [0.0, 3.0, 6.0]
    for piece in real_run.generate(to="chords+melody", n=6, temperature=5.0):
        times = [bar_lines(piece, name) for name in ("chords", "melody")]
        assert times[0][: len(times[1])] == times[1][: len(times[0])]


@pytest.mark.parametrize("context", [24, 32, 48])
def test_a_small_context_is_refused_or_kept(tmp_path, context):
    run = mm.load(make_run(tmp_path / "run", str(TOYS / "beats.py"), context), device="cpu")
    for bars in range(1, 14, 2):
        asked = {"beats": " ".join(["x..."] * bars), "to": "drums,letters", "n": 3, "temperature": 5.0}
        try:
            pieces = run.generate(**asked)
        except UserError as error:
            assert "prompt is longer than the context" in str(error) or "there is no room" in str(error)
            assert bars > context / 8
            continue
        for piece in pieces:
            assert piece.content("drums") and piece.content("letters")


def test_messages(run, tmp_path):
    assert (
        refused(run.generate, to="beat")
        == "to: there is no modality 'beat' in this run (did you mean 'beats'?)"
    )
    assert refused(run.generate, to="beats", leters="a") == (
        "there is no modality 'leters' in this run (did you mean 'letters'?)"
    )
    assert refused(run.generate, to="beats,letters", letters="a").startswith(
        "'letters' is both given and asked for"
    )
    assert refused(run.generate, to="beats,beats+drums") == "to: 'beats' is asked for twice"
    assert refused(run.generate, to="beats", letters="xyz").startswith("letters: 'xyz' is not a word")
    assert refused(run.generate, to="beats", letters=tmp_path / "no.letters").endswith(
        "there is no such file"
    )
    assert refused(run.generate, to="beats", n=0) == "n: 0 pieces can't be made (1 or more)"
    assert refused(run.generate, to="beats", seed=-1) == "seed: -1 is negative (0 or more)"
    assert refused(run.generate, to="beats", temperature={"beets": 1.0}).endswith("(did you mean 'beats'?)")
    assert refused(run.generate, to="beats", max_tokens=3) == (
        "max_tokens: 3 tokens are too few for 'beats' (it takes 4 or more)"
    )
    assert refused(run.generate, to="beats", letters="a" * 300) == (
        "letters: prompt is longer than the context: 303 tokens given, context 256, "
        "at least 4 more needed for 'beats' (give less, or train with a larger model.context)"
    )
    assert refused(session.load, tmp_path, device="cpu").endswith("(a trained run has one; train first)")
    assert refused(session.load, tmp_path, device="gppu").startswith("device: there is no device 'gppu'")


def test_given_as_words_file_or_content(run, tmp_path):
    path = tmp_path / "b.tracks"
    path.write_text("x..x\n..x.\n")
    by_file, by_words = (run.generate(beats=b, to="drums") for b in (path, "x..x ..x."))
    by_content = run.generate(beats=((0, 3), (2,)), to="drums")
    assert contents(by_file) == contents(by_words) == contents(by_content)
    assert by_file[0].info["given"] == {"beats": str(path)}
    (tmp_path / "empty.tracks").write_text("\n")
    assert refused(run.generate, beats=tmp_path / "empty.tracks", to="drums").endswith(
        "the file holds no beats"
    )
    (tmp_path / "a.mid").write_text("x")
    assert refused(run.generate, beats=tmp_path / "a.mid", to="drums").endswith("'beats' reads .tracks")


def test_nothing_is_overwritten_and_nothing_half_written(run, tmp_path):
    (piece,) = run.generate(beats="x...", to="drums,letters")
    (tmp_path / "p.letters").write_text("mine")
    assert "p.letters: the file is there already" in refused(piece.write, tmp_path / "p")
    assert [p.name for p in tmp_path.iterdir()] == ["p.letters"]
    written = piece.write(tmp_path / "p", force=True)
    assert sorted(p.name for p in written) == ["p.json", "p.letters", "p.png", "p.tracks"]
    assert sorted(tmp_path.iterdir()) == sorted(written)
    assert "nothing in this piece is written as '.mid'" in refused(piece.write, tmp_path / "p.mid")
    assert "and 3 more" in refused(write_all, [piece], write_all([piece], tmp_path / "all")[0][0].parent)


def test_only_what_was_made_or_named_is_written(run, tmp_path):
    (piece,) = run.generate(letters="ab", to="beats")
    assert [p.suffix for p in piece.write(tmp_path / "a")] == [".tracks", ".json", ".png"]
    assert [p.suffix for p in piece.write(tmp_path / "b.letters")] == [".letters", ".tracks", ".json", ".png"]


def test_progress_counts_parts(run):
    told = []
    run.generate(letters="ab", to="beats,drums", n=2, progress=lambda n, note: told.append((n, note)))
    assert [note for count, note in told for _ in range(count)] == ["beats"] * 2 + ["drums"] * 2


def test_wishes():
    known = ("a", "b", "c")
    assert parse_wish("a, b+c", known) == parse_wish(["a", "b+c"], known) == (("a",), ("b", "c"))
    assert "nothing is asked for" in refused(parse_wish, [], known)


def arranged(*orders, **options) -> list[Arrangement]:
    return [Arrangement(tuple(tuple(p.split("+")) for p in order.split()), **options) for order in orders]


@pytest.mark.parametrize(
    ("orders", "known", "wanted", "expected"),
    [
        (["a b c"], ["a"], "b", "a, b"),
        (["a b c"], ["b", "a"], "c", "a, b, c"),
        (["a b+c"], ["a", "b"], "c", "a, b+c"),
        (["a b+c"], ["a"], "b+c", "a, b+c"),
        (["a b+c"], ["a", "c"], "b", "a, b+c"),
        (["a b+c"], ["a"], "c", "a, c"),
        (["c b", "a b c", "a c"], ["a", "b"], "c", "a, b, c"),  # covers more
        (["b+a", "a b"], ["a"], "b", "a, b"),  # sees what sounds at the same time
        (["a c b", "a b"], ["a"], "b", "a, b"),
        (["b a"], [], "a", "a"),
    ],
)
def test_the_best_arrangement_is_taken(orders, known, wanted, expected):
    best = choices(arranged(*orders), known, tuple(wanted.split("+")))[0]
    assert (str(best), best.trained) == (expected, True)


def test_known_segments_that_no_arrangement_gives_first():
    assert choices(arranged("b a"), ["a"], ("b",))[0] == Choice((("a",),), ("b",), trained=False)
    assert choices(arranged("a b"), ["a"], ("b", "a2"))[0] == Choice((("a",),), ("b", "a2"), trained=False)
    assert choices(arranged("b a", weight=0.0), [], ("a",)) == [Choice((), ("a",), trained=False)]
    assert str(choices(arranged("b a", shuffle=True), ["a"], ("b",))[0]) == "a, b"


def test_turns_are_sorted_as_in_training(run):
    times = [np.array([0.0, 4.0]), np.array([0.0, 4.0])]
    assert [s for s, _, _ in merge_chunks(times)] == [0, 1, 0, 1]
