"""Versions of installed libraries, recorded wherever another version could change what something means."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

LIBRARIES = ("multimodal-gpt", "miditok", "tiktoken", "numpy")
"""What the meaning of an id may depend on."""


def installed(packages: Iterable[str] = LIBRARIES) -> dict[str, str | None]:
    """Distribution -> installed version, None where it is missing."""
    return {package: _version(package) for package in packages}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
