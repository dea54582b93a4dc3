"""How alike two sets of tunes are, feature by feature, as Yang and Lerch compare them.

Yang and Lerch, "On the evaluation of generative models in music", Neural Computing and Applications 32
(2020). Every tune becomes a number or a histogram. The distances between all tunes of a set (intra) and
between all tunes of two sets (inter) are smoothed into densities by Gaussian kernels; their overlapped area
is 1 where two sets are as far apart as one of them is wide, and 0 where they have nothing in common.

N notes, P tunes of a set, F numbers of a feature. Times are ticks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from multimodal_gpt.evaluation.guessing import LENGTHS, lengths
from multimodal_gpt.tokenizers._music import TICKS

GRID = 512
"""Places at which densities are compared."""

Feature = Callable[[np.ndarray, int], np.ndarray]
"""(N, 3) notes and the number of bars -> (F,) numbers."""


def _one(value: float) -> np.ndarray:
    return np.array([float(value)])


def _shares(counts: np.ndarray) -> np.ndarray:
    return np.asarray(counts / max(1.0, float(counts.sum())))


def _table(values: np.ndarray, size: int) -> np.ndarray:
    """(size * size,) shares of all pairs of neighbours."""
    return _shares(np.bincount(values[:-1] * size + values[1:], minlength=size * size))


def _apart(notes: np.ndarray) -> np.ndarray:
    return np.diff(notes[:, 0]) / TICKS if len(notes) > 1 else np.zeros(1)


FEATURES: dict[str, Feature] = {
    "pitch count": lambda notes, bars: _one(len(set(notes[:, 2].tolist()))),
    "pitch range": lambda notes, bars: _one(np.ptp(notes[:, 2])),
    "mean interval": lambda notes, bars: _one(np.abs(np.diff(notes[:, 2])).mean() if len(notes) > 1 else 0),
    "pitch class histogram": lambda notes, bars: _shares(np.bincount(notes[:, 2] % 12, minlength=12)),
    "pitch class transitions": lambda notes, bars: _table(notes[:, 2] % 12, 12),
    "notes a bar": lambda notes, bars: _one(len(notes) / max(1, bars)),
    "mean time between notes": lambda notes, bars: _one(_apart(notes).mean()),
    "note length histogram": lambda notes, bars: _shares(np.bincount(lengths(notes), minlength=len(LENGTHS))),
    "note length transitions": lambda notes, bars: _table(lengths(notes), len(LENGTHS)),
}
"""Those of Yang and Lerch; histograms and transitions as shares, so that long tunes weigh no more. Intervals
in semitones without sign, time between notes in quarter notes."""


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(P, Q) Euclidean distances of (P, F) and (Q, F) features."""
    return np.asarray(np.linalg.norm(first[:, None] - second[None], axis=2))


def within(features: np.ndarray) -> np.ndarray:
    """(P (P - 1) / 2,) distances between all tunes of a set."""
    return distances(features, features)[np.triu_indices(len(features), 1)]


def density(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """(G,) Gaussian kernel density of (N,) values at places at equal distances, bandwidth by Scott's rule:
    the standard deviation times N ** -1/5, and at least half a step of the grid.

    Values are counted at their nearest place first.
    """
    step = grid[1] - grid[0]
    width = max(float(np.std(values, ddof=1)) * len(values) ** -0.2, step / 2)
    counts = np.bincount(
        np.rint((values - grid[0]) / step).astype(int).clip(0, len(grid) - 1), minlength=len(grid)
    )
    reach = np.arange(-len(grid) + 1, len(grid)) * step
    kernel = np.exp(-0.5 * (reach / width) ** 2) / (width * np.sqrt(2 * np.pi))
    return np.asarray(np.convolve(counts, kernel, mode="valid")[: len(grid)] / len(values))


def overlapped_area(first: np.ndarray, second: np.ndarray) -> float:
    """Area under the lower of two densities, 0 to 1, between the least and the largest of all values.

    NaN for fewer than two values on a side; 1 where all are the same.
    """
    if min(len(first), len(second)) < 2:
        return float("nan")
    both = np.concatenate([first, second])
    if np.ptp(both) == 0:
        return 1.0
    grid = np.linspace(both.min(), both.max(), GRID)
    lower = np.minimum(density(first, grid), density(second, grid))
    return min(1.0, float(np.trapezoid(lower, grid)))


def likeness(others: Sequence[np.ndarray], human: Sequence[np.ndarray]) -> float:
    """Overlapped area of the distances between two sets and of those within the human one, of one feature."""
    mine, theirs = np.array(others), np.array(human)
    return overlapped_area(distances(mine, theirs).ravel(), within(theirs))
