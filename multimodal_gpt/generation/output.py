"""What was made, as files: one per format, a side-car that tells how, and a picture."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multimodal_gpt import provenance
from multimodal_gpt.errors import UserError
from multimodal_gpt.files import write_bytes, write_text
from multimodal_gpt.stream.document import Document
from multimodal_gpt.stream.picture import FORMATS, WHOLE, Spans, can_draw, draw, takes_color
from multimodal_gpt.stream.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class Piece:
    """One generated document.

    Args:
        document: given and made segments.
        made: names of the modalities that were made.
        info: seed, checkpoint, prompt, settings, tokens, bits per modality: plain values, the side-car.
        seconds: time it took, its share of the batch's.
        made_spans: of modalities in `made` that were given in part: when they were made, (start, stop) in
            quarter notes, in order. A modality that is missing was made from beginning to end.
    """

    document: Document
    made: tuple[str, ...]
    info: Mapping[str, Any]
    seconds: float
    vocabulary: Vocabulary
    made_spans: Mapping[str, Spans] = field(default_factory=dict)

    @property
    def spans(self) -> dict[str, Spans]:
        """When each modality in `made` was made."""
        return {name: self.made_spans.get(name, WHOLE) for name in self.made}

    def content(self, name: str) -> Any:
        """The content of one modality. Raises UserError where the piece has none."""
        if name not in self.document.modalities:
            raise UserError(
                f"this piece has no '{name}'", fix=f"it has {', '.join(self.document.modalities)}"
            )
        return self.document.content(name)

    @property
    def note(self) -> str:
        """Provenance on one line of ASCII, for formats that can hold it."""
        return provenance.note(self.info)

    def write(self, path: str | Path, *, force: bool = False, svg: bool = False) -> list[Path]:
        """Write all files of the piece, named after `path`; all of them or, where one can't be, none.

        `path` may end with the suffix of one of its modalities: every modality of that format goes
        into it. Made modalities of other formats, the side-car `.json` and, where a modality can be
        drawn, the picture `.png` stand beside it, and with `svg`, or where `path` ends so, the same as
        `.svg`. Raises UserError where a file is there already and `force` is not set.
        """
        files = self.files(path, svg=svg)
        refuse_existing(files, force)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return write_piece(self, files)

    def files(self, path: str | Path, *, svg: bool = False) -> dict[Path, tuple[str, ...]]:
        """The files that `write` makes, and the modalities in each; none for side-car and pictures."""
        path = Path(path)
        if not path.name:
            raise UserError(f"'{path}' is not a file name", fix="for example out/piece")
        formats = self._formats()
        asked, kinds = path.suffix.lower(), [".png", *([".svg"] if svg else [])]
        if asked == ".svg" and asked not in formats and drawable(self):
            path, asked, kinds = path.with_suffix(""), "", [".png", ".svg"]
        if asked and asked not in formats:
            raise UserError(
                f"nothing in this piece is written as '{path.suffix}'", path, f"try {', '.join(formats)}"
            )
        stem = path.with_suffix("") if asked else path
        files = {path: tuple(formats[asked])} if asked else {}
        for suffix, names in formats.items():
            if suffix != asked and any(name in self.made for name in names):
                files[_beside(stem, suffix)] = tuple(names)
        for suffix in (".json", *(kinds if drawable(self) else ())):
            files[_beside(stem, f".piece{suffix}" if suffix in formats else suffix)] = ()
        return files

    def _formats(self) -> dict[str, list[str]]:
        """Suffix -> the modalities that are written so."""
        formats: dict[str, list[str]] = {}
        for name in self.vocabulary.names:
            if name in self.document.modalities:
                formats.setdefault(self.vocabulary.tokenizer(name).suffixes[0], []).append(name)
        return formats

    def draw(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the picture alone, as the suffix says: `.png` or `.svg`.

        Raises UserError where no modality of the piece can be drawn.
        """
        path = Path(path)
        if not drawable(self):
            raise UserError("no modality of this piece can be drawn", path)
        refuse_existing([path], force)
        return write_bytes(path, picture(self, path.suffix.lower().removeprefix(".") or FORMATS[0]))


def write_all(
    pieces: Sequence[Piece], folder: str | Path, *, force: bool = False, svg: bool = False
) -> list[list[Path]]:
    """Write pieces as 0001.*, 0002.* ... into a folder, which is made if need be; gives the paths by piece.

    Raises UserError, before anything is written, where a file is there already and `force` is not set.
    """
    folder = Path(folder)
    plans = [piece.files(folder / f"{number:04d}", svg=svg) for number, piece in enumerate(pieces, 1)]
    refuse_existing([path for plan in plans for path in plan], force)
    folder.mkdir(parents=True, exist_ok=True)
    return [write_piece(piece, plan) for piece, plan in zip(pieces, plans, strict=True)]


def refuse_existing(paths: Sequence[Path] | Mapping[Path, Any], force: bool) -> None:
    """Raise UserError where one of these files is there already, unless `force`."""
    there = [path for path in paths if path.exists()]
    if there and not force:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise UserError(
            f"the file is there already{more}", there[0], "use force to overwrite, or another name"
        )
    for path in there:
        if not path.is_file():
            raise UserError("is not a file, it can't be overwritten", path)


def write_piece(piece: Piece, files: Mapping[Path, tuple[str, ...]]) -> list[Path]:
    """Make every file in a folder of its own first, then move them into place."""
    first = next(iter(files))
    try:
        with tempfile.TemporaryDirectory(dir=first.parent, prefix=".piece-") as name:
            drafts = {path: Path(name) / path.name for path in files}
            for path, names in files.items():
                _write_one(piece, drafts[path], names)
            for path, draft in drafts.items():
                draft.replace(path)
    except OSError as error:
        raise UserError(
            f"can't be written: {error.strerror}", error.filename2 or error.filename or first
        ) from error
    return list(files)


def _write_one(piece: Piece, path: Path, names: Sequence[str]) -> None:
    if not names and path.suffix == ".json":
        write_text(path, json.dumps(piece.info, indent=1, ensure_ascii=False) + "\n")
    elif not names:
        write_bytes(path, picture(piece, path.suffix[1:]))
    for number, name in enumerate(names):
        tokenizer = piece.vocabulary.tokenizer(name)
        tokenizer.write(piece.content(name), path, append=number > 0, note=piece.note)


def _beside(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)


def drawable(piece: Piece) -> list[str]:
    """Modalities of a piece that can be drawn."""
    return can_draw(piece.vocabulary, piece.document.modalities)


def picture(piece: Piece, kind: str = "png") -> bytes:
    """A picture of all that can be drawn, under what was given; `kind` as in `stream.picture.FORMATS`."""
    contents = {name: piece.content(name) for name in drawable(piece)}
    return draw(contents, piece.vocabulary, _title(piece), made=piece.spans, kind=kind)


def _title(piece: Piece) -> str:
    """What was given that is not drawn, then what the legend can't tell."""
    drawn = drawable(piece)
    words = [_short(shown) for name, shown in piece.info.get("given", {}).items() if name not in drawn]
    colored = [name for name in drawn if takes_color(piece.vocabulary.tokenizer(name))]
    others = [name for name in piece.made if name not in colored]
    facts = [f"seed {piece.info.get('seed')}, piece {piece.info.get('row', 0) + 1}"]
    return "\n".join([*words[:1], "   ".join([*facts, *([f"made: {', '.join(others)}"] if others else [])])])


def _short(words: str) -> str:
    line = re.sub(r"[^\S ]|[\x00-\x1f]", " ", words)
    return line if len(line) <= 100 else f"{line[:97]}..."
