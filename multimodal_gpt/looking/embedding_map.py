"""A map of embeddings: rows of one kind of token in the two directions in which they differ most (principal
components), each joined to its two nearest in the whole space, so that a ring can be told from a chance of
the projection.

N tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.generation.session import Run
from multimodal_gpt.looking.neighbours import alike, meanings, open_table, spell
from multimodal_gpt.stream.picture import canvas

LEAST, MOST_NAMED = 3, 160
"""Fewest tokens that make a map, and most that are named in one."""
_INCHES = 8.0


@dataclass(frozen=True, eq=False)
class EmbeddingMap:
    """Tokens of one kind in a plane.

    Args:
        modality: whose they are.
        words: (N,) as the modality shows them.
        places: (N, 2) along the two components.
        explained: share of the variance along each.
        links: (M, 2) pairs of indexes: a token and one of its two nearest by cosine.
    """

    modality: str
    words: tuple[str, ...]
    places: np.ndarray
    explained: tuple[float, float]
    links: np.ndarray


def embedding_map(run: Run, token: str, modality: str | None = None) -> EmbeddingMap:
    """The map of the tokens like one, those that may stand in its place and were met in training.

    Of a word of several tokens the first changes and the others stay: the roots of chords of one quality.
    Raises UserError as `neighbours` does, and where there are too few.
    """
    table = open_table(run)
    meaning = meanings(table, token, modality)[0]
    tokens = alike(table, meaning)
    tokens = tokens[(tokens[:, 1:] == np.array(meaning.tokens[1:])).all(axis=1)]
    if len(tokens) < LEAST:
        raise UserError(f"there are only {len(tokens)} tokens like '{token}': no map", meaning.modality)
    vectors = table.vectors(meaning.modality, tokens)
    vectors = vectors - vectors.mean(axis=0)  # (N, D)
    left, strength, _ = np.linalg.svd(vectors, full_matrices=False)
    shares = strength**2 / (strength**2).sum()
    return EmbeddingMap(
        modality=meaning.modality,
        words=tuple(spell(table, meaning, row) for row in tokens.tolist()),
        places=left[:, :2] * strength[:2],
        explained=(float(shares[0]), float(shares[1])),
        links=_links(vectors),
    )


def _links(vectors: np.ndarray) -> np.ndarray:
    """(M, 2) each row with its two nearest, every pair once."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similar = unit @ unit.T
    np.fill_diagonal(similar, -np.inf)
    near = np.argsort(-similar, axis=1, kind="stable")[:, :2]
    pairs = {tuple(sorted((i, int(j)))) for i, row in enumerate(near) for j in row}
    return np.array(sorted(pairs))


def draw_map(found: EmbeddingMap, kind: str = "png") -> bytes:
    """A map as PNG or SVG; the same map gives the same bytes. Raises UserError for another kind."""
    with canvas(kind, _INCHES, _INCHES) as (figure, file):
        axes = figure.add_axes((0.09, 0.08, 0.88, 0.82))
        x, y = found.places.T
        for one, other in found.links.tolist():
            axes.plot(x[[one, other]], y[[one, other]], color="0.8", linewidth=0.9, zorder=1)
        axes.scatter(x, y, s=14, color="#1f5fa8", zorder=2)
        for place, word in list(zip(found.places, found.words, strict=True))[:MOST_NAMED]:
            named = axes.annotate(word, place.tolist(), (4, 3), textcoords="offset points", fontsize=9)
            named.set_parse_math(False)
        axes.set_aspect("equal", adjustable="datalim")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, color="0.5")
        axes.set_xlabel(f"first direction ({100 * found.explained[0]:.0f} % of the differences)")
        axes.set_ylabel(f"second direction ({100 * found.explained[1]:.0f} %)")
        title = f"Where the model keeps its '{found.modality}' tokens\nlines join each to its two nearest"
        axes.set_title(title, loc="left", fontsize=12, parse_math=False)
    return file.getvalue()
