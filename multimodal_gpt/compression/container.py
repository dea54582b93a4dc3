"""The .mgz file: what is needed to know which network made it and what comes out, then the payload.

    "MGZ", version      4 bytes
    checkpoint          8 bytes, the beginning of the SHA-256 of the weights
    fingerprint         4 bytes, the beginning of the vocabulary's
    checksum            8 bytes, the beginning of the SHA-256 of what comes out
    kind                number, see Kind
    size                number of bytes that come out, 0 where the contents decide
    tokens, lanes       numbers, and the state in which each lane begins
    suffix, order, made_on, patch, payload     each a number of bytes, and these
    CRC-32              4 bytes, of all before

Numbers are unsigned LEB128. Everything is checked before anything is decoded.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from enum import IntEnum

from multimodal_gpt.errors import UserError

MAGIC, VERSION = b"MGZ", 1
_MOST_LANES = 1024
_CRC = 4


class Kind(IntEnum):
    """What comes out, and how it is kept."""

    STORED = 0
    """The bytes of the file, kept by xz: the network has no part in it."""
    BYTES = 1
    """The bytes of the file."""
    CONTENTS = 2
    """Contents as the tokenizers decode them, written into a new file."""


@dataclass(frozen=True)
class Header:
    """Everything but the payload.

    Args:
        checkpoint, fingerprint, checksum: beginnings of hashes, in hexadecimal.
        kind: what comes out.
        size: bytes that come out, 0 for CONTENTS.
        tokens, states: see `coding.Plan`.
        suffix: of the file that comes out.
        order: parts joined by ",", modalities by "+".
        made_on: torch's version, the processor's instructions and the number of threads.
        patch: what the tokenizer did not hold of the bytes, see `files`.
    """

    checkpoint: str
    fingerprint: str
    checksum: str
    kind: Kind
    size: int
    tokens: int
    states: tuple[int, ...]
    suffix: str
    order: str
    made_on: str
    patch: bytes


def pack(header: Header, payload: bytes) -> bytes:
    """The bytes of a file, the reverse of `unpack`."""
    hashes = bytes.fromhex(header.checkpoint + header.fingerprint + header.checksum)
    counts = (header.kind, header.size, header.tokens, len(header.states), *header.states)
    texts = (header.suffix.encode(), header.order.encode(), header.made_on.encode(), header.patch, payload)
    body = b"".join([*map(number, counts), *(number(len(text)) + text for text in texts)])
    data = MAGIC + bytes([VERSION]) + hashes + body
    return data + zlib.crc32(data).to_bytes(_CRC, "big")


def unpack(data: bytes) -> tuple[Header, bytes]:
    """Header and payload of a file. Raises UserError where it is none, damaged, cut short, or too new."""
    if data[: len(MAGIC)] != MAGIC:
        raise UserError("is no .mgz file", fix="mmgpt compress makes them")
    if zlib.crc32(data[:-_CRC]) != int.from_bytes(data[-_CRC:], "big"):
        raise UserError("the file is damaged or cut short", fix="copy it again from where it was made")
    if data[len(MAGIC)] != VERSION:
        raise UserError(f"is of format {data[len(MAGIC)]}, this version reads {VERSION}", fix="upgrade")
    try:
        return _unpacked(Cursor(data[len(MAGIC) + 1 : -_CRC]))
    except ValueError as error:
        raise UserError(f"no version of mmgpt writes such a file: {error}") from None


def _unpacked(cursor: Cursor) -> tuple[Header, bytes]:
    checkpoint, fingerprint, checksum = (cursor.take(n).hex() for n in (8, 4, 8))
    kind, size, tokens, lanes = Kind(cursor.number()), cursor.number(), cursor.number(), cursor.number()
    if lanes > _MOST_LANES or 2 * lanes > tokens:  # a lane holds a tag and at least one id
        raise ValueError(f"{lanes} lanes of {tokens} tokens")
    states = tuple(cursor.number() for _ in range(lanes))
    suffix, order, made_on = (cursor.text().decode("utf-8") for _ in range(3))
    patch, payload = cursor.text(), cursor.text()
    if not re.fullmatch(r"(\.[\w.+-]{1,32})?", suffix) or cursor.left:
        raise ValueError(f"suffix {suffix!r}, {cursor.left} bytes too many")
    header = Header(
        checkpoint, fingerprint, checksum, kind, size, tokens, states, suffix, order, made_on, patch
    )
    return header, payload


def number(value: int) -> bytes:
    """Seven bits a byte, the lowest first, the top bit set in all bytes but the last (LEB128)."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


class Cursor:
    """Reads what `number` and `pack` write. Raises ValueError where the bytes end too early."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    @property
    def left(self) -> int:
        """Bytes that are not read yet."""
        return len(self.data) - self.place

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count > self.left:
            raise ValueError(f"{count} bytes wanted, {self.left} left")
        self.place += count
        return self.data[self.place - count : self.place]

    def number(self) -> int:
        """The next number."""
        value = 0
        for shift in range(0, 63, 7):
            (byte,) = self.take(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError("a number of more than 63 bits")

    def text(self) -> bytes:
        """The next bytes that stand behind their number."""
        return self.take(self.number())
