"""A toy modality: words over five letters; timeless, and any letter may follow any other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.files import read_text, write_text
from multimodal_gpt.stream.grammar import Grammar, free_grammar
from multimodal_gpt.stream.tokenizer import Item


@dataclass(frozen=True)
class Letters:
    """Content is a str such as "abba"; one token per letter; a .letters file is one word."""

    letters: str
    suffixes = (".letters",)
    unit = "letter"

    @property
    def size(self) -> int:
        return len(self.letters)

    def read(self, path: Path) -> Iterator[Item]:
        word = read_text(path).strip()
        if word:
            yield Item("", self.parse(word), {"length": len(word)})

    def write(self, content: str, path: Path, *, append: bool = False, note: str = "") -> Path:
        return write_text(path, content + "\n")

    def parse(self, text: str) -> str:
        if not text or set(text) - set(self.letters):
            raise UserError(f"{text!r} is not a word over {self.letters!r}")
        return text

    def encode(self, content: str) -> np.ndarray:
        return np.array([self.letters.index(c) for c in self.parse(content)], dtype=np.int32)

    def decode(self, ids: np.ndarray) -> str:
        if not self.grammar().accepts(ids):
            raise UserError("these ids are not a word")
        return self.show(ids)

    def grammar(self) -> Grammar:
        return free_grammar(self.size)

    def clock(self, ids: np.ndarray) -> None:
        return None

    def cuts(self, ids: np.ndarray) -> np.ndarray:
        return np.zeros(0, dtype=np.int64)

    def units(self, content: str) -> int:
        return len(content)

    def describe(self, content: str) -> dict[str, Any]:
        return {"letters": len(content), "first": content[0]}

    def show(self, ids: np.ndarray) -> str:
        return "".join(self.letters[i] for i in np.asarray(ids).tolist())


def build(letters: str = "abcde") -> Letters:
    return Letters(letters)
