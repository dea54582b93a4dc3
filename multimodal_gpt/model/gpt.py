"""The model: a decoder with RMSNorm, rotary, QK-norm, grouped heads, GELU, a tied table.

How much worse another choice is, held-out nats per token at equal CPU time on folk tunes and on Shakespeare
by letters (45 and 36 s, 110 and 121 steps, 4 blocks of width 128); in brackets a second seed, 185 and 162
steps (`benchmarks/architecture.py`). The MLP, as many weights each, against GELU (0.872 and 2.069):

    SwiGLU                        9.3 % [7.1]      1.0 % [0.4]
    ReLU^2                        7.3 [2.0]        1.0

SwiGLU is still behind on tunes after 230 s and 581 steps: 6.5 %, 2.82 bits per note for 2.62. Everything else
was measured with SwiGLU, against SwiGLU (0.953 and 2.090); other weights to begin with: -1.2, -0.3 %.

    learned positions            11.6 %           18.0 %
    untied table                  3.2              3.9
    no QK-norm                    2.0             -1.1
    GPT-2's 0.02 for all          5.4             -4.9
    outputs of blocks begin at 0  5.4             -3.7
    LayerNorm                    -0.1             -1.3 [-1.4]
    2 of 4 key-value heads       -3.7 [-0.9]      -3.2 [-1.7]
    1 of 4 key-value heads       -0.1             -0.3

What few key-value heads gain does not last: after 600 steps of 4,096 tokens on tunes in turns (`own_folder`,
GELU, rows of 1,024) 5 heads have 0.427 nats, 4 with 2 for keys and values 0.443, 5 with 1 0.459 (0.449 where
the MLP has the weights that this saves). So every head has its own.

B batch, T tokens, D width, H heads, V vocabulary (table rows).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimodal_gpt.errors import UserError
from multimodal_gpt.model.attention import Attention, Memory, Seen, seen_in
from multimodal_gpt.model.cache import KVCache
from multimodal_gpt.model.loss import IGNORE, summed_nats, token_nats
from multimodal_gpt.model.norm import RMSNorm
from multimodal_gpt.model.rotary import Turn, clock_numbers, turn_by, wave_numbers
from multimodal_gpt.recipe.schema import ModelRecipe


@dataclass(frozen=True)
class GPTConfig:
    """Everything that decides the shape of the weights.

    `context` is the longest row in training, tokens; the weights themselves know no limit.
    """

    vocabulary_size: int
    depth: int
    width: int
    heads: int
    kv_heads: int
    mlp_hidden: int
    context: int
    dropout: float = 0.0
    rotary_base: float = 10_000.0
    clock: float = 0.0

    @property
    def clock_angles(self) -> int:
        """How many of a head's angles turn with the clock."""
        return round(self.clock * self.head_width / 2)

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.width // self.heads

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        """(depth, key-value heads, head width): what a KVCache needs to know."""
        return self.depth, self.kv_heads, self.head_width


def gpt_config(model: ModelRecipe, vocabulary_size: int) -> GPTConfig:
    """The shape that a recipe asks for. Raises UserError where its numbers do not divide."""
    heads, kv_heads = model.heads, model.key_value_heads
    if model.width % (2 * heads):
        best = 2 * heads * max(1, round(model.width / (2 * heads)))
        raise UserError(f"{model.width} is not a multiple of 2 * {heads} heads", "model.width", f"try {best}")
    if heads % kv_heads:
        raise UserError(
            f"{kv_heads} does not divide {heads} heads", "model.kv_heads", "take a divisor of heads"
        )
    return GPTConfig(
        vocabulary_size=vocabulary_size,
        depth=model.depth,
        width=model.width,
        heads=heads,
        kv_heads=kv_heads,
        mlp_hidden=model.mlp_hidden,
        context=model.context,
        dropout=model.dropout,
        rotary_base=model.rotary_base,
        clock=model.clock,
    )


class MLP(nn.Module):
    """Feed-forward layer: down(gelu(up(x)))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        # The exact one: on a CPU its approximation by tanh takes 3 times as long.
        return self.down_proj(F.gelu(self.up_proj(x)))


class Block(nn.Module):
    """Attention, then MLP, each on the normalised residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, eps=1e-6)
        self.attention = Attention(config.width, config.heads, config.kv_heads)
        self.mlp_norm = RMSNorm(config.width, eps=1e-6)
        self.mlp = MLP(config.width, config.mlp_hidden)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, turn: Turn, seen: Seen, memory: Memory | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.dropout(self.attention(self.attention_norm(x), turn, seen, memory))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class GPT(nn.Module):
    """Ids in, hidden states out; `logits` and `token_losses` turn those into predictions."""

    waves: Tensor
    beats: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.width, eps=1e-6)
        # A function of the config, so not part of a checkpoint.
        timed = config.clock_angles
        waves = wave_numbers(config.head_width // 2 - timed, config.rotary_base)
        self.register_buffer("waves", waves, persistent=False)
        self.register_buffer("beats", clock_numbers(timed), persistent=False)
        initialise(self)

    def forward(
        self,
        ids: Tensor,
        position: Tensor | None = None,
        document: Tensor | None = None,
        cache: KVCache | None = None,
        counts: Tensor | None = None,
        clock: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) of ids (B, T).

        Args:
            ids: (B, T) global ids.
            position: (B, T) place within the document, tokens; 0 .. T - 1 if None. A cache knows it itself.
            document: (B, T) number of the document within the row, -1 = padding; None = one document per row.
            cache: what came before; the new tokens are added to it.
            counts: (B,) with a cache, how many of each row's T tokens are real; the others may be anything.

        Raises ValueError where the new tokens do not fit the cache.
        """
        step = None if cache is None else cache.plan(ids.shape[1], counts)
        seen: Seen
        if step is not None:
            position, seen = step.position, step.mask
        else:
            seen = None if document is None else seen_in(document)
        if position is None:
            position = torch.arange(ids.shape[1], device=ids.device)[None]
        turn = turn_by(position, self.waves, clock, self.beats)
        x = self.dropout(self.embedding(ids))  # (B, T, D)
        for number, block in enumerate(self.blocks):
            memory = None if cache is None or step is None else (cache, number, step)
            x = block(x, turn, seen, memory)
        if cache is not None and step is not None:
            cache.advance(step)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V) float32, by the embedding table."""
        return F.linear(hidden, self.embedding.weight).float()

    def token_losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """(B, T) float32: nats of every target, 0 where it is IGNORE."""
        return token_nats(hidden.flatten(0, 1), self.embedding.weight, targets.flatten()).view(targets.shape)

    def loss_sum(
        self, hidden: Tensor, targets: Tensor, emphasis: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The sum of `token_losses` to train on, each as often as its `emphasis` (B, T) says, and these, once
        and without a gradient, to look at.
        """
        weights = None if emphasis is None else emphasis.flatten()
        total, each = summed_nats(hidden.flatten(0, 1), self.embedding.weight, targets.flatten(), weights)
        return total, each.view(targets.shape)

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Mean nats per target that is not IGNORE, float32; 0 where there is none."""
        return self.loss_sum(hidden, targets)[0] / (targets != IGNORE).sum().clamp(min=1)

    def new_cache(self, batch: int, length: int) -> KVCache:
        """An empty cache of `length` tokens a row, with the dtype and device of the weights."""
        table = self.embedding.weight
        return KVCache(batch, self.config.cache_shape, length, table.dtype, table.device)

    @property
    def parameter_count(self) -> int:
        """Number of weights; the tied table counts once."""
        return sum(p.numel() for p in self.parameters())


def initialise(net: GPT) -> None:
    """Normal weights: 0.02 for the table, sqrt(2 / (5 D)) for matrices (Nguyen and Salazar 2019).

    What writes into the residual stream is divided by sqrt(2 depth), so that the stream's size after the last
    block does not depend on the depth (GPT-2). Norms start at 1.
    """
    width, depth = net.config.width, net.config.depth
    scale = math.sqrt(2 / (5 * width))
    nn.init.normal_(net.embedding.weight, std=0.02)
    for name, weight in net.blocks.named_parameters():
        if weight.ndim == 2:
            last = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(weight, std=scale / math.sqrt(2 * depth) if last else scale)
