"""Files: UTF-8 as users leave it, and writes that are whole or not there."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal_gpt.errors import UserError
from multimodal_gpt.files import is_file, read_text, write_bytes, write_text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_comes_back(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "x.txt"
    assert write_text(path, text) == path
    assert read_text(path) == text
    assert is_file(str(path))


def test_a_failed_write_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "none" / "x.txt"):
        with pytest.raises(UserError, match="can't be written: "):
            write_bytes(path, b"x")
    assert [p.name for p in tmp_path.rglob("*")] == ["folder"]


def test_a_write_replaces_and_keeps_the_usual_permissions(tmp_path):
    path = write_text(tmp_path / "x.txt", "old")
    (tmp_path / "plain").touch()
    assert write_text(path, "new").read_bytes() == b"new"
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plain", "x.txt"]


def test_what_is_no_name_is_no_file():
    assert not any(map(is_file, ("", "\x00", "x" * 5000, "a jig in D")))
    with pytest.raises(UserError, match="can't be read"):
        read_text(Path("a\x00b"))
