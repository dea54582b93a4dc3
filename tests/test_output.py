"""What was made, as files and pictures. Nothing is generated here: pieces are put together by hand."""

import io
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from multimodal_gpt.errors import UserError
from multimodal_gpt.generation.output import Piece, picture, write_all
from multimodal_gpt.stream import picture as pictures
from multimodal_gpt.stream.document import Document, Segment
from multimodal_gpt.stream.picture import GIVEN, MADE, WHOLE, draw
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.vocabulary import Vocabulary

TOYS = Path(__file__).parent / "toys"
DRAWN = '''
from multimodal_gpt.stream.plugins import load_module
Beats = load_module("BEATS").Beats


class Drawn(Beats):
    """Beats with a picture, as older plugins draw: no colour is asked for."""

    def draw(self, content, axes):
        for number, bar in enumerate(content):
            axes.text(number * self.places, 1.0, "$x", clip_on=False)
            axes.plot([number * self.places + p for p in bar], [self.places] * len(bar), "o", color="lime")


def build(places=4):
    return Drawn(places)
'''


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Vocabulary:
    plugin = tmp_path_factory.mktemp("toys") / "drawn.py"
    plugin.write_text(DRAWN.replace("BEATS", str(TOYS / "beats.py")))
    toys = [Modality("letters", str(TOYS / "letters.py")), Modality("drawn", str(plugin))]
    return Vocabulary([Modality("chords", "chords"), Modality("melody", "melody"), *toys])


def piece(vocabulary, made=("melody",), spans=None, **contents) -> Piece:
    contents = {"chords": "C F | G C", "melody": "C5 D5 E5 F5 G5:4", **contents}
    segments = tuple(
        Segment(name, vocabulary.tokenizer(name).parse(text)) for name, text in contents.items() if text
    )
    given = {name: text for name, text in contents.items() if text and name not in made}
    info = {"made_by": "multimodal_gpt 0", "seed": 3, "row": 1, "given": given, "to": [*made]}
    return Piece(Document(segments), tuple(made), info, 0.0, vocabulary, spans or {})


def colors(data: bytes) -> set[str]:
    """Which of our colours an SVG uses."""
    return {c for c in (GIVEN, MADE, "#00ff00") if c.encode() in data}


def words(data: bytes) -> set[str]:
    """The words in an SVG, which says them in comments beside their outlines."""
    return set(re.findall(r"<!-- (.*?) -->", data.decode()))


def share(data: bytes, color: str, left: float, right: float) -> float:
    """Share of the pixels of a PNG's part (0 .. 1 of its width) that have nearly this colour."""
    image = imread(io.BytesIO(data))[..., :3]
    part = image[:, round(left * image.shape[1]) : round(right * image.shape[1])]
    return float((np.abs(part - to_rgb(color)).max(axis=-1) < 0.05).mean())


def test_given_and_made_have_colours_and_a_legend(vocabulary):
    data = picture(piece(vocabulary), "svg")
    assert colors(data) == {GIVEN, MADE}
    assert {"given: chords", "made: melody", "seed 3, piece 2", "C", "F", "G"} <= words(data)
    all_made = picture(piece(vocabulary, made=("melody", "chords")), "svg")
    assert colors(all_made) == {MADE} and "made: chords, melody" in words(all_made)


def test_what_was_made_in_part_is_drawn_in_both_colours(vocabulary):
    melody = " ".join(["C5"] * 32)  # one line of eight bars
    half = piece(vocabulary, spans={"melody": ((16.0, math.inf),)}, chords="", melody=melody)
    assert {"given: part of melody", "made: part of melody"} <= words(picture(half, "svg"))
    data = picture(half)
    left, right = (0.04, 0.5), (0.53, 0.9)
    assert share(data, GIVEN, *left) > 0.02
    assert share(data, MADE, *left) < 1e-3
    body = imread(io.BytesIO(data))[80:, :, :3]  # below the legend
    assert not (np.abs(body[:, 590:] - to_rgb(GIVEN)).max(axis=-1) < 0.05).any()
    assert share(data, MADE, *right) > 0.02


def test_filled_bars_are_shaded_and_names_change_colour(vocabulary):
    filled = piece(vocabulary, made=("chords",), spans={"chords": ((4.0, 8.0),)}, chords="C | F | G | C")
    axes, longer, whole = Figure().subplots(3)
    contents = {"chords": filled.content("chords")}
    pictures._draw_line(contents, vocabulary, axes, (0.0, 32.0), {"chords": ((4.0, 8.0),)})
    shown = {(t.get_text(), t.get_color()) for t in axes.texts if t.get_visible()}
    assert shown == {("C", GIVEN), ("F", MADE), ("G", GIVEN)}
    (shade,) = axes.patches
    assert (shade.get_x(), shade.get_width()) == (4.0, 4.0)
    pictures._draw_line(contents, vocabulary, longer, (0.0, 32.0), {"chords": ((12.0, math.inf),)})
    assert [(p.get_x(), p.get_width()) for p in longer.patches] == [(12.0, 20.0)]
    pictures._draw_line(contents, vocabulary, whole, (0.0, 32.0), {"chords": WHOLE})
    assert not whole.patches


def test_an_older_plugin_keeps_its_own_colours(vocabulary):
    both = piece(vocabulary, made=("drawn", "melody"), chords="", drawn="x... ..x.")
    data = picture(both, "svg")
    assert colors(data) == {MADE, "#00ff00"}
    assert {"made: melody", "seed 3, piece 2   made: drawn", "$x"} <= words(data)
    alone = piece(vocabulary, made=("drawn",), chords="", melody="", drawn="x... ..x.", letters="ab")
    data = picture(alone, "svg")
    assert {"ab", "seed 3, piece 2   made: drawn"} <= words(data)
    assert colors(data) == {"#00ff00"}


def test_without_a_maker_there_is_no_legend(vocabulary):
    contents = {"melody": vocabulary.tokenizer("melody").parse("C5 D5")}
    data = draw(contents, vocabulary, "", kind="svg")
    assert not colors(data) and not any(w.startswith(("given", "made")) for w in words(data))


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_same_piece_gives_the_same_bytes(vocabulary, kind):
    datas = [
        picture(piece(vocabulary, made=("melody", "chords"), spans={"melody": ((4.0, 8.0),)}), kind)
        for _ in "ab"
    ]
    assert datas[0] == datas[1]
    assert b"date" not in datas[0].lower()


def test_names_that_would_meet_stand_in_rows(vocabulary):
    crowded = vocabulary.tokenizer("chords").parse(" | ".join(["Cmaj7 Dm7b5/C Ebm7 Faug7"] * 8))
    axes = Figure(figsize=(11, 2)).subplots()
    axes.set_xlim(0, 32)
    pictures._draw_line({"chords": crowded}, vocabulary, axes, (0.0, 32.0), None)
    boxes = [t.get_window_extent() for t in axes.texts if t.get_visible()]
    assert len(boxes) == 32 and len({round(box.y0) for box in boxes}) == 3
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_line_shows_only_what_lies_in_it(vocabulary):
    long = vocabulary.tokenizer("melody").parse(" ".join(["C5", "E5"] * 32))
    axes = Figure().subplots()
    axes.set_xlim(32, 64)
    vocabulary.tokenizer("melody").draw(long, axes, color=MADE)
    left = [path.get_extents().x0 for path in axes.collections[0].get_paths()]
    assert left == list(range(32, 64))


def test_files_of_a_piece(vocabulary, tmp_path):
    one = piece(vocabulary)
    assert [p.name for p in one.write(tmp_path / "a.mid")] == ["a.mid", "a.json", "a.png"]
    assert [p.name for p in one.write(tmp_path / "b", svg=True)] == ["b.mid", "b.json", "b.png", "b.svg"]
    assert [p.name for p in one.write(tmp_path / "c.svg")] == ["c.mid", "c.json", "c.png", "c.svg"]
    assert (tmp_path / "c.svg").read_bytes() == (tmp_path / "b.svg").read_bytes() == picture(one, "svg")
    assert (tmp_path / "c.svg").read_bytes().startswith(b"<?xml")
    (paths,) = write_all([one], tmp_path / "all", svg=True)
    assert [p.name for p in paths] == ["0001.mid", "0001.json", "0001.png", "0001.svg"]


def test_a_picture_alone(vocabulary, tmp_path):
    one = piece(vocabulary)
    assert one.draw(tmp_path / "a.png").read_bytes() == one.draw(tmp_path / "a").read_bytes() == picture(one)
    assert one.draw(tmp_path / "a.svg").read_bytes() == picture(one, "svg")
    with pytest.raises(UserError, match=r"can't be written as '.jpg' \(one of .png, .svg\)"):
        one.draw(tmp_path / "a.jpg")
    silent = piece(vocabulary, made=("letters",), chords="", melody="", letters="ab")
    with pytest.raises(UserError, match="no modality of this piece can be drawn"):
        silent.draw(tmp_path / "b.svg")
    with pytest.raises(UserError, match=r"nothing in this piece is written as '.svg'"):
        silent.write(tmp_path / "b.svg")
    assert [p.name for p in silent.write(tmp_path / "b", svg=True)] == ["b.letters", "b.json"]


def test_spans_of_a_piece(vocabulary):
    part = piece(vocabulary, made=("melody", "chords"), spans={"melody": ((0.0, 4.0),)})
    assert part.spans == {"melody": ((0.0, 4.0),), "chords": WHOLE}
    assert piece(vocabulary).made_spans == {}


@pytest.mark.parametrize(
    ("spans", "outside"),
    [
        (WHOLE, ()),
        ((), WHOLE),
        (((0.0, 4.0),), ((-math.inf, 0.0), (4.0, math.inf))),
        (((0.0, 4.0), (4.0, 8.0)), ((-math.inf, 0.0), (8.0, math.inf))),
        (((4.0, math.inf),), ((-math.inf, 4.0),)),
    ],
)
def test_what_lies_between_spans(spans, outside):
    assert pictures._outside(spans) == outside


def test_only_a_plugin_that_asks_is_told_a_colour():
    old = SimpleNamespace(draw=lambda content, axes: None)
    new = SimpleNamespace(draw=lambda content, axes, color=None: None)
    assert pictures.takes_color(new) and not pictures.takes_color(old)
