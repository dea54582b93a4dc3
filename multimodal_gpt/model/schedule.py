"""Learning-rate schedules: plain functions of the step, factor of the peak rate."""

from __future__ import annotations

import math


def warmup_stable_decay(step: int, steps: int, warmup: float, decay: float) -> float:
    """Learning-rate factor: a straight rise, a plateau, a straight fall to nearly 0.

    Args:
        step: optimizer step, 0-based.
        steps: optimizer steps of the whole run.
        warmup: share of the steps that rise; the first of them already moves the weights.
        decay: share of the steps, at the end, that fall; where both shares overlap the smaller factor holds.

    Example:
        >>> [round(warmup_stable_decay(s, 10, 0.2, 0.5), 2) for s in range(10)]
        [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]
    """
    rising = (step + 1) / max(1.0, warmup * steps)
    falling = (steps - step) / max(1.0, decay * steps)
    return max(0.0, min(1.0, rising, falling))


def cosine(step: int, steps: int, warmup: float, decay: float) -> float:
    """Learning-rate factor: the same rise, then half a cosine down to nearly 0.

    Args:
        step: optimizer step, 0-based.
        steps: optimizer steps of the whole run.
        warmup: share of the steps that rise.
        decay: not used: all that is not rise is fall.

    Example:
        >>> [round(cosine(s, 10, 0.2, 0.5), 2) for s in range(10)]
        [0.5, 1.0, 1.0, 0.96, 0.85, 0.69, 0.5, 0.31, 0.15, 0.04]
    """
    rising = (step + 1) / max(1.0, warmup * steps)
    done = (step - warmup * steps) / max(1.0, (1 - warmup) * steps)
    falling = (1 + math.cos(math.pi * min(1.0, max(0.0, done)))) / 2
    return min(1.0, rising, falling)


SCHEDULES = {"wsd": warmup_stable_decay, "cosine": cosine}
"""By the names of `train.schedule`."""
