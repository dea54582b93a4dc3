"""A MIDI file as sound: through a soundfont where one is given, else by a small synthesiser of our own.

Ours adds sines: it says what the notes are, not what the instruments sound like.
"""

from __future__ import annotations

import io
import wave
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.rendering.score import check_kind
from multimodal_gpt.tokenizers import _midi

RATE = 44_100
"""Samples per second."""
LONGEST = 1200.0
"""Seconds of a file; ten minutes of sound take 200 MB of memory."""
PEAK = 0.89  # the loudest sample, of 1: a decibel below what a file can hold
_SPREAD = 0.3  # how far to the side the outer tracks stand, 0 the middle and 1 one ear


@dataclass(frozen=True)
class Voice:
    """How a family of instruments sounds.

    Args:
        partials: loudness of each harmonic, the fundamental first.
        attack, release: seconds.
        half: seconds until a held note has half its loudness; 0 = it does not fade.
    """

    partials: tuple[float, ...]
    attack: float
    release: float
    half: float = 0.0


STRUCK = Voice((1.0, 0.5, 0.28, 0.14, 0.1, 0.05), 0.004, 0.12, 0.45)
BOWED = Voice((1.0, 0.6, 0.4, 0.26, 0.18, 0.1), 0.05, 0.1)
BLOWN = Voice((1.0, 0.28, 0.2, 0.06, 0.03), 0.025, 0.06)
ORGAN = Voice((1.0, 0.7, 0.25, 0.4, 0.05, 0.15), 0.012, 0.05)
DRUM = Voice((), 0.001, 0.05, 0.03)
_FAMILIES = (  # of eight programs of General MIDI each
    *(STRUCK, STRUCK, ORGAN, STRUCK, STRUCK, BOWED, BOWED, BLOWN),
    *(BLOWN, BLOWN, ORGAN, BOWED, BOWED, STRUCK, STRUCK, STRUCK),
)


def synthesise(path: Path) -> bytes:
    """A MIDI file as WAV, 16 bits, stereo: sines in equal temperament. The same file gives the same bytes.

    Raises UserError where the file can't be read, holds no notes or lasts longer than LONGEST.
    """
    score = _seconds(path)
    tracks = [track for track in score.tracks if len(track.notes)]
    ends = [float((n["time"] + n["duration"]).max()) for n in (track.notes.numpy() for track in tracks)]
    tail = max(voice.release for voice in (*_FAMILIES, DRUM))
    sound = np.zeros((int((max(ends) + tail) * RATE) + 1, 2), dtype=np.float32)
    sides = np.linspace(-_SPREAD, _SPREAD, len(tracks)) if len(tracks) > 1 else [0.0]
    for track, side in zip(tracks, sides, strict=True):
        voice = DRUM if track.is_drum else _FAMILIES[track.program // 8]
        ears = np.sqrt([(1 - side) / 2, (1 + side) / 2]).astype(np.float32)
        notes = track.notes.numpy()
        rows = zip(*(notes[key].tolist() for key in ("time", "duration", "pitch", "velocity")), strict=True)
        for start, duration, pitch, velocity in rows:
            tone = _tone(voice, pitch, duration) * np.float32(velocity / 127)
            first = round(start * RATE)
            sound[first : first + len(tone)] += tone[: len(sound) - first, None] * ears
    loudest = float(np.abs(sound).max())
    return _wav(sound * np.float32(PEAK / loudest if loudest else 0))


def _seconds(path: Path) -> Any:
    """The symusic Score of a MIDI file in seconds, tempo changes and all."""
    check_kind(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"can't be read: {error.strerror}", path) from error
    score = _midi.parse(data, path)
    if not score.note_num():
        raise UserError("holds no notes", path)
    score = score.to("second")
    if score.end() > LONGEST:
        raise UserError(f"lasts {score.end() / 60:.0f} minutes", path, f"{LONGEST / 60:.0f} are the most")
    return score


def _tone(voice: Voice, pitch: int, duration: float) -> np.ndarray:
    """(T,) float32: one note from its attack to the end of its release."""
    held, release = max(1, round(duration * RATE)), round(voice.release * RATE)
    time = np.arange(held + release, dtype=np.float32) / np.float32(RATE)
    loud = np.minimum(time / np.float32(voice.attack), 1)
    if voice.half:
        loud *= np.exp2(-time / np.float32(voice.half))
    loud[held:] *= np.linspace(1, 0, release, dtype=np.float32)
    return np.asarray(loud * _wave(voice, pitch, 1 << (len(time) - 1).bit_length())[: len(time)])


@lru_cache(maxsize=256)  # some 50 MB where all of a keyboard is played
def _wave(voice: Voice, pitch: int, length: int) -> np.ndarray:
    """(length,) float32 of a steady sound; noise for drums."""
    if not voice.partials:
        return np.random.default_rng(pitch).uniform(-1, 1, length).astype(np.float32)
    step = 2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) / RATE
    angle = step * np.arange(length)
    before, now, twice = np.zeros(length), np.sin(angle), 2 * np.cos(angle)
    total = np.zeros(length)
    for number, loud in enumerate(voice.partials, 1):
        if number * step < np.pi:  # a higher one can't be told from a lower one
            total += loud * now
        before, now = now, twice * now - before  # sin (n+1)x = 2 cos x sin nx - sin (n-1)x
    return total.astype(np.float32)


def _wav(sound: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.rint(sound * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def play(path: Path, soundfont: Path) -> bytes:
    """A MIDI file as WAV, 16 bits, stereo, 48 kHz, played with the instruments of a soundfont (.sf2).

    Raises UserError where midirenderer is not installed or either file can't be read.
    """
    try:
        from midirenderer import render_wave_from
    except ImportError as error:
        fix = 'pip install "multimodal-gpt[audio]", or leave --soundfont away'
        raise UserError("midirenderer is not installed", "--soundfont", fix) from error
    _seconds(path)
    if not soundfont.is_file():
        raise UserError("there is no such file", soundfont)
    data = soundfont.read_bytes()
    if data[:4] != b"RIFF" or data[8:12] != b"sfbk":
        raise UserError("is no soundfont", soundfont, "its name ends in .sf2")
    try:
        return bytes(render_wave_from(data, path.read_bytes()))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of its Rust code is no Exception
        raise UserError(f"can't be played with this soundfont: {error}", soundfont) from error
