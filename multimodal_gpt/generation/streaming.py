"""A piece while it is being made: its chunks, one by one, as soon as they are finished.

All of it runs in the caller's thread, between two chunks: who stops asking leaves nothing behind that runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.generation.target import Member
from multimodal_gpt.stream.grammar import Grammar
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


class Splitter:
    """Cuts the ids of one part, which come one by one, into finished chunks of its wanted modalities.

    Args:
        prefix: (T,) global ids that the part begins with, before the first that is chosen.
        before: of each wanted modality, the local ids before those that are made.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        members: Mapping[str, Member],
        prefix: np.ndarray,
        before: Mapping[str, np.ndarray],
    ) -> None:
        self.vocabulary, self.members = vocabulary, {name: members[name] for name in before}
        self.tags = {member.tag: name for name, member in members.items()}
        self.known = {name: ids.tolist() for name, ids in before.items()}
        self.parts = {n: _Parts(m.grammar) for n, m in self.members.items() if not m.turns}
        self.name = next(self.tags[token] for token in reversed(prefix.tolist()) if token in self.tags)
        self.pending: list[int] = []

    def add(self, token: int) -> list[Chunk]:
        """What is finished, now that this global id has come."""
        member = self.members.get(self.name)
        local = -1 if member is None else token - member.first
        if member is None or not 0 <= local < member.grammar.size:
            done = self._close()
            self.name = self.tags.get(token, "")
            return done
        if not member.turns:
            return self._chunks(self.parts[self.name].add(local))
        done = self._close() if member.grammar.cut[local] else []
        self.pending.append(local)
        return done

    def _close(self) -> list[Chunk]:
        if self.name in self.parts:
            return self._chunks(self.parts[self.name].rest())
        ids, self.pending = self.pending, []
        return self._chunks(ids)

    def _chunks(self, ids: list[int]) -> list[Chunk]:
        """The chunk of these local ids, none where there are none."""
        if not ids:
            return []
        name, known = self.name, self.known[self.name]
        known += ids
        tokenizer, chunk = self.vocabulary.tokenizer(name), np.array(ids, dtype=np.int32)
        content = tokenizer.decode(chunk) if self.members[name].grammar.accepts(chunk) else None
        times = tokenizer.clock(np.array(known, dtype=np.int32))
        begin = None if times is None else float(times[len(known) - len(ids)])
        return [Chunk(name, content, chunk, tokenizer.show(chunk), begin, self._length(name, chunk))]

    def _length(self, name: str, ids: np.ndarray) -> float | None:
        spans = self.members[name].spans
        told = [] if spans is None else spans[ids][~np.isnan(spans[ids])].tolist()
        return told[0] if told else None


class _Parts:
    """Cuts a segment that has no chunks wherever a part of it stands on its own.

    The last such part is held back until the next one is whole: what is left at the end (a blank, say) may
    not stand alone.
    """

    def __init__(self, grammar: Grammar) -> None:
        self.grammar, self.splits = grammar, splits_anywhere(grammar)
        self.waiting: list[int] = []
        self.whole = 0  # of `waiting`
        self.state = 0  # after the rest of it

    def add(self, token: int) -> list[int]:
        """One more local id; gives the part that it shows to be finished, if any."""
        self.waiting.append(token)
        self.state = int(self.grammar.next_state[self.state, token])
        if not self.splits or not self.grammar.final[self.state]:
            return []
        done, self.waiting = self.waiting[: self.whole], self.waiting[self.whole :]
        self.whole, self.state = len(self.waiting), 0
        return done

    def rest(self) -> list[int]:
        """What is left when the segment ends."""
        done, self.waiting = self.waiting, []
        return done


def splits_anywhere(grammar: Grammar) -> bool:
    """Whether a segment may be split wherever it might end: what follows could begin a segment as well, and
    whatever stands on its own there ends where the segment might.
    """
    ends = np.flatnonzero(grammar.final).tolist()
    seen: set[tuple[int, int]] = set()
    found = {(ends[0], 0)} if len(ends) == 1 else set()
    while found:
        pair = found.pop()
        seen.add(pair)
        going_on, begun = grammar.next_state[list(pair)]
        legal = going_on >= 0
        going_on, begun = going_on[legal], begun[legal]
        if (begun < 0).any() or (grammar.final[begun] & ~grammar.final[going_on]).any():
            return False
        found |= {(a, b) for a, b in zip(going_on.tolist(), begun.tolist(), strict=True)} - seen
    return bool(seen)
