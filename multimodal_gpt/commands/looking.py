"""Verbs that look into a trained model: what a modality tells it of another, which tokens it keeps close."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from multimodal_gpt import console
from multimodal_gpt.asking import check_modalities, check_run, parse_plugins
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


def lens(
    ctx: typer.Context,
    run: RunFolder,
    of: Annotated[str | None, typer.Option(help="modality to look at; the first given one if absent")] = None,
    through: Annotated[
        str | None, typer.Option(help="modality to look through; the last other one if absent")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="what to compare with; the given one, moved, if absent")
    ] = None,
    token: Annotated[
        int | None, typer.Option(min=1, help="number of the token whose attention is told")
    ] = None,
    at: Annotated[float | None, typer.Option(help="or its time, quarter notes")] = None,
    attention: Annotated[str, typer.Option(help="mean over blocks, or rollout")] = "mean",
    start: Annotated[float, typer.Option(min=0, help="look from here on, quarter notes")] = 0.0,
    stop: Annotated[float | None, typer.Option(help="and up to here")] = None,
    out: Annotated[Path | None, typer.Option(help="picture to write: .png or .svg")] = None,
    plugin: Plugin = None,
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """See how one modality changes what the model expects of another, token by token.

    Give two or more modalities of the run as --NAME VALUE, first the one to look at.

    Example: mmgpt lens runs/demo --melody "F#4 A4 G4 B4" --chords "D . G ." --out lens.png
    """
    given: Mapping[str, Any] = ctx.obj
    trusted = parse_plugins(plugin or ())
    if given:
        check_modalities(run, given, next(iter(given)))
    _check_picture(out, force)
    from multimodal_gpt.generation import session
    from multimodal_gpt.looking.lens import lens as look

    wish: dict[str, Any] = {"of": of, "through": through, "against": against, "token": token, "at": at}
    wish |= {"way": attention, "start": start, "stop": stop}
    with stdout_for_result(as_json):
        opened = session.load(run, device=device, plugins=trusted)
        found = look(opened, **wish, **given)
        if out is not None:
            from multimodal_gpt.looking.lens_picture import draw

            _write_picture(out, draw(found, _kind(out)))
    for warning in found.warnings:
        console.warn(warning)
    if as_json:
        print_json({"picture": out, **found.plain()})
    else:
        _print_lens(found, out)


def _print_lens(found: Any, out: Path | None) -> None:
    other = not math.isnan(found.total.other)
    columns = ["", *(["time"] if found.marks[0].time is not None else []), found.target]
    columns += [f"with {found.context}", *(["with other"] if other else []), "without", "saved"]
    rows = []
    for number, mark in enumerate(found.marks, 1):
        time = [] if mark.time is None else [f"{mark.time:g}"]
        bits = [mark.known, *([mark.other] if other else []), mark.none]
        rows.append([str(number), *time, mark.word, *(f"{b:.2f}" for b in bits), f"{mark.saved:+.2f}"])
    console.table(f"bits of each {found.target} token, laid out as {found.layout}", columns, rows)
    total, many = found.total, f"{found.units} {found.unit}{'' if found.units == 1 else 's'}"
    saved = total.none - total.known
    with_other = f", {total.other:.1f} with other {found.context} ({found.against})" if other else ""
    console.say(
        f"all of it, {many}: {total.known:.1f} bits with the given {found.context}, {total.none:.1f} without"
        f"{with_other}; {saved:+.1f} saved, {saved / found.units:+.2f} per {found.unit}"
    )
    mark = found.marks[found.focus]
    when = "" if mark.time is None else f" at {mark.time:g}"
    title = (
        f"where the model looked before {mark.word}{when} (token {found.focus + 1}; attention, {found.way})"
    )
    looks = [
        (look.modality or "-", "" if look.time is None else f"{look.time:g}", look.word, f"{look.share:.1%}")
        for look in found.top()
    ]
    console.table(title, ["modality", "time", "token", "share"], looks)
    if out is not None:
        console.say(str(out))


def neighbours(
    run: RunFolder,
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="as its modality shows it: G7, C4, jig")],
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="how many")] = 10,
    modality: Annotated[str | None, typer.Option(help="whose token it is, where several know it")] = None,
    among: Annotated[str | None, typer.Option(help="modality of the neighbours; any if absent")] = None,
    map_to: Annotated[
        Path | None, typer.Option("--map", help="map of the tokens like it: .png or .svg")
    ] = None,
    plugin: Plugin = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Show which tokens lie near a token in the embedding table.

    Example: mmgpt neighbours runs/demo G7 --modality chords --map roots.png
    """
    trusted = parse_plugins(plugin or ())
    _check_picture(map_to, force)
    check_run(run)
    from dataclasses import asdict

    from multimodal_gpt.generation import session
    from multimodal_gpt.looking.embedding_map import draw_map, embedding_map
    from multimodal_gpt.looking.neighbours import neighbours as look

    with stdout_for_result(as_json):
        opened = session.load(run, device="cpu", plugins=trusted)
        found = look(opened, token, n=number, modality=modality, among=among)
        if map_to is not None:
            _write_picture(map_to, draw_map(embedding_map(opened, token, modality), _kind(map_to)))
    if as_json:
        print_json({"picture": map_to, "meanings": [asdict(meaning) for meaning in found]})
        return
    for meaning in found:
        rows = [(near.word, near.modality, f"{near.similarity:.2f}") for near in meaning.nearest]
        console.table(f"near {meaning.word} of {meaning.modality}", ["token", "modality", "similarity"], rows)
    if found[0].unseen:
        console.say(f"left out: {found[0].unseen} ids that came too rarely in training, or never")
    if map_to is not None:
        console.say(f"{map_to}: a map of tokens of {found[0].modality}")


def _kind(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")


def _check_picture(path: Path | None, force: bool) -> None:
    """Raise UserError, before anything is computed, where a picture can't be written as asked."""
    if path is None:
        return
    if _kind(path) not in ("png", "svg"):
        raise UserError(f"a picture can't be written as '{path.suffix}'", path, "write .png or .svg")
    if path.exists() and not force:
        raise UserError("the file is there already", path, "name another, or add --force")


def _write_picture(path: Path, picture: bytes) -> None:
    from multimodal_gpt.files import write_bytes

    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, picture)
