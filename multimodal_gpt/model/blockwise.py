"""Causal attention within documents on a CPU: two products around a softmax, block after block of queries.

What `F.scaled_dot_product_attention` gives document by document, forward and backward, in less time: 4,096
tokens in float32 on one thread of a busy CPU take 0.8 to 0.9 of it in documents of 64 and 128 tokens, 0.6 to
0.8 in those of 256 to 1,024 (5 heads of 32, 6 of 64; blocks of 128 take up to a tenth more). The price is
memory: the shares of attention are kept for the backward pass. Making them again there takes the gain away.

N tokens of all documents in a row, H heads, E head width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 64
"""Queries at once."""
LONGEST = 2048
"""Tokens of a document: what is kept grows with their square, 40 MiB for 5 heads and 2,048 tokens."""


def suits(queries: Tensor, keys: Tensor, lengths: Sequence[int]) -> bool:
    """Whether `attend` is the way for queries (N, H, E) and keys in documents of these lengths: float32 or
    float64, as many heads each, no document too long.
    """
    exact = queries.dtype in (torch.float32, torch.float64)
    return exact and queries.shape == keys.shape and max(lengths) <= LONGEST


def attend(queries: Tensor, keys: Tensor, values: Tensor, lengths: Sequence[int]) -> Tensor:
    """(N, H, E): what each token finds among itself and those before it in its document. All are (N, H, E);
    lengths sum up to N.
    """
    return _Attention.apply(queries, keys, values, lengths)


def _blocks(lengths: Sequence[int]) -> Iterator[tuple[slice, slice, int]]:
    """The queries of each block, what they may see, and how many of these come before the block."""
    start = 0
    for length in lengths:
        for before in range(0, length, BLOCK):
            stop = start + min(before + BLOCK, length)
            yield slice(start + before, stop), slice(start, stop), before
        start += length


class _Attention(torch.autograd.Function):
    """softmax(queries keys^T / sqrt(E)) values, where a token sees what does not come after it."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, lengths: Sequence[int]) -> Tensor:
        found, kept = values.new_empty(values.shape), []
        scaled = queries / math.sqrt(queries.shape[-1])
        by_head = [x.transpose(0, 1) for x in (scaled, keys, values, found)]  # (H, N, E)
        later = values.new_full((BLOCK, BLOCK), -torch.inf).triu_(1)
        for own, seen, before in _blocks(lengths):
            query, key, value, out = _cut(by_head, own, seen, seen, own)
            scores, size = torch.bmm(query, key.mT), query.shape[1]
            scores[:, :, before:].add_(later[:size, :size])
            shares = scores.softmax(-1)  # (H, own, seen)
            torch.bmm(shares, value, out=out)
            kept.append(shares)
        ctx.lengths = lengths
        ctx.save_for_backward(scaled, keys, values, *kept)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        scaled, keys, values, *kept = ctx.saved_tensors
        slopes = [x.new_zeros(x.shape) for x in (scaled, keys, values)]
        by_head = [x.transpose(0, 1) for x in (scaled, keys, values, slope, *slopes)]
        for (own, seen, _), shares in zip(_blocks(ctx.lengths), kept, strict=True):
            query, key, value, out, for_query, for_key, for_value = _cut(
                by_head, own, seen, seen, own, own, seen, seen
            )
            for_value.baddbmm_(shares.mT, out)
            for_scores = torch._softmax_backward_data(torch.bmm(out, value.mT), shares, -1, shares.dtype)
            torch.bmm(for_scores, key, out=for_query)
            for_key.baddbmm_(for_scores.mT, query)
        return slopes[0].div_(math.sqrt(scaled.shape[-1])), slopes[1], slopes[2], None


def _cut(by_head: Sequence[Tensor], *parts: slice) -> list[Tensor]:
    """These tokens of each, (H, tokens, E)."""
    return [x[:, part] for x, part in zip(by_head, parts, strict=True)]
