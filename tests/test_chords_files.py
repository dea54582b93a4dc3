"""Where the harmony of a file is found: chords played, implied, written as symbols or spelled in words."""

import mido
import numpy as np
import pytest
from toy_chords import BAR, CHORDS, names, onsets, read_one

from multimodal_gpt.errors import UserError
from multimodal_gpt.tokenizers import _markers, _midi, chords
from multimodal_gpt.tokenizers._changes import name_blocks
from multimodal_gpt.tokenizers._harmony import NO_CHORD, name
from multimodal_gpt.tokenizers._inference import infer_changes
from multimodal_gpt.tokenizers._music import TICKS, Meter, Track


def track(title, *chords_in_time, program=0):
    """Notes of (quarter, quarters, pitches ...) rows."""
    rows = [(q * TICKS, n * TICKS, p) for q, n, *pitches in chords_in_time for p in pitches]
    return Track(title, program, False, np.array(rows, dtype=np.int64).reshape(-1, 3))


MELODY = track("", *[(q, 1, 72 + q % 5) for q in range(16)])


def song_file(tmp_path, *tracks):
    return _midi.write_tracks(tmp_path / "song.mid", tracks)


# ------------------------------------------------------------------------------ chords played or written


def test_appended_chords_leave_the_melody_alone(tmp_path):
    path = song_file(tmp_path, MELODY)
    content = CHORDS.parse("C6/E Am7/C | Dm G7")
    CHORDS.write(content, path, append=True)
    song = _midi.load(path)
    assert [t.name for t in song.tracks] == ["", "Chords"]
    assert song.tracks[0].program != song.tracks[1].program
    assert np.array_equal(song.tracks[0].notes, MELODY.notes)
    assert names(read_one(path).content) == [*names(content), "N.C."], "the melody goes on alone"
    assert names(read_one(path, track="Chords").content)[2:] == ["Dm", "G7"]


def test_block_chords_are_named_with_their_inversions(tmp_path):
    blocks = track("", (0, 4, 48, 52, 55), (4, 3, 47, 50, 55), (8, 4, 48, 52, 55), (12, 4, 48, 52, 55))
    item = read_one(song_file(tmp_path, MELODY, blocks))
    assert names(item.content) == ["C", "G/B", "C"]
    assert onsets(item.content) == [0, 4, 8]
    assert "track 2" in item.metadata["chords_track"]


def test_a_bass_begins_its_chord_and_long_rests_are_silence():
    oompah = track(
        "", (0, 1, 36), (1, 2, 60, 64, 67), (3, 1, 43), (4, 2, 60, 64, 67), (13, 3, 55, 59, 62)
    ).notes
    changes = name_blocks(oompah, (Meter(0, 3, 4),))
    assert [(t / TICKS, name(s)) for t, s in changes] == [(0, "C"), (4, "C"), (6, "N.C."), (13, "G")]


def test_broken_chords_under_a_melody_are_inferred(tmp_path):
    roots = [(48, 52, 55), (45, 48, 52), (41, 45, 48), (43, 47, 50)]
    broken = [(4 * b + q, 1, chord[(0, 2, 1, 2)[q]]) for b, chord in enumerate(roots) for q in range(4)]
    path = song_file(
        tmp_path, MELODY, track("", *broken, *[(4 * b, 4, c[0] - 12) for b, c in enumerate(roots)])
    )
    item = read_one(path)
    assert names(item.content) == ["C", "Am", "F", "G"]
    assert onsets(item.content) == [0, 4, 8, 12]
    assert item.metadata["chords_track"].startswith("inferred from track 2")
    assert not list(chords.build(infer=False).read(path))


def test_a_choir_implies_its_harmony(tmp_path):
    parts = zip((72, 71, 72, 72), (67, 67, 69, 67), (64, 62, 65, 64), (48, 43, 53, 48), strict=True)
    rows = [[(2 * i, 2, p) for p in chord] for i, chord in enumerate(parts)]
    path = song_file(tmp_path, *[track(f"part {k}", *[row[k] for row in rows]) for k in range(4)])
    item = read_one(path)
    assert names(item.content) == ["C", "G", "F", "C"]
    assert item.metadata["chords_track"] == "inferred from 4 voices"


def test_silence_between_spans_of_harmony_is_heard():
    notes = track("", (0, 8, 48, 52, 55), (24, 8, 55, 59, 62)).notes
    changes = infer_changes(notes, (Meter(0),), 120.0)
    assert [(t // BAR, name(s)) for t, s in changes if s != NO_CHORD] == [(0, "C"), (6, "G")]
    assert NO_CHORD in [s for t, s in changes if 2 * BAR <= t < 6 * BAR]


def test_a_lone_melody_holds_no_chords(tmp_path):
    path = song_file(tmp_path, MELODY)
    assert list(CHORDS.read(path)) == []
    with pytest.raises(UserError, match="holds no chords"):
        CHORDS.parse(str(path))
    with pytest.raises(UserError, match="no track"):
        list(chords.build(track=7).read(path))


ABC = """X:1
T:Two
M:4/4
L:1/4
K:D
A|"D"dfaf|"G"g2"A7"f2|"D"d4-|d3||

X:2
T:None
M:4/4
L:1/4
K:D
dfaf|

X:3
T:Odd
M:3/4
L:1/4
K:G
"G"gdB|"G12"g2d|"D/f+"d3|
"""


def test_abc_symbols_are_read_and_what_is_unreadable_is_counted(tmp_path):
    path = tmp_path / "book.abc"
    path.write_text(ABC)
    first, third = CHORDS.read(path)
    assert CHORDS.show(CHORDS.encode(first.content)) == "| . | D | G A7 | D | D |"
    assert first.metadata["chords_track"] == "symbols"
    assert CHORDS.describe(first.content) == {"chords": 4, "progression": "D G A7", "key": "D major"}
    assert names(third.content) == ["G", "?", "D/F#"]
    assert third.metadata["unknown_chords"] == 1


def test_every_spelling_that_the_parser_reads_is_read_from_abc(tmp_path):
    path = tmp_path / "tune.abc"
    path.write_text('X:1\nM:4/4\nL:1/4\nK:C\n"CMaj7"C4|"Fine"D4|"A:min7"E4|"^slowly"F4|"4"G4|')
    (item,) = CHORDS.read(path)
    assert names(item.content) == ["Cmaj7", "Am7"]


def test_a_book_is_read_in_parts(tmp_path):
    path = tmp_path / "book.abc"
    path.write_text(ABC)
    whole = [(i.key, names(i.content)) for i in CHORDS.read(path)]
    for parts in (1, 2, 3, 5):
        pieces = [i for part in range(parts) for i in CHORDS.read_part(path, part, parts)]
        assert [(i.key, names(i.content)) for i in pieces] == whole


# ------------------------------------------------------------------------------ chords spelled in words


LONG = track("", *[(q, 1, 72 + q % 5) for q in range(64)])


def spelled_file(tmp_path, kind, words, every=4, notes=LONG):
    """A tune with a word every so many quarter notes, in a track of its own."""
    path = _midi.write_tracks(tmp_path / "song.mid", [notes], title="A title")
    file = mido.MidiFile(path)
    told = mido.MidiTrack()
    for i, word in enumerate(words):
        text = word.encode().decode("latin1")
        told.append(mido.MetaMessage(kind, text=text, time=every * file.ticks_per_beat if i else 0))
    file.tracks.append(told)
    file.save(path)
    return path


@pytest.mark.parametrize(
    ("kind", "words", "heard"),
    [
        ("marker", "C Am F G7", "C Am F G7"),
        ("marker", "G C D G", "G C D G"),
        ("marker", "C Am F#m7b5 B♭/d", "C Am F#m7b5 Bb/D"),
        ("cue_marker", "Dm7 G7 Cmaj7 -", None),
        ("text", "Cm7 F7 Bbmaj7 N.C. Ebmaj7", "Cm7 F7 Bbmaj7 N.C. Ebmaj7"),
        ("lyrics", "[C]Once [Am]there [F]was [G]a [C]king", "C Am F G C"),
        ("lyrics", "/Am \\\\F C G", "Am F C G"),
        ("lyrics", "(Am) (F) (C) (E7)", "Am F C E7"),
        ("text", "chord:Am Chord:F chord=C chords:G", "Am F C G"),
        ("text", "@KMIDI Am F C G", "Am F C G"),
    ],
)
def test_words_that_spell_chords_are_read(tmp_path, kind, words, heard):
    path = spelled_file(tmp_path, kind, words.split())
    found = list(CHORDS.read(path))
    if heard is None:  # three chords are too few to be sure
        assert not found
        return
    (item,) = found
    assert names(item.content) == heard.split()
    assert np.diff(onsets(item.content)).tolist() == [4] * (len(heard.split()) - 1)
    kinds = {"marker": "markers", "text": "texts", "lyrics": "lyrics"}
    assert item.metadata["chords_track"] == f"{kinds[kind]} that spell chords"


@pytest.mark.parametrize(
    ("kind", "words", "every"),
    [
        ("marker", "A B A C A B", 8),  # sections
        ("marker", "A A1 B B2 C D", 8),
        ("marker", "[A] [B] [C] [D] [E]", 8),
        ("marker", "Verse Chorus Verse Chorus Bridge Am F C", 4),
        ("lyrics", "A A A A A A", 2),  # sung words
        ("lyrics", "Am I A Man Go Do A G Dad Be", 1),
        ("lyrics", "Da Do Da Ba Ba Go", 1),
        ("lyrics", "- - - - - n x ?", 1),
        ("lyrics", "C C G G A A G F F E E D D C", 1),  # names of notes
        ("lyrics", "C4 D4 E4 F4 G4 A4 B4 C5", 4),
        ("text", "Am F", 4),
        ("text", "Am Am Am Am Am", 4),
    ],
)
def test_other_words_are_not_taken_for_chords(tmp_path, kind, words, every):
    assert not list(CHORDS.read(spelled_file(tmp_path, kind, words.split(), every)))


def test_words_are_found_behind_events_of_all_kinds(tmp_path):
    path = spelled_file(tmp_path, "lyrics", ["Am", "F", "C", "G7"])
    file = mido.MidiFile(path)
    odd = [
        mido.Message("sysex", data=[1, 2, 3]),
        mido.Message("program_change", program=3),
        mido.Message("pitchwheel", pitch=100),
        mido.MetaMessage("text", text="x" * 300),
        mido.UnknownMetaMessage(0x7F, data=[0, 255, 5, 1]),
        mido.Message("control_change", control=7, value=100, time=240),
    ]
    file.tracks[-1][2:2] = [*odd, mido.Message("aftertouch", value=3), mido.Message("aftertouch", value=4)]
    file.save(path)
    (item,) = CHORDS.read(path)
    assert names(item.content) == ["Am", "F", "C", "G7"]
    assert onsets(item.content) == [0, 4, 8.5, 12.5]


def test_damaged_words_do_no_harm(tmp_path):
    path = spelled_file(tmp_path, "lyrics", ["Am", "F", "C", "G7"] * 3)
    data = path.read_bytes()
    for cut in range(30, len(data), 7):
        (tmp_path / "cut.mid").write_bytes(data[:cut])
        _markers.read_markers(tmp_path / "cut.mid")


def test_spelled_chords_outrank_played_ones(tmp_path):
    blocks = track("", (0, 8, 48, 52, 55), (8, 8, 47, 50, 55))
    path = spelled_file(tmp_path, "marker", ["Am7", "Dm7", "G7", "C"], notes=blocks)
    assert names(read_one(path).content) == ["Am7", "Dm7", "G7", "C"]
    assert names(read_one(path, track=1).content) == ["C", "G/B"]


# ------------------------------------------------------------------------------------------- inference


PROGRESSION = [("C", 48, 52, 55), ("Am", 45, 48, 52), ("F", 41, 45, 48), ("G", 43, 47, 50)] * 2


def accompaniment(style, beats=4):
    """(N, 3) notes of PROGRESSION, a bar of so many beats each, in a style."""
    rows = []
    for bar, (_, low, middle, high) in enumerate(PROGRESSION):
        at = bar * beats * TICKS
        if style == "block":
            rows += [(at, beats * TICKS, p) for p in (low, middle, high)]
        elif style == "Alberti":
            rows += [
                (at + i * TICKS // 2, TICKS // 2, (low, high, middle, high)[i % 4]) for i in range(2 * beats)
            ]
        elif style == "arpeggio":
            rows += [
                (at + i * TICKS, (beats - i) * TICKS, (low, middle, high, low + 12)[i]) for i in range(beats)
            ]
        elif style == "oompah":
            rows += [(at, TICKS, low - 12)]
            rows += [(at + i * TICKS, TICKS, p + 12) for i in range(1, beats) for p in (low, middle, high)]
    return np.array(sorted(rows), dtype=np.int64)


@pytest.mark.parametrize("style", ["block", "Alberti", "arpeggio", "oompah"])
@pytest.mark.parametrize("beats", [3, 4])
def test_an_accompaniment_in_any_style_is_named_bar_by_bar(style, beats):
    changes = infer_changes(accompaniment(style, beats), (Meter(0, beats, 4),), 120.0)
    assert [name(s) for _, s in changes] == [chord for chord, *_ in PROGRESSION]
    assert [tick // TICKS for tick, _ in changes] == list(range(0, 8 * beats, beats))


@pytest.mark.parametrize("style", ["block", "Alberti", "arpeggio"])
@pytest.mark.parametrize("late", [5, 20, 43, 75])
def test_music_beside_the_counted_beats_changes_where_it_is_heard_to_change(style, late):
    notes = accompaniment(style) + np.array([late, 0, 0])
    for meter in (Meter(0), Meter(0, 2, 4), Meter(0, 1, 4)):
        changes = infer_changes(notes, (meter,), 120.0)
        named = [(tick, name(s)) for tick, s in changes if s != NO_CHORD]
        assert [chord for _, chord in named] == [chord for chord, *_ in PROGRESSION]
        assert [tick for tick, _ in named][1:] == [bar * BAR + late for bar in range(1, 8)]


def test_offbeats_do_not_move_the_beats():
    strums = [(24 + 48 * i, 12, p) for i in range(32) for p in (60, 64, 67)]
    bass = [(192 * i, 192, 36) for i in range(8)]
    changes = infer_changes(np.array(sorted(strums + bass)), (Meter(0),), 120.0)
    assert changes[0][0] == 0
    assert {name(s) for _, s in changes} == {"C"}


def test_a_long_rest_forgets_the_bass_note_before_it():
    notes = track("", (0, 1, 48, 52, 55), (1, 1, 43), (9, 1, 43, 47, 50), (10, 1, 48, 52, 55)).notes
    changes = name_blocks(notes, (Meter(0),))
    assert [t for t, _ in changes] == sorted(t for t, _ in changes)
    assert [(t / TICKS, name(s)) for t, s in changes] == [(0, "C"), (2, "N.C."), (9, "G"), (10, "C")]
