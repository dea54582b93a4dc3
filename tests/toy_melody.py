"""The plugin of melodies, a jig, and random melodies with whatever a file may hold."""

from __future__ import annotations

import numpy as np

from multimodal_gpt.tokenizers import melody
from multimodal_gpt.tokenizers._music import METERS, Meter, align_meters, clean_meters

PLUGIN = melody.build()
JIG = melody.Melody(
    np.array([[120, 24, 69], [144, 48, 74], [192, 24, 73], [288, 400, 71]]), (Meter(0, 6, 8),)
)


def random_melody(seed: int, rough: bool) -> melody.Melody:
    """Meter changes (also inside a bar), empty bars, pickups and long notes; on the grid unless `rough`."""
    rng = np.random.default_rng(seed)
    choices = [(n, d) for d, row in METERS.items() for n in row if d < 16 or rng.random() < 0.3]
    signs = [(0, *choices[rng.integers(len(choices))])]
    for _ in range(rng.integers(0, 4)):
        signs.append((int(rng.integers(0, 3000)), *choices[rng.integers(len(choices))]))
    step = 1 if rough else 12
    gaps = rng.choice([8, 12, 24, 48, 96, 300, 1500], rng.integers(1, 30)) + rough * rng.integers(0, 8)
    onsets = np.cumsum(gaps) // step * step
    onsets = np.unique(onsets) - rng.integers(0, 2) * onsets[0]
    durations = rng.integers(1, 900, len(onsets))
    # A long note is rounded to a quarter of a beat: leave it the room, so that MidiTok's line stays a line.
    room = np.maximum(1, np.append(np.diff(onsets), 10**6) - 26)
    notes = np.column_stack([onsets, np.minimum(durations, room), rng.integers(0, 128, len(onsets))])
    last = int(onsets[-1])
    meters = tuple(m for m in align_meters(clean_meters(signs)) if m.tick <= last)
    return melody.Melody(notes, meters)
