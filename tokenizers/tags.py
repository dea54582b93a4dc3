"""Explicit controls: what a piece is, in named fields; "key=D major meter=6/8 type=jig".

Options of `build` and `fit`:
    fields    field -> a list of its values, or "known" (the built-in list of key, mode, meter, tempo, bars),
              or "learn" (values that occur often enough in the training documents)
    at_least  documents in which a value must occur to be learnt

Values are brought to one spelling first, so that 138.0, "fast" and "Fast" are the same tempo:
    key    24 names, "D major"; a mode counts as the major or minor key on its tonic, its name is `mode`
    mode   where it is neither major nor minor
    meter  the usable ones of the shared grid: 2/2 is the equally long 4/4
    tempo  by quarter notes per minute: very slow < 60 <= slow < 84 <= medium < 116 <= fast < 152 <= very fast
    bars   exactly up to 64, then "65-128" and "129+"
Every field ends with "other", which stands for all values that are not in its list.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from multimodal_gpt.errors import UserError, nearest
from multimodal_gpt.files import is_file, read_text, write_text
from multimodal_gpt.stream.grammar import Grammar
from multimodal_gpt.stream.tokenizer import Item
from multimodal_gpt.tokenizers._music import METERS, key_name, normalise_meter, parse_key, shift_signature

FIELDS = {
    "type": "learn",
    "key": "known",
    "mode": "known",
    "meter": "known",
    "tempo": "known",
    "bars": "known",
}
OTHER = "other"
MODES = ("dorian", "phrygian", "lydian", "mixolydian", "locrian")
TEMPOS = ("very slow", "slow", "medium", "fast", "very fast")
TEMPO_EDGES = (60, 84, 116, 152)
"""Quarter notes per minute: where the next name begins."""
EXACT_BARS, LONG_BARS = 64, 128
BARS = (*map(str, range(1, EXACT_BARS + 1)), f"{EXACT_BARS + 1}-{LONG_BARS}", f"{LONG_BARS + 1}+")

Content = Mapping[str, str]
Fields = Mapping[str, "Sequence[object] | str"]


@dataclass(frozen=True, eq=False)
class Tags:
    """Content is a dict of field -> value; one token per tag, fields in the order of `fields`.

    Args:
        fields: field -> its values, the last of them "other".
    """

    fields: Mapping[str, tuple[str, ...]]
    suffixes = (".tags",)
    unit = "tag"

    @property
    def size(self) -> int:
        """Number of local ids."""
        return len(self._tokens)

    def read(self, path: Path) -> Iterator[Item]:
        """The tags of a file with one "field=value" a line; nothing for a blank file. Raises UserError."""
        content = {}
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            field, equals, value = line.partition("=")
            if equals and value.strip():
                content[field.strip()] = spell(self._known(field.strip()), value)
            elif line.strip():
                raise UserError(f"line {number} is not field=value: {line.strip()[:40]!r}", path)
        if content:
            yield Item("", content)

    def write(self, content: Content, path: Path, *, append: bool = False, note: str = "") -> Path:
        """One "field=value" a line, the reverse of `read`; a note has no place."""
        before = read_text(path) if append and path.is_file() else ""
        return write_text(path, before + "".join(f"{f}={v}\n" for f, v in content.items()))

    def parse(self, text: str) -> dict[str, str]:
        """Tags as typed, "key=D major meter=6/8", or the path of a .tags file.

        Raises UserError with the nearest known name for an unknown field or value.
        """
        if text.lower().endswith(self.suffixes) and is_file(text):
            text = " ".join(f"{f}={v}" for i in self.read(Path(text)) for f, v in i.content.items())
        content = {}
        for field, value in _split(text):
            content[field] = spell(self._known(field), value)
            learnt = len(self.fields[field]) > 1  # else every value is as good: the lists are still to come
            if learnt and content[field] not in self.fields[field]:
                raise UserError(
                    f"unknown {field} {value!r}", "tags", nearest(content[field], self.fields[field])
                )
        if not content:
            raise UserError("there is no tag", "tags", f"write field=value; fields: {', '.join(self.fields)}")
        return content

    def compose(self, metadata: Mapping[str, Any]) -> dict[str, str] | None:
        """Tags from what is known about a document; None where no field is known."""
        known = {f: metadata[f] for f in self.fields if isinstance(metadata.get(f), str | int | float)}
        content = {field: spell(field, value) for field, value in known.items() if str(value).strip()}
        return content or None

    def encode(self, content: Content) -> np.ndarray:
        """(T,) int32, one id per tag; a value that is not in its field's list becomes "other"."""
        if not content:
            raise UserError("there is no tag", "tags")
        given = {self._known(field): spell(field, value) for field, value in content.items()}
        tags = [(f, given[f] if given[f] in self.fields[f] else OTHER) for f in self.fields if f in given]
        return np.array([self._ids[tag] for tag in tags], dtype=np.int32)

    def decode(self, ids: np.ndarray) -> dict[str, str]:
        """The tags of ids, the reverse of `encode`."""
        if not self._grammar.accepts(ids):
            raise UserError("these ids are no tags: a field comes twice, or out of order")
        return dict(self._tokens[i] for i in np.asarray(ids).tolist())

    def grammar(self) -> Grammar:
        """Fields in their order, each at most once, at least one."""
        return self._grammar

    def clock(self, ids: np.ndarray) -> None:
        """Tags are timeless."""
        return

    def cuts(self, ids: np.ndarray) -> np.ndarray:
        """None: tags are never cut."""
        return np.zeros(0, dtype=np.int64)

    def units(self, content: Content) -> int:
        """Tags."""
        return len(content)

    def describe(self, content: Content) -> dict[str, Any]:
        """The tags themselves, without those that say no more than "other"."""
        spelt = {field: spell(field, value) for field, value in content.items()}
        return {field: value for field, value in spelt.items() if value != OTHER}

    def show(self, ids: np.ndarray) -> str:
        """The tags as `parse` reads them."""
        return " ".join("=".join(self._tokens[i]) for i in np.asarray(ids).tolist())

    def shift(self, content: Content, steps: int) -> dict[str, str] | None:
        """The same tags with the key some semitones higher; None where that key is not in the list."""
        signature = parse_key(content.get("key", ""))
        if signature is None:
            return dict(content)
        moved = key_name(shift_signature(signature, steps) or signature)
        return {**content, "key": moved} if moved in self.fields["key"] else None

    def _known(self, field: str) -> str:
        if field not in self.fields:
            raise UserError(f"unknown field {field!r}", "tags", nearest(field, self.fields))
        return field

    @cached_property
    def _tokens(self) -> list[tuple[str, str]]:
        return [(field, value) for field, values in self.fields.items() for value in values]

    @cached_property
    def _ids(self) -> dict[tuple[str, str], int]:
        return {tag: i for i, tag in enumerate(self._tokens)}

    @cached_property
    def _grammar(self) -> Grammar:
        # State 0 is the start, state i + 1 comes after a tag of field i.
        state = np.repeat(np.arange(len(self.fields)), [len(v) for v in self.fields.values()]) + 1  # (V,)
        before = np.arange(len(self.fields) + 1)[:, None]  # (S, 1)
        table = np.where(state > before, state, -1).astype(np.int32)
        return Grammar(table, final=before[:, 0] > 0, cut=np.zeros(len(state), dtype=bool))


def fit(
    contents: Iterable[Content], folder: Path, fields: Fields | None = None, at_least: int = 5
) -> dict[str, Any]:
    """Learn the values of the fields marked "learn"; gives options in which every field is a plain list."""
    wanted = fields or FIELDS
    counts: Counter[tuple[str, str]] = Counter()
    for content in contents:
        counts.update({(field, spell(field, value)) for field, value in content.items()})
    learnt = {
        field: sorted(v for (f, v), n in counts.items() if f == field and n >= at_least)
        for field, values in wanted.items()
        if values == "learn"
    }
    return {"fields": {f: _values(f, learnt.get(f, values))[:-1] for f, values in wanted.items()}}


def build(fields: Fields | None = None, at_least: int = 5) -> Tags:
    """A tags tokenizer; see the top of this file. A field still to be learnt knows only "other"."""
    if not isinstance(fields or FIELDS, Mapping):
        raise UserError(f"fields is {fields!r}", fix="write field: [value, value], one field a line")
    return Tags({field: tuple(_values(field, values)) for field, values in (fields or FIELDS).items()})


def _values(field: str, given: Sequence[object] | str) -> list[str]:
    """The values of a field in order, each once, "other" at the end."""
    if not re.fullmatch(r"\w+", field):
        raise UserError(f"field {field!r} is not one word", "fields")
    if given == "learn":
        given = []
    elif given == "known" and field in KNOWN:
        given = KNOWN[field]
    elif isinstance(given, str) or not isinstance(given, Sequence):
        fix = f"give a list, or learn, or known (for {', '.join(KNOWN)})"
        raise UserError(f"the values are {given!r}", f"fields.{field}", fix)
    values = [spell(field, value) for value in given]
    return [*dict.fromkeys(v for v in values if v not in ("", OTHER)), OTHER]


def _split(text: str) -> list[tuple[str, str]]:
    """(field, value) pairs of "key=D major meter=6/8"; commas and semicolons may stand between them."""
    before, *rest = re.split(r"(?:^|[\s,;]+)(\w+)\s*=", text)
    if before.strip() or not rest:
        raise UserError(f"{text.strip()[:40]!r} is not field=value", "tags", "example: key=D major meter=6/8")
    pairs = [(f, v.strip(" ,;\"'")) for f, v in zip(rest[::2], rest[1::2], strict=True)]
    empty = next((field for field, value in pairs if not value), None)
    if empty:
        raise UserError(f"field {empty!r} has no value", "tags")
    return pairs


# --------------------------------------------------------------------------------- spelling


def spell(field: str, value: object) -> str:
    """The one spelling of a value in a field.

    Example:
        >>> spell("key", "Dmaj"), spell("meter", "2/2"), spell("tempo", 138.0), spell("type", " Slip  Jig")
        ('D major', '4/4', 'fast', 'slip jig')
    """
    return _spelt(field, str(value))


@lru_cache(maxsize=4096)
def _spelt(field: str, words: str) -> str:
    return _SPELL.get(field, str.lower)(" ".join(words.split()))


def _key(plain: str) -> str:
    signature = parse_key(plain)
    return plain.lower() if signature is None else key_name(shift_signature(signature, 0) or signature)


def _meter(plain: str) -> str:
    written = {"C": "4/4", "C|": "2/2"}.get(plain, plain)
    match = re.fullmatch(r"(\d{1,3})/(\d{1,3})", written)
    return "{}/{}".format(*normalise_meter(int(match[1]), int(match[2]))) if match else plain.lower()


def _tempo(plain: str) -> str:
    match = re.fullmatch(r"(\d{1,4}(?:\.\d*)?)(?: ?bpm)?", plain.lower())
    return TEMPOS[bisect_right(TEMPO_EDGES, float(match[1]))] if match else plain.lower()


def _bars(plain: str) -> str:
    if not re.fullmatch(r"0*[1-9]\d{0,8}", plain):
        return plain.lower()
    bars = int(plain)
    return str(bars) if bars <= EXACT_BARS else BARS[-2] if bars <= LONG_BARS else BARS[-1]


_SPELL = {"key": _key, "meter": _meter, "tempo": _tempo, "bars": _bars}
KNOWN: Mapping[str, Sequence[str]] = {
    "key": [key_name((sharps, minor)) for minor in (False, True) for sharps in range(-5, 7)],
    "mode": MODES,
    "meter": [f"{numerator}/{denominator}" for denominator, row in METERS.items() for numerator in row],
    "tempo": TEMPOS,
    "bars": BARS,
}
"""Built-in values of fields."""
