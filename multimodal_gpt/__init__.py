"""Train your own model on your own text and MIDI, and ask it in any direction.

import multimodal_gpt as mm
run = mm.load("runs/folk")
doc = run.generate(text="a slow waltz", to=["chords", "melody"])[0]
doc.write("waltz.mid")
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

# A wheel carries the folders `tokenizers` and `recipes` inside the package; a checkout keeps them beside it.
_beside = Path(__file__).resolve().parent.parent
if (_beside / "pyproject.toml").is_file():
    __path__.append(str(_beside))

from multimodal_gpt.errors import UserError  # noqa: E402

if TYPE_CHECKING:
    from multimodal_gpt.generation.session import Run
    from multimodal_gpt.stream.document import Document, Segment
    from multimodal_gpt.stream.grammar import Grammar
    from multimodal_gpt.stream.tokenizer import Item, Tokenizer
    from multimodal_gpt.stream.vocabulary import Vocabulary

__version__ = "0.1.0"
__all__ = ["Document", "Grammar", "Item", "Run", "Segment", "Tokenizer", "UserError", "Vocabulary", "load"]

_HOMES = {
    "Document": "stream.document",
    "Grammar": "stream.grammar",
    "Item": "stream.tokenizer",
    "Run": "generation.session",
    "Segment": "stream.document",
    "Tokenizer": "stream.tokenizer",
    "Vocabulary": "stream.vocabulary",
}


def load(run: str | Path, **options: Any) -> Run:
    """Open a trained run folder and get ready to generate; see `generation.session.load`."""
    from multimodal_gpt.generation.session import load as open_run

    return open_run(Path(run), **options)


def __getattr__(name: str) -> Any:
    """Imports what is asked for by name: a worker process is there in a third of the time without numpy."""
    if name in _HOMES:
        return getattr(import_module(f"multimodal_gpt.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'multimodal_gpt' has no attribute {name!r}")
