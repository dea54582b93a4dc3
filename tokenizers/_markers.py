"""Chord symbols in a MIDI file as markers, "chord C/E": what the notes of a voicing can't tell.

The prefix keeps them apart from other people's markers, where "A" is the name of a section.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

from multimodal_gpt.files import write_bytes
from multimodal_gpt.tokenizers import _midi
from multimodal_gpt.tokenizers._music import TICKS

_PREFIX = "chord "


def add_markers(path: Path, symbols: Iterable[tuple[int, str]]) -> Path:
    """Put (tick, symbol) as markers into the last track of the MIDI file at `path`; `read_markers`
    is its reverse.
    """
    import mido

    file = mido.MidiFile(path, charset="latin1")  # keeps every byte of the texts in it
    markers = mido.MidiTrack()
    now = 0
    for tick, symbol in symbols:
        time = tick * file.ticks_per_beat // TICKS
        markers.append(mido.MetaMessage("marker", text=_PREFIX + symbol, time=time - now))
        now = time
    file.tracks[-1] = mido.merge_tracks((file.tracks[-1], markers))
    buffer = io.BytesIO()
    file.save(file=buffer)
    return write_bytes(path, buffer.getvalue())


def read_markers(path: Path) -> tuple[tuple[int, str], ...]:
    """(tick, symbol) of each chord marker in a MIDI file, sorted; () where there are none."""
    score = _midi.parse(path.read_bytes(), path)
    found = [(m.time, m.text.removeprefix(_PREFIX)) for m in score.markers if m.text.startswith(_PREFIX)]
    return tuple((_midi.ticks(time, score.ticks_per_quarter), text) for time, text in found)
