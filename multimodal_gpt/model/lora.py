"""Low-rank adapters (LoRA, Hu et al. 2021): frozen matrices beside which a small product learns.

B batch, T tokens, D inputs of a layer, O outputs, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DOWN, UP = "lora_down", "lora_up"


class LoRALinear(nn.Linear):
    """weight + scale * up @ down, of which only `down` (R, D) and `up` (O, R) learn.

    `up` begins at 0, so that the layer begins as exactly the one that it takes the place of.
    """

    def __init__(self, layer: nn.Linear, rank: int, scale: float) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight, self.scale = layer.weight.requires_grad_(False), scale
        self.lora_down = nn.Parameter(self.weight.new_empty(rank, layer.in_features))
        self.lora_up = nn.Parameter(self.weight.new_zeros(layer.out_features, rank))
        bound = 1 / math.sqrt(layer.in_features)
        nn.init.uniform_(self.lora_down, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, O)."""
        return F.linear(x, self.weight) + self.scale * F.linear(F.linear(x, self.lora_down), self.lora_up)


def linear_layers(net: nn.Module) -> list[str]:
    """Names of the layers that can have an adapter."""
    return [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear)]


def adapt(net: nn.Module, layers: Iterable[str], rank: int, scale: float) -> None:
    """Freeze the network and put adapters of `rank` on these layers, in place."""
    net.requires_grad_(False)
    for name in layers:
        layer = net.get_submodule(name)
        if isinstance(layer, nn.Linear):
            net.set_submodule(name, LoRALinear(layer, rank, scale))


def deltas(net: nn.Module) -> dict[str, Tensor]:
    """What the adapters of a network have learnt, by name; empty where it has none."""
    return {name: value for name, value in net.state_dict().items() if name.endswith((DOWN, UP))}


def merged(weights: Mapping[str, Tensor], deltas: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Weights with what the adapters learnt added: what a network without adapters needs to do the same.

    Raises ValueError where the two do not fit.
    """
    whole = dict(weights)
    for layer, down, up in _pairs(deltas):
        name = f"{layer}.weight"
        if (
            name not in whole
            or whole[name].shape != (up.shape[0], down.shape[1])
            or up.shape[1:] != down.shape[:1]
        ):
            raise ValueError(f"the deltas of {layer} do not fit")
        whole[name] = torch.addmm(whole[name], up, down, alpha=scale)
    return whole


def _pairs(deltas: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name of the layer, its `down`, its `up`)."""
    for name, down in deltas.items():
        layer, _, kind = name.rpartition(".")
        if kind == DOWN:
            yield layer, down, deltas[f"{layer}.{UP}"]
