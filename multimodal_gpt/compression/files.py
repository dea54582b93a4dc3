"""What a file holds, and a file of it again.

Modalities without times hold a file to its bytes: what their tokenizer does not keep (a byte order mark, a
missing line end, bytes that are no UTF-8) stands in a patch, and a file that they can't read is stored as it
is. Modalities with times keep their contents as decoded: a new file is written.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from multimodal_gpt.compression.container import Cursor, Kind, number
from multimodal_gpt.errors import UserError
from multimodal_gpt.generation.session import Run
from multimodal_gpt.stream.vocabulary import Encoded, Vocabulary

ODD_SHARE = 0.25
"""A file with more bytes that are no UTF-8 than this share is stored."""


@dataclass(frozen=True, eq=False)
class Contents:
    """What is to be compressed of a file.

    Args:
        data: the file.
        kind: what is to come out again.
        segments: modality -> ids; empty where the file is stored.
        suffix: of what comes out.
        patch: what makes the file's bytes of those that the tokenizer writes; b"" where these are the same.
        why: why the file is stored.
    """

    data: bytes
    kind: Kind
    segments: Mapping[str, Encoded]
    suffix: str
    patch: bytes = b""
    why: str = ""


def read(run: Run, path: Path, names: Sequence[str] = ()) -> Contents:
    """What of a file can be compressed.

    Args:
        run: a trained run.
        path: the file.
        names: the modalities to take; all that read such a file if empty.

    Raises UserError where no modality reads such a file, and where it can't be read.
    """
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"can't be read: {getattr(error, 'strerror', error)}", path) from error
    readers = {name: run.vocabulary.tokenizer(name) for name in names or run.vocabulary.names}
    if not names:
        readers = {n: t for n, t in readers.items() if path.name.lower().endswith(tuple(t.suffixes))}
    if not readers:
        fix = f"name one with --modality: {', '.join(run.vocabulary.names)}"
        raise UserError(f"no modality of this run reads '{path.suffix}'", path, fix)
    timed = [name for name in readers if run.engine.rules.members[name].clock is not None]
    if names and len(readers) > max(1, len(timed)):
        fix = "name one of them, or several that have times"
        raise UserError(f"{' and '.join(readers)} can't share a file", "--modality", fix)
    if timed:
        return _contents(run, path, data, timed)
    return _bytes(run.vocabulary, next(iter(readers)), data, path.suffix)


def _contents(run: Run, path: Path, data: bytes, names: Sequence[str]) -> Contents:
    vocabulary, segments = run.vocabulary, {}
    for name in names:
        items = list(vocabulary.tokenizer(name).read(path))
        if len(items) > 1:
            raise UserError(f"holds {len(items)} pieces", path, "compress them one by one")
        for item in items:
            if isinstance(item.content, UserError):
                raise item.content
            segments[name] = vocabulary.encode(name, item.content)
    if not segments:
        raise UserError(f"holds no {' or '.join(names)}", path)
    suffixes = {name: vocabulary.tokenizer(name).suffixes[0] for name in segments}
    if len(set(suffixes.values())) > 1:
        raise UserError(f"{' and '.join(segments)} are written into different files", path, "--modality NAME")
    return Contents(data, Kind.CONTENTS, segments, next(iter(suffixes.values())))


def _bytes(vocabulary: Vocabulary, name: str, data: bytes, suffix: str) -> Contents:
    kept, odd = _without_odd_bytes(data)
    try:
        if len(odd) > ODD_SHARE * len(data):
            raise UserError("too many bytes are no UTF-8")
        content = _read_bytes(vocabulary, name, kept, suffix)
        segment = vocabulary.encode(name, content)
        written = write(
            vocabulary, {name: vocabulary.decode(name, segment.ids)}, _known(vocabulary, name, suffix)
        )
        patch = _patch(written, kept, odd)
        if patched(written, patch) != data:
            raise UserError("the tokenizer does not give back what it read")
    except UserError as error:
        return Contents(data, Kind.STORED, {}, suffix, why=error.what)
    return Contents(data, Kind.BYTES, {name: segment}, suffix, patch)


def _known(vocabulary: Vocabulary, name: str, suffix: str) -> str:
    """The suffix itself where the tokenizer reads such files, else one that it does."""
    suffixes = vocabulary.tokenizer(name).suffixes
    return suffix if suffix.lower() in suffixes else suffixes[0]


def _read_bytes(vocabulary: Vocabulary, name: str, data: bytes, suffix: str) -> Any:
    with tempfile.TemporaryDirectory(prefix="mmgpt-") as folder:
        path = Path(folder) / f"content{_known(vocabulary, name, suffix)}"
        path.write_bytes(data)
        items = list(vocabulary.tokenizer(name).read(path))
    if len(items) != 1:
        raise UserError(f"holds {len(items) or 'no'} {name}")
    if isinstance(items[0].content, UserError):
        raise items[0].content
    return items[0].content


def write(vocabulary: Vocabulary, contents: Mapping[str, Any], suffix: str) -> bytes:
    """The file that tokenizers make of contents, all of them in one."""
    with tempfile.TemporaryDirectory(prefix="mmgpt-") as folder:
        path = Path(folder) / f"content{suffix}"
        for place, name in enumerate(n for n in vocabulary.names if n in contents):
            vocabulary.tokenizer(name).write(contents[name], path, append=place > 0)
        return path.read_bytes()


def restored(
    vocabulary: Vocabulary, ids: Mapping[str, np.ndarray], kind: Kind, suffix: str, patch: bytes
) -> bytes:
    """The file that comes out of local ids by modality. Raises UserError or ValueError where none does."""
    contents = {name: vocabulary.decode(name, own) for name, own in ids.items()}
    if kind == Kind.CONTENTS:
        return write(vocabulary, contents, suffix)
    (name,) = contents
    return patched(write(vocabulary, contents, _known(vocabulary, name, suffix)), patch)


# Patches


def _without_odd_bytes(data: bytes) -> tuple[bytes, list[tuple[int, int]]]:
    """The bytes that are UTF-8, and the others as (how many of the former are before it, byte)."""
    text = data.decode("utf-8", "surrogateescape")
    if not any("\udc80" <= c <= "\udcff" for c in text):
        return data, []
    kept, odd = bytearray(), []
    for character in text:
        if "\udc80" <= character <= "\udcff":
            odd.append((len(kept), ord(character) - 0xDC00))
        else:
            kept += character.encode("utf-8")
    return bytes(kept), odd


def _patch(written: bytes, kept: bytes, odd: Sequence[tuple[int, int]]) -> bytes:
    """What `patched` needs; b"" where what is written is the file."""
    if written == kept and not odd:
        return b""
    core = written.removesuffix(b"\n").removesuffix(b"\r")  # writers end the last line, or not
    place = max(kept.find(core), 0)
    tail = kept[place + len(core) :]
    steps = np.diff([0, *(before for before, _ in odd)])
    places = b"".join(number(int(step)) for step in steps) + bytes(byte for _, byte in odd)
    head = [number(place) + kept[:place], number(len(written) - len(core)), number(len(tail)) + tail]
    return b"".join([*head, number(len(odd)), zlib.compress(places, 9) if odd else b""])


def patched(written: bytes, patch: bytes) -> bytes:
    """The bytes of a file from those that its tokenizer writes. Raises ValueError on a wrong patch."""
    if not patch:
        return written
    cursor = Cursor(patch)
    head, dropped, tail, count = cursor.text(), cursor.number(), cursor.text(), cursor.number()
    kept = head + written[: len(written) - dropped] + tail
    if not count:
        return kept
    unpacked = Cursor(zlib.decompress(cursor.take(cursor.left)))
    steps = [unpacked.number() for _ in range(count)]
    pieces, place = [], 0
    for step, byte in zip(steps, unpacked.take(count), strict=True):
        pieces += [kept[place : place + step], bytes([byte])]
        place += step
    return b"".join([*pieces, kept[place:]])
