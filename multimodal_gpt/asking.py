"""What a user asks of a trained run on the command line, checked before anything heavy is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from multimodal_gpt.errors import UserError, nearest
from multimodal_gpt.stream.vocabulary import FILE_NAME, read_manifest

OPTIONS = (
    "to",
    "bars",
    "number",
    "best-of",
    "best-by",
    "share",
    "seed",
    "out",
    "temperature",
    "top-k",
    "top-p",
    "min-p",
    "guidance",
    "repetition-penalty",
    "no-repeat",
    "max-tokens",
    "stream",
    "svg",
    "sheet",
    "plugin",
)
"""Names that a misspelt --NAME may have meant, besides the modalities of the run."""


def split_given(arguments: Sequence[str], known: set[str]) -> tuple[list[str], dict[str, str]]:
    """Take `--NAME VALUE` and `--NAME=VALUE` of unknown names out of a command line.

    Example:
        >>> split_given(["run", "--text", "a jig", "--to", "melody"], {"--to"})
        (['run', '--to', 'melody'], {'text': 'a jig'})
    """
    rest: list[str] = []
    given: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if not option.startswith("--") or option == "--" or option in known:
            rest.append(word)
            continue
        name = option[2:]
        value = value if equals else next(words, "")
        if not equals and (not value or value in known):
            raise UserError(f"{option} wants a value", fix=f'write {option} "..."')
        if name in given:
            raise UserError(f"{option} is given twice")
        given[name] = value
    return rest, given


def parse_temperature(text: str) -> float | dict[str, float]:
    """`1.0`, or one per modality: `text=0.7,melody=1.0`. Raises UserError.

    Example:
        >>> parse_temperature("text=0.7,melody=1")
        {'text': 0.7, 'melody': 1.0}
    """
    try:
        if "=" not in text:
            return float(text)
        pairs = (part.split("=") for part in text.split(","))
        return {name.strip(): float(value) for name, value in pairs}
    except ValueError:
        raise UserError(
            f"'{text}' is no temperature", "--temperature", "write 0.9 or text=0.7,melody=1"
        ) from None


def parse_plugins(items: Sequence[str]) -> dict[str, str]:
    """`["dna=./dna.py"]` -> `{"dna": "./dna.py"}`. Raises UserError."""
    return _pairs(items, "file", "--plugin", "write NAME=FILE.py")


def parse_specialists(items: Sequence[str]) -> dict[str, Path]:
    """`["dna=runs/dna"]` -> `{"dna": Path("runs/dna")}`. Raises UserError where it names no run folder."""
    runs = {n: Path(run) for n, run in _pairs(items, "run", "--specialist", "write NAME=RUN").items()}
    for run in runs.values():
        check_run(run)
    return runs


def _pairs(items: Sequence[str], what: str, option: str, fix: str) -> dict[str, str]:
    pairs = [item.partition("=") for item in items]
    for name, equals, path in pairs:
        if not (name and equals and path):
            raise UserError(f"'{name}{equals}{path}' names no {what}", option, fix)
    return {name: path for name, _, path in pairs}


def split_wishes(given: Mapping[str, str]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """What is given, and by modality what is wished, as `--NAME.WISH VALUE`.

    Example:
        >>> split_wishes({"text": "a jig", "melody.key": "D major"})
        ({'text': 'a jig'}, {'melody': {'key': 'D major'}})
    """
    wishes: dict[str, dict[str, str]] = {}
    for option, value in given.items():
        name, dot, wish = option.partition(".")
        if dot:
            wishes.setdefault(name, {})[wish] = value
    return {name: value for name, value in given.items() if "." not in name}, wishes


def parse_bars(text: str) -> tuple[int, int]:
    """`5-8` or `5` -> first and last. Raises UserError."""
    found = re.fullmatch(r"\s*(\d{1,6})(?:\s*-\s*(\d{1,6}))?\s*", text)
    if not found:
        raise UserError(f"'{text}' names no bars", "--bars", "write first-last: 5-8")
    return int(found[1]), int(found[2] or found[1])


def check_run(run: Path) -> None:
    """Raise UserError where there is no such folder."""
    if not run.is_dir():
        raise UserError("there is no such run folder", run, "train one first: mmgpt demo")


def check_modalities(run: Path, given: Mapping[str, str], to: str | None) -> None:
    """Raise UserError, with the nearest, on names that the run does not know."""
    check_run(run)
    known = [entry["name"] for entry in read_manifest(run / FILE_NAME)["content"]["modalities"]]
    for name in given:
        if name not in known:
            close = nearest(name, [*known, *OPTIONS])
            hint = nearest(name, known) if close.startswith("known") else close
            raise UserError(f"the run has no modality '{name}'", f"--{name}", hint)
    for name in [name.strip() for name in re.split("[,+]", to)] if to is not None else []:
        if name not in known:
            raise UserError(f"the run has no modality '{name}'", "--to", nearest(name, known))


def check_free(out: Path, number: int, *, force: bool) -> None:
    """Raise UserError where files of an earlier answer lie in the way of the new ones."""
    if out.exists() and not out.is_dir():
        raise UserError("is a file, not a folder", out, "name another folder with --out")
    stems = {f"{i + 1:04d}" for i in range(number)}
    taken = sorted(p.name for p in out.glob("*") if p.name.partition(".")[0] in stems) if out.is_dir() else []
    if taken and not force:
        more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        raise UserError(f"{taken[0]}{more} would be overwritten", out, "name another --out, or add --force")
