"""A run that is judged, the documents it is judged by, and how thoroughly.

N documents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from multimodal_gpt.evaluation.documents import Piece, holding
from multimodal_gpt.evaluation.likelihood import segment_bits
from multimodal_gpt.evaluation.making import trained
from multimodal_gpt.generation.layout import Choice
from multimodal_gpt.generation.session import Run
from multimodal_gpt.model.gpt import GPT
from multimodal_gpt.stream.arrangement import Part
from multimodal_gpt.stream.vocabulary import Encoded


@dataclass(frozen=True)
class Scope:
    """How much is measured.

    Args:
        documents: at most so many held-out documents are scored; None = all.
        samples: so many pieces are made for each question that needs new ones.
        seed: decides everything random.
        quick: leave out what takes longest.
    """

    documents: int | None = None
    samples: int = 64
    seed: int = 0
    quick: bool = False


QUICK = Scope(documents=16, samples=6, quick=True)


@dataclass(frozen=True, eq=False)
class Subject:
    """What a question is put to.

    Args:
        run: the run.
        pieces: held-out documents, already no more than the scope wants.
        training: what it learnt from, unmoved; empty where that is not known.
        scope: how much is measured.
        specialists: modality -> a run that knows nothing else: the base that context has to beat.
        advance: called after each step of the work with a note on what was done.
    """

    run: Run
    pieces: tuple[Piece, ...]
    training: tuple[Piece, ...] = ()
    scope: Scope = Scope()
    specialists: Mapping[str, Run] = field(default_factory=dict)
    advance: Callable[[str], object] = lambda note: None

    def layout(self, target: str, known: Sequence[str]) -> Choice | None:
        """How the model was trained to make a target that knows these; None where it never was."""
        return trained(self.run, (target,), tuple(known))

    def bits(self, target: str, known: tuple[str, ...], pieces: Sequence[Piece]) -> np.ndarray:
        """(N,) bits of the target of each piece, which must hold it and what is known; computed once."""
        order = self.order(target, known)

        def cost(piece: Piece) -> float:
            segments = {name: piece.segments[name] for name in (target, *known)}
            return segment_bits(self.run.net, self.run.vocabulary, segments, order, target)

        return self._once((target, *known), pieces, cost, f"likelihood of {target}")

    def order(self, target: str, known: tuple[str, ...]) -> tuple[Part, ...]:
        """The parts of that layout. Raises ValueError where the model was not trained on any."""
        choice = self.layout(target, known)
        if choice is None:
            raise ValueError(f"the run was not trained to make {target} from {known}")
        return *choice.before, choice.part

    def _once(
        self, what: tuple[str, ...], pieces: Sequence[Piece], cost: Callable[[Piece], float], note: str
    ) -> np.ndarray:
        """(N,) costs of pieces, each computed the first time that `what` is asked of it."""
        for piece in pieces:
            if (piece.source, what) not in self._known:
                self._known[piece.source, what] = cost(piece)
                self.advance(note)
        return np.array([self._known[piece.source, what] for piece in pieces])

    @cached_property
    def _known(self) -> dict[tuple[str, tuple[str, ...]], float]:
        return {}

    @cached_property
    def untrained(self) -> GPT:
        """A network of the same shape that has learnt nothing."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.scope.seed)
            return GPT(self.run.net.config).eval().to(self.run.engine.device)

    def specialist_bits(self, target: str, pieces: Sequence[Piece]) -> np.ndarray | None:
        """(N,) bits of the target to the run that knows nothing else; None where there is none."""
        run = self.specialists.get(target)
        if run is None:
            return None
        own, other = self.run.vocabulary, run.vocabulary

        def cost(piece: Piece) -> float:
            again = other.encode(target, own.decode(target, piece.segments[target].ids))
            return segment_bits(run.net, other, {target: again}, ((target,),), target)

        return self._once(("", target), pieces, cost, f"specialist on {target}")

    def units(self, target: str, pieces: Sequence[Piece]) -> np.ndarray:
        """(N,) how many units the target of each piece has."""
        return np.array([piece.segments[target].units for piece in pieces], dtype=float)

    def learnt(self, name: str) -> list[Encoded]:
        """Segments of a modality in the training documents."""
        return [piece.segments[name] for piece in holding(self.training, name)]


def sources(pieces: Sequence[Piece]) -> tuple[str, ...]:
    """Names of documents."""
    return tuple(piece.source for piece in pieces)
