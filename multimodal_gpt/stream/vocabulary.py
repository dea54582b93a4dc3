"""One vocabulary over many modalities: id ranges, special tokens, fingerprint, growth.

    0 .. 15                special tokens, the same in every vocabulary
    tag, first .. last     one range per modality in recipe order: its tag, then its local ids

Adding a modality appends a range; old ids never move.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from multimodal_gpt.errors import UserError, nearest
from multimodal_gpt.files import write_text
from multimodal_gpt.stream import plugins
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.tokenizer import Tokenizer
from multimodal_gpt.versions import installed

PAD, DOC, EOD, END, MIX, HOLE, FILL = range(7)
SPECIALS = (
    "<pad>",
    "<doc>",
    "<eod>",
    "<end>",
    "<mix>",
    "<hole>",
    "<fill>",
    *(f"<reserved{i}>" for i in range(7, 16)),
)
TABLE_MULTIPLE = 64
FILE_NAME = "vocabulary.json"


@dataclass(frozen=True)
class Range:
    """The global ids of one modality: `tag`, then `first` .. `stop - 1` for its local ids."""

    name: str
    index: int
    tag: int
    size: int

    @property
    def first(self) -> int:
        """Global id of local id 0."""
        return self.tag + 1

    @property
    def stop(self) -> int:
        """One past the last global id."""
        return self.first + self.size


@dataclass(frozen=True, eq=False)
class Encoded:
    """One segment as local ids, with what the core needs to know about them.

    ids (T,) int32; clock (T,) float32 in quarter notes or None; cuts (C,) int64; units: how many of the
    modality's unit the content holds.
    """

    modality: str
    ids: np.ndarray
    clock: np.ndarray | None
    cuts: np.ndarray
    units: int

    @cached_property
    def edges(self) -> np.ndarray:
        """(C + 1,) chunk borders: chunk i is ids[edges[i]:edges[i + 1]]; the whole segment where nothing may
        be cut.
        """
        inner = self.cuts[self.cuts > 0]
        return np.concatenate(([0], inner, [len(self.ids)])).astype(np.int64)

    @cached_property
    def times(self) -> np.ndarray:
        """(C,) float64: time at which each chunk begins; 0 for a timeless segment."""
        starts = self.edges[:-1]
        return np.zeros(len(starts)) if self.clock is None else self.clock[starts].astype(np.float64)


class Vocabulary:
    """Tokenizers by name, and where their ids lie. Build it once; it never changes.

    Args:
        modalities: in id order.
        folder: where files named in the options lie.
        trusted: name -> plugin file the caller vouches for, used instead of the recorded one.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        folder: Path | None = None,
        trusted: Mapping[str, str] | None = None,
    ) -> None:
        names = [m.name for m in modalities]
        if len(set(names)) != len(names):
            raise UserError("a modality is named twice", "tokenizers")
        swap = trusted or {}
        self.modalities = tuple(Modality(m.name, swap.get(m.name, m.plugin), m.options) for m in modalities)
        self.folder = folder
        self.tokenizers: dict[str, Tokenizer] = {m.name: plugins.build(m, folder) for m in self.modalities}
        self.ranges: dict[str, Range] = {}
        place = len(SPECIALS)
        for index, name in enumerate(names):
            self.ranges[name] = Range(name, index, place, self.tokenizers[name].size)
            place = self.ranges[name].stop
        self.size = place

    @property
    def names(self) -> tuple[str, ...]:
        """Modalities in id order."""
        return tuple(self.ranges)

    @property
    def table_size(self) -> int:
        """Rows of the embedding table: `size` rounded up to a multiple of 64."""
        return -(-self.size // TABLE_MULTIPLE) * TABLE_MULTIPLE

    def range(self, name: str) -> Range:
        """The id range of a modality. Raises UserError with the nearest known name."""
        if name not in self.ranges:
            raise UserError(
                f"there is no modality '{name}' in this vocabulary", fix=nearest(name, self.names)
            )
        return self.ranges[name]

    def tokenizer(self, name: str) -> Tokenizer:
        """The tokenizer of a modality. Raises UserError with the nearest known name."""
        self.range(name)
        return self.tokenizers[name]

    def owner(self, ids: np.ndarray) -> np.ndarray:
        """(T,) int64: index of the modality whose range holds each global id (its tag included), -1 for
        specials.
        """
        starts = np.array([r.tag for r in self.ranges.values()])
        return np.searchsorted(starts, ids, side="right") - 1

    def encode(self, name: str, content: Any) -> Encoded:
        """Content to local ids, with clock, cuts and units. Raises UserError where it is empty or not
        encodable.
        """
        tokenizer = self.tokenizer(name)
        try:
            ids = tokenizer.encode(content)
        except UserError as error:
            raise error.within(name) from error
        if not len(ids):
            raise UserError("holds nothing", name)
        return Encoded(name, ids, tokenizer.clock(ids), tokenizer.cuts(ids), tokenizer.units(content))

    def decode(self, name: str, ids: np.ndarray) -> Any:
        """Local ids to content, the reverse of `encode`."""
        return self.tokenizer(name).decode(np.asarray(ids, dtype=np.int32))

    def show(self, ids: np.ndarray) -> str:
        """One readable line of a stream of global ids: specials and tags by name, modalities as they show
        themselves.
        """
        ids = np.asarray(ids)
        owners = self.owner(ids)
        words: list[str] = []
        place = 0
        while place < len(ids):
            owner = owners[place]
            if owner < 0:
                words.append(SPECIALS[ids[place]])
                place += 1
                continue
            tag = self.ranges[self.names[owner]]
            if ids[place] == tag.tag:
                words.append(f"<{tag.name}>")
                place += 1
                continue
            stop = place
            while stop < len(ids) and owners[stop] == owner and ids[stop] != tag.tag:
                stop += 1
            words.append(self.tokenizers[tag.name].show(ids[place:stop] - tag.first))
            place = stop
        return " ".join(words)

    def grow(self, modality: Modality, folder: Path | None = None) -> Vocabulary:
        """The same vocabulary with one more modality behind the others: old ids keep their meaning."""
        return Vocabulary([*self.modalities, modality], folder or self.folder)

    def manifest(self) -> dict[str, Any]:
        """Everything that gives an id its meaning, as plain values; `fingerprint` is the hash of
        `content`.
        """
        content = {"specials": list(SPECIALS), "modalities": [self._entry(m) for m in self.modalities]}
        text = json.dumps(content, sort_keys=True)
        return {
            "format": 1,
            "fingerprint": hashlib.sha256(text.encode()).hexdigest(),
            "content": content,
            "plugin_files": {m.name: m.plugin for m in self.modalities if m.is_file},
            "libraries": installed(),
        }

    def _entry(self, modality: Modality) -> dict[str, Any]:
        grammar = self.tokenizers[modality.name].grammar()
        rules = hashlib.sha256()
        for table in (grammar.next_state.astype("<i4"), grammar.final, grammar.cut):
            rules.update(np.ascontiguousarray(table).tobytes())
        place = self.ranges[modality.name]
        return {
            "name": modality.name,
            "plugin": Path(modality.plugin).name if modality.is_file else modality.plugin,
            "options": dict(modality.options),
            "files": {f: plugins.file_hash((self.folder or Path()) / f) for f in plugins.files_of(modality)},
            "tag": place.tag,
            "size": place.size,
            "grammar": rules.hexdigest(),
        }

    @property
    def fingerprint(self) -> str:
        """Hash of everything that gives an id its meaning."""
        return str(self.manifest()["fingerprint"])

    def save(self, folder: Path) -> Path:
        """Write `vocabulary.json` and the files its options name into `folder`, the reverse of `load`."""
        folder.mkdir(parents=True, exist_ok=True)
        for modality in self.modalities:
            for name in plugins.files_of(modality):
                source = (self.folder or Path()) / name
                if source.resolve() != (folder / name).resolve():
                    shutil.copyfile(source, folder / name)
        # Keys stay as they are: the order of a plugin's options may decide what its ids mean.
        return write_text(folder / FILE_NAME, json.dumps(self.manifest(), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path, trusted: Mapping[str, str] | None = None) -> Vocabulary:
        """Read a saved vocabulary, rebuild its tokenizers and check that every id still means the same.

        A folder may come from a stranger, so the plugin files it names are not run: the caller vouches for
        them in `trusted`, or they run in this process already. Raises UserError where a file is missing or
        damaged, where nobody vouches, or where a plugin has changed, with the difference.
        """
        path = folder / FILE_NAME
        saved = read_manifest(path)
        for name, plugin in saved["plugin_files"].items():
            if name not in (trusted or {}) and not plugins.is_loaded(plugin):
                raise UserError(
                    f"modality '{name}' needs the plugin file '{Path(plugin).name}', which is code",
                    path,
                    f"if you trust it: --plugin {name}={plugin}, in Python plugins={{'{name}': '{plugin}'}}",
                )
        modalities = [
            Modality(e["name"], saved["plugin_files"].get(e["name"], e["plugin"]), e["options"])
            for e in saved["content"]["modalities"]
        ]
        vocabulary = cls(modalities, folder, trusted)
        differences = compare(saved, vocabulary.manifest())
        if differences:
            raise UserError(
                "the vocabulary does not match the installed tokenizers: " + "; ".join(differences),
                path,
                "install the versions it names under 'libraries', or prepare and train again",
            )
        return vocabulary


def read_manifest(path: Path) -> dict[str, Any]:
    """The parsed `vocabulary.json`, checked against its own fingerprint. Raises UserError."""
    try:
        saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        content = json.dumps(saved["content"], sort_keys=True)
        intact = hashlib.sha256(content.encode()).hexdigest() == saved["fingerprint"]
    except FileNotFoundError:
        raise UserError("the file is missing", path, "a run folder holds it beside the weights") from None
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise UserError("the file is damaged", path, "copy it again from where the run was trained")
    return saved


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Readable differences between two manifests; empty when every id of `old` means the same in `new`."""
    mine = {e["name"]: e for e in new["content"]["modalities"]}
    lines = []
    for entry in old["content"]["modalities"]:
        other = mine.get(entry["name"])
        if other is None:
            lines.append(f"modality '{entry['name']}' is missing")
            continue
        lines += [
            f"{entry['name']}.{key}: {_short(entry[key])} -> {_short(other[key])}"
            for key in entry
            if entry[key] != other[key]
        ]
    return lines


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "..."
