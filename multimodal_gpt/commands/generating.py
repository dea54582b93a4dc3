"""Verbs that ask a trained run: generate, continue, fill, vary."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from multimodal_gpt import console
from multimodal_gpt.asking import (
    check_free,
    check_modalities,
    parse_bars,
    parse_plugins,
    parse_temperature,
    split_given,
    split_wishes,
)
from multimodal_gpt.commands.files import Sheet, Svg, add_sheets, check_sheets
from multimodal_gpt.commands.options import (
    Device,
    Force,
    Json,
    Plugin,
    RunFolder,
    print_json,
    stdout_for_result,
)
from multimodal_gpt.errors import UserError

if TYPE_CHECKING:
    from multimodal_gpt.generation.drafting import Progress
    from multimodal_gpt.generation.output import Piece
    from multimodal_gpt.generation.streaming import Streaming

Number = Annotated[int, typer.Option("-n", "--number", min=1, help="how many pieces")]
BestOf = Annotated[int, typer.Option(min=1, help="attempts at each piece; the best is kept")]
BestBy = Annotated[str, typer.Option(help="likelihood, or agreement: what most attempts have in common")]
Seed = Annotated[int, typer.Option(min=0, help="the same seed gives the same files")]
Out = Annotated[Path, typer.Option(help="folder for the files")]
Heat = Annotated[str, typer.Option(help="one number, or one per modality: text=0.7,melody=1.0")]
TopK = Annotated[int | None, typer.Option(min=1, help="sample among the k likeliest")]
TopP = Annotated[float | None, typer.Option(min=0, max=1, help="sample within this probability")]
MinP = Annotated[float | None, typer.Option(min=0, max=1, help="least share of the likeliest")]
Guidance = Annotated[
    float | None,
    typer.Option(min=0, help="follow what is given more than by itself: 1.5; twice the time"),
]
Penalty = Annotated[
    float | None,
    typer.Option(min=0, help="what was just made is less likely to come again: 1.1"),
]
NoRepeat = Annotated[
    int | None, typer.Option(min=1, help="no so many ids in a row come twice, if others may")
]
MaxTokens = Annotated[
    int | None, typer.Option(min=1, help="longest answer per modality; without --bars the context is")
]
Live = Annotated[bool, typer.Option("--stream", help="show what is made while it is made; one piece")]
Which = Annotated[str | None, typer.Option(help="which of the given ones; those that have bars if absent")]


class GenerateCommand(TyperCommand):
    """Takes `--NAME VALUE` for every modality of the run, whatever their names, and `--NAME.WISH VALUE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep what is given per modality in the context and parse the rest."""
        known = {option for p in self.params for option in (*p.opts, *p.secondary_opts)} | {"--help"}
        rest, ctx.obj = split_given(args, known)
        return super().parse_args(ctx, rest)


def _shared(
    ctx: typer.Context,
    run: RunFolder,
    number: Number = 1,
    best_of: BestOf = 1,
    best_by: BestBy = "likelihood",
    seed: Seed = 0,
    out: Out = Path("out"),
    temperature: Heat = "0.9",
    top_k: TopK = None,
    top_p: TopP = 0.95,
    min_p: MinP = None,
    guidance: Guidance = None,
    repetition_penalty: Penalty = None,
    no_repeat: NoRepeat = None,
    max_tokens: MaxTokens = None,
    stream: Live = False,
    plugin: Plugin = None,
    svg: Svg = False,
    sheet: Sheet = False,
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """What all verbs here take; their own options come after the run."""


HOW = (
    *("best_of", "best_by", "seed", "top_k", "top_p", "min_p"),
    *("guidance", "repetition_penalty", "no_repeat", "max_tokens"),
)
"""Those of them that a run takes under the same names."""


def _asks(verb: str) -> Callable[[Callable[..., dict[str, Any]]], Callable[..., None]]:
    """Make a function that gives what is special to a question the command that asks it of a run.

    `verb`: the method of `generation.session.Run`.
    """

    def decorated(own: Callable[..., dict[str, Any]]) -> Callable[..., None]:
        special = inspect.signature(own, eval_str=True).parameters
        ctx, run, *shared = inspect.signature(_shared, eval_str=True).parameters.values()

        @wraps(own)
        def command(ctx: typer.Context, run: Path, **options: Any) -> None:
            asked = own(**{name: options.pop(name) for name in special})
            _ask(verb, ctx, run, asked, options)

        signature = inspect.Signature([ctx, run, *special.values(), *shared])
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        return command

    return decorated


@_asks("generate")
def generate(
    to: Annotated[str, typer.Option(help="modalities to generate, in order: melody,chords")],
    bars: Annotated[int | None, typer.Option(min=1, help="make exactly so many, however long")] = None,
) -> dict[str, Any]:
    """Ask a trained run: some modalities given, others wanted.

    Give any modality of the run as --NAME VALUE: --text "a waltz", --chords "Am F C G", --melody tune.mid.
    Ask more of what is made as --NAME.WISH VALUE: --melody.key "D major" --melody.rhythm tune.mid; there are
    key, meter, range, ending, rhythm and pitches for a melody, key, meter, ending and rhythm for chords.

    Without --bars a piece ends where the model likes, at the latest where the context or --max-tokens does.
    With --bars, or given what sets their number, it may be longer than the context: it is made in windows.

    Example: mmgpt generate runs/demo --text "a jig in D major" --to melody,chords -n 4 --out out
    """
    return {"to": to, "bars": bars}


@_asks("extend")
def extend(
    bars: Annotated[int | None, typer.Option(min=1, help="how many; as the model likes if absent")] = None,
    to: Which = None,
) -> dict[str, Any]:
    """Continue what is given by some bars. Options as for generate.

    Example: mmgpt continue runs/demo --melody tune.mid --chords tune.mid --bars 8
    """
    return {"to": to, "bars": bars}


@_asks("fill")
def fill(
    bars: Annotated[str, typer.Option(help="first-last, counted from 1: 5-8")],
    to: Which = None,
) -> dict[str, Any]:
    """Make some bars of what is given anew; all others stay. Options as for generate.

    Example: mmgpt fill runs/demo --melody tune.mid --chords tune.mid --to melody --bars 5-8
    """
    return {"to": to, "bars": parse_bars(bars)}


@_asks("vary")
def vary(
    share: Annotated[float, typer.Option(min=0, max=1, help="of the notes get a new pitch")] = 0.3,
    to: Which = None,
) -> dict[str, Any]:
    """Give a share of the notes new pitches; the rhythm and all others stay. Options as for generate.

    Example: mmgpt vary runs/demo --melody tune.mid --chords tune.mid --share 0.5
    """
    return {"to": to, "share": share}


def _ask(verb: str, ctx: typer.Context, run: Path, asked: dict[str, Any], options: Mapping[str, Any]) -> None:
    """Check all that can be checked before anything heavy is loaded; then make, write and tell."""
    given, wishes = split_wishes(ctx.obj)
    trusted = parse_plugins(options["plugin"] or ())
    check_modalities(run, {**given, **dict.fromkeys(wishes, "")}, asked["to"])
    if verb != "generate" and not given:
        raise UserError(f"nothing is given to {ctx.info_name}", fix="for example --melody tune.mid")
    number, out, force = options["number"], options["out"], options["force"]
    check_free(out, number, force=force)
    if options["stream"] and (number > 1 or options["best_of"] > 1):
        raise UserError("one piece at a time can be watched", "--stream", "leave out --number and --best-of")
    if options["sheet"]:
        check_sheets()
    asked |= {"n": number, "temperature": parse_temperature(options["temperature"]), "wishes": wishes}
    asked |= {name: options[name] for name in HOW}
    from multimodal_gpt.generation import session
    from multimodal_gpt.generation.output import write_all

    with stdout_for_result(options["as_json"]), _progress(asked, ctx, options["stream"]) as report:
        opened = session.load(run, device=options["device"], plugins=trusted)
        if report is None:
            pieces = [_watched(opened.stream(verb, **asked, **given))]
        else:
            pieces = getattr(opened, verb)(**asked, **given, progress=report)
        files = write_all(pieces, out, force=force, svg=options["svg"])
        files = add_sheets(files, force=force) if options["sheet"] else files
    for warning in dict.fromkeys(w for piece in pieces for w in piece.info["warnings"]):
        console.warn(warning)
    if options["as_json"]:
        print_json([{"files": paths, **piece.info} for piece, paths in zip(pieces, files, strict=True)])
    else:
        rows = [_piece_row(piece, paths) for piece, paths in zip(pieces, files, strict=True)]
        console.table("", ["piece", "made", "files"], rows)


@contextmanager
def _progress(asked: Mapping[str, Any], ctx: typer.Context, stream: bool) -> Iterator[Progress | None]:
    """A bar that counts finished parts; none where they are shown while they are made."""
    if stream:
        yield None
        return
    with console.progress(_parts(asked), str(ctx.info_name)) as bar:
        yield bar.advance


def _watched(chunks: Streaming) -> Piece:
    """Show chunks as they come: a line each, or words in one line that grows; gives the finished piece."""
    for name, stretch in groupby(chunks, lambda chunk: chunk.modality):
        label = f"{name}: "
        for chunk in stretch:
            if chunk.begin is None and isinstance(chunk.content, str):
                console.say(label + _printable(chunk.content), end="")
                label = ""
            else:
                console.say(f"{name}: {chunk.shown}")
        if not label:
            console.say("")
    return chunks.piece


def _printable(words: str) -> str:
    """Without what a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in words)


def _parts(asked: Mapping[str, Any]) -> int:
    """How many parts will be made, as far as the command line tells."""
    return int(asked["n"]) * int(asked["best_of"]) * (asked["to"].count(",") + 1 if asked["to"] else 1)


def _piece_row(piece: Any, paths: Sequence[Path]) -> tuple[str, str, str]:
    tokenizer = piece.vocabulary.tokenizer
    made = [f"{name}: {piece.info['units'][name]} {tokenizer(name).unit}s" for name in piece.made]
    kinds = " ".join("".join(path.suffixes) for path in paths[1:])
    return str(piece.info["row"] + 1), ", ".join(made), f"{paths[0]} {kinds}".rstrip()
