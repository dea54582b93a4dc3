"""Making a generated file again from what it tells of itself, and comparing the bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from multimodal_gpt import __version__, provenance
from multimodal_gpt.errors import UserError

if TYPE_CHECKING:
    from multimodal_gpt.generation.drafting import Progress
    from multimodal_gpt.generation.output import Piece

_WEIGHTS = "checkpoint.json"
_RUNS = "runs"


@dataclass(frozen=True)
class Replay:
    """What came of it.

    Args:
        run: the run that made it again.
        compared: file -> "identical", or where the first difference is.
        missing: files made again that there is nothing to compare with.
        warnings: what may explain a difference.
    """

    run: Path
    compared: Mapping[str, str]
    missing: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def identical(self) -> bool:
        """Whether all that could be compared is the same, byte for byte."""
        return all(verdict == "identical" for verdict in self.compared.values())


def replay(
    path: Path,
    *,
    run: Path | None = None,
    out: Path | None = None,
    device: str = "auto",
    plugins: Mapping[str, str] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Replay:
    """Make the piece that a file belongs to again, all files of it.

    Args:
        path: any file of the piece.
        run: the run that made it; None = the one with the same weights among those above the file and in
            ./runs.
        out: folder for the files; None = they are compared and thrown away.
        device, plugins: as for `generation.session.load`. Another device than before may round otherwise.
        progress: as for `Run.generate`.

    Raises UserError where nothing tells how the file was made, or the run has other weights.
    """
    told = provenance.read(path)
    folder = _check_run(run, told) if run else _find_run(path, told)
    piece = _make(told, folder, device, plugins, progress)
    with _folder(out) as place:
        target = place / _name(path, piece)
        svg = (path.parent / f"{target.stem}.svg").is_file()
        if out is not None and out.resolve() == path.parent.resolve():
            raise UserError("the files to compare with are there", out, "name another folder")
        files = piece.write(target, force=force, svg=svg)
        beside = {file: path.parent / file.name for file in files}
        compared = {f.name: _compare(b, f) for f, b in beside.items() if b.is_file()}
    missing = tuple(f.name for f, b in beside.items() if not b.is_file())
    return Replay(folder, compared, missing, tuple(_warnings(told)))


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is not None:
        yield out
        return
    with TemporaryDirectory() as name:
        yield Path(name)


def _hash(told: provenance.Provenance) -> str:
    checkpoint = told.info.get("checkpoint")
    value = checkpoint.get("sha256") if isinstance(checkpoint, Mapping) else None
    if not isinstance(value, str):
        raise UserError("does not tell which checkpoint made it", told.told_by)
    return value


def _weights(folder: Path) -> str | None:
    """The hash of a run's weights, as the run tells it."""
    try:
        value = json.loads((folder / _WEIGHTS).read_text("utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return value if isinstance(value, str) else None


def _check_run(run: Path, told: provenance.Provenance) -> Path:
    wanted, found = _hash(told), _weights(run)
    if found is None:
        raise UserError("is no trained run", run, "name its folder with --run")
    if found != wanted:
        what = f"its weights are {found[:12]}..., the piece was made by {wanted[:12]}..."
        raise UserError(what, run, "name the run that made it, as it was then")
    return run


def _find_run(path: Path, told: provenance.Provenance) -> Path:
    wanted = _hash(told)
    places = [*path.resolve().parents, *sorted(p for p in Path(_RUNS).glob("*") if p.is_dir())]
    for folder in places:
        if _weights(folder) == wanted:
            return folder
    fix = "name the run that made it with --run"
    raise UserError(f"no run here has the weights {wanted[:12]}...", path, fix)


def _make(
    told: provenance.Provenance,
    folder: Path,
    device: str,
    plugins: Mapping[str, str] | None,
    progress: Progress | None,
) -> Piece:
    request, row = told.info.get(provenance.PACKED), told.info.get("row")
    if not isinstance(request, Mapping):
        raise UserError("does not tell what was asked for", told.told_by, "it was made by an older version")
    from multimodal_gpt.generation.request import from_plain_request
    from multimodal_gpt.generation.session import load

    opened = load(folder, device=device, plugins=plugins)
    try:
        asked = from_plain_request(request, opened.vocabulary)
    except UserError as error:
        raise error.within(told.told_by) from error
    if not isinstance(row, int) or not 0 <= row < asked.n:
        raise UserError(f"piece {row} of {asked.n} can't be", told.told_by, "its provenance is damaged")
    attempt = told.info.get("attempt")
    if attempt is not None and not (isinstance(attempt, int) and 0 <= attempt < asked.best_of):
        raise UserError(
            f"attempt {attempt} of {asked.best_of} can't be", told.told_by, "its provenance is damaged"
        )
    return opened.answer(asked, attempt=attempt, progress=progress)[row]


def _name(path: Path, piece: Piece) -> str:
    """The name to write under: with its suffix where a modality is written so."""
    tokenizers = (piece.vocabulary.tokenizer(name) for name in piece.document.modalities)
    if path.suffix.lower() in {tokenizer.suffixes[0] for tokenizer in tokenizers}:
        return path.name
    return path.stem.removesuffix(".piece")


def _compare(before: Path, after: Path) -> str:
    old, new = before.read_bytes(), after.read_bytes()
    if old == new:
        return "identical"
    pairs = enumerate(zip(old, new, strict=False))
    place = next((i for i, (a, b) in pairs if a != b), min(len(old), len(new)))
    return f"differs from byte {place:,} on ({len(old):,} bytes before, {len(new):,} now)"


def _warnings(told: provenance.Provenance) -> Iterator[str]:
    now = f"multimodal_gpt {__version__}"
    if (before := told.info.get(provenance.MARK)) != now:
        yield f"it was made by {before}, this is {now}"


def plain(done: Replay) -> dict[str, Any]:
    """The outcome as values that JSON holds."""
    return {**vars(done), "run": str(done.run), "identical": done.identical}
