"""What preparing a corpus came to: every file accounted for, on screen and in report.json."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from multimodal_gpt import console
from multimodal_gpt.data.reading import PARTLY, Skip
from multimodal_gpt.errors import UserError

REPORT, PAGE, DOCUMENTS = "report.json", "report.html", "documents.jsonl"
"""The report for programs, for people, and the lines of single documents; all beside the shards."""
ON_SCREEN = 10
"""Skipped files listed on screen; report.json lists all."""

Counts = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Report:
    """Everything `prepare` found and did.

    Args:
        folder: where the shards are.
        found: documents, whether they could be used or not.
        kept: documents that are in the shards or left out by the recipe's limit.
        unused: kept documents left out by the limit.
        skips: what is not used, and why.
        partly: documents kept without some of what belongs to them, and why.
        ignored: files that no tokenizer reads, by suffix.
        tracks: metadata key -> value -> documents, for keys that say which track was taken.
        templates: caption template -> documents that use it.
        splits: split -> documents, rows, and per modality documents, segments, tokens, units (with
            copies).
        seconds: wall-clock time it took.
        fresh: False where the shards were there already.
        errors: metadata key -> mean, p95 (95th percentile), max and documents, for keys that say how far a
            document was moved when it was encoded.
        duplicates: groups of documents that are versions of one piece, the documents in them, those that
            only their contents give away (by_content), and held-out ones of which a version is trained on
            (leaked).
        cached: documents that were read by an earlier run and not changed since.
        lengths: modality -> edges (N + 1) and counts (N) of a histogram of tokens per document, median and
            longest.
        weights: source -> how often its documents occur in an epoch, where that is not once.
    """

    folder: Path
    found: int
    kept: int
    unused: int
    skips: tuple[Skip, ...]
    partly: tuple[Skip, ...]
    ignored: Mapping[str, int]
    tracks: Mapping[str, Mapping[str, int]]
    templates: Mapping[str, int]
    splits: Counts
    seconds: float = 0.0
    fresh: bool = True
    errors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    duplicates: Mapping[str, int] = field(default_factory=dict)
    cached: int = 0
    lengths: Counts = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)

    def summary(self) -> str:
        """One line: `412 found, 388 kept, 24 skipped: 19 nothing usable, 3 unreadable, 2 timed out`."""
        return f"{self.found} found, {self.kept} kept, {len(self.skips)} skipped" + kinds(self.skips)

    def lines(self) -> list[str]:
        """The report for a console, a line each, without its table; at most ten skipped files."""
        lines = [self.summary()]
        lines += [f"  {s.source}: {s.reason}" for s in self.skips[:ON_SCREEN]]
        if len(self.skips) > ON_SCREEN:
            lines.append(f"  ... all {len(self.skips)} are listed in {self.folder / REPORT}")
        if self.partly:
            lines.append(f"{len({s.source for s in self.partly})} kept in part, for example:")
            lines += [f"  {s.source}: {s.reason}" for s in self.partly[:3]]
        lines += [f"{n} ignored: {suffix}" for suffix, n in self.ignored.items()]
        lines += [f"{key}: {_shares(values)}" for key, values in self.tracks.items()]
        lines += [f"{key}: {spread(numbers)}" for key, numbers in self.errors.items()]
        lines += [
            f"no document knows all fields of the caption {t!r}" for t, n in self.templates.items() if not n
        ]
        return lines + self._bookkeeping()

    def _bookkeeping(self) -> list[str]:
        lines = []
        if self.duplicates.get("groups"):
            versions, pieces = self.duplicates["documents"], self.duplicates["groups"]
            lines.append(f"{versions:,} documents are versions of {pieces:,} pieces, never split up")
        if leaked := self.duplicates.get("leaked"):
            lines.append(f"{leaked:,} held-out documents are versions of training documents: no fair test")
        if self.weights:
            parts = [f"{label} x {weight:g}" for label, weight in self.weights.items()]
            lines.append("in an epoch: " + ", ".join(parts))
        if self.unused:
            lines.append(f"{self.unused} left out by data.limit")
        if self.cached:
            lines.append(f"{self.cached:,} had been read by an earlier run")
        return lines

    def table(self) -> tuple[tuple[str, ...], list[tuple[str | int, ...]]]:
        """Columns and rows of what is in the shards: a row per split, then one for each of its modalities."""
        columns = ("split", "modality", "documents", "copies", "tokens", "units")
        rows = [row for split, counts in self.splits.items() for row in _split_rows(split, counts)]
        return columns, rows

    def print(self) -> None:
        """Print all of it, and where the page is."""
        console.say(str(self.folder))
        for line in self.lines():
            console.say(line)
        columns, rows = self.table()
        console.table("", columns, [[f"{c:,}" if isinstance(c, int) else c for c in row] for row in rows])
        if (self.folder / PAGE).is_file():
            console.say(f"all documents, lengths and pictures: {self.folder / PAGE}")

    def plain(self) -> dict[str, Any]:
        """The report as JSON holds it, the reverse of `load_report`."""
        return {**asdict(self), "folder": str(self.folder), "summary": self.summary()}


def kinds(skips: Sequence[Skip]) -> str:
    """`: 19 nothing usable, 3 unreadable`; nothing where there are none."""
    parts = [f"{n} {kind}" for kind, n in ranked(Counter(s.kind for s in skips))]
    return ": " + ", ".join(parts) if parts else ""


def ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Counted values, the most frequent first."""
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def _shares(values: Mapping[str, int]) -> str:
    order = ranked(values)
    parts = [f"{n} x {value}" for value, n in order[:5]]
    rest = sum(n for _, n in order[5:])
    return ", ".join([*parts, f"{rest} x others"] if rest else parts)


def spread(numbers: Mapping[str, float]) -> str:
    """`mean 0.4, 95 % at most 2.1, largest 13.3, in 388 documents`."""
    return (
        f"mean {numbers['mean']:g}, 95 % at most {numbers['p95']:g}, largest {numbers['max']:g}, "
        f"in {numbers['documents']:,} documents"
    )


def _split_rows(split: str, counts: Mapping[str, Any]) -> list[tuple[str | int, ...]]:
    parts = counts["modalities"]
    tokens = sum(c["tokens"] for c in parts.values())
    rows: list[tuple[str | int, ...]] = [(split, "all", counts["documents"], counts["rows"], tokens, "")]
    for name, c in parts.items():
        units = f"{c['units']:,} {c['unit']}s"
        rows.append(("", name, c["documents"], c["segments"], c["tokens"], units))
    return rows


def split_skips(skips: Sequence[Skip]) -> tuple[tuple[Skip, ...], tuple[Skip, ...]]:
    """Skips proper, and notes on documents that are kept in part."""
    return tuple(s for s in skips if s.kind != PARTLY), tuple(s for s in skips if s.kind == PARTLY)


def load_report(folder: Path) -> Report:
    """Read `report.json`, the reverse of `Report.plain`. Raises UserError where it is missing or damaged."""
    path = folder / REPORT
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        del saved["summary"]
        lists = {key: tuple(Skip(**s) for s in saved[key]) for key in ("skips", "partly")}
        return Report(**{**saved, **lists, "folder": folder, "fresh": False})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            "is missing or damaged", path, "prepare again: mmgpt prepare RECIPE --force"
        ) from error
