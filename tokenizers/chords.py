"""The modality `chords`: chord symbols (root, quality, bass) on the grid of the melody.

A stream is `Bar_4/4 [Chord] (Position Chord)*` for every bar, a Chord being `Root Quality [Bass]`, NoChord
or Unknown. A chord lasts until the next event, the last one until the end of the last bar. Equal neighbours
are one event, however often a book repeats the symbol, and a unit ("chord") is an event in this sense.
Silence of harmony is a NoChord event, except before the first chord, where nothing is written.

Every bar says its meter, and what sounds when it begins: so a bar cut out of a piece is a legal stream of
its own, and a melody that takes turns with the chords finds its harmony in the bar beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.grammar import Grammar
from multimodal_gpt.stream.tokenizer import Item
from multimodal_gpt.tokenizers import (
    _changes,
    _chart,
    _chord_tokens,
    _corpora,
    _following,
    _harmony,
    _markers,
    _midi,
    _roll,
    _songs,
    _voicing,
    _wishes,
)
from multimodal_gpt.tokenizers._chord_tokens import (
    ALL_METERS,
    POSITION,
    POSITIONS,
    SIZE,
    bars_of,
    ids_of,
    is_bar,
    is_position,
    move_ids,
)
from multimodal_gpt.tokenizers._harmony import NO_CHORD, NO_CHORD_CODE, Symbol
from multimodal_gpt.tokenizers._markers import Spelled
from multimodal_gpt.tokenizers._music import (
    TICKS,
    Meter,
    Signature,
    Song,
    Track,
    bar_lines,
    clean_meters,
    key_name,
    shift_signature,
)

_PROGRAM = 48  # strings: not the melody's, since some readers merge tracks of the same program
_VELOCITY = 60
_BAR = 1 << 10  # more than the positions of the longest bar


@dataclass(frozen=True)
class Event:
    """A symbol that begins at `tick` and lasts `duration` ticks."""

    tick: int
    duration: int
    symbol: Symbol


@dataclass(frozen=True, eq=False)
class Chords:
    """The harmony of a piece; `chords_of` makes one of events.

    Args:
        table: (E, 3) int64 tick, duration, code of the symbol, in order, none overlapping.
        meters: as in `Song`.
        tempo: quarter notes per minute.
        signature: the key where it is known.
        end: length of the piece in ticks.
    """

    table: np.ndarray
    meters: tuple[Meter, ...] = (Meter(0),)
    tempo: float = 120.0
    signature: Signature | None = None
    end: int = 0

    @property
    def events(self) -> tuple[Event, ...]:
        """The rows of the table."""
        return tuple(Event(t, d, _harmony.symbol_of(code)) for t, d, code in self.table.tolist())

    @property
    def sharps(self) -> bool | None:
        """Whether black keys are spelt as sharps; None where the key doesn't tell."""
        return self.signature[0] > 0 if self.signature and self.signature[0] else None


def chords_of(
    events: Iterable[Event], meters: tuple[Meter, ...] = (Meter(0),), tempo: float = 120.0, end: int = 0
) -> Chords:
    """Content of events, the reverse of `Chords.events`."""
    rows = [(e.tick, e.duration, e.symbol.code) for e in events]
    return Chords(np.array(rows, dtype=np.int64).reshape(-1, 3), meters, tempo, end=end)


def _has_chord(content: Chords) -> bool:
    return bool((content.table[:, 2] >= 0).any())


def _table(time: np.ndarray, code: np.ndarray, end: int) -> np.ndarray:
    """(E, 3) from (C,) ticks, sorted, and codes: from change to change."""
    before = time < end
    time, code = _effective(time[before], code[before])
    table = np.empty((len(time), 3), dtype=np.int64)
    table[:, 0], table[:, 2] = time, code
    table[:-1, 1] = time[1:] - time[:-1]
    table[-1:, 1] = end - time[-1:]
    return table


def _listed(changes: list[tuple[int, int]], end: int) -> np.ndarray:
    """`_table` of (tick, code) in a list."""
    time, code = np.array(changes, dtype=np.int64).reshape(-1, 2).T
    return _table(time, code, end)


def _effective(time: np.ndarray, code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(C,) times, sorted, and codes: of several at one time the last, without changes to what sounds
    already (silence at first).
    """
    kept = np.ones(len(time), dtype=bool)
    kept[:-1] = time[1:] != time[:-1]
    time, code = time[kept], code[kept]
    new = code != NO_CHORD_CODE
    new[1:] = code[1:] != code[:-1]
    return time[new], code[new]


def _changes_of(table: np.ndarray, last_bar: int) -> tuple[np.ndarray, np.ndarray]:
    """(C,) ticks and codes, with NO_CHORD where an event ends before the next one or `last_bar` begins."""
    both = np.full((len(table), 2, 2), NO_CHORD_CODE)  # each event, then its end; tick and code
    both[:, 0] = table[:, ::2]
    both[:, 1, 0] = table[:, 0] + table[:, 1]
    kept = np.ones((len(table), 2), dtype=bool)
    kept[:-1, 1] = both[:-1, 1, 0] < table[1:, 0]
    kept[-1:, 1] = both[-1:, 1, 0] <= last_bar
    return both[..., 0][kept], both[..., 1][kept]


def _bars(content: Chords) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(B, 2) meters of the bars; (C,) time and code of each change, a time being _BAR * bar + position.

    Every change is at the nearest position, of two at one the later is kept.
    """
    table = content.table
    end = max(content.end, int((table[:, 0] + table[:, 1]).max(initial=0)))
    starts, meters = bar_lines(content.meters, end)
    tick, code = _changes_of(table, int(starts[-1]))
    bar = np.maximum(starts.searchsorted(tick, side="right") - 1, 0)
    beats, unit = meters[bar].T
    step = 4 * TICKS // POSITIONS // unit  # ticks per position
    place = (2 * np.maximum(tick - starts[bar], 0) + step) // (2 * step)
    length = POSITIONS * beats
    late = place >= length  # the next bar line is nearer; at the very end the last position
    if late.any():
        last = bar + 1 == len(starts)
        place = np.where(late, np.where(last, length - 1, _BAR), place)
    return meters, *_effective(_BAR * bar + place, code)


# ---------------------------------------------------------------------------------------- tokenizer


@dataclass(frozen=True, eq=False)
class ChordTokenizer:
    """See the module's docstring and `multimodal_gpt.stream.tokenizer`.

    Args:
        infer: name the harmony that voices or an accompaniment imply where no chords are written.
        track: read this track (a number from 1, or a name) instead of choosing one.
    """

    infer: bool = True
    track: str | int | None = None

    unit = "chord"
    wishes = _wishes.CHORDS
    examples = ("rhythm",)
    size = SIZE
    suffixes = _songs.SUFFIXES
    book_suffixes = _songs.BOOK_SUFFIXES

    def read(self, path: Path) -> Iterator[Item]:
        """Pieces whose harmony is written, played or implied; the rule is in `_changes.find_harmony`.

        `metadata["chords_track"]` says where it was found, `metadata["unknown_chords"]` how many
        symbols were unreadable.
        """
        return self.read_part(path, 0, 1)

    def read_part(self, path: Path, part: int, parts: int) -> Iterator[Item]:
        """The harmony of the part-th of `parts` equal shares of a book of tunes, as `read` gives it."""
        path = Path(path)
        for key, song in _songs.songs(path, part, parts):
            if isinstance(song, UserError):
                yield Item(key, song)
                continue
            item = self._item(key, song, path)
            if item is not None:
                yield item

    def _item(self, key: str, song: Song, path: Path) -> Item | None:
        spelled = Spelled()
        if path.suffix.lower() in _midi.SUFFIXES:
            spelled = _markers.read_markers(path)
            song = replace(song, symbols=spelled.symbols)
        found = _changes.find_harmony(song, self.track, self.infer, spelled.why)
        if found is None:
            return None
        played = [int((t.notes[:, 0] + t.notes[:, 1]).max(initial=0)) for t in song.tracks]
        end = max([*played, int(found.changes[-1, 0])])
        table = _table(found.changes[:, 0], found.changes[:, 1], end)
        content = Chords(table, song.meters, song.tempo, song.signature, end)
        if not _has_chord(content):
            return None
        unknown = {"unknown_chords": found.unknown} if found.unknown else {}
        return Item(key, content, {**song.metadata, "chords_track": found.why, **unknown})

    def write(self, content: Chords, path: Path, *, append: bool = False, note: str = "") -> Path:
        """Write MIDI: the chords voiced in a track "Chords", and as markers for `read`.

        A voicing alone can't tell C6 from Am7/C. Lost: nothing but what `encode` would lose.
        """
        notes = _voicing.notes_of(content.events)
        changes = zip(*(a.tolist() for a in _changes_of(content.table, content.end)), strict=True)
        markers = [(tick, _harmony.name(_harmony.symbol_of(code), content.sharps)) for tick, code in changes]
        if not len(notes):
            raise UserError("holds no chord to play", path)
        track = Track("Chords", _PROGRAM, False, notes)
        told = {"meters": content.meters, "tempo": content.tempo, "signature": content.signature}
        path = _midi.write_tracks(path, [track], **told, note=note, append=append, velocity=_VELOCITY)
        end = max(content.end, int(content.table[-1, :2].sum()))
        return _markers.add_markers(path, [*markers, (end, _harmony.name(NO_CHORD))])

    def parse(self, text: str) -> Chords:
        """Chords of a command line, or the first piece of a music file at that path. Raises UserError.

        "Am F C G x2", "| C | Am F | G7 |", "3/4: G D Em C": the rules are in `_chart.parse_chart`.

        Example:
            >>> [_harmony.name(e.symbol) for e in build().parse("3/4: | G | D . G | x2").events]
            ['G', 'D', 'G', 'D', 'G']
        """
        path = Path(text.strip())
        if path.suffix.lower() in self.suffixes:
            return self._first(path)
        chart = _chart.parse_chart(text)
        content = Chords(
            _listed([(t, s.code) for t, s in chart.changes], chart.end), chart.meters, end=chart.end
        )
        if not _has_chord(content):
            raise UserError(
                "no chord in it", f"chords '{text}'", 'write them as in "Am F C G" or "3/4: | G | D7 G |"'
            )
        return content

    def _first(self, path: Path) -> Chords:
        item = next(self.read(path), None)
        if item is None:
            raise UserError("holds no chords", path)
        if isinstance(item.content, UserError):
            raise item.content.within(path)
        content: Chords = item.content
        return content

    def encode(self, content: Chords) -> np.ndarray:
        """(T,) int32 local ids, quantised to 12 positions per beat. Raises UserError without a chord.

        What sounds at a bar line is written there again; `decode` joins it to what came before.
        """
        meters, time, code = _bars(content)
        if not (code >= 0).any():
            raise UserError("no chord in it")
        lines = _BAR * np.arange(len(meters))
        before = time.searchsorted(lines, side="right") - 1
        sounding = np.where(before < 0, NO_CHORD_CODE, code[before])
        again = (sounding != NO_CHORD_CODE) & (time[before] != lines)
        time = np.concatenate((lines[again], time))
        code = np.concatenate((sounding[again], code))
        order = time.argsort(kind="stable")
        return ids_of(meters, time[order] // _BAR, time[order] % _BAR, code[order])

    def decode(self, ids: np.ndarray) -> Chords:
        """Content of ids, the reverse of `encode`; lost: tempo, key, and what was quantised away."""
        ids = np.asarray(ids)
        if not self.grammar().final[self.grammar().walk(ids)]:
            raise UserError("ends too early" if len(ids) else "holds nothing")
        changes: list[tuple[int, int]] = []
        meters: list[tuple[int, int, int]] = []
        start = 0
        for (numerator, denominator), slot in bars_of(ids):
            step = 4 * TICKS // POSITIONS // denominator  # ticks per position
            changes += [(start + place * step, symbol.code) for place, symbol in slot.items()]
            meters.append((start, numerator, denominator))
            start += POSITIONS * numerator * step
        return Chords(_listed(changes, start), clean_meters(meters), end=start)

    def grammar(self) -> Grammar:
        """The table of `_chord_tokens.grammar`."""
        return _chord_tokens.grammar()

    def clock(self, ids: np.ndarray) -> np.ndarray:
        """(T,) float32 quarter notes: a bar or position and what belongs to it have its time."""
        ids = np.asarray(ids)
        bars = is_bar(ids)
        written = np.concatenate(([ALL_METERS.index((4, 4))], ids[bars]))
        meters = np.array(ALL_METERS)[written]
        starts = np.concatenate(([0.0, 0.0], (4 * meters[1:, 0] / meters[1:, 1]).cumsum()))
        bar = bars.cumsum()
        anchor = np.maximum.accumulate(np.where(bars | is_position(ids), np.arange(len(ids)), 0))
        place = np.where(is_position(ids[anchor]), ids[anchor] - POSITION, 0)
        return np.asarray(starts[bar] + place * 4 / POSITIONS / meters[bar, 1], dtype=np.float32)

    def spans(self) -> np.ndarray:
        """(V,) float32 quarter notes that the bar of each bar line lasts, NaN for other ids."""
        return np.array(_chord_tokens.time_signs().spans, dtype=np.float32)

    def follow(self) -> Callable[[int], float]:
        """A counter that gives the times of ids one by one."""
        return _following.Follower(_chord_tokens.time_signs())

    def dressed(self, content: Chords, like: Chords) -> Chords:
        """The harmony as another one is played: with its tempo and key signature."""
        return replace(content, tempo=like.tempo, signature=like.signature)

    def limited(self, wishes: Mapping[str, Any], rng: np.random.Generator) -> Grammar:
        """The grammar of chords that meet all `wishes`. Raises UserError where one can't be read."""
        _wishes.check_names(wishes, self.wishes)
        like = {name: self.encode(wishes[name]) for name in self.examples if name in wishes}
        return _wishes.limited_chords(self.grammar(), wishes, like)

    def cuts(self, ids: np.ndarray) -> np.ndarray:
        """(B,) int64: the bar lines."""
        return np.flatnonzero(is_bar(np.asarray(ids)))

    def units(self, content: Chords) -> int:
        """Number of events as encoded (without repeats), silences and unknown ones among them."""
        return len(_bars(content)[1])

    def describe(self, content: Chords) -> dict[str, Any]:
        """Number of chords, the first six different ones, and the key where it is known."""
        codes = content.table[content.table[:, 2] >= 0, 2].tolist()
        first = list(dict.fromkeys(codes))[:6]
        names = [_harmony.name(_harmony.symbol_of(code), content.sharps) for code in first]
        key = {} if content.signature is None else {"key": key_name(content.signature)}
        return {"chords": len(codes), "progression": " ".join(names), **key}

    def show(self, ids: np.ndarray) -> str:
        """The bars in a line, as `parse` reads them: "3/4: | G | D . G | % |"."""
        return _chart.show_chart(bars_of(ids), POSITIONS)

    def shift(self, content: Chords, steps: int) -> Chords:
        """The same harmony some semitones higher, key and all."""
        table = content.table.copy()
        table[:, 2] = _harmony.move_codes(table[:, 2], steps)
        return replace(content, table=table, signature=shift_signature(content.signature, steps))

    def shift_ids(self, ids: np.ndarray, steps: int) -> np.ndarray:
        """What `encode` gives for the shifted content: (T,) int32."""
        return move_ids(ids, steps)

    def draw(self, content: Chords, axes: Any, color: str | None = None) -> None:
        """The voicing without its bass as pale notes, the names above the axes; x in quarter notes."""
        notes = _voicing.notes_of(content.events)
        upper = notes[1:][np.diff(notes[:, 0]) == 0]  # the bass comes first, and would make the roll too high
        _roll.draw_notes(upper, axes, color or _roll.ACCOMPANIMENT, alpha=0.35, height=0.5)
        names = [_harmony.name(event.symbol, content.sharps) for event in content.events]
        _roll.draw_names(content.table[:, 0] / TICKS, names, axes, color)


def corpus(name: str) -> list[Path]:
    """Files of a named corpus, sorted. Raises UserError where the name is unknown or music21 is missing."""
    return _corpora.corpus_files(name)


def build(infer: bool = True, track: str | int | None = None) -> ChordTokenizer:
    """The tokenizer; options as in `ChordTokenizer`."""
    return ChordTokenizer(infer, track)
