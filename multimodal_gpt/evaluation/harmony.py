"""Harmonisation: the chords that a run gives to melodies it has not met.

Every figure of the model stands beside that of the chords a human wrote for the same melody, those of another
tune put under it, its tonic triad from beginning to end, and two harmonisers without a network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.evaluation import harmony_floors, harmony_measures
from multimodal_gpt.evaluation.context_gain import derange
from multimodal_gpt.evaluation.documents import Piece, holding, spread
from multimodal_gpt.evaluation.making import USUAL, Prompt, fitting, is_trained, make
from multimodal_gpt.evaluation.music import (
    CLASSES,
    Harmony,
    Roles,
    bar_classes,
    bar_tones,
    bars_of,
    content_of,
    harmony_of,
    key_of,
    one_chord,
    repeated,
    roles_of,
    tonic_of,
)
from multimodal_gpt.evaluation.subject import Subject
from multimodal_gpt.evaluation.tables import HIGHER, MODEL, Figure, Row, Table, ratio_row
from multimodal_gpt.generation.sampling import Sampling
from multimodal_gpt.generation.session import Run
from multimodal_gpt.stream.arrangement import crop
from multimodal_gpt.stream.vocabulary import Encoded
from multimodal_gpt.tokenizers._music import TICKS

HUMAN, STRANGER, TONIC = "human", "another tune's", "tonic only"
TEMPLATE, MARKOV = "triad template", "hidden Markov"
COLUMNS = (MODEL, HUMAN, STRANGER, TONIC, TEMPLATE, MARKOV)
LIKELIEST = Sampling(temperature=0.0)
TOKENS_PER_BAR = 6
"""What is kept free for the chords of a bar where a melody has to be cut to fit the context."""
ABOUT = (
    "Chords made for held-out melodies. CHE, CC, CTD, CTnCTR, PCS and MCTD are those of Yeh et al. (2021), "
    "mean over tunes: good is what comes close to the human chords. Bar accuracy: the major or minor triad "
    "that sounds longest in a bar is the human one. Variety is the Vendi score (Friedman and Dieng, 2023): "
    "how many different things there are in effect."
)


@dataclass(frozen=True, eq=False)
class Case:
    """A melody and what a human wrote for it.

    Args:
        source: its name.
        given: the melody as ids, cut to what the context holds.
        notes: (N, 3) the same as notes.
        table: (E, 3) the human chords: tick, duration, code.
        lines: (B + 1,) ticks of the bar lines, the end among them.
        tonic, minor: of its key.
    """

    source: str
    given: Mapping[str, Encoded]
    notes: np.ndarray
    table: np.ndarray
    lines: np.ndarray
    tonic: int
    minor: bool

    @property
    def end(self) -> int:
        """Ticks."""
        return int(self.lines[-1])


def harmonisation(subject: Subject) -> Table:
    """The table of the question; without rows where a run has no melodies and chords."""
    roles = roles_of(subject.run)
    pieces = _pieces(subject, roles)
    if roles.melody is None or roles.chords is None or not pieces:
        return _table((), ("the run, or what is held out, has no melody with chords",))
    found = [_case(subject.run, piece, roles) for piece in pieces]
    cases = [case for case in found if case is not None]
    drawn, likeliest, several = _made(subject, cases, roles.chords)
    kept = [i for i, made in enumerate(drawn) if made is not None and likeliest[i] is not None]
    if not kept:
        return _table((), ("no melody leaves room for chords in the model's context",))
    cases = [cases[i] for i in kept]
    rivals = _rivals(subject, cases, roles)
    answers = {MODEL: [harmony for i in kept if (harmony := drawn[i]) is not None], **rivals}
    best = [harmony for i in kept if (harmony := likeliest[i]) is not None]
    rows = [
        *_measure_rows(cases, answers),
        _accuracy_row("bar accuracy, drawn", cases, answers),
        _accuracy_row("bar accuracy, likeliest", cases, {**answers, MODEL: best}),
        *_variety_rows(cases, answers, several),
    ]
    return _table(tuple(rows), _notes(subject, roles, pieces, cases))


def _table(rows: tuple[Row, ...], notes: tuple[str, ...]) -> Table:
    return Table("harmony", "Which chords does it give to a melody?", ABOUT, COLUMNS, rows, notes)


def _notes(subject: Subject, roles: Roles, pieces: Sequence[Piece], cases: Sequence[Case]) -> tuple[str, ...]:
    notes = []
    if not is_trained(subject.run, (str(roles.chords),), (str(roles.melody),)):
        notes.append(
            "no arrangement of the recipe shows chords after or beside a melody: it never learnt this"
        )
    whole = [len(piece.segments[str(roles.melody)].ids) for piece in pieces]
    seen = {case.source: len(case.given[str(roles.melody)].ids) for case in cases}
    cut = sum(seen.get(p.source, length) < length for p, length in zip(pieces, whole, strict=True))
    if cut:
        notes.append(f"{cut} of {len(pieces)} melodies are longer than the context: their first bars count")
    if len(cases) < len(pieces):
        notes.append(
            f"{len(pieces) - len(cases)} melodies leave no room for chords, or have none, and are left out"
        )
    if not subject.training:
        notes.append("training documents are not there: no hidden Markov model")
    return tuple(notes)


# What is compared


def _pieces(subject: Subject, roles: Roles) -> tuple[Piece, ...]:
    if roles.melody is None or roles.chords is None:
        return ()
    return spread(holding(subject.pieces, roles.melody, roles.chords), subject.scope.samples)


def _case(run: Run, piece: Piece, roles: Roles) -> Case | None:
    """None where the bars that fit the context hold no note, or no chord."""
    melody, chords = str(roles.melody), str(roles.chords)
    given = fitting(run, {melody: piece.segments[melody]}, TOKENS_PER_BAR)
    try:
        content = run.vocabulary.decode(melody, given[melody].ids)
        last = int((content.notes[:, 0] + content.notes[:, 1]).max())
        lines = bars_of(content.meters, max(last, round(given[melody].times[-1] * TICKS) + 1))
        below = crop({chords: piece.segments[chords]}, 0.0, lines[-1] / TICKS)
        table = run.vocabulary.decode(chords, below[chords].ids).table
    except (KeyError, UserError):
        return None
    key = key_of(piece.metadata, content.notes)
    return Case(piece.source, given, content.notes, table, lines, tonic_of(key), key[1])


Made = list[Harmony | None]


def _made(subject: Subject, cases: Sequence[Case], chords: str) -> tuple[Made, Made, list[list[np.ndarray]]]:
    """One drawn harmony for each case, the likeliest one, and for a few cases `_slots` of several drawn."""
    scope = subject.scope
    few, times = (2, 4) if scope.quick else (8, 8)
    chosen = np.linspace(0, len(cases) - 1, min(few, len(cases))).astype(int).tolist()
    again = [(i, turn) for i in chosen for turn in range(1, times)]
    turns = [*((i, 0) for i in range(len(cases))), *again]
    prompts = [Prompt(cases[i].given, (scope.seed, i, turn)) for i, turn in turns]
    drawn = _harmonies(make(subject.run, (chords,), prompts, USUAL, subject.advance), chords)
    likeliest = make(subject.run, (chords,), prompts[: len(cases)], LIKELIEST, subject.advance)
    several: dict[int, list[Harmony]] = {}
    for (i, _), harmony in zip(turns, drawn, strict=True):
        if i in chosen and harmony is not None:
            several.setdefault(i, []).append(harmony)
    alike = [_slots(several[i], cases[i].end) for i in chosen if len(several.get(i, ())) == times]
    return drawn[: len(cases)], _harmonies(likeliest, chords), alike


def _harmonies(made: Sequence[dict[str, Any] | None], chords: str) -> Made:
    return [None if piece is None else harmony_of(piece[chords].table) for piece in made]


def _rivals(subject: Subject, cases: Sequence[Case], roles: Roles) -> dict[str, list[Harmony]]:
    rivals = {HUMAN: [harmony_of(case.table) for case in cases]}
    if len(cases) > 1:
        others = derange(len(cases), subject.scope.seed).tolist()
        rivals[STRANGER] = [
            harmony_of(repeated(cases[other].table, cases[other].end, case.end))
            for case, other in zip(cases, others, strict=True)
        ]
    rivals[TONIC] = [one_chord(case.tonic + 12 * case.minor, case.end) for case in cases]
    heard = [bar_tones(case.notes, case.lines) for case in cases]
    fitted = (harmony_floors.template(h, c.tonic, c.minor) for h, c in zip(heard, cases, strict=True))
    rivals[TEMPLATE] = [_of_bars(found, case.lines) for found, case in zip(fitted, cases, strict=True)]
    models = _markov(subject, roles)
    if models:
        rivals[MARKOV] = [_explained(models, h, case) for h, case in zip(heard, cases, strict=True)]
    return rivals


def _of_bars(classes: np.ndarray, lines: np.ndarray) -> Harmony:
    """A triad a bar, equal neighbours joined."""
    first = np.flatnonzero(np.diff(classes, prepend=-1))
    chords = [one_chord(int(klass), 1) for klass in classes[first]]
    joined = (
        np.concatenate([getattr(chord, part) for chord in chords])
        for part in ("tones", "triad", "label", "klass")
    )
    return Harmony(lines[first], np.append(lines[first[1:]], lines[-1]), *joined)


def _markov(subject: Subject, roles: Roles) -> dict[bool, harmony_floors.Learnt]:
    """By mode, a model learnt from the training documents, all of them moved to C."""
    told: dict[bool, list[tuple[np.ndarray, np.ndarray]]] = {False: [], True: []}
    for piece in holding(subject.training, str(roles.melody), str(roles.chords)):
        case = _case_of_training(subject.run, piece, roles)
        classes = harmony_floors.turned(bar_classes(harmony_of(case.table), case.lines), -case.tonic)
        heard = np.roll(bar_tones(case.notes, case.lines), -case.tonic, axis=1)
        told[case.minor].append((classes, heard))
    if not any(told.values()):
        return {}
    return {
        minor: harmony_floors.learn([c for c, _ in found], [h for _, h in found])
        for minor, found in told.items()
    }


def _case_of_training(run: Run, piece: Piece, roles: Roles) -> Case:
    melody = content_of(run.vocabulary, piece, str(roles.melody))
    table = content_of(run.vocabulary, piece, str(roles.chords)).table
    last = int((melody.notes[:, 0] + melody.notes[:, 1]).max())
    key = key_of(piece.metadata, melody.notes)
    lines = bars_of(melody.meters, last)
    return Case(piece.source, {}, melody.notes, table, lines, tonic_of(key), key[1])


def _explained(models: Mapping[bool, harmony_floors.Learnt], heard: np.ndarray, case: Case) -> Harmony:
    found = harmony_floors.decode(models[case.minor], np.roll(heard, -case.tonic, axis=1))
    return _of_bars(harmony_floors.turned(found, case.tonic), case.lines)


# Rows


Measure = Callable[[Case, Harmony], float]
MEASURES: tuple[tuple[str, str, Measure], ...] = (
    ("CHE, chord histogram entropy", "nats", lambda case, h: harmony_measures.chord_entropy(h)),
    ("CC, chord coverage", "different chords", lambda case, h: harmony_measures.chord_coverage(h)),
    ("CTD, chord tonal distance", "distance", lambda case, h: harmony_measures.chord_distance(h)),
    ("CTnCTR, chord tone ratio", "share", lambda case, h: harmony_measures.chord_tone_ratio(case.notes, h)),
    ("PCS, pitch consonance score", "-1 to 1", lambda case, h: harmony_measures.consonance(case.notes, h)),
    (
        "MCTD, melody-chord distance",
        "distance",
        lambda case, h: harmony_measures.melody_distance(case.notes, h),
    ),
    ("chords a bar", "chords", lambda case, h: len(h.start) / max(1, len(case.lines) - 1)),
)


def _measure_rows(cases: Sequence[Case], answers: Mapping[str, Sequence[Harmony]]) -> list[Row]:
    rows = []
    for name, unit, measure in MEASURES:
        found = {
            c: np.array([measure(*pair) for pair in zip(cases, hs, strict=True)]) for c, hs in answers.items()
        }
        rows.append(mean_row(name, unit, HUMAN, found, [case.source for case in cases]))
    return [*(row for row in rows if row is not None), *_time_row(cases, answers)]


def _time_row(cases: Sequence[Case], answers: Mapping[str, Sequence[Harmony]]) -> list[Row]:
    """The share of the notes' time in which they are tones of their chord; where a harmony has no chord the
    notes are in none.
    """
    sums = {
        column: [harmony_measures.time_in_chord(c.notes, h)[0] for c, h in zip(cases, harmonies, strict=True)]
        for column, harmonies in answers.items()
    }
    units = [float(case.notes[:, 1].sum()) for case in cases]
    sources = [case.source for case in cases]
    return [ratio_row("notes in their chord", "share of time", HUMAN, sums, units, sources)]


def mean_row(
    name: str, unit: str, better: str, values: Mapping[str, np.ndarray], sources: Sequence[str]
) -> Row | None:
    """A row of means over documents, of (N,) values by column; without the documents where one is NaN, None
    where none is left.
    """
    there = ~np.any([np.isnan(column) for column in values.values()], axis=0)
    if not there.any():
        return None
    kept = {column: found[there] for column, found in values.items()}
    names = [source for source, known in zip(sources, there, strict=True) if known]
    return ratio_row(name, unit, better, kept, np.ones(int(there.sum())), names)


def _accuracy_row(name: str, cases: Sequence[Case], answers: Mapping[str, Sequence[Harmony]]) -> Row:
    true = [bar_classes(harmony_of(case.table), case.lines) for case in cases]
    sums = {
        column: [
            float(((bar_classes(h, case.lines) == t) & (t >= 0)).sum())
            for case, h, t in zip(cases, harmonies, true, strict=True)
        ]
        for column, harmonies in answers.items()
        if column != HUMAN
    }
    units = [float((t >= 0).sum()) for t in true]
    return ratio_row(name, "share of bars", HIGHER, sums, units, [case.source for case in cases])


def _variety_rows(
    cases: Sequence[Case], answers: Mapping[str, Sequence[Harmony]], several: Sequence[Sequence[np.ndarray]]
) -> list[Row]:
    rows = []
    if several:
        scores = [harmony_measures.vendi(_agreement(np.array(slots))) for slots in several]
        name = f"variety of {len(several[0])} harmonies of one melody"
        values = {MODEL: np.array(scores), TONIC: np.ones(len(scores))}
        row = mean_row(name, "Vendi score", "", values, [""] * len(scores))
        rows += [] if row is None else [row]
    if len(cases) > 1:
        figures = {
            column: Figure(harmony_measures.vendi(_likeness(cases, harmonies)))
            for column, harmonies in answers.items()
        }
        rows.append(Row(f"variety across {len(cases)} tunes", "Vendi score", HUMAN, len(cases), figures))
    return rows


def _slots(harmonies: Sequence[Harmony], end: int) -> list[np.ndarray]:
    """For each harmony the class in each sixteenth, -1 where there is no chord."""
    ticks = np.arange(0, end, harmony_measures.WINDOW)
    return [np.append(h.klass, -1)[h.at(ticks)] for h in harmonies]


def _agreement(slots: np.ndarray) -> np.ndarray:
    """(S, S) share of sixteenths with the same class, of (S, T) classes."""
    return np.asarray((slots[:, None] == slots).mean(axis=2))


def _likeness(cases: Sequence[Case], harmonies: Sequence[Harmony]) -> np.ndarray:
    """(S, S) cosine of how much time each class takes, counted from the tune's tonic."""
    rows = []
    for case, h in zip(cases, harmonies, strict=True):
        turned = harmony_floors.turned(h.klass, -case.tonic)
        rows.append(np.bincount(turned, weights=h.stop - h.start, minlength=CLASSES))
    time = np.array(rows)
    size = np.maximum(np.linalg.norm(time, axis=1, keepdims=True), 1e-12)
    return np.asarray((time / size) @ (time / size).T)
