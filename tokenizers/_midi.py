"""MIDI files <-> songs: a guarded reader (symusic) and an atomic writer (mido)."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.files import write_bytes
from multimodal_gpt.tokenizers._music import (
    TICKS,
    Meter,
    Signature,
    Song,
    Track,
    all_true,
    clean_meters,
    count_bars,
    key_name,
    places,
    sort_notes,
)

if TYPE_CHECKING:
    import mido

SUFFIXES = (".mid", ".midi", ".kar")
MAX_BYTES = 4_000_000
MAX_QUARTERS = 20_000
MAX_NOTES = 200_000
MAX_BARS = 20_000
"""Limits on one piece. Without them a file of 49 bytes makes hundreds of thousands of empty bars."""


def load(path: Path) -> Song:
    """Song of a MIDI file; one without notes is no error.

    Times are rounded to TICKS per quarter note. Lost: velocities, controls, lyrics, tempo changes
    after the first, key changes after the first. Raises UserError where it isn't MIDI, is damaged
    or is beyond the limits above.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(error.strerror or "can't be opened", path) from error
    return song_of_score(parse(data, path), key="", where=path)


def parse(data: bytes, path: object) -> Any:
    """The symusic Score of a MIDI file's bytes, within the limits. Raises UserError at `path`."""
    from symusic import Score

    if data[:4] != b"MThd":
        raise UserError("is not a MIDI file" if data else "is an empty file", path, "export or copy it again")
    if len(data) > MAX_BYTES:
        raise UserError(f"has {len(data):,} bytes, more than {MAX_BYTES:,}", path)
    division = int.from_bytes(data[12:14], "big")
    if len(data) < 14 or division == 0:
        raise UserError(
            "is truncated or damaged: it says no length of a quarter note", path, "export it again"
        )
    if division & 0x8000:
        raise UserError("counts time in SMPTE frames, not in beats", path)
    try:
        score = Score.from_midi(data)
    except (RuntimeError, ValueError, OverflowError) as error:
        raise UserError("is truncated or damaged", path, "export or copy it again") from error
    check_limits(score, path)
    return score


def check_limits(score: Any, path: object = "") -> None:
    """Raises UserError where a symusic Score is beyond MAX_QUARTERS or MAX_NOTES."""
    if score.start() < 0 or not 0 <= score.end() <= MAX_QUARTERS * score.ticks_per_quarter:
        raise UserError(f"is damaged, or longer than {MAX_QUARTERS:,} quarter notes", path)
    if score.note_num() > MAX_NOTES:
        raise UserError(f"has {score.note_num():,} notes, more than {MAX_NOTES:,}", path)


def song_of_score(score: Any, key: str, where: object = "") -> Song:
    """Song of a symusic Score. Raises UserError where its meters make too many bars."""
    division = score.ticks_per_quarter
    tracks = _tracks([t for t in _listed(score.tracks) if len(t.notes)], division)
    signs = sorted([(s.time, s.numerator, s.denominator) for s in _listed(score.time_signatures)], key=_time)
    meters = clean_meters([(ticks(time, division), *meter) for time, *meter in signs])
    end = max([int(t.notes[-1, 0]) for t in tracks], default=0) + 1
    if sum([bars for _, bars in count_bars(meters, end)]) > MAX_BARS:
        raise UserError(f"has more than {MAX_BARS:,} bars", where)
    return Song(key, tracks, meters, _first_tempo(score), _first_signature(score))


_time = itemgetter(0)


def _listed(events: Any) -> list[Any]:
    """A list of symusic's as one of Python's; to iterate over it takes three times as long."""
    return [events[i] for i in range(len(events))]


def _tracks(played: Sequence[Any], division: int) -> tuple[Track, ...]:
    """Tracks of symusic ones that have notes, all at once; times rounded to TICKS."""
    if not played:
        return ()
    fields = [t.notes.numpy() for t in played]
    ends = list(accumulate([len(f["time"]) for f in fields]))
    written = np.concatenate([f["time"] for f in fields], dtype=np.int64)
    notes = np.empty((3, len(written)), dtype=np.int64).T  # columns lie together
    notes[:, 0] = written
    np.concatenate([f["duration"] for f in fields], out=notes[:, 1])
    np.concatenate([f["pitch"] for f in fields], out=notes[:, 2])
    notes[:, :2] = ticks(notes[:, :2], division)
    np.maximum(1, notes[:, 1], out=notes[:, 1])
    place = places(notes)
    rising = place[1:] > place[:-1]
    for end in ends[:-1]:
        rising[end - 1] = True
    if not all_true(rising):
        track = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
        order = np.lexsort((notes[:, 1], place, track))
        notes, written = notes[order], written[order]
    parts = zip(played, [0, *ends], ends, strict=False)
    return tuple(
        [Track(_clean(t.name), t.program, t.is_drum, notes[a:b], written[a:b], division) for t, a, b in parts]
    )


def _clean(name: str) -> str:
    if not name.isprintable():
        name = "".join([c if c.isprintable() else " " for c in name])
    return " ".join(name.split())


def ticks(time: Any, division: int) -> Any:
    """Times of `division` per quarter note in ticks of 1/TICKS quarter, halves rounded up as
    symusic does.
    """
    return (2 * time * TICKS + division) // (2 * division)


def _first_tempo(score: Any) -> float:
    tempos = [(t.time, t.qpm) for t in _listed(score.tempos)]
    first = min(tempos, key=_time)[1] if tempos else 120.0  # of two at one time the first
    return round(float(first), 3) if 4 <= first <= 1000 else 120.0


def _first_signature(score: Any) -> Signature | None:
    signs = [(s.time, s.key, s.tonality) for s in _listed(score.key_signatures)]
    if not signs:
        return None
    _, key, tonality = min(signs, key=_time)
    return (key, tonality == 1) if -7 <= key <= 7 and tonality in (0, 1) else None


# ------------------------------------------------------------------------------ writing

_WRITTEN = 480  # ticks per quarter note in the files we write: what most programs use, a multiple of TICKS
_LATEST = 2**28 - 1  # the largest number that MIDI can write as a time


def write_tracks(  # noqa: PLR0913 - one call writes a whole file
    path: Path,
    tracks: Sequence[Track],
    *,
    meters: Sequence[Meter] = (Meter(0),),
    tempo: float = 120.0,
    signature: Signature | None = None,
    title: str = "",
    note: str = "",
    append: bool = False,
    velocity: int = 90,
) -> Path:
    """Write a MIDI file of type 1: a conductor track, then one named track with a channel of its
    own for each.

    The conductor holds the title, the tempo (quarter notes per minute), meters, key and `note` as a
    text event. `append` adds the tracks to the file at `path` and leaves what is in it untouched:
    its conductor stays. The same arguments give the same bytes. Raises UserError for a time that
    MIDI can't write and a file to append to that can't be read.
    """
    path = Path(path)
    if append:
        file = _open(path)
    else:
        import mido

        file = mido.MidiFile(type=1, ticks_per_beat=_WRITTEN, charset="latin1")
        file.tracks.append(_conductor(meters, tempo, signature, title, note))
    channels = _free_channels(file)
    for track, channel in zip(tracks, channels, strict=False):
        file.tracks.append(_midi_track(track, channel, velocity, file.ticks_per_beat, path))
    buffer = io.BytesIO()
    file.save(file=buffer)
    return write_bytes(path, buffer.getvalue())


def _open(path: Path) -> mido.MidiFile:
    import mido

    try:
        parse(path.read_bytes(), path)
        # Latin-1 keeps every byte of the texts in it as it is, whatever their real encoding.
        file = mido.MidiFile(path, charset="latin1")
    except (OSError, EOFError, ValueError, IndexError, mido.KeySignatureError) as error:
        raise UserError("no track can be added: it is not a readable MIDI file", path) from error
    if file.type == 2:
        raise UserError("no track can be added: its tracks are not played together (type 2)", path)
    file.type = 1
    return file


def _conductor(
    meters: Sequence[Meter], tempo: float, signature: Signature | None, title: str, note: str
) -> mido.MidiTrack:
    import mido

    texts = [("track_name", "name", title), ("text", "text", note)]
    start = [mido.MetaMessage(kind, **{field: _bytes(text)}) for kind, field, text in texts if text]
    start.append(mido.MetaMessage("set_tempo", tempo=min(round(60e6 / max(tempo, 4.0)), 0xFFFFFF)))
    if signature is not None:
        tonic, mode = key_name(signature).split()
        start.append(mido.MetaMessage("key_signature", key=tonic + "m" * (mode == "minor")))
    events = [(0, message) for message in start]
    for m in meters:
        sign = mido.MetaMessage("time_signature", numerator=m.numerator, denominator=m.denominator)
        events.append((m.tick * _WRITTEN // TICKS, sign))
    return _timed(events)


def _bytes(text: str) -> str:
    """UTF-8 as mido's Latin-1 file writes it."""
    return text.encode("utf-8", "replace").decode("latin1")


def _free_channels(file: mido.MidiFile) -> Iterable[int]:
    used = {m.channel for track in file.tracks for m in track if hasattr(m, "channel")}
    melodic = [c for c in range(16) if c != 9]  # channel 9 is the drums'
    return chain([c for c in melodic if c not in used], *([melodic] * 1000))


def _midi_track(track: Track, channel: int, velocity: int, division: int, path: Path) -> mido.MidiTrack:
    import mido

    channel = 9 if track.is_drum else channel
    events: list[tuple[int, Any]] = [(0, mido.MetaMessage("track_name", name=_bytes(track.name)))]
    events.append((0, mido.Message("program_change", channel=channel, program=track.program)))
    notes = sort_notes(track.notes)
    ends = notes[:, 0] + np.maximum(1, notes[:, 1])
    if len(notes) and (notes.min() < 0 or notes[:, 2].max() > 127):
        raise ValueError("a note begins before 0 or has a pitch outside 0..127")
    if len(notes) and int(ends.max()) * division // TICKS > _LATEST:
        raise UserError(f"track {track.name!r} ends later than MIDI can write", path)
    # What ends sorts before what begins at the same tick, so that a repeated pitch sounds again.
    timed = [(t, 0, p) for t, p in zip(ends.tolist(), notes[:, 2].tolist(), strict=True)]
    timed += [(t, velocity, p) for t, p in notes[:, [0, 2]].tolist()]
    for tick, strength, pitch in sorted(timed):
        message = mido.Message("note_on", channel=channel, note=pitch, velocity=strength)
        events.append(((2 * tick * division + TICKS) // (2 * TICKS), message))
    return _timed(events)


def _timed(events: Sequence[tuple[int, Any]]) -> mido.MidiTrack:
    import mido

    messages, now = mido.MidiTrack(), 0
    for tick, message in events:
        messages.append(message.copy(time=tick - now))
        now = tick
    messages.append(mido.MetaMessage("end_of_track"))
    return messages
