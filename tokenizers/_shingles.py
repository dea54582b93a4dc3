"""Shingles: a sequence as the set of its short overlapping stretches, each hashed to 64 bits.

Nothing but integer arithmetic with fixed constants: the same on every machine and in every process.
"""

from __future__ import annotations

from functools import cache

import numpy as np

_FACTOR = 0x9E3779B97F4A7C15


def stretches(symbols: np.ndarray, length: int) -> np.ndarray:
    """(N,) int64 symbols -> (N - length + 1,) uint64 hashes of all stretches of `length` symbols, none
    where there are fewer.
    """
    if len(symbols) < length:
        return np.zeros(0, dtype=np.uint64)
    sums = np.correlate(symbols.astype(np.uint64), _powers(length))  # wraps around at 64 bits
    # Now every bit shall depend on all: the finaliser of SplitMix64 (Steele, Lea and Flood 2014).
    sums = (sums ^ (sums >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    sums = (sums ^ (sums >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return sums ^ (sums >> np.uint64(31))


@cache
def _powers(count: int) -> np.ndarray:
    return np.array([pow(_FACTOR, k, 2**64) for k in range(count)], dtype=np.uint64)
