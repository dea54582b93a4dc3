"""Context gain: how many bits per unit of a target another modality saves, and whether it is the right one's
doing.

For target y, context x, pieces i: gain = [sum B(y_i) - sum B(y_i | x_i)] / sum units_i, with B in bits. Two
nulls put another piece's context in x's place: `stranger` any other piece's, `lookalike` one of the same
mode and meter, moved to the same key and cut or repeated to the same length. Intervals: 95 % paired
bootstrap over pieces, ratio of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from multimodal_gpt.evaluation.documents import Piece, holding
from multimodal_gpt.evaluation.likelihood import segment_bits
from multimodal_gpt.evaluation.music import known_key, tonic_of
from multimodal_gpt.evaluation.ngram import Ngram, sounding
from multimodal_gpt.evaluation.subject import Subject, sources
from multimodal_gpt.evaluation.tables import HIGHER, MODEL, Figure, Row, Table, ratio_row
from multimodal_gpt.stream.vocabulary import Encoded, Vocabulary

STRANGER, LOOKALIKE, RIGHT = "stranger", "lookalike", "true - lookalike"
IMPROVED, COUNTED = "improved %", "n-gram"
COUNTED_ORDER = 4
"""Tokens that the n-gram of a gain looks back at, what stands beside counted as one."""
ABOUT = """Bits per unit of the first that knowing the second saves: with the document's own (model), with
another document's (stranger), with that of another of the same mode and meter, moved to the same key and
length (lookalike). The model listens only where true - lookalike is above 0, too. The base is the better
of the same model without context and, where one was named, a specialist. The n-gram is what counting
saves on its own base: half of it sees the last tokens of the second that have begun. In brackets: 95 %
paired bootstrap over documents."""
FEWEST = 3
"""Documents without which nothing is said."""


def context_gain(subject: Subject) -> Table:
    """What knowing another modality saves, for every pair that the run was trained on."""
    names = subject.run.vocabulary.names
    pairs = [(target, context) for target in names for context in names if target != context]
    known = [pair for pair in pairs if subject.layout(pair[0], (pair[1],)) and subject.layout(pair[0], ())]
    if subject.scope.quick:  # those that take turns: what a shared stream is for
        timed = {name for name, member in subject.run.engine.rules.members.items() if member.turns}
        known = [pair for pair in known if timed.issuperset(pair)] or known[:1]
    rows = [gain_row(subject, *pair) for pair in known]
    return Table(
        "gain",
        "What does knowing another modality save?",
        ABOUT,
        (MODEL, STRANGER, LOOKALIKE, RIGHT, IMPROVED, COUNTED),
        tuple(row for row in rows if row is not None),
        () if rows else ("the run was not trained to make one modality from another",),
    )


def gain_row(subject: Subject, target: str, context: str) -> Row | None:
    """Gain of `target` from `context` over the pieces that hold both; None where they are too few."""
    pieces = holding(subject.pieces, target, context)
    if len(pieces) < FEWEST:
        return None
    alone, special = subject.bits(target, (), pieces), subject.specialist_bits(target, pieces)
    base = alone if special is None or alone.sum() <= special.sum() else special
    true = subject.bits(target, (context,), pieces)
    stranger = null_bits(subject, target, context, pieces, strangers(pieces, context, subject))
    alike = null_bits(subject, target, context, pieces, lookalikes(pieces, context, subject))
    saved = {
        MODEL: base - true,
        STRANGER: base - stranger,
        LOOKALIKE: base - alike,
        RIGHT: alike - true,
        **counted_gain(subject, target, context, pieces),
    }
    units = subject.units(target, pieces)
    unit = subject.run.vocabulary.tokenizer(target).unit
    row = ratio_row(f"{target} given {context}", f"bits/{unit}", HIGHER, saved, units, sources(pieces))
    better = Figure(100 * float((true < base).mean()))
    return replace(row, figures={**row.figures, IMPROVED: better})


def counted_gain(
    subject: Subject, target: str, context: str, pieces: Sequence[Piece]
) -> dict[str, np.ndarray]:
    """What an n-gram saves, (N,) bits under COUNTED; nothing where it has nothing to count, or no times."""
    learnt = [piece.segments for piece in holding(subject.training, target, context)]
    asked = [piece.segments for piece in pieces]
    if not learnt or any(s[name].clock is None for s in (learnt[0], asked[0]) for name in (target, context)):
        return {}
    size = subject.run.vocabulary.tokenizer(target).size
    sequences = [s[target].ids for s in learnt]
    beside = [sounding(s[target], s[context]) for s in learnt]
    blind, seeing = Ngram(sequences, size), Ngram(sequences, size, COUNTED_ORDER, beside)
    saved = []
    for segments in asked:
        ids = segments[target].ids
        alone = blind.chances(ids)
        known = (alone + seeing.chances(ids, sounding(segments[target], segments[context]))) / 2
        saved.append(float(np.log2(known / alone).sum()))
    subject.advance(f"n-gram of {target} beside {context}")
    return {COUNTED: np.array(saved)}


def null_bits(
    subject: Subject, target: str, context: str, pieces: Sequence[Piece], others: Sequence[Encoded]
) -> np.ndarray:
    """(N,) bits of each piece's target, given another context in place of its own."""
    order = subject.order(target, (context,))
    costs = []
    for piece, other in zip(pieces, others, strict=True):
        both = {target: piece.segments[target], context: other}
        costs.append(segment_bits(subject.run.net, subject.run.vocabulary, both, order, target))
        subject.advance(f"{target} with another {context}")
    return np.array(costs)


def strangers(pieces: Sequence[Piece], context: str, subject: Subject) -> list[Encoded]:
    """Another piece's context for each, cut or repeated to the same length."""
    others = derange(len(pieces), subject.scope.seed)
    return [
        like(pieces[other].segments[context], piece.segments[context], subject.run.vocabulary)
        for piece, other in zip(pieces, others, strict=True)
    ]


def lookalikes(pieces: Sequence[Piece], context: str, subject: Subject) -> list[Encoded]:
    """The context of another piece of the same mode and meter for each, moved to its key, at its length."""
    others = matched([piece.metadata for piece in pieces], subject.scope.seed, _class_of)
    return [
        _disguise(pieces[other], piece, context, subject.run.vocabulary)
        for piece, other in zip(pieces, others, strict=True)
    ]


def derange(count: int, seed: int) -> np.ndarray:
    """(N,) a permutation of 0 .. N-1 in which nothing stays in place."""
    order = np.random.default_rng(seed).permutation(count)
    other = np.empty(count, dtype=np.int64)
    other[order] = np.roll(order, 1)
    return other


def matched(metadata: Sequence[Mapping[str, object]], seed: int, same: Callable[..., object]) -> np.ndarray:
    """(N,) another piece of the same class for each piece (any other piece where its class is a single
    one).
    """
    rng = np.random.default_rng(seed)
    classes = [same(m) for m in metadata]
    chosen = []
    for place, kind in enumerate(classes):
        others = [i for i, k in enumerate(classes) if k == kind and i != place]
        others = others or [i for i in range(len(classes)) if i != place]
        chosen.append(others[rng.integers(len(others))])
    return np.array(chosen)


def like(segment: Encoded, true: Encoded, vocabulary: Vocabulary) -> Encoded:
    """The segment at the length of the true one, where the modality has times."""
    return segment if segment.clock is None else fit_chunks(segment, true.times, vocabulary)


def fit_chunks(segment: Encoded, times: np.ndarray, vocabulary: Vocabulary) -> Encoded:
    """The segment's chunks, repeated from the start or cut so that chunk i begins at times[i]."""
    edges = segment.edges
    count = len(edges) - 1
    ids = np.concatenate([segment.ids[edges[i % count] : edges[i % count + 1]] for i in range(len(times))])
    tokenizer = vocabulary.tokenizer(segment.modality)
    cuts = tokenizer.cuts(ids)
    clock = tokenizer.clock(ids)
    if clock is not None:
        starts = np.concatenate(([0], cuts[cuts > 0]))
        width = np.diff(np.concatenate((starts, [len(ids)])))
        clock = (clock - np.repeat(clock[starts], width) + np.repeat(times, width)).astype(np.float32)
    return Encoded(segment.modality, ids, clock, cuts, segment.units)


def _class_of(metadata: Mapping[str, Any]) -> tuple[object, object]:
    return str(metadata.get("key", "")).rpartition(" ")[2], metadata.get("meter")


def _disguise(other: Piece, piece: Piece, context: str, vocabulary: Vocabulary) -> Encoded:
    """Another piece's context, moved to this piece's key and cut or repeated to its length."""
    segment = other.segments[context]
    steps = _tonic(piece.metadata) - _tonic(other.metadata)
    steps = (steps + 6) % 12 - 6
    tokenizer = vocabulary.tokenizer(context)
    if steps and hasattr(tokenizer, "shift"):
        moved = tokenizer.shift(vocabulary.decode(context, segment.ids), steps)
        segment = segment if moved is None else vocabulary.encode(context, moved)
    return like(segment, piece.segments[context], vocabulary)


def _tonic(metadata: Mapping[str, Any]) -> int:
    """Semitones of the key's tonic above C; 0 where no key is known."""
    key = known_key(metadata.get("key"))
    return 0 if key is None else tonic_of(key)
