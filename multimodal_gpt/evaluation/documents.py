"""Documents that a run is judged by: held out when it was trained, or in a folder of yours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from multimodal_gpt.data.batches import StoredDocument
from multimodal_gpt.data.captions import LABELS, Captions
from multimodal_gpt.data.copies import Rules, Tools, answer
from multimodal_gpt.data.corpus import folder_source, list_files, split_groups
from multimodal_gpt.data.shards import open_shards
from multimodal_gpt.data.sources import shards_folder
from multimodal_gpt.errors import UserError
from multimodal_gpt.generation.session import Run
from multimodal_gpt.stream.vocabulary import Encoded


@dataclass(frozen=True, eq=False)
class Piece:
    """One document.

    Args:
        segments: one per modality; where a document has several words, its own ones or else the first.
        metadata: what is known of it: `key` ("D major"), `meter`, `type`, `bars` ... where they are known.
        source: its name.
        captions: segments made by the recipe's templates, and the facts that each states: field -> value.
    """

    segments: Mapping[str, Encoded]
    metadata: Mapping[str, Any]
    source: str = ""
    captions: tuple[tuple[Encoded, Mapping[str, Any]], ...] = field(default=())


def held_out(run: Run, split: str = "valid") -> tuple[Piece, ...]:
    """The documents of the run's own shards, in their order, none of them moved.

    Raises UserError where the shards are not there: a run folder may travel without them.
    """
    shards = open_shards(_shards_of(run), split)
    into = run.recipe.data.captions.into
    found = (shards.document(index) for index in range(len(shards)))
    return tuple(_piece(document, into) for document in found if document.shift == 0)


def _shards_of(run: Run) -> Path:
    """The shards that lie in the folder from which the run was opened, or else where its recipe says."""
    beside = (run.vocabulary.folder or Path()) / "shards"
    return beside if beside.is_dir() else shards_folder(run.recipe)


def training(run: Run) -> tuple[Piece, ...]:
    """The documents it learnt from, unmoved; none where the shards are not there."""
    try:
        return held_out(run, "train")
    except UserError:
        return ()


def read_folder(run: Run, folder: Path) -> tuple[tuple[Piece, ...], tuple[str, ...]]:
    """Documents in a folder (or file), with the captions that the run's recipe makes, and a line about each
    file that is not used.

    Raises UserError where there is no document in it.
    """
    tokenizers = run.vocabulary.tokenizers
    words = run.recipe.data.captions
    captions = (
        Captions(words.into, tuple(words.templates), words.variants, run.recipe.seed, words.drop)
        if words.templates and words.into in tokenizers
        else None
    )
    home = run.vocabulary.folder or Path()
    rules = Rules(tuple(run.vocabulary.modalities), home, frozenset(), captions, (0,))
    tools = Tools(rules, tokenizers, run.vocabulary)
    source = folder_source(folder, held_out=True, where="--data")
    listing = list_files([source], {s for t in tokenizers.values() for s in t.suffixes})
    pieces: list[Piece] = []
    skips: list[str] = []
    for group in split_groups(listing.groups, tokenizers):
        found = answer(group, tools)
        skips += [f"{skip.source}: {skip.reason}" for skip in found.skips]
        for brief, (copy, *_) in found.documents:
            stored = StoredDocument(copy.segments, dict(copy.metadata), brief.source, brief.source, 0)
            pieces.append(_piece(stored, words.into))
    if not pieces:
        raise UserError("no document is in it", folder, skips[0] if skips else "name another folder")
    return tuple(pieces), tuple(skips)


def _piece(document: StoredDocument, into: str) -> Piece:
    segments: dict[str, Encoded] = {}
    for segment in document.segments:
        segments.setdefault(segment.modality, segment)
    facts = document.metadata.get(LABELS, [])
    words = [s for s in document.segments if s.modality == into]
    captions = tuple(zip(words[len(words) - len(facts) :], facts, strict=True))
    return Piece(segments, document.metadata, document.source, captions)


def spread(pieces: Sequence[Piece], most: int | None) -> tuple[Piece, ...]:
    """At most so many of them, from all over the list; as many that hold rare modalities as common ones."""
    if most is None or len(pieces) <= most:
        return tuple(pieces)
    kinds: dict[frozenset[str], list[int]] = {}
    for place, piece in enumerate(pieces):
        kinds.setdefault(frozenset(piece.segments), []).append(place)
    chosen: list[int] = []
    for number, places in enumerate(sorted(kinds.values(), key=len)):
        share = min(len(places), (most - len(chosen)) // (len(kinds) - number))
        chosen += [places[i] for i in np.linspace(0, len(places) - 1, share).round().astype(int)]
    return tuple(pieces[place] for place in sorted(chosen))


def holding(pieces: Iterable[Piece], *names: str) -> tuple[Piece, ...]:
    """Those that have all of these modalities."""
    return tuple(p for p in pieces if set(names) <= set(p.segments))
