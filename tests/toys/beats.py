"""A toy modality with time: bars of four places, each struck or not; a segment holds at least one hit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.files import read_text, write_text
from multimodal_gpt.stream.grammar import Grammar
from multimodal_gpt.stream.tokenizer import Item

BAR = 0
"""Tokens: 0 = bar line, 1 + p = hit at place p, in quarter notes from the bar line."""
Bars = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Beats:
    """Content is a tuple of bars, each a tuple of rising places; in a file or typed, one "x..x" a bar."""

    places: int
    suffixes = (".beats",)
    unit = "hit"

    @property
    def size(self) -> int:
        return 1 + self.places

    def read(self, path: Path) -> Iterator[Item]:
        text = read_text(path)
        if "x" in text:
            yield Item("", self.parse(text))

    def write(self, content: Bars, path: Path, *, append: bool = False, note: str = "") -> Path:
        rows = ("".join("x" if p in bar else "." for p in range(self.places)) for bar in content)
        return write_text(path, "\n".join(rows) + "\n")

    def parse(self, text: str) -> Bars:
        rows = text.split()
        if "x" not in text or any(len(r) != self.places or set(r) - set("x.") for r in rows):
            raise UserError(f"{text!r} is not bars such as {'x' + '.' * (self.places - 1)!r}")
        return tuple(tuple(p for p in range(self.places) if row[p] == "x") for row in rows)

    def encode(self, content: Bars) -> np.ndarray:
        if not any(content):
            raise UserError("there is no hit in these bars")
        return np.array([t for bar in content for t in (BAR, *(1 + p for p in bar))], dtype=np.int32)

    def decode(self, ids: np.ndarray) -> Bars:
        if not self._grammar.accepts(ids):
            raise UserError("these ids are not bars with a hit in them")
        bars: list[list[int]] = []
        for token in np.asarray(ids).tolist():
            bars.append([]) if token == BAR else bars[-1].append(token - 1)
        return tuple(map(tuple, bars))

    def grammar(self) -> Grammar:
        return self._grammar

    @cached_property
    def _grammar(self) -> Grammar:
        # 0 start; 1 after bar lines, no hit so far; 2 after a bar line, hits before; 3 + p after a hit.
        table = np.full((3 + self.places, self.size), -1, dtype=np.int32)
        table[:, BAR] = 2
        table[:2, BAR] = 1
        for place in range(self.places):
            table[1 : 3 + place, 1 + place] = 3 + place
        return Grammar(table, final=np.arange(len(table)) >= 2, cut=np.arange(self.size) == BAR)

    def clock(self, ids: np.ndarray) -> np.ndarray:
        ids = np.asarray(ids)
        bar = np.maximum(np.cumsum(ids == BAR) - 1, 0)
        return (bar * self.places + np.maximum(ids - 1, 0)).astype(np.float32)

    def follow(self) -> Callable[[int], float]:
        bars = count(-1)
        bar = next(bars)

        def time(token: int) -> float:
            nonlocal bar
            bar = next(bars) if token == BAR else bar
            return max(bar, 0) * self.places + max(token - 1, 0)

        return time

    def cuts(self, ids: np.ndarray) -> np.ndarray:
        return np.flatnonzero(np.asarray(ids) == BAR)

    def units(self, content: Bars) -> int:
        return sum(map(len, content))

    def describe(self, content: Bars) -> dict[str, Any]:
        return {"bars": len(content), "hits": self.units(content)}

    def show(self, ids: np.ndarray) -> str:
        return " ".join("|" if t == BAR else str(t - 1) for t in np.asarray(ids).tolist())

    def shift(self, content: Bars, steps: int) -> Bars | None:
        """Every hit `steps` places later in its bar; None where one would leave its bar."""
        moved = tuple(tuple(p + steps for p in bar) for bar in content)
        return moved if all(0 <= p < self.places for bar in moved for p in bar) else None


def build(places: int = 4) -> Beats:
    return Beats(places)
