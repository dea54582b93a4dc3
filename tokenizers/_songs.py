"""Every music file that the plugins read, by suffix, as songs."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from multimodal_gpt.errors import UserError, nearest
from multimodal_gpt.tokenizers import _abc, _corpora, _midi
from multimodal_gpt.tokenizers._music import Song

SUFFIXES = (*_midi.SUFFIXES, *_abc.SUFFIXES, *_corpora.SUFFIXES)


def songs(path: Path) -> list[tuple[str, Song | UserError]]:
    """(key, song) of each piece in a file; a UserError in place of a piece that can't be read.

    The last few files are kept, since melody and chords ask for the same one. Raises UserError
    where the file as a whole can't be read.
    """
    path = Path(path)
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(error.strerror or "can't be opened", path) from error
    return list(_songs(path, status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=4)
def _songs(path: Path, modified: int, size: int) -> tuple[tuple[str, Song | UserError], ...]:
    suffix = path.suffix.lower()
    if suffix in _midi.SUFFIXES:
        return (("", _midi.load(path)),)
    if suffix in _abc.SUFFIXES:
        book = _abc.read_book(path)
        return tuple((k, s if isinstance(s, UserError) else _corpora.add_section(s, path)) for k, s in book)
    if suffix in _corpora.SUFFIXES:
        return (("", _corpora.load_score(path)),)
    raise UserError(f"unknown kind of music file {suffix!r}", path, nearest(suffix, SUFFIXES))
