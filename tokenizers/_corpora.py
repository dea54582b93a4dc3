"""The public-domain collections inside the music21 package, and MusicXML through music21."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from multimodal_gpt.errors import UserError, nearest
from multimodal_gpt.tokenizers._music import (
    TICKS,
    Signature,
    Song,
    Track,
    clean_meters,
    find_key,
    parse_key,
    sort_notes,
)

SUFFIXES = (".mxl", ".musicxml", ".xml")
CORPORA = {
    "oneills": ("oneills1850", "*.abc"),
    "ryans": ("ryansMammoth", "*.abc"),
    "airds": ("airdsAirs", "*.abc"),
    "chorales": ("bach", "bwv*.mxl"),
}
"""Name -> folder inside music21's corpus and the files of it."""
_INSTALL = 'pip install "multimodal-gpt[corpus]"'


def corpus_files(name: str) -> list[Path]:
    """Files of a named corpus, sorted. Raises UserError for an unknown name and where music21 is
    missing.
    """
    if name not in CORPORA:
        raise UserError(f"unknown corpus {name!r}", "", nearest(name, CORPORA))
    spec = find_spec("music21")  # finds the package without importing it, which takes a second
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the corpus {name!r} is a part of music21, which is missing", "", _INSTALL)
    folder, pattern = CORPORA[name]
    files = sorted((Path(spec.submodule_search_locations[0]) / "corpus" / folder).glob(pattern))
    if not files:
        raise UserError(f"this music21 has no {folder}", spec.submodule_search_locations[0], _INSTALL)
    return files


_ONEILLS_SECTIONS = (
    (range(1, 626), "air"),
    (range(701, 1116), "jig"),
    (range(1116, 1176), "slip jig"),
    (range(1176, 1556), "reel"),
    (range(1556, 1781), "hornpipe"),
    (range(1781, 1801), "long dance"),
)


def add_section(song: Song, path: Path) -> Song:
    """The song with the type of its section in O'Neill's book, where its file is of that book and
    tells no type.

    Half of the files say it themselves (R:) and agree with the sections but for a few tunes.
    """
    if Path(path).parent.name != CORPORA["oneills"][0] or "type" in song.metadata:
        return song
    number = int(song.key) if song.key.isdigit() else 0
    kind = next((kind for section, kind in _ONEILLS_SECTIONS if number in section), "")
    return replace(song, metadata={**song.metadata, "type": kind}) if kind else song


def load_score(path: Path) -> Song:
    """Song of a MusicXML file, one track per part; takes about 60 ms a page.

    A pickup is shifted so that bar lines fall on bars. Lost: grace notes, fermatas, lyrics, repeats
    (played once). Raises UserError where music21 is missing or can't read the file.
    """
    if find_spec("music21") is None:
        raise UserError("MusicXML is read by music21, which is missing", path, _INSTALL)
    from music21 import converter

    if not Path(path).is_file():
        raise UserError("no such file", path)
    try:
        score = converter.parse(path, forceSource=True)
        parts = list(score.parts) or [score]
        tracks = tuple(_track(part, i, len(parts)) for i, part in enumerate(parts))
        return _song(score, parts[0], tuple(t for t in tracks if len(t.notes)), Path(path))
    except Exception as error:  # music21 raises whatever its parts raise on a damaged file
        raise UserError(f"is not a score that music21 can read: {error}", path) from error


def _song(score: Any, first: Any, tracks: tuple[Track, ...], path: Path) -> Song:
    signs = [
        (_ticks(s.getOffsetInHierarchy(first)), s.numerator, s.denominator)
        for s in first.recurse().getElementsByClass("TimeSignature")
    ]
    pickup = _pickup(first)
    moved = tuple(Track(t.name, 0, False, t.notes + np.array([pickup, 0, 0])) for t in tracks)
    meters = clean_meters((t + pickup if t else 0, n, d) for t, n, d in signs)
    keys = list(first.recurse().getElementsByClass("KeySignature"))
    tempos = list(score.recurse().getElementsByClass("MetronomeMark"))
    tempo = next((float(t.getQuarterBPM()) for t in tempos if t.getQuarterBPM()), 120.0)
    signature = _signature(keys[0], tracks) if keys and tracks else None
    symbols = tuple((tick + pickup, name) for tick, name in _symbols(first)) or None
    return Song("", moved, meters, tempo, signature, symbols, _describe(score, path))


def _symbols(part: Any) -> list[tuple[int, str]]:
    """Chord symbols as a lead sheet writes them; music21 spells a flat "-"."""
    found = part.recurse().getElementsByClass("ChordSymbol")
    return [(_ticks(s.getOffsetInHierarchy(part)), s.figure.replace("-", "b")) for s in found]


def _ticks(quarters: Any) -> int:
    return int(2 * quarters * TICKS + 1) // 2


def _pickup(part: Any) -> int:
    """By how many ticks the first measure is too short."""
    measures = list(part.getElementsByClass("Measure"))
    if len(measures) < 2:
        return 0
    bar = measures[0].barDuration.quarterLength
    return max(0, _ticks(bar) - _ticks(measures[1].offset - measures[0].offset)) % _ticks(bar)


_VOICES = ("Soprano", "Alto", "Tenor", "Bass")


def _track(part: Any, index: int, parts: int) -> Track:
    rows: list[list[int]] = []
    held: dict[int, int] = {}  # pitch -> row of the note that is tied on
    for measure in part.getElementsByClass("Measure") or [part]:
        for voice in measure.voices or [measure]:
            for element in voice.notes:
                if element.duration.isGrace or "ChordSymbol" in element.classes:
                    continue
                onset = measure.offset + element.offset
                for note in getattr(element, "notes", None) or [element]:
                    _add(rows, held, _ticks(onset), _ticks(element.quarterLength), note)
    name = _VOICES[index] if parts == 4 else " ".join(str(part.partName or "").split())
    return Track(name, 0, False, sort_notes(np.array(rows, dtype=np.int64).reshape(-1, 3)))


def _add(rows: list[list[int]], held: dict[int, int], onset: int, duration: int, note: Any) -> None:
    """Add a note of a score, or lengthen the one that is tied to it (music21's own `stripTies`
    copies the score).
    """
    tied = note.tie.type if note.tie else ""
    pitch = note.pitch.midi
    if tied in ("continue", "stop") and pitch in held:
        rows[held[pitch]][1] = onset + duration - rows[held[pitch]][0]
    else:
        rows.append([onset, max(1, duration), pitch])
        held[pitch] = len(rows) - 1
    if tied not in ("start", "continue"):
        held.pop(pitch, None)


def _signature(sign: Any, tracks: tuple[Track, ...]) -> Signature:
    if hasattr(sign, "tonic"):
        named = parse_key(f"{sign.tonic.name.replace('-', 'b')} {sign.mode}")
        if named:
            return named
    return find_key(np.concatenate([t.notes for t in tracks]), sign.sharps)


def _describe(score: Any, path: Path) -> dict[str, Any]:
    known = score.metadata
    title = str(known.title or known.movementName or "") if known else ""
    title = title.removesuffix(path.suffix)
    if path.stem.startswith("bwv"):
        return {"title": f"BWV {path.stem[3:]}", "type": "chorale", "composer": "J. S. Bach"}
    composer = str(known.composer or "") if known else ""
    return {k: v for k, v in (("title", title), ("composer", composer)) if v}
