"""Untrained runs over letters and beats, and documents to code with them."""

from __future__ import annotations

import numpy as np
from toy_looking import toy_run
from toy_runs import TOYS

from multimodal_gpt.generation.session import Run
from multimodal_gpt.stream.vocabulary import Encoded

BEATS, LETTERS = {"plugin": str(TOYS / "beats.py")}, {"plugin": str(TOYS / "letters.py")}
TOY = {"letters": LETTERS, "beats": BEATS, "drums": BEATS}
SMALL = {"depth": 1, "width": 16, "heads": 2, "kv_heads": 1}
TURNS = (["letters", "beats+drums"], ["drums+beats", "letters"])


def toy(*orders: list[str], context: int = 64) -> Run:
    """A run over letters, beats and drums."""
    return toy_run(TOY, [list(order) for order in orders], context=context, **SMALL)


def bars(run: Run, name: str, seed: int, length: int = 40) -> Encoded:
    """Any bars, as ids."""
    ids = run.vocabulary.tokenizer(name).grammar().random_walk(np.random.default_rng(seed), length)
    return run.vocabulary.encode(name, run.vocabulary.decode(name, ids))


def document(run: Run, seed: int = 1, length: int = 40) -> dict[str, Encoded]:
    """A word, beats and drums, as ids."""
    word = "abcde" * (1 + seed % 3)
    found = {"letters": run.vocabulary.encode("letters", word)}
    return {**found, **{name: bars(run, name, seed + n, length) for n, name in enumerate(("beats", "drums"))}}
