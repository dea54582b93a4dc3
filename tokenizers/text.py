"""Words: any UTF-8 text, as byte-level BPE through tiktoken.

Options of `build` and `fit`:
    encoding    "bpe": merges learnt from the training texts when shards are prepared (the default);
                "bytes": 256 ids, nothing to learn; or the name of a tiktoken encoding, such as "gpt2"
    vocabulary  number of ids to learn for "bpe", the 256 bytes included; fewer for small corpora
    ranks       a .tiktoken file: one token a line, as base64 and its rank
    pattern     regular expression that splits text before merging; the encoding's own if absent

tiktoken never holds a special token here: whatever a user types, `<melody>` too, is characters.
"""

from __future__ import annotations

import base64
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multimodal_gpt.errors import UserError, nearest
from multimodal_gpt.files import is_file, read_text, write_text
from multimodal_gpt.stream.grammar import Grammar
from multimodal_gpt.stream.tokenizer import Item
from multimodal_gpt.tokenizers import _shingles, _utf8

if TYPE_CHECKING:
    import tiktoken

PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
"""How text is split before merging: tiktoken's cl100k_base pattern, which never crosses a word."""
CHUNK = 100_000
"""Characters given to tiktoken at once: its matcher panics on about a million blanks before a letter."""
RANKS_FILE = "text.tiktoken"
BYTES = 256
_STRETCH = 5  # words in a shingle
LINE = 100
"""Characters that `show` gives at most."""

Ranks = Mapping[bytes, int]


@dataclass(frozen=True, eq=False)
class Text:
    """Content is a str with at least one visible character.

    Args:
        ranks: token bytes -> local id, 0 .. size-1, every single byte included.
        pattern: regular expression that splits text before merging.
    """

    ranks: Ranks
    pattern: str
    suffixes = (".txt",)
    unit = "character"

    @property
    def size(self) -> int:
        """Number of local ids."""
        return len(self.ranks)

    def read(self, path: Path) -> Iterator[Item]:
        """The whole file as one text; nothing for a blank one. Raises UserError where it is not UTF-8."""
        text = read_text(path)
        text = text.removesuffix("\r\n" if text.endswith("\r\n") else "\n")
        if _utf8.is_visible(text):
            yield Item("", text)

    def write(self, content: str, path: Path, *, append: bool = False, note: str = "") -> Path:
        """The text and a line end, the reverse of `read`. Plain text has no place for a note."""
        before = read_text(path) if append and path.is_file() else ""
        return write_text(path, before + _utf8.clean(content) + ("\r\n" if content.endswith("\r") else "\n"))

    def parse(self, text: str) -> str:
        """The words themselves; what a .txt file holds where that is what the text names."""
        if text.lower().endswith(self.suffixes) and is_file(text):
            return _utf8.require_visible(next((i.content for i in self.read(Path(text))), ""))
        return _utf8.require_visible(text)

    def encode(self, content: str) -> np.ndarray:
        """(T,) int32 ids; lone surrogates are replaced by U+FFFD. Raises UserError where all is blank."""
        text = _utf8.clean(_utf8.require_visible(content))
        chunks = (text[i : i + CHUNK] for i in range(0, len(text), CHUNK))
        # `encode_ordinary` can panic where `encode` does not; () = no text is special.
        ids = [i for chunk in chunks for i in self._encoding.encode(chunk, disallowed_special=())]
        return np.asarray(ids, dtype=np.int32)

    def decode(self, ids: np.ndarray) -> str:
        """The text of ids, the reverse of `encode`. Raises UserError where it is not UTF-8 or all blank."""
        if not self._grammar.accepts(ids):
            raise UserError("these ids are no text: not whole UTF-8 characters, or none of them visible")
        return self._bytes(ids).decode("utf-8")

    def grammar(self) -> Grammar:
        """The UTF-8 machine run over each token's bytes: only whole characters, at least one visible."""
        return self._grammar

    def clock(self, ids: np.ndarray) -> None:
        """Text is timeless."""
        return

    def cuts(self, ids: np.ndarray) -> np.ndarray:
        """None: a text is never cut."""
        return np.zeros(0, dtype=np.int64)

    def units(self, content: str) -> int:
        """Characters."""
        return len(content)

    def describe(self, content: str) -> dict[str, Any]:
        """How many characters."""
        return {"characters": len(content)}

    def show(self, ids: np.ndarray) -> str:
        """The text as a Python literal, cut after 100 characters; half characters are shown as U+FFFD."""
        text = self._bytes(ids).decode("utf-8", errors="replace")
        return repr(text if len(text) <= LINE else text[: LINE - 3] + "...")

    def shingles(self, content: str) -> np.ndarray:
        """(N,) uint64 hashes of stretches of five words, whatever their case and what stands between."""
        words = re.findall(r"\w+", content.casefold())
        numbers = (zlib.crc32(word.encode()) for word in words)
        return _shingles.stretches(np.fromiter(numbers, dtype=np.int64), _STRETCH)

    def _bytes(self, ids: np.ndarray) -> bytes:
        return b"".join(self._tokens[i] for i in np.asarray(ids).tolist())

    @cached_property
    def _tokens(self) -> list[bytes]:
        return sorted(self.ranks, key=self.ranks.__getitem__)

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        import tiktoken

        return tiktoken.Encoding(
            "text", pat_str=self.pattern, mergeable_ranks=dict(self.ranks), special_tokens={}
        )

    @cached_property
    def _grammar(self) -> Grammar:
        return _utf8.grammar(self._tokens)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "ranks": self.ranks,
            "pattern": self.pattern,
        }  # tables and the encoding are made again


def fit(
    contents: Iterable[str],
    folder: Path,
    encoding: str = "bpe",
    vocabulary: int = 1024,
    ranks: str | Path | None = None,
    pattern: str | None = None,
) -> dict[str, Any]:
    """Put the ranks into `folder` as text.tiktoken: learnt from the texts, copied, or of the named encoding.

    Gives the options with which `build` needs nothing but that file. Raises UserError.
    """
    if encoding == "bytes":
        return {"encoding": encoding}
    if ranks is not None:
        table = read_ranks(Path(ranks))
    elif encoding == "bpe":
        table = learn(contents, vocabulary)
    else:
        table, pattern = _named(encoding)
    write_ranks(table, folder / RANKS_FILE)
    options = {"encoding": encoding, "ranks": f"file:{RANKS_FILE}"}
    return options if pattern is None else {**options, "pattern": pattern}


def build(
    encoding: str = "bpe",
    vocabulary: int = 1024,
    ranks: str | Path | None = None,
    pattern: str | None = None,
) -> Text:
    """A text tokenizer; see the top of this file for the options. `vocabulary` matters to `fit` alone."""
    if encoding == "bytes":
        return Text({bytes([b]): b for b in range(BYTES)}, PATTERN)
    if ranks is not None:
        return Text(read_ranks(Path(ranks)), pattern or PATTERN)
    if encoding == "bpe":
        fix = "prepare a corpus first, or set encoding: bytes, which needs no learning"
        raise UserError("the ranks of encoding 'bpe' are learnt when shards are prepared", fix=fix)
    return Text(*_named(encoding))


def learn(texts: Iterable[str], vocabulary: int) -> Ranks:
    """Byte-level BPE of texts: the 256 bytes, then at most vocabulary - 256 merges in order of rank."""
    if not isinstance(vocabulary, int) or vocabulary < BYTES:
        fix = f"a whole number from {BYTES} on; encoding: bytes learns nothing"
        raise UserError(f"vocabulary is {vocabulary!r}", "encoding 'bpe'", fix)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads warn and may hang where workers fork later
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,  # a merge seen once saves one token once and costs an embedding row for ever
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(map(_utf8.clean, texts), trainer)
    ranks = {bytes([b]): b for b in range(BYTES)}
    letters = _byte_letters()
    for merge in json.loads(tokenizer.to_str())["model"]["merges"]:
        ranks.setdefault(bytes(letters[c] for c in "".join(merge)), len(ranks))
    return ranks


def _byte_letters() -> dict[str, int]:
    """The printable character by which Hugging Face's byte-level BPE writes each byte (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(BYTES) if b not in plain]
    return {chr(b): b for b in plain} | {chr(BYTES + i): b for i, b in enumerate(others)}


def _named(encoding: str) -> tuple[Ranks, str]:
    import tiktoken

    names = tiktoken.list_encoding_names()
    if encoding not in names:
        raise UserError(f"unknown encoding {encoding!r}", fix=nearest(encoding, ["bpe", "bytes", *names]))
    try:
        found = tiktoken.get_encoding(encoding)
    except (OSError, ValueError) as error:  # no network; or a proxy answered with something else
        fix = "use encoding: bpe (learnt from your texts) or bytes, or give ranks: a .tiktoken file"
        what = f"tiktoken can't download its encoding '{encoding}' ({type(error).__name__})"
        raise UserError(what, fix=fix) from error
    # Ranks may have gaps where special tokens lie; only their order matters to the merging.
    tokens = sorted(found._mergeable_ranks, key=found._mergeable_ranks.__getitem__)
    return {token: rank for rank, token in enumerate(tokens)}, found._pat_str


def write_ranks(ranks: Ranks, path: Path) -> Path:
    """Write a .tiktoken file: per line a token in base64 and its rank. The reverse of `read_ranks`."""
    lines = (f"{base64.b64encode(t).decode()} {r}\n" for t, r in sorted(ranks.items(), key=lambda x: x[1]))
    return write_text(path, "".join(lines))


def read_ranks(path: Path) -> Ranks:
    """Read a .tiktoken file and check it, for tiktoken panics on a damaged table. Raises UserError.

    Not tiktoken's `load_tiktoken_bpe`: that gives a stale copy after a local file has changed.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise UserError(f"line {number} is not a token in base64 and its rank", path) from None
        if len(ranks) != number:
            raise UserError(f"line {number} gives the same token again", path)
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise UserError(f"the ranks of {len(ranks)} tokens are not 0 .. {len(ranks) - 1}", path)
    missing = [b for b in range(BYTES) if bytes([b]) not in ranks]
    if missing or b"" in ranks:
        raise UserError(f"{len(missing)} of the {BYTES} single bytes are missing, or a token is empty", path)
    return ranks
