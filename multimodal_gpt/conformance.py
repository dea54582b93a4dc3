"""What the plugin contract promises, one small check per promise; `testing.check_tokenizer` runs them all.

A check takes a Case and raises ConformanceError with one line: the ids or the content, and what was expected.

Letters: T tokens, C cuts, S states.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.stream import plugins
from multimodal_gpt.stream.grammar import UNREACHABLE, Grammar
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.tokenizer import Tokenizer

WALKS = ((1, 4), (2, 3), (5, 3), (12, 2), (40, 2), (150, 1), (600, 1))
"""Random legal walks: (tokens, how many)."""
TYPED = ("", " ", "?", "\x00", "no such thing \N{BLACK CHESS QUEEN}")
"""What a user may type by mistake."""
BYTES = (b"", b"\n", b"\x00", bytes(range(256)), b"MThd\x00\x00\x00\x06\x00\x00", b"\xff\xfea\x00")
"""What a file may hold by mistake."""
METADATA = (
    {"title": "?"},
    {"key": 3, "tempo": "??", "bars": -1, "meter": ""},
    {"type": ["a", "b"], "key": None},
)
"""What may be known about a document."""
SHIFTS = (1, -1, 3, -5, 12)
"""Steps by which a content is moved, where the modality offers it."""


class ConformanceError(AssertionError):
    """A promise of the contract that a plugin breaks, in one line."""


@dataclass(frozen=True, eq=False)
class Case:
    """What the checks look at.

    Args:
        modality: the plugin and its final options, None where only an object was given.
        folder: where files named in the options lie; also for scratch.
        samples: contents that the caller wants tried.
    """

    tokenizer: Tokenizer
    modality: Modality | None
    folder: Path
    samples: tuple[Any, ...] = ()

    @cached_property
    def walks(self) -> tuple[np.ndarray, ...]:
        """Random legal ids, (T,) int32 each; the same in every run."""
        grammar = self.tokenizer.grammar()
        seeds = [(length, seed) for length, count in WALKS for seed in range(count)]
        return tuple(grammar.random_walk(np.random.default_rng(seed), seed[0]) for seed in seeds)

    @cached_property
    def contents(self) -> tuple[Any, ...]:
        """The samples, then the content of every walk."""
        return (*self.samples, *map(self.tokenizer.decode, self.walks))


def expect(holds: Any, message: str) -> None:
    """Raise ConformanceError with this message, on one line, unless it holds."""
    if not holds:
        raise ConformanceError(" ".join(message.split()))


def named(error: BaseException) -> str:
    """An exception with its type, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def brief(ids: Any) -> str:
    """The first ids, and how many there are."""
    values = np.asarray(ids).ravel().tolist()
    return str(values) if len(values) <= 16 else f"{str(values[:16])[:-1]}, ... {len(values)} in all]"


def short(content: Any) -> str:
    """The beginning of a repr."""
    shown = repr(content)
    return shown if len(shown) <= 120 else f"{shown[:120]}..."


@contextmanager
def _only_user_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except (UserError, ConformanceError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise ConformanceError(f"{doing} raised {named(error)}; a UserError was expected") from error


def check_members(case: Case) -> None:
    """All members of the contract are there, and the constants have the right types."""
    tokenizer = case.tokenizer
    missing = [name for name in plugins.MEMBERS if not hasattr(tokenizer, name)]
    expect(not missing, f"the tokenizer lacks {', '.join(missing)}")
    size, suffixes, unit = tokenizer.size, tokenizer.suffixes, tokenizer.unit
    expect(isinstance(size, int) and size > 0, f"size is {size!r}, expected a positive int")
    expect(isinstance(suffixes, tuple) and suffixes, f"suffixes is {suffixes!r}, not a tuple like ('.txt',)")
    for suffix in suffixes:
        lower = isinstance(suffix, str) and suffix.startswith(".") and suffix == suffix.lower()
        expect(lower, f"suffix {suffix!r} is not a dot and lower-case letters")
    expect(isinstance(unit, str) and unit.strip(), f"unit is {unit!r}, expected a noun such as 'character'")


def check_grammar(case: Case) -> None:
    """The tables have the right shapes, and every state that can be reached can reach an end."""
    grammar, size = case.tokenizer.grammar(), case.tokenizer.size
    expect(isinstance(grammar, Grammar), f"grammar() gave {type(grammar).__name__}, expected a Grammar")
    table = grammar.next_state
    expect(grammar.size == size, f"the grammar has {grammar.size} ids, size is {size}")
    expect(np.issubdtype(table.dtype, np.integer), f"next_state is {table.dtype}, expected an integer type")
    expect(table.min() >= -1, f"next_state holds {table.min()}, expected states or -1")
    for name in ("final", "cut"):
        kind = getattr(grammar, name).dtype
        expect(kind == np.bool_, f"{name} is {kind}, expected bool")
    reached = _reachable(table)
    dead = [s for s in reached if grammar.to_final[s] >= UNREACHABLE]
    expect(not dead, f"dead end: state {dead[:1]} can be reached from the start, but no final state from it")
    again = case.tokenizer.grammar()
    same = all(np.array_equal(getattr(grammar, n), getattr(again, n)) for n in ("next_state", "final", "cut"))
    expect(same, "grammar() gave two different tables in two calls")


def _reachable(table: np.ndarray) -> list[int]:
    found, todo = {0}, [0]
    while todo:
        for state in np.unique(table[todo.pop()]).tolist():
            if state >= 0 and state not in found:
                found.add(state)
                todo.append(state)
    return sorted(found)


def check_walks(case: Case) -> None:
    """Random legal walks decode, and their content encodes to a legal fixed point."""
    for ids in case.walks:
        try:
            content = case.tokenizer.decode(ids)
        except UserError as error:
            what = f"decode refuses ids that the grammar allows: {brief(ids)}: {error}"
            raise ConformanceError(what) from error
        fixed_point(case.tokenizer, content)


def check_samples(case: Case) -> None:
    """The given samples encode to ids in range, legal, and the same when encoded from their own decoding."""
    for content in case.samples:
        fixed_point(case.tokenizer, content)


def fixed_point(tokenizer: Tokenizer, content: Any) -> None:
    """One content encodes to ids in range, legal, and the same when encoded from their own decoding."""
    ids = tokenizer.encode(content)
    whose = f"encode({short(content)})"
    whole = isinstance(ids, np.ndarray) and ids.dtype == np.int32
    expect(whole, f"{whose} gave {_kind(ids)}, expected int32 ids")
    expect(ids.ndim == 1 and len(ids), f"{whose} gave shape {ids.shape}, expected (T,) with T > 0")
    in_range = ids.min() >= 0 and ids.max() < tokenizer.size
    expect(in_range, f"{whose} gave ids {ids.min()} .. {ids.max()}, size is {tokenizer.size}")
    expect(tokenizer.grammar().accepts(ids), f"the grammar refuses {brief(ids)}, which is {whose}")
    again = tokenizer.encode(tokenizer.decode(ids))
    _same(again, ids, f"{whose} is not a fixed point: decode, then encode")
    _same(tokenizer.encode(content), ids, f"{whose} a second time")
    units = tokenizer.units(content)
    whole = isinstance(units, int) and units >= 1
    expect(whole, f"units({short(content)}) is {units!r}, expected an int >= 1")


def _kind(value: Any) -> str:
    return f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__


def _same(got: Any, expected: np.ndarray, doing: str) -> None:
    same = np.array_equal(got, expected)
    expect(same, f"{doing} gave {brief(got)}, expected {brief(expected)}")


def check_illegal(case: Case) -> None:
    """Ids out of range, no ids and random garbage raise UserError in `decode`, never anything else."""
    size, grammar = case.tokenizer.size, case.tokenizer.grammar()
    rng = np.random.default_rng(0)
    garbage = [rng.integers(0, size, n) for n in (1, 2, 5, 30, 200)]
    broken = [w[:n] for w in case.walks for n in (1, len(w) // 2, len(w) - 1)]
    outside = [
        [-1],
        [size],
        [2**31 - 1],
        [*case.walks[0].tolist(), size],
        [*case.walks[0].tolist(), -1],
    ]
    for ids in ([], *outside, *garbage, *broken):
        array = np.asarray(ids, dtype=np.int32)
        if grammar.accepts(array):
            continue
        with _only_user_errors(f"decode({brief(array)}), which is illegal,"):
            try:
                content = case.tokenizer.decode(array)
            except UserError:
                continue
            raise ConformanceError(f"decode accepts illegal ids {brief(array)} as {short(content)}")


def check_cuts(case: Case) -> None:
    """Cuts are (C,) increasing indexes, exactly where the grammar's `cut` marks a token."""
    cut = case.tokenizer.grammar().cut
    for ids in _all_ids(case):
        got = case.tokenizer.cuts(ids)
        whole = isinstance(got, np.ndarray) and got.ndim == 1 and got.dtype == np.int64
        expect(whole, f"cuts({brief(ids)}) gave {_kind(got)}, expected (C,) int64")
        _same(got, np.flatnonzero(cut[ids]), f"cuts({brief(ids)}), against the grammar's cut tokens,")


def check_clock(case: Case) -> None:
    """The clock is None or (T,) float32, finite, never decreasing; a prefix has the same times."""
    clocks = [(ids, case.tokenizer.clock(ids)) for ids in _all_ids(case)]
    if all(clock is None for _, clock in clocks):
        return
    for ids, clock in clocks:
        whose = f"clock({brief(ids)})"
        whole = isinstance(clock, np.ndarray) and clock.dtype == np.float32
        expect(whole, f"{whose} gave {_kind(clock)}, expected float32")
        times = np.asarray(clock)
        expect(times.shape == ids.shape, f"{whose} gave shape {times.shape}, expected {ids.shape}")
        expect(np.isfinite(times).all(), f"{whose} is not finite: {brief(times)}")
        falls = np.flatnonzero(np.diff(times) < 0) + 1
        expect(not len(falls), f"{whose} runs backwards at place {brief(falls)}: {brief(times)}")
        for end in case.tokenizer.cuts(ids).tolist()[1:20]:
            part = case.tokenizer.clock(ids[:end])
            _same(part, times[:end], f"clock of the first {end} of {brief(ids)}")


def _all_ids(case: Case) -> Iterator[np.ndarray]:
    yield from case.walks
    yield from map(case.tokenizer.encode, case.contents)


def check_files(case: Case) -> None:
    """What is written can be read again: one item of the same ids, with and without a note."""
    suffix = case.tokenizer.suffixes[0]
    with tempfile.TemporaryDirectory() as name:
        for index, content in enumerate(case.contents):
            asked = Path(name) / f"{index}{suffix}"
            path = case.tokenizer.write(content, asked, note="seed 1" if index % 2 else "")
            expect(Path(path).is_file(), f"write({short(content)}) left no file at {path}")
            items = list(case.tokenizer.read(Path(path)))
            expect(len(items) == 1, f"{len(items)} items were read where one was written: {short(content)}")
            expect(isinstance(items[0].key, str), f"the key of an item is {items[0].key!r}, expected a str")
            ids = case.tokenizer.encode(content)
            _same(case.tokenizer.encode(items[0].content), ids, f"write, then read of {short(content)}")


def check_bad_files(case: Case) -> None:
    """Empty, foreign and damaged files give no item or a UserError."""
    with tempfile.TemporaryDirectory() as name:
        for suffix in case.tokenizer.suffixes:
            for index, data in enumerate(BYTES):
                path = Path(name) / f"{index}{suffix}"
                path.write_bytes(data)
                with _only_user_errors(f"read of a {suffix} file of bytes {short(data)}"):
                    _encodes_or_refuses(case.tokenizer, partial(_read, case.tokenizer, path))


def _read(tokenizer: Tokenizer, path: Path) -> list[Any]:
    contents = [item.content for item in tokenizer.read(path)]
    return [c for c in contents if not isinstance(c, UserError)]  # one of many pieces may be broken


def check_parse(case: Case) -> None:
    """Whatever is typed gives a content that encodes, or a UserError."""
    for typed in TYPED:
        with _only_user_errors(f"parse({typed!r})"):
            _encodes_or_refuses(case.tokenizer, partial(_parse, case.tokenizer, typed))


def _parse(tokenizer: Tokenizer, typed: str) -> list[Any]:
    return [tokenizer.parse(typed)]


def _encodes_or_refuses(tokenizer: Tokenizer, make: Callable[[], list[Any]]) -> None:
    try:
        contents = make()
    except UserError:
        return
    for content in contents:
        fixed_point(tokenizer, content)


def check_describe(case: Case) -> None:
    """Descriptions hold plain values under str names."""
    for content in case.contents:
        got = case.tokenizer.describe(content)
        values = got.values() if isinstance(got, dict) else [got]
        plain = all(type(v) in (str, int, float, bool) for v in values) and all(type(k) is str for k in got)
        expect(plain, f"describe({short(content)}) gave {short(got)}, expected plain values")


def check_show(case: Case) -> None:
    """A segment, and any piece of one (a chunk, the part before a gap), is shown on one line."""
    for ids in case.walks:
        for piece in (ids, ids[: len(ids) // 2], ids[len(ids) // 3 :], ids[:0]):
            got = case.tokenizer.show(piece)
            one_line = isinstance(got, str) and len(got.splitlines()) <= 1
            expect(one_line, f"show({brief(piece)}) gave {short(got)}, expected one line")


def check_shift(case: Case) -> None:
    """Where a content can be moved, moving it back gives the same ids; moving by nothing changes nothing."""
    shift = case.tokenizer.shift  # type: ignore[attr-defined]
    for content in case.contents:
        ids = case.tokenizer.encode(content)
        _same(case.tokenizer.encode(shift(content, 0)), ids, f"shift({short(content)}, 0)")
        for steps in SHIFTS:
            moved = shift(case.tokenizer.decode(ids), steps)
            if moved is None:
                continue
            fixed_point(case.tokenizer, moved)
            doing = f"shift by {steps}, then by {-steps}, of {short(content)}"
            back = shift(moved, -steps)
            expect(back is not None, f"{doing} gave None the second time")
            _same(case.tokenizer.encode(back), ids, doing)


def check_shift_ids(case: Case) -> None:
    """Moving ids gives what moving their content and encoding it gives."""
    tokenizer: Any = case.tokenizer
    for ids in map(tokenizer.encode, case.contents):
        for steps in (0, *SHIFTS, 100):
            moved = tokenizer.shift(tokenizer.decode(ids), steps)
            got = tokenizer.shift_ids(ids, steps)
            doing = f"shift_ids({brief(ids)}, {steps})"
            expect((got is None) == (moved is None), f"{doing} gave {got!r}, but shift gave {short(moved)}")
            if got is not None:
                expect(got.dtype == np.int32, f"{doing} gave {_kind(got)}, expected int32 ids")
                _same(got, tokenizer.encode(moved), doing)


def check_shingles(case: Case) -> None:
    """Shingles are (N,) uint64, the same in every call, and the same for a content that is moved."""
    tokenizer: Any = case.tokenizer
    for content in case.contents:
        got = tokenizer.shingles(content)
        whose = f"shingles({short(content)})"
        whole = isinstance(got, np.ndarray) and got.ndim == 1 and got.dtype == np.uint64
        expect(whole, f"{whose} gave {_kind(got)}, expected (N,) uint64")
        _same(tokenizer.shingles(content), got, f"{whose} a second time")
        for steps in SHIFTS if hasattr(tokenizer, "shift") else ():
            moved = tokenizer.shift(content, steps)
            if moved is not None:
                _same(np.sort(tokenizer.shingles(moved)), np.sort(got), f"{whose}, moved by {steps},")


def check_read_part(case: Case) -> None:
    """The parts of a file, one after the other, hold the items of the whole file in their order."""
    tokenizer: Any = case.tokenizer
    with tempfile.TemporaryDirectory() as name:
        for index, content in enumerate(case.contents[:4]):
            path = tokenizer.write(content, Path(name) / f"{index}{tokenizer.suffixes[0]}")
            whole = _told(tokenizer, tokenizer.read(Path(path)))
            for parts in (1, 2, 5):
                split = [i for p in range(parts) for i in tokenizer.read_part(Path(path), p, parts)]
                same = _told(tokenizer, split) == whole
                expect(same, f"read_part in {parts} parts and read differ for {short(content)}")


def _told(tokenizer: Tokenizer, items: Iterable[Any]) -> list[Any]:
    return [(i.key, dict(i.metadata), tokenizer.encode(i.content).tolist()) for i in items]


def check_compose(case: Case) -> None:
    """Whatever is known about a document gives None or a content that encodes."""
    known = [dict(case.tokenizer.describe(content)) for content in case.contents]
    for metadata in ({}, *METADATA, *known):
        content = case.tokenizer.compose(metadata)  # type: ignore[attr-defined]
        if content is not None:
            fixed_point(case.tokenizer, content)


def check_size(case: Case) -> None:
    """The size is still what the grammar has."""
    size = case.tokenizer.size
    expect(size == case.tokenizer.grammar().size, f"size has become {size} while the tokenizer was used")
