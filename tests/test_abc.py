from __future__ import annotations

import sys

import pytest

from multimodal_gpt.errors import UserError
from multimodal_gpt.tokenizers import _abc, _corpora, _songs
from multimodal_gpt.tokenizers._music import Meter

REEL = """
%%source reelsa-c
X: 7
T:Kesh, The
% a comment
S:via PR
M:4/4
L:1/4
K:Edor
%%MIDI gchord fzz
"Em"E/2F/2|:"Em"G"^slow"A"1"B"A7"c|{ABc}~d2 z "D/f+"A|1"Em"E3z:|2"Em""G"E4|]
w: la la
"""


def read(tmp_path, text, name="book.abc"):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return _songs.songs(path)


def tune(tmp_path, text):
    ((_, song),) = read(tmp_path, text)
    assert not isinstance(song, UserError), song
    return song


def test_a_tune(tmp_path):
    song = tune(tmp_path, REEL)
    assert song.metadata == {"title": "The Kesh", "type": "reel", "mode": "dorian", "source": "via PR"}
    assert (song.key, song.signature, song.meters, song.tempo) == ("7", (1, True), (Meter(0),), 120.0)
    first = [[144, 24, 64], [168, 24, 66], [192, 48, 67], [240, 48, 69], [288, 48, 71], [336, 48, 73]]
    second = [[384, 96, 74], [528, 48, 69], [576, 144, 64]]
    again = [[n[0] + 576, *n[1:]] for n in first[2:] + second[:2]] + [[1152, 192, 64]]
    assert song.tracks[0].notes.tolist() == first + second + again
    symbols = [(144, "Em"), (192, "Em"), (336, "A7"), (528, "D/f+"), (576, "Em")]
    assert song.symbols[:5] == tuple(symbols)
    assert song.symbols[5:] == ((768, "Em"), (912, "A7"), (1104, "D/f+"), (1152, "Em"))


def test_ties_keep_bar_lines_and_chords_in_place(tmp_path):
    song = tune(tmp_path, 'X:1\nM:2/4\nL:1/4\nK:C\nA|^F-G|^f2-|"D"f-"E"f|B2-|\nB2|')
    notes = song.tracks[0].notes.tolist()
    assert notes[:3] == [[48, 48, 69], [96, 48, 66], [144, 48, 67]]  # a slur is no tie
    assert notes[3:] == [[192, 192, 78], [384, 192, 71]]  # the accidental holds
    assert song.symbols == ((288, "D"), (336, "E"))


def test_rests_keep_bar_lines_and_chords_in_place(tmp_path):
    song = tune(tmp_path, 'X:1\nM:2/4\nL:1/4\nK:A\nz|"A"A z|"D"zc|"E"z2|\n"A"A2|')
    assert song.tracks[0].notes.tolist() == [[96, 48, 69], [240, 48, 73], [384, 96, 69]]
    assert song.symbols == ((96, "A"), (192, "D"), (288, "E"), (384, "A"))


@pytest.mark.parametrize(
    ("fields", "meters", "tempo"),
    [
        ("M:6/8\nQ:3/8=80\n", (6, 8), 120.0),
        ("M:C|\nQ:1/4=100\n", (4, 4), 100.0),
        ("M:none\n", (4, 4), 120.0),
        ("M:9/8\nQ:Lento\n", (9, 8), 120.0),
    ],
)
def test_meter_and_tempo(tmp_path, fields, meters, tempo):
    song = tune(tmp_path, f"X:1\nT:x\n{fields}L:1/8\nK:D\nABcd efga|")
    assert (song.meters, song.tempo) == ((Meter(0, *meters),), tempo)


def test_a_meter_change(tmp_path):
    song = tune(tmp_path, "X:1\nM:3/4\nL:1/4\nK:G\nA|GAB|\nM:2/4\nAB|\nM:3/4\nG3|")
    assert song.meters == (Meter(0, 3, 4), Meter(288, 2, 4), Meter(384, 3, 4))
    assert song.tracks[0].notes[:, 0].tolist() == [96, 144, 192, 240, 288, 336, 384]


def test_only_the_first_voice(tmp_path):
    text = "X:1\nM:4/4\nL:1/4\nK:C\n[V:1] cdef|\n[V:2] CDEF|\nV:1\ngfed|\nV:2\nGFED|\n"
    assert tune(tmp_path, text).tracks[0].notes[:, 2].tolist() == [72, 74, 76, 77, 79, 77, 76, 74]


def test_parts_are_played_in_order(tmp_path):
    song = tune(tmp_path, "X:1\nP:ABA\nM:2/4\nL:1/4\nK:C\nP:A\nCD|\nP:B\nGA|\n")
    assert song.tracks[0].notes[:, 2].tolist() == [60, 62, 67, 69, 60, 62]


def test_one_broken_tune_leaves_the_others(tmp_path):
    long = "A" * (_abc.MAX_CHARACTERS + 1)
    text = (
        f"X:1\nK:C\nCDE|\n\nX:1\nT:headless\nCDE\n\nX:2\nK:C\n{long}\n\nX:1\nK:C\nEFG|\n\nX:4\nT:Empty\nK:C\n"
    )
    found = dict(read(tmp_path, text))
    assert list(found) == ["1", "1.2", "2", "1.3", "4"]
    assert "tune 1.2: has no K: line" in str(found["1.2"])
    assert "is longer than 100,000 characters" in str(found["2"])
    assert found["4"].tracks == () and len(found["1.3"].tracks) == 1


def test_old_encodings(tmp_path):
    assert tune(tmp_path, "X:1\nT:Caf\xe9\nK:C\nCDE|".encode("latin-1")).metadata["title"] == "Café"
    assert tune(tmp_path, "X:1\nT:Caf\\'e\nK:C\nCDE|").metadata["title"] == "Café"


def test_nothing_is_printed(tmp_path, capfd):
    print("before")
    sys.stderr.write("kept\n")
    read(tmp_path, "X:1\nM:4/4\nK:C\nABC ! ? 5 |:::|| (((\n")
    print("after")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("before\nafter\n", "kept\n")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("BLACK-EYED LASSIE -- REEL., THE", ("The Black-Eyed Lassie", "reel")),
        ("Red Lion -- Hornpipe", ("Red Lion", "hornpipe")),
        ("Kilkenny Jig, The", ("The Kilkenny Jig", "")),
        ("Fair Maid of Cavan., The", ("The Fair Maid of Cavan", "")),
        ("THE ROSE IN THE GARDEN", ("The Rose in the Garden", "")),
        ("JOE KENNEDY'S -- JIG", ("Joe Kennedy's", "jig")),
        ("LILLIBULLERO, or PROTESTANT BOYS -- JIG", ("Lillibullero, or Protestant Boys", "jig")),
        ("MARY -- CARRY THE NEWS", ("Mary -- Carry the News", "")),
        ("", ("", "")),
    ],
)
def test_titles(written, expected):
    assert _abc.split_title(written) == expected


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        ("jigs", "jig"),
        ("reelsa-c", "reel"),
        ("REEL", "reel"),
        ("waltzes", "waltz"),
        ("slip", "slip jig"),
        ("slipjig", "slip jig"),
        ("hpps", "hornpipe"),
        ("xmas", "xmas"),
        ("morris", "morris"),
        ("double jig", "double jig"),
        ("Polkas", "polka"),
    ],
)
def test_types(written, kind):
    assert _abc.tune_type(written) == kind


def test_a_type_in_the_title(tmp_path):
    assert tune(tmp_path, "X:1\nT:The Rose Slip Jig.\nK:C\nCDE|").metadata["type"] == "slip jig"
    assert "type" not in tune(tmp_path, "X:1\nT:The Air I Breathe\nK:C\nCDE|").metadata


def test_what_is_no_chord(tmp_path):
    text = 'X:1\nM:4/4\nL:1/4\nK:C\n"4"C"^Am"D"Fine"E"D.C."F|"Coda"G"C#m7b5/g"A"(Dsus4)"B"N.C."c|'
    assert [name for _, name in tune(tmp_path, text).symbols] == ["C#m7b5/g", "(Dsus4)", "N.C."]


def test_many_symbols(tmp_path):
    names = [f"{letter}{k}" for letter in "ABCDEFG" for k in range(40)]
    body = "".join(f'"{name}"C' for name in names)
    song = tune(tmp_path, f"X:1\nM:4/4\nL:1/4\nK:C\n{body}|")
    assert [name for _, name in song.symbols] == names


@pytest.fixture(scope="module")
def chorale():
    pytest.importorskip("music21")
    (path,) = [p for p in _corpora.corpus_files("chorales") if p.name == "bwv2.6.mxl"]
    return _corpora.load_score(path)


def test_a_chorale(chorale):
    assert [t.name for t in chorale.tracks] == ["Soprano", "Alto", "Tenor", "Bass"]
    assert chorale.metadata == {"title": "BWV 2.6", "type": "chorale", "composer": "J. S. Bach"}
    assert (chorale.meters, chorale.signature, chorale.symbols) == ((Meter(0),), (-1, True), None)
    assert chorale.tracks[0].notes[:3].tolist() == [[144, 48, 69], [192, 48, 70], [240, 48, 69]]


def test_corpora():
    pytest.importorskip("music21")
    counts = {name: len(_corpora.corpus_files(name)) for name in _corpora.CORPORA}
    assert counts["airds"] >= 5 and counts["ryans"] > 1000 and counts["chorales"] > 300
    files = _corpora.corpus_files("oneills")
    assert files == sorted(files)
    found = _songs.songs(files[0])
    assert len(found) > 40 and not [s for _, s in found if isinstance(s, UserError)]
    assert {s.metadata["type"] for _, s in found} == {"air"}  # no R: field in this file


def test_corpora_say_what_is_missing(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="did you mean 'chorales'"):
        _corpora.corpus_files("chorale")
    monkeypatch.setattr(_corpora, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "multimodal-gpt\[corpus\]"'):
        _corpora.corpus_files("ryans")
    with pytest.raises(UserError, match="MusicXML is read by music21"):
        _corpora.load_score(tmp_path / "x.mxl")


def test_a_damaged_score(tmp_path):
    pytest.importorskip("music21")
    path = tmp_path / "x.musicxml"
    path.write_text("<score-partwise><part")
    with pytest.raises(UserError, match="is not a score that music21 can read"):
        _songs.songs(path)
