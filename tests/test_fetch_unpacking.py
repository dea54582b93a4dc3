"""Unpacking: only what is wanted, nothing outside the folder, no archive that means harm or is damaged."""

from __future__ import annotations

import gzip
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from toy_server import KEEP, TUNES, WANTED, files, refusal, tarred, zipped

from multimodal_gpt.fetch import archive as archives
from multimodal_gpt.fetch import datasets
from multimodal_gpt.fetch.archive import unpack

PACKERS = {"zip": zipped, "tar.gz": tarred}


@pytest.mark.parametrize("kind", PACKERS)
def test_only_the_wanted_part_is_unpacked(kind: Any, tmp_path: Path) -> None:
    hidden = {
        "set/.bashrc.abc": b"",
        "__MACOSX/set/a.abc": b"",
        "set/__MACOSX/._a.abc": b"",
        "settle/c.abc": b"",
    }
    packed = tmp_path / "packed"
    packed.write_bytes(PACKERS[kind]({**TUNES, **hidden}))
    unpack(packed, tmp_path / "out", kind, folder="set", keep=KEEP)
    assert files(tmp_path / "out") == {name.removeprefix("set/"): c for name, c in WANTED.items()}


@pytest.mark.parametrize("name", ["../evil.abc", "set/../../evil.abc", "/evil.abc", "..\\evil.abc"])
@pytest.mark.parametrize("kind", PACKERS)
def test_no_path_leads_outside(kind: Any, name: str, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.write_bytes(PACKERS[kind]({name: b"evil"}))
    message = refusal(unpack, packed, tmp_path / "in" / "out", kind)
    assert message == f"packed: holds a path that leads outside: {name!r} (nothing was unpacked)"
    assert [path.name for path in tmp_path.rglob("*")] == ["packed"]


def test_links_are_left_out_and_named(tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.write_bytes(tarred(WANTED, {"set/link.abc": "/etc/passwd", "up": ".."}))
    assert unpack(packed, tmp_path / "a", "tar.gz", keep=KEEP).left_out == ("set/link.abc",)
    with zipfile.ZipFile(packed, "w") as archive:
        link = zipfile.ZipInfo("link.abc")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("a.abc", b"X:1\n")
    assert unpack(packed, tmp_path / "b", "zip").left_out == ("link.abc",)
    assert files(tmp_path / "b") == {"a.abc": b"X:1\n"}
    assert "left out, because they are links or devices: 'link.abc'" in "\n".join(
        datasets.Fetched("t", tmp_path, 1, 4, "", True, ("link.abc",)).lines()
    )


@pytest.mark.parametrize("kind", PACKERS)
def test_bombs_are_refused(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED", 100_000)
    packed = tmp_path / "packed"
    packed.write_bytes(PACKERS[kind]({"bomb.abc": b"\0" * 3_000_000}))
    message = refusal(unpack, packed, tmp_path / "out", kind)
    assert "grows to more than 100 times its size" in message
    monkeypatch.setattr(archives, "MOST_FILES", 1)
    packed.write_bytes(PACKERS[kind]({"a": b"", "b": b""}))
    assert "holds more than 1 files" in refusal(unpack, packed, tmp_path / "out2", kind)


def test_a_bomb_in_a_header_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED", 100_000)
    info = tarfile.TarInfo("x" * 5_000_000)
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(info.tobuf(tarfile.PAX_FORMAT)))
    assert "grows to more than 100 times" in refusal(unpack, packed, tmp_path / "out", "tar.gz")


@pytest.mark.parametrize("kind", PACKERS)
def test_damaged_archives_are_one_line(kind: Any, tmp_path: Path) -> None:
    whole, packed = PACKERS[kind](TUNES), tmp_path / "packed"
    damaged = bytearray(whole)
    damaged[60:70] = b"damaged!!!"
    for content in (b"", b"not an archive", whole[: len(whole) // 2], bytes(damaged)):
        packed.write_bytes(content)
        message = refusal(unpack, packed, tmp_path / "out", kind)
        assert f"can't be unpacked as {kind}" in message
