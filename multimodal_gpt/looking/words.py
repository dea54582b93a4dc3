"""Single tokens as a person reads them: a modality shows whole segments, some of its ids mean nothing alone.

K ids of a kind, T tokens, V local ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from multimodal_gpt.stream.tokenizer import Tokenizer
from multimodal_gpt.stream.vocabulary import SPECIALS, Encoded, Vocabulary

_TRIED = 8
"""Other ids that are put in a token's place to see what it says."""


@dataclass(frozen=True, eq=False)
class Words:
    """The tokens of one modality in words."""

    tokenizer: Tokenizer

    @cached_property
    def alone(self) -> tuple[str, ...]:
        """(V,) what each id says by itself; "" where it shows like another one."""
        size, show = self.tokenizer.size, self.tokenizer.show
        shown = [show(np.array([token], dtype=np.int32)) for token in range(size)]
        times = Counter(shown)
        return tuple(words if times[words] == 1 else "" for words in shown)

    def kind(self, token: int) -> np.ndarray:
        """(K,) int64 local ids that may always take the place of this one, itself included: to the grammar
        they are the same.
        """
        return np.flatnonzero(self._kinds == self._kinds[token])

    @cached_property
    def _kinds(self) -> np.ndarray:
        """(V,) the number of each id's kind."""
        columns = np.ascontiguousarray(self.tokenizer.grammar().next_state.T)  # (V, S)
        numbers: dict[bytes, int] = {}
        return np.array([numbers.setdefault(column.tobytes(), len(numbers)) for column in columns])

    def said_by(self, ids: np.ndarray, place: int) -> list[int]:
        """Which words of a legal segment, as it is shown, change with the token at `place`.

        Example: of "| D | G |" the id of the second root says word 3, and so does the id of its quality.
        """
        words = self.tokenizer.show(ids).split()
        changing: set[int] = set()
        for other in self._others(int(ids[place])):
            changed = np.array(ids)
            changed[place] = other
            found = self.tokenizer.show(changed).split()
            if len(found) == len(words):
                changing |= {i for i, (a, b) in enumerate(zip(words, found, strict=True)) if a != b}
        return sorted(changing)

    def _others(self, token: int) -> list[int]:
        """A few ids of a token's kind, from all over it."""
        alike = self.kind(token)
        alike = alike[alike != token]
        return [int(alike[i]) for i in np.linspace(0, len(alike) - 1, min(_TRIED, len(alike))).astype(int)]

    def of_segment(self, segment: Encoded) -> list[str]:
        """(T,) a word for each token: what it says alone, else in its chunk, else its place there."""
        found = []
        for first, stop in zip(segment.edges[:-1], segment.edges[1:], strict=True):
            chunk = segment.ids[first:stop]
            shown = self.tokenizer.show(chunk).split()
            for place, token in enumerate(chunk.tolist()):
                word = self.alone[token] or " ".join(shown[i] for i in self.said_by(chunk, place))
                found.append(word or self._place(segment, int(first), place))
        return found

    def _place(self, segment: Encoded, first: int, place: int) -> str:
        """What a token says that has no word: a chunk begins, or so late in the chunk, quarter notes."""
        token = int(segment.ids[first + place])
        if self.tokenizer.grammar().cut[token]:
            return "|"
        if segment.clock is None:
            return f"id {token}"
        return f"@{segment.clock[first + place] - segment.clock[first]:.4g}"


def stream_words(vocabulary: Vocabulary, ids: np.ndarray, words: Mapping[str, list[str]]) -> list[str]:
    """(T,) a word for each token of a stream, given those of each segment: specials and tags by name."""
    rest = {name: iter(known) for name, known in words.items()}
    found = []
    for token, owner in zip(ids.tolist(), vocabulary.owner(ids).tolist(), strict=True):
        name = "" if owner < 0 else vocabulary.names[owner]
        if not name:
            found.append(SPECIALS[token])
        elif token == vocabulary.ranges[name].tag:
            found.append(f"<{name}>")
        else:
            found.append(next(rest[name]))
    return found
