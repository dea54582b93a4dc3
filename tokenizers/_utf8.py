"""UTF-8 as a machine over bytes, and what counts as visible. Shared by plugins whose ids are bytes of text.

Letters: S states, V local ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.grammar import Grammar

# A list of our own and not `unicodedata`, whose answer changes with the Python version: the grammar
# is part of a vocabulary's fingerprint. Ranges of code points, both ends included.
_BLANK_RANGES = (
    *((0x00, 0x20), (0x7F, 0xA0), (0xAD, 0xAD)),  # controls, spaces, soft hyphen
    *((0x115F, 0x1160), (0x3164, 0x3164), (0xFFA0, 0xFFA0)),  # Hangul fillers
    *((0x1680, 0x1680), (0x180E, 0x180E), (0x2000, 0x200F), (0x2028, 0x202F)),  # spaces, marks
    *((0x205F, 0x2064), (0x2800, 0x2800), (0x3000, 0x3000), (0xFEFF, 0xFEFF)),
)
BLANKS = frozenset(chr(c) for first, last in _BLANK_RANGES for c in range(first, last + 1))
"""Characters that leave no ink: white space, controls, zero-width characters, fillers."""
_BLANK_BYTES = frozenset(c.encode() for c in BLANKS)
_BLANK_STARTS = frozenset(c[:n] for c in _BLANK_BYTES for n in range(1, len(c)))
_SECOND = {0xE0: (0xA0, 0xBF), 0xED: (0x80, 0x9F), 0xF0: (0x90, 0xBF), 0xF4: (0x80, 0x8F)}
"""First byte -> range of the next: no overlong forms, no surrogates, nothing above U+10FFFF."""
_LIKE = (b"\xc2", b"\xe1", b"\xf1")
"""A beginning that stands for all with 1, 2, 3 bytes of 80 .. BF to come."""

State = tuple[bytes, bool]
"""Bytes of a character that is not whole yet, and whether a visible character has come or is sure to come."""


def is_visible(text: str) -> bool:
    """Whether a text holds a character that leaves ink."""
    return not BLANKS.issuperset(text)


def require_visible(text: str) -> str:
    """The same text. Raises UserError where all of it is blank."""
    if not is_visible(text):
        raise UserError(f"the text {text[:40]!r} holds no visible character", fix="give at least one word")
    return text


def clean(text: str) -> str:
    """The same text with lone surrogates, which no UTF-8 file can hold, replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _left(prefix: bytes) -> int:
    return 1 + (prefix[0] >= 0xE0) + (prefix[0] >= 0xF0) - (len(prefix) - 1)


def _merge(prefix: bytes, seen: bool) -> State:
    """One state for all beginnings that have the same future."""
    if not prefix or (not seen and prefix in _BLANK_STARTS):
        return prefix, seen
    if len(prefix) == 1 and prefix[0] in _SECOND:
        return prefix, True
    return _LIKE[_left(prefix) - 1], True


def _step(state: State, byte: int) -> State | None:
    prefix, seen = state
    whole = prefix + bytes([byte])
    if not prefix:
        if byte < 0x80:
            return b"", seen or whole not in _BLANK_BYTES
        return _merge(whole, seen) if 0xC2 <= byte <= 0xF4 else None
    first, last = _SECOND.get(prefix[0], (0x80, 0xBF)) if len(prefix) == 1 else (0x80, 0xBF)
    if not first <= byte <= last:
        return None
    if _left(prefix) == 1:
        return b"", seen or whole not in _BLANK_BYTES
    return _merge(whole, seen)


@cache
def machine() -> tuple[np.ndarray, np.ndarray]:
    """(S, 256) int32 state after a byte, -1 where it may not come, and (S,) bool final; 0 is the start."""
    states: dict[State, int] = {(b"", False): 0}
    rows = []
    for state in (todo := [*states]):
        row = [_step(state, byte) for byte in range(256)]
        todo += [s for s in dict.fromkeys(row) if s is not None and s not in states]
        for after in row:
            if after is not None:
                states.setdefault(after, len(states))
        rows.append([-1 if s is None else states[s] for s in row])
    final = [prefix == b"" and seen for prefix, seen in states]
    return np.array(rows, dtype=np.int32), np.array(final)


def grammar(tokens: Sequence[bytes]) -> Grammar:
    """The machine run over each token's bytes: whole characters, at least one of them visible."""
    step, final = machine()
    lengths = np.array([len(t) for t in tokens])
    data = np.frombuffer(b"".join(t.ljust(lengths.max(), b"\0") for t in tokens), dtype=np.uint8)
    data = data.reshape(len(tokens), -1)  # (V, longest)
    table = np.repeat(np.arange(len(final), dtype=np.int32)[:, None], len(tokens), axis=1)  # (S, V)
    for place in range(lengths.max()):
        on = np.flatnonzero(lengths > place)
        before = table[:, on]
        table[:, on] = np.where(before >= 0, step[before, data[on, place]], -1)
    return Grammar(table, final, cut=np.zeros(len(tokens), dtype=bool))
