"""Verbs on files that were generated: how was it made, make it again, make something else of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from multimodal_gpt import console, provenance
from multimodal_gpt.asking import parse_plugins
from multimodal_gpt.commands.options import Device, Force, Json, Plugin, print_json, stdout_for_result
from multimodal_gpt.errors import UserError
from multimodal_gpt.files import make_folder, write_bytes

Svg = Annotated[bool, typer.Option("--svg", help="the picture as SVG too")]
Sheet = Annotated[bool, typer.Option("--sheet", help="sheet music beside every MIDI file: .sheet.svg")]


def is_piece(name: str, recipes: Sequence[str]) -> bool:
    """Whether `show` was asked about a file, not about a recipe."""
    suffix = Path(name).suffix.lower()
    return (
        bool(suffix) and suffix not in (".yaml", ".yml") and name not in recipes and not Path(name).is_dir()
    )


def show_piece(path: Path, overrides: Sequence[str], as_json: bool) -> None:
    """Print how a file was made. Raises UserError where nothing tells."""
    if overrides:
        raise UserError(
            f"'{overrides[0]}' means nothing here", path, "KEY=VALUE changes a recipe, not a file"
        )
    told = provenance.read(path)
    if as_json:
        print_json({"told_by": told.told_by, **told.info})
    else:
        console.table(str(path), ["what", "how"], told.lines())


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="any file of a generated piece")],
    run: Annotated[
        Path | None, typer.Option(metavar="RUN", help="the run that made it; looked for in ./runs if absent")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="where to keep the files; only compared if absent")
    ] = None,
    plugin: Plugin = None,
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make a generated piece again from what its file tells, and compare byte for byte.

    Leaves with 1 where something differs.

    Example: mmgpt replay out/0001.mid --run runs/demo
    """
    from multimodal_gpt import replaying

    trusted = parse_plugins(plugin or ())
    with stdout_for_result(as_json), console.progress(None, "replay") as bar:
        done = replaying.replay(
            file, run=run, out=out, device=device, plugins=trusted, force=force, progress=bar.advance
        )
    for warning in done.warnings:
        console.warn(warning)
    if as_json:
        print_json(replaying.plain(done))
    else:
        rows = [*done.compared.items(), *((name, "nothing to compare with") for name in done.missing)]
        console.table("", ["file", "made again"], rows)
    if not done.identical:
        raise typer.Exit(1)


def render(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="MIDI files")],
    sheet: Sheet = False,
    musicxml: Annotated[bool, typer.Option("--musicxml", help="for notation programs: .musicxml")] = False,
    wav: Annotated[bool, typer.Option("--wav", help="sound: .wav")] = False,
    soundfont: Annotated[
        Path | None, typer.Option(metavar="FILE", help="instruments (.sf2) to play it with")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="beside each file if absent")] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Turn MIDI files into sheet music or sound.

    Example: mmgpt render out/0001.mid --sheet --wav
    """
    wanted = {".sheet.svg": sheet, ".musicxml": musicxml, ".wav": wav or soundfont is not None}
    suffixes = [suffix for suffix, asked in wanted.items() if asked]
    if not suffixes:
        raise UserError("nothing is asked for", fix="add --sheet, --musicxml or --wav")
    made = render_files(files, suffixes, soundfont=soundfont, out=out, force=force)
    if as_json:
        print_json([{"file": path, "made_with": how} for path, how in made])
    else:
        console.table("", ["file", "made with"], made)


def render_files(
    files: Sequence[Path],
    suffixes: Sequence[str],
    *,
    soundfont: Path | None = None,
    out: Path | None = None,
    force: bool = False,
) -> list[tuple[Path, str]]:
    """Make the files with these suffixes; gives their paths and what made them.

    Raises UserError, before anything is made, where one is there already and `force` is not set.
    """
    from multimodal_gpt.rendering import score, sheet

    if ".sheet.svg" in suffixes:
        sheet.check()
    plans = [(file, s, (out or file.parent) / (file.stem + s)) for file in files for s in suffixes]
    for file in files:
        score.check_kind(file)
    targets = [target for _, _, target in plans]
    if double := next((target for target in targets if targets.count(target) > 1), None):
        raise UserError("two files would be written there", double, "render them into two folders")
    if not force and (there := next(filter(Path.exists, targets), None)):
        raise UserError("the file is there already", there, "add --force, or another --out")
    if out is not None:
        make_folder(out)
    makers = _makers(soundfont)
    made = []
    for file, suffix, target in plans:
        maker, how = makers[suffix]
        for number, data in enumerate(maker(file), 1):
            page = target if number == 1 else target.with_name(f"{file.stem}.sheet-{number}.svg")
            made.append((write_bytes(page, data), how))
    return made


def _makers(soundfont: Path | None) -> dict[str, tuple[Callable[[Path], list[bytes]], str]]:
    """Suffix -> what makes the files' bytes, and its name."""
    from multimodal_gpt.rendering import audio, score, sheet
    from multimodal_gpt.rendering.musicxml import to_musicxml

    if soundfont is None:
        sound = ((lambda file: [audio.synthesise(file)]), "built-in sines (--soundfont FILE for instruments)")
    else:
        sound = ((lambda file: [audio.play(file, soundfont)]), f"soundfont {soundfont.name}")
    return {
        ".sheet.svg": ((lambda file: [page.encode() for page in sheet.engrave(score.read(file))]), "verovio"),
        ".musicxml": ((lambda file: [to_musicxml(score.read(file)).encode()]), "multimodal_gpt"),
        ".wav": sound,
    }


def check_sheets() -> None:
    """Raises UserError where no sheet music can be made."""
    from multimodal_gpt.rendering import sheet

    sheet.check()


def add_sheets(files: Sequence[Sequence[Path]], *, force: bool) -> list[list[Path]]:
    """Files by piece, with sheet music for every MIDI file among them."""
    from multimodal_gpt.rendering.score import SUFFIXES

    return [
        [*paths, *(made for made, _ in render_files(music, [".sheet.svg"], force=force))]
        for paths in files
        for music in [[path for path in paths if path.suffix in SUFFIXES]]
    ]
