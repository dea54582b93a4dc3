"""The report as one HTML page that needs nothing else: tables, histograms and three documents drawn."""

from __future__ import annotations

import base64
import inspect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from multimodal_gpt.data.captions import phrases, seeded
from multimodal_gpt.data.reading import Skip
from multimodal_gpt.data.reporting.examples import Example, make_examples, read_lines
from multimodal_gpt.data.reporting.histogram import histogram
from multimodal_gpt.data.reporting.report import DOCUMENTS, PAGE, REPORT, Report, ranked, spread
from multimodal_gpt.data.reporting.sheet import JAVASCRIPT, head, policy, safe
from multimodal_gpt.files import write_text
from multimodal_gpt.stream import plugins
from multimodal_gpt.stream.vocabulary import Vocabulary

ROWS = 2000
"""Documents that are listed; `documents.jsonl` has all."""
SKIPS = 500
"""Skipped files that are listed; `report.json` has all."""
VALUES = 40
"""Different choices of a track that are listed."""
CHARACTERS = 300
"""Of each cell."""

Row = Sequence[object]


def write_page(folder: Path, report: Report, vocabulary: Vocabulary) -> Path:
    """Write `report.html` into a folder of finished shards, which `documents.jsonl` is in already.

    The same report gives the same bytes. A document that can't be drawn is listed with the reason.
    """
    examples = make_examples(folder, read_lines(folder / DOCUMENTS), vocabulary)
    sections = [
        _head(report),
        _tiles(report),
        _table(*report.table()),
        _skipped(report),
        _tracks(report, vocabulary),
        _errors(report),
        _captions(report, examples),
        _lengths(report),
        _examples(examples, vocabulary),
        _documents(folder / DOCUMENTS, report, vocabulary),
        f"<script>{JAVASCRIPT}</script>\n</body>\n</html>\n",
    ]
    return write_text(folder / PAGE, "\n".join(s for s in sections if s))


# Parts of HTML: everything that is not a number goes through `_safe`


def _safe(value: object, most: int = CHARACTERS) -> str:
    return safe(value, most)


def _cell(value: object) -> str:
    if isinstance(value, int | float):
        return f'<td class="number">{_number(value)}</td>'
    return f"<td>{_safe(value)}</td>"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


def _table(columns: Sequence[str], rows: Sequence[Row], name: str = "") -> str:
    """A table; one with a name can be sorted by its columns."""
    heads = [f"<button>{_safe(c)}</button>" if name else _safe(c) for c in columns]
    numbers = [any(isinstance(row[i], int | float) for row in rows) for i in range(len(columns))]
    kinds = [' class="number"' if number else "" for number in numbers]
    attribute = f' id="{name}"' if name else ""
    lines = [f'<div class="wide"><table{attribute}><thead><tr>']
    lines += [f"<th{kind}>{head}</th>" for kind, head in zip(kinds, heads, strict=True)]
    lines.append("</tr></thead>\n<tbody>")
    lines += [f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows]
    return "\n".join([*lines, "</tbody></table></div>"])


def _soft(words: str) -> str:
    return f'<p class="soft">{_safe(words)}</p>'


# Sections


def _head(report: Report) -> str:
    return f"{head(_safe(report.folder), policy())}\n<p>{_safe(report.summary())}</p>"


def _tiles(report: Report) -> str:
    splits = {f"in {split}": counts["documents"] for split, counts in report.splits.items()}
    facts: dict[str, Any] = {"found": report.found, "kept": report.kept, "skipped": len(report.skips)}
    facts |= {"kept in part": len({s.source for s in report.partly})}
    versions, pieces = (report.duplicates.get(key, 0) for key in ("documents", "groups"))
    facts |= {f"versions of {pieces:,} pieces": versions, **splits}
    facts |= {"left out by the limit": report.unused, "from the cache": report.cached}
    facts |= {"seconds": round(report.seconds, 1)}
    tiles = [
        f'<div class="tile{" bad" if name == "skipped" and fact else ""}"><b>{_number(fact)}</b>{name}</div>'
        for name, fact in facts.items()
    ]
    return '<div class="tiles">' + "\n".join(tiles) + "</div>"


def _skipped(report: Report) -> str:
    parts = [_skips("Skipped", report.skips), _skips("Kept in part", report.partly)]
    if report.ignored:
        rows = [(suffix, n) for suffix, n in report.ignored.items()]
        parts.append("<h2>Ignored: files that no tokenizer of this recipe reads</h2>")
        parts.append(_table(("suffix", "files"), rows))
    return "\n".join(p for p in parts if p)


def _skips(title: str, skips: Sequence[Skip]) -> str:
    if not skips:
        return ""
    parts = [f"<h2>{title}: {len(skips):,}</h2>"]
    if len(skips) > SKIPS:
        parts.append(_soft(f"The first {SKIPS}; all are in {REPORT}."))
    kinds = Counter(s.kind for s in skips)
    listed = skips[:SKIPS]
    for kind, n in kinds.most_common():
        rows = [(s.source, s.reason) for s in listed if s.kind == kind]
        parts.append(f"<details open><summary>{n:,} {_safe(kind)}</summary>")
        parts.append(_table(("source", "reason"), rows) + "</details>")
    return "\n".join(parts)


def _tracks(report: Report, vocabulary: Vocabulary) -> str:
    parts = ["<h2>Tracks that were taken</h2>"] if report.tracks else []
    for key, values in report.tracks.items():
        rows = ranked(values)
        rest = [(f"{len(rows) - VALUES:,} others", sum(n for _, n in rows[VALUES:]))] if rows[VALUES:] else []
        parts.append(f"<h3>{_safe(key)}</h3>")
        parts.append(_table(("taken, and why", "documents"), [*rows[:VALUES], *rest]))
        option = track_option(key, vocabulary)
        if option:
            parts.append(f"<p>To take another: <code>{_safe(option)}</code></p>")
    return "\n".join(parts)


def track_option(key: str, vocabulary: Vocabulary) -> str:
    """How a recipe decides the track that a metadata key tells of; empty where its plugin has no `track`."""
    wanted = key.removesuffix("_track")
    for modality in vocabulary.modalities:
        if wanted in (modality.name, Path(modality.plugin).stem):
            takes = inspect.signature(plugins.load_module(modality.plugin).build).parameters
            return f"tokenizers.{modality.name}.track=NAME" if "track" in takes else ""
    return ""


def _errors(report: Report) -> str:
    if not report.errors:
        return ""
    rows = [(key, spread(numbers)) for key, numbers in report.errors.items()]
    return "<h2>What encoding moved</h2>\n" + _table(("error", "per document"), rows)


def _captions(report: Report, examples: Sequence[Example]) -> str:
    if not report.templates:
        return ""
    said: dict[str, str] = {}
    for example in examples:
        generator = seeded(example.source)
        for phrase in phrases(tuple(report.templates), example.metadata, 0.0, generator):
            said.setdefault(phrase.template, phrase.words)
    rows = [(template, n, said.get(template, "")) for template, n in report.templates.items()]
    return "<h2>Captions</h2>\n" + _table(("template", "documents", "for example"), rows)


def _lengths(report: Report) -> str:
    figures = [
        f"<figure><figcaption><b>{_safe(name)}</b>: tokens per document; median "
        f"{_number(shape['median'])}, longest {_number(shape['longest'])}</figcaption>"
        + histogram(shape["edges"], shape["counts"], "tokens")
        + "</figure>"
        for name, shape in report.lengths.items()
    ]
    if not figures:
        return ""
    note = _soft("Bars count documents, without moved copies; point at one to read it.")
    return f'<h2>Lengths</h2>\n{note}\n<div class="charts">' + "\n".join(figures) + "</div>"


def _examples(examples: Sequence[Example], vocabulary: Vocabulary) -> str:
    parts = [f"<h2>{len(examples)} documents, as the model will see them</h2>"] if examples else []
    for example in examples:
        title = example.metadata.get("title")
        named = f" {_safe(title)}" if title else ""
        parts.append(f"<h3><code>{_safe(example.source)}</code>{named}</h3>")
        words = [
            f'<dt>{_safe(name)}, {n:,} tokens</dt><dd class="tokens">{_safe(shown, len(shown))}</dd>'
            for name, n, shown in example.segments
        ]
        parts.append(f'<div class="example">{_picture(example)}<dl>{"".join(words)}</dl></div>')
    return "\n".join(parts)


def _picture(example: Example) -> str:
    if not example.picture:
        return _soft(f"Not drawn: {example.problem}.")
    data = base64.b64encode(example.picture).decode()
    image = f'<img alt="{_safe(example.source)}, drawn" src="data:image/png;base64,{data}">'
    note = f"<figcaption>1 is chunk {example.before + 1}</figcaption>" if example.before else ""
    return f"<figure>{image}{note}</figure>"


def _documents(path: Path, report: Report, vocabulary: Vocabulary) -> str:
    names = [n for n in vocabulary.names if n in report.lengths]
    columns = ["source", "title", "split", "group", *names, *report.tracks, *report.errors]
    columns += ["weight"] if report.weights else []
    lines = read_lines(path)
    rows = [_row(line, report, names) for line in islice(lines, ROWS)]
    more = sum(1 for _ in lines)
    parts = ["<h2>Documents</h2>"]
    if more:
        parts.append(_soft(f"The first {ROWS:,}; {more:,} more are in {DOCUMENTS}."))
    parts.append(
        '<p class="filter"><input id="filter" type="search" placeholder="show rows that hold ..." '
        f'aria-label="filter"> <span id="shown" class="soft">{len(rows)} of {len(rows)} rows</span></p>'
    )
    return "\n".join([*parts, _table(columns, rows, "documents")])


def _row(line: Mapping[str, Any], report: Report, names: Sequence[str]) -> Row:
    def cells() -> Iterator[object]:
        yield from (line[key] for key in ("source", "title", "split", "group"))
        yield from (line["tokens"].get(name, "") for name in names)
        yield from (line["tracks"].get(key, "") for key in report.tracks)
        yield from (line["errors"].get(key, "") for key in report.errors)
        yield from [line["weight"]] if report.weights else []

    return list(cells())
