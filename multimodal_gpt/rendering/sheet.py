"""Sheet music: a score as SVG pages, engraved by verovio."""

from __future__ import annotations

import importlib.util

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.rendering.musicxml import to_musicxml
from multimodal_gpt.rendering.score import Score

_OPTIONS = {
    "pageWidth": 2100,  # tenths of a millimetre, as an A4 page
    "pageHeight": 60000,
    "adjustPageHeight": True,
    "scale": 45,
    "footer": "none",
    "mnumInterval": 0,
    "breaks": "auto",
    "svgViewBox": True,
    "xmlIdSeed": 1,
}


_WIDE = {"spacingLinear": 0.4, "spacingNonLinear": 0.65}  # chord symbols take no room of their own


def check() -> None:
    """Raises UserError where verovio is not installed."""
    if importlib.util.find_spec("verovio") is None:
        raise UserError("verovio is not installed", "--sheet", 'pip install "multimodal-gpt[sheet]"')


def engrave(score: Score) -> list[str]:
    """The pages as SVG, one unless the piece has many hundred bars. The same score gives the same text."""
    check()
    import verovio

    verovio.enableLog(verovio.LOG_OFF)
    toolkit = verovio.toolkit()
    toolkit.setOptions(_OPTIONS | (_WIDE if _crowded(score) else {}))
    toolkit.resetXmlIdSeed(1)
    if not toolkit.loadData(to_musicxml(score)):
        raise UserError("verovio can't engrave this piece", score.title, "try --musicxml and another program")
    return [toolkit.renderToSVG(page) for page in range(1, toolkit.getPageCount() + 1)]


def _crowded(score: Score) -> bool:
    """Whether some bar has more than two chord symbols."""
    ticks = [tick for tick, _ in score.symbols if tick < score.bars[-1]]
    bars = np.searchsorted(score.bars, ticks, side="right")
    return bool((np.bincount(bars) > 2).any())
