"""Which documents are held out: by hash of their group, so the same on every machine and in any order."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from multimodal_gpt.data.copies import Brief
from multimodal_gpt.data.duplicates import joined, near

CROWD = 20
"""A title that more documents share, and more than a twentieth of all, is none: "untitled", "track 1"."""


@dataclass(frozen=True)
class Split:
    """Group of every document, and the indexes of those in each split, in the order of the documents.

    `joined`: documents of groups that only contents hold together: they have several titles or places.
    """

    groups: tuple[str, ...]
    train: tuple[int, ...]
    valid: tuple[int, ...]
    joined: int

    @property
    def leaked(self) -> int:
        """Held-out documents of which a version is trained on; only held-out folders can hold such."""
        trained = {self.groups[i] for i in self.train}
        return sum(self.groups[i] in trained for i in self.valid)


def split_documents(briefs: Sequence[Brief], share: float, limit: int | None, seed: int) -> Split:
    """Held-out folders, where there are any, are the valid split; else groups are drawn by their hash.

    Both splits hold something where at least two documents and a share above 0 are given. `limit`: at
    most so many of each, drawn by seed and source.
    """
    names = piece_names(briefs)
    groups = group_names(names, [b.sketch for b in briefs])
    if any(b.held_out for b in briefs):
        held_out = {i for i, b in enumerate(briefs) if b.held_out}
    else:
        held_out = _drawn(groups, [b.source for b in briefs], share)
    train = [i for i in range(len(briefs)) if i not in held_out]
    sources = [b.source for b in briefs]
    return Split(
        tuple(groups),
        _limited(train, sources, limit, seed),
        _limited(sorted(held_out), sources, limit, seed),
        _mixed(groups, names),
    )


def group_names(names: Sequence[str], sketches: Sequence[bytes]) -> list[str]:
    """The smallest name in each document's group: what a name or near duplication joins, however
    indirectly.
    """
    first: dict[str, int] = {}
    same = [(first.setdefault(name, i), i) for i, name in enumerate(names)]
    labels = joined(len(names), [*same, *enumerate(near(sketches))])
    smallest: dict[int, str] = {}
    for label, name in zip(labels, names, strict=True):
        smallest[label] = min(name, smallest.get(label, name))
    return [smallest[label] for label in labels]


def _mixed(groups: Sequence[str], names: Sequence[str]) -> int:
    several = {group for group, name in zip(groups, names, strict=True) if name != group}
    return sum(group in several for group in groups)


def piece_names(briefs: Sequence[Brief]) -> list[str]:
    """What versions of a piece are called: the bare title, else the place without what follows the first
    dot.
    """
    titles = [bare_title(b.title) for b in briefs]
    count = Counter(titles)
    crowd = max(CROWD, len(briefs) // 20)
    return [t if t and count[t] <= crowd else _stem(b.source) for t, b in zip(titles, briefs, strict=True)]


def _stem(source: str) -> str:
    """`folk/001.tracks#2` -> `folk/001#2`: other versions of a file often differ by an inner suffix."""
    place, hash_sign, key = source.partition("#")
    folder, slash, name = place.rpartition("/")
    return f"{folder}{slash}{name.split('.')[0] or name}{hash_sign}{key}"


def bare_title(title: str) -> str:
    """A title without case, accents, punctuation, article and version number.

    Example:
        >>> bare_title("Séamus' Jig, The (2)")
        'seamus jig'
    """
    letters = unicodedata.normalize("NFKD", title).casefold()
    letters = "".join(c for c in letters if not unicodedata.combining(c))
    letters = re.sub(r"\(\s*\d+\s*\)\s*$", "", letters)
    words = re.sub("['`\N{RIGHT SINGLE QUOTATION MARK}]", "", letters)
    words = re.sub(r"[\W_]+", " ", words).strip()
    return re.sub(r"^(the|an?) (?=.)|(?<=.) (the|an?)$", "", words)


def _drawn(groups: Sequence[str], sources: Sequence[str], share: float) -> set[int]:
    if share == 0 or len(groups) < 2:
        return set()
    names = list(groups) if len(set(groups)) > 1 else list(sources)
    count = Counter(names)
    # A group of more than half of all documents is for training: drawn, it would leave little to learn from.
    place = {name: unit_hash(name) for name in count if 2 * count[name] <= len(names)}
    ranked = sorted(place, key=lambda name: (place[name], name))
    chosen = {name for name in ranked if place[name] < share} or {ranked[0]}
    if len(chosen) == len(count):
        chosen.discard(ranked[-1])
    return {i for i, name in enumerate(names) if name in chosen}


def unit_hash(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def _limited(indexes: Sequence[int], sources: Sequence[str], limit: int | None, seed: int) -> tuple[int, ...]:
    if limit is None or len(indexes) <= limit:
        return tuple(indexes)
    drawn = sorted(indexes, key=lambda i: (unit_hash(f"{seed} {sources[i]}"), sources[i]))[:limit]
    return tuple(sorted(drawn))
