"""What the user sees: results on stdout, progress and warnings on stderr; plain lines without a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

SECONDS_PER_LINE = 5.0
"""Least time between two lines of progress in a log file."""


class Progress:
    """Counts up to `total` steps (None = unknown); made by `progress`."""

    def __init__(self, total: int | None, label: str) -> None:
        self.total, self.label = total, label
        self.done, self.note = 0, ""
        self._drawn = -1
        self._started = self._printed = time.monotonic()

    def advance(self, n: int = 1, note: str = "") -> None:
        """`n` more steps are done; `note` stands behind the count until the next one."""
        self.done += n
        self.note = note or self.note
        self.draw()

    def grow(self, n: int) -> None:
        """There are `n` steps more than was thought."""
        self.total = None if self.total is None else self.total + n

    def draw(self, *, last: bool = False) -> None:
        """Print a line, at most one per `SECONDS_PER_LINE`."""
        now = time.monotonic()
        if (last and self._drawn != self.done) or now - self._printed >= SECONDS_PER_LINE:
            self._printed, self._drawn = now, self.done
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """`label: 120/900 (13 %), 2 min left, note`."""
        count = f"{self.done}" if self.total is None else f"{self.done}/{self.total}"
        share = f" ({100 * self.done // self.total} %)" if self.total else ""
        parts = [f"{self.label}: {count}{share}", self._left(), self.note]
        return ", ".join(p for p in parts if p)

    def _left(self) -> str:
        spent = time.monotonic() - self._started
        if not self.total or not 0 < self.done < self.total or spent < 1:
            return ""
        return f"{duration(spent / self.done * (self.total - self.done))} left"


class Hidden(Progress):
    """The same, unseen."""

    def draw(self, *, last: bool = False) -> None:
        """Nothing."""


class _Bar(Progress):
    """The same on a terminal: one line that is redrawn."""

    def __init__(self, total: int | None, label: str, bar: Any) -> None:
        super().__init__(total, label)
        self._bar = bar
        self._task = bar.add_task(label, total=total, note="")

    def draw(self, *, last: bool = False) -> None:
        self._bar.update(self._task, total=self.total, completed=self.done, note=self.note)


@contextmanager
def progress(total: int | None, label: str) -> Iterator[Progress]:
    """Show how far a long piece of work has come.

    Example:
        >>> with progress(2, "files") as bar:
        ...     bar.advance(2, note="done")
    """
    if not sys.stderr.isatty():
        plain = Progress(total, label)
        yield plain
        plain.draw(last=True)
        return
    from rich import progress as rich_progress
    from rich.console import Console

    columns = [
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[note]}", markup=False),
    ]
    with rich_progress.Progress(*columns, console=Console(stderr=True)) as bar:
        yield _Bar(total, label, bar)


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    Example:
        >>> duration(7), duration(150), duration(7200)
        ('7 s', '2.5 min', '2.0 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table on stdout: ruled on a terminal, aligned columns elsewhere."""
    cells = [[_cell(value) for value in row] for row in rows]
    if sys.stdout.isatty():
        _ruled_table(title, columns, cells)
        return
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    if title:
        say(title)
    for line in [list(columns), *cells]:
        say("  " + "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _ruled_table(title: str, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    ruled = Table(title=Text(title) if title else None, title_justify="left")
    for column in columns:
        ruled.add_column(Text(column), overflow="fold")
    for row in cells:
        ruled.add_row(*(Text(c) for c in row))
    Console().print(ruled)


def say(text: str, end: str = "\n") -> None:
    """Print a line on stdout, for results."""
    print(text, end=end, flush=True)


def warn(text: str) -> None:
    """Print a line on stderr, for what the user should know but need not mend."""
    print(f"mmgpt: warning: {text}", file=sys.stderr, flush=True)
