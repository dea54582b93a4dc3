"""Melody: one line of notes in MidiTok's REMI tokens, read from MIDI, ABC and MusicXML.

Why REMI: bits per note on 50 held-out Nottingham tunes (8,763 notes), each tokenization training the same
model of 0.9 M parameters on 1.0 M tokens of the 828 training tunes in all keys, without a clock:

    REMI                          4.49  (3.4 tokens per note)
    TSD                           4.98  (3.0)
    REMI, bars implied            5.21  (3.0)
    TSD with a token per bar      5.39  (3.2)

Which track is the melody is decided by `_roles.choose_roles` and told in an item's metadata ("melody_track").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from multimodal_gpt.errors import UserError, nearest
from multimodal_gpt.stream.grammar import Grammar
from multimodal_gpt.stream.tokenizer import Item
from multimodal_gpt.tokenizers import _corpora, _midi, _remi, _roles, _roll, _shingles, _songs, _wishes
from multimodal_gpt.tokenizers._following import Follower
from multimodal_gpt.tokenizers._music import (
    TICKS,
    Meter,
    Signature,
    Song,
    Track,
    all_true,
    count_bars,
    find_key,
    key_name,
    note_name,
    parse_note,
    places,
    shift_signature,
    sort_notes,
)

_HOW = "write notes like 'C4 D4 E4:2 r G4' (:2 = two quarter notes, r = rest), or name a music file"
_LONGEST = 400  # quarter notes of one note typed by hand
_STRETCH = 6
"""Moves in a shingle: eight notes. Of 850 tunes as MIDI and as ABC so many have a similarity of 0.3 or more,
and so many pairs of 3,065 tunes, and pairs with a tune played backwards: 5 moves 99.5 %, 486, 0; 6 99.4 %,
451, 0; 8 99.4 %, 409, 0; 6 without change of pace 99.5 %, 511, 2; 6 with repeated notes 95.9 %, 462, 0."""


@dataclass(frozen=True, eq=False)
class Melody:
    """A line of notes.

    Args:
        notes: (N, 3) int64 onset, duration (ticks of 1/48 quarter note), pitch; sorted.
        meters: the first at tick 0.
        tempo: quarter notes per minute. Not in the ids: 120 after decoding.
        signature: (sharps, is minor) or None. Not in the ids: None after decoding.
        name, program: of the track that is written.
    """

    notes: np.ndarray
    meters: tuple[Meter, ...] = (Meter(0),)
    tempo: float = 120.0
    signature: Signature | None = None
    name: str = "Melody"
    program: int = 73  # flute

    @property
    def key(self) -> Signature:
        """The signature, or the likeliest key where there is none."""
        return find_key(self.notes) if self.signature is None else self.signature


@dataclass(frozen=True)
class MelodyTokenizer:
    """The plugin; see `build` for its options."""

    steps_per_beat: int = 12
    track: str | int | None = None

    suffixes = _songs.SUFFIXES
    book_suffixes = _songs.BOOK_SUFFIXES
    unit = "note"
    wishes = _wishes.MELODY
    examples = ("rhythm", "pitches", "vary")

    @property
    def size(self) -> int:
        """Number of local ids."""
        return _remi.layout_of(self.steps_per_beat).size

    def read(self, path: Path) -> Iterator[Item]:
        """Melodies of a music file. An Item whose content is a UserError is a piece that is there
        but can't be read.

        Raises UserError where the file as a whole can't be read.
        """
        return self.read_part(path, 0, 1)

    def read_part(self, path: Path, part: int, parts: int) -> Iterator[Item]:
        """The melodies of the part-th of `parts` equal shares of a book of tunes, as `read` gives them."""
        for key, song in _songs.songs(path, part, parts):
            if isinstance(song, UserError):
                yield Item(key, song)
                continue
            try:
                found = self._find(song)
            except UserError as error:
                yield Item(key, error.within(path))
                continue
            if found is not None:
                yield Item(key, found[0], {**song.metadata, **found[1]})

    def _find(self, song: Song) -> tuple[Melody, dict[str, Any]] | None:
        if self.track is None:
            index, why = _roles.choose_melody(song)
        else:
            index = _roles.find_track(song, self.track)
            why = f"track {index + 1} {song.tracks[index].name!r}: asked for"
        if index is None or not len(song.tracks[index].notes):
            return None
        track = song.tracks[index]
        content = Melody(_roles.melody_notes(track), song.meters, song.tempo, song.signature)
        error = _timing_error(content, track, _grid(content, self.steps_per_beat))
        return content, {"melody_track": why, "melody_timing_error": error}

    def write(self, content: Melody, path: Path, *, append: bool = False, note: str = "") -> Path:
        """Write a MIDI file or add a track to one, the reverse of `read`. Lost: what the MIDI file
        can't be told
        twice, when appending: tempo, meters and key stay those of the file.
        """
        return _midi.write_tracks(
            path,
            [Track(content.name, content.program, False, content.notes)],
            meters=content.meters,
            tempo=content.tempo,
            signature=content.signature,
            note=note,
            append=append,
        )

    def parse(self, text: str) -> Melody:
        """Melody of note names ("C4 D4 E4:2 r G4", in 4/4, a quarter each) or of the first piece in
        a music file.
        """
        words = text.split()
        path = _existing(text.strip())
        if path is None and words and Path(words[-1]).suffix.lower() in self.suffixes:
            raise UserError("no such file", text.strip())
        if path is None:
            return Melody(_typed_notes(words))
        for item in self.read(path):
            if isinstance(item.content, UserError):
                raise item.content
            return item.content  # type: ignore[no-any-return]
        raise UserError("holds no melody", path)

    def encode(self, content: Melody) -> np.ndarray:
        """(T,) int32 ids; onsets and durations go to the grid, chords to their highest note. Lost:
        tempo, key signature, rests after the last note. Raises UserError where there is no note.
        """
        if isinstance(content, UserError):
            raise content
        if not len(content.notes):
            raise UserError("the melody has no notes", fix=_HOW)
        return _remi.encode(_grid(content, self.steps_per_beat), self.steps_per_beat)

    def decode(self, ids: np.ndarray) -> Melody:
        """Melody of legal ids, the reverse of `encode`. A note that reaches over the next one is
        cut there, so ids that `encode` would not write so are a fixed point only from the second
        time on.
        """
        ids = np.asarray(ids, dtype=np.int64)
        grammar = self.grammar()
        if not grammar.final[grammar.walk(ids)]:
            raise UserError("the melody breaks off before its first note or inside one")
        return Melody(*_remi.decode(ids, self.steps_per_beat))

    def grammar(self) -> Grammar:
        """What may follow what: see `_remi.grammar`."""
        return _remi.grammar(self.steps_per_beat)

    def clock(self, ids: np.ndarray) -> np.ndarray:
        """(T,) float32 quarter notes; see `_remi.clock`."""
        return _remi.clock(ids, self.steps_per_beat)

    def spans(self) -> np.ndarray:
        """(V,) float32 quarter notes that a bar of each TimeSig lasts, NaN for other ids."""
        return _remi.layout_of(self.steps_per_beat).spans

    def dressed(self, content: Melody, like: Melody) -> Melody:
        """The notes as another melody is played: with its tempo, key signature, name and program."""
        kept = {"tempo": like.tempo, "signature": like.signature, "name": like.name, "program": like.program}
        return replace(content, **kept)

    def limited(self, wishes: Mapping[str, Any], rng: np.random.Generator) -> Grammar:
        """The grammar of melodies that meet all `wishes`. Raises UserError where one can't be read."""
        _wishes.check_names(wishes, self.wishes)
        like = {name: self.encode(wishes[name]) for name in self.examples if name in wishes}
        layout = _remi.layout_of(self.steps_per_beat)
        return _wishes.limited_melody(self.grammar(), layout, wishes, like, rng)

    def follow(self) -> Callable[[int], float]:
        """A counter that gives the times of ids one by one."""
        return Follower(_remi.time_signs(self.steps_per_beat))

    def cuts(self, ids: np.ndarray) -> np.ndarray:
        """(B,) int64 indexes of the Bar tokens."""
        return np.flatnonzero(np.asarray(ids) == _remi.Layout.bar).astype(np.int64)

    def units(self, content: Melody) -> int:
        """Number of notes."""
        onset = content.notes[:, 0]
        return len(onset) if all_true(onset[1:] > onset[:-1]) else len(set(onset.tolist()))

    def describe(self, content: Melody) -> dict[str, Any]:
        """Key, meter (of most bars), tempo, number of bars and notes, lowest and highest note."""
        onset, duration, pitch = content.notes.T
        counted = Counter[tuple[int, int]]()
        for meter, bars in count_bars(content.meters, int((onset + duration).max())):
            counted[meter.numerator, meter.denominator] += bars
        (numerator, denominator), _ = min(counted.items(), key=lambda m: (-m[1], m[0]))
        key = content.key
        flats = key[0] < 0
        return {
            "key": key_name(key),
            "meter": f"{numerator}/{denominator}",
            "tempo": round(content.tempo),
            "bars": counted.total(),
            "notes": self.units(content),
            "lowest": note_name(int(pitch.min()), flats),
            "highest": note_name(int(pitch.max()), flats),
        }

    def show(self, ids: np.ndarray) -> str:
        """One line for a human: bar lines, meters where they change, then position, note and
        duration in quarters.
        """
        return " ".join(_remi.words(np.asarray(ids), self.steps_per_beat))

    def shift(self, content: Melody, steps: int) -> Melody | None:
        """The melody moved by semitones, None where a note would leave MIDI's range."""
        notes = content.notes + np.array([0, 0, steps])
        if notes[:, 2].min() < 0 or notes[:, 2].max() > 127:
            return None
        return replace(content, notes=notes, signature=shift_signature(content.signature, steps))

    def shingles(self, content: Melody) -> np.ndarray:
        """(N,) uint64 hashes of stretches of eight notes: their steps in semitones, and whether each
        lasts longer than, as long as or shorter than the one before.
        """
        return _shingles.stretches(_moves(content.notes), _STRETCH)

    def shift_ids(self, ids: np.ndarray, steps: int) -> np.ndarray | None:
        """(T,) the ids of the melody moved by semitones, as `encode` of `shift` gives them, without
        either; None where a note would leave MIDI's range.
        """
        return _remi.shift(np.asarray(ids), steps, self.steps_per_beat)

    def draw(self, content: Melody, axes: Any, color: str = _roll.NOTES) -> None:
        """Piano roll on a matplotlib axes: quarter notes along x, pitch along y."""
        _roll.draw_notes(content.notes, axes, color)


def _moves(notes: np.ndarray) -> np.ndarray:
    """(M,) int64 step to each note but the first two, and its change of pace; of a chord the highest
    note. Repeated notes count as one, since what one version ties another strikes again.
    """
    keep = np.ones(len(notes), dtype=bool)
    np.not_equal(notes[1:, 0], notes[:-1, 0], out=keep[:-1])
    line = notes[keep]
    keep = np.ones(len(line), dtype=bool)
    np.not_equal(line[1:, 2], line[:-1, 2], out=keep[1:])
    moves = np.diff(line[keep], axis=0)
    before, after = moves[:-1, 0], moves[1:, 0]
    change = np.subtract(5 * after >= 6 * before, 6 * after <= 5 * before, dtype=np.int64)
    return 3 * moves[1:, 2] + change  # type: ignore[no-any-return]


@lru_cache(maxsize=1)  # `read` asks for its error, then `encode` for its ids
def _grid(content: Melody, steps: int) -> _remi.Grid:
    return _remi.quantise(content.notes, content.meters, steps)


def _timing_error(content: Melody, track: Track, grid: _remi.Grid) -> float:
    """Mean |onset on the grid - onset in the file| of the melody in a track, in 1/480 quarter notes."""
    written, division = content.notes[:, 0], TICKS
    if track.written is not None:
        at = places(track.notes).searchsorted(places(content.notes), side="right") - 1
        written, division = track.written[at], track.division
    moved = grid.all_onsets * division - written * grid.sections.scale
    if not np.count_nonzero(moved):
        return 0.0
    return round(480 * int(np.abs(moved).sum()) / (grid.sections.scale * division * len(moved)), 2)


def _existing(text: str) -> Path | None:
    try:
        return Path(text) if text and Path(text).is_file() else None
    except (OSError, ValueError):  # too long for a name, or a NUL in it
        return None


def _typed_notes(words: list[str]) -> np.ndarray:
    """(N, 3) notes of words like C4, E4:2 and r. Raises UserError at the first that is none."""
    notes, now = [], 0
    for word in words:
        if word == "|":
            continue
        name, _, beats = word.partition(":")
        pitch = parse_note(name)
        try:
            ticks = round(Fraction(beats or "1") * TICKS)
        except (ValueError, ZeroDivisionError):
            ticks = 0
        if (pitch is None and name.lower() not in ("r", "z")) or not 0 < ticks <= _LONGEST * TICKS:
            raise UserError(f"{word!r} is no note", fix=_HOW)
        if pitch is not None:
            notes.append((now, ticks, pitch))
        now += ticks
    if not notes:
        raise UserError("no notes", fix=_HOW)
    return sort_notes(np.array(notes))


def corpus(name: str) -> list[Path]:
    """Files of a named corpus, sorted. Raises UserError where the name is unknown or music21 is missing."""
    return _corpora.corpus_files(name)


def build(
    steps_per_beat: int = 12, track: str | int | None = None, tokenization: str = "remi"
) -> MelodyTokenizer:
    """The plugin.

    Args:
        steps_per_beat: grid steps in a beat (the meter's denominator). 12 keeps sixteenths and
            triplets but loses thirty-second notes in x/4; 24 keeps them, with 1.5 times the ids.
        track: take this track of every file, by name or by number from 1, instead of the
            automatic choice.
        tokenization: "remi" is the only one.
    """
    if steps_per_beat not in (12, 24):
        raise UserError(f"steps_per_beat is {steps_per_beat}", "melody", "it can be 12 or 24")
    if tokenization != "remi":
        raise UserError(f"unknown tokenization {tokenization!r}", "melody", nearest(tokenization, ["remi"]))
    return MelodyTokenizer(steps_per_beat, track)
