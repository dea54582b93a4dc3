"""Arithmetic coding with whole-number weights: likely ids take few bits, and both sides count alike.

What a network says of the next id is rounded before it is used, so that a difference in the last digits of
its arithmetic (another processor, another number of threads) changes nothing: scores to whole multiples of
1 / GRID nats, in float64, where such differences are below 1e-12. That costs 1e-5 nats an id. The weight of a
score so many steps below the best one is looked up in a table of whole numbers, made in decimal arithmetic,
and constriction's range coder (Martin 1979) makes probabilities of 24 bits of them.
"""

from __future__ import annotations

import importlib.util
from decimal import Decimal, localcontext
from functools import cache
from typing import Any

import numpy as np

from multimodal_gpt.errors import UserError

GRID = 64
"""Steps in a nat to which scores are rounded."""
LARGEST = 2**30
"""The weight of the likeliest id."""
_STATE = 64
"""Bits of the coder's state, of which it keeps words of 32."""


def check() -> None:
    """Raises UserError where constriction is not installed."""
    if importlib.util.find_spec("constriction") is None:
        raise UserError("constriction is not installed", fix='pip install "multimodal-gpt[compress]"')


@cache
def weight_table() -> np.ndarray:
    """(N,) float64 whole numbers: the weight of an id whose score is so many steps below the best one."""
    values: list[int] = []
    with localcontext() as context:
        context.prec = 30
        while not values or values[-1]:
            values.append(int(LARGEST * (-Decimal(len(values)) / GRID).exp() + Decimal("0.5")))
    return np.array(values, dtype=np.float64)


def weigh(scores: np.ndarray) -> np.ndarray:
    """(N,) weights of ids with these scores (N,) in nats; 0 is a weight too, the coder gives it 2^-24.

    Raises UserError where a score is not a finite number.
    """
    if not np.isfinite(scores).all():
        raise UserError("the network's predictions are not finite numbers", fix="train again")
    steps = np.rint(scores * GRID)
    below = np.minimum(steps.max() - steps, len(weight_table()) - 1)
    weights: np.ndarray = weight_table()[below.astype(np.int64)]
    return weights


class Writer:
    """Takes choices one after the other and gives them as bytes; `Reader` is the reverse."""

    def __init__(self) -> None:
        check()
        import constriction

        self._coder = constriction.stream.queue.RangeEncoder()

    def put(self, index: int, weights: np.ndarray) -> None:
        """One choice among the N that have these weights (N,)."""
        self._coder.encode(index, _model(weights))

    def finish(self) -> bytes:
        """The shortest bytes that `Reader` reads these choices from.

        The coder stands for the numbers from `low` to `low + width` and writes one of them in whole words;
        any other does as well, so it is the one with the most zeros at its end, and those are left out.
        """
        place, (state, width) = self._coder.pos()
        size = int(4 * place + _STATE // 8)
        whole = self._coder.get_compressed().astype(">u4").tobytes().ljust(size, b"\0")
        number = int.from_bytes(whole, "big")
        low = number - (number - int(state)) % 2**_STATE
        kept = 0
        while (number := _rounded_up(low, 8 * (size - kept))) >= low + int(width):
            kept += 1
        return (number >> 8 * (size - kept)).to_bytes(kept, "big")


def _rounded_up(value: int, bits: int) -> int:
    """The next multiple of 2^bits."""
    return -(-value >> bits) << bits


class Reader:
    """Gives the choices back that a `Writer` took."""

    def __init__(self, data: bytes) -> None:
        check()
        import constriction

        words = np.frombuffer(data + bytes(-len(data) % 4), dtype=">u4")
        self._coder = constriction.stream.queue.RangeDecoder(words.astype(np.uint32))

    def take(self, weights: np.ndarray) -> int:
        """The next choice among the N that have these weights (N,). Raises ValueError where there is none."""
        try:
            return int(self._coder.decode(_model(weights)))
        except AssertionError as error:  # what constriction raises on bytes that no encoder writes
            raise ValueError(str(error)) from error


def _model(weights: np.ndarray) -> Any:
    import constriction  # an extension whose submodules can't be imported by name

    return constriction.stream.model.Categorical(weights, lazy=True)
