"""The plugin of chords, what a content holds by name and by time, and how a file is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from multimodal_gpt.stream.tokenizer import Item
from multimodal_gpt.tokenizers import chords
from multimodal_gpt.tokenizers._harmony import name
from multimodal_gpt.tokenizers._music import TICKS
from multimodal_gpt.tokenizers.chords import Chords

CHORDS = chords.build()
BAR = 4 * TICKS


def names(content: Chords) -> list[str]:
    return [name(e.symbol) for e in content.events]


def onsets(content: Chords) -> list[float]:
    """In quarter notes."""
    return [e.tick / TICKS for e in content.events]


def read_one(path: Path, **options: Any) -> Item:
    """The one item of a file."""
    (item,) = chords.build(**options).read(path)
    return item
