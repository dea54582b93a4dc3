"""A picture of a document: everything that can be drawn, time along x, in lines of a few chunks.

Where it is known what was given and what was made, the two have colours of their own, and a legend.
"""

from __future__ import annotations

import inspect
import io
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.tokenizer import Tokenizer
from multimodal_gpt.stream.vocabulary import Vocabulary

Spans = tuple[tuple[float, float], ...]
"""Stretches of time, (start, stop) in quarter notes, in order."""
WHOLE: Spans = ((-math.inf, math.inf),)

FORMATS = ("png", "svg")
CHUNKS_PER_LINE = 8
"""Chunks in one line of a picture."""
LONGEST_LINE = 64.0
"""Quarter notes in one line of a picture where nothing tells of chunks."""
MOST_LINES = 64
"""Lines of a picture; what is longer is not drawn to its end."""
INCHES_WIDE, INCHES_PER_LINE, INCHES_ABOVE = 11.0, 2.3, 0.86
GIVEN, MADE = "#0072b2", "#d55e00"
"""Blue and vermilion from Okabe and Ito's palette: apart for colour-blind eyes and in grey."""
_FAR = 1e9  # quarter notes: what a clip can draw of infinity


def can_draw(vocabulary: Vocabulary, names: Iterable[str]) -> list[str]:
    """Those modalities that can be drawn."""
    return [name for name in names if hasattr(vocabulary.tokenizers[name], "draw")]


def takes_color(tokenizer: Tokenizer) -> bool:
    """Whether the plugin's `draw` can be told a colour."""
    return "color" in inspect.signature(tokenizer.draw).parameters  # type: ignore[attr-defined]


def draw(
    contents: Mapping[str, Any],
    vocabulary: Vocabulary,
    title: str,
    *,
    made: Mapping[str, Spans] | None = None,
    kind: str = "png",
) -> bytes:
    """A picture of contents that can be drawn, modality -> content; ticks count chunks.

    Args:
        title: lines above it.
        made: modality -> when it was made; a modality that is missing was given. None = nobody knows.
        kind: one of FORMATS.

    The same contents give the same bytes. Raises UserError for another kind.
    """
    end, starts = _extent(contents, vocabulary)
    lines = _lines(end, starts)
    height = INCHES_PER_LINE * len(lines) + INCHES_ABOVE + 0.1
    with canvas(kind, INCHES_WIDE, height, dpi=100) as (figure, file):
        # Fixed margins: a layout engine draws every line twice.
        figure.subplots_adjust(0.04, 0.3 / height, 0.99, 1 - INCHES_ABOVE / height, hspace=0.32)
        for axes, line in zip(figure.subplots(len(lines), 1, squeeze=False)[:, 0], lines, strict=True):
            _frame(axes, line, starts)
            _draw_line(contents, vocabulary, axes, line, made)
        figure.text(0.04, 1 - 0.08 / height, title, fontsize=10, va="top", parse_math=False)
        _legend(figure, 1 - 0.25 / height, contents, vocabulary, made)
    return file.getvalue()


@contextmanager
def canvas(
    kind: str, width: float, height: float, *, dpi: int = 110, style: Mapping[str, Any] | None = None
) -> Iterator[tuple[Any, io.BytesIO]]:
    """A matplotlib figure of some inches to draw on, and the io.BytesIO that holds it as a file afterwards:
    the same drawing gives the same bytes.

    `style` goes to matplotlib's rcParams meanwhile. Raises UserError where `kind` is none of FORMATS.
    """
    if kind not in FORMATS:
        raise UserError(f"a picture can't be written as '.{kind}'", fix=f"one of .{', .'.join(FORMATS)}")
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure, file = Figure(figsize=(width, height), dpi=dpi), io.BytesIO()
    FigureCanvasAgg(figure)
    with warnings.catch_warnings(), rc_context({"svg.hashsalt": "multimodal_gpt", **(style or {})}):
        warnings.simplefilter("ignore")  # a letter that the font lacks is drawn as a box
        yield figure, file
        nothing = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
        figure.savefig(file, format=kind, metadata=nothing)


def _frame(axes: Any, line: tuple[float, float], starts: np.ndarray) -> None:
    """A line of a picture before anything is drawn into it."""
    axes.set_xlim(*line)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    numbers = [n for n, start in enumerate(starts.tolist()) if line[0] <= start <= line[1]]
    axes.set_xticks(starts[numbers], [str(n + 1) for n in numbers], fontsize=7)
    axes.tick_params(labelsize=7, length=2, color="0.5")
    axes.grid(axis="x", color="0.85", linewidth=0.6)


def _draw_line(
    contents: Mapping[str, Any],
    vocabulary: Vocabulary,
    axes: Any,
    line: tuple[float, float],
    made: Mapping[str, Spans] | None,
) -> None:
    for name, content in contents.items():
        tokenizer = vocabulary.tokenizers[name]
        spans = () if made is None else made.get(name, ())
        if made is None or not takes_color(tokenizer):
            tokenizer.draw(content, axes)  # type: ignore[attr-defined]
        else:
            _draw_parts(tokenizer, content, axes, line, spans)
        for start, stop in (np.clip(span, *line) for span in spans if spans != WHOLE):
            if start < stop:
                axes.axvspan(start, stop, color=MADE, alpha=0.07, linewidth=0, zorder=-1)
    axes.set_xlim(*line)
    if not np.isfinite(axes.dataLim.intervaly).all():  # nothing but names above the line
        axes.set_yticks([])
    words = [t for t in axes.get_children() if hasattr(t, "get_unitless_position") and t.get_text()]
    for text in words:  # they may reach out of the axes, but not into another line
        text.set_visible(text.get_visible() and line[0] <= text.get_position()[0] < line[1])
    _spread([text for text in words if text.get_visible()], axes)


def _draw_parts(
    tokenizer: Tokenizer, content: Any, axes: Any, line: tuple[float, float], made: Spans
) -> None:
    """Draw what was given and what was made, each in its colour and within its spans."""
    for color, spans in ((GIVEN, _outside(made)), (MADE, made)):
        if not any(start < line[1] and line[0] < stop for start, stop in spans):
            continue
        before = {id(artist) for artist in axes.get_children()}
        tokenizer.draw(content, axes, color=color)  # type: ignore[attr-defined]
        if spans != WHOLE:
            _clip([a for a in axes.get_children() if id(a) not in before], spans, axes)


def _outside(spans: Spans) -> Spans:
    """The stretches between some."""
    borders = [-math.inf, *(border for span in spans for border in span), math.inf]
    pairs = zip(borders[::2], borders[1::2], strict=True)
    return tuple((start, stop) for start, stop in pairs if start < stop)


def _clip(artists: Iterable[Any], spans: Spans, axes: Any) -> None:
    """Hide what artists show outside of these spans; words stand at one time."""
    from matplotlib.path import Path

    limits = np.clip(np.array(spans, dtype=float), -_FAR, _FAR)
    boxes = [[(a, -1.0), (b, -1.0), (b, 2.0), (a, 2.0), (a, -1.0)] for a, b in limits.tolist()]
    within = Path.make_compound_path(*(Path(box, closed=True) for box in boxes))
    for artist in artists:
        if hasattr(artist, "get_unitless_position"):
            place = artist.get_position()[0]
            artist.set_visible(any(start <= place < stop for start, stop in spans))
        else:
            artist.set_clip_path(within, axes.get_xaxis_transform())


def _spread(words: Sequence[Any], axes: Any) -> None:
    """Lift words that would stand in each other, by a line or two."""
    ends: list[float] = []
    for text in sorted(words, key=lambda t: t.get_position()[0]):
        box = text.get_window_extent()
        row = next((r for r, end in enumerate(ends) if end < box.x0), len(ends))
        ends[row : row + 1] = [box.x1 + 2]
        if 0 < row < 3:
            x, y = text.get_position()
            text.set_position((x, y + row * 1.05 * box.height / axes.bbox.height))


def _legend(
    figure: Any,
    y: float,
    contents: Mapping[str, Any],
    vocabulary: Vocabulary,
    made: Mapping[str, Spans] | None,
) -> None:
    """What the colours mean, in the right corner."""
    if made is None:
        return
    from matplotlib.patches import Patch

    entries: dict[str, list[str]] = {GIVEN: [], MADE: []}
    for name in contents:
        spans = made.get(name, ())
        parts = [color for color, where in ((GIVEN, _outside(spans)), (MADE, spans)) if where]
        for color in parts if takes_color(vocabulary.tokenizers[name]) else ():
            entries[color].append(name if len(parts) == 1 else f"part of {name}")
    words = {GIVEN: "given", MADE: "made"}
    handles = [
        Patch(color=c, label=f"{words[c]}: {', '.join(names)}") for c, names in entries.items() if names
    ]
    if handles:
        style = {"ncols": 2, "fontsize": 9, "frameon": False, "borderpad": 0, "borderaxespad": 0}
        figure.legend(handles=handles, loc="upper right", bbox_to_anchor=(0.99, y), **style)


def _extent(contents: Mapping[str, Any], vocabulary: Vocabulary) -> tuple[float, np.ndarray]:
    """When the last token sounds, and (C,) when the chunks begin, quarter notes."""
    end, starts = 1.0, np.zeros(1)
    for name, content in contents.items():
        segment = vocabulary.encode(name, content)
        if segment.clock is not None:
            end = max(end, float(segment.clock[-1]))
            starts = max(starts, segment.times, key=len)
    return end, starts


def _lines(end: float, starts: np.ndarray) -> list[tuple[float, float]]:
    """(start, stop) of the lines of a picture: each begins with a chunk as long as there are any."""
    chunk = float(np.median(np.diff(starts))) if len(starts) > 1 else LONGEST_LINE / CHUNKS_PER_LINE
    width = CHUNKS_PER_LINE * chunk
    firsts = starts[::CHUNKS_PER_LINE].tolist()
    while end >= firsts[-1] + width and len(firsts) < MOST_LINES:
        firsts.append(firsts[-1] + width)
    stops = [*firsts[1:], firsts[-1] + width]
    return [(first, max(first + width, stop)) for first, stop in zip(firsts, stops, strict=True)][:MOST_LINES]
