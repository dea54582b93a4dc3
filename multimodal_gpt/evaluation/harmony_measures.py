"""How a melody and its chords go together, in the measures of Yeh et al.

Yeh, Hsiao, Fukayama, Kitahara, Genchel, Liu, Dong, Chen, Leong, Yang, "Automatic melody harmonization with
triad chords: a comparative study", Journal of New Music Research 50 (2021). They label every half bar of 4/4
with one of 48 triads; here chords are taken as they stand, in any meter, and the measures that weigh them do
so by time. Of a chord of four or more tones its triad counts, but for its name in CHE and CC.

N notes, E chords, S sets. Times are ticks, (N, 3) notes are onset, duration, pitch.
"""

from __future__ import annotations

import numpy as np

from multimodal_gpt.evaluation.music import Harmony
from multimodal_gpt.tokenizers._music import TICKS

CONSONANT = np.array([1, -1, -1, 1, 1, 0, -1, 1, 1, 1, -1, -1])
"""Score of a tone so many semitones above another: unison, thirds, fifth and sixths 1, the fourth 0."""
STEP = 2
"""Semitones that a passing or neighbouring tone moves at most."""
WINDOW = TICKS // 4
"""Ticks of a sixteenth."""
_CIRCLES = ((7 * np.pi / 6, 1.0), (3 * np.pi / 2, 1.0), (2 * np.pi / 3, 0.5))
SPACE = np.array(
    [size * turn(np.arange(12) * angle) for angle, size in _CIRCLES for turn in (np.sin, np.cos)]
)
"""(6, 12) where each pitch class lies on the circles of fifths, minor and major thirds."""


def entropy(weights: np.ndarray) -> float:
    """-sum p ln p in nats, of weights that need not add up to 1; 0 for none."""
    share = weights[weights > 0] / max(weights.sum(), 1e-12)
    return float(-(share * np.log(share)).sum())


def chord_entropy(harmony: Harmony) -> float:
    """CHE, chord histogram entropy: of the shares of time of the different chords, in nats."""
    return entropy(np.bincount(harmony.label, weights=harmony.stop - harmony.start))


def chord_coverage(harmony: Harmony) -> int:
    """CC: how many different chords there are."""
    return len(set(harmony.label.tolist()))


def centroids(tones: np.ndarray) -> np.ndarray:
    """(S, 6) tonal centroids of (S, 12) sets of tones, each tone with the same weight.

    Harte, Sandler, Gasser, "Detecting harmonic change in musical audio", AMCMM 2006.
    """
    return (tones / np.maximum(tones.sum(axis=1, keepdims=True), 1)) @ SPACE.T  # type: ignore[no-any-return]


def chord_distance(harmony: Harmony) -> float:
    """CTD, chord tonal distance: mean distance of centroids of neighbouring chords; 0 for a single one."""
    moves = np.diff(centroids(harmony.triad), axis=0)
    return float(np.linalg.norm(moves, axis=1).mean()) if len(moves) else 0.0


def chord_tone_ratio(notes: np.ndarray, harmony: Harmony) -> float:
    """CTnCTR, chord tone to non-chord tone ratio: (c + p) / (c + n) of the notes that begin under a chord.

    c of them are tones of the chord, n are not, and p of these are proper: the next note lies one or two
    semitones away. NaN where no note begins under a chord.
    """
    place = harmony.at(notes[:, 0])
    under = place >= 0
    if not under.any():
        return float("nan")
    inside = harmony.triad[place, notes[:, 2] % 12]
    move = np.abs(np.diff(notes[:, 2], append=notes[-1:, 2]))
    proper = ~inside & (move > 0) & (move <= STEP)
    return float(((inside | proper) & under).sum() / under.sum())


def consonance(notes: np.ndarray, harmony: Harmony) -> float:
    """PCS, pitch consonance score: mean of `CONSONANT` over all sixteenths in which a note sounds under a
    chord and over the tones of its triad, the note above the tone. NaN where there is none.
    """
    ticks = np.arange(0, int((notes[:, 0] + notes[:, 1]).max()), WINDOW)
    note = np.searchsorted(notes[:, 0], ticks, side="right") - 1
    place = harmony.at(ticks)
    both = (note >= 0) & (place >= 0) & (ticks < notes[note, 0] + notes[note, 1])
    if not both.any():
        return float("nan")
    above = (notes[note[both], 2][:, None] - np.arange(12)) % 12  # (T, 12)
    tones = harmony.triad[place[both]]
    return float((CONSONANT[above] * tones).sum() / tones.sum())


def melody_distance(notes: np.ndarray, harmony: Harmony) -> float:
    """MCTD, melody-chord tonal distance: mean distance of the centroid of each note from that of the chord
    under which it begins, weighted by the note's duration. NaN where there is none.
    """
    place = harmony.at(notes[:, 0])
    under = place >= 0
    if not under.any():
        return float("nan")
    note = centroids(np.eye(12)[notes[under, 2] % 12])
    apart = np.linalg.norm(note - centroids(harmony.triad)[place[under]], axis=1)
    return float((apart * notes[under, 1]).sum() / notes[under, 1].sum())


def time_in_chord(notes: np.ndarray, harmony: Harmony) -> tuple[float, float]:
    """Ticks of notes that sound while one of their chord's tones (all of them, not its triad's alone) has
    their pitch class, and ticks that sound while there is a chord.
    """
    inside = under = 0.0
    for onset, duration, pitch in notes.tolist():
        over = np.minimum(harmony.stop, onset + duration) - np.maximum(harmony.start, onset)
        over = np.maximum(over, 0)
        under += float(over.sum())
        inside += float(over[harmony.tones[:, pitch % 12]].sum())
    return inside, under


def vendi(kernel: np.ndarray) -> float:
    """Vendi score of (S, S) similarities, 1 on the diagonal: how many different things there are, 1..S.

    exp of the entropy of the eigenvalues of the kernel over S (Friedman and Dieng, "The Vendi score: a
    diversity evaluation metric for machine learning", TMLR 2023).
    """
    values = np.linalg.eigvalsh(kernel / len(kernel))
    return float(np.exp(entropy(np.maximum(values, 0.0))))
