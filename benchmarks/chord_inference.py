"""How well `infer_changes` names the harmony of an accompaniment, against POP909's corrected chords.

    python benchmarks/chord_inference.py ../shared/data/pop909

The folder holds train/ and valid/ with NNN.mid (a piano of melody and accompaniment in one, and a track
of chords, which is hidden and counts as the truth) and NNN.tracks.mid (the same music as it was played:
MELODY, BRIDGE, PIANO). Prints one JSON line per part (the even files of train, on which the method was set;
the odd ones; valid) and source:

- "piano" of NNN.mid; "tracks" without the melody and "all tracks" of NNN.tracks.mid, put on the beats of
  NNN.mid by moving the result by the median distance of the notes they share;
- per source the floors "tonic" (the tonic's triad of `find_key`, all the time) and "bars" (the triad with the
  most of the sound, bar by bar).

Compared at every eighth note where the truth names a chord: `root` (share of equal roots), `triad` (root and
third equal, where the truth has a major or minor third), `median` (of triad over files), `changes` and
`true_changes` (per bar, of root or third).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from multimodal_gpt import console
from multimodal_gpt.tokenizers import _changes, _harmony, _inference, _midi
from multimodal_gpt.tokenizers._harmony import QUALITIES, QUALITY, Symbol
from multimodal_gpt.tokenizers._inference import Change
from multimodal_gpt.tokenizers._music import TICKS, Song, bar_lines, find_key, sort_notes

Method = Callable[[np.ndarray, Song], list[Change]]
_EIGHTH = TICKS // 2
_NONE = -1


@dataclass(frozen=True, eq=False)
class Piece:
    """Truth and what can be heard: changes, its end in ticks, and per source the notes, the song whose
    meters and tempo they have, and by how many ticks they lie too early.
    """

    truth: list[Change]
    end: int
    sources: dict[str, tuple[np.ndarray, Song, int]]


def load_piece(path: Path) -> Piece | None:
    """A piece of NNN.mid and, where it is there, NNN.tracks.mid; None without a track of chords."""
    song = _midi.load(path)
    if len(song.tracks) != 2 or song.tracks[0].name != "piano":
        return None
    piano, chords = (track.notes for track in song.tracks)
    sources = {"piano": (piano, song, 0)}
    played = path.with_name(f"{path.stem}.tracks.mid")
    if played.exists():
        other = _midi.load(played)
        every = sort_notes(np.concatenate([t.notes for t in other.tracks]))
        early = offset(every, piano)
        kept = sort_notes(np.concatenate([t.notes for t in other.tracks if t.name != "MELODY"]))
        sources |= {"tracks": (kept, other, early), "all tracks": (every, other, early)}
    truth = _changes.name_blocks(chords, song.meters)
    return Piece(truth, int((piano[:, 0] + piano[:, 1]).max()), sources)


def offset(notes: np.ndarray, others: np.ndarray) -> int:
    """Median distance in ticks of the k-th notes of each pitch that both hold equally often."""
    moved = [np.zeros(0)]
    for pitch in np.unique(notes[:, 2]):
        first, second = notes[notes[:, 2] == pitch, 0], others[others[:, 2] == pitch, 0]
        if len(first) == len(second):
            moved.append(second - first)
    found = np.concatenate(moved)
    return int(np.median(found)) if len(found) else 0


# ----------------------------------------------------------------------------------------- methods


def inferred(notes: np.ndarray, song: Song) -> list[Change]:
    """The method of the product."""
    return _inference.infer_changes(notes, song.meters, song.tempo)


def tonic(notes: np.ndarray, song: Song) -> list[Change]:
    """The tonic's triad, all the time."""
    sharps, minor = find_key(notes)
    return [(0, Symbol((7 * sharps + 9 * minor) % 12, "min" if minor else "maj"))]


def bars(notes: np.ndarray, song: Song) -> list[Change]:
    """Bar by bar the major or minor triad with the most of the sound."""
    starts, _ = bar_lines(song.meters, int((notes[:, 0] + notes[:, 1]).max()))
    borders = np.append(starts, 10**9)
    triads = [Symbol(root, kind) for kind in ("maj", "min") for root in range(12)]
    tones = np.array([[c in s.pitch_classes for c in range(12)] for s in triads])
    best = (_inference.spread(notes, borders) @ tones.T).argmax(axis=1)
    return [(int(start), triads[i]) for start, i in zip(starts, best, strict=True)]


METHODS: dict[str, Method] = {"inferred": inferred, "bars": bars, "tonic": tonic}

# ----------------------------------------------------------------------------------------- scores


def sampled(changes: list[Change], end: int, moved: int = 0) -> np.ndarray:
    """(E,) at every eighth note 2 * root + is minor, -1 without a chord; a little after the beat, since
    what was played may come a little late.
    """
    moments = np.arange(_EIGHTH // 4, end, _EIGHTH) - moved
    ticks = np.array([tick for tick, _ in changes])
    labels = np.array([_NONE, *(label(symbol) for _, symbol in changes)])
    return labels[np.searchsorted(ticks, moments, side="right")]


def label(symbol: Symbol) -> int:
    """2 * root + is minor, -1 without a chord."""
    return _NONE if symbol.root is None else 2 * symbol.root + (3 in QUALITY[symbol.quality].intervals)


def score(piece: Piece, found: list[Change], moved: int) -> np.ndarray:
    """(7,) eighths with equal roots, eighths compared; the same of triads; changes, true ones, bars."""
    truth, guess = sampled(piece.truth, piece.end), sampled(found, piece.end, moved)
    thirds = np.array([q.name for q in QUALITIES if {3, 4} & set(q.intervals)])
    plain = [(tick, s if s.quality in thirds else _harmony.NO_CHORD) for tick, s in piece.truth]
    named, triad = truth >= 0, sampled(plain, piece.end) >= 0
    root = named & (guess >= 0) & (truth // 2 == guess // 2)
    both = [np.count_nonzero(root), named.sum(), np.count_nonzero(triad & (truth == guess)), triad.sum()]
    turns = [np.count_nonzero(np.diff(found)) for found in (guess, truth)]
    return np.array([*both, *turns, piece.end / (4 * TICKS)], dtype=float)


def report(pieces: Iterable[Piece], source: str, method: str) -> dict[str, float]:
    """Figures of one method on one source."""
    rows, seconds = [], 0.0
    for piece in pieces:
        if source in piece.sources:
            notes, song, early = piece.sources[source]
            begun = time.process_time()
            found = METHODS[method](notes, song)
            seconds += time.process_time() - begun
            rows.append(score(piece, found, early))
    table = np.array(rows)
    root, compared, triad, thirds, changes, true, length = table.sum(axis=0)
    figures = {
        "root": root / compared,
        "triad": triad / thirds,
        "median": float(np.median(table[:, 2] / np.maximum(table[:, 3], 1))),
        "changes": changes / length,
        "true_changes": true / length,
        "ms_per_piece": 1e3 * seconds / len(table),
    }
    return {"pieces": len(table), **{key: round(value, 4) for key, value in figures.items()}}


def main() -> None:
    """Measure every method on every source and part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--pieces", type=int, help="of each part only the first so many")
    options = parser.parse_args()
    train = sorted((options.folder / "train").glob("[0-9][0-9][0-9].mid"))
    valid = sorted((options.folder / "valid").glob("[0-9][0-9][0-9].mid"))
    parts = {"train, even": train[::2], "train, odd": train[1::2], "valid": valid}
    for part, files in parts.items():
        with console.progress(len(files[: options.pieces]), part) as bar:
            pieces = []
            for path in files[: options.pieces]:
                pieces.append(load_piece(path))
                bar.advance(1)
        kept = [piece for piece in pieces if piece is not None]
        for source in ("piano", "tracks", "all tracks"):
            for method in options.methods:
                facts = {"part": part, "source": source, "method": method}
                print(json.dumps(facts | report(kept, source, method)), flush=True)


if __name__ == "__main__":
    main()
