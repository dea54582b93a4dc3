"""What a run costs: its size, how fast it reads and makes tokens, the memory of the process."""

from __future__ import annotations

import resource
import sys
import time
from statistics import median

from multimodal_gpt.errors import UserError
from multimodal_gpt.evaluation.likelihood import charge
from multimodal_gpt.evaluation.subject import Subject
from multimodal_gpt.evaluation.tables import HIGHER, LOWER, MODEL, Figure, Row, Table

ROUNDS = 3
BATCH = 16
ABOUT = """Of this machine, today, beside whatever else it does: compare only figures of one machine.
Reading: one forward pass over a held-out document. Making: new pieces from nothing, grammar included,
medians of three rounds. Peak memory is that of the whole process so far, libraries and data included."""


def cost(subject: Subject) -> Table:
    """Parameters, tokens per second, seconds per piece, memory."""
    rows = [
        Row("parameters", "million", "", 1, {MODEL: Figure(subject.run.net.parameter_count / 1e6)}),
        *_reading(subject),
        *(row for name in subject.run.vocabulary.names for row in _making(subject, name)),
        Row("peak memory", "MB", LOWER, 1, {MODEL: Figure(_peak())}),
    ]
    where = f"measured on {subject.run.engine.device.type}, {_threads()} threads"
    return Table("cost", "What does it cost?", ABOUT, (MODEL,), tuple(rows), (where,))


def _reading(subject: Subject) -> list[Row]:
    run = subject.run
    for piece in subject.pieces:
        name = max(piece.segments, key=lambda n: len(piece.segments[n].ids))
        seen = {name: piece.segments[name]}
        if len(seen[name].ids) + 4 > run.net.config.context:
            continue
        speeds = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            charge(run.net, run.vocabulary, seen, ((name,),), name)
            speeds.append((len(seen[name].ids) + 4) / (time.perf_counter() - started))
            subject.advance("reading")
        return [Row(f"reading {name}", "tokens/s", HIGHER, ROUNDS, {MODEL: Figure(median(speeds))})]
    return []


def _making(subject: Subject, name: str) -> list[Row]:
    """One piece at a time, and a batch."""
    rows = []
    for count in (1,) if subject.scope.quick else (1, BATCH):
        speeds, seconds = [], []
        for round_ in range(ROUNDS):
            started = time.perf_counter()
            try:
                made = subject.run.generate(to=name, n=count, seed=subject.scope.seed + round_)
            except UserError:
                return []
            spent = time.perf_counter() - started
            speeds.append(sum(piece.info["tokens"][name] for piece in made) / spent)
            seconds.append(spent / count)
            subject.advance(f"making {name}")
        label = f"making {name}" if count == 1 else f"making {name}, {count} at once"
        rows.append(Row(label, "tokens/s", HIGHER, ROUNDS, {MODEL: Figure(median(speeds))}))
        rows.append(Row(label, "s/piece", LOWER, ROUNDS, {MODEL: Figure(median(seconds))}))
    return rows


def _peak() -> float:
    """Megabytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 2**10


def _threads() -> int:
    import torch

    return torch.get_num_threads()
