"""Step 3 of preparing: every group of files read by worker processes, and what is kept of all documents."""

from __future__ import annotations

import pickle
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from multimodal_gpt import console
from multimodal_gpt.data.copies import Brief, Rules
from multimodal_gpt.data.corpus import Group, split_again
from multimodal_gpt.data.engines import Engine
from multimodal_gpt.data.parts import Packed, Parts, Place, Reference
from multimodal_gpt.data.pool import Lost, Task
from multimodal_gpt.data.reading import Skip
from multimodal_gpt.data.work import make_reader

BYTES_PER_LIMIT = 65536
"""`seconds_per_file` is granted for every so many bytes begun: a large file has its time."""

NOTHING: Mapping[str, Any] = {}
"""One for all briefs: an empty dict has 64 bytes."""


@dataclass
class Found:
    """All documents in the order of their names: the little that is kept of each in memory.

    Args:
        keys: of the groups that they are in.
        briefs, places: of each document; a brief here knows no tracks, errors and templates.
        skips: what can't be used.
        references: files that lines of .jsonl files name.
        earlier: documents that an earlier run has read.
    """

    keys: set[bytes]
    briefs: list[Brief] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    references: set[Reference] = field(default_factory=set)
    earlier: int = 0


def collect(
    run: Engine, groups: Sequence[Group], rules: Rules, parts: Parts, seconds: float, *, progress: bool
) -> Found:
    """Have those groups read whose answers are not among the parts, and gather what all of them hold.

    `seconds`: that a file may take, for every 64 KiB begun.
    """
    lost: dict[bytes, Skip] = {}
    cut: dict[bytes, list[Group]] = {}
    with _bar(len(groups), show=progress) as bar, ExitStack() as at_the_end:
        at_the_end.callback(parts.flush)  # after Ctrl-C, too
        waiting = list(groups)
        while waiting:
            unread = [g for g in waiting if g.key(rules.fingerprint) not in parts]
            bar.advance(len(waiting) - len(unread), "read before")
            waiting = []
            with closing(_answers(run, unread, rules, seconds)) as answers:
                for group, answer in answers:
                    key = group.key(rules.fingerprint)
                    if not isinstance(answer, Lost):
                        parts.add(key, answer)
                    elif smaller := split_again(group):
                        cut[key] = smaller
                        waiting += smaller
                        bar.grow(len(smaller))
                    else:
                        lost[key] = Skip(group.title, answer.kind, answer.reason)
                    bar.advance(1, group.name)
    return _gather(list(_keys(groups, cut, rules.fingerprint)), parts, lost)


def _answers(
    run: Engine, groups: Sequence[Group], rules: Rules, seconds: float
) -> Generator[tuple[Group, Packed | Lost], None, None]:
    """What workers make of each group, as it comes."""
    tasks = [Task(g, seconds * (1 + g.size // BYTES_PER_LIMIT)) for g in groups]
    with closing(run(partial(make_reader, rules), tasks)) as answers:
        for index, answer in answers:
            yield groups[index], answer if isinstance(answer, Lost) else pickle.loads(answer)


@contextmanager
def _bar(total: int, *, show: bool) -> Iterator[console.Progress]:
    if show:
        with console.progress(total, "files") as bar:
            yield bar
    else:
        yield console.Hidden(total, "files")


def _keys(groups: Iterable[Group], cut: Mapping[bytes, list[Group]], rules: str) -> Iterator[bytes]:
    """Keys of the groups in order, those of its smaller parts in place of one that was cut."""
    for group in groups:
        key = group.key(rules)
        if key in cut:
            yield from _keys(cut[key], cut, rules)
        else:
            yield key


def _gather(keys: Sequence[bytes], parts: Parts, lost: Mapping[bytes, Skip]) -> Found:
    found = Found(set(keys))
    for key in keys:
        if key in lost:
            found.skips.append(lost[key])
            continue
        found.skips += parts.skips(key)
        found.references.update(parts.references(key))
        for brief, place in parts.briefs(key):
            found.briefs.append(replace(brief, tracks=NOTHING, errors=NOTHING, templates=()))
            found.places.append(place)
            found.earlier += key in parts.earlier
    return found
