"""How well a run predicts each modality, alone and knowing others, beside models that count and compressors.

N documents.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from multimodal_gpt.evaluation.documents import Piece, holding
from multimodal_gpt.evaluation.likelihood import segment_bits
from multimodal_gpt.evaluation.ngram import ORDER, Ngram
from multimodal_gpt.evaluation.subject import Subject, sources
from multimodal_gpt.evaluation.tables import LOWER, MODEL, Figure, Row, Table, ratio_row
from multimodal_gpt.stream.vocabulary import Encoded, Vocabulary

SPECIALIST, NGRAM, MARKOV, UNTRAINED = "specialist", "n-gram", "last token", "untrained"
BYTE = 256
ABOUT = f"""Bits per unit (note, chord, character), which no choice of tokens changes: all bits of the
held-out documents over all their units; every token of the modality is charged, nothing is cropped. In
brackets: 95 % bootstrap over documents. The n-gram ({ORDER} tokens back, Kneser-Ney) and the model of the
last token count the training documents as they are. Compressors are primed with these and pack all
held-out ones together, which favours them: text as bytes, other modalities as one or two bytes per id."""


def prediction(subject: Subject) -> Table:
    """Bits per unit of every modality, whole documents, every token charged."""
    rows = [row for name in subject.run.vocabulary.names for row in rows_of(subject, name)]
    packers = compressors()
    notes = []
    if not subject.training:
        notes.append("no training documents at hand: no models that count, compressors are not primed")
    if "zstd" not in packers:
        notes.append('zstd is left out: pip install "multimodal-gpt[evaluate]"')
    columns = (MODEL, SPECIALIST, NGRAM, MARKOV, UNTRAINED, *packers)
    return Table(
        "likelihood",
        "How well is each modality predicted?",
        ABOUT,
        tuple(c for c in columns if any(c in row.figures for row in rows)),
        tuple(rows),
        tuple(notes),
    )


def rows_of(subject: Subject, name: str) -> Iterator[Row]:
    """A modality alone, in other units, and given others."""
    pieces = holding(subject.pieces, name)
    unit = subject.run.vocabulary.tokenizer(name).unit
    if not pieces:
        return
    units = subject.units(name, pieces)
    if subject.layout(name, ()):
        bits = _alone(subject, name, pieces)
        row = ratio_row(name, f"bits/{unit}", LOWER, bits, units, sources(pieces))
        yield replace(row, figures={**row.figures, **packed(subject, name, pieces, units.sum())})
        macro = ratio_row(
            f"{name}, mean of documents",
            f"bits/{unit}",
            LOWER,
            {column: values / units for column, values in bits.items()},
            np.ones(len(units)),
            sources(pieces),
        )
        yield macro
        yield from _of_words(subject, name, pieces, bits)
    for known in _contexts(subject, name):
        some = holding(pieces, *known)
        if some:
            given = {MODEL: subject.bits(name, known, some)}
            label = f"{name} given {', '.join(known)}"
            yield ratio_row(label, f"bits/{unit}", LOWER, given, subject.units(name, some), sources(some))


def _contexts(subject: Subject, name: str) -> list[tuple[str, ...]]:
    """Each other modality, and all of them, where the model was trained to know them."""
    others = tuple(n for n in subject.run.vocabulary.names if n != name)
    found = dict.fromkeys([*((other,) for other in others), others])
    return [known for known in found if known and subject.layout(name, known)]


def _alone(subject: Subject, name: str, pieces: Sequence[Piece]) -> dict[str, np.ndarray]:
    """Column -> (N,) bits without context."""
    found = {MODEL: subject.bits(name, (), pieces)}
    special = subject.specialist_bits(name, pieces)
    if special is not None:
        found[SPECIALIST] = special
    size, learnt = subject.run.vocabulary.tokenizer(name).size, [s.ids for s in subject.learnt(name)]
    for column, order in ((NGRAM, ORDER), (MARKOV, 1)) if learnt else ():
        counts = Ngram(learnt, size, order)
        found[column] = np.array([counts.bits(p.segments[name].ids).sum() for p in pieces])
        subject.advance(f"{column} of {name}")
    net, vocabulary = subject.untrained, subject.run.vocabulary
    costs = []
    for piece in pieces:
        costs.append(segment_bits(net, vocabulary, {name: piece.segments[name]}, ((name,),), name))
        subject.advance(f"untrained on {name}")
    found[UNTRAINED] = np.array(costs)
    return found


def _of_words(
    subject: Subject, name: str, pieces: Sequence[Piece], bits: Mapping[str, np.ndarray]
) -> Iterator[Row]:
    """Where contents are str: bits per byte, and perplexity per word, 2 to the bits per word."""
    contents = [subject.run.vocabulary.decode(name, p.segments[name].ids) for p in pieces]
    if not all(isinstance(content, str) for content in contents):
        return
    sizes = np.array([len(content.encode()) for content in contents], dtype=float)
    yield ratio_row(f"{name}, by bytes", "bits/byte", LOWER, bits, sizes, sources(pieces))
    words = np.array([max(1, len(content.split())) for content in contents], dtype=float)
    row = ratio_row(f"{name}, by words", "perplexity", LOWER, bits, words, sources(pieces))
    powers = {column: _power(figure) for column, figure in row.figures.items()}
    yield Row(row.name, row.unit, row.better, row.count, powers)


def _power(figure: Figure) -> Figure:
    low, high = (None if bound is None else 2**bound for bound in (figure.low, figure.high))
    return Figure(2**figure.value, low, high)


# Compressors


def compressors() -> Mapping[str, Callable[[bytes], bytes]]:
    """Those of the standard library, at their best, and zstd where it is installed."""
    found: dict[str, Callable[[bytes], bytes]] = {
        "zlib": lambda data: zlib.compress(data, 9),
        "xz": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
    }
    try:
        import zstandard
    except ImportError:
        return found
    return {**found, "zstd": zstandard.ZstdCompressor(level=22).compress}


def packed(subject: Subject, name: str, pieces: Sequence[Piece], units: float) -> dict[str, Figure]:
    """Compressor -> bits per unit that all pieces add to the packed training documents."""
    write = _writer(subject.run.vocabulary, name)
    before = b"".join(write(segment) for segment in subject.learnt(name))
    after = before + b"".join(write(piece.segments[name]) for piece in pieces)
    found = {}
    for column, pack in compressors().items():
        found[column] = Figure(8 * (len(pack(after)) - len(pack(before))) / units)
        subject.advance(f"{column} of {name}")
    return found


def _writer(vocabulary: Vocabulary, name: str) -> Callable[[Encoded], bytes]:
    """Segments as bytes, each with an end: words in UTF-8, else ids in as few bytes as hold them all."""
    size = vocabulary.tokenizer(name).size
    kind = np.uint8 if size < BYTE else np.dtype("<u2")

    def write(segment: Encoded) -> bytes:
        content = vocabulary.decode(name, segment.ids) if segment.clock is None else None
        if isinstance(content, str):
            return content.encode() + b"\n"
        return np.append(segment.ids, size).astype(kind).tobytes()

    return write
