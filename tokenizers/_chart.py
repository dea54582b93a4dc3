"""A chord chart in one line of text: "3/4: | G | D . G | x2"."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from multimodal_gpt.errors import UserError
from multimodal_gpt.tokenizers import _harmony
from multimodal_gpt.tokenizers._harmony import Symbol
from multimodal_gpt.tokenizers._music import TICKS, Meter, clean_meters, normalise_meter

_MOST_BARS = 2_000
_MOST_SHARES = 16
_TIMES = re.compile(r"(.*?)(?:\s+x(\d+))?\s*", re.DOTALL)
_METER = re.compile(r"(\d+)/(\d+):?")


@dataclass(frozen=True)
class Chart:
    """changes: (tick, symbol), not merged; meters as in `Song`; end: ticks."""

    changes: tuple[tuple[int, Symbol], ...]
    meters: tuple[Meter, ...]
    end: int


def parse_chart(text: str) -> Chart:
    """Read a chart; `show_chart` is its reverse.

    With bar lines, the words of a bar share it equally; without, every word is a bar. "." or "/"
    prolongs what sounds by one share, "%" plays the bar before once more, "3/4:" is the meter from
    there on (4/4 at first), a last "x4" plays everything four times. Raises UserError.
    """
    where = f"chords '{text.strip()}'"
    found = _TIMES.fullmatch(text)
    body, times = (found[1], int(found[2] or 1)) if found else (text, 1)
    bars = list(_bars(body.replace(",", " "), where))
    if not 1 <= len(bars) * times <= _MOST_BARS:
        raise UserError(f"{len(bars) * times} bars", where, f"write 1 to {_MOST_BARS:,}")
    changes: list[tuple[int, Symbol]] = []
    meters: list[tuple[int, int, int]] = []
    tick = 0
    for (numerator, denominator), words in bars * times:
        length = numerator * 4 * TICKS // denominator
        meters.append((tick, numerator, denominator))
        for share, word in enumerate(words):
            if word not in (".", "/"):
                changes.append((tick + length * share // len(words), _read(word, where)))
        tick += length
    return Chart(tuple(changes), clean_meters(meters), tick)


def _bars(body: str, where: str) -> Iterator[tuple[tuple[int, int], list[str]]]:
    """(meter, words) of each bar."""
    meter = (4, 4)
    before: list[str] = []
    for part in body.split("|") if "|" in body else body.split():
        words: list[str] = []
        for word in part.split():
            written = _METER.fullmatch(word)
            if written:
                meter = _meter(int(written[1]), int(written[2]), where)
            else:
                words.append(word)
        if words == ["%"] and before:
            words = before
        if words:
            yield meter, words
            before = words


def _meter(numerator: int, denominator: int, where: str) -> tuple[int, int]:
    usable = normalise_meter(numerator, denominator)
    if numerator * usable[1] != denominator * usable[0]:
        raise UserError(
            f"'{numerator}/{denominator}' is no usable meter", where, "for example 3/4, 4/4 or 6/8"
        )
    return usable


def _read(word: str, where: str) -> Symbol:
    try:
        return _harmony.parse_symbol(word)
    except UserError as error:
        raise error.within(where) from None


def show_chart(bars: Sequence[tuple[tuple[int, int], Mapping[int, Symbol]]], positions: int) -> str:
    """A chart of bars: meter, and position -> symbol in growing order, with `positions` per beat.

    The reverse of `parse_chart` where at most 16 equal shares make a bar; of finer changes only the
    order is shown.
    """
    words: list[str] = []
    before = (4, 4)
    for meter, slot in bars:
        sign = [f"{meter[0]}/{meter[1]}:"] if meter != before else []
        words += ["|", *sign] if words else [*sign, "|"]
        words += _shares(slot, meter[0] * positions)
        before = meter
    return " ".join([*words, "|"])


def _shares(slot: Mapping[int, Symbol], length: int) -> list[str]:
    names = {place: _harmony.name(symbol) for place, symbol in slot.items()}
    for count in range(1, _MOST_SHARES + 1):
        if length % count == 0 and all(place % (length // count) == 0 for place in names):
            return [names.get(share * length // count, ".") for share in range(count)]
    return list(names.values())
