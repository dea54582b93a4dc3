"""How fast MIDI files become ids and shards, against MidiTok; every contender in one run, taking turns.

    OMP_NUM_THREADS=1 python benchmarks/prepare.py [FOLDER ...] [--files 400] [--rounds 5]

A FOLDER holds MIDI files, searched recursively; without one, tunes are made up. Compared, in files per CPU
second of one process, from a path to ids:

    "miditok, whole file"     MidiTok's REMI reads the file as it comes, all tracks
    "melody, whole file"      our melody modality reads the same: it also chooses the track
    "miditok, melody alone"   MidiTok's REMI reads a file that holds the meters and the melody that was found
    "melody, melody alone"    ours reads the same
    "miditok, parsed"         MidiTok's REMI encodes the melody alone, already parsed by symusic
    "melody, parsed"          ours encodes the melody that was already found
    "symusic, whole file"     what both build on, symusic's parser, reads the file and does nothing with it

The melody alone is written as its ids tell it, on the grid and one note at a time, and all ids must be the
same: ours of the whole file, ours and MidiTok's of the melody alone. If one isn't, it is named and the exit
code is 1. All contenders take ten files each in turn, so that a noisy machine is unfair to none; a ratio is
the median over rounds.

Then shards are prepared from all of them by the recipe own_folder (text, tags, chords and melody in twelve
keys) with one worker on one core and with two on two, in turn, in wall seconds, from nothing; the start of
the workers counts, and so does the process that hands out work. That ratio is one of medians. Prints one
JSON line per contender and per ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mido
from symusic import Note, Score, TimeSignature, Track

from multimodal_gpt.data.prepare import prepare
from multimodal_gpt.recipe.load import load_recipe
from multimodal_gpt.tokenizers import _midi, _remi, melody
from multimodal_gpt.tokenizers._music import TICKS

STEPS = 12
CHUNK = 10  # files in a turn


def main() -> int:
    """Run all contenders; the exit code is 1 where ids differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="MIDI files; made up if absent")
    parser.add_argument("--files", type=int, default=400, help="use at most so many to compare encoders")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prepare-rounds", type=int, default=3, help="0 = encoders only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folders = options.folders or [make_tunes(Path(name) / "tunes", options.files)]
        alone = Path(name) / "alone"
        alone.mkdir()
        files = melodies(folders, alone, options.files)
        different = compare_encoders(files, options.rounds)
        compare_workers(folders, Path(name) / "run", options.prepare_rounds)
    for path in different:
        print(f"{path}: the ids differ", file=sys.stderr)
    return 1 if different else 0


def make_tunes(folder: Path, count: int) -> Path:
    """Write `count` tunes of two unnamed tracks, a line of eighths and triplets over chords."""
    folder.mkdir()
    for index in range(count):
        rng = random.Random(index)
        numerator, denominator = rng.choice([(4, 4), (3, 4), (6, 8), (2, 4), (9, 8)])
        bar = 480 * 4 * numerator // denominator
        head = mido.MidiTrack(
            [mido.MetaMessage("time_signature", numerator=numerator, denominator=denominator)]
        )
        line, chords, pitch = mido.MidiTrack(), mido.MidiTrack(), 72
        for _ in range(24):
            root, left = rng.choice([48, 53, 55, 57]), bar
            for i, kind in enumerate(["note_on"] * 3 + ["note_off"] * 3):
                chords.append(
                    mido.Message(kind, note=root + (0, 4, 7)[i % 3], time=bar if i == 3 else 0, channel=1)
                )
            while left:
                length = min(left, rng.choice([240, 240, 240, 480, 160]))
                pitch = min(max(pitch + rng.choice([-5, -2, -1, 1, 2, 4]), 62), 86)
                line += [
                    mido.Message("note_on", note=pitch),
                    mido.Message("note_off", note=pitch, time=length),
                ]
                left -= length
        mido.MidiFile(tracks=[head, line, chords]).save(folder / f"{index:05d}.mid")
    return folder


def melodies(folders: Sequence[Path], alone: Path, count: int) -> list[tuple[Path, Path]]:
    """The first `count` files that hold a melody, and where each one's melody is written alone."""
    tokenizer = melody.build(STEPS)
    found = []
    for path in sorted(p for f in folders for p in f.rglob("*") if p.suffix.lower() in _midi.SUFFIXES):
        for item in tokenizer.read(path):
            line = tokenizer.decode(tokenizer.encode(item.content))
            found.append((path, alone / f"{len(found):06d}.mid"))
            score_of(line).dump_midi(found[-1][1])
        if len(found) == count:
            break
    if not found:
        raise SystemExit(f"{folders}: no MIDI file with a melody")
    return found


def score_of(line: melody.Melody) -> Any:
    """A symusic Score of a melody and its meters."""
    score = Score(TICKS)
    score.tracks.append(Track(program=0))
    for onset, duration, pitch in line.notes.tolist():
        score.tracks[0].notes.append(Note(onset, duration, pitch, 90))
    for m in line.meters:
        score.time_signatures.append(TimeSignature(m.tick, m.numerator, m.denominator))
    return score


def compare_encoders(files: Sequence[tuple[Path, Path]], rounds: int) -> list[Path]:
    """Print files per CPU second of each contender, and ratios; return the files whose ids differ."""
    ours, theirs = melody.build(STEPS), _remi.miditok_remi(STEPS)

    def encode_ours(path: Path) -> list[int]:
        return [i for item in ours.read(path) for i in ours.encode(item.content).tolist()]

    def encode_theirs(path: Path) -> list[int]:
        return [i for track in theirs.encode(Score(path)) for i in track.ids]

    contenders: dict[str, tuple[Callable[[Path], Any], int]] = {
        "miditok, whole file": (encode_theirs, 0),
        "melody, whole file": (encode_ours, 0),
        "miditok, melody alone": (encode_theirs, 1),
        "melody, melody alone": (encode_ours, 1),
        "miditok, parsed": (lambda path: theirs.encode(parsed[path]), 1),
        "melody, parsed": (lambda path: ours.encode(found[path]), 0),
        "symusic, whole file": (Score, 0),
    }
    parsed = {alone: Score(alone) for _, alone in files}
    found = {whole: item.content for whole, _ in files for item in ours.read(whole)}
    names = _remi.layout_of(STEPS).miditok_ids
    different = [
        whole
        for whole, alone in files
        if not encode_theirs(alone)
        == names[encode_ours(alone)].tolist()
        == names[encode_ours(whole)].tolist()
    ]
    seconds: list[dict[str, float]] = [dict.fromkeys(contenders, 0.0) for _ in range(rounds)]
    for total in seconds:
        for start in range(0, len(files), CHUNK):
            for name, (encode, which) in contenders.items():
                begun = time.process_time()
                for pair in files[start : start + CHUNK]:
                    encode(pair[which])
                total[name] += time.process_time() - begun
    for name in contenders:
        rate = len(files) / statistics.median(total[name] for total in seconds)
        say(contender=name, files=len(files), files_per_cpu_second=round(rate))
    for faster, slower in (
        ("melody, melody alone", "miditok, melody alone"),
        ("melody, whole file", "miditok, whole file"),
        ("melody, whole file", "miditok, melody alone"),
        ("melody, parsed", "miditok, parsed"),
    ):
        ratios = [total[slower] / total[faster] for total in seconds]
        say(ratio=f"{faster} / {slower}", median=round(statistics.median(ratios), 2), rounds=rounded(ratios))
    say(same_ids=len(files) - len(different), different=len(different))
    return different


def compare_workers(folders: Sequence[Path], run: Path, rounds: int) -> None:
    """Print wall seconds of preparing folders with one and with two workers, and the ratio."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for workers, taken in seconds.items():
            places = [
                f"run={run}-{workers}",
                f"data.folders=[{','.join(str(f.absolute()) for f in folders)}]",
                f"data.workers={workers}",
            ]
            recipe = load_recipe("own_folder", places)
            with cores(workers):
                begun = time.perf_counter()
                report = prepare(recipe, force=True, progress=False)
                taken.append(time.perf_counter() - begun)
            documents = report.kept
    for workers, taken in seconds.items():
        if taken:
            say(contender=f"prepare, {workers} workers", documents=documents, seconds=rounded(taken))
    if rounds:
        ratio = statistics.median(seconds[1]) / statistics.median(seconds[2])
        say(ratio="prepare, 2 workers / 1 worker", of_medians=round(ratio, 2))


@contextmanager
def cores(number: int) -> Iterator[None]:
    """Have no more than so many cores, also in processes that are started; on Linux."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:number])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def rounded(values: Sequence[float]) -> list[float]:
    """Two decimals each."""
    return [round(v, 2) for v in values]


def say(**facts: Any) -> None:
    """Print one JSON line."""
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
