"""Four tasks on three well-known figures with three seeds: is what a run makes in key, is the known kept?

    python benchmarks/acceptance.py RUN [--device cpu]

Figures: the first phrases of three traditional tunes, in G major, D minor and A major, 4/4, 3/4 and 6/8.

    continue      four bars more of the melody
    harmonise     chords for the melody
    vary          new pitches for half of the notes, the rhythm kept
    fill          the two middle bars anew, the chords given

In key: the share of the new notes (of chords: of their tones) in the scale of the figure's key, of a minor
key with its raised sixth and seventh; at least 0.75, the mean of three seeds. Kept: the known notes, to the
tick; for `vary` all onsets and durations. Prints a JSON line per task and figure, and one in all; seconds
are wall seconds per piece. Exit code 1 where fewer than 11 of 12 are in key, or something known has moved.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

import multimodal_gpt as mm
from multimodal_gpt.tokenizers._music import Meter
from multimodal_gpt.tokenizers._wishes import scale

SEEDS = (0, 1, 2)
IN_KEY, ENOUGH = 0.75, 11
FIGURES = {  # key, meter, melody, chords
    "twinkle": (
        "G major",
        Meter(0, 4, 4),
        "G4 G4 D5 D5 | E5 E5 D5:2 | C5 C5 B4 B4 | A4 A4 G4:2",
        "| G | C G | C G | D G |",
    ),
    "greensleeves": (
        "D minor",
        Meter(0, 3, 4),
        "D5:2 F5 | G5:2 A5:0.5 Bb5:0.5 | A5 G5:1.5 E5:0.5 | C5 D5 E5",
        "| Dm | C | C | Am |",
    ),
    "jig": (
        "A major",
        Meter(0, 6, 8),
        "A4:0.5 C#5:0.5 E5:0.5 A5:0.5 E5:0.5 C#5:0.5 | D5:0.5 F#5:0.5 D5:0.5 E5:0.5 C#5:0.5 A4:0.5 | "
        "B4:0.5 D5:0.5 B4:0.5 G#4:0.5 B4:0.5 D5:0.5 | C#5:0.5 A4:0.5 B4:0.5 A4:1.5",
        "| A | D A | E | A |",
    ),
}


def main() -> int:
    """Run the kit; the exit code is 1 where it is not passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    run = mm.load(options.run, device=options.device)
    passed = kept = total = 0
    seconds: list[float] = []
    for task, ask in TASKS.items():
        for figure in FIGURES:
            shares, moved, taken = [], 0, []
            for seed in SEEDS:
                melody, chords = contents(run, figure)
                begun = time.perf_counter()
                share, known = ask(run, figure, melody, chords, seed)
                taken.append(time.perf_counter() - begun)
                shares.append(share)
                moved += not known
            total, passed, kept = total + 1, passed + (statistics.mean(shares) >= IN_KEY), kept + (moved == 0)
            seconds += taken[1:]
            say(task=task, figure=figure, in_key=rounded(shares), moved=moved, seconds=rounded(taken))
    say(in_key=f"{passed} of {total}", kept=f"{kept} of {total}", slowest=round(max(seconds), 2))
    return 0 if passed >= ENOUGH and kept == total else 1


def contents(run: Any, figure: str) -> tuple[Any, Any]:
    """Melody and chords of a figure as contents, in its meter."""
    _, meter, melody, chords = FIGURES[figure]
    tune = run.vocabulary.tokenizer("melody").parse(melody)
    chart = run.vocabulary.tokenizer("chords").parse(f"{meter.numerator}/{meter.denominator}: {chords}")
    return replace(tune, meters=(meter,)), chart


def extend(run: Any, figure: str, melody: Any, chords: Any, seed: int) -> tuple[float, bool]:
    """Continue the melody."""
    (piece,) = run.extend(melody=melody, bars=4, seed=seed)
    notes = piece.content("melody").notes
    known = notes[notes[:, 0] < _end(melody)]
    return in_key(figure, notes[len(known) :, 2]), same(known, melody.notes)


def harmonise(run: Any, figure: str, melody: Any, chords: Any, seed: int) -> tuple[float, bool]:
    """Chords for the melody."""
    (piece,) = run.generate(melody=melody, to="chords", seed=seed)
    events = piece.content("chords").events
    tones = [p for e in events for p in e.symbol.pitch_classes]
    return in_key(figure, np.array(tones)), same(piece.content("melody").notes, melody.notes)


def vary(run: Any, figure: str, melody: Any, chords: Any, seed: int) -> tuple[float, bool]:
    """New pitches for half of the notes."""
    (piece,) = run.vary(melody=melody, share=0.5, seed=seed)
    notes = piece.content("melody").notes
    return in_key(figure, notes[:, 2]), same(notes[:, :2], melody.notes[:, :2])


def fill(run: Any, figure: str, melody: Any, chords: Any, seed: int) -> tuple[float, bool]:
    """The second and third of four bars."""
    (piece,) = run.fill(melody=melody, chords=chords, to="melody", bars=(2, 3), seed=seed)
    bar = FIGURES[figure][1].bar
    notes = piece.content("melody").notes
    new = (notes[:, 0] >= bar) & (notes[:, 0] < 3 * bar)
    old = (melody.notes[:, 0] >= bar) & (melody.notes[:, 0] < 3 * bar)
    return in_key(figure, notes[new, 2]), same(notes[~new], melody.notes[~old])


TASKS: dict[str, Callable[[Any, str, Any, Any, int], tuple[float, bool]]] = {
    "continue": extend,
    "harmonise": harmonise,
    "vary": vary,
    "fill": fill,
}


def in_key(figure: str, pitches: np.ndarray) -> float:
    """The share of pitches in the scale of the figure's key."""
    return float(scale(FIGURES[figure][0])[pitches % 12].mean()) if len(pitches) else 0.0


def same(notes: np.ndarray, others: np.ndarray) -> bool:
    """Whether notes are the same."""
    return bool(notes.shape == others.shape and (notes == others).all())


def _end(melody: Any) -> int:
    return int((melody.notes[:, 0] + melody.notes[:, 1]).max())


def rounded(values: list[float]) -> list[float]:
    """Two decimals each."""
    return [round(v, 2) for v in values]


def say(**facts: Any) -> None:
    """Print one JSON line."""
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
