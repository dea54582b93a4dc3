"""Public data sets: a server that answers well and badly, archives that mean harm, licences, second calls."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import mmgpt

from multimodal_gpt.errors import UserError
from multimodal_gpt.fetch import archive as archives
from multimodal_gpt.fetch import datasets
from multimodal_gpt.fetch.archive import unpack
from multimodal_gpt.recipe import load

TUNES = {
    "set/a.abc": b"X:1\nT:A\nK:C\nCDEF|\n" * 40,
    "set/more/b.ABC": bytes(range(256)) * 20,
    "set/readme.txt": b"read me",
}
KEEP = ["*.abc"]


def zipped(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(members: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """Serves `files`; `ranges`: whether it can continue; `breaks_at`: bytes after which it hangs up."""

    daemon_threads = True
    files: dict[str, bytes]
    ranges = True
    breaks_at: int | None = None
    says_length = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked = {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"

    asked: list[tuple[str, str | None, int]]
    """What was asked for: path, Range header, status of the answer."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        content, span = self.server.files.get(self.path), self.headers["Range"]
        start = int(re.findall(r"\d+", span)[0]) if span and self.server.ranges else 0
        if self.path == "/elsewhere":
            return self.answer(302, {"Location": "file:///etc/passwd"}, b"")
        if content is None:
            return self.answer(404, {}, b"no")
        if start and start >= len(content):
            return self.answer(416, {"Content-Range": f"bytes */{len(content)}"}, b"")
        length = {"Content-Length": str(len(content) - start)} if self.server.says_length else {}
        if start:
            length["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self.answer(206 if start else 200, length, content[start : self.server.breaks_at])

    def answer(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        self.server.asked.append((self.path, self.headers["Range"], status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


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


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != datasets.NOTE)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def refusal(call: Callable[..., object], *arguments: Any, **named: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **named)
    return str(caught.value)


WANTED = {name: content for name, content in TUNES.items() if name.lower().endswith(".abc")}


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


# Unpacking


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


def test_a_bad_path_in_an_archive_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.files["/tunes.zip"] = zipped({**TUNES, "../evil.abc": b""})
    assert "leads outside" in refusal(datasets.fetch, of(server), tmp_path / "t")
    assert not list(tmp_path.rglob("*.abc"))
    assert not (tmp_path / "t").exists()


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
