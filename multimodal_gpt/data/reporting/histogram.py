"""A histogram as a small SVG: a bar per bin, all equally broad whatever the bin holds."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH, HEIGHT = 420, 150
"""Of the picture, in its own units."""
LEFT, TOP, BELOW = 44, 8, 22
"""Room for the labels beside, above and below the bars."""
LABELS = 7
"""Labels below the bars at most."""


def histogram(edges: Sequence[float], counts: Sequence[int], what: str) -> str:
    """SVG source of counts (N) between edges (N + 1); `what` is counted, in plain words that need no escape.

    The same numbers give the same source.
    """
    most, broad = max([*counts, 1]), (WIDTH - LEFT) / max(len(counts), 1)
    floor = HEIGHT - BELOW
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="histogram of {what}">']
    for share in (0.5, 1):
        y = floor - share * (floor - TOP)
        parts.append(f'<path class="line" d="M{LEFT} {y:.1f}H{WIDTH}"/>')
        if share * most == int(share * most):
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" class="end">{share * most:,.0f}</text>')
    for place, count in enumerate(counts):
        tall = count / most * (floor - TOP)
        x, y = LEFT + place * broad, floor - tall
        tip = f"{edges[place]:,} to {edges[place + 1] - 1:,} {what}: {count:,}"
        parts.append(
            f'<g><title>{tip}</title><path class="reach" d="{_box(x, TOP, broad, floor - TOP)}"/>'
            f'<path class="bar" d="{_box(x + 1, y, broad - 2, tall)}"/></g>'
        )
    parts.append(f'<path class="axis" d="M{LEFT} {floor}H{WIDTH}"/>')
    step = -(-len(edges) // LABELS)
    for place in range(0, len(edges), step):
        side = "end" if place == len(edges) - 1 else "middle"
        x = LEFT + place * broad
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 6}" class="{side}">{edges[place]:,}</text>')
    return "".join([*parts, "</svg>"])


def _box(x: float, y: float, width: float, height: float) -> str:
    return f"M{x:.1f} {y:.1f}h{width:.1f}v{height:.1f}h{-width:.1f}z"
