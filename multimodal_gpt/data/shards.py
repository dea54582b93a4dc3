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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multimodal_gpt.data.batches import StoredDocument, View, schema, to_batches
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
AGAIN = "prepare again: mmgpt prepare RECIPE --force"


def write_shards(folder: Path, split: str, documents: Iterable[StoredDocument]) -> list[dict[str, Any]]:
    """Write the files of a split, the reverse of `open_shards`; gives name, rows, bytes and SHA-256 of
    each.

    Holds one batch in memory. The same documents give the same bytes.
    """
    return write_batches(folder, split, to_batches(documents))


def write_batches(folder: Path, split: str, batches: Iterable[pa.RecordBatch]) -> list[dict[str, Any]]:
    """As `write_shards`, of record batches."""
    import pyarrow as pa

    files: list[dict[str, Any]] = []
    batches = iter(batches)
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
        return batch.document(row)

    def segments(self, index: int) -> tuple[Encoded, ...]:
        """The segments of a document alone: what rows are built from."""
        batch, row = self._place(index)
        return batch.segments_of(row)

    def _place(self, index: int) -> tuple[View, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        place = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._batches[place], index - int(self._starts[place])

    @property
    def weights(self) -> np.ndarray:
        """(D,) how often each document is seen in an epoch: what the manifest says of the first part of its
        source, 1 where it says nothing, and of the share that is moved.
        """
        known, shifted = self.manifest.get("weights", {}), self.manifest.get("shifted")
        weights = np.ones(len(self))
        if known:
            weights = _joined([_weights(b.batch.column(0), known) for b in self._batches], np.float64)
        if shifted is not None:
            steps = _joined([b.batch.column(2).to_numpy() for b in self._batches], np.int32)
            weights *= _weights_of_copies(steps, shifted)
        return weights

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


def _weights(sources: Any, known: Mapping[str, float]) -> np.ndarray:
    import pyarrow.compute as pc

    labels = pc.replace_substring_regex(sources, "(?s)/.*", "").dictionary_encode()
    weights = np.array([float(known.get(label, 1.0)) for label in labels.dictionary.to_pylist()])
    return np.asarray(weights[labels.indices.to_numpy()])


def _weights_of_copies(steps: np.ndarray, shifted: float) -> np.ndarray:
    """(D,) weights of documents that are moved by so many `steps` (D,); those of all copies of one document,
    which stand together with the unmoved one first, sum up to their number.
    """
    many = np.diff(np.flatnonzero(steps == 0), append=len(steps))
    copies = np.repeat(many, many)
    share = np.where(steps == 0, 1 - shifted, shifted / np.maximum(1, copies - 1))
    return np.where(copies > 1, copies * share, 1.0)


def _joined(arrays: Sequence[np.ndarray], kind: Any) -> np.ndarray:
    return np.concatenate([np.empty(0, kind), *arrays]).astype(kind)


def _chunks(batch: View) -> np.ndarray:
    """Chunks of each segment, as `Encoded.edges` counts them: a cut at 0 begins no further chunk."""
    offsets, cuts = batch.cuts
    count = np.diff(offsets).astype(np.int64)
    starts_at_zero = np.zeros(len(count), dtype=bool)
    some = count > 0
    starts_at_zero[some] = cuts[offsets[:-1][some]] == 0
    return count + 1 - starts_at_zero


def _open(path: Path, names: Sequence[str]) -> list[View]:
    import pyarrow as pa

    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
        return [View.of(reader.get_batch(i), names) for i in range(reader.num_record_batches)]
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
