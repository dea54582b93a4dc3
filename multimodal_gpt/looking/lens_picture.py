"""The picture of a lens: the target as its plugin draws it, coloured by what the context saves at each token,
the bits below it, and below those where the model looked before it said one of the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multimodal_gpt.looking.lens import Lens, carriers
from multimodal_gpt.looking.looks import Look
from multimodal_gpt.stream.picture import CHUNKS_PER_LINE, LONGEST_LINE, canvas

FULL_COLOUR = 2.5
"""Bits at which a colour is at its deepest: nearly six times as likely."""
TOKENS_PER_LINE = 24
"""Of a target that has no times."""
_WIDE, _LEFT, _RIGHT = 11.0, 0.95, 0.2  # inches
_TOP, _DRAWN, _BARS, _GAP, _ATTENTION, _BOTTOM = 1.12, 2.1, 1.1, 0.58, 1.2, 0.05  # inches
_SIZE = 9.0  # points
_TOLD = 8
"""Looks that are named in the picture."""
_GREY, _VIOLET = "0.45", "#6a3d9a"


@dataclass(frozen=True)
class _Line:
    """One line of the picture: what lies in [start, stop) along x."""

    start: float
    stop: float
    ticks: tuple[float, ...]
    attention: bool

    @property
    def height(self) -> float:
        """Inches."""
        return _DRAWN + _BARS + (_ATTENTION if self.attention else 0) + _GAP

    @property
    def margin(self) -> float:
        """Room beside it along x."""
        return 0.008 * (self.stop - self.start)

    def holds(self, x: float) -> bool:
        """Whether a place lies in it."""
        return self.start - 1e-6 <= x < self.stop - 1e-6


def draw(lens: Lens, kind: str = "png") -> bytes:
    """The picture of a lens as PNG or SVG; the same lens gives the same bytes. Raises UserError for another
    kind.
    """
    lines = list(_lines(lens))
    height = _TOP + sum(line.height for line in lines) + _BOTTOM
    # `parse_math`: a dollar sign is a letter here.
    with canvas(kind, _WIDE, height, style={"font.size": _SIZE}) as (figure, file):
        _head(figure, lens, height)
        top = height - _TOP
        for number, line in enumerate(lines):
            _draw_line(figure, lens, line, top, height, last=number == len(lines) - 1)
            top -= line.height
    return file.getvalue()


def _xs(lens: Lens) -> list[float]:
    """Where the marks stand: their times in what was drawn, or their numbers where there are none."""
    return [float(i + 1) if m.time is None else m.time - lens.start for i, m in enumerate(lens.marks)]


def _lines(lens: Lens) -> Iterator[_Line]:
    xs = _xs(lens)
    starts = lens.segments[lens.target].times
    if lens.marks[0].time is None:
        width, ticks = float(min(TOKENS_PER_LINE, max(8, len(xs)))), np.arange(1, len(xs) + 1)
        firsts = np.arange(0.5, len(xs) + 0.5, width)
    else:
        chunk = float(np.median(np.diff(starts))) if len(starts) > 1 else LONGEST_LINE / CHUNKS_PER_LINE
        ticks, width = starts, min(CHUNKS_PER_LINE, max(4, len(starts))) * chunk
        firsts = starts[::CHUNKS_PER_LINE]
    stops = [*firsts[1:].tolist(), max(float(firsts[-1]) + width, xs[-1] + 1e-3)]
    for start, stop in zip(firsts.tolist(), stops, strict=True):
        inside = tuple(float(t) for t in ticks if start <= t < stop)
        told = lens.marks[0].time is not None and start <= xs[lens.focus]
        yield _Line(start, stop, inside, told)


def colours(saved: Sequence[float]) -> np.ndarray:
    """(N, 4) RGBA of (N,) saved bits: blue above 0, red below, pale grey at 0."""
    from matplotlib.colors import LinearSegmentedColormap

    scale = LinearSegmentedColormap.from_list("lens", ["#b2182b", "#ef8a62", "#e3e3e3", "#67a9cf", "#1f5fa8"])
    share = np.clip(np.asarray(saved) / FULL_COLOUR, -1, 1)
    return np.asarray(scale((share + 1) / 2))


def _head(figure: Any, lens: Lens, height: float) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    many = f"{lens.units} {lens.unit}{'s' if lens.units != 1 else ''}"
    total, context = lens.total, lens.context
    facts = (
        f"{many} cost {total.none:.0f} bits without the {context}, {total.known:.0f} with the given {context}"
    )
    if not math.isnan(total.other):
        facts += f", {total.other:.0f} with other {context} ({lens.against})"
    words = {"parse_math": False, "va": "top"}
    left = _LEFT / _WIDE
    title = f"What the model knows about the {lens.target} from the {context}"
    figure.text(left, 1 - 0.1 / height, title, fontsize=13, weight="bold", **words)
    figure.text(left, 1 - 0.38 / height, _cut(_given(lens) + facts + ".", 165), color="0.25", **words)
    handles: list[Any] = [
        Patch(facecolor=colours([FULL_COLOUR])[0], label=f"likelier with the given {context} than with none"),
        Patch(facecolor=colours([-FULL_COLOUR])[0], label="less likely"),
    ]
    if not math.isnan(total.other):
        handles.append(
            Line2D([], [], ls="", marker="o", ms=4, color=_GREY, label=f"the same with other {context}")
        )
    style = {"ncols": 3, "fontsize": _SIZE, "frameon": False, "borderpad": 0, "borderaxespad": 0}
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(left, 1 - 0.62 / height), **style)


def _given(lens: Lens) -> str:
    """What is given and has no times, in words: it can't be seen in the drawing."""
    timeless = [n for n, s in lens.segments.items() if s.clock is None and n != lens.target]
    shown = (lens.vocabulary.tokenizers[n].show(lens.segments[n].ids) for n in timeless)
    return "".join(f"Given {name} {_cut(words, 60)}. " for name, words in zip(timeless, shown, strict=True))


def _draw_line(figure: Any, lens: Lens, line: _Line, top: float, height: float, *, last: bool) -> None:
    def axes_at(top: float, tall: float) -> Any:
        box = (_LEFT / _WIDE, (top - tall) / height, 1 - (_LEFT + _RIGHT) / _WIDE, tall / height)
        axes = figure.add_axes(box)
        axes.spines[["top", "right"]].set_visible(False)
        return axes

    drawn, bars = axes_at(top, _DRAWN), axes_at(top - _DRAWN - 0.08, _BARS)
    _draw_contents(drawn, lens, line)
    _draw_bars(bars, lens, line)
    panels = [drawn, bars]
    if line.attention:
        panels.append(axes_at(top - _DRAWN - _BARS - 0.38, _ATTENTION - 0.3))
        _draw_looks(panels[-1], lens, line)
    for axes in panels:
        axes.set_xlim(line.start - line.margin, line.stop + line.margin)
        axes.set_xticks(line.ticks, [f"{t + lens.start:g}" for t in line.ticks] if axes is panels[-1] else [])
        axes.tick_params(labelsize=8, length=2, color="0.5")
        axes.grid(axis="x", color="0.88", linewidth=0.6)
        axes.set_axisbelow(True)
        if line.holds(_xs(lens)[lens.focus]):
            axes.axvline(_xs(lens)[lens.focus], color="black", lw=0.8, ls=":", zorder=1)
    if last:
        timed = lens.marks[0].time is not None
        panels[-1].set_xlabel("time in quarter notes" if timed else f"{lens.target}, token by token")


def _draw_contents(axes: Any, lens: Lens, line: _Line) -> None:
    """What can be drawn of all that is given; of a target without a drawing its words in coloured boxes."""
    tokenizer = lens.vocabulary.tokenizers[lens.target]
    if lens.marks[0].time is not None and hasattr(tokenizer, "draw"):
        tokenizer.draw(lens.contents[lens.target], axes)
        coloured = _colour(axes, lens)
        limits = axes.get_ylim()
        _draw_beside(axes, lens, alpha=0.15 if coloured else 0.4)
        if coloured:
            axes.set_ylim(limits)
        axes.set_ylabel(lens.target, fontsize=_SIZE)
    else:
        _draw_words(axes, lens, line)
    for text in axes.texts:  # they may reach out of the axes, but not into another line
        text.set_visible(line.holds(text.get_position()[0]))


def _draw_beside(axes: Any, lens: Lens, alpha: float) -> None:
    """What else has times and can be drawn, over what is there: shapes in the background, words large."""
    shapes, texts = list(axes.collections), list(axes.texts)
    for name, content in lens.contents.items():
        tokenizer = lens.vocabulary.tokenizers[name]
        if name != lens.target and lens.segments[name].clock is not None and hasattr(tokenizer, "draw"):
            tokenizer.draw(content, axes)
    for shape in axes.collections:
        if shape not in shapes:
            shape.set(zorder=0, alpha=alpha)
    for text in axes.texts:
        if text not in texts:
            text.set(fontsize=11, weight="bold")


def _colour(axes: Any, lens: Lens) -> bool:
    """Give what the target drew the colours of its marks: words at the time of one, and shapes where there is
    one for each; whether there was.
    """
    faces = colours([mark.saved for mark in lens.marks])
    at = {round(x, 3): i for i, x in enumerate(_xs(lens))}
    for text in axes.texts:
        i = at.get(round(float(text.get_position()[0]), 3))
        if i is not None:
            box = {"facecolor": faces[i], "edgecolor": "0.35", "linewidth": 0.5, "boxstyle": "round,pad=0.2"}
            text.set(fontsize=11, weight="bold", bbox=box, color=_ink(lens.marks[i].saved))
    for shapes in axes.collections:
        if len(shapes.get_facecolor()) and len(shapes.get_paths()) == len(lens.marks):  # not lines
            shapes.set(facecolor=faces, edgecolor="0.35")
            shapes.set_linewidth([2.0 if i == lens.focus else 0.5 for i in range(len(faces))])
            return True
    return False


def _ink(saved: float) -> str:
    """The colour of letters on the colour of saved bits."""
    return "white" if abs(saved) > 0.7 * FULL_COLOUR else "black"


def _draw_words(axes: Any, lens: Lens, line: _Line) -> None:
    axes.set_yticks([])
    axes.set_ylim(0, 1)
    upright = 90 if line.stop - line.start > TOKENS_PER_LINE / 2 else 0
    for x, mark in zip(_xs(lens), lens.marks, strict=True):
        if line.holds(x):
            (face,) = colours([mark.saved])
            box = {"facecolor": face, "edgecolor": "0.35", "linewidth": 0.5, "boxstyle": "round,pad=0.25"}
            ink = _ink(mark.saved)
            axes.text(x, 0.5, mark.word, rotation=upright, ha="center", va="center", color=ink, bbox=box)


def _draw_bars(axes: Any, lens: Lens, line: _Line) -> None:
    """Bits saved at each mark by the context (bars) and by another one (dots)."""
    xs, saved = np.array(_xs(lens)), np.array([m.saved for m in lens.marks])
    other = np.array([m.none - m.other for m in lens.marks])
    inside = np.array([line.holds(x) for x in xs])
    width = 0.7 * float(np.quantile(np.diff(xs), 0.1)) if len(xs) > 1 else 0.5
    width = min(max(width, 0.006 * (line.stop - line.start)), 0.02 * (line.stop - line.start))
    timed = lens.marks[0].time is not None  # a bar begins with its token, as what is drawn above does
    left = xs if timed else xs - width / 2
    style = {"color": colours(saved[inside]), "edgecolor": "0.35", "linewidth": 0.4, "align": "edge"}
    axes.bar(left[inside], saved[inside], width, **style)
    axes.plot(left[inside] + width / 2, other[inside], "o", color=_GREY, markersize=3)
    axes.axhline(0, color="0.3", linewidth=0.7)
    everything = np.concatenate((saved, other[~np.isnan(other)], [-1, 1]))
    low, high = float(everything.min()), float(everything.max())
    axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    axes.set_ylabel("bits saved\n+1: twice as\nlikely", fontsize=8)


def _draw_looks(axes: Any, lens: Lens, line: _Line) -> None:
    """Where the model looked before it said the mark in focus: a row a modality, a dot for all tokens of one
    time, as large as their share.
    """
    timed = [n for n, s in lens.segments.items() if s.clock is not None]
    rows = {name: len(timed) - 1 - i for i, name in enumerate(timed)}
    groups = _groups(lens)
    most = max((group.share for group in groups), default=1.0)
    named: list[tuple[float, int]] = []
    for number, group in enumerate(groups):
        x, y = (group.time or 0.0) - lens.start, rows[group.modality]
        if not line.holds(x):
            continue
        axes.scatter(x, y, 220 * group.share / most, color=_VIOLET, alpha=0.6, linewidth=0)
        free = all(abs(x - other) > 0.065 * (line.stop - line.start) for other, row in named if row == y)
        if number < _TOLD and free:
            named.append((x, y))
            words = f"{group.word} {100 * group.share:.0f} %"
            style = {"textcoords": "offset points", "fontsize": 7, "parse_math": False}
            axes.annotate(words, (x, y), xytext=(0, 9), ha="center" if x > line.start else "left", **style)
    axes.set_ylim(-0.5, len(timed) - 0.2)
    axes.set_yticks([rows[n] for n in timed], [f"{n}\n{100 * _share(lens.looks, n):.0f} %" for n in timed])
    axes.set_title(_told(lens), fontsize=_SIZE, loc="left", pad=3, color=_VIOLET, parse_math=False)


def _groups(lens: Lens) -> list[Look]:
    """The looks at each time of each modality as one, the largest share first: named by what carries the
    content among them, else by what says more than a place ("@0.5", "|").
    """
    found: dict[tuple[str, float], list[Look]] = {}
    for look in lens.looks:
        if look.time is not None:
            found.setdefault((look.modality, look.time), []).append(look)
    carrying = _carrying(lens)
    groups = []
    for (modality, time), looks in found.items():
        plain = [look for look in looks if look.word[0] not in "@|"]
        named = [look for look in looks if look.token in carrying] or plain or looks
        best = max(named, key=lambda look: look.share)
        groups.append(Look(best.token, modality, time, best.word, sum(look.share for look in looks)))
    return sorted(groups, key=lambda group: (-group.share, group.token))


def _carrying(lens: Lens) -> set[int]:
    """Places in the stream of the tokens that carry content, of all modalities."""
    found: set[int] = set()
    for name, segment in lens.segments.items():
        tokens = [look.token for look in lens.looks if look.modality == name]
        local = carriers(lens.vocabulary.tokenizers[name], lens.contents[name], segment.ids).tolist()
        found |= {tokens[i] for i in local if i < len(tokens)}
    return found


def _share(looks: Sequence[Look], modality: str) -> float:
    return sum(look.share for look in looks if look.modality == modality)


def _told(lens: Lens) -> str:
    mark = lens.marks[lens.focus]
    others = [n for n, s in lens.segments.items() if s.clock is None]
    rest = [f"{name} {100 * _share(lens.looks, name):.0f} %" for name in others]
    rest.append(f"tokens that only frame the stream {100 * _share(lens.looks, ''):.0f} %")
    when = "" if mark.time is None else f" at {mark.time:g}"
    return f"Where it looked before it said {mark.word}{when} (attention, {lens.way}); {', '.join(rest)}"


def _cut(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 3] + "..."
