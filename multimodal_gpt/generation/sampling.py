"""Pure functions on logits: what may come, how bold to be, and the draw.

B rows, V columns (ids that are scored). A dropped id has the logit -inf; one per row always stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from multimodal_gpt.errors import UserError

GREEDY = 1e-4
"""Temperatures below this take the most likely id: the division would only make overflow of it."""
LARGEST = 1e30
"""Logits are kept within this, so that a diverged model gives poor ids and not an undefined draw."""


@dataclass(frozen=True)
class Sampling:
    """How ids are drawn. `temperature` is one number, or one per modality (1.0 where none is named).

    Raises UserError where a value is out of its range.
    """

    temperature: float | Mapping[str, float] = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        warmth = self.temperature
        for value in warmth.values() if isinstance(warmth, Mapping) else [warmth]:
            if not 0 <= value < float("inf"):
                raise UserError(
                    f"{value} is not a temperature", "temperature", "0 (always the most likely) or more"
                )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"{self.top_k} ids can't be kept", "top_k", "1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"{self.top_p} is not a share", "top_p", "above 0, at most 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise UserError(f"{self.min_p} is not a share", "min_p", "from 0 to 1")

    def temperature_of(self, modality: str) -> float:
        """The temperature for one modality."""
        if isinstance(self.temperature, Mapping):
            return float(self.temperature.get(modality, 1.0))
        return float(self.temperature)


def legal_logits(logits: Tensor, allowed: Tensor) -> Tensor:
    """(B, V) float64 logits, finite where `allowed` (B, V) bool, -inf elsewhere."""
    dtype = torch.float32 if logits.device.type == "mps" else torch.float64  # mps knows no float64
    finite = torch.nan_to_num(logits.to(dtype), nan=-LARGEST).clamp(-LARGEST, LARGEST)
    return finite.masked_fill(~allowed, -torch.inf)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k most likely ids (and what ties with the last of them)."""
    if k >= logits.shape[-1]:
        return logits
    least = logits.topk(k).values[..., -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest most likely ids whose probabilities sum to `p` (Holtzman et al. 2020)."""
    ranked, order = logits.sort(dim=-1, descending=True, stable=True)
    shares = ranked.softmax(-1)
    likelier = shares.cumsum(-1) - shares
    ranked = ranked.masked_fill(likelier >= p, -torch.inf)
    return torch.empty_like(logits).scatter_(-1, order, ranked)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep ids at least `p` times as likely as the most likely one (Nguyen et al. 2024)."""
    shares = logits.softmax(-1)
    return logits.masked_fill(shares < p * shares.amax(-1, keepdim=True), -torch.inf)


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """(B,) columns: the first whose cumulative probability exceeds uniform (B,) in [0, 1)."""
    cumulative = logits.softmax(-1).cumsum(-1)
    goal = uniform.to(cumulative)[:, None] * cumulative[:, -1:]
    column = torch.searchsorted(cumulative, goal, right=True)[:, 0]
    # Rounding may put the goal on the very total, behind the last column.
    return torch.where(column < logits.shape[-1], column, logits.argmax(-1))


def sample(legal: Tensor, uniform: Tensor, temperature: Tensor, how: Sampling) -> Tensor:
    """(B,) columns drawn from logits that `legal_logits` has masked: temperature, top-k, top-p, min-p, draw.

    Args:
        legal: (B, V) float64, -inf where an id may not come.
        uniform: (B,) in [0, 1): each row's own random number, so that rows don't depend on their batch.
        temperature: (B,), 0 = the most likely.
        how: the filters.
    """
    warm = legal / temperature.to(legal).clamp(min=GREEDY)[:, None]
    if how.top_k is not None:
        warm = keep_top_k(warm, how.top_k)
    if how.top_p is not None and how.top_p < 1:
        warm = keep_top_p(warm, how.top_p)
    if how.min_p is not None and how.min_p > 0:
        warm = keep_min_p(warm, how.min_p)
    return torch.where(temperature < GREEDY, legal.argmax(-1), draw(warm, uniform))


def bits(legal: Tensor, column: Tensor) -> Tensor:
    """(B,) float64: -log2 of each chosen column's probability among the legal ones, at temperature 1."""
    chosen = legal.gather(1, column[:, None])[:, 0]
    return (legal.logsumexp(-1) - chosen) / float(np.log(2))


def uniforms(key: Sequence[int], count: int) -> np.ndarray:
    """(count,) float64 in [0, 1): a row's random numbers, a function of its key (seed, row, ...) alone.

    A longer list begins with the shorter one, so a limit changes nothing before it bites.
    """
    return np.random.default_rng(list(key)).random(count)
