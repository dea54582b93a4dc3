"""The whole evaluation of a run: questions, answers as tables, and where they are kept."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multimodal_gpt import __version__
from multimodal_gpt.errors import UserError, nearest
from multimodal_gpt.evaluation.documents import Piece, held_out, read_folder, spread, training
from multimodal_gpt.evaluation.subject import Scope, Subject
from multimodal_gpt.evaluation.tables import Table, from_plain, to_plain
from multimodal_gpt.files import make_folder, write_text
from multimodal_gpt.generation.session import Run

QUESTIONS = {
    "likelihood": "prediction.prediction",
    "gain": "context_gain.context_gain",
    "compression": "compressed.compressed",
    "harmony": "harmony.harmonisation",
    "control": "control.control",
    "readout": "readout.readout",
    "realism": "realism.realism",
    "cost": "cost.cost",
}
"""Name on the command line -> function of this package."""
RESULT, PAGE = "evaluation.json", "evaluation.html"
FORMAT = 1


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Answers about one run.

    Args:
        facts: the run, its checkpoint, what it was judged by, and how.
        tables: one for each question.
    """

    facts: Mapping[str, Any]
    tables: tuple[Table, ...]


def questions(only: Sequence[str]) -> list[str]:
    """The questions that were named, in their order; all where none is. Raises UserError."""
    for name in only:
        if name not in QUESTIONS:
            raise UserError(f"there is no question '{name}'", "--only", nearest(name, list(QUESTIONS)))
    return [name for name in QUESTIONS if not only or name in only]


def evaluate(
    run: Run,
    *,
    data: Path | None = None,
    only: Sequence[str] = (),
    scope: Scope = Scope(),  # noqa: B008 (frozen)
    specialists: Mapping[str, Run] | None = None,
    advance: Callable[[str], object] = lambda note: None,
) -> Evaluation:
    """Put questions to a run.

    Args:
        run: the run.
        data: a folder (or file) of documents to judge it by; None = those that were held out in training.
        only: names of QUESTIONS; all where there are none.
        scope: how much is measured.
        specialists: modality -> run that was trained on nothing else, the base that context has to beat.
        advance: called now and then with a note on what is being done.

    Raises UserError where there is nothing to judge by, or a question is unknown.
    """
    asked = questions(only)
    started = time.perf_counter()
    found, skips = _documents(run, data)
    pieces = spread(found, scope.documents)
    subject = Subject(run, pieces, training(run), scope, dict(specialists or {}), advance)
    tables = [_answer(name, subject) for name in asked]
    facts = {
        "format": FORMAT,
        "made_by": f"multimodal_gpt {__version__}",
        "run": str(run.vocabulary.folder or ""),
        "checkpoint": {key: run.info.get(key) for key in ("sha256", "step", "tokens", "fingerprint")},
        "parameters": run.net.parameter_count,
        "data": str(data) if data else "held out in training",
        "documents": len(pieces),
        "of": len(found),
        "training_documents": len(subject.training),
        "skipped": list(skips),
        "seed": scope.seed,
        "samples": scope.samples,
        "seconds": round(time.perf_counter() - started, 1),
    }
    return Evaluation(facts, tuple(tables))


def _documents(run: Run, data: Path | None) -> tuple[tuple[Piece, ...], tuple[str, ...]]:
    if data is not None:
        return read_folder(run, data)
    try:
        found = held_out(run)
    except UserError as error:
        raise UserError(
            "the held-out documents are not there", error.where, "name some: --data FOLDER"
        ) from error
    if not found:
        raise UserError("no document was held out", run.vocabulary.folder or "", "name some: --data FOLDER")
    return found, ()


def _answer(name: str, subject: Subject) -> Table:
    module, _, function = QUESTIONS[name].partition(".")
    question: Callable[[Subject], Table] = getattr(
        importlib.import_module(f"multimodal_gpt.evaluation.{module}"), function
    )
    return question(subject)


def save(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write `evaluation.json` and `evaluation.html` into a folder."""
    from multimodal_gpt.evaluation.page import page

    make_folder(folder)
    plain = {**evaluation.facts, "tables": [to_plain(table) for table in evaluation.tables]}
    return [
        write_text(folder / RESULT, json.dumps(plain, indent=1) + "\n"),
        write_text(folder / PAGE, page(evaluation)),
    ]


def load(path: Path) -> Evaluation:
    """What `save` wrote: an `evaluation.json`, or the folder or run that holds it. Raises UserError."""
    places = [path, path / RESULT, path / "evaluation" / RESULT]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise UserError("has not been evaluated", path, f"mmgpt evaluate {path}")
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        facts = {key: value for key, value in plain.items() if key != "tables"}
        if facts["format"] != FORMAT:
            raise UserError(f"has format {facts['format']}, this version reads {FORMAT}", file)
        return Evaluation(facts, tuple(from_plain(table) for table in plain["tables"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError("the file is damaged", file, "evaluate again") from error
