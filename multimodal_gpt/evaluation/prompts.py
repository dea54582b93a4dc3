"""What a run is asked to write, in words and in tags, and the tunes it writes then.

Prompts come from held-out documents (their captions, their tags), and from attributes drawn one by one, so
that nothing but the prompt itself can tell what fits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from multimodal_gpt.data.captions import phrases, seeded
from multimodal_gpt.errors import UserError
from multimodal_gpt.evaluation.documents import Piece, holding, spread
from multimodal_gpt.evaluation.making import USUAL, Prompt, is_trained, make
from multimodal_gpt.evaluation.music import Roles, key_in_words, known_key, roles_of
from multimodal_gpt.evaluation.subject import Subject
from multimodal_gpt.stream.arrangement import Part
from multimodal_gpt.stream.vocabulary import Encoded
from multimodal_gpt.tokenizers._music import shift_signature

FIELDS = ("key", "meter", "type", "bars")
HELD_OUT, DRAWN = "held out", "drawn"
COMMON = 5
"""Training documents in which a value must occur to be asked for."""
FULL = 0.9
"""Share of the context that a tune of so many bars may take, for so many to be asked for."""


@dataclass(frozen=True, eq=False)
class Order:
    """One prompt.

    Args:
        route: name of the modality that says it.
        kind: HELD_OUT or DRAWN.
        asked: field -> value, in one spelling.
        given: the prompt.
        piece: the document that it describes; None where there is none.
    """

    route: str
    kind: str
    asked: Mapping[str, str]
    given: Mapping[str, Encoded]
    piece: Piece | None = None


@dataclass(frozen=True, eq=False)
class Tune:
    """What was made for a prompt: contents by modality."""

    order: Order
    made: Mapping[str, Any]


def spelt(facts: Mapping[str, Any]) -> dict[str, str]:
    """The facts about FIELDS in one spelling; a key that is none and bars that are no number are left out.

    Example:
        >>> spelt({"key": "Gb major", "bars": 16, "type": "", "title": "A"})
        {'key': 'F# major', 'bars': '16'}
    """
    found: dict[str, str] = {}
    for field in FIELDS:
        value = facts.get(field)
        key = known_key(value) if field == "key" else None
        if key is not None:
            found[field] = key_in_words(key)
        elif field != "key" and value not in (None, "") and (field != "bars" or str(value).isdigit()):
            found[field] = str(value)
    return found


def part_of(subject: Subject, roles: Roles) -> Part:
    """What is made together: the melody, and where most documents have them the chords, taking turns as an
    arrangement has it.
    """
    melody = str(roles.melody)
    pieces = holding(subject.training or subject.pieces, melody)
    if roles.chords is not None and 2 * len(holding(pieces, roles.chords)) >= len(pieces):
        for arrangement in subject.run.arrangements:
            for part in arrangement.order:
                if set(part) == {melody, roles.chords}:
                    return part
    return (melody,)


@lru_cache(maxsize=1)  # two questions look at the same tunes
def tunes(subject: Subject) -> tuple[Tune, ...]:
    """A tune for each prompt, by words and by tags, held out and drawn; none where a run can't make any."""
    roles = roles_of(subject.run)
    if roles.melody is None:
        return ()
    wanted = part_of(subject, roles)
    orders = [*_held_out(subject, roles), *_drawn(subject, roles)]
    orders = [order for order in orders if is_trained(subject.run, wanted, tuple(order.given))]
    prompts = [Prompt(order.given, (subject.scope.seed, number)) for number, order in enumerate(orders)]
    made = make(subject.run, wanted, prompts, USUAL, subject.advance)
    return tuple(Tune(order, piece) for order, piece in zip(orders, made, strict=True) if piece is not None)


# Prompts from held-out documents


def _held_out(subject: Subject, roles: Roles) -> list[Order]:
    pieces, most = holding(subject.pieces, str(roles.melody)), subject.scope.samples
    worded = [order for piece in pieces if (order := _worded(piece, roles)) is not None]
    tagged = [order for piece in pieces if (order := _tagged(subject, piece, roles)) is not None]
    return [*_some(worded, most), *_some(tagged, most)]


def _some(orders: Sequence[Order], most: int) -> list[Order]:
    chosen = spread([order.piece for order in orders if order.piece is not None], most)
    return [order for order in orders if order.piece in chosen]


def _worded(piece: Piece, roles: Roles) -> Order | None:
    """The caption that states most."""
    stated = [(spelt(facts), words) for words, facts in piece.captions]
    if roles.words is None or not stated:
        return None
    facts, words = max(stated, key=lambda both: len(both[0]))
    return Order(roles.words, HELD_OUT, facts, {roles.words: words}, piece) if facts else None


def _tagged(subject: Subject, piece: Piece, roles: Roles) -> Order | None:
    if roles.tags is None or roles.tags not in piece.segments:
        return None
    segment = piece.segments[roles.tags]
    facts = spelt(_told(subject, roles.tags, segment))
    return Order(roles.tags, HELD_OUT, facts, {roles.tags: segment}, piece) if facts else None


def _told(subject: Subject, tags: str, segment: Encoded) -> dict[str, Any]:
    """What tags say, without those that stand for any other value."""
    tokenizer = subject.run.vocabulary.tokenizer(tags)
    return tokenizer.describe(tokenizer.decode(segment.ids))


# Prompts drawn one attribute at a time


def _drawn(subject: Subject, roles: Roles) -> list[Order]:
    orders: list[Order] = []
    pool = pools(subject, roles)
    for number in range(subject.scope.samples if pool else 0):
        rng = np.random.default_rng([subject.scope.seed, number])
        facts = draw(pool, rng)
        for order in (_in_words(subject, roles, facts, number), _in_tags(subject, roles, facts)):
            orders += [] if order is None else [order]
    return orders


def pools(subject: Subject, roles: Roles) -> dict[str, list[Any]]:
    """Values that training has met often enough, by field; under "type" pairs of a type and a meter that
    some training document has, so that no prompt asks for a waltz in 6/8. Keys are moved as training moved
    them.
    """
    known = [spelt(piece.metadata) for piece in holding(subject.training, str(roles.melody))]
    least = min(COMMON, max(1, len(known) // 20))
    pool: dict[str, list[Any]] = {}
    for field in FIELDS:
        counts = Counter(facts[field] for facts in known if field in facts)
        pool[field] = sorted(value for value, times in counts.items() if times >= least)
    keys = {
        shift_signature(known_key(key), steps)
        for key in pool["key"]
        for steps in subject.run.recipe.data.shifts
    }
    pool["key"] = sorted(key_in_words(key) for key in keys if key is not None)
    pool["bars"] = [bars for bars in pool["bars"] if int(bars) <= _longest(subject, roles)]
    kinds = {(f["type"], f["meter"]) for f in known if {"type", "meter"} <= set(f)}
    pool["type"] = sorted(pair for pair in kinds if pair[0] in pool["type"] and pair[1] in pool["meter"])
    return {field: values for field, values in pool.items() if values}


def _longest(subject: Subject, roles: Roles) -> float:
    """Bars that fit the context, for half of the training documents."""
    part = part_of(subject, roles)
    pieces = holding(subject.training, *part) or holding(subject.training, str(roles.melody))
    bars = [
        sum(len(p.segments[n].ids) for n in part if n in p.segments) / (len(p.segments[part[0]].edges) - 1)
        + (len(part) if len(part) > 1 else 0)
        for p in pieces
        if part[0] in p.segments
    ]
    return FULL * subject.run.engine.context / float(np.median(bars)) if bars else 0.0


def draw(pool: Mapping[str, Sequence[Any]], rng: np.random.Generator) -> dict[str, str]:
    """A value for each field, each equally likely; where a type was drawn, the meter is one of its own."""

    def one(values: Sequence[Any]) -> str:
        return str(values[int(rng.integers(len(values)))])

    facts = {field: one(pool[field]) for field in ("key", "meter", "bars") if field in pool}
    if "type" in pool:
        facts["type"] = one(sorted({kind for kind, _ in pool["type"]}))
        facts["meter"] = one([meter for kind, meter in pool["type"] if kind == facts["type"]])
    return facts


def _in_words(subject: Subject, roles: Roles, facts: Mapping[str, str], number: int) -> Order | None:
    """The first phrase, in random order, that a template of the recipe makes of these facts alone."""
    captions = subject.run.recipe.data.captions
    if roles.words is None or captions.into != roles.words:
        return None
    for phrase in phrases(captions.templates, facts, 0.0, seeded(subject.scope.seed, number)):
        stated = spelt(phrase.facts)
        try:
            content = subject.run.content(roles.words, phrase.words)
        except UserError:
            continue
        if stated:
            words = subject.run.vocabulary.encode(roles.words, content)
            return Order(roles.words, DRAWN, stated, {roles.words: words})
    return None


def _in_tags(subject: Subject, roles: Roles, facts: Mapping[str, str]) -> Order | None:
    if roles.tags is None:
        return None
    tokenizer = subject.run.vocabulary.tokenizer(roles.tags)
    content = tokenizer.compose(facts) if hasattr(tokenizer, "compose") else None
    if content is None:
        return None
    segment = subject.run.vocabulary.encode(roles.tags, content)
    told = spelt(_told(subject, roles.tags, segment))
    return Order(roles.tags, DRAWN, told, {roles.tags: segment}) if told else None
