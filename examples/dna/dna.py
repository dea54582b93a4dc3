"""DNA as a modality: FASTA files, one token per k bases (3: codons), single ones where k do not fit."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from multimodal_gpt import Grammar, Item, UserError
from multimodal_gpt.files import is_file, read_text, write_text
from multimodal_gpt.stream.grammar import free_grammar

PLAIN = str.maketrans("URYSWKMBDHV", "TNNNNNNNNNN")  # RNA is read as DNA, "one of several bases" as N
LINE = 60  # bases per line of a file


@dataclass(frozen=True)
class Dna:
    k: int
    suffixes = (".fasta", ".fa")
    unit = "base"

    @cached_property
    def tokens(self) -> dict[str, int]:
        pieces = dict.fromkeys([*map("".join, product("ACGT", repeat=self.k)), *"ACGTN"])
        return {piece: i for i, piece in enumerate(pieces)}

    @property
    def size(self) -> int:
        return len(self.tokens)

    def read(self, path: Path) -> Iterator[Item]:
        before, *records = ("\n" + read_text(path)).split("\n>")
        if before.strip():
            raise UserError("bases before the first '>' line", path, "begin every record with '>name'")
        for number, record in enumerate(records, start=1):
            header, _, bases = record.partition("\n")
            name, _, description = header.strip().partition(" ")
            if bases.strip():
                yield Item(name or str(number), self._bases(bases), {"description": description.strip()})

    def write(self, content: str, path: Path, *, append: bool = False, note: str = "") -> Path:
        before = read_text(path) if append and path.is_file() else ""
        name = f">generated{before.count('>') + 1} {' '.join(note.split())}".strip()
        lines = (content[i : i + LINE] for i in range(0, len(content), LINE))
        return write_text(path, before + "\n".join([name, *lines, ""]))

    def parse(self, text: str) -> str:
        if text.lower().endswith(self.suffixes) and is_file(text):
            text = next((item.content for item in self.read(Path(text))), "")
        return self._bases(text)

    def _bases(self, text: str) -> str:
        bases = "".join(text.split()).upper().translate(PLAIN)
        if not bases or set(bases) - set("ACGTN"):
            raise UserError(f"{text[:40]!r} is not DNA", fix="write bases as A, C, G, T or N")
        return bases

    def encode(self, content: str) -> np.ndarray:
        bases, ids, place = self._bases(content), [], 0
        while place < len(bases):
            piece = bases[place : place + self.k]
            piece = piece if piece in self.tokens else bases[place]
            ids.append(self.tokens[piece])
            place += len(piece)
        return np.array(ids, dtype=np.int32)

    def decode(self, ids: np.ndarray) -> str:
        self.grammar().walk(ids)
        return self._bases(self.show(ids))

    def grammar(self) -> Grammar:
        return free_grammar(self.size)

    def clock(self, ids: np.ndarray) -> None:
        return None

    def cuts(self, ids: np.ndarray) -> np.ndarray:
        return np.zeros(0, dtype=np.int64)

    def units(self, content: str) -> int:
        return len(content)

    def describe(self, content: str) -> dict[str, Any]:
        share = sum(base in "GC" for base in content) / len(content)
        return {"bases": len(content), "gc": round(share, 2)}

    def show(self, ids: np.ndarray) -> str:
        pieces = list(self.tokens)
        return "".join(pieces[i] for i in np.asarray(ids).tolist())


def build(k: int = 1) -> Dna:
    if not isinstance(k, int) or not 1 <= k <= 6:
        raise UserError(f"k is {k!r}", fix="1 to 6 bases per token")
    return Dna(k)
