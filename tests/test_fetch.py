"""Public data sets: a server that answers well and badly, licences, second calls."""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import mmgpt
from toy_server import KEEP, TUNES, WANTED, Server, files, refusal, zipped

from multimodal_gpt.fetch import datasets
from multimodal_gpt.recipe import load


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with Server() as server:
        server.files["/tunes.zip"] = zipped(TUNES)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def entry(address: str, content: bytes, /, **changes: Any) -> datasets.Entry:
    facts = {
        "title": "Tunes",
        "about": "three files",
        "homepage": "https://example.org/",
        "url": address,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "keep": KEEP,
        "licence": {"name": "CC0", "url": "https://example.org/cc0"},
    }
    return datasets.Entry("tunes", datasets.Dataset.model_validate({**facts, **changes}))


def of(server: Server, **changes: Any) -> datasets.Entry:
    return entry(f"{server.url}/tunes.zip", server.files["/tunes.zip"], **changes)


# Downloading


def test_a_data_set_arrives_whole_and_is_found_again(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "tunes"
    got = datasets.fetch(of(server), folder)
    assert files(folder) == WANTED
    assert (got.files, got.bytes, got.fresh) == (2, sum(map(len, WANTED.values())), True)
    note = yaml.safe_load((folder / datasets.NOTE).read_text("utf-8"))
    assert note["sha256"] == got.sha256 == hashlib.sha256(server.files["/tunes.zip"]).hexdigest()
    assert note["licence"]["name"] == "CC0"
    assert [path.name for path in folder.parent.iterdir()] == ["tunes"]
    again = datasets.present(of(server), folder)
    assert again is not None
    assert not again.fresh
    assert again.lines() == [
        f"{folder}: is there already: 2 files, 6 kB",
        f"next: mmgpt train own_folder data.folders=[{folder}]",
    ]
    assert len(server.asked) == 1


@pytest.mark.parametrize("known", [True, False], ids=["size known", "size unknown"])
@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_a_broken_download_is_continued(server: Server, tmp_path: Path, ranges: bool, known: bool) -> None:
    changes = {} if known else {"bytes": None}
    server.breaks_at, server.ranges = 100, ranges
    whole = len(server.files["/tunes.zip"])
    assert refusal(datasets.fetch, of(server, **changes), tmp_path / "t") == (
        f"tunes: 127.0.0.1:{server.server_port}: broke off after 100 of {whole} bytes "
        "(run the same command again to continue)"
    )
    server.breaks_at = None
    datasets.fetch(of(server, **changes), tmp_path / "t")
    assert files(tmp_path / "t") == WANTED
    assert server.asked[1] == ("/tunes.zip", "bytes=100-", 206 if ranges else 200)
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_a_whole_download_of_unknown_size_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    wanted = of(server, bytes=None, sha256=None)
    message = refusal(datasets.fetch, wanted, tmp_path / "t")
    digest = hashlib.sha256(server.files["/tunes.zip"]).hexdigest()
    assert message == (
        f"tunes: nobody has published a checksum; the file has sha256 {digest} "
        "(compare it and add --trust, or write it into the YAML)"
    )
    datasets.fetch(wanted, tmp_path / "t", trust=True)
    assert [status for _, _, status in server.asked] == [200, 416]
    assert files(tmp_path / "t") == WANTED
    datasets.fetch(wanted, tmp_path / "t")  # the same file again needs no second --trust
    server.files["/tunes.zip"] += b"\0"
    assert "nobody has published a checksum" in refusal(datasets.fetch, wanted, tmp_path / "t")


def test_a_wrong_checksum_removes_the_file(server: Server, tmp_path: Path) -> None:
    message = refusal(datasets.fetch, of(server, sha256="0" * 64), tmp_path / "t")
    got = hashlib.sha256(server.files["/tunes.zip"]).hexdigest()
    assert f"has the wrong checksum: expected sha256 {'0' * 64}, got {got}" in message
    assert "it was removed" in message
    assert not list(tmp_path.iterdir())


def test_a_stale_beginning_is_found_by_the_checksum(server: Server, tmp_path: Path) -> None:
    server.breaks_at = 100
    refusal(datasets.fetch, of(server), tmp_path / "t")
    (partial,) = tmp_path.iterdir()
    partial.write_bytes(b"x" * 100)
    server.breaks_at = None
    assert "has the wrong checksum" in refusal(datasets.fetch, of(server), tmp_path / "t")
    datasets.fetch(of(server), tmp_path / "t")
    assert files(tmp_path / "t") == WANTED


def test_md5_where_only_that_is_published(server: Server, tmp_path: Path) -> None:
    digest = hashlib.md5(server.files["/tunes.zip"]).hexdigest()
    assert "expected md5 " in refusal(datasets.fetch, of(server, sha256=None, md5="0" * 32), tmp_path / "t")
    wanted = of(server, sha256=None, md5=digest)
    assert datasets.fetch(wanted, tmp_path / "t").files == 2
    assert datasets.present(wanted, tmp_path / "t") is not None


@pytest.mark.parametrize("says_length", [True, False])
def test_another_size_is_refused(server: Server, tmp_path: Path, says_length: bool) -> None:
    server.says_length = says_length
    whole = len(server.files["/tunes.zip"])
    larger = refusal(datasets.fetch, of(server, bytes=whole - 1), tmp_path / "t")
    told = f"offers {whole} bytes where {whole - 1} are expected" if says_length else "sends more than the"
    assert told in larger
    smaller = refusal(datasets.fetch, of(server, bytes=whole + 1), tmp_path / "t2")
    assert f"{whole} bytes where {whole + 1} are expected" in smaller


def test_a_mirror_steps_in(server: Server, tmp_path: Path) -> None:
    good = f"{server.url}/tunes.zip"
    datasets.fetch(of(server, url=f"{server.url}/gone.zip", mirrors=[good]), tmp_path / "t")
    assert files(tmp_path / "t") == WANTED
    message = refusal(datasets.fetch, of(server, url=f"{server.url}/gone.zip"), tmp_path / "t2")
    assert message == (
        f"tunes: 127.0.0.1:{server.server_port}: answered 404 Not Found "
        f"(download {server.url}/gone.zip by hand and add --from FILE)"
    )


def test_no_server(server: Server, tmp_path: Path) -> None:
    wanted = of(server, url="http://127.0.0.1:9/tunes.zip")
    message = refusal(datasets.fetch, wanted, tmp_path / "t")
    assert message.startswith("tunes: can't reach 127.0.0.1:9: Connection refused (download http://")
    assert message.endswith("by hand and add --from FILE)")
    assert not list(tmp_path.iterdir())


def test_a_server_can_not_send_us_to_our_own_files(server: Server, tmp_path: Path) -> None:
    message = refusal(datasets.fetch, of(server, url=f"{server.url}/elsewhere"), tmp_path / "t")
    assert "file:" in message
    assert not list(tmp_path.iterdir())


def test_files_from_here(tmp_path: Path) -> None:
    content = zipped(TUNES)
    source = tmp_path / "by hand.zip"
    source.write_bytes(content)
    by_hand = entry("http://127.0.0.1:9/tunes.zip", content)
    assert datasets.fetch(by_hand, tmp_path / "a", archive=source).files == 2
    assert datasets.fetch(entry(source.as_uri(), content), tmp_path / "b").files == 2
    source.write_bytes(content + b"\0")
    size = len(content)
    assert refusal(datasets.fetch, by_hand, tmp_path / "c", archive=source) == (
        f"{source}: has {size + 1} bytes where {size} are expected"
    )
    assert source.exists()
    assert "there is no such file" in refusal(
        datasets.fetch, by_hand, tmp_path / "c", archive=tmp_path / "no"
    )


def test_a_single_file(server: Server, tmp_path: Path) -> None:
    server.files["/some%20tunes.abc?raw=1"] = b"X:1\n"
    wanted = entry(f"{server.url}/some%20tunes.abc?raw=1", b"X:1\n", unpack="none")
    datasets.fetch(wanted, tmp_path / "t")
    assert files(tmp_path / "t") == {"some tunes.abc": b"X:1\n"}


# Folders


def test_only_what_was_fetched_is_replaced(server: Server, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    datasets.fetch(of(server), mine)  # an empty folder is as good as none
    (mine / "set" / "a.abc").unlink()
    assert "holds 1 of the 2 files (add --force" in refusal(datasets.present, of(server), mine)
    assert datasets.present(of(server), mine, force=True) is None
    datasets.fetch(of(server), mine)
    assert files(mine) == WANTED
    other = of(server, sha256="1" * 64)
    assert "holds another data set or version: Tunes (add --force" in refusal(datasets.present, other, mine)
    (mine / datasets.NOTE).unlink()
    for force in (True, False):
        message = refusal(datasets.present, of(server), mine, force=force)
        assert message == (
            f"{mine}: is there already and is not a data set that mmgpt fetched "
            "(name another folder with --to)"
        )
    assert "Directory not empty" in refusal(datasets.fetch, of(server), mine)
    assert files(mine) == WANTED


def test_a_failed_replacement_leaves_the_old_files(server: Server, tmp_path: Path) -> None:
    datasets.fetch(of(server), tmp_path / "t")
    assert "no file that matches *.mid" in refusal(datasets.fetch, of(server, keep=["*.mid"]), tmp_path / "t")
    assert files(tmp_path / "t") == WANTED
    assert not list(tmp_path.glob(".t.*"))


def test_a_bad_path_in_an_archive_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.files["/tunes.zip"] = zipped({**TUNES, "../evil.abc": b""})
    assert "leads outside" in refusal(datasets.fetch, of(server), tmp_path / "t")
    assert not list(tmp_path.rglob("*.abc"))
    assert not (tmp_path / "t").exists()


# Entries


@pytest.mark.parametrize("name", datasets.names())
def test_every_data_set_of_the_package_is_complete(name: str) -> None:
    entry = datasets.load_entry(name)
    assert entry.checksum is not None
    assert entry.data.url.startswith("http")
    assert entry.data.source
    assert set(entry.data.keep) != {"*"}
    text = datasets.names()[name].read_text("utf-8")
    comment = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("#"))
    assert "taken from" in comment
    assert "not downloaded by us" in comment.lower()


def test_data_sets_are_no_recipes() -> None:
    assert len(datasets.names()) >= 3
    assert not set(datasets.names()) & set(load.names())


def test_mistakes_in_an_entry_are_named(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    facts = entry("https://example.org/a.zip", b"x").data.model_dump()
    bad = {**facts, "url": "ftp://example.org/a.zip", "sha256": "abc", "licenze": 1}
    path.write_text(yaml.safe_dump(bad), "utf-8")
    message = refusal(datasets.load_entry, str(path))
    assert "is not a http://, https:// or file:/// address" in message
    assert "'abc'" in message
    assert "unknown key 'licenze' (did you mean 'licence'?)" in message
    path.write_text(yaml.safe_dump({**facts, "licence": {"nam": "MIT"}}), "utf-8")
    assert "licence: unknown key 'nam' (did you mean 'name'?)" in refusal(datasets.load_entry, str(path))
    path.write_text("", "utf-8")
    assert "None is not a mapping" in refusal(datasets.load_entry, str(path))
    hint = "there is no data set 'notingham' (did you mean 'nottingham'?; a file is given as ./my.yaml)"
    assert refusal(datasets.load_entry, "notingham") == hint


# The command line


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())

    def run(*words: object) -> tuple[int, str, str]:
        return mmgpt(capsys, *words)

    return run


@pytest.fixture
def mine(server: Server, tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(of(server).data.model_dump()), "utf-8")
    return path


def test_a_licence_must_be_accepted(
    command: Any, mine: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = command("fetch", mine)
    assert (code, err) == (
        2,
        "mmgpt: mine: its licence must be accepted first (read it and add --accept-licence)\n",
    )
    assert "CC0, https://example.org/cc0" in out

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal("\n"))
    code, out, err = command("fetch", mine)
    assert (code, err) == (2, "mmgpt: mine: its licence was not accepted (nothing was downloaded)\n")
    assert "Accept this licence? [y/N]" in out
    assert not server.asked
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    code, out, err = command("fetch", mine)
    assert code == 0
    assert out.endswith("data/mine: 2 files, 6 kB\nnext: mmgpt train own_folder data.folders=[data/mine]\n")


def test_a_second_call_needs_nothing(command: Any, mine: Path, server: Server) -> None:
    code, out, _ = command("fetch", "./mine.yaml", "--accept-licence", "--to", "my tunes", "--json")
    first = json.loads(out)
    assert (code, first["files"], first["fresh"], first["licence"]) == (0, 2, True, "CC0")
    code, out, _ = command("fetch", "./mine.yaml", "--to", "my tunes")
    assert out.splitlines() == [
        "my tunes: is there already: 2 files, 6 kB",
        """next: mmgpt train own_folder 'data.folders=["my tunes"]'""",
    ]
    assert len(server.asked) == 1
    assert command("fetch", "./mine.yaml", "--to", "my tunes", "--force", "--accept-licence")[0] == 0
    assert len(server.asked) == 2


def test_a_file_downloaded_by_hand(command: Any, mine: Path, server: Server, tmp_path: Path) -> None:
    (tmp_path / "got.zip").write_bytes(server.files["/tunes.zip"])
    assert command("fetch", mine, "--from", "got.zip", "--accept-licence")[0] == 0
    assert files(tmp_path / "data" / "mine") == WANTED
    assert not server.asked


def test_the_list(command: Any) -> None:
    code, out, _ = command("fetch")
    assert code == 0
    assert re.search(r"nottingham +Nottingham Music Database.* 143 kB +none stated", out)
    code, out, _ = command("fetch", "--json")
    assert {item["name"] for item in json.loads(out)} == set(datasets.names())
