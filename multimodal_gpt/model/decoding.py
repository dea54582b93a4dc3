"""One token per row and step with as few operations as it takes: what `GPT.forward` gives, in less time.

With one token per row a step is made of small products, and calling them costs more than computing them.
So here the matrices of queries, keys and values are one, weights lie as the product reads them, attention is
two products around a softmax, and every norm is two operations: |x| includes columns of x that hold a
constant, which makes |x|^2 = sum(x^2) + D eps. Its weights are multiplied into the matrix that follows. A
step of a network of 1.4 M parameters takes 0.42 of the time of `GPT.forward` for one row and 0.59 for 16, one
of 11 M 0.53 and 0.77 (float32, one thread of a busy CPU, 200 steps); laying the weights out takes as long as
some 5 to 13 steps. Compiled by torch, a step takes 0.79 of the time for one row and 1.13 for 16, after one to
four minutes of compiling (1.4 M parameters, 512 steps, gcc 12): it is not compiled.

B rows, D width, P further columns, H query heads, G key-value heads, E head width, N angles of the clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimodal_gpt.model.cache import KVCache
from multimodal_gpt.model.gpt import GPT, Block
from multimodal_gpt.model.norm import RMSNorm
from multimodal_gpt.model.rotary import turn_by

SPARE = 8
"""Columns that hold the constant: as many as a vector of float32 has numbers."""


@dataclass(frozen=True, eq=False)
class _Layer:
    """The weights of a block.

    Args:
        qkv: (D + P, (H + G + G) E).
        out: (H E, D + P), down: (hidden, D + P), both 0 in the columns beyond D. `down` lies column by
            column in memory: so many inputs are read 1.7 times as fast.
        up: (D + P, hidden).
    """

    qkv: Tensor
    out: Tensor
    up: Tensor
    down: Tensor


class Decoder:
    """A copy of a network's weights, laid out for steps of one token; made anew when they change.

    The network must be in float32 and without dropout, as for generating.
    """

    def __init__(self, net: GPT) -> None:
        c = net.config
        self.net, self.width, self.head = net, c.width, c.head_width
        self.heads, self.groups = c.heads, c.kv_heads
        self.constant = math.sqrt(c.width * _eps(net.norm) / SPARE)
        self.least = net.norm.weight.new_tensor(math.sqrt(self.head * _eps(net.norm)))
        blocks = [block for block in net.blocks if isinstance(block, Block)]
        self.layers = [_laid_out(block) for block in blocks]
        weights = torch.stack([_turned(block) for block in blocks])[:, None]  # (depth, 1, H + G, E)
        weights[:, :, : self.heads] /= math.sqrt(self.head)  # what attention would divide by
        self.upright, self.across = weights, weights.roll(self.head // 2, -1)
        self.norm = net.norm.weight * math.sqrt(c.width)

    @torch.inference_mode()
    def step(
        self, ids: Tensor, cache: KVCache, clock: Tensor | None = None, going: Tensor | None = None
    ) -> Tensor:
        """Hidden states (B, D) of the next id of every row, (B,), which is added to the cache.

        `clock`: (B,) quarter notes. `going`: (B,) bool, rows whose id counts, all if None; what the others
        give means nothing. Raises ValueError where the cache is full.
        """
        place = cache.next_place()
        along, against = self._angles(
            cache.lengths[:, None] if place is None else cache.lengths[:1, None], clock
        )
        seen = None if place is not None else cache.seen(self.groups)
        x = F.pad(F.embedding(ids, self.net.embedding.weight), (0, SPARE), value=self.constant)
        for number, layer in enumerate(self.layers):
            heads = torch.mm(_unit(x), layer.qkv).view(len(ids), -1, self.head)
            turned = heads[:, : self.heads + self.groups]
            turned = turned / torch.hypot(torch.linalg.vector_norm(turned, dim=-1, keepdim=True), self.least)
            cos, sin = along[number], against[number]
            turned = torch.addcmul(turned * cos, turned.roll(self.head // 2, -1), sin)  # (B, H + G, E)
            values = heads[:, self.heads + self.groups :]
            keys, values = cache.put(number, place, turned[:, self.heads :], values)
            query = turned[:, : self.heads].reshape(-1, self.heads // self.groups, self.head)
            found = _attend(query, keys.flatten(0, 1), values.flatten(0, 1), seen)
            x = torch.addmm(x, found.reshape(len(ids), -1), layer.out)
            x = torch.addmm(x, F.gelu(_unit(x) @ layer.up), layer.down)
        cache.grow(going)
        return _unit(x)[:, : self.width] * self.norm

    def _angles(self, position: Tensor, clock: Tensor | None) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Per layer what a query or key is multiplied with, and its other half: (B or 1, H + G, E) each."""
        times = None if clock is None else clock[:, None]
        cos, sin = (
            part[:, 0] for part in turn_by(position, self.net.waves, times, self.net.beats)
        )  # (B, 1, E)
        return (self.upright * cos).unbind(), (self.across * sin).unbind()


def _attend(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None) -> Tensor:
    """(B G, H / G, E) from queries of that shape, keys and values (B G, K, E); seen: (B G, 1, K), added.

    For 16 rows these products take 0.7 of the time of F.scaled_dot_product_attention, for one as long.
    """
    across = keys.transpose(1, 2)
    scores = torch.bmm(query, across) if seen is None else torch.baddbmm(seen, query, across)
    return torch.bmm(scores.softmax(-1), values)


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1, the constant columns among them."""
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def _eps(norm: nn.Module) -> float:
    return float(norm.eps or 0.0) if isinstance(norm, RMSNorm) else 0.0


def _transposed(layer: nn.Module) -> Tensor:
    """(inputs, outputs) of a layer without bias, whatever it is made of."""
    if type(layer) is nn.Linear:
        return layer.weight.t()
    weight = next(layer.parameters())
    return layer(torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device))


def _after(norm: RMSNorm, matrix: Tensor) -> Tensor:
    """(D + P, outputs): a matrix (D, outputs) with the weights of the norm before it."""
    scaled = matrix * (norm.weight * math.sqrt(len(norm.weight)))[:, None]
    return F.pad(scaled, (0, 0, 0, SPARE)).contiguous()


def _laid_out(block: Block) -> _Layer:
    attention, width = block.attention, block.attention.head_width
    heads = [
        _transposed(p).unflatten(1, (-1, width))
        for p in (attention.q_proj, attention.k_proj, attention.v_proj)
    ]
    return _Layer(
        qkv=_after(block.attention_norm, torch.cat(heads, 1).flatten(1)),
        out=F.pad(_transposed(attention.o_proj), (0, SPARE)).contiguous(),
        up=_after(block.mlp_norm, _transposed(block.mlp.up_proj)),
        down=F.pad(_transposed(block.mlp.down_proj).t(), (0, 0, 0, SPARE)).contiguous().t(),
    )


def _turned(block: Block) -> Tensor:
    """(H + G, E) weights of the norms of all queries and keys."""
    attention, groups = block.attention, []
    for norm, layer in ((attention.q_norm, attention.q_proj), (attention.k_norm, attention.k_proj)):
        rows = _transposed(layer).shape[1] // attention.head_width
        groups.append((norm.weight * math.sqrt(attention.head_width)).expand(rows, -1))
    return torch.cat(groups)
