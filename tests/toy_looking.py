"""A toy run in memory to look into, and a plugin like the toy beats that draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toy_runs import TOYS, untrained

from multimodal_gpt.generation.session import Run
from multimodal_gpt.training.checkpoint import Loaded

DRAWN = '''
class Drawn(Beats):
    """Beats with a picture: a box for each hit."""

    def draw(self, content, axes):
        from matplotlib.collections import PolyCollection
        places = [number * self.places + p for number, bar in enumerate(content) for p in bar]
        boxes = [[(x, 0), (x, 1), (x + 1, 1), (x + 1, 0)] for x in places]
        axes.add_collection(PolyCollection(boxes))
        axes.autoscale_view()


def build(places=4):
    return Drawn(places)
'''


def drawn_plugin(folder: Path) -> str:
    """The file of a plugin like the toy beats that draws."""
    path = folder / "drawn.py"
    path.write_text((TOYS / "beats.py").read_text("utf-8") + DRAWN, "utf-8")
    return str(path)


def toy_run(tokenizers: dict[str, Any], orders: list[list[str]], **model: Any) -> Run:
    """An untrained run, always the same."""
    shape = {"depth": 2, "width": 32, "heads": 4, "kv_heads": 2, "context": 256, "clock": 0.5, **model}
    net, vocabulary, recipe = untrained(tokenizers, orders, shape)
    net = net.eval().requires_grad_(False)
    return Run(Loaded(net, vocabulary, recipe, {"sha256": "", "step": 0, "tokens": 0, "fingerprint": ""}))
