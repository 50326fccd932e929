"""What noise the particles' states have met: xi, one (N, P) for each group of rows that began together.

All rows share a particle's noise, so rows differ in xi only where some of them started anew: those that did within one
unroll are a group, whose xi is that unroll's noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["History"]


class History:
    """``sums`` (G, N, P), ``group`` (B,) the number of each row's group, ``fresh`` the group that began in the current
    unroll, -1 for none.
    """

    def __init__(self, sums: Tensor, group: Tensor, fresh: int) -> None:
        self.sums, self.group, self.fresh = sums, group, fresh

    @classmethod
    def begin(cls, noise: Tensor, rows: int) -> History:
        """All rows have met this noise (N, P) and no other."""
        return cls(noise.unsqueeze(0).clone(), torch.zeros(rows, dtype=torch.int64), 0)

    @classmethod
    def read(cls, section: dict[str, Any]) -> History:
        return cls(section["sums"], section["group"].cpu(), section["fresh"])

    def section(self) -> dict[str, Any]:
        return {"sums": self.sums, "group": self.group, "fresh": self.fresh}

    def meet(self, noise: Tensor) -> None:
        """A new unroll begins, with this noise for all; groups that no row is left in are forgotten."""
        known, self.group = self.group.unique(return_inverse=True)
        self.sums = self.sums[known.to(self.sums.device)] + noise
        self.fresh = -1

    def restart(self, reset: Tensor | None, noise: Tensor, check: Callable[[int], None]) -> list[Tensor]:
        """The entries (T, B) of the current steps that belong to each group, rows starting anew where ``reset`` (T, B)
        says; they are in the fresh group afterwards. ``check`` is asked whether there may be so many groups.
        """
        if reset is None or not bool(reset.any()):
            return []
        if self.fresh < 0:
            check(len(self.sums) + 1)
            self.fresh = len(self.sums)
            self.sums = torch.cat((self.sums, noise.unsqueeze(0)))
        anew = reset.cumsum(0) > 0
        groups = torch.where(anew, self.fresh, self.group)
        self.group = groups[-1]
        return [groups == number for number in range(len(self.sums))]

    def masks(self, steps: int) -> list[Tensor]:
        """The same where no row starts anew."""
        return [(self.group == number).expand(steps, -1) for number in range(len(self.sums))]
