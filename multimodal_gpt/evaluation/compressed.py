"""What held-out documents take when they are compressed for real: the likelihood, paid in bytes.

N documents.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.evaluation.documents import Piece, holding, spread
from multimodal_gpt.evaluation.prediction import packed
from multimodal_gpt.evaluation.subject import Subject, sources
from multimodal_gpt.evaluation.tables import LOWER, MODEL, Row, Table, ratio_row
from multimodal_gpt.stream.vocabulary import Encoded

FILE, PROMISED = "with header", "likelihood"
ABOUT = """Bits per unit of what `mmgpt compress` writes for each document by itself: the arithmetic
coder's own bytes (model), the whole file with its header, and what the likelihood promises of the same
documents. Here only what the grammar allows has a chance, so it is a little less than in the table of
likelihoods. Ordinary compressors are primed with the training documents, as there."""


def compressed(subject: Subject) -> Table:
    """Real sizes of a few documents, each modality by itself."""
    try:
        from multimodal_gpt.compression.arithmetic import check

        check()
    except UserError as error:
        return Table("compression", "What does it compress to?", ABOUT, (MODEL,), (), (str(error),))
    rows = [_row(subject, name) for name in subject.run.vocabulary.names if subject.layout(name, ())]
    found = tuple(row for row in rows if row is not None)
    columns = dict.fromkeys([MODEL, FILE, PROMISED, *(c for row in found for c in row.figures)])
    return Table("compression", "What does it compress to?", ABOUT, tuple(columns), found)


def _row(subject: Subject, name: str) -> Row | None:
    """Of one modality; None where no document holds it."""
    pieces = spread(holding(subject.pieces, name), subject.scope.samples)
    if not pieces:
        return None
    sizes = np.array([_sizes(subject, piece, name) for piece in pieces])  # (N, 3) bits
    units = subject.units(name, pieces)
    unit = subject.run.vocabulary.tokenizer(name).unit
    sums = dict(zip((MODEL, FILE, PROMISED), sizes.T, strict=True))
    row = ratio_row(name, f"bits/{unit}", LOWER, sums, units, sources(pieces))
    others = packed(subject, name, pieces, units.sum())
    return replace(row, figures={**row.figures, **others})


def _sizes(subject: Subject, piece: Piece, name: str) -> tuple[float, float, float]:
    """Bits of payload, of file, and of the likelihood."""
    from multimodal_gpt.compression import compressed_size

    alone: dict[str, Encoded] = {name: piece.segments[name]}
    size = compressed_size(subject.run, alone)
    subject.advance(f"compressing {name}")
    return 8.0 * size.payload, 8.0 * size.file, float(sum(size.bits.values()))
