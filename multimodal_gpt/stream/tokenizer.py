"""The plugin contract: a modality is one small file that defines `build(**options) -> Tokenizer`.

A plugin knows its own files, its own content and its own ids, and nothing of other modalities, of torch or of
training. Some things are optional and looked up by name:

- on the tokenizer: `shift(content, steps)`, the same content moved by the modality's own symmetry, None
  where the move is impossible; `draw(content, axes)`, which draws onto a matplotlib axes with time in
  quarter notes along x (its limits along x are set already: what lies outside need not be drawn). Where
  `draw` has a third argument named `color`, it is drawn in the colour of what was given or made, and twice
  where it was both, each within its time; without `color` it keeps its own colours; `spans() -> (V,)
  float32`, the quarter notes that a chunk lasts, for the ids that say so (a meter), NaN for the others:
  modalities that take turns then keep step; `follow() -> counter`, which is told the ids of a segment one
  by one and gives each one's time, as `clock` does for all: without it a network with a clock has `clock`
  look at the last chunk again for every id it makes; `compose(metadata) -> content | None`, content made
  from what is known about a document that lacks this modality; `shift_ids(ids, steps) -> ids | None`, what
  encode(shift(content, steps)) would give, without encoding again; `shingles(content) -> (N,) uint64`,
  hashes of short overlapping stretches that moving by `shift` does not change: documents that share most of
  them are versions of one piece; and `read_part(path, part, parts)`, the pieces of the part-th of `parts`
  equal shares of a large file, in the order of `read`, where need be with `book_suffixes`, those of
  `suffixes` whose files hold many pieces (all where it is missing);
- on the tokenizer, for those who ask for more: `wishes`, name -> what it means, of what may be asked of a
  segment that is made; `examples`, those whose value is a content; `limited(wishes, rng) -> Grammar`, the
  grammar of segments that meet all the given ones (`stream.limits` has the tools), UserError where one can't
  be read; and `dressed(content, like) -> content`, with what ids do not hold taken from another one;
- in the module: `fit(contents, folder, **options) -> dict`, called when shards are prepared. It learns from
  the training contents, writes what it learnt as files into `folder` and returns the options with which
  `build` makes the tokenizer; a file is named in them as `"file:NAME"`. It is called once with no contents,
  for a tokenizer that only has to read, parse, describe and compose, and then with those of the training
  documents; and
- in the module: `corpus(name) -> Sequence[Path] | None`, the files of a named corpus; None or UserError
  where the name is unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from multimodal_gpt.stream.grammar import Grammar


@dataclass(frozen=True)
class Item:
    """One piece found in a file.

    `key` is unique within the file and the same for every modality that reads the piece ("" when the file is
    one piece), so that the views of one piece can be joined. `metadata` says what the file told and the
    content does not hold (a title) or what the reader decided (which track was taken). `content` may be
    a UserError: a piece that is there but can't be read, which is reported.
    """

    key: str
    content: Any
    metadata: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Tokenizer(Protocol):
    """One modality: files <-> content <-> local ids 0 .. size-1."""

    size: int
    """Number of local ids, fixed for the life of the object."""
    suffixes: tuple[str, ...]
    """Suffixes of the files it reads, lower case, with the dot; the first is the one it writes."""
    unit: str
    """What `units` counts, in the singular: "character", "note"."""

    def read(self, path: Path) -> Iterator[Item]:
        """Pieces in a file; nothing yielded = the file holds none of this modality.

        Raises UserError when the file can't be read at all.
        """
        ...

    def write(self, content: Any, path: Path, *, append: bool = False, note: str = "") -> Path:
        """Write a file, the reverse of `read`. `append`: add to a file that another modality has just written
        at this path (a second track). `note`: provenance, stored where the format can hold it.
        """
        ...

    def parse(self, text: str) -> Any:
        """Content from a command line: plain words, symbols, or a path to a file. Raises UserError."""
        ...

    def encode(self, content: Any) -> np.ndarray:
        """(T,) int32 local ids; may quantise, but decode(encode(x)) is a fixed point. Raises UserError where
        the content is empty.
        """
        ...

    def decode(self, ids: np.ndarray) -> Any:
        """Content of ids, the reverse of `encode`. Any legal walk decodes; other ids raise UserError."""
        ...

    def grammar(self) -> Grammar:
        """What may follow what. Everything that `encode` returns is accepted by it."""
        ...

    def clock(self, ids: np.ndarray) -> np.ndarray | None:
        """(T,) float32, never decreasing: the time of each token in quarter notes. None = timeless."""
        ...

    def cuts(self, ids: np.ndarray) -> np.ndarray:
        """(C,) int64, increasing: indexes where a new chunk (bar, paragraph) begins, as `grammar().cut`
        marks.

        A chunk stands on its own: what begins at a cut is a legal walk from the grammar's start, so that a
        long piece can be cut there and two modalities can take turns chunk by chunk.
        """
        ...

    def units(self, content: Any) -> int:
        """How many units: the tokenizer-free denominator of every likelihood."""
        ...

    def describe(self, content: Any) -> dict[str, Any]:
        """Metadata that can be computed from the content; plain str, int, float and bool values."""
        ...

    def show(self, ids: np.ndarray) -> str:
        """One readable line for a human."""
        ...


def has_times(tokenizer: Tokenizer) -> bool:
    """Whether the modality's ids have times: asked of a shortest legal segment."""
    return tokenizer.clock(tokenizer.grammar().random_walk(np.random.default_rng(0), 1)) is not None
