"""Sheet music of MIDI files, read back by another program: music21."""

import importlib.util
from pathlib import Path
from xml.etree import ElementTree

import music21
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_rendering import CHORDS, MELODY, midi, missing

from multimodal_gpt.errors import UserError
from multimodal_gpt.rendering import notation, score, sheet
from multimodal_gpt.rendering.musicxml import _in_key, to_musicxml
from multimodal_gpt.rendering.notation import TRIPLETS, VALUES, Bar, beams, write
from multimodal_gpt.rendering.score import Score, Staff, spelling
from multimodal_gpt.stream.plugins import Modality, build

# ------------------------------------------------------------------------------ written values


def scored(notes, meters=((4, 4),) * 8) -> Score:
    lengths = [4 * 48 * n // d for n, d in meters]
    bars = np.cumsum([0, *lengths])
    staff = Staff("x", np.array(notes, dtype=np.int64).reshape(-1, 3))
    return Score("t", (staff,), bars, np.array(meters), 0, 120.0, ())


def shown(bar) -> str:
    """C4 = a note, . = a rest; its ticks; ~ = tied to the next."""
    parts = (
        f"{'+'.join(map(str, p.pitches)) or '.'}:{p.stop - p.start}{'~' * p.after}{'t' * p.triplet}"
        for p in bar
    )
    return " ".join(parts)


@pytest.mark.parametrize(
    ("meter", "notes", "expected"),
    [
        ((4, 4), [(0, 192, 60)], "60:192"),
        ((4, 4), [(0, 60, 60)], "60:48~ 60:12 .:36 .:96"),
        ((4, 4), [(24, 48, 60)], ".:24 60:48 .:24 .:96"),  # syncopated
        ((4, 4), [(24, 72, 60)], ".:24 60:24~ 60:48 .:96"),
        ((4, 4), [(0, 16, 60), (16, 16, 62), (32, 16, 64), (48, 144, 65)], "60:16t 62:16t 64:16t 65:144"),
        ((4, 4), [(0, 40, 60), (40, 152, 62)], "60:32~t 60:8t 62:8~t 62:144"),
        ((4, 4), [(0, 32, 60), (32, 64, 62)], "60:32t 62:16~t 62:48 .:96"),
        ((4, 4), [(0, 16, 60), (16, 16, 62), (46, 2, 64)], "60:16t 62:16t .:16t 64:6 .:6 .:36 .:96"),
        ((6, 8), [(0, 144, 60)], "60:144"),
        ((6, 8), [(0, 96, 60), (96, 48, 62)], "60:72~ 60:24 62:48"),
        ((6, 8), [(0, 24, 60), (24, 48, 62), (72, 72, 64)], "60:24 62:48 64:72"),
        ((9, 8), [(0, 216, 60)], "60:144~ 60:72"),
        ((3, 4), [(0, 144, 60)], "60:144"),
        ((5, 4), [(0, 240, 60)], "60:192~ 60:48"),
        ((4, 4), [(0, 192, 60), (0, 48, 64), (96, 96, 62)], "60+64:96 62:96"),  # one voice
    ],
)
def test_values(meter, notes, expected):
    (bar,) = write((told := scored(notes, (meter,))).staves[0], told)
    assert shown(bar) == expected


METERS = st.lists(
    st.sampled_from([(4, 4), (3, 4), (6, 8), (5, 8), (9, 16), (7, 16), (12, 8)]), min_size=1, max_size=5
)
LINES = st.lists(
    st.tuples(st.integers(0, 90), st.integers(1, 200), st.integers(0, 127)), min_size=1, max_size=25
)


@settings(max_examples=150)
@given(METERS, LINES)
def test_every_bar_is_full_and_every_value_can_be_written(meters, line):
    gaps, durations, pitches = np.array(line).T
    notes = np.stack([np.cumsum(gaps), durations, pitches], 1)
    told = scored(notes[notes[:, 0] < scored([], meters).bars[-1]], meters)
    written = write(told.staves[0], told)
    assert len(written) == len(meters)
    for start, stop, bar in zip(told.bars[:-1], told.bars[1:], written, strict=True):
        assert [p.start for p in bar] == [start, *(p.stop for p in bar[:-1])] and bar[-1].stop == stop
        for part in bar:
            whole_rest = len(bar) == 1 and not part.pitches
            assert whole_rest or part.stop - part.start in (TRIPLETS if part.triplet else VALUES)
    parts = [part for bar in written for part in bar]
    for part, after in zip(parts, [*parts[1:], None], strict=True):
        assert part.after == bool(after and after.before)
        assert not part.after or part.pitches == after.pitches != ()
    struck = {(p.start, p.pitches) for p in parts if p.pitches and not p.before}
    for onset, _, pitches in score.voice(told.staves[0].notes):
        near = [start for start, heard in struck if heard == pitches and abs(start - onset) <= 4]
        assert near or any(abs(start - onset) <= 8 for start, _ in struck), "moved, or beside another one"


def test_beams():
    told = scored(
        [(0, 12, 60), (12, 24, 62), (36, 12, 64), (48, 36, 65), (84, 12, 67), (96, 24, 60), (144, 48, 60)],
        ((4, 4),),
    )
    (bar,) = write(told.staves[0], told)
    assert beams(bar) == [
        ["begin", "forward hook"],
        ["continue"],
        ["end", "backward hook"],
        ["begin"],
        ["end", "backward hook"],
        [],
        [],
        [],
    ]


def test_beats_in_thirds_only_where_they_fit_better():
    assert notation._in_thirds([16, 32]) and notation._in_thirds([8, 16]) and not notation._in_thirds([24])
    assert not notation._in_thirds([12, 36]) and not notation._in_thirds([6])
    assert Bar(0, 192, 48, frozenset()).number(100) == 2


@given(st.integers(0, 127), st.integers(-7, 7))
def test_spelling(pitch, sharps):
    letter, alteration, octave = spelling(pitch, sharps)
    natural = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}[letter]
    assert 12 * (octave + 1) + natural + alteration == pitch
    assert abs(alteration) <= (1 if abs(sharps) <= 3 else 2)
    scale = {7 * fifths % 12 for fifths in range(sharps - 1, sharps + 6)}
    if pitch % 12 in scale:
        assert alteration == _in_key(letter, sharps)


# ------------------------------------------------------------------------------------ MusicXML


def heard(xml: str) -> list[tuple[float, float, tuple[int, ...]]]:
    """(onset, length, pitches) as music21 reads them, ties joined."""
    part = music21.converter.parseData(xml, format="musicxml").stripTies().parts[0].flatten()
    return [
        (round(float(n.offset), 4), round(float(n.quarterLength), 4), tuple(p.midi for p in n.pitches))
        for n in part.notes
        if not isinstance(n, music21.harmony.Harmony)
    ]


@pytest.mark.parametrize("sharps", [-3, 0, 2])
def test_another_program_reads_the_same_notes(tmp_path, sharps):
    rows = [
        (0, 16, 60),
        (16, 32, 61),
        (48, 72, 63),
        (120, 24, 66),
        (192, 240, 68),
        (440, 40, 70),
        (480, 96, 71),
    ]
    rows += [(576, 12, 68), (588, 36, 68), (624, 48, 58), (624, 48, 62)]
    path = midi(tmp_path / "a.mid", "C4", signature=(sharps, False))
    content = MELODY.parse("C4")
    MELODY.write(type(content)(np.array(rows), signature=(sharps, False)), path)
    expected = [(a / 48, d / 48, (p,)) for a, d, p in rows[:5]]
    expected += [
        (9 + 8 / 48, 40 / 48, (70,)),
        (10, 2, (71,)),
        (12, 0.25, (68,)),
        (12.25, 0.75, (68,)),
        (13, 1, (58, 62)),
    ]
    expected = [(round(a, 4), round(d, 4), p) for a, d, p in expected]
    assert heard(to_musicxml(score.read(path))) == expected


def test_key_meter_tempo_and_title(tmp_path):
    meters = MELODY.read  # the plugin's own content carries them
    (item,) = meters(midi(tmp_path / "jig.mid", "D4:0.5 " * 12, tempo=96.0, signature=(2, False)))
    assert item.content.tempo == 96
    xml = to_musicxml(score.read(tmp_path / "jig.mid"))
    root = ElementTree.fromstring(xml)
    assert root.findtext("work/work-title") == "jig" and root.findtext(".//per-minute") == "96"
    assert root.findtext(".//key/fifths") == "2" and root.findtext(".//clef/sign") == "G"
    assert xml == to_musicxml(score.read(tmp_path / "jig.mid"))


def test_accidentals_are_written_where_a_reader_needs_them(tmp_path):
    """F is sharp in the key; a natural holds for its bar and octave."""
    path = midi(tmp_path / "a.mid", "F#4 F4 F4 F5 F#4 F4:7", signature=(2, False))
    notes = ElementTree.fromstring(to_musicxml(score.read(path))).findall(".//note")
    told = [(n.findtext("pitch/octave"), n.findtext("pitch/alter"), n.findtext("accidental")) for n in notes]
    assert told[:4] == [("4", "1", None), ("4", None, "natural"), ("4", None, None), ("5", None, "natural")]
    assert told[4:7] == [("4", "1", None), ("4", None, "natural"), ("4", None, None)], (
        "a tie over the bar line"
    )


def test_chord_symbols(tune):
    root = ElementTree.fromstring(to_musicxml(score.read(tune)))
    assert [part.findtext("part-name") for part in root.iter("score-part")] == ["Melody"]
    told = []
    for harmony in root.iter("harmony"):
        names = [
            f"{harmony.findtext(f'{n}/{n}-step')}{harmony.findtext(f'{n}/{n}-alter') or ''}"
            for n in ("root", "bass")
            if harmony.find(n) is not None
        ]
        told.append((names, harmony.find("kind").get("text"), harmony.findtext("kind")))
    assert told[:6] == [
        (["C"], "", "major"),
        (["F", "A-1"], "m7", "minor-seventh"),
        (["G"], "7", "dominant"),
        (["C1"], "dim", "diminished"),
        (["E-1"], "m7b5", "half-diminished"),
        (["C"], "N.C.", "none"),
    ]
    assert told[6] == (["F", "A"], "7b9", "other")


def test_chords_alone_are_notes(tmp_path):
    path = CHORDS.write(CHORDS.parse("C | G"), tmp_path / "c.mid")
    read = score.read(path)
    assert [staff.name for staff in read.staves] == ["Chords"] and len(read.symbols) >= 2
    assert next(pitches for _, _, pitches in heard(to_musicxml(read)))[0] % 12 == 0


# ------------------------------------------------------------------------------------- verovio


@missing("verovio")
def test_sheet_music_shows_every_note(tune):
    read = score.read(tune)
    (page,) = sheet.engrave(read)
    drawn = [e.get("class") for e in ElementTree.fromstring(page).iter() if e.get("class")]
    parts = [p for bar in write(read.staves[0], read) for p in bar]
    assert drawn.count("note") == sum(len(p.pitches) for p in parts)
    assert drawn.count("measure") == len(read.meters) and drawn.count("harm") == 7
    assert drawn.count("tuplet") == 2 and "Fm7/A" in page and "N.C." in page and ">tune<" in page
    assert [page] == sheet.engrave(score.read(tune))


@missing("verovio")
def test_sheet_of_many_staves(tmp_path):
    voices = build(
        Modality("voices", str(Path(__file__).parent.parent / "examples" / "chorales" / "voices.py"))
    )
    path = voices.write(voices.parse("67 62 59 55, 67 60 60 48"), tmp_path / "c.mid")
    (page,) = sheet.engrave(score.read(path))
    assert page.count('class="staff"') == 4 and "soprano" in page


def test_without_verovio(monkeypatch, tune):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r'verovio is not installed \(pip install "multimodal-gpt\[sheet\]"\)'
    ):
        sheet.engrave(score.read(tune))
