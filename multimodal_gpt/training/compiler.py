"""Whether the training step is compiled."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from multimodal_gpt.console import warn


def compiles(setting: bool | Literal["auto"], device: torch.device) -> bool:
    """Whether to compile for a device; where that is wanted but fails, a line tells why not.

    "auto" is on CUDA alone, where it has not been run. On a CPU it gained nothing: in turns 2,220, 2,380 and
    2,390 tokens a second compiled, 2,360, 2,580 and 2,180 as it is, after 50 s of compiling (4 blocks of
    width 160, context 1024, float32, one thread).
    """
    if setting is False or (setting == "auto" and device.type != "cuda"):
        return False
    try:
        torch.compile(_trial)(torch.ones(8, device=device))
    except Exception as error:  # torch raises what the missing part happens to raise
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        warn(f"train.compile: torch can't compile here, training without it: {reason}")
        return False
    return True


def _trial(x: Tensor) -> Tensor:
    return x.exp() + 1
