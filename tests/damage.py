"""Files as no program should write them: damaged copies of whole ones, the same every time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import mido

HUGE = bytes((0xFF, 0xFF, 0xFF, 0x7F))  # the largest number that has a variable length
HEADER = 14  # bytes: MThd, length, format, tracks, division


def write_whole(folder: Path, number: int = 12) -> list[Path]:
    """Tunes with a melody and chords in one or several tracks, in odd meters, with lyrics, tempo changes,
    and channels in use for nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(number):
        rng = random.Random(i)
        file = mido.MidiFile(type=i % 2, ticks_per_beat=rng.choice([24, 96, 384, 480, 960]))
        tracks = [_beginning(rng), _melody(rng, file.ticks_per_beat), _chords(rng, file.ticks_per_beat)]
        file.tracks.extend(tracks if i % 2 else [mido.merge_tracks(tracks)])
        paths.append(folder / f"whole{i:02d}.mid")
        file.save(paths[-1])
    return paths


def _beginning(rng: random.Random) -> mido.MidiTrack:
    meta = mido.MetaMessage
    meter = {"numerator": rng.choice([2, 3, 4, 5, 6, 7]), "denominator": rng.choice([4, 8])}
    return mido.MidiTrack(
        [
            meta("track_name", name="a tune"),
            meta("time_signature", **meter),
            meta("key_signature", key=rng.choice(["C", "Am", "Eb", "F#m"])),
            meta("set_tempo", tempo=rng.randrange(300_000, 900_000)),
            meta("lyrics", text="la", time=100),
            meta("set_tempo", tempo=400_000, time=1000),
            meta("marker", text="Am7", time=20),
        ]
    )


def _melody(rng: random.Random, quarter: int) -> mido.MidiTrack:
    messages = [mido.MetaMessage("track_name", name=rng.choice(["melody", "Flute", ""]))]
    messages.append(mido.Message("program_change", program=73))
    for _ in range(rng.randrange(16, 80)):
        note = rng.randrange(55, 90)
        rest = rng.choice([0, 0, 0, quarter // 2])
        messages.append(mido.Message("note_on", note=note, velocity=80, time=rest))
        length = quarter * rng.choice([1, 2, 3, 4]) // 4
        # Both ways to end a note
        ending = {"velocity": 0} if rng.random() < 0.5 else {}
        messages.append(mido.Message("note_on" if ending else "note_off", note=note, time=length, **ending))
        if rng.random() < 0.1:
            messages.append(mido.Message("pitchwheel", pitch=rng.randrange(-8192, 8192)))
            messages.append(mido.Message("sysex", data=[1, 2, 3]))
    return mido.MidiTrack(messages)


def _chords(rng: random.Random, quarter: int) -> mido.MidiTrack:
    messages = [mido.MetaMessage("track_name", name="chords")]
    for _ in range(rng.randrange(4, 20)):
        root, third = rng.randrange(40, 52), rng.choice([3, 4])
        tones = [root, root + third, root + 7]
        messages += [mido.Message("note_on", channel=1, note=n, velocity=60) for n in tones]
        messages += [
            mido.Message("note_off", channel=1, note=n, time=0 if k else 2 * quarter)
            for k, n in enumerate(tones)
        ]
    return mido.MidiTrack(messages)


def write_damaged(folder: Path, whole: Sequence[Path], number: int, seed: int = 0) -> list[str]:
    """Damaged copies of whole files; gives their names without suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    data = [path.read_bytes() for path in whole]
    names = []
    for i in range(number):
        rng = random.Random(f"{seed} {i}")
        content = bytearray(rng.choice(data))
        kinds = rng.choices(list(KINDS), k=rng.choice([1, 1, 1, 1, 2, 4]))
        for kind in kinds:
            content = KINDS[kind](rng, content, rng.choice(data))
        names.append(f"{i:05d}-{'-'.join(kinds)}")
        (folder / f"{names[-1]}.mid").write_bytes(content)
    return names


Damage = Callable[[random.Random, bytearray, bytes], bytearray]


def _flip(rng: random.Random, data: bytearray, other: bytes) -> bytearray:
    for _ in range(rng.choice([1, 1, 1, 2, 8, 64])):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _truncate(rng: random.Random, data: bytearray, other: bytes) -> bytearray:
    return data[: rng.randrange(len(data) + 1)]


def _splice(rng: random.Random, data: bytearray, other: bytes) -> bytearray:
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _lengths(rng: random.Random, data: bytearray, other: bytes) -> bytearray:
    """Lengths of chunks that are wrong, huge or zero."""
    for place in _places(data, b"MTrk"):
        if rng.random() < 0.7:
            length = rng.choice(
                [0, 1, 2**31 - 1, 2**32 - 1, rng.randrange(2**32), rng.randrange(2 * len(data))]
            )
            data[place + 4 : place + 8] = length.to_bytes(4, "big")
    return data


def _deltas(rng: random.Random, data: bytearray, other: bytes) -> bytearray:
    """Huge times before some notes."""
    notes = [p for status in (b"\x90", b"\x80", b"\x91") for p in _places(data, status)]
    for place in sorted(rng.sample(notes, min(len(notes), rng.choice([1, 2, 9]))), reverse=True):
        data[place:place] = rng.choice([HUGE, b"\xff\xff\x7f", b"\x81\x80\x80\0"])
    return data


def _division(rng: random.Random, data: bytearray, other: bytes) -> bytearray:
    """No ticks in a quarter note, one, very many, or SMPTE frames."""
    words = [b"\0\0", b"\0\1", b"\x7f\xff", b"\xe7\x28", b"\xe2\x50", b"\x80\0", b"\xff\xff"]
    data[12:14] = rng.choice(words)
    return data


def _header(rng: random.Random, data: bytearray, other: bytes) -> bytearray:
    """Another length, format or number of tracks in the header."""
    place = rng.choice([4, 8, 10])
    data[place : place + 2] = rng.choice([b"\0\0", b"\0\1", b"\0\2", b"\0\3", b"\xff\xff"])
    return data


def _status(rng: random.Random, data: bytearray, other: bytes) -> bytearray:
    """Status bytes missing, or others in their place."""
    found = [p for p in range(min(HEADER, len(data)), len(data)) if data[p] >= 0x80]
    for place in sorted(rng.sample(found, min(len(found), rng.choice([1, 3, 20]))), reverse=True):
        data[place : place + 1] = rng.choice([b"", b"", b"\xf0", b"\xf7", b"\xff", b"\xf1", b"\xc0"])
    return data


def _meta(rng: random.Random, data: bytearray, other: bytes) -> bytearray:
    """Wrong lengths of meta events, and wrong contents of those with a meaning."""
    for place in _places(data, b"\xff"):
        if rng.random() < 0.2 and place + 3 < len(data):
            data[place + 2 : place + 3] = rng.choice([HUGE, b"\0", b"\x7f", b"\xff", b"\x80\x80\0"])
    return data


def _meaning(rng: random.Random, data: bytearray, other: bytes) -> bytearray:
    """Meters such as 0/1 and 255/2^255, no tempo, keys that there are not: at the beginning of a track."""
    event = rng.choice(
        [
            b"\0\xff\x58\4" + rng.randbytes(4),
            b"\0\xff\x58\4\0\0\x18\x08",
            b"\0\xff\x58\4\1\6\x18\x08",
            b"\0\xff\x58\4\xff\0\x18\x08",
            b"\0\xff\x51\3\0\0\0",
            b"\0\xff\x51\3\xff\xff\xff",
            b"\0\xff\x59\2" + rng.randbytes(2),
            b"\0\xff\x2f\0",
        ]
    )
    events = event * rng.choice([1, 1, 500])
    for place in _places(data, b"MTrk")[:1]:
        data[place + 8 : place + 8] = events
        length = int.from_bytes(data[place + 4 : place + 8], "big") + len(events)
        data[place + 4 : place + 8] = (length % 2**32).to_bytes(4, "big")
    return data


def _repeat(rng: random.Random, data: bytearray, other: bytes) -> bytearray:
    """A piece of it many times."""
    begin = rng.randrange(len(data) + 1)
    stop = min(len(data), begin + rng.choice([1, 8, 100]))
    data[begin:begin] = bytes(data[begin:stop]) * rng.choice([1, 10, 1000])
    return data


def _noise(rng: random.Random, data: bytearray, other: bytes) -> bytearray:
    begin = rng.randrange(len(data) + 1)
    data[begin : begin + rng.choice([1, 4, 64])] = rng.randbytes(rng.choice([0, 4, 64]))
    return data


def _places(data: bytearray, what: bytes) -> list[int]:
    found, place = [], data.find(what, HEADER)
    while place >= 0:
        found.append(place)
        place = data.find(what, place + 1)
    return list(reversed(found))


KINDS: dict[str, Damage] = {
    "flip": _flip,
    "truncate": _truncate,
    "splice": _splice,
    "lengths": _lengths,
    "deltas": _deltas,
    "division": _division,
    "header": _header,
    "status": _status,
    "meta": _meta,
    "meaning": _meaning,
    "repeat": _repeat,
    "noise": _noise,
}
