"""Vocabularies: ranges, fingerprint, growth, and what happens when a file is damaged."""

import json
from pathlib import Path

import numpy as np
import pytest

from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.plugins import Modality, available, build, built_in
from multimodal_gpt.stream.vocabulary import SPECIALS, Vocabulary

TOYS = Path(__file__).parent / "toys"
LETTERS = Modality("letters", str(TOYS / "letters.py"))
BEATS = Modality("beats", str(TOYS / "beats.py"))


@pytest.fixture
def vocabulary():
    return Vocabulary([LETTERS, BEATS])


def test_specials_come_first_then_one_range_each(vocabulary):
    letters, beats = vocabulary.ranges["letters"], vocabulary.ranges["beats"]
    assert letters.tag == len(SPECIALS) == 16
    assert letters.first == 17
    assert letters.stop == beats.tag
    assert vocabulary.size == beats.stop
    assert vocabulary.table_size % 64 == 0
    assert vocabulary.table_size >= vocabulary.size


def test_owner_tells_whose_an_id_is(vocabulary):
    letters, beats = vocabulary.ranges["letters"], vocabulary.ranges["beats"]
    ids = np.array([0, 15, letters.tag, letters.stop - 1, beats.tag, beats.stop - 1])
    assert vocabulary.owner(ids).tolist() == [-1, -1, 0, 0, 1, 1]


def test_growth_keeps_old_ids(vocabulary):
    small = Vocabulary([LETTERS])
    grown = small.grow(BEATS)
    assert grown.ranges == vocabulary.ranges
    assert grown.fingerprint == vocabulary.fingerprint != small.fingerprint


def test_encode_names_the_modality_in_errors(vocabulary):
    with pytest.raises(UserError, match=r"^letters: "):
        vocabulary.encode("letters", "")
    with pytest.raises(UserError, match="did you mean 'letters'"):
        vocabulary.range("leters")


def test_save_and_load_give_the_same(vocabulary, tmp_path):
    vocabulary.save(tmp_path)
    loaded = Vocabulary.load(tmp_path)
    assert loaded.fingerprint == vocabulary.fingerprint
    assert loaded.ranges == vocabulary.ranges


def test_a_missing_or_damaged_file_is_named(vocabulary, tmp_path):
    with pytest.raises(UserError, match=r"vocabulary\.json: the file is missing"):
        Vocabulary.load(tmp_path)
    path = vocabulary.save(tmp_path)
    path.write_text(path.read_text()[:-50])
    with pytest.raises(UserError, match=r"vocabulary\.json: the file is damaged"):
        Vocabulary.load(tmp_path)


def test_an_edited_file_is_damaged(vocabulary, tmp_path):
    path = vocabulary.save(tmp_path)
    saved = json.loads(path.read_text())
    saved["content"]["modalities"][0]["size"] += 1
    path.write_text(json.dumps(saved))
    with pytest.raises(UserError, match="damaged"):
        Vocabulary.load(tmp_path)


def test_a_changed_plugin_is_refused_with_the_difference(tmp_path):
    plugin = tmp_path / "letters.py"
    source = (TOYS / "letters.py").read_text()
    plugin.write_text(source)
    vocabulary = Vocabulary([Modality("letters", str(plugin))])
    vocabulary.save(tmp_path / "run")
    changed = source.replace('letters: str = "abcde"', 'letters: str = "abcdef"')
    assert changed != source
    plugin.write_text(changed)
    with pytest.raises(UserError, match=r"letters\.size: 5 -> 6"):
        Vocabulary.load(tmp_path / "run", {"letters": str(plugin)})


def test_a_plugin_file_is_not_run_because_a_folder_names_it(tmp_path):
    plugin = tmp_path / "letters.py"
    plugin.write_text((TOYS / "letters.py").read_text())
    Vocabulary([Modality("letters", str(plugin))]).save(tmp_path / "run")
    plugin.write_text("raise SystemExit('this code has been run')")
    with pytest.raises(UserError, match=r"if you trust it: --plugin letters="):
        Vocabulary.load(tmp_path / "run")


def test_a_plugin_file_that_moved_can_be_pointed_to(tmp_path):
    plugin = tmp_path / "letters.py"
    plugin.write_text((TOYS / "letters.py").read_text())
    Vocabulary([Modality("letters", str(plugin))]).save(tmp_path / "run")
    plugin.rename(tmp_path / "elsewhere.py")
    with pytest.raises(UserError, match=r"needs the plugin file 'letters\.py', which is code"):
        Vocabulary.load(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "elsewhere.py").rename(tmp_path / "elsewhere" / "letters.py")
    assert Vocabulary.load(tmp_path / "run", {"letters": str(moved)}).names == ("letters",)


def test_one_name_stands_once():
    with pytest.raises(UserError, match="named twice"):
        Vocabulary([LETTERS, LETTERS])


def test_plugins_are_found_by_file_name():
    assert {"text", "tags", "melody", "chords"} <= set(built_in()) <= set(available())
    with pytest.raises(UserError, match="did you mean 'melody'"):
        build(Modality("tune", "melodi"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1", "does not define build"),
        ("1 / 0", "fails on import: ZeroDivisionError"),
        ("def build(): return object()", "lacks size, suffixes"),
        ("def build(a): return a", "wrong options"),
    ],
)
def test_a_broken_plugin_file_is_explained(tmp_path, source, message):
    plugin = tmp_path / "broken.py"
    plugin.write_text(source)
    with pytest.raises(UserError, match=message):
        build(Modality("broken", str(plugin)))


def test_show_is_readable(vocabulary):
    letters = vocabulary.ranges["letters"]
    assert vocabulary.show(np.array([1, letters.tag, letters.first, 3, 2])) == "<doc> <letters> a <end> <eod>"
