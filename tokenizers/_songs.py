"""Every music file that the plugins read, by suffix, as songs."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from multimodal_gpt.errors import UserError, nearest
from multimodal_gpt.tokenizers import _abc, _corpora, _midi
from multimodal_gpt.tokenizers._music import Song

SUFFIXES = (*_midi.SUFFIXES, *_abc.SUFFIXES, *_corpora.SUFFIXES)
BOOK_SUFFIXES = _abc.SUFFIXES
"""Files that hold many pieces."""


def songs(path: Path, part: int = 0, parts: int = 1) -> list[tuple[str, Song | UserError]]:
    """(key, song) of each piece in a file; a UserError in place of a piece that can't be read.

    `part` of `parts`: only the pieces N * part // parts up to N * (part + 1) // parts of a book of N;
    a file that holds one piece is part 0. The last few answers are kept, since melody and chords ask
    for the same ones. Raises UserError where the file as a whole can't be read.
    """
    path = path if isinstance(path, Path) else Path(path)
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(error.strerror or "can't be opened", path) from error
    return list(_songs(path, status.st_mtime_ns, status.st_size, part, parts))


@lru_cache(maxsize=4)
def _songs(
    path: Path, modified: int, size: int, part: int, parts: int
) -> tuple[tuple[str, Song | UserError], ...]:
    suffix = path.suffix.lower()
    if suffix in _abc.SUFFIXES:
        tunes = _tunes(path, modified, size)
        found = tunes[len(tunes) * part // parts : len(tunes) * (part + 1) // parts]
        return tuple((key, _played(tune, key, path)) for key, tune in found)
    if part and suffix in SUFFIXES:
        return ()
    if suffix in _midi.SUFFIXES:
        return (("", _midi.load(path)),)
    if suffix in _corpora.SUFFIXES:
        return (("", _corpora.load_score(path)),)
    raise UserError(f"unknown kind of music file {suffix!r}", path, nearest(suffix, SUFFIXES))


@lru_cache(maxsize=1)  # a book is asked for part by part
def _tunes(path: Path, modified: int, size: int) -> tuple[tuple[str, _abc.Tune], ...]:
    return tuple(_abc.split_book(path))


def _played(tune: _abc.Tune, key: str, path: Path) -> Song | UserError:
    try:
        return _corpora.add_section(_abc.read_tune(tune, key), path)
    except UserError as error:
        return error.within(f"{path}: tune {key}")
