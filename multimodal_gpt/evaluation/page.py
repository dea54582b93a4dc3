"""An evaluation as one HTML page that needs nothing else: every figure in a table and as a dot beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from multimodal_gpt.data.reporting.sheet import CSS, head, safe
from multimodal_gpt.evaluation.evaluate import Evaluation
from multimodal_gpt.evaluation.tables import HIGHER, LOWER, Figure, Row, Table

COLOURS = ("#d1495b", "#3572b0", "#6a994e", "#edae49", "#7b5ea7", "#8a8f98", "#2a9d8f", "#bc6c25")
"""Of the columns, in order, the run's own first."""
WIDE, TALL, MARGIN = 220, 22, 8
"""Of a strip of dots, in its own units."""
OWN = """
.dots { width: 220px; min-width: 220px; } .dots svg { width: 220px; height: 22px; }
.key { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%; margin: 0 .3rem 0 .8rem; }
.best { font-weight: 600; } .range { color: var(--soft); font-size: 12px; }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(evaluation: Evaluation) -> str:
    """The page's source; the same evaluation gives the same."""
    facts = evaluation.facts
    told = [
        ("parameters", f"{facts['parameters']:,}"),
        ("step", facts["checkpoint"]["step"]),
        ("documents", f"{facts['documents']} of {facts['of']}"),
        ("judged by", facts["data"]),
        ("seed", facts["seed"]),
        ("seconds", facts["seconds"]),
    ]
    tiles = [f'<div class="tile"><b>{safe(value)}</b>{safe(name)}</div>' for name, value in told]
    skips = [f"<li>{safe(line)}</li>" for line in facts.get("skipped", ())]
    parts = [
        head(safe(f"{facts['run']}: evaluation"), POLICY, CSS + OWN),
        f'<div class="tiles">{"".join(tiles)}</div>',
        f'<p class="soft">checkpoint {safe(facts["checkpoint"]["sha256"])}</p>',
        *(_table(table) for table in evaluation.tables),
        f"<h2>Files that were not used</h2><ul>{''.join(skips)}</ul>" if skips else "",
        "</body>\n</html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _table(table: Table) -> str:
    colours = dict(zip(table.columns, COLOURS * len(table.columns), strict=False))
    keys = "".join(
        f'<span class="key" style="background:{colours[name]}"></span>{safe(name)}' for name in table.columns
    )
    heads = ["", "unit", "n", *table.columns, "", "better"]
    notes = "".join(f'<p class="soft">{safe(note)}</p>' for note in table.notes)
    body = "\n".join(_row(row, table.columns, colours) for row in table.rows)
    head = "".join(f"<th>{safe(name)}</th>" for name in heads)
    return (
        f'<h2 id="{safe(table.name)}">{safe(table.title)}</h2>\n<p>{safe(table.about)}</p>\n{notes}'
        f'<p>{keys}</p>\n<div class="wide"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _row(row: Row, columns: Sequence[str], colours: Mapping[str, str]) -> str:
    best = best_of(row)
    cells = []
    for name in columns:
        figure = row.figures.get(name)
        mark = ' class="number best"' if name == best else ' class="number"'
        cells.append(f"<td{mark}>{_figure(figure) if figure else ''}</td>")
    first = f'<td>{safe(row.name)}</td><td>{safe(row.unit)}</td><td class="number">{row.count}</td>'
    better = row.better if row.better in ("", LOWER, HIGHER) else f"close to {row.better}"
    dots = f'<td class="dots">{strip(row, columns, colours)}</td>'
    return f"<tr>{first}{''.join(cells)}{dots}<td>{safe(better)}</td></tr>"


def best_of(row: Row) -> str:
    """The column with the best figure; "" where nothing says what is better."""
    values = {name: figure.value for name, figure in row.figures.items()}
    if row.better in (LOWER, HIGHER):
        pick = min if row.better == LOWER else max
        return pick(values, key=lambda name: values[name])
    if row.better in values:
        aim = values.pop(row.better)
        return min(values, key=lambda name: abs(values[name] - aim)) if values else ""
    return ""


def number(value: float) -> str:
    """A figure with as many digits as mean something.

    Example:
        >>> number(1.23456), number(12345.6), number(85.23)
        ('1.235', '12,346', '85.2')
    """
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 20 else f"{value:.3f}"


def _figure(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return number(figure.value)
    return f'{number(figure.value)} <span class="range">[{number(figure.low)}, {number(figure.high)}]</span>'


def strip(row: Row, columns: Sequence[str], colours: Mapping[str, str]) -> str:
    """SVG source: a dot for every figure of a row, with a line for its interval, all on one scale."""
    ends = [bound for f in row.figures.values() for bound in (f.value, f.low, f.high) if bound is not None]
    low, high = min(ends), max(ends)
    if high <= low:
        return ""
    scale = (WIDE - 2 * MARGIN) / (high - low)
    parts = [f'<svg viewBox="0 0 {WIDE} {TALL}" role="img"><path class="line" d="M0 {TALL / 2}H{WIDE}"/>']
    for name in reversed(columns):  # the run's own dot lies on top
        figure = row.figures.get(name)
        if figure is None:
            continue
        x, colour = MARGIN + (figure.value - low) * scale, colours[name]
        dot = f'<circle cx="{x:.1f}" cy="{TALL / 2}" r="5" fill="{colour}"/>'
        if figure.low is not None and figure.high is not None:
            left, right = (MARGIN + (bound - low) * scale for bound in (figure.low, figure.high))
            line = f"M{left:.1f} {TALL / 2}H{right:.1f}"
            dot += f'<path d="{line}" stroke="{colour}" stroke-width="2" opacity=".6"/>'
        parts.append(f"<g><title>{safe(name)}: {number(figure.value)}</title>{dot}</g>")
    return "".join([*parts, "</svg>"])
