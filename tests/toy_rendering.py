"""A tune with chords as a MIDI file, other files to play, and the sound that is made of them."""

from __future__ import annotations

import importlib.util
import io
import struct
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multimodal_gpt.stream.plugins import Modality, build

MELODY, CHORDS = (build(Modality(name, name)) for name in ("melody", "chords"))
TUNE = "C5:0.33333 D5:0.33333 E5:0.33333 F5:1.5 G5:0.5 G#5:0.25 G5:0.75 r:3 F#5:3 C5:0.66667 D5:0.33333 C4:5"
HARMONY = "C Fm7/Ab | G7 | C#dim Ebm7b5 . N.C. | F7b9/A"


def missing(library: str) -> pytest.MarkDecorator:
    absent = importlib.util.find_spec(library) is None
    return pytest.mark.skipif(absent, reason=f"{library} is not installed")


def write_tune(path: Path) -> Path:
    """The tune and its chords."""
    path = MELODY.write(MELODY.parse(TUNE), path)
    return CHORDS.write(CHORDS.parse(HARMONY), path, append=True)


def midi(path: Path, melody: str, **changes: Any) -> Path:
    """A file of a melody."""
    content = MELODY.parse(melody)
    return MELODY.write(type(content)(content.notes, **changes), path)


def sound(data: bytes, rate: int = 44_100) -> np.ndarray:
    """(T, 2) samples between -1 and 1."""
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (rate, 2, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2) / 32768


def soundfont(path: Path) -> Path:
    """The smallest soundfont: one sine of 441 Hz, which says of itself that it is an A4 of 440 Hz."""
    period, rate = 100, 44_100
    sine = (20_000 * np.sin(2 * np.pi * np.arange(200 * period) / period)).astype("<i2")

    def chunk(name: bytes, data: bytes) -> bytes:
        return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)

    def listed(kind: bytes, *chunks: bytes) -> bytes:
        return chunk(b"LIST", kind + b"".join(chunks))

    def named(name: str) -> bytes:
        return name.encode().ljust(20, b"\0")

    header = [struct.pack("<HHHIII", 0, 0, n, 0, 0, 0) for n in (0, 1)]
    sample = struct.pack("<IIIIIBbHH", 0, len(sine), period, len(sine) - period, rate, 69, 0, 0, 1)
    data = listed(
        b"pdta",
        chunk(b"phdr", named("sine") + header[0] + named("EOP") + header[1]),
        chunk(b"pbag", struct.pack("<4H", 0, 0, 1, 0)),
        chunk(b"pmod", bytes(10)),
        chunk(b"pgen", struct.pack("<4H", 41, 0, 0, 0)),  # instrument 0
        chunk(b"inst", named("sine") + struct.pack("<H", 0) + named("EOI") + struct.pack("<H", 1)),
        chunk(b"ibag", struct.pack("<4H", 0, 0, 2, 0)),
        chunk(b"imod", bytes(10)),
        chunk(b"igen", struct.pack("<6H", 54, 1, 53, 0, 0, 0)),  # looped, sample 0
        chunk(b"shdr", named("sine") + sample + named("EOS") + bytes(26)),
    )
    info = listed(
        b"INFO",
        chunk(b"ifil", struct.pack("<HH", 2, 1)),
        chunk(b"isng", b"EMU8000\0"),
        chunk(b"INAM", b"x\0"),
    )
    body = b"sfbk" + info + listed(b"sdta", chunk(b"smpl", sine.tobytes() + bytes(92))) + data
    path.write_bytes(chunk(b"RIFF", body))
    return path
