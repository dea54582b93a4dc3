"""Shards: documents as local ids in Arrow IPC files, memory-mapped; one row per document (and shift).

    train-00000.arrow ...   columns source, group, shift, metadata (JSON) and
    valid-00000.arrow ...   segments: [{modality, ids, clock, cuts, units}]
    manifest.json           what they were made from, counts, size and SHA-256 of every file

pandas, DuckDB, Polars and Ray Data read the files as they are. Letters: D documents, S segments.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.plugins import file_hash
from multimodal_gpt.stream.vocabulary import Encoded

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.json"
SPLITS = ("train", "valid")
FORMAT = 1
BYTES_PER_FILE = 256 * 2**20
"""A file is closed once its arrays hold so many bytes."""
BYTES_PER_BATCH, ROWS_PER_BATCH = 4 * 2**20, 1024
"""Record batches are the unit of memory while writing."""
AGAIN = "prepare again: mmgpt prepare RECIPE --force"


@dataclass(frozen=True, eq=False)
class StoredDocument:
    """A document as it is stored; a modality may occur several times: these are alternatives.

    `group`: documents of one group are never on both sides of the split. `shift`: steps it was moved by.
    """

    segments: tuple[Encoded, ...]
    metadata: dict[str, Any]
    source: str
    group: str
    shift: int = 0

    @property
    def bytes(self) -> int:
        """About the size of its arrays."""
        return sum(
            4 * len(s.ids) * (1 if s.clock is None else 2) + 8 * len(s.cuts) + 64 for s in self.segments
        )


def schema() -> pa.Schema:
    """Columns of a shard; pandas and friends need nothing else."""
    import pyarrow as pa

    segment = pa.struct(
        [
            ("modality", pa.string()),
            ("ids", pa.list_(pa.int32())),
            ("clock", pa.list_(pa.float32())),
            ("cuts", pa.list_(pa.int64())),
            ("units", pa.int64()),
        ]
    )
    columns = [
        ("source", pa.string()),
        ("group", pa.string()),
        ("shift", pa.int32()),
        ("metadata", pa.string()),
    ]
    return pa.schema([*columns, ("segments", pa.list_(segment))])


def write_shards(folder: Path, split: str, documents: Iterable[StoredDocument]) -> list[dict[str, Any]]:
    """Write the files of a split, the reverse of `open_shards`; gives name, rows, bytes and SHA-256 of
    each.

    Holds one batch in memory. The same documents give the same bytes.
    """
    import pyarrow as pa

    files: list[dict[str, Any]] = []
    batches = _batches(documents)
    following = next(batches, None)
    while following is not None or not files:
        path = folder / f"{split}-{len(files):05d}.arrow"
        rows = size = 0
        with path.open("wb") as file:
            with pa.ipc.new_file(file, schema()) as writer:
                while following is not None and size < BYTES_PER_FILE:
                    writer.write_batch(following)
                    rows, size = rows + following.num_rows, size + following.nbytes
                    following = next(batches, None)
            file.flush()
            os.fsync(file.fileno())
        entry = {
            "name": path.name,
            "rows": rows,
            "bytes": path.stat().st_size,
            "sha256": file_hash(path),
        }
        files.append(entry)
    return files


def _batches(documents: Iterable[StoredDocument]) -> Iterator[pa.RecordBatch]:
    held: list[StoredDocument] = []
    size = 0
    for document in documents:
        held.append(document)
        size += document.bytes
        if size >= BYTES_PER_BATCH or len(held) == ROWS_PER_BATCH:
            yield _to_batch(held)
            held, size = [], 0
    if held:
        yield _to_batch(held)


def _to_batch(documents: Sequence[StoredDocument]) -> pa.RecordBatch:
    import pyarrow as pa

    segments = [s for d in documents for s in d.segments]
    clocks = [np.empty(0, np.float32) if s.clock is None else s.clock for s in segments]
    timeless = np.array([s.clock is None for s in segments], dtype=bool)
    columns = {
        "modality": pa.array([s.modality for s in segments], pa.string()),
        "ids": _lists([s.ids for s in segments], np.int32),
        "clock": _lists(clocks, np.float32, timeless),
        "cuts": _lists([s.cuts for s in segments], np.int64),
        "units": pa.array([s.units for s in segments], pa.int64()),
    }
    structs = pa.StructArray.from_arrays(
        list(columns.values()), fields=list(schema().field("segments").type.value_type)
    )
    arrays = [
        pa.array([d.source for d in documents], pa.string()),
        pa.array([d.group for d in documents], pa.string()),
        pa.array([d.shift for d in documents], pa.int32()),
        pa.array([json.dumps(d.metadata, sort_keys=True) for d in documents], pa.string()),
        pa.ListArray.from_arrays(pa.array(_offsets([len(d.segments) for d in documents])), structs),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema())


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))).astype(np.int32)


def _lists(arrays: Sequence[np.ndarray], kind: Any, missing: np.ndarray | None = None) -> pa.ListArray:
    import pyarrow as pa

    offsets = pa.array(_offsets([len(a) for a in arrays]))
    values = pa.array(np.concatenate([np.empty(0, kind), *arrays]).astype(kind))
    mask = None if missing is None or not missing.any() else pa.array(missing)
    return pa.ListArray.from_arrays(offsets, values, mask=mask)


@dataclass(frozen=True, eq=False)
class _Batch:
    """Views into one record batch in the mapped file; offsets as (n + 1,) arrays."""

    batch: Any
    segments: np.ndarray
    modality: np.ndarray
    ids: tuple[np.ndarray, np.ndarray]
    clock: tuple[np.ndarray, np.ndarray]
    cuts: tuple[np.ndarray, np.ndarray]
    units: np.ndarray
    timed: np.ndarray

    @classmethod
    def of(cls, batch: Any, names: Sequence[str]) -> _Batch:
        column = batch.column(batch.schema.get_field_index("segments"))
        structs = column.values
        parts = {field.name: structs.field(i) for i, field in enumerate(structs.type)}
        index = {name: i for i, name in enumerate(names)}
        modality = np.array([index[m] for m in parts["modality"].to_pylist()], dtype=np.int16)
        return cls(
            batch,
            column.offsets.to_numpy(),
            modality,
            _views(parts["ids"]),
            _views(parts["clock"]),
            _views(parts["cuts"]),
            parts["units"].to_numpy(),
            parts["clock"].is_valid().to_numpy(zero_copy_only=False),
        )

    def segment(self, place: int, names: Sequence[str]) -> Encoded:
        clock = _slice(self.clock, place) if self.timed[place] else None
        ids, cuts = _slice(self.ids, place), _slice(self.cuts, place)
        return Encoded(names[self.modality[place]], ids, clock, cuts, int(self.units[place]))


def _views(lists: Any) -> tuple[np.ndarray, np.ndarray]:
    return lists.offsets.to_numpy(), lists.values.to_numpy()


def _slice(lists: tuple[np.ndarray, np.ndarray], place: int) -> np.ndarray:
    offsets, values = lists
    return values[offsets[place] : offsets[place + 1]]


@dataclass(frozen=True, eq=False)
class Lengths:
    """Sizes of all segments of a split, for planning without reading them.

    offsets (D + 1,): document d has the segments offsets[d] .. offsets[d + 1] - 1. Per segment (S,):
    index of its modality, tokens, chunks, and whether its tokens have a time.
    """

    offsets: np.ndarray
    modality: np.ndarray
    tokens: np.ndarray
    chunks: np.ndarray
    timed: np.ndarray


class Shards:
    """The documents of one split, by index; opened by `open_shards`, reopened where it is unpickled."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        self.manifest = read_manifest(folder)
        self.names: tuple[str, ...] = tuple(self.manifest["modalities"])
        self._batches = [b for entry in self.files for b in _open(folder / entry["name"], self.names)]
        rows = np.array([b.batch.num_rows for b in self._batches], dtype=np.int64)
        self._starts = np.concatenate(([0], np.cumsum(rows)))

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "split": self.split}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def files(self) -> list[dict[str, Any]]:
        """Manifest entries of the files of this split."""
        entries: list[dict[str, Any]] = self.manifest["splits"][self.split]["files"]
        return entries

    def document(self, index: int) -> StoredDocument:
        """Document `index`; its arrays are read-only views into the mapped file."""
        batch, row = self._place(index)
        first, stop = batch.segments[row], batch.segments[row + 1]
        segments = tuple(batch.segment(place, self.names) for place in range(first, stop))
        values = {
            name: batch.batch.column(i)[row].as_py() for i, name in enumerate(batch.batch.schema.names[:4])
        }
        metadata = json.loads(values["metadata"])
        return StoredDocument(segments, metadata, values["source"], values["group"], values["shift"])

    def segments(self, index: int) -> tuple[Encoded, ...]:
        """The segments of a document alone: what rows are built from."""
        batch, row = self._place(index)
        return tuple(
            batch.segment(p, self.names) for p in range(batch.segments[row], batch.segments[row + 1])
        )

    def _place(self, index: int) -> tuple[_Batch, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        place = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._batches[place], index - int(self._starts[place])

    @cached_property
    def lengths(self) -> Lengths:
        """Sizes of all segments, for planning."""
        counts = [np.diff(b.segments) for b in self._batches]
        return Lengths(
            _joined([np.zeros(1, np.int64), np.cumsum(_joined(counts, np.int64))], np.int64),
            _joined([b.modality for b in self._batches], np.int16),
            _joined([np.diff(b.ids[0]) for b in self._batches], np.int64),
            _joined([_chunks(b) for b in self._batches], np.int64),
            _joined([b.timed for b in self._batches], np.bool_),
        )


def _joined(arrays: Sequence[np.ndarray], kind: Any) -> np.ndarray:
    return np.concatenate([np.empty(0, kind), *arrays]).astype(kind)


def _chunks(batch: _Batch) -> np.ndarray:
    """Chunks of each segment, as `Encoded.edges` counts them: a cut at 0 begins no further chunk."""
    offsets, cuts = batch.cuts
    count = np.diff(offsets).astype(np.int64)
    starts_at_zero = np.zeros(len(count), dtype=bool)
    some = count > 0
    starts_at_zero[some] = cuts[offsets[:-1][some]] == 0
    return count + 1 - starts_at_zero


def _open(path: Path, names: Sequence[str]) -> list[_Batch]:
    import pyarrow as pa

    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
        return [_Batch.of(reader.get_batch(i), names) for i in range(reader.num_record_batches)]
    except (
        pa.ArrowInvalid,
        OSError,
        KeyError,
        IndexError,
        ValueError,
        AttributeError,
        TypeError,
    ) as error:
        raise UserError("the shard is damaged", path, AGAIN) from error


def open_shards(folder: Path, split: str, *, verify: bool = False) -> Shards:
    """The documents of a split ("train" or "valid"), the reverse of `write_shards`.

    The size of every file is checked, with `verify` its SHA-256 too. Raises UserError naming what is
    missing or damaged.
    """
    for entry in read_manifest(folder)["splits"][split]["files"]:
        path = folder / entry["name"]
        if not path.is_file():
            raise UserError("the shard is missing", path, AGAIN)
        if path.stat().st_size != entry["bytes"]:
            raise UserError(
                f"the shard is damaged: {path.stat().st_size} of {entry['bytes']} bytes",
                path,
                AGAIN,
            )
        if verify and file_hash(path) != entry["sha256"]:
            raise UserError("the shard is damaged: its SHA-256 is not the manifest's", path, AGAIN)
    return Shards(folder, split)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write `manifest.json` with its own checksum, the reverse of `read_manifest`."""
    content = {"format": FORMAT, **manifest}
    content["checksum"] = _checksum(content)
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The parsed `manifest.json`. Raises UserError where it is missing, damaged or of another format."""
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        intact = manifest.pop("checksum") == _checksum(manifest)
    except FileNotFoundError:
        raise UserError("there are no shards", folder, "mmgpt prepare RECIPE") from None
    except (OSError, ValueError, KeyError, AttributeError):
        intact = False
    if not intact:
        raise UserError("the file is damaged", path, AGAIN)
    if manifest["format"] != FORMAT:
        raise UserError(f"has format {manifest['format']}, this version reads {FORMAT}", path, AGAIN)
    return manifest


def _checksum(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
