"""Documents <-> Arrow record batches: the columns of a shard.

source, group, shift, metadata (JSON) and
segments: [{modality, ids, clock, cuts, units}]
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from multimodal_gpt.stream.vocabulary import Encoded

if TYPE_CHECKING:
    import pyarrow as pa

BYTES_PER_BATCH, ROWS_PER_BATCH = 4 * 2**20, 1024
"""Record batches are the unit of memory while writing."""
CODEC = "lz4"
"""For batches on their way to another process: a tenth of their size, at 1 GB/s."""


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


def to_batches(documents: Iterable[StoredDocument]) -> Iterator[pa.RecordBatch]:
    """Documents as record batches of bounded size."""
    held: list[StoredDocument] = []
    size = 0
    for document in documents:
        held.append(document)
        size += document.bytes
        if size >= BYTES_PER_BATCH or len(held) == ROWS_PER_BATCH:
            yield to_batch(held)
            held, size = [], 0
    if held:
        yield to_batch(held)


def to_batch(documents: Sequence[StoredDocument]) -> pa.RecordBatch:
    """Documents as one record batch, a row each; the reverse of `View`."""
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
class View:
    """Views into the arrays of one record batch, the reverse of `to_batch`; offsets as (n + 1,) arrays."""

    names: Sequence[str]
    batch: Any
    segments: np.ndarray
    modality: np.ndarray
    ids: tuple[np.ndarray, np.ndarray]
    clock: tuple[np.ndarray, np.ndarray]
    cuts: tuple[np.ndarray, np.ndarray]
    units: np.ndarray
    timed: np.ndarray

    @classmethod
    def of(cls, batch: Any, names: Sequence[str]) -> View:
        """Of a record batch whose modalities are all in `names`."""
        column = batch.column(batch.schema.get_field_index("segments"))
        structs = column.values
        parts = {field.name: structs.field(i) for i, field in enumerate(structs.type)}
        index = {name: i for i, name in enumerate(names)}
        modality = np.array([index[m] for m in parts["modality"].to_pylist()], dtype=np.int16)
        return cls(
            names,
            batch,
            column.offsets.to_numpy(),
            modality,
            _views(parts["ids"]),
            _views(parts["clock"]),
            _views(parts["cuts"]),
            parts["units"].to_numpy(),
            parts["clock"].is_valid().to_numpy(zero_copy_only=False),
        )

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    def segments_of(self, row: int) -> tuple[Encoded, ...]:
        """The segments of a document; their arrays are read-only."""
        return tuple(self._segment(p) for p in range(self.segments[row], self.segments[row + 1]))

    def document(self, row: int) -> StoredDocument:
        """A document; its arrays are read-only."""
        source, group, shift, metadata = (self.batch.column(i)[row].as_py() for i in range(4))
        return StoredDocument(self.segments_of(row), json.loads(metadata), source, group, shift)

    def _segment(self, place: int) -> Encoded:
        clock = _slice(self.clock, place) if self.timed[place] else None
        ids, cuts = _slice(self.ids, place), _slice(self.cuts, place)
        return Encoded(self.names[self.modality[place]], ids, clock, cuts, int(self.units[place]))


def _views(lists: Any) -> tuple[np.ndarray, np.ndarray]:
    return lists.offsets.to_numpy(), lists.values.to_numpy()


def _slice(lists: tuple[np.ndarray, np.ndarray], place: int) -> np.ndarray:
    offsets, values = lists
    return values[offsets[place] : offsets[place + 1]]
