"""What words say in a recipe's own phrases: facts out of captions, and captions that say one fact."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from multimodal_gpt.data.captions import Part, fields, parts
from multimodal_gpt.evaluation.prompts import FIELDS, spelt

_SHAPES = {"key": r"[A-G][#b]? (?:major|minor)", "meter": r"\d+/\d+", "bars": r"\d+"}
_ANYTHING, _NOTHING = ".+?", "(?!)"


@dataclass(frozen=True)
class Phrasing:
    """A template cut down to what it takes to say one field.

    Args:
        words: a str.format phrase.
        field: what it is to say.
        others: fields that it can't leave out.
    """

    words: str
    field: str
    others: tuple[str, ...]

    def of(self, value: str, facts: Mapping[str, str]) -> str:
        """The phrase with a value, and what is known of the other fields."""
        return self.words.format_map({**facts, self.field: value})


@dataclass(frozen=True)
class Wording:
    """The templates of a recipe read backwards.

    Args:
        templates: as in `data.captions.templates`.
        types: values that the field `type` may have.
    """

    templates: tuple[str, ...]
    types: tuple[str, ...]

    def facts(self, words: str) -> dict[str, str]:
        """What words say of FIELDS, by the first template that they fit from beginning to end; those come
        first that leave least open.

        Example:
            >>> Wording(("a {type}[ in {key}]", "{title}[, in {key}]"), ("jig",)).facts("Old Man, in G major")
            {'key': 'G major'}
        """
        for pattern in self._patterns:
            found = pattern.fullmatch(words.strip())
            if found:
                return spelt(found.groupdict())
        return {}

    @cached_property
    def _patterns(self) -> list[re.Pattern[str]]:
        def openness(template: str) -> int:
            return sum(name not in FIELDS for name in fields(template))

        return [re.compile(self._pattern(t), re.DOTALL) for t in sorted(self.templates, key=openness)]

    def _pattern(self, template: str) -> str:
        met: set[str] = set()
        return "".join(self._part(part, met) for part in parts(template))

    def _part(self, part: Part, met: set[str]) -> str:
        found = ""
        for literal, name, _, _ in string.Formatter().parse(part.words):
            found += re.escape(literal)
            if name is not None:
                found += f"(?P={name})" if name in met else f"(?P<{name}>{self._value(name)})"
                met.add(name)
        return f"(?:{found})?" if part.optional else found

    def _value(self, field: str) -> str:
        if field == "type":  # any words would be a type: "a {type}" is not to fit "a tune in 4/4"
            return "|".join(map(re.escape, sorted(self.types, key=len, reverse=True))) or _NOTHING
        return _SHAPES.get(field, _ANYTHING)

    def phrasing(self, field: str) -> Phrasing | None:
        """The phrase that says a field and as little else as can be; None where it takes more than FIELDS.

        Example:
            >>> Wording(("a {type}[ in {key}]", "a tune[ in {key}]"), ()).phrasing("key")
            Phrasing(words='a tune in {key}', field='key', others=())
        """
        ways = (_shortest(template, field) for template in self.templates)
        usable = [way for way in ways if way is not None and set(way.others) <= set(FIELDS)]
        return min(usable, key=lambda way: len(way.others), default=None)


def _shortest(template: str, field: str) -> Phrasing | None:
    kept = [part for part in parts(template) if not part.optional or field in part.fields]
    names = [name for part in kept for name in part.fields]
    if field not in names:
        return None
    others = tuple(sorted(set(names) - {field}))
    return Phrasing("".join(part.words for part in kept), field, others)


def most_common(values: Iterable[str]) -> str | None:
    """The value that comes most often, of equal ones the first in order; None of none."""
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return min(counts, key=lambda value: (-counts[value], value), default=None)


def bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU, 0 to 100, of texts with one or more references each.

    Papineni et al., "BLEU", ACL 2002, as sacrebleu computes it (Post, WMT 2018): 13a tokens, exponential
    smoothing. Raises ImportError where sacrebleu is missing.
    """
    import sacrebleu

    most = max(len(several) for several in references)
    # Each text needs as many: to repeat one changes nothing.
    streams = [[several[min(i, len(several) - 1)] for several in references] for i in range(most)]
    return float(sacrebleu.corpus_bleu(list(texts), streams).score)
