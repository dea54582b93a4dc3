"""Files compressed by a trained run, and back: prediction is compression.

A network that gives the next id the probability p lets an arithmetic coder write it in -log2 p bits, so the
size of the file is the network's likelihood, by the byte.
"""

from __future__ import annotations

import hashlib
import lzma
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multimodal_gpt.compression import arithmetic, coding, container, files
from multimodal_gpt.compression.coding import Coded, Differs, Progress
from multimodal_gpt.compression.container import Header, Kind
from multimodal_gpt.compression.files import Contents
from multimodal_gpt.errors import UserError
from multimodal_gpt.generation.session import Run
from multimodal_gpt.stream.arrangement import parse_order
from multimodal_gpt.stream.vocabulary import Encoded

_LARGEST_WINDOW = 2**26


@dataclass(frozen=True, eq=False)
class Compressed:
    """A file that is compressed.

    Args:
        data: the .mgz file.
        header: what its head says.
        payload: bytes of it that hold the contents themselves.
        contents: what was read.
        bits: by modality, what the network's likelihood says; empty where the file is stored.
    """

    data: bytes
    header: Header
    payload: int
    contents: Contents
    bits: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Restored:
    """A file that comes out: its bytes, its suffix, and what it holds (empty: bytes that were stored)."""

    data: bytes
    header: Header

    @property
    def exact(self) -> bool:
        """Whether these are the bytes that went in."""
        return self.header.kind != Kind.CONTENTS


def compress(
    run: Run,
    path: str | Path | Contents,
    *,
    names: tuple[str, ...] = (),
    verify: bool = True,
    progress: Progress = lambda _: None,
) -> Compressed:
    """Compress a file with a trained run.

    Args:
        run: which must be there to decompress it again.
        path: the file, or what `files.read` found in it.
        names: the modalities to take of it; all that read such a file if empty.
        verify: decompress it at once and compare.
        progress: called with how many tokens were just coded; with `verify` each is coded twice.

    Raises UserError where the file can't be read, and where what comes back is not what went in.
    """
    arithmetic.check()
    contents = path if isinstance(path, Contents) else files.read(run, Path(path), names)
    if not contents.segments:
        return _stored(run, contents)
    coded = coding.encode(run, contents.segments, progress)
    header = _header_of(run, contents, coded)
    made = Compressed(container.pack(header, coded.payload), header, len(coded.payload), contents, coded.bits)
    if contents.kind == Kind.BYTES and len((stored := _stored(run, contents)).data) < len(made.data):
        return stored
    if verify:
        try:
            decompress(run, made.data, progress=progress)
        except UserError as error:
            what = "what was compressed does not come back as it was, so it is not kept"
            raise UserError(what, fix="try --device cpu") from error
    return made


def _stored(run: Run, contents: Contents) -> Compressed:
    payload = lzma.compress(contents.data, lzma.FORMAT_RAW, filters=_xz(len(contents.data)))
    header = replace(_header(run, contents), kind=Kind.STORED)
    contents = replace(contents, kind=Kind.STORED, why=contents.why or "xz makes it smaller")
    return Compressed(container.pack(header, payload), header, len(payload), contents, {})


def _xz(size: int) -> list[dict[str, Any]]:
    """The best that xz can, with a window no larger than it takes: making a large one takes 0.1 s."""
    window = min(max(size, 4096), _LARGEST_WINDOW)
    return [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": window}]


def _header(run: Run, contents: Contents) -> Header:
    """The header of a stored file, what is said of the stream left out."""
    return Header(
        checkpoint=_checkpoint(run),
        fingerprint=run.vocabulary.fingerprint[:8],
        checksum=_checksum(contents.data),
        kind=contents.kind,
        size=len(contents.data),
        tokens=0,
        states=(),
        suffix=contents.suffix,
        order="",
        made_on=_this_machine(),
        patch=b"",
    )


def _header_of(run: Run, contents: Contents, coded: Coded) -> Header:
    """The header of contents that the network has coded."""
    ids = {name: segment.ids for name, segment in contents.segments.items()}
    return replace(
        _header(run, contents),
        checksum=_checksum(ids if contents.kind == Kind.CONTENTS else contents.data),
        size=0 if contents.kind == Kind.CONTENTS else len(contents.data),
        tokens=coded.plan.tokens,
        states=coded.plan.states,
        order=",".join("+".join(part) for part in coded.plan.order),
        patch=contents.patch,
    )


def decompress(run: Run, data: bytes, *, progress: Progress = lambda _: None) -> Restored:
    """The file that `compress` made these bytes of.

    Args:
        run: the one that compressed it.
        data: the .mgz file.
        progress: called with how many tokens were just decoded.

    Raises UserError where the bytes are damaged, another run made them, or this machine predicts otherwise.
    """
    arithmetic.check()
    header, payload = container.unpack(data)
    if header.kind == Kind.STORED:
        return Restored(_unstored(header, payload), header)
    _check_run(run, header)
    try:
        order = parse_order([part for part in header.order.split(",") if part], run.vocabulary.names)
        plan = coding.Plan(order, header.tokens, _states(run, header, order))
    except (UserError, ValueError) as error:
        raise UserError(f"no version of mmgpt writes such a file: {error}") from None
    try:
        ids = coding.decode(run, plan, payload, progress)
        found = files.restored(run.vocabulary, ids, header.kind, header.suffix, header.patch)
        if _checksum(ids if header.kind == Kind.CONTENTS else found) != header.checksum:
            raise Differs("other contents")
    except (Differs, UserError, ValueError, zlib.error) as error:
        what = f"the arithmetic of this machine ({_this_machine()}) differs from that of the one that"
        raise UserError(f"{what} compressed it ({header.made_on})", fix="decompress it there") from error
    return Restored(found, header)


def _this_machine() -> str:
    """Version of torch, the processor's instructions that it uses, the number of threads."""
    return f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()}"


def _states(run: Run, header: Header, order: tuple[tuple[str, ...], ...]) -> tuple[int, ...]:
    """The states of the lanes. Raises ValueError where there can't be such ones."""
    known = len(run.vocabulary.tokenizer(order[0][0]).grammar().final)
    alone = len(order) == 1 and len(order[0]) == 1
    if header.states and (max(header.states) >= known or not alone):
        raise ValueError(f"lanes {header.states}")
    return header.states


def _check_run(run: Run, header: Header) -> None:
    mine = _checkpoint(run)
    if header.checkpoint != mine:
        what = f"was compressed by the weights {header.checkpoint}..., those of this run are {mine}..."
        raise UserError(what, fix="give the run that compressed it")
    if header.fingerprint != run.vocabulary.fingerprint[:8]:
        what = f"was compressed with the vocabulary {header.fingerprint}..."
        raise UserError(f"{what}, that of this run is {run.vocabulary.fingerprint[:8]}...")


def _unstored(header: Header, payload: bytes) -> bytes:
    try:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_xz(header.size))
        found = unpacker.decompress(payload, max_length=header.size + 1)
    except (lzma.LZMAError, MemoryError, OverflowError) as error:
        raise UserError(f"no version of mmgpt writes such a file: {error}") from None
    if _checksum(found) != header.checksum:
        raise UserError("no version of mmgpt writes such a file: other bytes come out")
    return found


def _checkpoint(run: Run) -> str:
    return str(run.info.get("sha256", ""))[:16].ljust(16, "0")


def _checksum(what: bytes | Mapping[str, np.ndarray]) -> str:
    """Of bytes, or of ids by modality."""
    if not isinstance(what, bytes):
        ids = (name.encode() + b"\0" + what[name].astype("<i4").tobytes() for name in sorted(what))
        what = b"".join(ids)
    return hashlib.sha256(what).hexdigest()[:16]


@dataclass(frozen=True)
class Size:
    """What a document takes.

    Args:
        payload: bytes of its contents.
        file: bytes of the .mgz file, header included.
        bits: by modality, what the network's likelihood says.
    """

    payload: int
    file: int
    bits: Mapping[str, float]


def compressed_size(
    run: Run, segments: Mapping[str, Encoded], *, progress: Progress = lambda _: None
) -> Size:
    """What the segments of a held-out document take, compressed for real, each knowing the others.

    `progress`: called with how many tokens were just coded. Raises UserError as `coding.encode` does.
    """
    suffix = run.vocabulary.tokenizer(next(iter(segments))).suffixes[0]
    coded = coding.encode(run, segments, progress)
    header = _header_of(run, Contents(b"", Kind.CONTENTS, segments, suffix), coded)
    return Size(len(coded.payload), len(container.pack(header, coded.payload)), coded.bits)
