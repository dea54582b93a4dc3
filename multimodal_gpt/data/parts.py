"""Parts: what reading made of each group, on disk. A killed `prepare` goes on where it was, a later one reads
only what has changed.

    part-00000.arrow ...    columns key, session, skips, references (JSON) and
                            documents: [{brief (JSON), rows, bytes, copies_lz4}]

`copies_lz4` is, compressed from so many bytes, a record batch in the columns of a shard and `pending`:
[{modality, content, pickled}], what is still to be encoded when its modality has learnt. Content that JSON
can't hold is pickled and then read by the very process (and its workers) that wrote it, never by another:
its group is read again next time.
"""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multimodal_gpt.data.batches import CODEC, StoredDocument, View, schema, to_batch
from multimodal_gpt.data.copies import Answer, Brief, Copy
from multimodal_gpt.data.reading import Skip
from multimodal_gpt.errors import UserError
from multimodal_gpt.files import make_folder, room
from multimodal_gpt.stream.document import Segment

if TYPE_CHECKING:
    import pyarrow as pa

BYTES_PER_PART, SECONDS_PER_PART = 4 * 2**20, 10.0
"""A part is closed once it holds so much, or is so old: what a kill can cost."""
NO_SPACE = "free some, or set data.shards to a folder on another disk; then prepare again, it goes on"
PARTS_HELD = 4
"""Parts that are mapped at one time: mapped files count as the process's own memory."""

PENDING = 5
"""Column of `copies` behind those of a shard."""

Reference = tuple[str, int, int]


@dataclass(frozen=True)
class Packed:
    """An `Answer` as it is stored; not `lasting` where it holds something pickled.

    `documents`: brief, number of copies, their size in bytes, and the copies compressed.
    """

    skips: str
    references: str
    documents: tuple[tuple[str, int, int, bytes], ...]
    lasting: bool


@dataclass(frozen=True, slots=True)
class Place:
    """Where a document lies: part, row, number within the row; its copies and their size."""

    part: int
    row: int
    number: int
    rows: int
    bytes: int


def pack(answer: Answer) -> Packed:
    """An answer as bytes; `Parts.briefs` and `Reader.copies` are the reverse."""
    import pyarrow as pa

    documents = [_pack_copies(copies, brief.source) for brief, copies in answer.documents]
    briefs = [_brief_json(brief) for brief, _ in answer.documents]
    return Packed(
        json.dumps([[s.source, s.kind, s.reason] for s in answer.skips]) if answer.skips else "",
        json.dumps(answer.references) if answer.references else "",
        tuple(
            (brief, len(copies), data.size, pa.compress(data, CODEC, asbytes=True))
            for brief, (_, copies), (data, _) in zip(briefs, answer.documents, documents, strict=True)
        ),
        all(lasting for _, lasting in documents),
    )


def _brief_json(brief: Brief) -> str:
    return json.dumps({**asdict(brief), "sketch": brief.sketch.hex()})


def _read_brief(text: str) -> Brief:
    told = json.loads(text)
    return Brief(**{**told, "templates": tuple(told["templates"]), "sketch": bytes.fromhex(told["sketch"])})


def _pack_copies(copies: Sequence[Copy], source: str) -> tuple[pa.Buffer, bool]:
    import pyarrow as pa

    batch = to_batch([StoredDocument(c.segments, dict(c.metadata), source, "", c.shift) for c in copies])
    pending = [[_pack_content(s) for s in c.pending] for c in copies]
    batch = pa.RecordBatch.from_arrays(
        [*batch.columns, pa.array(pending, copies_schema().field("pending").type)], schema=copies_schema()
    )
    return batch.serialize(), not any(p["pickled"] for row in pending for p in row)


def _pack_content(segment: Segment) -> dict[str, Any]:
    try:
        content = json.dumps(segment.content)
        lasting = json.loads(content) == segment.content
    except (TypeError, ValueError):
        lasting = False
    data = content.encode() if lasting else pickle.dumps(segment.content)
    return {"modality": segment.modality, "content": data, "pickled": not lasting}


@cache
def copies_schema() -> pa.Schema:
    """Columns of `copies`."""
    import pyarrow as pa

    pending = pa.struct([("modality", pa.string()), ("content", pa.binary()), ("pickled", pa.bool_())])
    return schema().append(pa.field("pending", pa.list_(pending)))


@cache
def _part_schema() -> pa.Schema:
    import pyarrow as pa

    document = pa.struct(
        [
            ("brief", pa.string()),
            ("rows", pa.int32()),
            ("bytes", pa.int64()),
            ("copies_lz4", pa.large_binary()),
        ]
    )
    columns = [("key", pa.binary(16)), ("session", pa.string()), ("skips", pa.string())]
    return pa.schema([*columns, ("references", pa.string()), ("documents", pa.list_(document))])


@contextmanager
def open_parts(folder: Path, *, force: bool = False) -> Iterator[Parts]:
    """The parts in a folder, which is made where it is missing, locked, and removed again if no document is
    in it. `force`: without those that are there.

    Raises UserError where another process has it open, or the disk is full.
    """
    make_folder(folder)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            fix = "wait until it has ended"
            raise UserError("another process is preparing these shards", folder, fix) from None
        for part in folder.glob("part-*") if force else ():
            part.unlink()
        parts = Parts(folder)
        try:
            with room(folder.parent, NO_SPACE):
                yield parts
        finally:
            if not parts.holds_documents():
                shutil.rmtree(folder, ignore_errors=True)


class Parts:
    """Answers by the key of their group. Those of killed processes are there again; damaged files are not."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.session = folder, uuid.uuid4().hex
        self.earlier: set[bytes] = set()
        self._places: dict[bytes, tuple[int, int]] = {}
        self._documents: dict[int, int] = {}  # in each part
        self._parts = _Few(folder)
        self._new: list[tuple[bytes, Packed]] = []
        self._size, self._since = 0, time.monotonic()
        for left in folder.glob("*.partial"):
            left.unlink()
        for path in sorted(folder.glob("part-*.arrow")):
            self._open(path)
        self.earlier = set(self._places)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def add(self, key: bytes, packed: Packed) -> None:
        """Keep the answer of a group; it is on disk after `flush`, or a little later by itself."""
        self._new.append((key, packed))
        self._size += sum(len(data) for *_, data in packed.documents)
        if self._size >= BYTES_PER_PART or time.monotonic() - self._since >= SECONDS_PER_PART:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet."""
        import pyarrow as pa

        if self._new:
            path = _path(self.folder, max(self._documents, default=-1) + 1)
            partial = path.with_suffix(".partial")
            try:
                with partial.open("wb") as file:
                    with pa.ipc.new_file(file, _part_schema()) as writer:
                        writer.write_batch(self._to_batch())
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
            self._open(path, new=True)
        self._new, self._size, self._since = [], 0, time.monotonic()

    def _to_batch(self) -> pa.RecordBatch:
        import pyarrow as pa

        columns = [
            [key for key, _ in self._new],
            ["" if p.lasting else self.session for _, p in self._new],
            [p.skips for _, p in self._new],
            [p.references for _, p in self._new],
            [
                [{"brief": b, "rows": n, "bytes": size, "copies_lz4": d} for b, n, size, d in p.documents]
                for _, p in self._new
            ],
        ]
        types = [field.type for field in _part_schema()]
        arrays = [pa.array(c, t) for c, t in zip(columns, types, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=_part_schema())

    def _open(self, path: Path, *, new: bool = False) -> None:
        part = _Part.open(path)
        if part is None:
            path.unlink()
            return
        number = int(path.stem.removeprefix("part-"))
        self._documents[number] = int(part.offsets[-1])
        keys, sessions, _, references = (part.batch.column(i).to_pylist() for i in range(4))
        for row, (key, session) in enumerate(zip(keys, sessions, strict=True)):
            told = json.loads(references[row]) if references[row] else ()
            if new or (session == "" and all(map(is_unchanged, told))):
                self._places[key] = (number, row)

    def skips(self, key: bytes) -> list[Skip]:
        """What could not be used of a group."""
        part, row = self._places[key]
        text = self._parts[part].batch.column(2)[row].as_py()
        return [Skip(*told) for told in json.loads(text)] if text else []

    def references(self, key: bytes) -> list[Reference]:
        """The files that the lines of a group name."""
        part, row = self._places[key]
        text = self._parts[part].batch.column(3)[row].as_py()
        return [(path, size, changed) for path, size, changed in json.loads(text)] if text else []

    def briefs(self, key: bytes) -> Iterator[tuple[Brief, Place]]:
        """The documents of a group, in order."""
        number, row = self._places[key]
        part = self._parts[number]
        first, stop = map(int, part.offsets[row : row + 2])
        briefs, rows, sizes, _ = part.fields
        for i in range(first, stop):
            place = Place(number, row, i - first, rows[i].as_py(), sizes[i].as_py())
            yield _read_brief(briefs[i].as_py()), place

    def holds_documents(self) -> bool:
        """Whether anything in a part is worth keeping."""
        return any(self._documents.values())

    def tidy(self, used: set[bytes]) -> None:
        """Remove parts of whose groups less than half are still used."""
        for number in self._documents:
            keys = self._parts[number].batch.column(0).to_pylist()
            in_use = sum(k in used and self._places.get(k) == (number, row) for row, k in enumerate(keys))
            if 2 * in_use < len(keys):
                _path(self.folder, number).unlink()


def _path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.arrow"


@dataclass(frozen=True, eq=False)
class _Part:
    """The one record batch of a part, mapped; where the documents of each of its R rows begin, (R + 1,);
    and their fields: brief, rows, bytes, copies.
    """

    batch: Any
    offsets: np.ndarray
    fields: list[Any]

    @classmethod
    def open(cls, path: Path) -> _Part | None:
        """None where it is damaged or of another version."""
        import pyarrow as pa

        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
            batch = reader.get_batch(0) if reader.schema == _part_schema() else None
        except (pa.ArrowInvalid, OSError, IndexError):
            return None
        if batch is None:
            return None
        documents = batch.column(4)
        return cls(batch, documents.offsets.to_numpy(), documents.values.flatten())


class _Few:
    """The parts of a folder by number, of which those used last are open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[int, _Part] = {}

    def __getitem__(self, number: int) -> _Part:
        part = self._open.pop(number, None) or _Part.open(_path(self.folder, number))
        if part is None:
            raise FileNotFoundError(f"{_path(self.folder, number)} was there before")
        if len(self._open) == PARTS_HELD:
            del self._open[next(iter(self._open))]
        self._open[number] = part
        return part


def is_unchanged(reference: Sequence[Any]) -> bool:
    """Whether a file still has its size and time of change."""
    path, size, changed = reference
    try:
        state = Path(path).stat()
    except OSError:
        return False
    return (state.st_size, state.st_mtime_ns) == (size, changed)


class Reader:
    """Documents in parts by place; opened anew in every worker process.

    Args:
        folder: of the parts.
        session: of the `Parts` that wrote them: what others have pickled is refused.
        names: all modalities.
    """

    def __init__(self, folder: Path, session: str, names: Sequence[str]) -> None:
        self.folder, self.session, self.names = folder, session, names
        self._parts = _Few(folder)

    def brief(self, place: Place) -> Brief:
        """What is known of a document."""
        part = self._parts[place.part]
        return _read_brief(part.fields[0][int(part.offsets[place.row]) + place.number].as_py())

    def copies(self, place: Place) -> list[Copy]:
        """The copies of a document, the unshifted one first."""
        batch, session = self._batch(place)
        view, edges = View.of(batch, self.names), batch.column(PENDING).offsets.to_pylist()
        fields = (field.to_pylist() for field in batch.column(PENDING).values.flatten())
        pending = [Segment(m, self._content(c, p, session)) for m, c, p in zip(*fields, strict=True)]
        documents = (view.document(row) for row in range(len(view)))
        return [
            Copy(d.shift, d.metadata, d.segments, tuple(pending[first:last]))
            for d, first, last in zip(documents, edges, edges[1:], strict=False)
        ]

    def contents(self, place: Place, modality: str) -> Iterator[Any]:
        """What is to be encoded of a modality in all copies of a document, without the rest."""
        batch, session = self._batch(place)
        names, *fields = batch.column(PENDING).values.flatten()
        for index, name in enumerate(names.to_pylist()):
            if name == modality:
                content, pickled = (field[index].as_py() for field in fields)
                yield self._content(content, pickled, session)

    def _batch(self, place: Place) -> tuple[Any, str]:
        """The copies of a document, and the session that they are of."""
        import pyarrow as pa

        part = self._parts[place.part]
        copies = part.fields[3][int(part.offsets[place.row]) + place.number]
        buffer = pa.decompress(copies.as_buffer(), place.bytes, CODEC)
        batch = pa.ipc.read_record_batch(buffer, copies_schema())
        return batch, part.batch.column(1)[place.row].as_py()

    def _content(self, content: bytes, pickled: bool, session: str) -> Any:
        if not pickled:
            return json.loads(content)
        if session != self.session:
            what = "holds content that another process has pickled"
            raise UserError(what, self.folder, "remove the folder")
        return pickle.loads(content)
