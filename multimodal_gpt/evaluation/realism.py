"""Realism, validity, novelty: whether what a run writes is like human tunes, can be opened, and is new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.evaluation import novelty
from multimodal_gpt.evaluation.documents import Piece, holding, spread
from multimodal_gpt.evaluation.making import USUAL, Prompt, make
from multimodal_gpt.evaluation.music import Roles, content_of, roles_of
from multimodal_gpt.evaluation.overlap import FEATURES, likeness
from multimodal_gpt.evaluation.prompts import HELD_OUT, part_of, tunes
from multimodal_gpt.evaluation.subject import Subject
from multimodal_gpt.evaluation.tables import HIGHER, LOWER, MODEL, Figure, Row, Table, ratio_row
from multimodal_gpt.generation.sampling import Sampling

HUMAN = "human"
COLUMNS = (MODEL, HUMAN)
WILD = Sampling(temperature=3.0)
"""Hot enough that a model's own sense of what is legal plays no part."""
WILD_TOKENS = 200
ABOUT = (
    "Tunes made for held-out prompts, or without a prompt where a run takes none. Overlap: of the distances "
    "between made and held-out human tunes with those among the human ones (Yang and Lerch, 2020), beside "
    "that of training tunes, as many. Known stretches: of 12 intervals, in any key and rhythm, that some "
    "training tune has too, beside those of held-out human tunes."
)


def realism(subject: Subject) -> Table:
    """The table of the question; without rows where a run makes no melodies."""
    roles = roles_of(subject.run)
    made = [] if roles.melody is None else _made(subject, roles)
    if roles.melody is None or not made:
        return _table((), ("the run makes no melodies",))
    melody = roles.melody
    human = [_contents(subject, piece, roles) for piece in holding(subject.pieces, melody)]
    notes: list[str] = []
    rows = _validity(subject, roles, made, human)
    if len(made) > 1 and len(human) > 2:
        rows += _overlaps(subject, melody, [m[melody] for m in made], [h[melody] for h in human])
    else:
        notes.append("too few tunes to compare how they are distributed")
    known = [content_of(subject.run.vocabulary, p, melody).notes for p in holding(subject.training, melody)]
    if known:
        rows += _novelty(known, [m[melody].notes for m in made], [h[melody].notes for h in human])
    else:
        notes.append("training documents are not there: novelty is left out")
    return _table(tuple(rows), tuple(notes))


def _table(rows: tuple[Row, ...], notes: tuple[str, ...]) -> Table:
    return Table("realism", "Is it like human music, and new?", ABOUT, COLUMNS, rows, notes)


Contents = Mapping[str, Any]


def _made(subject: Subject, roles: Roles) -> list[Contents]:
    """What was made for prompts that describe held-out tunes, or else for none."""
    worded = [tune.made for tune in tunes(subject) if tune.order.kind == HELD_OUT]
    if worded:
        return worded
    prompts = [Prompt(key=(subject.scope.seed, number)) for number in range(subject.scope.samples)]
    made = make(subject.run, part_of(subject, roles), prompts, USUAL, subject.advance)
    return [piece for piece in made if piece is not None]


def _contents(subject: Subject, piece: Piece, roles: Roles) -> Contents:
    names = [n for n in (roles.melody, roles.chords) if n is not None and n in piece.segments]
    return {name: content_of(subject.run.vocabulary, piece, name) for name in names}


# Validity


def _validity(
    subject: Subject, roles: Roles, made: Sequence[Contents], human: Sequence[Contents]
) -> list[Row]:
    part = part_of(subject, roles)
    prompts = [Prompt(key=(subject.scope.seed, number)) for number in range(min(8, subject.scope.samples))]
    wild = make(subject.run, part, prompts, WILD, subject.advance, most=WILD_TOKENS)
    rows = []
    for name, several in (
        ("opens in two readers", made),
        ("the same at temperature 3", [w for w in wild if w]),
    ):
        if several:
            figures = {MODEL: _opening(subject, several)}
            if human and several is made:
                figures[HUMAN] = _opening(subject, human)
            rows.append(Row(name, "share of files", HIGHER, len(several), figures))
    return rows


def _opening(subject: Subject, several: Sequence[Contents]) -> Figure:
    return Figure(float(np.mean([opens(subject, contents) for contents in several])))


def opens(subject: Subject, contents: Contents) -> bool:
    """Whether contents can be written into one file, and mido and symusic both find notes in it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tune.mid"
        try:
            for number, (name, content) in enumerate(contents.items()):
                subject.run.vocabulary.tokenizer(name).write(content, path, append=number > 0)
        except UserError:
            return False
        return readable(path)


def readable(path: Path) -> bool:
    """Whether mido and symusic both read a MIDI file and find at least one note in it."""
    import mido
    import symusic

    try:
        messages = [message for track in mido.MidiFile(path).tracks for message in track]
        notes = sum(message.type == "note_on" and message.velocity > 0 for message in messages)
        return bool(notes > 0 and symusic.Score(path).note_num() > 0)
    except Exception:  # readers raise whatever a broken file makes them meet
        return False


# Realism


def _overlaps(subject: Subject, melody: str, made: Sequence[Any], human: Sequence[Any]) -> list[Row]:
    trained = spread(holding(subject.training, melody), len(made))
    sets = {MODEL: made, HUMAN: [content_of(subject.run.vocabulary, piece, melody) for piece in trained]}
    describe = subject.run.vocabulary.tokenizer(melody).describe
    bars = {name: [int(describe(content)["bars"]) for content in several] for name, several in sets.items()}
    their_bars = [int(describe(content)["bars"]) for content in human]
    rows = []
    for name, feature in FEATURES.items():
        theirs = [feature(content.notes, count) for content, count in zip(human, their_bars, strict=True)]
        figures = {}
        for column, several in sets.items():
            if several:
                mine = [feature(c.notes, count) for c, count in zip(several, bars[column], strict=True)]
                figures[column] = Figure(likeness(mine, theirs))
        rows.append(Row(f"overlap: {name}", "area", HUMAN if trained else HIGHER, len(made), figures))
    mean = {c: Figure(float(np.mean([row.figures[c].value for row in rows]))) for c in rows[0].figures}
    return [*rows, Row("overlap: mean of these", "area", rows[0].better, len(made), mean)]


# Novelty


def _novelty(
    known: Sequence[np.ndarray], made: Sequence[np.ndarray], human: Sequence[np.ndarray]
) -> list[Row]:
    """Model and human tunes are different documents, so each column has its own mean."""
    there = novelty.Known(known)
    shares, runs = {}, {}
    for column, several in ((MODEL, made), (HUMAN, human)):
        counts = [novelty.copied(notes, there) for notes in several]
        shares[column] = np.array([found / total for found, total in counts if total])
        runs[column] = np.array([novelty.longest_run(notes, there) for notes in several], dtype=float)
    return [
        _means("known stretches of 12 intervals", "share", shares, len(made)),
        _means(
            "tunes of which half is known",
            "share of tunes",
            {c: s > 0.5 for c, s in shares.items()},
            len(made),
        ),
        _means("longest known run, mean", "notes", runs, len(made)),
        Row(
            "longest known run of all",
            "notes",
            LOWER,
            len(made),
            {column: Figure(float(values.max())) for column, values in runs.items() if len(values)},
        ),
    ]


def _means(name: str, unit: str, values: Mapping[str, np.ndarray], count: int) -> Row:
    figures: dict[str, Figure] = {}
    for column, found in values.items():
        if len(found):
            figures |= ratio_row(name, unit, LOWER, {column: found}, np.ones(len(found))).figures
    return Row(name, unit, LOWER, count, figures)
