"""A score as MusicXML 4.0, which every notation program opens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from multimodal_gpt.rendering.notation import Written, beams, write
from multimodal_gpt.rendering.score import TICKS, Score, Staff, spelling
from multimodal_gpt.tokenizers import _harmony

_TYPES = {
    192: "whole",
    96: "half",
    48: "quarter",
    24: "eighth",
    12: "16th",
    6: "32nd",
}
_KINDS = {
    "maj": "major",
    "min": "minor",
    "7": "dominant",
    "min7": "minor-seventh",
    "maj7": "major-seventh",
    "dim": "diminished",
    "sus4": "suspended-fourth",
    "hdim7": "half-diminished",
    "dim7": "diminished-seventh",
    "aug": "augmented",
    "sus2": "suspended-second",
    "6": "major-sixth",
    "min6": "minor-sixth",
    "5": "power",
    "9": "dominant-ninth",
    "min9": "minor-ninth",
    "maj9": "major-ninth",
    "minmaj7": "major-minor",
    "aug7": "augmented-seventh",
    "13": "dominant-13th",
    "11": "dominant-11th",
}
"""Of the chord qualities; others are "other", and all have their spelling beside it."""
_HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE score-partwise PUBLIC '
    '"-//Recordare//DTD MusicXML 4.0 Partwise//EN" "http://www.musicxml.org/dtds/partwise.dtd">\n'
)


def to_musicxml(score: Score) -> str:
    """The whole file. The same score gives the same text."""
    root = Element("score-partwise", version="4.0")
    _add(SubElement(root, "work"), "work-title", _clean(score.title))
    parts = SubElement(root, "part-list")
    for number, staff in enumerate(score.staves, 1):
        _add(SubElement(parts, "score-part", id=f"P{number}"), "part-name", _clean(staff.name))
    for number, staff in enumerate(score.staves, 1):
        _part(SubElement(root, "part", id=f"P{number}"), staff, score, first=number == 1)
    ElementTree.indent(root, " ")
    return _HEAD + ElementTree.tostring(root, encoding="unicode") + "\n"


def _part(part: Element, staff: Staff, score: Score, *, first: bool) -> None:
    symbols = score.symbols if first else ()
    meters = score.meters.tolist()
    for number, written in enumerate(write(staff, score)):
        measure = SubElement(part, "measure", number=str(number + 1))
        if not number or meters[number] != meters[number - 1]:
            _attributes(measure, staff, score, meters[number], opening=not number)
        if first and not number:
            _tempo(measure, score.tempo)
        start, stop = score.bars[number : number + 2].tolist()
        _measure(measure, written, score, [s for s in symbols if start <= s[0] < stop])
    line = SubElement(part[-1], "barline", location="right")
    _add(line, "bar-style", "light-heavy")


def _attributes(measure: Element, staff: Staff, score: Score, meter: Sequence[int], *, opening: bool) -> None:
    attributes = SubElement(measure, "attributes")
    if opening:
        _add(attributes, "divisions", TICKS)
        _add(SubElement(attributes, "key"), "fifths", score.sharps)
    time = SubElement(attributes, "time")
    _add(time, "beats", meter[0])
    _add(time, "beat-type", meter[1])
    if opening:
        high = float(np.median(staff.notes[:, 2])) >= 57  # below A3 more notes lie on ledger lines than above
        clef = SubElement(attributes, "clef")
        _add(clef, "sign", "G" if high else "F")
        _add(clef, "line", 2 if high else 4)


def _tempo(measure: Element, tempo: float) -> None:
    direction = SubElement(measure, "direction", placement="above")
    mark = SubElement(SubElement(direction, "direction-type"), "metronome")
    _add(mark, "beat-unit", "quarter")
    _add(mark, "per-minute", round(tempo))
    SubElement(direction, "sound", tempo=f"{tempo:g}")


def _measure(
    measure: Element, written: Sequence[Written], score: Score, symbols: Sequence[tuple[int, Any]]
) -> None:
    altered: dict[tuple[str, int], int] = {}
    for index, (part, lines) in enumerate(zip(written, beams(written), strict=True)):
        for tick, symbol in symbols:
            if part.start <= tick < part.stop:
                _harmony_of(measure, symbol, tick - part.start, score.sharps)
        for place, pitch in enumerate(part.pitches or (None,)):
            note = SubElement(measure, "note")
            if place:
                SubElement(note, "chord")
            accidental = _pitch(note, pitch, part, len(written) == 1, score.sharps, altered)
            _length(note, part, accidental)
            for level, word in enumerate(() if place else lines, 1):
                _add(SubElement(note, "beam", number=str(level)), None, word)
            _notations(note, part, [] if place else _tuplets(written, index))


def _pitch(
    note: Element,
    pitch: int | None,
    part: Written,
    alone: bool,
    sharps: int,
    altered: dict[tuple[str, int], int],
) -> str:
    """What sounds; gives the accidental that must be written before it."""
    if pitch is None:
        rest = SubElement(note, "rest")
        if alone:
            rest.set("measure", "yes")
        return ""
    letter, alteration, octave = spelling(pitch, sharps)
    told = SubElement(note, "pitch")
    _add(told, "step", letter)
    if alteration:
        _add(told, "alter", alteration)
    _add(told, "octave", octave)
    now = altered.get((letter, octave), _in_key(letter, sharps))
    if part.before and (letter, octave) not in altered:  # tied over a bar line: not written again
        return ""
    altered[letter, octave] = alteration
    names = {-2: "flat-flat", -1: "flat", 0: "natural", 1: "sharp", 2: "double-sharp"}
    return names[alteration] if alteration != now else ""


def _in_key(letter: str, sharps: int) -> int:
    """How the key signature alters a letter."""
    place = "FCGDAEB".index(letter)
    return int(place < sharps) - int(6 - place < -sharps)


def _length(note: Element, part: Written, accidental: str) -> None:
    length = part.stop - part.start
    _add(note, "duration", length)
    for kind, tied in (("stop", part.before), ("start", part.after)):
        if tied:
            SubElement(note, "tie", type=kind)
    written = length * 3 // 2 if part.triplet else length
    plain = next((ticks for ticks in _TYPES if written in (ticks, ticks * 3 // 2)), None)
    if plain is None:  # the rest of a bar of another length
        return
    _add(note, "type", _TYPES[plain])
    if written != plain:
        SubElement(note, "dot")
    if accidental:
        _add(note, "accidental", accidental)
    if part.triplet:
        change = SubElement(note, "time-modification")
        _add(change, "actual-notes", 3)
        _add(change, "normal-notes", 2)


def _tuplets(written: Sequence[Written], index: int) -> list[str]:
    """Whether the triplet of a beat starts or stops at this note."""
    part = written[index]
    if not part.triplet:
        return []
    before, after = written[:index][-1:], written[index + 1 :][:1]
    starts = not any(p.triplet and p.beat == part.beat for p in before)
    stops = not any(p.triplet and p.beat == part.beat for p in after)
    return ["start"] * starts + ["stop"] * stops


def _notations(note: Element, part: Written, tuplets: Sequence[str]) -> None:
    ties = [kind for kind, tied in (("stop", part.before), ("start", part.after)) if tied]
    if not (ties or tuplets):
        return
    notations = SubElement(note, "notations")
    for kind in ties:
        SubElement(notations, "tied", type=kind)
    for kind in tuplets:
        SubElement(notations, "tuplet", type=kind, number="1")


def _harmony_of(measure: Element, symbol: Any, offset: int, sharps: int) -> None:
    harmony = SubElement(measure, "harmony")
    if symbol.root is None:
        step = SubElement(SubElement(harmony, "root"), "root-step", text="")
        step.text = "C"  # stands for nothing, but something must stand there
        SubElement(harmony, "kind", text=_harmony.name(symbol)).text = "none"
    else:
        fifths = _tone(harmony, "root", symbol.root, sharps)
        kind = SubElement(harmony, "kind", text=_harmony.QUALITY[symbol.quality].suffix)
        kind.text = _KINDS.get(symbol.quality, "other")
        if symbol.bass is not None:
            _tone(harmony, "bass", symbol.bass, fifths - 2)  # spelt from the root: Fm/Ab in any key
    if offset:
        _add(harmony, "offset", offset)


def _tone(harmony: Element, name: str, pitch_class: int, sharps: int) -> int:
    """Write a root or bass; gives its place on the circle of fifths, C = 0."""
    letter, alteration, _ = spelling(60 + pitch_class, sharps)
    tone = SubElement(harmony, name)
    _add(tone, f"{name}-step", letter)
    if alteration:
        _add(tone, f"{name}-alter", alteration)
    return "FCGDAEB".index(letter) - 1 + 7 * alteration


def _add(parent: Element, tag: str | None, value: object) -> None:
    """A child with a value, or the value of the element itself."""
    (parent if tag is None else SubElement(parent, tag)).text = str(value)


def _clean(words: str) -> str:
    """Words without what XML can't hold."""
    return "".join(c if c.isprintable() else " " for c in words)
