"""RMSNorm (Zhang and Sennrich 2019) that keeps its fused kernel under bf16 autocast."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.RMSNorm):
    """The one of torch, its weight taken in the dtype of the input: mixed dtypes would lose the kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """Last dimension scaled to a mean square of 1, times the weight; sums are float32 inside."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)
