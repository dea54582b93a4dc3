"""Control: whether a run writes what words or tags ask for.

What was made is looked at as a listener would: the key is found from the notes, the meter is read from the
bars and also heard without them, the kind of dance is guessed by a classifier. Beside each figure stand the
same listener's figure for the human tune that the prompt describes, which is as good as can be, and that of
the made tunes against another prompt's wishes, which is what luck brings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multimodal_gpt.evaluation import guessing
from multimodal_gpt.evaluation.context_gain import derange
from multimodal_gpt.evaluation.documents import holding, spread
from multimodal_gpt.evaluation.music import (
    Roles,
    content_of,
    heard_key,
    key_in_words,
    known_key,
    roles_of,
)
from multimodal_gpt.evaluation.prompts import DRAWN, HELD_OUT, Tune, spelt, tunes
from multimodal_gpt.evaluation.subject import Subject
from multimodal_gpt.evaluation.tables import HIGHER, MODEL, Row, Table, ratio_row
from multimodal_gpt.tokenizers._wishes import scale_of

HUMAN, WRONG = "human", "wrong prompt"
COLUMNS = (MODEL, HUMAN, WRONG)
QUICKLY = 800
"""Training documents that classifiers learn from where there is little time."""
ABOUT = (
    "Tunes made from prompts. Held out: what is known of held-out tunes; drawn: each attribute drawn by "
    "itself, keys equally often. human: the same detector on the tune that the prompt describes. wrong "
    "prompt: the made tunes against what another prompt asks for."
)


@dataclass(frozen=True, eq=False)
class Heard:
    """What is heard in one tune.

    Args:
        facts: field -> value; `meter` as written, `bars`, `key`, and where a classifier knows `type` and
            "meter heard".
        tones: (12,) how many notes of each pitch class there are.
    """

    facts: Mapping[str, str]
    tones: np.ndarray


Score = Callable[[str, Heard], tuple[float, float]]
"""What was asked and what was heard -> numerator and denominator."""


def control(subject: Subject) -> Table:
    """The table of the question; without rows where a run can't make melodies from words or tags."""
    roles = roles_of(subject.run)
    made = tunes(subject)
    if roles.melody is None or not made:
        return _table(
            (), ("no prompt in words or tags can be made of what is held out, or no melody be made",)
        )
    listener = Listener(subject, roles)
    found = listener.hear([tune.made[roles.melody] for tune in made])
    human = _humans(subject, roles, listener, made)
    rows: list[Row] = []
    for route in dict.fromkeys(tune.order.route for tune in made):
        for kind in (HELD_OUT, DRAWN):
            chosen = [i for i, t in enumerate(made) if (t.order.route, t.order.kind) == (route, kind)]
            group = _Group(f"{route}, {kind}", [made[i] for i in chosen], [found[i] for i in chosen], human)
            rows += group.rows(listener, subject.scope.seed)
    return _table(tuple(rows), (*listener.notes, *_notes(subject, roles, made)))


def _table(rows: tuple[Row, ...], notes: tuple[str, ...]) -> Table:
    return Table("control", "Does it write what it is asked for?", ABOUT, COLUMNS, rows, notes)


def _notes(subject: Subject, roles: Roles, made: Sequence[Tune]) -> list[str]:
    notes = ["tempo is not asked for: the ids of a melody do not tell it"]
    kinds = {(t.order.route, t.order.kind) for t in made}
    for route in (roles.words, roles.tags):
        for kind in (HELD_OUT, DRAWN):
            if route is not None and (route, kind) not in kinds:
                notes.append(
                    f"no prompts in {route}, {kind}: nothing is known to ask for, or nothing learnt it"
                )
    return notes


def _humans(subject: Subject, roles: Roles, listener: Listener, made: Sequence[Tune]) -> dict[str, Heard]:
    """What is heard in the human tunes that prompts describe, by source."""
    pieces = {t.order.piece.source: t.order.piece for t in made if t.order.piece is not None}
    contents = [content_of(subject.run.vocabulary, p, str(roles.melody)) for p in pieces.values()]
    return dict(zip(pieces, listener.hear(contents), strict=True))


class Listener:
    """Hears facts in melodies; its classifiers learn from the training documents of a subject."""

    def __init__(self, subject: Subject, roles: Roles) -> None:
        self.notes: list[str] = []
        self.describe = subject.run.vocabulary.tokenizer(str(roles.melody)).describe
        pieces = holding(subject.training, str(roles.melody))
        pieces = spread(pieces, QUICKLY if subject.scope.quick else None)
        contents = [content_of(subject.run.vocabulary, piece, str(roles.melody)) for piece in pieces]
        known = [spelt(piece.metadata) for piece in pieces]
        self.guessers: dict[str, guessing.Guesser] = {}
        for name, field in (("type", "type"), ("meter heard", "meter")):
            there = [i for i, facts in enumerate(known) if field in facts]
            features = [_features(name, contents[i]) for i in there]
            self._learn(name, features, [known[i][field] for i in there], subject.scope.seed)

    def _learn(self, name: str, features: Sequence[np.ndarray], labels: Sequence[str], seed: int) -> None:
        try:
            self.guessers[name] = guessing.Guesser(features, labels, seed)
        except ImportError:
            self.notes.append(f"'{name}' is left out: it needs scikit-learn ({guessing.NEEDED})")
        except ValueError as error:
            self.notes.append(f"'{name}' is left out: {error}")

    def hear(self, contents: Sequence[Any]) -> list[Heard]:
        """What is heard in melodies."""
        guessed = {
            name: guesser.guess([_features(name, content) for content in contents]) if contents else []
            for name, guesser in self.guessers.items()
        }
        return [
            self._heard(content, {n: g[i] for n, g in guessed.items()}) for i, content in enumerate(contents)
        ]

    def _heard(self, content: Any, guessed: Mapping[str, str]) -> Heard:
        told = self.describe(content)
        facts = {
            "key": key_in_words(heard_key(content.notes)),
            "meter": str(told["meter"]),
            "bars": str(told["bars"]),
        }
        return Heard({**facts, **guessed}, np.bincount(content.notes[:, 2] % 12, minlength=12))

    def knows(self, name: str, value: str) -> bool:
        """Whether this value can be heard at all."""
        return name not in ("type", "meter heard") or (
            name in self.guessers and value in self.guessers[name].classes
        )


def _features(name: str, content: Any) -> np.ndarray:
    return guessing.kind(content.notes, content.meters) if name == "type" else guessing.rhythm(content.notes)


# What counts


def _same(name: str) -> Score:
    return lambda asked, heard: (float(heard.facts[name] == asked), 1.0)


def _in_scale(asked: str, heard: Heard) -> tuple[float, float]:
    """Notes in the key's scale, of a minor key also the raised sixth and seventh, and all notes."""
    key = known_key(asked)
    inside = scale_of(key) if key is not None else np.ones(12, dtype=bool)
    return float(heard.tones[inside].sum()), float(heard.tones.sum())


def _near(asked: str, heard: Heard) -> tuple[float, float]:
    return float(abs(int(heard.facts["bars"]) - int(asked)) <= 1), 1.0


MEASURES: tuple[tuple[str, str, str, str, Score], ...] = (
    ("key", "key", "key", "share of tunes", _same("key")),
    ("notes in the key's scale", "key", "key", "share of notes", _in_scale),
    ("meter", "meter", "meter", "share of tunes", _same("meter")),
    ("meter, heard without bar lines", "meter", "meter heard", "share of tunes", _same("meter heard")),
    ("bars, exactly", "bars", "bars", "share of tunes", _same("bars")),
    ("bars, within one", "bars", "bars", "share of tunes", _near),
    ("type, guessed", "type", "type", "share of tunes", _same("type")),
)
"""Name, the field that is asked for, the fact that is heard, unit, score."""


@dataclass(frozen=True, eq=False)
class _Group:
    """Tunes of one route and kind of prompt, and what is heard in them."""

    name: str
    made: Sequence[Tune]
    heard: Sequence[Heard]
    human: Mapping[str, Heard]

    def rows(self, listener: Listener, seed: int) -> list[Row]:
        """A row for each thing that at least one prompt asks for and that can be heard."""
        rows = []
        for name, field, fact, unit, score in MEASURES:
            there = [i for i in range(len(self.made)) if self._asks(i, field, fact, listener)]
            if there:
                rows.append(
                    self._row(
                        f"{self.name}: {name}",
                        unit,
                        [(i, self.made[i].order.asked[field]) for i in there],
                        score,
                        seed,
                    )
                )
        return rows

    def _asks(self, number: int, field: str, fact: str, listener: Listener) -> bool:
        value = self.made[number].order.asked.get(field)
        return value is not None and listener.knows(fact, value)

    def _row(self, name: str, unit: str, asked: Sequence[tuple[int, str]], score: Score, seed: int) -> Row:
        """The mean over tunes of each tune's share, by column."""
        found = {MODEL: [_share(score(value, self.heard[i])) for i, value in asked]}
        pieces = [self.made[i].order.piece for i, _ in asked]
        if all(piece is not None for piece in pieces):
            human = [self.human[piece.source] for piece in pieces if piece is not None]
            found[HUMAN] = [_share(score(v, h)) for (_, v), h in zip(asked, human, strict=True)]
        if len(asked) > 1:
            others = derange(len(asked), seed).tolist()
            found[WRONG] = [
                _share(score(asked[other][1], self.heard[i]))
                for (i, _), other in zip(asked, others, strict=True)
            ]
        sources = ["" if piece is None else piece.source for piece in pieces]
        return ratio_row(name, unit, HIGHER, found, [1.0] * len(asked), sources)


def _share(parts: tuple[float, float]) -> float:
    return parts[0] / parts[1]
