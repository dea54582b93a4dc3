"""How the report's page looks and what moves on it; plain CSS and JavaScript inside the page."""

from __future__ import annotations

import base64
import hashlib
import html

CSS = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d5dae0; --paper: #fff;
  --card: #f5f7f9; --accent: #3572b0; --bad: #a33d2d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #9aa5b1; --line: #373e47;
  --paper: #15191e; --card: #1f252c; --accent: #6aa5de; --bad: #e08a78; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; overflow-wrap: anywhere; }
p { margin: .3rem 0; } .soft { color: var(--soft); }
code, .tokens { font: 13px/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .6rem;
  margin: 1rem 0; }
.tile { background: var(--card); border-radius: 6px; padding: .5rem .8rem; }
.tile b { display: block; font-size: 1.4rem; } .tile.bad b { color: var(--bad); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; } td, th { padding: .2rem .7rem .2rem 0; text-align: left;
  vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } td { overflow-wrap: anywhere; } .number { text-align: right; overflow-wrap: normal;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
#documents td { font-size: 13px; min-width: 6rem; } #documents td:first-child { min-width: 11rem; }
#documents .number { min-width: 0; } th { white-space: nowrap; }
th button { all: unset; cursor: pointer; font-weight: 600; } th button:focus-visible { outline: 2px solid; }
th[aria-sort=ascending] button::after { content: " \\25B4"; }
th[aria-sort=descending] button::after { content: " \\25BE"; }
input { font: inherit; width: 22rem; max-width: 100%; padding: .3rem .5rem; border: 1px solid var(--line);
  border-radius: 4px; background: var(--paper); color: inherit; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1rem; }
figure { margin: 0; break-inside: avoid; } svg { display: block; width: 100%; }
svg text { fill: var(--soft); font-size: 11px; } svg .middle { text-anchor: middle; }
svg .end { text-anchor: end; } svg .bar { fill: var(--accent); } svg .reach { fill: transparent; }
svg .line { stroke: var(--line); } svg .axis { stroke: var(--soft); }
.example { display: grid; grid-template-columns: 3fr 2fr; gap: 1.2rem; margin: 1rem 0 1.6rem; }
.example img { width: 100%; background: #fff; border-radius: 4px; } .example dd { margin: 0 0 .5rem; }
.example dl { margin: 0; }
dt { font-weight: 600; }
@media (max-width: 50rem) { .example { grid-template-columns: 1fr; } }
@media print { body { max-width: none; padding: 0; font-size: 11px; } .filter { display: none; }
  .example, tr { break-inside: avoid; } #documents td, #documents th { font-size: 8px; min-width: 0; }
  th { white-space: normal; } .wide { overflow: visible; } h2 { break-after: avoid; } }
"""

JAVASCRIPT = """
"use strict";
const table = document.getElementById("documents"), box = document.getElementById("filter");
const rows = Array.from(table.tBodies[0].rows);
const words = rows.map(row => row.textContent.toLowerCase());
box.addEventListener("input", () => {
  const wanted = box.value.toLowerCase().split(" ");
  let shown = 0;
  rows.forEach((row, i) => {
    row.hidden = !wanted.every(word => words[i].includes(word));
    shown += !row.hidden;
  });
  document.getElementById("shown").textContent = shown + " of " + rows.length + " rows";
});
function value(row, column) {
  const text = row.cells[column].textContent;
  const number = Number(text.replaceAll(",", ""));
  return text !== "" && !Number.isNaN(number) ? [1, number] : [text === "" ? 0 : 2, text];
}
function compare(a, b) { return a[0] - b[0] || (a[1] < b[1] ? -1 : a[1] > b[1] ? 1 : 0); }
const heads = Array.from(table.tHead.rows[0].cells);
heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
  const up = head.getAttribute("aria-sort") !== "ascending";
  heads.forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const keyed = rows.map(row => [value(row, column), row]);
  keyed.sort((a, b) => (up ? 1 : -1) * compare(a[0], b[0]));
  table.tBodies[0].append(...keyed.map(pair => pair[1]));
}));
"""


def safe(value: object, most: int | None = None) -> str:
    """Anything as characters that HTML and UTF-8 hold, cut to so many."""
    words = str(value).encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
    return html.escape(words if most is None or len(words) <= most else f"{words[: most - 4]} ...")


def head(title: str, rules: str, css: str = CSS) -> str:
    """How a page begins: up to its title, which is `safe` already; `rules`: its content security policy."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{rules}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{css}</style>\n</head>\n<body>\n<h1>{title}</h1>"
    )


def policy() -> str:
    """Content security policy of the page: its own script and style and pictures within it, nothing else."""
    digest = base64.b64encode(hashlib.sha256(JAVASCRIPT.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
