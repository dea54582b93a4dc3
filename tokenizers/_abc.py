"""Books of tunes in ABC notation -> songs, with chord symbols and bar lines as they are written.

The notes come from symusic's bundled abc2midi, which plays repeats, endings and parts. It turns
chord symbols into notes and forgets bar lines, so these travel through it as inline control changes
and are read back afterwards: control SYMBOL + k // 128 of value k % 128 is the k-th chord symbol,
BAR a bar line, TIE a note tied to the next one (a control inside a tied note would come out at the
note's beginning, so ties are undone and done again). A control after a rest would come out at the
rest's beginning, too: rests are played as a note that nobody can hear.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from multimodal_gpt.errors import UserError
from multimodal_gpt.tokenizers import _midi
from multimodal_gpt.tokenizers._bars import on_grid
from multimodal_gpt.tokenizers._harmony import parse_symbol
from multimodal_gpt.tokenizers._music import Song, Track, parse_key, parse_mode, sort_notes

SUFFIXES = (".abc",)
MAX_CHARACTERS = 100_000
"""Longest tune; abc2midi aborts at about three times as much."""
_BAR, _TIE, _SYMBOL = 3, 9, 20  # numbers of control changes; 3 and 9 mean nothing in MIDI
_REST = "C,,,,"  # pitch 12, or 11 or 13 by the key


@dataclass(frozen=True)
class Tune:
    """One tune as written: header fields by letter, and the lines of its body, fields among them."""

    fields: Mapping[str, Sequence[str]]
    body: tuple[str, ...]

    def field(self, letter: str) -> str:
        return next((v for v in self.fields.get(letter, ()) if v), "")


def split_book(path: Path) -> Iterator[tuple[str, Tune]]:
    """(key, tune) of each tune; the key is its X: number, "12.2" for the second one of that number.

    Raises UserError where the file can't be read at all.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(error.strerror or "can't be opened", path) from error
    seen: dict[str, int] = {}
    for tune in _split(_decode(data)):
        number = tune.field("X") or "0"
        seen[number] = seen.get(number, 0) + 1
        yield (number if seen[number] == 1 else f"{number}.{seen[number]}"), tune


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")  # what books from before Unicode are written in; never fails


def _split(text: str) -> Iterator[Tune]:
    """Tunes of a book: each from its X: line to the next blank line after its K: line."""
    common: dict[str, list[str]] = {}  # fields above the first tune hold for all
    source, fields, inside = "", common, False
    body: list[str] = []
    for written in text.splitlines():
        if named := re.match(r"%%source\s+(.+)", written):
            source = named[1].strip()
        blank = not written.strip()
        line = re.sub(r"(?<!\\)%.*", "", written).rstrip()
        if line.startswith("X:"):
            if inside:
                yield Tune(fields, tuple(body))
            fields = {k: v for k, v in common.items() if k not in "XTKP"} | {"%": [source]}
            body, inside = [], True
        elif inside and blank and "K" in fields:
            yield Tune(fields, tuple(body))
            inside, source = False, ""
        letter = line[:1] if re.match(r"[A-Za-z]:", line) and not line.startswith("|:") else ""
        if letter and (inside or fields is common) and not (inside and "K" in fields):
            fields.setdefault(letter, []).append(line[2:].strip())
        elif inside and line and "K" in fields:
            body.append(line)
    if inside:
        yield Tune(fields, tuple(body))


def read_tune(tune: Tune, key: str = "") -> Song:
    """Song of one tune. Lost: all voices but the first, grace notes, ornaments, dynamics and words.

    Raises UserError where it holds no music that can be played.
    """
    if "K" not in tune.fields:
        raise UserError("has no K: line, so its music does not begin")
    if sum(map(len, tune.body)) > MAX_CHARACTERS:
        raise UserError(f"is longer than {MAX_CHARACTERS:,} characters")
    text, symbols = playable(tune)
    score = _play(text)
    _midi.check_limits(score)
    played = _midi.song_of_score(score, key)
    notes, chords, bars = _read_back(score, symbols)
    notes, chords, meters = on_grid(notes, chords, bars, played.meters)
    if len(chords):
        chords = chords[np.append(True, np.diff(chords[:, 0]) > 0)]  # of alternatives the first
    metadata = describe(tune)
    return Song(
        key,
        (Track("Melody", 0, False, notes),) if len(notes) else (),
        meters,
        played.tempo,
        parse_key(tune.field("K")),
        tuple((tick, symbols[k]) for tick, k in chords.tolist()),
        metadata,
    )


# ------------------------------------------------------------------------- text with controls

_TOKEN = re.compile(
    r"""(?P<quoted>"[^"]*"?)
    |(?P<grace>\{[^}]*\}?)
    |(?P<field>\[[A-Za-z]:[^\]]*\]?)
    |(?P<mark>![^!|]*!|\+[a-z.]+\+|[~HJL-Wh-wy.`$\\](?=[^0-9]|$))
    |(?P<bar>(?:\|\]|\[\||:*\|+\]?:*|::+)(?:\s*\[?[1-9][0-9,.-]*)?|\[[1-9][0-9,.-]*)
    |(?P<chord>\[[^\]:|]*\][0-9/]*)
    |(?P<note>(?:\^\^|__|\^|_|=)?[A-Ga-g][,']*[0-9/]*)
    |(?P<rest>[zx](?=[^A-Za-z]|$|[A-Ga-gzx]))
    |(?P<tie>-)
    |(?P<overlay>&[^|]*)""",
    re.VERBOSE,
)
_SYMBOL_TEXT = re.compile(
    r"\(?(?:N\.?C\.?|[A-G][#b♯♭+]?(?:maj|min|dim|aug|sus|add|dom|alt|[ado](?![A-Za-z])|[mMø°Δ+^-]|[#b♯♭()/,0-9])*"
    r"(?:/[A-Ga-g][#b♯♭+]?)?)\)?"
)


def playable(tune: Tune) -> tuple[str, list[str]]:
    """The tune as abc2midi shall play it, and its distinct chord symbols in the controls' order."""
    symbols: dict[str, int] = {}
    parts = tune.field("P")
    labels = {line[2:].strip() for line in tune.body if line.startswith("P:")}
    keep = "MLKQ" + ("P" if set(re.findall("[A-Za-z]", parts)) <= labels and parts else "")
    head = [f"{k}:{tune.field(k)}" for k in "MLPQ" if k in keep and tune.field(k)]
    if not tune.field("M"):
        head.append("M:4/4")
    # Without the second line abc2midi rolls a chord's notes.
    lines = ["X:1", "T:t", *head, f"K:{tune.field('K')}", "%%MIDI chordattack 0"]
    for line in _first_voice(tune):
        if re.match(r"[A-Za-z]:", line):
            lines += [line] if line[0] in keep else []
        else:
            lines.append(_controlled(line, symbols))
    return "\n".join(lines) + "\n", list(symbols)


def _first_voice(tune: Tune) -> Iterator[str]:
    first, current = "", ""
    for line in tune.body:
        switch = re.match(r"\[?V:\s*(\S+?)(?:\]|\s|$)", line)
        current = switch[1] if switch else current
        first = first or current
        music = line if not switch else line[switch.end() :] if line.startswith("[") else ""
        if music and current == first:
            yield music


def _controlled(line: str, symbols: dict[str, int]) -> str:
    """A line of music with controls for chord symbols, bar lines and ties, without ornaments."""
    found = list(_TOKEN.finditer(line))
    out, end = [], 0
    for i, token in enumerate(found):
        out.append(line[end : token.start()])
        end = token.end()
        kind, text = token.lastgroup, token.group()
        if kind == "quoted":
            out.append(_symbol(text.strip('"').strip(), symbols))
        elif kind == "bar":
            mark = _control(_BAR, 2 if re.search(r"[:\]\[1-9]|\|\|", text) else 1)
            out.append(mark + text + mark)  # a player who jumps back does not pass what follows
        elif kind == "tie":
            out.append(_control(_TIE, 1) if _is_tie(found, i) else "")
        elif kind == "rest":
            out.append(_REST)
        elif kind in ("note", "chord") or (kind == "field" and text[1] in "MLKQ"):
            out.append(text)
    return "".join(out) + line[end:].replace("-", "")


def _control(number: int, value: int) -> str:
    return f"[I:MIDI control {number} {value}]"


def _symbol(text: str, symbols: dict[str, int]) -> str:
    if not _is_symbol(text):
        return ""  # a fingering, an annotation ("^slowly"), a part's name
    k = symbols.setdefault(text, len(symbols))
    return _control(_SYMBOL + k // 128, k % 128)


def _is_symbol(text: str) -> bool:
    """Whether it is a chord symbol, or so much like one that it shall be counted as an unreadable one."""
    if _SYMBOL_TEXT.fullmatch(text):
        return True
    try:
        return parse_symbol(text).root is not None
    except UserError:
        return False


def _is_tie(found: Sequence[re.Match[str]], place: int) -> bool:
    """Whether the sign joins two notes of the same name; old books also slur with it."""
    sounding = [m for m in found[:place] if m.lastgroup in ("note", "chord")]
    after = [m for m in found[place + 1 :] if m.lastgroup in ("note", "chord")]
    if not after:
        return True  # the next note is on the next line
    name = r"[A-Ga-g][,']*"
    return bool(
        sounding and set(re.findall(name, sounding[-1].group())) & set(re.findall(name, after[0].group()))
    )


# ---------------------------------------------------------------------------------- playing

_SILENCE = Lock()


@contextmanager
def _silent() -> Iterator[None]:
    """Send the process's output to nowhere: abc2midi's warnings come from a program below Python."""
    with _SILENCE:
        sys.stdout.flush()
        sys.stderr.flush()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        kept = [(fd, os.dup(fd)) for fd in (1, 2)]
        try:
            for fd, _ in kept:
                os.dup2(nowhere, fd)
            yield
        finally:
            for fd, copy in kept:
                os.dup2(copy, fd)
                os.close(copy)
            os.close(nowhere)


def _play(text: str) -> Any:
    from symusic import Score

    try:
        with _silent():
            return Score.from_abc(text)
    except (RuntimeError, ValueError, OverflowError) as error:
        raise UserError("is not music that abc2midi can play") from error


def _read_back(score: Any, symbols: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, 3) notes, (C, 2) tick and index of symbols, (B, 2) tick and strength of bar lines."""
    division = score.ticks_per_quarter
    tracks = [t for t in score.tracks if len(t.notes)]
    raw = [np.stack([t.notes.numpy()[k] for k in ("time", "duration", "pitch")], 1) for t in tracks]
    written = np.concatenate(raw or [np.zeros((0, 3))]).astype(np.int64)
    # abc2midi begins each note a tick late and ends it in time.
    heard = written[written[:, 2] > 13] + np.array([-1, 1, 0])
    played = [(c.time, c.number, c.value) for t in score.tracks for c in t.controls]
    controls = sorted(played, key=lambda c: c[0])
    notes = _join(sort_notes(heard), [t for t, number, _ in controls if number == _TIE])
    bars = [(t, v) for t, number, v in controls if number == _BAR]
    top = _SYMBOL + (len(symbols) - 1) // 128
    chords = [(t, 128 * (n - _SYMBOL) + v) for t, n, v in controls if _SYMBOL <= n <= top]
    times = _midi.ticks(notes[:, :2], division)
    moved = np.column_stack([times[:, 0], np.maximum(1, times[:, 1]), notes[:, 2]])
    return moved, _scaled(chords, division), _scaled(bars, division)


def _scaled(events: Sequence[tuple[int, int]], division: int) -> np.ndarray:
    pairs = np.array(events, dtype=np.int64).reshape(-1, 2)
    return np.column_stack([_midi.ticks(pairs[:, 0], division), pairs[:, 1]])


def _join(notes: np.ndarray, ties: Sequence[int]) -> np.ndarray:
    """Notes with those joined that meet at a tie; the first one's accidental holds."""
    gone, rows = set(), notes.tolist()
    ending = {(onset + duration, pitch): i for i, (onset, duration, pitch) in enumerate(rows)}
    tied = set(ties)
    for i, (onset, duration, pitch) in enumerate(rows):
        for before in (pitch, pitch - 1, pitch + 1) if onset in tied else ():
            first = ending.get((onset, before))
            if first is not None and first != i:
                rows[first][1] += duration
                ending.pop((onset + duration, pitch), None)
                ending[rows[first][0] + rows[first][1], before] = first
                gone.add(i)
                break
    return np.array([r for i, r in enumerate(rows) if i not in gone], dtype=np.int64).reshape(-1, 3)


# ------------------------------------------------------------------------------ what it is

_TYPES = {"hpps": "hornpipe", "slip": "slip jig", "slipjig": "slip jig", "waltzes": "waltz"}
_KINDS = re.compile(
    r"\b((?:slip ?|single |double )?jig|(?:highland )?fling|(?:barn|long) dance|reel|hornpipe|waltz|"
    r"polka|march|strathspey|clog|schottische|minuet|gavotte|quickstep|air|walkaround|two-step)s?\W*$"
)


def describe(tune: Tune) -> dict[str, Any]:
    """Title, type, mode, composer, book and source of a tune, as far as its header tells."""
    title, form = split_title(tune.field("T"))
    named = _KINDS.search(title.lower())
    kind = tune.field("R") or form or tune.field("%") or (named[1] if named else "")
    known = {
        "title": title,
        "type": tune_type(kind),
        "mode": parse_mode(tune.field("K")),
        "composer": tune.field("C"),
        "book": tune.field("B").strip('"'),
        "source": tune.field("S"),
    }
    return {k: _accents(v) for k, v in known.items() if v}


def tune_type(written: str) -> str:
    """A tune's kind in the singular, as books and file names write it.

    Example:
        >>> tune_type("REEL"), tune_type("reelsa-c"), tune_type("slip"), tune_type("waltzes")
        ('reel', 'reel', 'slip jig', 'waltz')
    """
    kind = " ".join(written.lower().split()).strip(" .")
    kind = re.sub(r"^(reels|jigs)[a-z]-[a-z]$", r"\1", kind)
    if kind in _TYPES:
        return _TYPES[kind]
    return re.sub(r"(reel|jig|hornpipe|march|polka|strathspey|air|song)s$", r"\1", kind)


def split_title(written: str) -> tuple[str, str]:
    """Title and, where it ends with " -- REEL", type of a title line: articles in front, no shouting.

    Example:
        >>> split_title("BLACK-EYED LASSIE -- REEL., THE"), split_title("Kilkenny Jig, The")
        (('The Black-Eyed Lassie', 'reel'), ('The Kilkenny Jig', ''))
    """
    title, dashes, form = (part.strip() for part in written.partition(" -- "))
    form, comma, article = form.partition(",")
    if dashes and _KINDS.match(form.lower()):
        title += comma + article
    else:
        title, form = written.strip(), ""
    title = re.sub(r"^(.*?)\.?,\s*(the|a|an)$", r"\2 \1", title, flags=re.IGNORECASE)
    letters = [c for c in title if c.isalpha()]
    if 5 * sum(c.isupper() for c in letters) > 4 * len(letters) > 4:
        title = re.sub(r"[^\W\d_]+(?:'[^\W\d_]{1,2}\b)?", _capital, title)
    return title.strip(" .")[:1].upper() + title.strip(" .")[1:], form.strip(" .").lower()


def _capital(word: re.Match[str]) -> str:
    small = word.group().lower()
    inside = word.start() > 0 and small in ("a", "an", "the", "of", "to", "in", "on", "and", "or", "for")
    return small if inside else small.capitalize()


def _accents(text: str) -> str:
    r"""Accents as ABC writes them: \'e is é."""
    combining = {"'": "\u0301", "`": "\u0300", "^": "\u0302", '"': "\u0308", "~": "\u0303"}
    found = re.sub(r"\\(['`^\"~])([A-Za-z])", lambda m: m[2] + combining[m[1]], text)
    return unicodedata.normalize("NFC", " ".join(found.split()))
