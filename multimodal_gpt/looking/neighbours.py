"""Neighbours: which rows of the embedding table lie in the same direction as a token's.

Two things have to be taken out before an angle says anything:

- Rows of ids that training never showed. All that ever moved them is the softmax, away from every answer at
  once, so they end in one direction, the same as the reserved ids. Of 1,403 rows of a run on folk tunes 883
  had a cosine above 0.99 with the mean of the reserved ones, and each of them was the nearest to the others.
- What a modality's rows share. Each row is taken minus the mean of those of its modality that were met.
  Within a modality that hardly matters: of the 10 nearest pitches 0.37 were a fourth or a fifth away without
  and 0.35 with it, and of 12 roots the two nearest were the fifths both times. Across modalities it does: of
  the ten nearest to the tag `meter=6/8` four said 6/8, 6 or jig with it and two without, and the tag `key=D
  major` found the root and the word D only with it.

V rows of the table, D width, N candidates, P tokens of a word.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from multimodal_gpt.errors import UserError, nearest
from multimodal_gpt.generation.session import Run
from multimodal_gpt.looking.words import Words
from multimodal_gpt.stream.grammar import Grammar
from multimodal_gpt.stream.tokenizer import Tokenizer
from multimodal_gpt.stream.vocabulary import SPECIALS, Vocabulary

NEVER_MET = 0.9
"""Cosine with the mean of the reserved rows from which on a row counts as never met, or hardly ever."""
LONGEST_WORD = 16
"""Tokens of a segment that one word may stand for."""
MOST_CANDIDATES = 20_000
"""Words of several tokens that are compared; of more only those that differ in one token."""


@dataclass(frozen=True)
class Neighbour:
    """A token, or a word of several, near another one.

    Args:
        word: as its modality shows it; "Cm [2/2]" is the second of the two tokens that say Cm.
        modality: where it belongs.
        similarity: cosine, -1 to 1.
    """

    word: str
    modality: str
    similarity: float


@dataclass(frozen=True)
class Neighbours:
    """The nearest to one meaning of what was asked for.

    Args:
        word, modality: the meaning, as its modality shows it.
        tokens: local ids that say it.
        nearest: the nearest first.
        unseen: how many ids of the vocabulary were left out because training never showed them.
    """

    word: str
    modality: str
    tokens: tuple[int, ...]
    nearest: tuple[Neighbour, ...]
    unseen: int


@dataclass(frozen=True, eq=False)
class Meaning:
    """What a token as typed stands for in one modality: places of a shortest segment that says it."""

    modality: str
    word: str
    ids: np.ndarray
    places: tuple[int, ...]
    number: int | None = None

    @property
    def tokens(self) -> tuple[int, ...]:
        """Local ids of the word."""
        return tuple(int(self.ids[place]) for place in self.places)


@dataclass(frozen=True, eq=False)
class Table:
    """The embedding table of a run, its rows compared."""

    vocabulary: Vocabulary
    rows: np.ndarray

    @cached_property
    def met(self) -> np.ndarray:
        """(V,) bool: rows that training showed the model."""
        size = self.vocabulary.size
        reserved = [i for i, name in enumerate(SPECIALS) if name.startswith("<reserved")]
        away = _unit(_unit(np.concatenate((self.rows[reserved], self.rows[size:]))).mean(axis=0))
        return np.asarray(_unit(self.rows) @ away < NEVER_MET)

    @cached_property
    def centred(self) -> np.ndarray:
        """(V, D) rows minus the mean of their modality's rows that were met."""
        centred = self.rows.copy()
        for name in self.vocabulary.names:
            met = self.ids(name)
            if len(met):
                place = self.vocabulary.ranges[name]
                centred[place.first : place.stop] -= self.rows[met].mean(axis=0)
        return centred

    @cached_property
    def words(self) -> dict[str, Words]:
        """Modality -> its tokens in words."""
        return {name: Words(tokenizer) for name, tokenizer in self.vocabulary.tokenizers.items()}

    def ids(self, name: str) -> np.ndarray:
        """(N,) global ids of a modality that were met."""
        place = self.vocabulary.ranges[name]
        return np.flatnonzero(self.met[place.first : place.stop]) + place.first

    def vectors(self, name: str, tokens: np.ndarray) -> np.ndarray:
        """(N, D) of words of (N, P) local ids: the mean of their tokens' centred rows."""
        return self.centred[tokens + self.vocabulary.ranges[name].first].mean(axis=1)  # type: ignore[no-any-return]


def open_table(run: Run) -> Table:
    """The table of a run."""
    return Table(run.vocabulary, run.net.embedding.weight.detach().double().cpu().numpy())


def neighbours(
    run: Run, token: str, *, n: int = 10, modality: str | None = None, among: str | None = None
) -> tuple[Neighbours, ...]:
    """The nearest tokens to a token, for each of its meanings.

    A word that takes several tokens (a chord's root and its quality) is the mean of their rows, and of its
    own modality it is compared with the words made of tokens of the same kinds.

    Args:
        run: a trained run.
        token: as a modality shows it or reads it.
        n: how many.
        modality: whose token it is; every one that knows it if None.
        among: modality of the neighbours; any if None.

    Raises UserError where no modality knows it or training never showed it.
    """
    if among is not None:
        run.vocabulary.range(among)
    table = open_table(run)
    return tuple(_nearest(table, meaning, n, among) for meaning in meanings(table, token, modality))


def meanings(table: Table, token: str, modality: str | None) -> list[Meaning]:
    """What a token as typed may stand for and was met in training. Raises UserError where nothing is."""
    vocabulary = table.vocabulary
    if modality is not None:
        vocabulary.range(modality)
    names = vocabulary.names if modality is None else (modality,)
    found = [meaning for name in names for meaning in _meanings_in(table, name, token)]
    if not found:
        known = {_bare(word) for name in names for word in table.words[name].alone if word}
        raise UserError(f"'{token}' is no token of {', '.join(names)}", fix=_hint(token, known))
    met = [m for m in found if all(table.met[t + vocabulary.ranges[m.modality].first] for t in m.tokens)]
    if not met:
        where = ", ".join(dict.fromkeys(m.modality for m in found))
        raise UserError(f"'{token}' came too rarely in training, or never: its place says nothing", where)
    return met


def _hint(token: str, known: set[str]) -> str:
    """The nearest words, or nothing where all of them would be listed."""
    same = sorted(word for word in known if word.casefold() == token.casefold())
    hint = f"did you mean '{same[0]}'?" if same else nearest(token, known)
    return hint if hint.startswith("did") else ""


def _meanings_in(table: Table, name: str, token: str) -> Iterator[Meaning]:
    tokenizer, words = table.vocabulary.tokenizers[name], table.words[name]
    same = [i for i, word in enumerate(words.alone) if token and word and token in (word, _bare(word))]
    for number in same:
        yield Meaning(name, words.alone[number], np.array([number]), (0,))
    if not same:
        spelled = _spelled(tokenizer, words, token)
        if spelled is not None:
            yield Meaning(name, *spelled)


def _bare(word: str) -> str:
    """A word without the quotes and blanks around it."""
    return word.strip().strip("'\"").strip()


def _spelled(
    tokenizer: Tokenizer, words: Words, token: str
) -> tuple[str, np.ndarray, tuple[int, ...], int] | None:
    """The word, the segment that reading `token` gives, the places in it that say the word, and which of the
    shown words it is; None where the modality can't read it as one word.
    """
    ids = _read(tokenizer, token)
    if ids is None:
        return None
    for number, word in enumerate(tokenizer.show(ids).split()):
        again = _read(tokenizer, word)
        if again is not None and np.array_equal(again, ids):
            places = tuple(p for p in range(len(ids)) if number in words.said_by(ids, p))
            return (word, ids, places, number) if places else None
    return None


def _read(tokenizer: Tokenizer, text: str) -> np.ndarray | None:
    try:
        ids = tokenizer.encode(tokenizer.parse(text))
    except UserError:
        return None
    return ids if 0 < len(ids) <= LONGEST_WORD else None


def _nearest(table: Table, meaning: Meaning, n: int, among: str | None) -> Neighbours:
    vocabulary, own = table.vocabulary, np.array([meaning.tokens])
    (goal,) = _unit(table.vectors(meaning.modality, own))
    found: list[tuple[float, str, tuple[int, ...]]] = []
    for name in vocabulary.names if among is None else (among,):
        tokens = table.ids(name)[:, None] - vocabulary.ranges[name].first
        if name == meaning.modality:
            tokens = tokens if len(meaning.places) == 1 and meaning.number is None else alike(table, meaning)
            tokens = tokens[(tokens != own).any(axis=1)]
        if len(tokens):
            similar = _unit(table.vectors(name, tokens)) @ goal
            best = np.argsort(-similar, kind="stable")[:n]
            found += [(float(similar[i]), name, tuple(tokens[i].tolist())) for i in best]
    found.sort(key=lambda item: -item[0])
    listed = (Neighbour(_word(table, name, meaning, t), name, round(s, 4)) for s, name, t in found[:n])
    unseen = vocabulary.size - len(SPECIALS) - len(vocabulary.names)
    unseen -= sum(len(table.ids(name)) for name in vocabulary.names)
    return Neighbours(meaning.word, meaning.modality, meaning.tokens, tuple(listed), unseen)


def alike(table: Table, meaning: Meaning) -> np.ndarray:
    """(N, P) local ids of the words that are made like a meaning: each token of the same kind, and met."""
    words, first = table.words[meaning.modality], table.vocabulary.ranges[meaning.modality].first
    kinds = [[int(t) for t in words.kind(token) if table.met[t + first]] for token in meaning.tokens]
    if math.prod(len(kind) for kind in kinds) <= MOST_CANDIDATES:
        return np.array(list(itertools.product(*kinds)))
    changed = [
        [*meaning.tokens[:place], other, *meaning.tokens[place + 1 :]]
        for place, kind in enumerate(kinds)
        for other in kind
    ]
    return np.unique(np.array(changed), axis=0)


def _word(table: Table, name: str, meaning: Meaning, tokens: Sequence[int]) -> str:
    """A neighbour in words."""
    if name == meaning.modality and meaning.number is not None:
        return spell(table, meaning, tokens)
    return say(table.words[name], int(tokens[0]))


def spell(table: Table, meaning: Meaning, tokens: Sequence[int]) -> str:
    """The word that other tokens make in the places of a meaning's."""
    if meaning.number is None:
        return say(table.words[meaning.modality], int(tokens[0]))
    changed = meaning.ids.copy()
    changed[list(meaning.places)] = tokens
    return table.vocabulary.tokenizers[meaning.modality].show(changed).split()[meaning.number]


def say(words: Words, token: int) -> str:
    """A single id in words: by itself, else by the word that it helps to say in a shortest segment."""
    if words.alone[token]:
        return words.alone[token]
    ids, place = example(words.tokenizer.grammar(), token)
    numbers = words.said_by(ids, place)
    if not numbers:
        return f"id {token}"
    word = " ".join(words.tokenizer.show(ids).split()[number] for number in numbers)
    parts = [p for p in range(len(ids)) if set(words.said_by(ids, p)) & set(numbers)]
    return f"{word} [{parts.index(place) + 1}/{len(parts)}]" if len(parts) > 1 else word


def example(grammar: Grammar, token: int) -> tuple[np.ndarray, int]:
    """A shortest legal segment that holds a token, and its place in it."""
    paths: dict[int, list[int]] = {0: []}
    queue = [0]
    legal = grammar.next_state[:, token] >= 0
    while queue and not legal[queue[0]]:
        state = queue.pop(0)
        after = grammar.next_state[state]
        for step in np.flatnonzero(after >= 0).tolist():
            if int(after[step]) not in paths:
                paths[int(after[step])] = [*paths[state], step]
                queue.append(int(after[step]))
    if not queue:
        raise ValueError(f"no segment can hold token {token}")
    ids = [*paths[queue[0]], token]
    place, state = len(ids) - 1, int(grammar.next_state[queue[0], token])
    while not grammar.final[state]:
        after = grammar.next_state[state]
        distance = np.where(after >= 0, grammar.to_final[after], np.iinfo(np.int32).max)
        ids.append(int(distance.argmin()))
        state = int(after[ids[-1]])
    return np.array(ids, dtype=np.int32), place


def _unit(rows: np.ndarray) -> np.ndarray:
    """(..., D) of length 1."""
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-12))
