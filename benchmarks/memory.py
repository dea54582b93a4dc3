"""Peak memory of `prepare` against the number of files: tunes of equal length, all different.

    python benchmarks/memory.py [FILES ...] [--workers 1] [--shifts 2] [--folder FOLDER]

Prints one JSON line per number of files (1000, 5000 and 20000 where none is given): peaks in MB of the
process that prepares and of its largest worker, as `rss` (all resident memory: what the kernel calls VmHWM)
and `anonymous` (without pages of files, which the kernel can drop at any time; sampled every 10 ms), and the
seconds it took. Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

BARS = 16
SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10))
TICK_HEADER = b"MThd\0\0\0\6\0\1\0\2\0\x60"  # two tracks, 96 ticks per quarter note
PREPARE = """
import sys
from multimodal_gpt.data.prepare import prepare
from multimodal_gpt.recipe.load import load_recipe
report = prepare(load_recipe(sys.argv[1], sys.argv[2:]), progress=False)
assert report.kept == report.found, report.summary()
"""


def write_tunes(folder: Path, files: int) -> None:
    """Tunes of eighth notes over a triad per bar, with notes drawn anew for each."""
    folder.mkdir(parents=True)
    for number in range(files):
        (folder / f"tune{number:06d}.mid").write_bytes(tune(random.Random(number)))


def tune(rng: random.Random) -> bytes:
    key, scale = rng.randrange(12), rng.choice(SCALES)
    tones = [60 + key + 12 * octave + step for octave in (0, 1) for step in scale]
    notes, place = bytearray(), rng.randrange(len(tones))
    for _ in range(8 * BARS):
        place = min(max(place + rng.randint(-3, 3), 0), len(tones) - 1)
        notes += bytes((0, 0x90, tones[place], 90, 48, 0x80, tones[place], 0))
    chords = bytearray()
    for _ in range(BARS):
        root = rng.randrange(7)
        triad = [48 + key + scale[(root + k) % 7] for k in (0, 2, 4)]
        chords += b"".join(bytes((0, 0x91, tone, 60)) for tone in triad)
        chords += b"\x83\0" + b"\0".join(bytes((0x81, tone, 0)) for tone in triad)  # 384 ticks later
    return TICK_HEADER + track(b"melody", notes) + track(b"chords", chords)


def track(name: bytes, events: bytes) -> bytes:
    data = b"\0\xff\3" + bytes([len(name)]) + name + events + b"\0\xff\x2f\0"
    return b"MTrk" + len(data).to_bytes(4, "big") + data


def measured(command: list[str]) -> dict[str, object]:
    """Peaks of a process and of its largest child while it runs."""
    started = time.monotonic()
    peaks = {"process": {"rss": 0, "anonymous": 0}, "worker": {"rss": 0, "anonymous": 0}}
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            note(peaks["process"], process.pid)
            for child in children(process.pid):
                note(peaks["worker"], child)
            time.sleep(0.01)
    if process.returncode:
        raise SystemExit(process.returncode)
    seconds = round(time.monotonic() - started, 1)
    return {
        **{k: {n: round(v / 1024, 1) for n, v in p.items()} for k, p in peaks.items()},
        "seconds": seconds,
    }


def note(peak: dict[str, int], pid: int) -> None:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has ended
        return
    status = dict(line.split(":", 1) for line in text.splitlines())
    for name, key in (("rss", "VmHWM"), ("anonymous", "RssAnon")):
        peak[name] = max(peak[name], int(status.get(key, "0").split()[0]))


def children(pid: int) -> Iterator[int]:
    try:
        yield from map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    except OSError:
        return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="*", type=int, default=[1000, 5000, 20000])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--shifts", type=int, default=2, help="copies of each tune")
    parser.add_argument(
        "--folder", type=Path, help="where files and shards go, and stay; else a temporary one"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for files in given.files:
            home = (given.folder or Path(temporary)) / str(files)
            if not (home / "tunes").is_dir():
                write_tunes(home / "tunes", files)
            shifts = list(range(given.shifts))
            options = [f"data.folders=[{home / 'tunes'}]", f"run={home / 'run'}", f"data.shifts={shifts}"]
            options.append(f"data.workers={given.workers}")
            peaks = measured([sys.executable, "-c", PREPARE, "own_folder", *options])
            print(
                json.dumps({"files": files, "workers": given.workers, "shifts": len(shifts), **peaks}),
                flush=True,
            )


if __name__ == "__main__":
    main()
