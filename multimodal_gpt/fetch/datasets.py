"""Public data sets: a YAML entry -> its files in a folder, unpacked only where the checksum is right."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import secrets
import shlex
import shutil
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

import yaml
from pydantic import AfterValidator, Field, ValidationError

from multimodal_gpt.errors import UserError, nearest
from multimodal_gpt.fetch.archive import Unpacked, unpack
from multimodal_gpt.fetch.download import download, host
from multimodal_gpt.files import read_text, write_text
from multimodal_gpt.recipe.checks import schema_problems
from multimodal_gpt.recipe.load import SUFFIXES, parse_yaml
from multimodal_gpt.recipe.schema import Section

NOTE = "dataset.yaml"
"""In the folder of a fetched data set: where its files come from and what may be done with them."""
NOTE_HEAD = "# Written by `mmgpt fetch`: where these files come from and what may be done with them.\n"
SCHEMES = ("file", "http", "https")


def _known_scheme(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or (parts.scheme == "file") != (parts.netloc in ("", "localhost")):
        raise ValueError("is not a http://, https:// or file:/// address")
    return url


Url = Annotated[str, AfterValidator(_known_scheme)]


class Licence(Section):
    """On what terms a data set is given."""

    name: str = Field(description="CC BY 4.0, MIT ..., or that none is stated")
    url: Url | None = Field(None, description="where its words, or the owner's, can be read")
    note: str = Field("", description="what else to know before accepting it")


class Dataset(Section):
    """A data set that can be fetched."""

    title: str = Field(description="what it is called")
    about: str = Field(description="what is in it")
    homepage: Url
    url: Url = Field(description="the file to download")
    mirrors: list[Url] = Field(default_factory=list, description="other places with the same file")
    bytes: Annotated[int, Field(ge=1)] | None = Field(None, description="size of that file, where known")
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = Field(
        description="its checksum; null where nobody has published one (then --trust is needed)"
    )
    md5: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = Field(
        None, description="its checksum where only this one is published"
    )
    unpack: Literal["zip", "tar.gz", "none"] = Field("zip", description="how to open it")
    folder: str = Field("", description="the part of the archive to unpack; all of it if empty")
    keep: Annotated[list[str], Field(min_length=1)] = Field(
        default_factory=lambda: ["*"], description="patterns of the files to unpack; * matches / too"
    )
    licence: Licence
    source: str = Field("", description="who published address and checksum")


@dataclass(frozen=True)
class Entry:
    """A data set and the name that it goes by."""

    name: str
    data: Dataset

    @property
    def checksum(self) -> tuple[str, str] | None:
        """Kind and value of the published checksum; None where there is none."""
        if self.data.sha256:
            return "sha256", self.data.sha256
        return ("md5", self.data.md5) if self.data.md5 else None

    def row(self) -> tuple[str, str, str, str]:
        """One line of the table of all data sets."""
        return self.name, self.data.title, amount(self.data.bytes), self.data.licence.name

    def lines(self) -> list[str]:
        """What to know before accepting the licence."""
        data, terms = self.data, self.data.licence
        where = ", ".join(host(url) or url for url in [data.url, *data.mirrors])
        facts = {
            "what": data.about,
            "home": data.homepage,
            "download": f"{amount(data.bytes)} from {where}",
            "licence": ", ".join(filter(None, [terms.name, terms.url])),
            "note": terms.note,
        }
        return [data.title, *(f"  {key:<9} {' '.join(text.split())}" for key, text in facts.items() if text)]


@dataclass(frozen=True)
class Fetched:
    """A data set in its folder; `fresh` is False where it was there already."""

    name: str
    folder: Path
    files: int
    bytes: int
    sha256: str
    fresh: bool
    left_out: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """What there is, and what to type next."""
        state = "" if self.fresh else "is there already: "
        lines = [f"{self.folder}: {state}{self.files} files, {amount(self.bytes)}"]
        if self.left_out:
            lines.append(
                f"left out, because they are links or devices: {', '.join(map(repr, self.left_out[:5]))}"
            )
        return [*lines, f"next: {self._command()}"]

    def _command(self) -> str:
        name = str(self.folder)
        plain = f"[{name}]" if re.fullmatch(r"[\w./-]+", name) else json.dumps([name], ensure_ascii=False)
        override = f"data.folders={plain}"
        return f"mmgpt train own_folder {override if plain == f'[{name}]' else shlex.quote(override)}"


def amount(count: int | None) -> str:
    """Bytes as a person says them.

    Example:
        >>> amount(142_934), amount(58_416_533), amount(None)
        ('143 kB', '58.4 MB', 'unknown size')
    """
    if count is None:
        return "unknown size"
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 1e3:.0f} kB"


# Entries


def names() -> dict[str, Path]:
    """Data sets that come with the package: name -> file, sorted."""
    folders = importlib.import_module("multimodal_gpt.recipes").__path__
    files = (file for folder in folders for file in sorted((Path(folder) / "datasets").glob("*.yaml")))
    return {file.stem: file for file in files}


def load_entry(source: str) -> Entry:
    """A data set by name, or from a YAML file of one's own. Raises UserError that lists every mistake."""
    path = names().get(source, Path(source).expanduser())
    if source not in names() and (path.suffix not in SUFFIXES or not path.is_file()):
        hint = nearest(path.stem, names())
        raise UserError(f"there is no data set '{source}'", fix=f"{hint}; a file is given as ./my.yaml")
    raw = parse_yaml(read_text(path), path.name)
    try:
        return Entry(path.stem, Dataset.model_validate(raw))
    except ValidationError as error:
        problems = schema_problems(error, Dataset)
        raise UserError("; ".join(map(str, problems)), path.name) from None


# Fetching


def check_accepted(entry: Entry, accepted: bool, ask: Callable[[str], bool]) -> None:
    """Raise UserError unless the licence is accepted: already, or by whoever sits at the terminal."""
    if not accepted and not sys.stdin.isatty():
        raise UserError("its licence must be accepted first", entry.name, "read it and add --accept-licence")
    if not accepted and not ask("Accept this licence?"):
        raise UserError("its licence was not accepted", entry.name, "nothing was downloaded")


def present(entry: Entry, folder: Path, *, force: bool = False) -> Fetched | None:
    """The data set where an earlier call left it; None where it is to be fetched (again, with `force`).

    Raises UserError where something else is there: only what was fetched is ever replaced.
    """
    note = _note(folder)
    if note is None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            what = "is there already and is not a data set that mmgpt fetched"
            raise UserError(what, folder, "name another folder with --to")
        return None
    if force:
        return None
    kind, value = entry.checksum or ("url", entry.data.url)
    if note.get(kind) != value:
        what = f"holds another data set or version: {note.get('title')}"
        raise UserError(what, folder, "add --force to replace it, or name another folder with --to")
    files = sum(1 for path in folder.rglob("*") if path.is_file()) - 1
    if files < note["files"]:
        raise UserError(
            f"holds {files} of the {note['files']} files", folder, "add --force to fetch it again"
        )
    return Fetched(entry.name, folder, note["files"], note["unpacked_bytes"], note["sha256"], fresh=False)


def fetch(entry: Entry, folder: Path, *, archive: Path | None = None, trust: bool = False) -> Fetched:
    """Download a data set, compare its checksum, unpack it; whole or not at all.

    `archive` is a file downloaded by hand. `folder` is replaced where it is an earlier fetch; what else may
    be there is for `present` to refuse. `trust` accepts a file whose checksum nobody has published.
    """
    beside = folder.resolve().parent
    beside.mkdir(parents=True, exist_ok=True)
    partial = beside / f".{entry.name}-{_version(entry)}.partial"
    path, sha256 = _obtain(entry, partial) if archive is None else (archive, _check(entry, archive))
    if entry.checksum is None and not trust and (_note(folder) or {}).get("sha256") != sha256:
        what = f"nobody has published a checksum; the file has sha256 {sha256}"
        raise UserError(what, entry.name, "compare it and add --trust, or write it into the YAML")
    unpacked = _install(entry, path, folder, sha256)
    partial.unlink(missing_ok=True)
    return Fetched(entry.name, folder, unpacked.files, unpacked.bytes, sha256, True, unpacked.left_out)


def _version(entry: Entry) -> str:
    """Tells a partial download from one of another version."""
    return hashlib.sha256(str(entry.checksum or entry.data.url).encode()).hexdigest()[:8]


def _obtain(entry: Entry, partial: Path) -> tuple[Path, str]:
    """The file and its sha256, from the first address that can be reached and gives the right bytes."""
    problems = []
    for url in [entry.data.url, *entry.data.mirrors]:
        try:
            if urlsplit(url).scheme == "file":
                path = Path(urllib.request.url2pathname(urlsplit(url).path))
                return path, _check(entry, path)
            download(url, partial, entry.data.bytes, entry.name)
            return partial, _check(entry, partial, downloaded=True)
        except UserError as error:
            problems.append(error)
    what = "; ".join(str(UserError(p.what, p.where)) for p in problems)
    raise UserError(what, entry.name, problems[0].fix)


def _check(entry: Entry, path: Path, *, downloaded: bool = False) -> str:
    """The sha256 of a file. Raises UserError where it is the wrong one, and removes what was downloaded."""
    if not path.is_file():
        raise UserError("there is no such file", path)
    size, sha256, wrong = path.stat().st_size, _digest(path, "sha256"), ""
    kind, wanted = entry.checksum or ("sha256", sha256)
    got = sha256 if kind == "sha256" else _digest(path, kind)
    if entry.data.bytes not in (None, size):
        wrong = f"has {size} bytes where {entry.data.bytes} are expected"
    elif got != wanted:
        wrong = f"has the wrong checksum: expected {kind} {wanted}, got {got}"
    if wrong and downloaded:
        path.unlink()
        raise UserError(
            wrong, "the downloaded file", "it was removed; the file may have changed at its source"
        )
    if wrong:
        raise UserError(wrong, path)
    return sha256


def _digest(path: Path, kind: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise UserError(f"can't be read: {error.strerror}", path) from error


def _install(entry: Entry, archive: Path, folder: Path, sha256: str) -> Unpacked:
    """Unpack beside the folder and rename, so that it is whole or as it was."""
    folder, data = folder.resolve(), entry.data
    fresh = folder.with_name(f".{folder.name[:40]}.{secrets.token_hex(4)}.partial")
    try:
        fresh.mkdir()
        if data.unpack == "none":
            unpacked = _copied(
                archive, fresh / (PurePosixPath(unquote(urlsplit(data.url).path)).name or "data")
            )
        else:
            unpacked = unpack(archive, fresh, data.unpack, folder=data.folder, keep=data.keep)
        if not unpacked.files:
            raise UserError(f"holds no file that matches {', '.join(data.keep)}", archive.name)
        facts: dict[str, Any] = {
            "title": data.title,
            "homepage": data.homepage,
            "licence": data.licence.model_dump(),
        }
        facts |= {"url": data.url, "bytes": archive.stat().st_size, "sha256": sha256, "md5": data.md5}
        facts |= {"files": unpacked.files, "unpacked_bytes": unpacked.bytes}
        write_text(fresh / NOTE, NOTE_HEAD + yaml.safe_dump(facts, sort_keys=False, allow_unicode=True))
        _replace(folder, fresh)
    except OSError as error:
        raise UserError(f"can't be written: {error.strerror}", folder) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return unpacked


def _copied(archive: Path, target: Path) -> Unpacked:
    shutil.copyfile(archive, target)
    return Unpacked(1, target.stat().st_size, ())


def _replace(folder: Path, fresh: Path) -> None:
    """Put `fresh` in the place of an empty folder, or of an earlier fetch, which is back if that fails."""
    if _note(folder) is None:
        fresh.replace(folder)  # the system refuses where that is a folder with anything in it
        return
    old = fresh.with_suffix(".old")
    folder.rename(old)
    try:
        fresh.replace(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old)


def _note(folder: Path) -> dict[str, Any] | None:
    """What an earlier fetch noted in its folder; None where there was none."""
    path = folder / NOTE
    if not path.is_file():
        return None
    note = parse_yaml(read_text(path), str(path))
    known = isinstance(note, dict) and {"files", "unpacked_bytes", "sha256"} <= note.keys()
    return note if known else None
