"""Where a run trains, how precisely, and Lightning kept quiet meanwhile."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from multimodal_gpt.errors import UserError

Precision = Literal["32-true", "bf16-mixed"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
MMAP_FROM = 2**30
"""Bytes from which on a tensor gets pages of its own."""


@dataclass(frozen=True)
class Device:
    """`accelerator` and `precision` as Lightning names them, and a line for the header."""

    accelerator: str
    precision: Precision
    name: str


def choose_device(device: str, precision: str) -> Device:
    """The device and precision of a run. Raises UserError where a GPU is asked for and there is none.

    Args:
        device: "auto" (CUDA if there is one, else the CPU), "cpu" or "gpu".
        precision: "auto" (bf16 where the device computes in it), "32" or "bf16".
    """
    cuda, apple = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "gpu" and not (cuda or apple):
        fix = "train.device=cpu, or install the torch build for your GPU: https://pytorch.org"
        raise UserError("there is no GPU that torch can use", "train.device", fix)
    if device == "cpu" or not (cuda or device == "gpu"):
        return Device("cpu", _precision(precision, cpu_has_bf16()), f"CPU, {torch.get_num_threads()} threads")
    if cuda:
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return Device("cuda", _precision(precision, fast), torch.cuda.get_device_name())
    return Device("mps", _precision(precision, False), "Apple GPU")


def set_threads(threads: int, processes: int) -> None:
    """Let torch use `threads` of the CPU; 0 = all, shared evenly by the processes of this machine."""
    if threads or processes > 1:
        torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // processes))


def keep_freed_memory() -> None:
    """Have glibc reuse what a CPU run frees, not give it back to the system and ask for it again.

    A step allocates the same large tensors over and over; new pages are zeroed and mapped one by one. A step
    of 4,096 tokens (4 blocks of width 160, one thread) met with 8,000 to 12,000 of them, with this 3, and
    took 0.92 to 0.98 of the time. For this process, from now on; does nothing where there is no glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MMAP_FROM)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _precision(wanted: str, fast_bf16: bool) -> Precision:
    return "bf16-mixed" if wanted == "bf16" or (wanted == "auto" and fast_bf16) else "32-true"


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware: 2 times as fast there, slower than float32 elsewhere."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in checks)


QUIET_LOGGERS = (
    "lightning",
    "lightning.pytorch",
    "lightning.fabric",
    "lightning.pytorch.utilities.rank_zero",
)
QUIET_WARNINGS = (
    ".*does not have many workers.*",  # rows are built from memory-mapped arrays: no worker is needed
    ".*GPU available but not used.*",  # train.device=cpu was the user's choice
    ".*MPS available but not used.*",
    ".*isinstance.treespec, LeafSpec.*",  # inside Lightning, about torch
    ".*smaller than the logging interval.*",  # we log ourselves
    ".*srun. command is available.*",
    ".*callbacks used to create the checkpoint.*",  # sampling may be switched off when a run goes on
    ".*ended before the epoch ended and your dataloader is not resumable.*",  # the datamodule knows the place
)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """No advertisements and no advice from Lightning; errors come through."""
    loggers = [logging.getLogger(name) for name in QUIET_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for pattern in QUIET_WARNINGS:
                warnings.filterwarnings("ignore", pattern)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
