"""Harmonisers that anyone can write down: what a model has to beat.

N notes, B bars, 24 classes: major triads on C, C#, ... B, then minor ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from multimodal_gpt.evaluation.music import CLASSES, TRIADS

_SCALE = {False: (0, 2, 4, 5, 7, 9, 11), True: (0, 2, 3, 5, 7, 8, 10)}


def template(heard: np.ndarray, tonic: int, minor: bool) -> np.ndarray:
    """(B,) the triad that covers most of the notes' time in each bar, of (B, 12) ticks per pitch class.

    Of equal ones a triad of the key, then the lowest class. Where nothing sounds it is the tonic.
    """
    inside = np.zeros(12, dtype=bool)
    inside[[(tonic + step) % 12 for step in _SCALE[minor]]] = True
    own = ~(TRIADS[:, ~inside].any(axis=1))
    found = (heard @ TRIADS.T + 0.5 * own).argmax(axis=1)  # ticks are whole numbers
    return np.where(heard.any(axis=1), found, tonic + 12 * minor)


@dataclass(frozen=True, eq=False)
class Learnt:
    """A hidden Markov model: a chord a bar, and the notes that it makes likely, counted in training tunes.

    first (K,), move (K, K): log probabilities of classes; sound (K, 12): of a pitch class under each.
    """

    first: np.ndarray
    move: np.ndarray
    sound: np.ndarray


def learn(classes: Sequence[np.ndarray], heard: Sequence[np.ndarray]) -> Learnt:
    """Count tunes that begin on C: (B,) class of each bar, -1 for none, and (B, 12) ticks per pitch class.

    Everything is counted as if it had been met once more. Ticks are counted as shares of their bar, so that
    a bar is one observation however long its notes are.
    """
    first, move = np.ones(CLASSES), np.ones((CLASSES, CLASSES))
    sound = np.ones((CLASSES, 12))
    for chords, tones in zip(classes, heard, strict=True):
        known = chords[chords >= 0]
        if not len(known):
            continue
        first[known[0]] += 1
        np.add.at(move, (known[:-1], known[1:]), 1)
        share = tones / np.maximum(tones.sum(axis=1, keepdims=True), 1)
        np.add.at(sound, known, share[chords >= 0])
    return Learnt(*(np.log(count / count.sum(axis=-1, keepdims=True)) for count in (first, move, sound)))


NOTES = 4.0
"""So many independent notes a bar tells as much as: all its notes' time together weighs that much."""


def decode(model: Learnt, heard: np.ndarray) -> np.ndarray:
    """(B,) the class that is likeliest in each bar, given all bars: forward-backward, not Viterbi, since bars
    are counted one by one. `heard` as in `learn`.
    """
    share = heard / np.maximum(heard.sum(axis=1, keepdims=True), 1)
    told = NOTES * share @ model.sound.T  # (B, K)
    forward, backward = np.zeros_like(told), np.zeros_like(told)
    forward[0] = model.first + told[0]
    for bar in range(1, len(told)):
        forward[bar] = told[bar] + np.logaddexp.reduce(forward[bar - 1][:, None] + model.move, axis=0)
    for bar in range(len(told) - 2, -1, -1):
        backward[bar] = np.logaddexp.reduce(model.move + told[bar + 1] + backward[bar + 1], axis=1)
    return np.asarray((forward + backward).argmax(axis=1))


def turned(classes: np.ndarray, steps: int) -> np.ndarray:
    """(B,) classes some semitones higher; -1 stays."""
    moved = (classes + steps) % 12 + 12 * (classes // 12)
    return np.where(classes < 0, classes, moved)
