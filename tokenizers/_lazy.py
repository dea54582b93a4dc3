"""Properties that are computed when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class lazy:
    """A property that is computed once, as functools.cached_property, whose lock (until Python 3.12)
    takes longer than most of what is computed here.
    """

    def __init__(self, compute: Callable[[Any], Any]) -> None:
        self.compute, self.__doc__ = compute, compute.__doc__

    def __get__(self, item: Any, owner: type) -> Any:
        value = item.__dict__[self.compute.__name__] = self.compute(item)
        return value
