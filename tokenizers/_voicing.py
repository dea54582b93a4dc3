"""Chord symbols and pitches: recognising a symbol in what sounds, and voicing it.

Letters: N slices, Q qualities, K = 12 Q chords. Pitches are MIDI numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np

from multimodal_gpt.tokenizers._harmony import NO_CHORD, QUALITIES, Symbol

# -------------------------------------------------------------------------------- pitches -> symbol

_MISSING = {0: 0.4, 7: 0.1, 6: 0.2, 8: 0.2}
_MISSING_OTHER = 0.3
_PRESENT = 0.04
_FOREIGN_BASS = 0.15


_ALL = tuple(range(len(QUALITIES)))


@cache
def _templates(qualities: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(K, 12) tones of every chord of these QUALITIES, 0 or 1; and what `match` multiplies and adds:
    (24, K) weights of share and presence of each pitch class, (K,) constants. Chords by quality.
    """
    tones = np.zeros((len(qualities), 12, 12))
    costs = np.zeros_like(tones)
    for row, quality in enumerate(qualities):
        for interval in QUALITIES[quality].intervals:
            roots = np.arange(12)
            tones[row, roots, (roots + interval) % 12] = 1
            costs[row, roots, (roots + interval) % 12] = _MISSING.get(interval, _MISSING_OTHER)
    tones, costs = tones.reshape(-1, 12), costs.reshape(-1, 12)
    constant = -1 - costs.sum(axis=1) - 1e-4 * np.repeat(qualities, 12)
    return tones, np.concatenate((2 * tones.T, costs.T)), constant


def chord(index: int, bass: int | None = None) -> Symbol:
    """The symbol of column `index` of `match` with all qualities."""
    return Symbol(index % 12, QUALITIES[index // 12].name, bass)


def match(
    weights: np.ndarray, bass: np.ndarray, root_in_bass: float = 0.02, qualities: tuple[int, ...] = _ALL
) -> np.ndarray:
    """How well each chord explains what sounds: (N, 12) weights of pitch classes, (N,) lowest ->
    (N, K) scores of the chords of `qualities` (indexes into QUALITIES), by quality, then root.

    The share of the weight that the chord explains, less the share that it doesn't, less a price
    for each of its tones that is not heard. 1 is a perfect fit; the bass as root and the commoner
    quality win ties.
    """
    _, factors, constant = _templates(qualities)
    share = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
    score = np.concatenate((share, np.minimum(share / _PRESENT, 1)), axis=1) @ factors + constant
    score.reshape(len(score), -1, 12)[np.arange(len(score)), :, bass] += root_in_bass
    return np.asarray(score)


def recognise(pitches: Sequence[int], weights: Sequence[float] | None = None) -> Symbol:
    """The chord that these pitches (lowest first; all equally heavy by default) make, inversions
    named: C/E.

    Exact for every chord of QUALITIES in every inversion, where another one does not have the same
    tones: C6 = Am7/C, Cm6 = Am7b5/C, Csus2 = Gsus4/C, and every inversion of an augmented or
    diminished seventh chord. There the bass is the root; where no reading has it so, the commoner
    quality wins. No pitches make NO_CHORD.
    """
    if not len(pitches):
        return NO_CHORD
    heard = [0.0] * 12
    for pitch, weight in zip(pitches, weights or [1.0] * len(pitches), strict=True):
        heard[pitch % 12] += weight
    return _recognise(tuple(heard), min(pitches) % 12)


@lru_cache(maxsize=65536)
def recognise_block(pitches: tuple[int, ...]) -> Symbol:
    """`recognise` of pitches that are equally heavy, remembered."""
    return recognise(pitches)


@lru_cache(maxsize=65536)  # a book of block chords has few different ones: 20 times faster
def _recognise(heard: tuple[float, ...], low: int) -> Symbol:
    weights, bass = np.array([heard]), np.array([low])
    scores = match(weights, bass)[0]
    weights[0, low] = 0
    if weights.any():  # C, E, G over F#: the bass is no part of the chord
        foreign = match(weights, bass)[0] - _FOREIGN_BASS
        scores = np.where(_templates(_ALL)[0][:, low] > 0, scores, np.maximum(scores, foreign))
    return chord(int(scores.argmax()), low)


# -------------------------------------------------------------------------------- symbol -> pitches

_LOWEST_BASS = 40  # E2
_LOWEST_UPPER = 53  # F3: close positions that begin within an octave of it lie around middle C
_CENTRE = 62.0


def voice(symbol: Symbol, previous: Sequence[int] = ()) -> tuple[int, ...]:
    """MIDI pitches of a chord, lowest first: a bass in E2..D#3, then all its tones in close
    position around middle C.

    Of the inversions the one nearest to `previous` (what `voice` gave for the chord before) is
    taken. Empty where there is no chord. `recognise` is its reverse.
    """
    if symbol.root is None or symbol.lowest is None:
        return ()
    bass = _LOWEST_BASS + (symbol.lowest - _LOWEST_BASS) % 12
    uppers = [_close(symbol.pitch_classes, first) for first in range(len(symbol.pitch_classes))]
    return (bass, *min(uppers, key=lambda upper: (_distance(upper, previous[1:]), upper)))


def _close(classes: Sequence[int], first: int) -> tuple[int, ...]:
    order = sorted(classes, key=lambda c: (c - classes[first]) % 12)
    lowest = _LOWEST_UPPER + (order[0] - _LOWEST_UPPER) % 12
    return tuple(lowest + (c - order[0]) % 12 for c in order)


def _distance(upper: Sequence[int], previous: Sequence[int]) -> float:
    high = abs(sum(upper) / len(upper) - _CENTRE)
    moves = [min(abs(pitch - before) for before in previous) for pitch in upper] if previous else []
    return sum(moves) + 0.5 * high


def notes_of(events: Iterable[Any]) -> np.ndarray:
    """(N, 3) int64 notes of events as they are played: tick, duration, pitch; each chord from its bass up.

    An event has `tick`, `duration` (ticks) and `symbol`.
    """
    notes: list[tuple[int, int, int]] = []
    previous: tuple[int, ...] = ()
    for event in events:
        voiced = voice(event.symbol, previous)
        notes += [(event.tick, event.duration, pitch) for pitch in voiced]
        previous = voiced or previous
    return np.array(notes, dtype=np.int64).reshape(-1, 3)
