"""Documents: what a folder is turned into before it becomes tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Segment:
    """One modality's view of a piece; `content` is whatever that modality's tokenizer understands."""

    modality: str
    content: Any


@dataclass(frozen=True)
class Document:
    """One piece: its segments in any order, and what is known about it.

    A modality may occur more than once (several captions of one tune): these are alternatives, and a
    training stream takes one of them.
    """

    segments: tuple[Segment, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    def content(self, modality: str) -> Any | None:
        """The content of the first segment of this modality, None where there is none."""
        return next((s.content for s in self.segments if s.modality == modality), None)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities present, each once, in order of first appearance."""
        return tuple(dict.fromkeys(s.modality for s in self.segments))
