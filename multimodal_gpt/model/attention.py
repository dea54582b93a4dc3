"""Causal self-attention with grouped key-value heads and normalised queries and keys.

B batch, T tokens, K tokens attended to, D width, H query heads, G key-value heads, E head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimodal_gpt.model import blockwise
from multimodal_gpt.model.cache import KVCache, Step
from multimodal_gpt.model.norm import RMSNorm
from multimodal_gpt.model.rotary import Turn, rotate

Seen = Tensor | list[int] | None
"""What a token sees: a mask (B, 1, T, K) bool, or lengths of documents, or None for all before it."""


def seen_in(document: Tensor) -> Seen:
    """What keeps documents apart, from their numbers (B, T), which stand together in a row.

    On a CPU attention goes document by document: nothing is computed that a mask would hide. A training step
    of 4,096 tokens, two documents in a row of 1,024, takes 0.73 of the time with a mask; rows of 256, 0.96 (4
    blocks of width 160, one thread). Elsewhere, and where it is compiled, it is one product with a mask.
    """
    if document.device.type == "cpu" and not torch.compiler.is_compiling():
        return document_lengths(document)
    return document_mask(document)


def document_lengths(document: Tensor) -> list[int]:
    """Tokens of each document and of padding, from numbers (B, T), row after row; they sum up to B T."""
    first = torch.ones_like(document, dtype=torch.bool)
    first[:, 1:] = document[:, 1:] != document[:, :-1]
    starts = first.flatten().nonzero().flatten()
    return torch.diff(starts, append=starts.new_tensor([document.numel()])).tolist()


def document_mask(document: Tensor) -> Tensor:
    """(B, 1, T, T) bool from document numbers (B, T): a token sees itself and earlier tokens of its document.

    Padding carries a number of its own (-1), so no row of the mask is empty and no softmax is undefined.
    """
    tokens = document.shape[1]
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=document.device).tril()
    return ((document[:, :, None] == document[:, None, :]) & causal)[:, None]


class Attention(nn.Module):
    """One attention layer; names follow those of transformers, so that export is a rename."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.head_width = width // heads
        self.grouped = kv_heads != heads
        self.q_proj = nn.Linear(width, heads * self.head_width, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * self.head_width, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * self.head_width, bias=False)
        self.o_proj = nn.Linear(heads * self.head_width, width, bias=False)
        self.q_norm = RMSNorm(self.head_width, eps=1e-6)
        self.k_norm = RMSNorm(self.head_width, eps=1e-6)

    def forward(self, x: Tensor, turn: Turn, seen: Seen, memory: Memory | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        q = rotate(self.q_norm(self._split(self.q_proj(x))), turn)  # (B, T, H, E)
        k = rotate(self.k_norm(self._split(self.k_proj(x))), turn)  # (B, T, G, E)
        v = self._split(self.v_proj(x))
        q, k = q.to(v.dtype), k.to(v.dtype)
        if isinstance(seen, list):
            return self.o_proj(self._by_document(q, k, v, seen).flatten(1).view(x.shape))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if memory is not None:
            cache, block, step = memory
            k, v = cache.write(block, step, k, v)  # (B, G, K, E)
        found = self._attend(q, k, v, attn_mask=seen, is_causal=seen is None and q.shape[2] > 1)
        return self.o_proj(found.transpose(1, 2).flatten(2))

    def _by_document(self, q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
        """(B T, H, E) from queries (B, T, H, E), keys and values (B, T, G, E)."""
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        if blockwise.suits(q, k, lengths):
            return blockwise.attend(q, k, v, lengths)
        documents = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
        heads_first = (tuple(x.transpose(0, 1)[None] for x in document) for document in documents)
        return torch.cat([self._attend(*qkv, is_causal=True)[0].transpose(0, 1) for qkv in heads_first])

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        """(B, H, T, E) from queries of that shape, and keys and values (B, G, K, E)."""
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=self.grouped, **how)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_width))


Memory = tuple[KVCache, int, Step]
"""A cache, the block's number in it, and where this call writes."""
