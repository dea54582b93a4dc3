"""Classifiers that hear what kind of tune notes are: a ruler for tunes that nobody has labelled.

They are trained on the training documents, and how often they are right on held-out human tunes stands beside
every figure. N notes, D documents, F features; times are ticks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from multimodal_gpt.tokenizers._music import TICKS, Meter

NEEDED = 'pip install "multimodal_gpt[evaluate]"'
FEWEST = 5
"""Training documents that a class must have."""
TREES = 100
LENGTHS = np.array([1 / 6, 1 / 4, 1 / 3, 1 / 2, 3 / 4, 1, 3 / 2, 2, 3])
"""Quarter notes: the durations that are counted, each with what lies nearest."""
STEPS = np.array([-12, -7, -4, -2, -0.5, 0.5, 2.5, 4.5, 7.5, 12.5])
"""Semitones: borders of the intervals that are counted."""
LAGS = np.arange(1, 25) * TICKS // 2
"""Ticks: half to twelve quarter notes, how long a bar or a beat may be."""


def lengths(notes: np.ndarray) -> np.ndarray:
    """(N,) which of LENGTHS the duration of each of (N, 3) notes is nearest to, in proportion."""
    return np.asarray(np.abs(np.log(notes[:, 1, None] / TICKS / LENGTHS)).argmin(axis=1))


def rhythm(notes: np.ndarray) -> np.ndarray:
    """(F,) what (N, 3) notes tell of their beat without bar lines.

    How their time is shared out among durations, how often a note begins so much later than another one
    (relative to how often one begins at all), and the same counting notes by their duration.
    """
    onset, duration = notes[:, 0] - notes[0, 0], notes[:, 1].astype(float)
    shares = np.bincount(lengths(notes), weights=duration, minlength=len(LENGTHS)) / duration.sum()
    slots = np.zeros(int(onset[-1]) * 12 // TICKS + 1)
    np.add.at(slots, onset * 12 // TICKS, duration / TICKS)
    struck = (slots > 0).astype(float)
    found = [shares]
    for signal in (struck, slots):
        whole = float((signal**2).sum())
        found.append(
            np.array(
                [
                    (signal[:-lag] @ signal[lag:] if lag < len(signal) else 0.0) / whole
                    for lag in LAGS * 12 // TICKS
                ]
            )
        )
    return np.concatenate(found)


def kind(notes: np.ndarray, meters: Sequence[Meter]) -> np.ndarray:
    """(F,) what (N, 3) notes with bar lines tell of the kind of dance: `rhythm`, the meter, where in the bar
    notes begin, intervals, notes a bar, range and length.
    """
    meter = max(meters, key=lambda m: -m.tick)
    bars = max(1.0, float((notes[:, 0] + notes[:, 1]).max()) / meter.bar)
    place = (notes[:, 0] - meter.tick) % meter.bar * 12 // meter.bar
    where = np.bincount(place, minlength=12) / len(notes)
    steps = np.bincount(np.digitize(np.diff(notes[:, 2]), STEPS), minlength=len(STEPS) + 1) / len(notes)
    pitch = notes[:, 2]
    plain = [meter.numerator, meter.denominator, len(notes) / bars, np.ptp(pitch), pitch.mean(), bars]
    return np.concatenate([rhythm(notes), where, steps, np.array(plain, dtype=float)])


class Guesser:
    """A forest that tells labels (D,) from features (D, F); classes with fewer than FEWEST are not learnt.

    Raises ImportError where scikit-learn is missing, ValueError where there are not two classes.
    """

    def __init__(self, features: Sequence[np.ndarray], labels: Sequence[str], seed: int) -> None:
        from sklearn.ensemble import RandomForestClassifier

        counts = Counter(labels)
        kept = [i for i, label in enumerate(labels) if counts[label] >= FEWEST]
        if len({labels[i] for i in kept}) < 2:
            raise ValueError("fewer than two classes have enough documents")
        self.forest: Any = RandomForestClassifier(TREES, random_state=seed, n_jobs=1)
        self.forest.fit(np.array([features[i] for i in kept]), [labels[i] for i in kept])
        self.classes = tuple(str(label) for label in self.forest.classes_)

    def guess(self, features: Sequence[np.ndarray]) -> list[str]:
        """(D,) the likeliest label of each."""
        return [str(label) for label in self.forest.predict(np.array(features))]
