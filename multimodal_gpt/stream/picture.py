"""A picture of a document: everything that can be drawn, time along x, in lines of a few chunks."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from multimodal_gpt.stream.vocabulary import Vocabulary

CHUNKS_PER_LINE = 8
"""Chunks in one line of a picture."""
LONGEST_LINE = 64.0
"""Quarter notes in one line of a picture where nothing tells of chunks."""
MOST_LINES = 64
"""Lines of a picture; what is longer is not drawn to its end."""
INCHES_WIDE, INCHES_PER_LINE = 11.0, 2.2


def can_draw(vocabulary: Vocabulary, names: Iterable[str]) -> list[str]:
    """Those modalities that can be drawn."""
    return [name for name in names if hasattr(vocabulary.tokenizers[name], "draw")]


def draw(contents: Mapping[str, Any], vocabulary: Vocabulary, title: str) -> bytes:
    """A PNG of contents that can be drawn, modality -> content; ticks count chunks.

    The same contents give the same bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    end, starts = _extent(contents, vocabulary)
    lines = _lines(end, starts)
    height = INCHES_PER_LINE * len(lines) + 0.6
    figure = Figure(figsize=(INCHES_WIDE, height), dpi=100)
    FigureCanvasAgg(figure)
    # Fixed margins: a layout engine draws every line twice.
    figure.subplots_adjust(0.04, 0.3 / height, 0.99, 1 - 0.55 / height, hspace=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font lacks is drawn as a box
        for axes, line in zip(figure.subplots(len(lines), 1, squeeze=False)[:, 0], lines, strict=True):
            _draw_line(contents, vocabulary, axes, line)
            numbers = [n for n, start in enumerate(starts.tolist()) if line[0] <= start <= line[1]]
            axes.set_xticks(starts[numbers], [str(n + 1) for n in numbers], fontsize=7)
            axes.set_xlim(*line)
        figure.suptitle(title, fontsize=10, parse_math=False)
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _draw_line(
    contents: Mapping[str, Any], vocabulary: Vocabulary, axes: Any, line: tuple[float, float]
) -> None:
    for name, content in contents.items():
        vocabulary.tokenizers[name].draw(content, axes)  # type: ignore[attr-defined]
    for words in axes.get_children():  # they may reach out of the axes, but not into another line
        if hasattr(words, "get_unitless_position"):
            words.set_visible(line[0] <= words.get_position()[0] < line[1])
    axes.tick_params(labelsize=7)


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
