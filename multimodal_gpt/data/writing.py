"""Step 6 of preparing: documents -> shards and `documents.jsonl`, by worker processes, in order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from multimodal_gpt.data.batches import BYTES_PER_BATCH, CODEC, ROWS_PER_BATCH, schema
from multimodal_gpt.data.collect import Found
from multimodal_gpt.data.engines import Engine, in_turn
from multimodal_gpt.data.parts import Place
from multimodal_gpt.data.reading import PARTLY, Skip
from multimodal_gpt.data.reporting.tally import UNUSED, Tally
from multimodal_gpt.data.shards import write_batches
from multimodal_gpt.data.split import Split
from multimodal_gpt.data.work import Span, Work, Written
from multimodal_gpt.stream.vocabulary import Vocabulary

if TYPE_CHECKING:
    import pyarrow as pa

SMALL = 2 * BYTES_PER_BATCH
"""So few bytes are written by this process itself: starting others takes longer."""


def spans(name: str, found: Found, split: Split) -> list[Span]:
    """The documents of a split in runs of bounded size, whatever the number of workers."""
    used = {*split.train, *split.valid}
    unused = [i for i in range(len(found.places)) if i not in used]
    indexes = {"train": split.train, "valid": split.valid, UNUSED: unused}[name]
    made: list[Span] = []
    held: list[tuple[Place, str]] = []
    rows = size = 0
    for index in indexes:
        place = found.places[index]
        held.append((place, split.groups[index]))
        rows, size = rows + place.rows, size + place.bytes
        if rows >= ROWS_PER_BATCH or size >= BYTES_PER_BATCH:
            made.append(Span(name, tuple(held)))
            held, rows, size = [], 0, 0
    return [*made, Span(name, tuple(held))] if held else made


def is_little(spans: Sequence[Span]) -> bool:
    """Whether workers would take longer to start than this process takes to do it."""
    return sum(place.bytes for span in spans for place, _ in span.documents) <= SMALL


class Lines:
    """`documents.jsonl` while it is written, what its lines sum up to, and problems met on the way."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w", encoding="utf-8")
        self.tally, self.templates = Tally(), Counter[str]()
        self.problems: list[Skip] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()

    def add(self, written: Written) -> None:
        """What is known of the documents of a span."""
        for line in written.documents:
            self.file.write(json.dumps(line) + "\n")
            self.tally.add(line)
        for templates in written.templates:
            self.templates.update(templates)
        self.problems += [Skip(source, PARTLY, problem) for source, problem in written.problems]


class Writer:
    """Writes splits of documents. `make`: gives a worker's function, `make_writer` with its arguments."""

    def __init__(
        self, folder: Path, vocabulary: Vocabulary, make: Callable[[], Work], engine: Engine, lines: Lines
    ) -> None:
        self.folder, self.vocabulary, self.lines = folder, vocabulary, lines
        self.make, self.engine = make, engine

    def write(self, name: str, spans: Sequence[Span]) -> dict[str, Any]:
        """Write the shards of a split; gives its counts and the manifest entries of its files."""
        units = {n: self.vocabulary.tokenizer(n).unit for n in self.vocabulary.names}
        empty = {"documents": 0, "segments": 0, "tokens": 0, "units": 0}
        sums: dict[str, Any] = {"documents": 0, "rows": 0}
        sums["modalities"] = {n: {**empty, "unit": unit} for n, unit in units.items()}
        sums["files"] = write_batches(self.folder, name, self._batches(spans, sums))
        return sums

    def list_only(self, spans: Sequence[Span]) -> None:
        """Lines for documents that are not written."""
        for written in self._written(spans):
            self.lines.add(written)

    def _batches(self, spans: Sequence[Span], sums: dict[str, Any]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for written in self._written(spans):
            self.lines.add(written)
            sums["documents"] += sum(bool(line["tokens"]) for line in written.documents)
            sums["rows"] += written.rows
            for modality, counts in written.counts.items():
                for key, number in counts.items():
                    sums["modalities"][modality][key] += number
            if written.rows:
                yield pa.ipc.read_record_batch(pa.decompress(written.batch, written.bytes, CODEC), schema())

    def _written(self, spans: Sequence[Span]) -> Iterator[Written]:
        return in_turn(self.engine, self.make, spans, alone=is_little(spans))
