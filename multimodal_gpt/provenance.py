"""How a generated file was made: read from the file itself, or from the side-car beside it."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multimodal_gpt.errors import UserError
from multimodal_gpt.files import read_text

SIDE_CARS = (".json", ".piece.json")
MARK = "made_by"
"""The key without which a JSON value tells nothing of a piece."""
PACKED = "request"
"""The key of what is long: plain in a side-car, packed within a file."""
_MOST = 64_000_000  # bytes of a file, and of what is unpacked from one
_HOW = "files that mmgpt generate writes tell it themselves, or in the .json beside them"
_SETTINGS = (
    *("temperature", "top_k", "top_p", "min_p", "guidance"),
    *("repetition_penalty", "no_repeat", "max_tokens"),
)
_NOTED = (MARK, "checkpoint", "seed", "row", "given", "to", *_SETTINGS)


@dataclass(frozen=True)
class Provenance:
    """How a piece was made.

    Args:
        told_by: the file that tells it: the piece's own, or its side-car.
        info: the side-car's keys, as far as they are known.
    """

    told_by: Path
    info: Mapping[str, Any]

    def lines(self) -> list[tuple[str, str]]:
        """What and how much, for a reader."""
        known = self.info
        checkpoint = _mapping(known.get("checkpoint"))
        rows = [
            ("made by", _said(known.get(MARK))),
            ("checkpoint", _said(checkpoint.get("sha256"))),
            ("step", f"{checkpoint['step']:,}" if _count(checkpoint, "step") else ""),
            *((f"given {name}", _said(words)) for name, words in _mapping(known.get("given")).items()),
            ("made", ", then ".join(map(str, _listed(known.get("to"))))),
            ("seed", _said(known.get("seed"))),
            ("piece", str(known["row"] + 1) if _count(known, "row") else ""),
            ("settings", ", ".join(f"{k} {_said(known[k])}" for k in _SETTINGS if known.get(k) is not None)),
            *self._asked(),
            *(("warning", _said(words)) for words in _listed(known.get("warnings"))),
            ("told by", str(self.told_by)),
        ]
        return [(name, words) for name, words in rows if words]

    def _asked(self) -> list[tuple[str, str]]:
        """What else was asked for."""
        request = _mapping(self.info.get(PACKED))
        begun, gap = ", ".join(map(str, _mapping(request.get("begun")))), _listed(request.get("gap"))
        shown = _mapping(request.get("shown"))
        rows = [
            (f"wished of {name}", ", ".join(f"{k} {_said(shown.get(f'{name}.{k}', v))}" for k, v in wishes))
            for name, asked in _mapping(request.get("wishes")).items()
            for wishes in [_mapping(asked).items()]
        ]
        if len(gap) == 2 and isinstance(gap[0], int):
            rows.append(("filled", f"bars {gap[0] + 1} to {_said(gap[1])} of {begun}"))
        elif begun:
            rows.append(("continued", begun))
        return [*rows, ("bars", _said(request.get("bars"))), ("kept", self._kept(request))]

    def _kept(self, request: Mapping[str, Any]) -> str:
        attempts = _attempts(self.info)
        if attempts == 1 or not _count(self.info, "attempt"):
            return ""
        by = _said(request.get("best_by", "likelihood"))
        return f"attempt {self.info['attempt'] + 1} of {attempts}, by {by}"


def read(path: str | Path) -> Provenance:
    """How a file was made: a side-car, a file that holds its provenance, or one with a side-car beside it.

    What a side-car adds to the provenance within the file counts where both tell of the same piece.
    Raises UserError where there is no such file, it can't be read, or nothing tells.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("there is no such file", path)
    if path.suffix.lower() == ".json":
        info = _side_car(path)
        if info is None:
            raise UserError("does not tell how a piece was made", path, _HOW)
        return Provenance(path, info)
    within = _within(path)
    for suffix in SIDE_CARS:
        beside = path.with_suffix(suffix)
        info = _side_car(beside) if beside.is_file() else None
        if info is not None and (within is None or _same(within, info)):
            return Provenance(beside, info)
    if within is None:
        raise UserError("nothing tells how it was made", path, _HOW)
    return Provenance(path, within)


def _side_car(path: Path) -> dict[str, Any] | None:
    """What a JSON file tells of a piece, None where it tells nothing."""
    if path.stat().st_size > _MOST:
        return None
    return _parsed(read_text(path))


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and MARK in value else None


def _same(within: Mapping[str, Any], info: Mapping[str, Any]) -> bool:
    return all(info.get(key) == value for key, value in within.items())


def _within(path: Path) -> dict[str, Any] | None:
    """The provenance in a MIDI file's texts; None where there is none, or the file is of another kind."""
    try:
        data = path.read_bytes() if path.stat().st_size <= _MOST else b""
    except OSError as error:
        raise UserError(f"can't be read: {error.strerror}", path) from error
    if data[:4] != b"MThd" or MARK.encode() not in data:
        return None
    found = (_parsed(text) for text in _texts(data))
    return next((_unpacked(info) for info in found if info is not None), None)


def _texts(data: bytes) -> Iterator[str]:
    import mido

    try:
        file = mido.MidiFile(file=io.BytesIO(data), charset="latin1")
    except Exception:  # a damaged file makes mido raise whatever it stumbles on
        return
    for message in (m for track in file.tracks for m in track if m.type == "text"):
        yield message.text.encode("latin1").decode("utf-8", "replace")


def note(info: Mapping[str, Any]) -> str:
    """One line of ASCII that tells of a piece what its side-car `info` tells; within a file it is read back.

    Left out: what the file itself shows.
    """
    told = {key: info[key] for key in _NOTED if info.get(key) is not None}
    attempt = {"attempt": info["attempt"]} if _attempts(info) > 1 else {}
    packed = {PACKED: pack(info[PACKED])} if PACKED in info else {}
    return json.dumps(told | attempt | packed)


def _attempts(info: Mapping[str, Any]) -> int:
    request = _mapping(info.get(PACKED))
    return int(request["best_of"]) if _count(request, "best_of") else 1


def _unpacked(info: dict[str, Any]) -> dict[str, Any]:
    """What a file tells, with what is packed in it; what can't be unpacked is left out."""
    try:
        packed = {PACKED: unpack(info[PACKED])} if PACKED in info else {}
    except (ValueError, TypeError):
        packed = {}
    return {key: value for key, value in info.items() if key != PACKED} | packed


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _count(known: Mapping[str, Any], key: str) -> bool:
    return isinstance(known.get(key), int)


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_said(inner)}" for key, inner in value.items())
    printable = "".join(c if c.isprintable() else " " for c in str(value))
    return "" if value is None else " ".join(printable.split())


def pack(value: Any) -> str:
    """A JSON value as a short ASCII word, the reverse of `unpack`."""
    data = json.dumps(value, separators=(",", ":")).encode()
    return base64.b85encode(zlib.compress(data, 9)).decode("ascii")


def unpack(word: str) -> Any:
    """The value of a word that `pack` made. Raises ValueError where it is none."""
    try:
        unzip = zlib.decompressobj()
        data = unzip.decompress(base64.b85decode(word), _MOST)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not unzip.eof:
        raise ValueError("is cut short, or too long")
    return json.loads(data)
