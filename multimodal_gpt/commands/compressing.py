"""Verbs that compress files with a trained run, and bring them back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multimodal_gpt import console
from multimodal_gpt.asking import check_run, parse_plugins
from multimodal_gpt.commands.options import Force, Json, Plugin, RunFolder, print_json, stdout_for_result
from multimodal_gpt.errors import UserError
from multimodal_gpt.files import write_bytes

if TYPE_CHECKING:
    from multimodal_gpt.compression import Compressed, Restored

SUFFIX = ".mgz"
Cpu = Annotated[str, typer.Option(help="auto, cpu or gpu; the same on both ways")]


def compress(
    run: RunFolder,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="file to compress")],
    out: Annotated[Path | None, typer.Option(metavar="FILE.mgz", help="FILE.mgz beside it if absent")] = None,
    modality: Annotated[
        str | None, typer.Option(help="what to take of it, as a or a,b; all that read such a file if absent")
    ] = None,
    verify: Annotated[bool, typer.Option(help="decompress it at once and compare")] = True,
    plugin: Plugin = None,
    device: Cpu = "cpu",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Compress a file with what a run has learnt: the better it predicts, the smaller the file.

    Example: mmgpt compress runs/demo tune.mid
    """
    trusted = parse_plugins(plugin or ())
    target = out or file.with_name(file.name + SUFFIX)
    _check_free(target, force)
    check_run(run)
    names = tuple(name.strip() for name in modality.split(",")) if modality else ()
    from multimodal_gpt.compression import archive, arithmetic, coding, files
    from multimodal_gpt.generation import session

    arithmetic.check()
    with stdout_for_result(as_json):
        opened = session.load(run, device=device, plugins=trusted)
        contents = files.read(opened, file, names)
        total = (1 + verify) * coding.tokens_of(opened, contents.segments)
        with console.progress(total, "compress") as bar:
            made = archive.compress(opened, contents, verify=verify, progress=bar.advance)
        write_bytes(target, made.data)
    if as_json:
        print_json({"file": target, **_plain(made)})
    else:
        _print(target, made)


def decompress(
    run: RunFolder,
    file: Annotated[Path, typer.Argument(metavar="FILE.mgz", help="what mmgpt compress wrote")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="named after FILE.mgz, beside it, if absent")
    ] = None,
    plugin: Plugin = None,
    device: Cpu = "cpu",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Bring a file back that `mmgpt compress` made smaller, with the run that did it.

    Example: mmgpt decompress runs/demo tune.mid.mgz --out again.mid
    """
    trusted = parse_plugins(plugin or ())
    check_run(run)
    try:
        data = file.read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"can't be read: {getattr(error, 'strerror', error)}", file) from error
    from multimodal_gpt.compression import archive, container
    from multimodal_gpt.generation import session

    try:
        header, _ = container.unpack(data)
        target = out or _named(file, header.suffix)
        _check_free(target, force)
        with stdout_for_result(as_json):
            opened = session.load(run, device=device, plugins=trusted)
            with console.progress(header.tokens, "decompress") as bar:
                found = archive.decompress(opened, data, progress=bar.advance)
    except UserError as error:
        raise error if error.where else error.within(file) from error
    write_bytes(target, found.data)
    if as_json:
        print_json({"file": target, "bytes": len(found.data), "exact": found.exact, "order": header.order})
    else:
        console.say(f"{target}: {len(found.data):,} bytes, {_what(found)}")


def _what(found: Restored) -> str:
    return "those that went in" if found.exact else f"as decoded: {found.header.order}"


def _named(file: Path, suffix: str) -> Path:
    """The file to write: without .mgz, with the suffix that its contents need."""
    plain = file.with_suffix("") if file.suffix.lower() == SUFFIX else file.with_name(f"{file.name}.out")
    return plain if plain.suffix.lower() == suffix.lower() else plain.with_name(plain.stem + suffix)


def _check_free(path: Path, force: bool) -> None:
    if path.is_dir():
        raise UserError("is a folder", path, "name a file with --out")
    if path.exists() and not force:
        raise UserError("the file is there already", path, "name another with --out, or add --force")


def _plain(made: Compressed) -> dict[str, Any]:
    segments = made.contents.segments
    return {
        "kind": made.header.kind.name.lower(),
        "why": made.contents.why,
        "bytes_in": len(made.contents.data),
        "bytes_out": len(made.data),
        "payload": made.payload,
        "order": made.header.order,
        "bits": dict(made.bits),
        "units": {name: segments[name].units for name in made.bits},
    }


def _print(target: Path, made: Compressed) -> None:
    before, after = len(made.contents.data), len(made.data)
    console.say(f"{target}: {before:,} bytes -> {after:,}, {after - made.payload} of them the header")
    if made.contents.why:
        console.say(f"stored, the network had no part in it: {made.contents.why}")
    for name, segment in made.contents.segments.items() if made.bits else ():
        console.say(
            f"{name}: {made.bits[name]:.1f} bits for {segment.units:,}, "
            f"{made.bits[name] / max(segment.units, 1):.2f} each"
        )
    if not made.contents.why and not made.header.size:
        console.say("what comes back: these as they were read; what they do not hold is left out")
