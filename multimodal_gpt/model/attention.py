"""Causal self-attention with grouped key-value heads and normalised queries and keys.

B batch, T tokens, K tokens attended to, D width, H query heads, G key-value heads, E head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimodal_gpt.model.cache import KVCache, Step
from multimodal_gpt.model.norm import RMSNorm
from multimodal_gpt.model.rotary import Turn, rotate


def document_mask(document: Tensor) -> Tensor:
    """(B, 1, T, T) bool from document numbers (B, T): a token sees itself and earlier tokens of its document.

    Padding carries a number of its own (-1), so no row of the mask is empty and no softmax is undefined.
    """
    tokens = document.shape[1]
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=document.device).tril()
    return ((document[:, :, None] == document[:, None, :]) & causal)[:, None]


class Attention(nn.Module):
    """One attention layer; names follow Qwen3, so that export is a rename."""

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

    def forward(self, x: Tensor, turn: Turn, mask: Tensor | None, memory: Memory | None) -> Tensor:
        """(B, T, D) -> (B, T, D). `mask` (B, 1, T, K) bool, or None for plain causal attention."""
        q = rotate(self.q_norm(self._split(self.q_proj(x))), turn)  # (B, H, T, E)
        k = rotate(self.k_norm(self._split(self.k_proj(x))), turn)  # (B, G, T, E)
        v = self._split(self.v_proj(x))
        q, k = q.to(v.dtype), k.to(v.dtype)
        if memory is not None:
            cache, block, step = memory
            k, v = cache.write(block, step, k, v)  # (B, G, K, E)
        causal = mask is None and q.shape[2] > 1
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=self.grouped)
        return self.o_proj(y.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_width)).transpose(1, 2)


Memory = tuple[KVCache, int, Step]
"""A cache, the block's number in it, and where this call writes."""
