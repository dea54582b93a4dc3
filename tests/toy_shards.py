"""Preparing toy documents: a plugin that does what none should, and what is in the shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toy_corpus import LETTERS

from multimodal_gpt.data.batches import StoredDocument
from multimodal_gpt.data.prepare import prepare
from multimodal_gpt.data.reporting.report import Report
from multimodal_gpt.data.shards import open_shards
from multimodal_gpt.recipe.schema import Recipe

WILD = f"""
import importlib.util, os, signal, sys, time
from pathlib import Path
from dataclasses import dataclass, field
from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.plugins import load_module
Letters = load_module({LETTERS!r}).Letters

@dataclass(frozen=True)
class Wild(Letters):
    def read(self, path):
        word = path.read_text()
        if word == "hang":
            time.sleep(60)
        if word == "spin":
            while True: pass
        if word == "die":
            os._exit(7)
        if word == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if word == "bug":
            raise ZeroDivisionError("oops")
        print("noise on stdout")
        yield from super().read(path)

    def parse(self, text):
        if text == "die":
            os._exit(7)
        return super().parse(text)

    def describe(self, content):
        if content == "bad":
            raise KeyError("describe")
        return {{**super().describe(content), "word_track": content[0]}}

    def shift(self, content, steps):
        return content[steps:] + content[:steps] if content != "ddd" else None

    def compose(self, metadata):
        return "e" * metadata["bars"] if metadata["bars"] < 3 else None

def build(letters="abcdeABC"):
    return Wild(letters)
"""


def plugin(path: Path, source: str) -> dict[str, str]:
    """The options of a tokenizer with this source."""
    path.write_text(source)
    return {"plugin": str(path)}


def quietly(recipe: Recipe, **options: Any) -> Report:
    return prepare(recipe, progress=False, **options)


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def documents(folder: Path, split: str) -> list[StoredDocument]:
    shards = open_shards(folder, split, verify=True)
    return [shards.document(i) for i in range(len(shards))]
