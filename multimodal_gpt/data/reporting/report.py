"""What preparing a corpus came to: every file accounted for, on screen and in report.json."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from multimodal_gpt.data.corpus import PARTLY, Skip
from multimodal_gpt.errors import UserError

REPORT = "report.json"
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

    def summary(self) -> str:
        """One line: `412 found, 388 kept, 24 skipped: 19 nothing usable, 3 unreadable, 2 timed out`."""
        return f"{self.found} found, {self.kept} kept, {len(self.skips)} skipped" + kinds(self.skips)

    def lines(self) -> list[str]:
        """The report for a console, a line each; at most ten skipped files."""
        lines = [self.summary()]
        lines += [f"  {s.source}: {s.reason}" for s in self.skips[:ON_SCREEN]]
        if len(self.skips) > ON_SCREEN:
            lines.append(f"  ... all {len(self.skips)} are listed in {self.folder / REPORT}")
        if self.partly:
            lines.append(f"{len({s.source for s in self.partly})} kept in part, for example:")
            lines += [f"  {s.source}: {s.reason}" for s in self.partly[:3]]
        lines += [f"{n} ignored: {suffix}" for suffix, n in self.ignored.items()]
        lines += [f"{key}: {_shares(values)}" for key, values in self.tracks.items()]
        lines += [
            f"no document knows all fields of the caption {t!r}" for t, n in self.templates.items() if not n
        ]
        if self.unused:
            lines.append(f"{self.unused} left out by data.limit")
        return lines + summarise(self.splits)

    def plain(self) -> dict[str, Any]:
        """The report as JSON holds it, the reverse of `load_report`."""
        return {**asdict(self), "folder": str(self.folder), "summary": self.summary()}


def kinds(skips: Sequence[Skip]) -> str:
    """`: 19 nothing usable, 3 unreadable`; nothing where there are none."""
    count = Counter(s.kind for s in skips)
    parts = [f"{n} {kind}" for kind, n in sorted(count.items(), key=lambda pair: (-pair[1], pair[0]))]
    return ": " + ", ".join(parts) if parts else ""


def _shares(values: Mapping[str, int]) -> str:
    ranked = sorted(values.items(), key=lambda pair: (-pair[1], pair[0]))
    parts = [f"{n} x {value}" for value, n in ranked[:5]]
    rest = sum(n for _, n in ranked[5:])
    return ", ".join([*parts, f"{rest} x others"] if rest else parts)


def summarise(splits: Counts) -> list[str]:
    """A line per split and modality: documents, tokens and units."""
    lines = []
    for split, counts in splits.items():
        copies = f" in {counts['rows']} copies" if counts["rows"] != counts["documents"] else ""
        lines.append(f"{split}: {_documents(counts)}{copies}")
        for name, c in counts["modalities"].items():
            parts = [_documents(c), f"{c['tokens']:,} tokens", f"{c['units']:,} {c['unit']}s"]
            lines.append(f"  {name}: " + ", ".join(parts))
    return lines


def _documents(counts: Mapping[str, Any]) -> str:
    number: int = counts["documents"]
    return f"{number:,} document" + "s" * (number != 1)


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
