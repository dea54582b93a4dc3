"""Piano rolls: notes and names on a matplotlib axes, time in quarter notes along x, pitches along y."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import compress
from typing import Any

import numpy as np

from multimodal_gpt.tokenizers._music import TICKS, note_name

NOTES, ACCOMPANIMENT = "tab:blue", "tab:gray"
"""Colours where none is asked for."""
_WHITE = (0, 2, 4, 5, 7, 9, 11)
_LABELS = ((_WHITE, 18), ((0, 4, 7), 30), ((0,), 128))  # pitch classes named in up to so many semitones
_GAP = 0.03  # quarter notes: a note that is struck again can be told from one that is held


def draw_notes(
    notes: np.ndarray, axes: Any, color: str = NOTES, *, alpha: float = 1.0, height: float = 0.84
) -> None:
    """(N, 3) onset, duration (both ticks), pitch as boxes, `height` semitones high."""
    from matplotlib.collections import PolyCollection

    if not len(notes):
        return
    left, right = notes[:, 0] / TICKS, (notes[:, 0] + notes[:, 1]) / TICKS
    low, high = notes[:, 2] - height / 2, notes[:, 2] + height / 2
    axes.update_datalim([(left.min(), low.min()), (right.max(), high.max())])
    right -= np.minimum(_GAP, (right - left) / 2)
    # One collection, not `barh` with its patch per note: half the time of a picture.
    boxes = np.stack([left, low, left, high, right, high, right, low], 1).reshape(-1, 4, 2)
    seen = boxes[_in_sight(left, right, axes)]
    axes.add_collection(PolyCollection(seen, facecolor=color, alpha=alpha, linewidth=0), autolim=False)
    axes.autoscale_view()
    _label_keys(axes)


def _in_sight(left: np.ndarray, right: np.ndarray, axes: Any) -> np.ndarray:
    """(N,) bool: what a line of a picture shows; all where no limits are set."""
    if axes.get_autoscalex_on():
        return np.ones(len(left), dtype=bool)
    start, stop = axes.get_xlim()
    return (left < stop) & (right > start)


def _label_keys(axes: Any) -> None:
    """Names of the white keys along y, of few of them where many are in sight; thin lines at each C."""
    low, high = (int(v) for v in np.round(axes.dataLim.intervaly))
    classes = next(kept for kept, most in _LABELS if high - low <= most)
    keys = [key for key in range(low, high + 1) if key % 12 in classes] or [low]
    axes.set_yticks(keys, [note_name(key) for key in keys])
    axes.set_ylim(low - 1, high + 1)
    for line, key in zip(axes.yaxis.get_gridlines(), keys, strict=False):
        line.set(visible=key % 12 == 0, color="0.85", linewidth=0.6)


def draw_names(
    times: np.ndarray, names: Iterable[str], axes: Any, color: str | None = None, size: float = 8
) -> None:
    """Names above the axes, each at its time, (N,) quarter notes, and a thin line below it."""
    across = axes.get_xaxis_transform()
    seen = _in_sight(times, times + _GAP, axes)
    axes.vlines(
        times[seen], 0, 1, transform=across, color=color or "0.75", linewidth=0.6, alpha=0.6, zorder=0
    )
    for time, name in compress(zip(times.tolist(), names, strict=True), seen.tolist()):
        axes.text(time, 1.02, name, transform=across, fontsize=size, color=color or "black", clip_on=False)
