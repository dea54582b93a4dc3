"""A piece while it is being made: its chunks, one by one, as soon as they are finished.

All of it runs in the caller's thread, between two chunks: who stops asking leaves nothing behind that runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.generation.target import Member
from multimodal_gpt.stream.vocabulary import Vocabulary

if TYPE_CHECKING:
    from multimodal_gpt.generation.drafting import Draft
    from multimodal_gpt.generation.output import Piece


@dataclass(frozen=True, eq=False)
class Chunk:
    """A finished stretch of one modality.

    Args:
        modality: its name.
        content: what the tokenizer decodes it to, with times from the chunk's beginning; None where it holds
            nothing that could stand alone.
        ids: (T,) int32 local ids.
        shown: a line that tells a reader what it is.
        begin: quarter notes from the beginning of the piece; None where the modality is timeless.
        length: quarter notes that it lasts; None where it is timeless or does not say so.
    """

    modality: str
    content: Any
    ids: np.ndarray
    shown: str
    begin: float | None = None
    length: float | None = None


class Streaming(Iterator[Chunk]):
    """The chunks of one piece, made while they are asked for; and `piece`, the whole of it."""

    def __init__(
        self, chunks: Generator[Chunk, None, Draft], finish: Callable[[Draft, float], Piece]
    ) -> None:
        self._chunks, self._finish = chunks, finish
        self._piece: Piece | None = None
        self._seconds = 0.0

    def __next__(self) -> Chunk:
        started = time.perf_counter()
        try:
            return next(self._chunks)
        except StopIteration as end:
            if end.value is not None:
                seconds = self._seconds + time.perf_counter() - started
                self._piece = self._finish(end.value, seconds)
            raise StopIteration from None
        finally:
            self._seconds += time.perf_counter() - started

    @property
    def piece(self) -> Piece:
        """The finished piece; what has not been asked for yet is made now.

        Raises UserError where the stream was closed, or failed, before its end.
        """
        for _ in self:
            pass
        if self._piece is None:
            raise UserError("the piece was given up before its end", fix="ask for it anew")
        return self._piece

    def close(self) -> None:
        """Give the piece up."""
        self._chunks.close()


class Teller:
    """Makes chunks of local ids as they come.

    Args:
        before: of each wanted modality, the local ids before those that are made.
    """

    def __init__(
        self, vocabulary: Vocabulary, members: Mapping[str, Member], before: Mapping[str, np.ndarray]
    ) -> None:
        self.vocabulary, self.members = vocabulary, members
        self.known = {name: ids.tolist() for name, ids in before.items()}

    def chunk(self, name: str, ids: Sequence[int]) -> Chunk:
        """The next chunk of a modality."""
        known, member = self.known[name], self.members[name]
        known += ids
        tokenizer, part = self.vocabulary.tokenizer(name), np.array(ids, dtype=np.int32)
        content = tokenizer.decode(part) if member.grammar.accepts(part) else None
        times = tokenizer.clock(np.array(known, dtype=np.int32))
        begin = None if times is None else float(times[len(known) - len(ids)])
        return Chunk(name, content, part, tokenizer.show(part), begin, _length(part, member))


def _length(ids: np.ndarray, member: Member) -> float | None:
    """Quarter notes that a chunk says it lasts."""
    told = [] if member.spans is None else member.spans[ids]
    return next((float(length) for length in told if not np.isnan(length)), None)
