"""Four voices as a modality: when something moves, then who moves where to; what is held takes no id.

    (place, new pitches from soprano to bass), ..., over

The music is a grid of sixteenths. A moment, a step at which voices change, is told by its place in 16 steps,
counted so that the piece ends at place 0: where the bar line lies is known from the first id on. A place with
no pitch says that 16 steps have gone by.

Letters: T steps, I ids.
"""

import io
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import mido
import numpy as np

from multimodal_gpt import Grammar, Item, UserError
from multimodal_gpt.files import is_file, read_text, write_bytes

VOICES = ("soprano", "alto", "tenor", "bass")
LOWEST, HIGHEST, REST = 24, 96, -1  # MIDI pitches, and what stands for none in a grid
BEAT, BAR = 4, 16  # steps; a chorale in three goes by 16 as well, it is only a way to count
LONGEST = 20_000  # steps of a piece

OVER = BAR  # the id after those of places
PITCHES = OVER + 1  # the first id of a pitch
RANGE = HIGHEST - LOWEST + 2  # ids of each voice; the last one is the rest
TYPED = "write a chord per quarter note, pitches from soprano to bass: 67 62 59 43, 69 62 57 42"


class Voices:
    size = PITCHES + len(VOICES) * RANGE
    suffixes = (".mid", ".json")
    unit = "note"

    def read(self, path: Path) -> Iterator[Item]:
        yield from read_json(path) if path.suffix.lower() == ".json" else read_midi(path)

    def write(self, content: Any, path: Path, *, append: bool = False, note: str = "") -> Path:
        file = open_midi(path) if append and path.is_file() else mido.MidiFile(ticks_per_beat=480)
        file.charset = "utf-8"
        for number, (name, pitches) in enumerate(zip(VOICES, checked(content).T, strict=True)):
            said = [mido.MetaMessage("text", text=note)] if note and not number else []
            notes = sung(pitches, file.ticks_per_beat // BEAT, number)
            file.tracks.append(mido.MidiTrack([mido.MetaMessage("track_name", name=name), *said, *notes]))
        buffer = io.BytesIO()
        file.save(file=buffer)
        return write_bytes(path, buffer.getvalue())

    def parse(self, text: str) -> np.ndarray:
        if text.lower().endswith(self.suffixes) and is_file(text):
            return checked(next((item.content for item in self.read(Path(text))), []))
        if not re.fullmatch(r"[-\d\s,]+", text, re.ASCII):
            raise UserError(f"{text[:40]!r} is no music in four voices", fix=TYPED)
        return checked([chord.split() for chord in text.split(",")]).repeat(BEAT, axis=0)

    def encode(self, content: Any) -> np.ndarray:
        grid, ids, now = checked(content), [], 0
        changed = np.diff(grid, axis=0, prepend=REST) != 0  # (T, 4)
        for step in [0, *(np.flatnonzero(changed[1:].any(axis=1)) + 1).tolist()]:
            ids += [(time - len(grid)) % BAR for time in (*range(now + BAR, step, BAR), step)]
            ids += [pitch_id(v, int(grid[step, v])) for v in np.flatnonzero(changed[step]).tolist()]
            now = step
        ids += [(time - len(grid)) % BAR for time in range(now + BAR, len(grid), BAR)]
        return np.array([*ids, OVER], dtype=np.int32)

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """(T, 4) pitches; a voice rests until its first one."""
        if not rules().accepts(ids):
            raise UserError("these ids are no music in four voices")
        steps = steps_of(ids).tolist()
        grid = np.full((steps[-1], len(VOICES)), REST)
        for step, token in zip(steps, ids.tolist(), strict=True):
            if token >= PITCHES:
                voice, place = divmod(token - PITCHES, RANGE)
                grid[step:, voice] = REST if place == RANGE - 1 else LOWEST + place
        return grid

    def grammar(self) -> Grammar:
        return rules()

    def clock(self, ids: np.ndarray) -> np.ndarray:
        return (steps_of(ids) / BEAT).astype(np.float32)

    def cuts(self, ids: np.ndarray) -> np.ndarray:
        return np.flatnonzero(np.asarray(ids) == 0)

    def units(self, content: Any) -> int:
        """What papers call notes: the pitch, new or held, of each voice at each step."""
        return int(checked(content).size)

    def describe(self, content: Any) -> dict[str, Any]:
        return {"bars": -(-len(checked(content)) // BAR)}

    def show(self, ids: np.ndarray) -> str:
        return " ".join(map(shown, np.asarray(ids).tolist()))

    def shift(self, content: Any, steps: int) -> np.ndarray | None:
        grid = checked(content)
        moved = np.where(grid == REST, LOWEST, grid + steps)
        fits = moved.min() >= LOWEST and moved.max() <= HIGHEST
        return np.where(grid == REST, REST, moved) if fits else None

    def draw(self, content: Any, axes: Any, color: str | None = None) -> None:
        grid = checked(content)
        for voice, pitches in enumerate(grid.T):
            borders = np.flatnonzero(np.diff(pitches, prepend=REST - 1, append=REST - 1))
            sung = pitches[borders[:-1]] != REST
            start, stop = borders[:-1][sung] / BEAT, borders[1:][sung] / BEAT
            axes.hlines(pitches[borders[:-1]][sung], start, stop, color=color or f"C{voice}", linewidth=3)
        axes.yaxis.get_major_locator().set_params(integer=True)


def build() -> Voices:
    return Voices()


def checked(content: Any) -> np.ndarray:
    """(T, 4) integer pitches. Raises UserError where the content is something else."""
    try:
        grid = np.array(content, dtype=np.int64)
    except (TypeError, ValueError, OverflowError):
        grid = np.zeros(0)
    if grid.ndim != 2 or grid.shape[1] != len(VOICES) or not 1 <= len(grid) <= LONGEST:
        raise UserError(f"this is not 1 to {LONGEST:,} steps of four pitches")
    if wrong := np.setdiff1d(grid, (REST, *range(LOWEST, HIGHEST + 1))).tolist():
        raise UserError(f"{wrong[0]} is no pitch", fix=f"{LOWEST} to {HIGHEST}, or {REST} for a rest")
    return grid


def pitch_id(voice: int, pitch: int) -> int:
    return PITCHES + voice * RANGE + (RANGE - 1 if pitch == REST else pitch - LOWEST)


def shown(token: int) -> str:
    if token < PITCHES:
        return "||" if token == OVER else f"{'| ' * (not token)}{1 + token / BEAT:g}:"
    voice, place = divmod(token - PITCHES, RANGE)
    return VOICES[voice][0].upper() + ("-" if place == RANGE - 1 else str(LOWEST + place))


@cache
def rules() -> Grammar:
    """States: 0 the start, 1 the end, 2 after a place, 3 + v after a pitch of voice v."""
    table = np.full((3 + len(VOICES), Voices.size), -1, dtype=np.int32)
    table[[0, *range(2, len(table))], :BAR] = 2
    table[2:, OVER] = 1
    for voice in range(len(VOICES)):
        first = PITCHES + voice * RANGE
        table[2 : 3 + voice, first : first + RANGE] = 3 + voice
    return Grammar(table, np.arange(len(table)) == 1, np.arange(Voices.size) == 0)


def steps_of(ids: np.ndarray) -> np.ndarray:
    """(I,) the step of each id, counted from the first place; a piece is over at place 0."""
    ids = np.asarray(ids)
    told = np.flatnonzero(ids <= OVER)
    gone = np.zeros(len(ids), dtype=np.int64)
    gone[told[1:]] = (np.diff(ids[told] % OVER) - 1) % BAR + 1
    return gone.cumsum()


# ---------------------------------------------------------------------------------------- files


def read_json(path: Path) -> Iterator[Item]:
    """{"train": [chorale, ...], ...}, a chorale being steps of four pitches."""
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not JSON: {error}", path) from error
    for split, chorales in found.items() if isinstance(found, dict) else ():
        for number, chorale in enumerate(chorales if isinstance(chorales, list) else ()):
            yield Item(f"{split}/{number:03}", tried(chorale))


def tried(content: Any) -> Any:
    """The content, or the error where it is none: one piece of a file may be broken."""
    try:
        return checked(content)
    except UserError as error:
        return error


def open_midi(path: Path) -> mido.MidiFile:
    try:
        return mido.MidiFile(path, charset="utf-8")
    except Exception as error:  # a damaged file makes mido raise whatever it stumbles on
        raise UserError(f"is no MIDI file, or a damaged one: {error}", path) from error


def read_midi(path: Path) -> Iterator[Item]:
    """The piece in the tracks that are named as the voices or else, where just four hold notes, in these."""
    file = open_midi(path)
    named = {t.name.lower(): t for t in file.tracks}
    singing = [t for t in file.tracks if any(m.type == "note_on" for m in t)]
    tracks = [named[v] for v in VOICES] if set(VOICES) <= set(named) else singing
    if len(tracks) == len(VOICES):
        parts = [heard(t, max(1, file.ticks_per_beat) / BEAT) for t in tracks]
        grid = np.full((min(LONGEST + 1, max(end for _, end in parts)), len(VOICES)), REST)
        for voice, (changes, _) in enumerate(parts):
            for step, pitch in changes:
                grid[step:, voice] = pitch
        yield Item("", tried(grid))


def heard(track: Any, ticks: float) -> tuple[list[tuple[int, int]], int]:
    """(step, pitch) of each change of a voice, and the step of its end; of two notes the later is heard."""
    time, sounding, changes = 0, REST, []
    for message in track:
        time += message.time
        starts = message.type == "note_on" and message.velocity > 0
        if starts or (message.type in ("note_on", "note_off") and message.note == sounding):
            sounding = message.note if starts else REST
            changes.append((round(time / ticks), sounding))
    return changes, round(time / ticks)


def sung(pitches: np.ndarray, ticks: int, channel: int) -> Iterator[Any]:
    """Messages of a voice, the reverse of `heard`: a pitch that is held is one note."""
    since, before = 0, REST
    for step, pitch in enumerate([*pitches.tolist(), REST]):
        for kind, note in (("note_off", before), ("note_on", pitch)):
            if pitch != before and note != REST:
                message = mido.Message(kind, note=note, velocity=80, channel=channel)
                yield message.copy(time=(step - since) * ticks)
                since = step
        before = pitch
    yield mido.MetaMessage("end_of_track", time=(len(pitches) - since) * ticks)
