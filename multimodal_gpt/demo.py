"""What `mmgpt demo` does: prepare real music, train a small model on it, ask in four directions, check."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from multimodal_gpt import console
from multimodal_gpt.errors import UserError
from multimodal_gpt.recipe.load import load_recipe
from multimodal_gpt.recipe.schema import Recipe

QUICK = (
    "data.limit=150",
    "model.depth=2",
    "model.width=64",
    "train.steps=40",
    "train.evaluate_every=40",
    "train.evaluate_rows=8",
)
"""A model that learns next to nothing, in about a minute."""
PIECES = 2
"""Per direction."""
PROMPT_SHARE = 0.4
"""Longest prompt, as a share of the context: the answer needs room too."""


@dataclass(frozen=True)
class Direction:
    """One question: what is given, and what is wanted; without `words`, a held-out segment is given."""

    name: str
    given: str
    wanted: str
    words: str = ""


DIRECTIONS = (
    Direction("words to tune", "text", "melody", "a jig in D major"),
    Direction("melody to chords", "melody", "chords"),
    Direction("chords to melody", "chords", "melody"),
    Direction("tune to words", "melody", "text"),
)


@dataclass(frozen=True)
class Answer:
    """The pieces made for one direction: prompt, results as a reader sees them, files, and their faults."""

    direction: str
    prompt: str
    made: tuple[str, ...]
    files: tuple[str, ...]
    faults: tuple[str, ...]
    tokens: int
    seconds: float


@dataclass(frozen=True)
class DemoResult:
    """Everything the demo shows. Losses are nats per token; seconds are by stage."""

    folder: Path
    untrained: Mapping[str, float]
    trained: Mapping[str, float]
    answers: tuple[Answer, ...]
    seconds: Mapping[str, float]
    training_tokens_per_second: float

    def plain(self) -> dict[str, Any]:
        """All of it as JSON holds it."""
        return {**asdict(self), "folder": str(self.folder), "legal": self.legal}

    @property
    def legal(self) -> bool:
        """Whether every file opened and held something."""
        return not any(answer.faults for answer in self.answers)

    def print(self) -> None:
        """Tables of losses, answers and speed, and where the files are."""
        losses = [(name, loss, self.trained.get(name)) for name, loss in self.untrained.items()]
        console.table("Loss on held-out tunes, nats per token", ["modality", "untrained", "trained"], losses)
        rows = [(a.direction, a.prompt, a.made[0], ", ".join(a.faults) or "all open") for a in self.answers]
        console.table("Asked", ["direction", "given", "made", "files"], rows)
        made, spent = sum(a.tokens for a in self.answers), sum(a.seconds for a in self.answers)
        speeds = [
            *((what, console.duration(seconds)) for what, seconds in self.seconds.items()),
            ("training", f"{self.training_tokens_per_second:,.0f} tokens/s"),
            ("generating", f"{made / max(spent, 1e-9):,.0f} tokens/s"),
        ]
        console.table("Time and speed", ["what", "how much"], speeds)
        for answer in self.answers:
            console.say(f"{answer.direction}: {Path(answer.files[0]).parent}")
        ask = f'mmgpt generate {self.folder} --text "a jig in D major" --to melody,chords -n 4 --out out'
        console.say(f"Now ask it yourself:\n  {ask}")


def run_demo(out: Path | None = None, *, quick: bool = False, restart: bool = False) -> DemoResult:
    """The whole demo; run again, it goes on where it stopped and uses what is there."""
    started = time.perf_counter()
    # 1) The recipe, and the music that comes inside the music21 package.
    recipe = load_recipe("demo", QUICK if quick else ())
    folder = out or Path("runs/demo-quick" if quick else "runs/demo")
    recipe = recipe.model_copy(update={"run": str(folder)})
    from multimodal_gpt.data.prepare import prepare

    report = prepare(recipe)
    report.print()
    prepared = time.perf_counter()

    # 2) Train.
    from multimodal_gpt.training.run import train

    result = train(recipe, restart=restart)
    trained = time.perf_counter()

    # 3) Ask in four directions, with music that the model has never seen.
    answers = ask(recipe, folder, report.folder)
    done = time.perf_counter()
    return DemoResult(
        folder=folder,
        untrained=result.untrained,
        trained=result.valid,
        answers=answers,
        seconds={"prepare": prepared - started, "train": trained - prepared, "generate": done - trained},
        training_tokens_per_second=result.tokens_per_second,
    )


def ask(recipe: Recipe, folder: Path, shards: Path) -> tuple[Answer, ...]:
    """Generate every direction and check every file."""
    from multimodal_gpt.generation import session

    run = session.load(folder)
    prompts = find_prompts(shards, [d.given for d in DIRECTIONS], int(PROMPT_SHARE * recipe.model.context))
    answers = []
    with console.progress(len(DIRECTIONS) * PIECES, "generate") as bar:
        for direction, ids in zip(DIRECTIONS, prompts, strict=True):
            given: dict[str, Any] = {
                direction.given: direction.words or run.vocabulary.decode(direction.given, ids)
            }
            pieces = run.generate(
                to=direction.wanted, n=PIECES, seed=recipe.seed, progress=bar.advance, **given
            )
            shown = direction.words or run.vocabulary.tokenizer(direction.given).show(ids)
            answers.append(
                _answer(direction, shown, pieces, folder / "demo" / direction.name.replace(" ", "_"))
            )
    return tuple(answers)


def _answer(direction: Direction, prompt: str, pieces: Sequence[Any], folder: Path) -> Answer:
    from multimodal_gpt.generation.output import write_all

    paths = [path for paths in write_all(pieces, folder, force=True) for path in paths]
    return Answer(
        direction=direction.name,
        prompt=_short(prompt),
        made=tuple(_short(piece.info["shown"][direction.wanted]) for piece in pieces),
        files=tuple(str(path) for path in paths),
        faults=tuple(fault for path in paths if (fault := fault_of(path))),
        tokens=sum(piece.info["tokens"][direction.wanted] for piece in pieces),
        seconds=sum(piece.seconds for piece in pieces),
    )


def find_prompts(shards: Path, names: Sequence[str], longest: int) -> list[Any]:
    """Ids of a held-out segment for each name, at most `longest` tokens, each from another document."""
    from multimodal_gpt.data.shards import open_shards

    valid = open_shards(shards, "valid")
    used: set[int] = set()
    prompts = []
    for name in names:
        fitting = (
            (index, segment.ids)
            for index in range(len(valid))
            for segment in valid.segments(index)
            if segment.modality == name and len(segment.ids) <= longest
        )
        found = sorted(fitting, key=lambda pair: (pair[0] in used, pair[0]))
        if not found:
            raise UserError(f"no held-out document has '{name}' within {longest} tokens", shards)
        used.add(found[0][0])
        prompts.append(found[0][1])
    return prompts


def fault_of(path: Path) -> str:
    """What is wrong with a file, as another program would find: "" where it opens and holds something."""
    if path.suffix == ".mid":
        return _midi_fault(path)
    if path.suffix == ".txt":
        words = path.read_bytes().decode("utf-8", errors="replace")
        return "" if words.strip() and "\ufffd" not in words else f"{path.name}: {words[:20]!r}"
    return "" if path.stat().st_size else f"{path.name} is empty"


def _midi_fault(path: Path) -> str:
    import mido
    import symusic

    try:
        notes = sum(len(track.notes) for track in symusic.Score(path).tracks)
        played = sum(m.type == "note_on" and m.velocity > 0 for m in mido.MidiFile(path))
    except Exception as error:  # whatever a reader may raise, the file is at fault
        return f"{path.name} does not open: {error}"
    return "" if notes and notes == played else f"{path.name}: {notes} notes, {played} played"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."
