"""Cross-entropy straight from hidden states, in chunks: logits of all tokens never exist at once.

Gradients are made with the losses, while the logits of a chunk are at hand. Forward and backward of 4096
tokens of width 128, against `F.cross_entropy` on all logits (float32, one thread of a CPU):

    V                            1280         2048         8192         16384
    time, share of the plain     0.79-0.84    0.73-0.79    0.62-0.69    0.62
    more memory at the peak                   43 : 99 MiB               59 : 766 MiB

Recomputing logits in the backward pass instead took 0.70 to 1.01. So it is on for every vocabulary.
torch's own `F.linear_cross_entropy` (2.13) gives no losses of single tokens.

N tokens, D width, V vocabulary (table rows).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

IGNORE = -100
"""A target that counts for nothing: padding, and the last token of every document."""
CHUNK = {"cpu": 256, "cuda": 4096}
"""Tokens at once: a chunk should stay in the cache of a CPU, and be work enough for a GPU (not measured)."""


def token_nats(hidden: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """(N,) float32: nats of every target (N,), 0 where it is IGNORE, from hidden (N, D) and table (V, D)."""
    rows = _rows(hidden)
    pairs = zip(hidden.split(rows), targets.long().split(rows), strict=True)
    return torch.cat([_nats(F.linear(h, table).float(), t) for h, t in pairs])


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")


def summed_nats(
    hidden: Tensor, table: Tensor, targets: Tensor, emphasis: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The sum of `token_nats`, each as often as its `emphasis` (N,) says, and these themselves, once and
    without a gradient: for training.
    """
    if not torch.is_grad_enabled():
        each = token_nats(hidden, table, targets)
        return _sum(each, emphasis), each
    total, each = _SummedNats.apply(hidden, table, targets.long(), emphasis)
    return total, each


def _sum(each: Tensor, emphasis: Tensor | None) -> Tensor:
    return (each if emphasis is None else each * emphasis).sum()


def _rows(hidden: Tensor) -> int:
    return CHUNK.get(hidden.device.type, CHUNK["cuda"])


class _SummedNats(torch.autograd.Function):
    """Chunk by chunk: losses, and the gradients of their sum."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, table: Tensor, targets: Tensor, emphasis: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        inner, weights = hidden.to(dtype), table.to(dtype)
        rows, each = _rows(hidden), []
        for_hidden = torch.empty_like(inner) if ctx.needs_input_grad[0] else None
        for_table = torch.zeros_like(table) if ctx.needs_input_grad[1] else None
        with torch.autocast(kind, enabled=False):
            for start in range(0, len(targets), rows):
                part = slice(start, start + rows)
                nats, slope = _nats_and_slope((inner[part] @ weights.T).float(), targets[part])
                each.append(nats)
                slope = (slope if emphasis is None else slope * emphasis[part, None]).to(dtype)
                if for_hidden is not None:
                    torch.mm(slope, weights, out=for_hidden[part])
                if for_table is not None:
                    for_table += slope.T @ inner[part]
        ctx.save_for_backward(for_hidden, for_table)
        losses = torch.cat(each)
        ctx.mark_non_differentiable(losses)
        ctx.hidden_dtype = hidden.dtype
        return _sum(losses, emphasis), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        for_hidden, for_table = ctx.saved_tensors
        first = None if for_hidden is None else (for_hidden * slope).to(ctx.hidden_dtype)
        return first, None if for_table is None else for_table * slope, None, None


def _nats_and_slope(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(rows,) losses, and (rows, V) how their sum changes with the logits: probability - hit."""
    hit, counts = targets.clamp(min=0)[:, None], targets != IGNORE
    odds = logits.log_softmax(1)
    nats = odds.gather(1, hit)[:, 0].neg_().masked_fill_(~counts, 0.0)
    odds.exp_().scatter_add_(1, hit, torch.full_like(hit, -1, dtype=odds.dtype))
    return nats, odds.mul_(counts[:, None])
