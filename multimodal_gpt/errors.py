"""The one exception a user should ever see."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: what is wrong, where, and how to fix it, on one line.

    Example:
        >>> print(UserError("unknown key 'stps'", "my.yaml: train", "did you mean 'steps'?"))
        my.yaml: train: unknown key 'stps' (did you mean 'steps'?)
    """

    def __init__(self, what: str, where: object = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, str(where), fix
        super().__init__(what, str(where), fix)

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        line = f"{line} ({self.fix})" if self.fix else line
        return " ".join(line.split())

    def within(self, where: object) -> UserError:
        """The same error with one more step of context in front of its place."""
        place = f"{where}: {self.where}" if self.where else str(where)
        return UserError(self.what, place, self.fix)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: the nearest known ones, else all of them.

    Example:
        >>> nearest("melodi", ["text", "melody"])
        "did you mean 'melody'?"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "known: " + ", ".join(names) if names else "none is known"
