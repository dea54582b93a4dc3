"""The modality `chords`: chord symbols (root, quality, bass) on the grid of the melody.

A stream is `Bar_4/4 [Chord] (Position Chord)*` for every bar, a Chord being `Root Quality [Bass]`, NoChord
or Unknown. A chord lasts until the next event, the last one until the end of the last bar. Equal neighbours
are one event, however often a book repeats the symbol, and a unit ("chord") is an event in this sense.
Silence of harmony is a NoChord event, except before the first chord, where nothing is written.

Every bar says its meter, and what sounds when it begins: so a bar cut out of a piece is a legal stream of
its own, and a melody that takes turns with the chords finds its harmony in the bar beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    _harmony,
    _markers,
    _midi,
    _songs,
)
from multimodal_gpt.tokenizers._chord_tokens import (
    ALL_METERS,
    POSITION,
    POSITIONS,
    SIZE,
    Bar,
    bar_ids,
    bars_of,
    is_bar,
    is_position,
)
from multimodal_gpt.tokenizers._harmony import NO_CHORD, Symbol
from multimodal_gpt.tokenizers._music import (
    TICKS,
    Meter,
    Signature,
    Track,
    bar_lines,
    clean_meters,
    key_name,
    shift_signature,
)

_PROGRAM = 48  # strings: not the melody's, since some readers merge tracks of the same program
_VELOCITY = 60


@dataclass(frozen=True)
class Event:
    """A symbol that begins at `tick` and lasts `duration` ticks."""

    tick: int
    duration: int
    symbol: Symbol


@dataclass(frozen=True, eq=False)
class Chords:
    """The harmony of a piece: events in order, none overlapping.

    `meters` as in `Song`; `tempo` in quarter notes per minute; `signature` is the key where it is known;
    `end` is the length of the piece in ticks.
    """

    events: tuple[Event, ...]
    meters: tuple[Meter, ...] = (Meter(0),)
    tempo: float = 120.0
    signature: Signature | None = None
    end: int = 0

    @property
    def sharps(self) -> bool | None:
        """Whether black keys are spelt as sharps; None where the key doesn't tell."""
        return self.signature[0] > 0 if self.signature and self.signature[0] else None


def _events(changes: Iterable[tuple[int, Symbol]], end: int) -> tuple[Event, ...]:
    """Events from change to change: equal neighbours joined, of two at one tick the later kept."""
    kept: list[tuple[int, Symbol]] = []
    for tick, symbol in ((t, s) for t, s in changes if t < end):
        if kept and kept[-1][0] == tick:
            kept.pop()
        if symbol != (kept[-1][1] if kept else NO_CHORD):
            kept.append((tick, symbol))
    stops = [*(tick for tick, _ in kept[1:]), end]
    return tuple(Event(tick, stop - tick, symbol) for (tick, symbol), stop in zip(kept, stops, strict=False))


def _has_chord(content: Chords) -> bool:
    return any(event.symbol.root is not None for event in content.events)


# -------------------------------------------------------------------------------- content as a grid


def _quantised(content: Chords) -> list[Bar]:
    """Bars of a content: every change at the nearest position, of two at one the later; no repeats."""
    end = max([content.end, *(e.tick + e.duration for e in content.events)])
    starts, meters = bar_lines(content.meters, end)
    steps = 4 * TICKS // POSITIONS // meters[:, 1]  # ticks per position
    slots: list[dict[int, Symbol]] = [{} for _ in starts]
    for tick, symbol in _gaps_filled(content.events, int(starts[-1])):
        bar = max(int(np.searchsorted(starts, tick, side="right")) - 1, 0)
        place = (2 * max(tick - int(starts[bar]), 0) + int(steps[bar])) // (2 * int(steps[bar]))
        length = POSITIONS * int(meters[bar, 0])
        if place >= length:
            bar, place = (bar + 1, 0) if bar + 1 < len(starts) else (bar, length - 1)
        slots[bar][place] = symbol
    return [((n, d), slot) for (n, d), slot in zip(meters.tolist(), _merged(slots), strict=True)]


def _gaps_filled(events: tuple[Event, ...], last_bar: int) -> Iterator[tuple[int, Symbol]]:
    """(tick, symbol), with NO_CHORD where an event ends before the next one or the last bar begins."""
    for event, after in zip(events, [*(e.tick for e in events[1:]), None], strict=True):
        yield event.tick, event.symbol
        stop = event.tick + event.duration
        if stop < after if after is not None else stop <= last_bar:
            yield stop, NO_CHORD


def _merged(slots: list[dict[int, Symbol]]) -> list[dict[int, Symbol]]:
    before = NO_CHORD
    merged: list[dict[int, Symbol]] = []
    for slot in slots:
        merged.append({})
        for place in sorted(slot):
            if slot[place] != before:
                merged[-1][place] = before = slot[place]
    return merged


def _restated(bars: list[Bar]) -> list[Bar]:
    """The bars, each with what sounds at its beginning."""
    sounding = NO_CHORD
    restated: list[Bar] = []
    for meter, slot in bars:
        restated.append((meter, slot if sounding == NO_CHORD else {0: sounding} | slot))
        sounding = [sounding, *slot.values()][-1]
    return restated


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
    size = SIZE
    suffixes = _songs.SUFFIXES

    def read(self, path: Path) -> Iterator[Item]:
        """Pieces whose harmony is written, played or implied; the rule is in `_changes.find_harmony`.

        `metadata["chords_track"]` says where it was found, `metadata["unknown_chords"]` how many
        symbols were unreadable.
        """
        path = Path(path)
        for key, song in _songs.songs(path):
            if isinstance(song, UserError):
                yield Item(key, song)
                continue
            if path.suffix.lower() in _midi.SUFFIXES:
                song = replace(song, symbols=_markers.read_markers(path))  # noqa: PLW2901
            found = _changes.find_harmony(song, self.track, self.infer)
            if found is None:
                continue
            played = [int((t.notes[:, 0] + t.notes[:, 1]).max(initial=0)) for t in song.tracks]
            end = max([*played, found.changes[-1][0]])
            content = Chords(_events(found.changes, end), song.meters, song.tempo, song.signature, end)
            if not _has_chord(content):
                continue
            unknown = {"unknown_chords": found.unknown} if found.unknown else {}
            yield Item(key, content, {**song.metadata, "chords_track": found.why, **unknown})

    def write(self, content: Chords, path: Path, *, append: bool = False, note: str = "") -> Path:
        """Write MIDI: the chords voiced in a track "Chords", and as markers for `read`.

        A voicing alone can't tell C6 from Am7/C. Lost: nothing but what `encode` would lose.
        """
        notes: list[tuple[int, int, int]] = []
        markers: list[tuple[int, str]] = []
        previous: tuple[int, ...] = ()
        for tick, symbol in _gaps_filled(content.events, content.end):
            markers.append((tick, _harmony.name(symbol, content.sharps)))
        for event in content.events:
            voiced = _harmony.voice(event.symbol, previous)
            notes += [(event.tick, event.duration, pitch) for pitch in voiced]
            previous = voiced or previous
        if not notes:
            raise UserError("holds no chord to play", path)
        track = Track("Chords", _PROGRAM, False, np.asarray(notes, dtype=np.int64))
        path = _midi.write_tracks(
            path,
            [track],
            meters=content.meters,
            tempo=content.tempo,
            signature=content.signature,
            note=note,
            append=append,
            velocity=_VELOCITY,
        )
        end = max(content.end, content.events[-1].tick + content.events[-1].duration)
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
        content = Chords(_events(chart.changes, chart.end), chart.meters, end=chart.end)
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
        bars = _quantised(content)
        if all(symbol.root is None for _, slot in bars for symbol in slot.values()):
            raise UserError("no chord in it")
        return np.asarray([i for bar in _restated(bars) for i in bar_ids(bar)], dtype=np.int32)

    def decode(self, ids: np.ndarray) -> Chords:
        """Content of ids, the reverse of `encode`; lost: tempo, key, and what was quantised away."""
        ids = np.asarray(ids)
        if not self.grammar().final[self.grammar().walk(ids)]:
            raise UserError("ends too early" if len(ids) else "holds nothing")
        changes: list[tuple[int, Symbol]] = []
        meters: list[tuple[int, int, int]] = []
        start = 0
        for (numerator, denominator), slot in bars_of(ids):
            step = 4 * TICKS // POSITIONS // denominator  # ticks per position
            changes += [(start + place * step, symbol) for place, symbol in slot.items()]
            meters.append((start, numerator, denominator))
            start += POSITIONS * numerator * step
        return Chords(_events(changes, start), clean_meters(meters), end=start)

    def grammar(self) -> Grammar:
        """The table of `_chord_tokens.grammar`."""
        return _chord_tokens.grammar()

    def clock(self, ids: np.ndarray) -> np.ndarray:
        """(T,) float32 quarter notes: a bar or position and what belongs to it have its time."""
        ids = np.asarray(ids)
        bars = is_bar(ids)
        written = np.concatenate(
            ([ALL_METERS.index((4, 4))], ids[bars])
        )  # what comes before a bar line is in 4/4
        meters = np.array(ALL_METERS)[written]
        starts = np.concatenate(([0.0, 0.0], (4 * meters[1:, 0] / meters[1:, 1]).cumsum()))
        bar = bars.cumsum()
        anchor = np.maximum.accumulate(np.where(bars | is_position(ids), np.arange(len(ids)), 0))
        place = np.where(is_position(ids[anchor]), ids[anchor] - POSITION, 0)
        return np.asarray(starts[bar] + place * 4 / POSITIONS / meters[bar, 1], dtype=np.float32)

    def spans(self) -> np.ndarray:
        """(V,) float32 quarter notes that the bar of each bar line lasts, NaN for other ids."""
        beats, unit = np.array(ALL_METERS).T
        rest = np.full(SIZE - len(beats), np.nan)
        return np.concatenate([4 * beats / unit, rest]).astype(np.float32)

    def cuts(self, ids: np.ndarray) -> np.ndarray:
        """(B,) int64: the bar lines."""
        return np.flatnonzero(is_bar(np.asarray(ids)))

    def units(self, content: Chords) -> int:
        """Number of events as encoded (without repeats), silences and unknown ones among them."""
        return sum(len(slot) for _, slot in _quantised(content))

    def describe(self, content: Chords) -> dict[str, Any]:
        """Number of chords, the first six different ones, and the key where it is known."""
        names = [_harmony.name(e.symbol, content.sharps) for e in content.events if e.symbol.root is not None]
        key = {} if content.signature is None else {"key": key_name(content.signature)}
        return {"chords": len(names), "progression": " ".join(list(dict.fromkeys(names))[:6]), **key}

    def show(self, ids: np.ndarray) -> str:
        """The bars in a line, as `parse` reads them: "3/4: | G | D . G | % |"."""
        return _chart.show_chart(bars_of(ids), POSITIONS)

    def shift(self, content: Chords, steps: int) -> Chords:
        """The same harmony some semitones higher, key and all."""
        events = tuple(replace(e, symbol=e.symbol.moved(steps)) for e in content.events)
        return replace(content, events=events, signature=shift_signature(content.signature, steps))

    def draw(self, content: Chords, axes: Any) -> None:
        """Chord names above the axes and a thin line at each change; x in quarter notes."""
        for event in content.events:
            x = event.tick / TICKS
            axes.axvline(x, color="0.75", linewidth=0.6, zorder=0)
            name = _harmony.name(event.symbol, content.sharps)
            axes.text(x, 1.01, name, transform=axes.get_xaxis_transform(), fontsize=8, clip_on=False)


def corpus(name: str) -> list[Path]:
    """Files of a named corpus, sorted. Raises UserError where the name is unknown or music21 is missing."""
    return _corpora.corpus_files(name)


def build(infer: bool = True, track: str | int | None = None) -> ChordTokenizer:
    """The tokenizer; options as in `ChordTokenizer`."""
    return ChordTokenizer(infer, track)
