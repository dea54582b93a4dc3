"""An untrained run over words, tags, chords and melody, and tunes to judge it by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from toy_runs import untrained

from multimodal_gpt.evaluation.documents import Piece
from multimodal_gpt.evaluation.subject import Scope, Subject
from multimodal_gpt.generation.session import Run
from multimodal_gpt.training.checkpoint import Loaded

ORDERS = [["words", "tags", "harmony+tune"], ["words", "tags", "tune+harmony"], ["tune+harmony", "words"]]
ORDERS += [["tune+harmony", "tags"]]
PLUGINS: dict[str, Any] = {
    "words": {"plugin": "text", "encoding": "bytes"},
    "tags": {"fields": {"type": ["jig", "reel", "waltz"], "key": "known", "meter": "known", "bars": "known"}},
    "harmony": {"plugin": "chords"},
    "tune": {"plugin": "melody"},
}
TUNES = (
    ("C4 E4 G4 c5 B4 G4 D4 B4 c5:4", "| C | G | C |", {"key": "C major", "type": "reel"}),
    ("D4 F#4 A4 d5 c#5 A4 E4 G4 d5:2 A4:2 D4:4", "| D | A7 | D | D |", {"key": "D major", "type": "reel"}),
    ("A4 B4 c5 e5 d5 c5 B4 A4 E4:2 G#4:2 A4:4", "| Am | Dm | E7 | Am |", {"key": "A minor", "type": "jig"}),
    ("G4 B4 d5 g5 f#5 e5 d5 c5 B4:2 A4:2 G4:4", "| G | D | G D | G |", {"key": "G major", "type": "jig"}),
)
TEMPLATES = ["a {type} in {key}", "a tune in {meter}[, {bars} bars]", "a tune in {key}", "a {type}"]


def toy_run(
    plugins: dict[str, Any] | None = None, orders: list[list[str]] | None = None, context: int = 512
) -> Run:
    """Random weights, always the same."""
    model = {"depth": 1, "width": 16, "heads": 2, "context": context}
    net, vocabulary, recipe = untrained(plugins or PLUGINS, orders or ORDERS, model, drop=0.2)
    words = recipe.data.captions.model_copy(update={"into": "words", "templates": TEMPLATES})
    data = recipe.data.model_copy(update={"captions": words})
    recipe = recipe.model_copy(update={"data": data})
    net = net.eval().requires_grad_(False)
    return Run(Loaded(net, vocabulary, recipe, {"sha256": "", "step": 0, "tokens": 0, "fingerprint": ""}))


def toy_piece(run: Run, tune: str, chords: str, facts: dict[str, Any], source: str) -> Piece:
    """A tune in 4/4 with its chords, a caption and tags that say its facts."""
    vocabulary = run.vocabulary
    melody = vocabulary.tokenizer("tune").parse(tune)
    metadata = {**vocabulary.tokenizer("tune").describe(melody), **facts}
    stated = {"key": metadata["key"], "type": metadata["type"]}
    words = vocabulary.encode("words", "a {type} in {key}".format(**stated))
    tags = vocabulary.encode("tags", vocabulary.tokenizer("tags").compose(metadata))
    segments = {
        "words": words,
        "tags": tags,
        "harmony": vocabulary.encode("harmony", vocabulary.tokenizer("harmony").parse(chords)),
        "tune": vocabulary.encode("tune", melody),
    }
    return Piece(segments, metadata, source, ((words, stated),))


def toy_subject(run: Run | None = None, tunes: Sequence[Any] = TUNES, **scope: Any) -> Subject:
    """The tunes, which it also learnt from."""
    run = toy_run() if run is None else run
    pieces = tuple(toy_piece(run, *tune, source=f"tune{i}") for i, tune in enumerate(tunes))
    return Subject(run, pieces, pieces, Scope(**{"samples": 4, "quick": True, **scope}))


def wordless_subject() -> Subject:
    """A run that knows nothing but words."""
    run = toy_run({"words": PLUGINS["words"]}, [["words"]])
    words = run.vocabulary.encode("words", "nothing but words")
    return Subject(run, (Piece({"words": words}, {}, "a"),), (), Scope(samples=2, quick=True))
