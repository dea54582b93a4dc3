"""What every row of a batch has made so far, for those who don't want it to repeat itself.

B rows, T ids, C scored columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multimodal_gpt.generation.sampling import Sampling, penalised, unrepeated


class History:
    """Columns of the ids of free stretches, row by row; tags and END are left out, and what was given.

    Args:
        places: rows B.
        length: most ids of a row.
        members: columns that are ids of a member: those before END.
        how: what is asked for.
    """

    def __init__(self, places: int, length: int, members: int, how: Sampling, device: torch.device) -> None:
        self.members, self.how = members, how
        self.made = torch.full((places, length + 1), -1, device=device)  # (B, T + 1), -1 = nothing yet
        self.counts = torch.zeros(places, dtype=torch.long, device=device)
        self.rows = torch.arange(places, device=device)

    def held_back(self, logits: Tensor) -> Tensor:
        """(B, C) of logits (B, C), -inf where an id may not come, after what is asked for."""
        penalty, n = self.how.repetition_penalty, self.how.no_repeat
        if penalty is not None:
            logits = penalised(logits, self._last(self.how.repetition_window), penalty)
        if n is not None:
            logits = unrepeated(logits, self.made[:, : int(self.counts.max())], self._last(n - 1))
        return logits

    def add(self, column: Tensor) -> None:
        """What every row has taken, (B,) columns."""
        mine = column < self.members
        self.made[self.rows, self.counts] = column.where(mine, torch.full_like(column, -1))
        self.counts = self.counts + mine

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows (N,) only, in this order."""
        self.made, self.counts, self.rows = self.made[rows], self.counts[rows], self.rows[: len(rows)]

    def clear(self, places: Tensor) -> None:
        """Begin new rows at these places (N,)."""
        self.made[places], self.counts[places] = -1, 0

    def _last(self, count: int) -> Tensor:
        """(B, count) the last columns, the oldest first; -1 where there are not so many."""
        place = self.counts[:, None] + torch.arange(-count, 0, device=self.counts.device)
        return self.made.gather(1, place.clamp(min=0)).masked_fill(place < 0, -1)
