"""Versions of installed libraries, recorded wherever another version could change what something means."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from multimodal_gpt.errors import UserError

LIBRARIES = ("multimodal-gpt", "miditok", "tiktoken", "numpy")
"""What the meaning of an id may depend on."""
CHECKPOINT_FORMAT = 2
"""Of the checkpoints that are written, and the only one that is read. 1 had MLPs with a gate."""


def installed(packages: Iterable[str] = LIBRARIES) -> dict[str, str | None]:
    """Distribution -> installed version, None where it is missing."""
    return {package: _version(package) for package in packages}


def check_format(found: Any, where: Path) -> None:
    """Raises UserError where a checkpoint is of another format; TypeError where that is no number."""
    if found != CHECKPOINT_FORMAT:
        what = f"is of format {found!r}, this version reads {CHECKPOINT_FORMAT}"
        raise UserError(what, where, "upgrade" if found > CHECKPOINT_FORMAT else "train again")


@cache  # a library parses all that its distribution says of itself to find it: milliseconds
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
