"""`metrics.csv` and the clock of a run."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from multimodal_gpt.files import write_text

METRICS = "metrics.csv"
Row = dict[str, str]


class MetricsFile:
    """`metrics.csv`: a row per logged step or validation, only ever appended to.

    Columns: step, split, tokens, seconds, loss (nats per token), loss_NAME per modality, and for the train
    split learning_rate, gradient_norm (before clipping), tokens_per_second.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.path = folder / METRICS
        losses = ("loss", *(f"loss_{name}" for name in names))
        speed = ("learning_rate", "gradient_norm", "tokens_per_second")
        self.columns = ("step", "split", "tokens", "seconds", *losses, *speed)

    def begin(self, step: int | None) -> None:
        """Keep the rows up to `step`, none if None: what came after the last checkpoint comes again."""
        rows = [] if step is None else [r for r in read_metrics(self.path.parent) if int(r["step"]) <= step]
        table = io.StringIO()
        writer = csv.DictWriter(table, self.columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, table.getvalue())

    def append(self, values: Mapping[str, object]) -> None:
        """Write one row; floats in full, so that equal losses print equally."""
        line = ",".join(str(values.get(column, "")) for column in self.columns)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def read_metrics(folder: Path) -> list[Row]:
    """The rows of a run's `metrics.csv`, without one that was cut off; none where there is no file."""
    path = folder / METRICS
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = list(csv.DictReader(file))
    return [r for r in rows if None not in r and None not in r.values() and r.get("step", "").isdigit()]


def losses_of(row: Row) -> dict[str, float]:
    """Nats per token in a row: `loss`, and by modality name where it occurred."""
    cells = {key: value for key, value in row.items() if key.startswith("loss") and value}
    return {key.removeprefix("loss_"): float(value) for key, value in cells.items()}


class Stopwatch:
    """Seconds spent training; saving, sampling and validating stop the clock."""

    def __init__(self) -> None:
        self.before = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds so far, with those of earlier sessions of the run."""
        return self.before + (0.0 if self._since is None else time.perf_counter() - self._since)

    def start(self) -> None:
        """Let it run."""
        if self._since is None:
            self._since = time.perf_counter()

    def stop(self) -> None:
        """Let it stand."""
        self.before, self._since = self.seconds, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let it stand for a while, then go on if it ran."""
        running = self._since is not None
        self.stop()
        try:
            yield
        finally:
            if running:
                self.start()
