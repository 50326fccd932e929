"""What happens on the edge into each step: gates, resets, frozen rows."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Edges"]


@dataclass(frozen=True)
class Edges:
    """The edges h_{t-1} -> h_t of T steps and B rows.

    In the order in which a step meets them:

    - ``gates`` (T, B), floating point: they multiply what flows back over the edge; the way forward does not see them.
    - ``reset`` (T, B) bool: the row starts anew at this step, from its initial state. A reset of a frozen row does
      nothing.
    - ``valid`` (T, B) bool: where False the row is frozen, h_t is what came over the edge.

    None stands for 1, False and True everywhere, and a tensor that says so becomes None. ``cuts`` are the steps
    whose gate is 0 in every row: what lies between two of them is independent of the rest on the way back.

    Raises:
        ValueError: where the tensors are not all of one shape (T, B).

    >>> import torch
    >>> edges = Edges(gates=torch.tensor([[1.0, 1.0], [0.0, 0.0], [2.0, 0.0]]))
    >>> edges.cuts, edges.plain, edges[:1].plain
    ((1,), False, True)
    """

    gates: Tensor | None = None
    reset: Tensor | None = None
    valid: Tensor | None = None
    cuts: tuple[int, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        shapes = {tuple(part.shape) for part in (self.gates, self.reset, self.valid) if part is not None}
        if len(shapes) > 1 or any(len(shape) != 2 for shape in shapes):
            raise ValueError(f"Edges: gates, reset and valid must have one shape (T, B), got {sorted(shapes)}")
        if self.valid is not None and bool(self.valid.all()):
            object.__setattr__(self, "valid", None)
        if self.reset is not None and self.valid is not None:
            object.__setattr__(self, "reset", self.reset & self.valid)
        if self.reset is not None and not bool(self.reset.any()):
            object.__setattr__(self, "reset", None)
        if self.gates is not None and bool((self.gates == 1).all()):
            object.__setattr__(self, "gates", None)
        if self.gates is not None:
            cuts = (self.gates == 0).all(1).nonzero().flatten().tolist()
            object.__setattr__(self, "cuts", tuple(cuts))

    @property
    def plain(self) -> bool:
        """True where nothing happens on any edge."""
        return self.gates is None and self.reset is None and self.valid is None

    def __getitem__(self, steps: slice) -> Edges:
        """The edges of some of the steps."""
        return Edges(*(None if part is None else part[steps] for part in (self.gates, self.reset, self.valid)))

    def to(self, device: torch.device) -> Edges:
        """The same edges on another device."""
        if all(part is None or part.device == device for part in (self.gates, self.reset, self.valid)):
            return self
        return Edges(*(None if part is None else part.to(device) for part in (self.gates, self.reset, self.valid)))

    def reset_steps(self) -> list[bool]:
        """For each step, whether any row resets; empty where none ever does."""
        return [] if self.reset is None else self.reset.any(1).tolist()

    def frozen_steps(self) -> list[bool]:
        """For each step, whether any row is frozen; empty where none ever is."""
        return [] if self.valid is None else (~self.valid.all(1)).tolist()

    def fresh_rows(self) -> Tensor | None:
        """(T, B) int64: the number of each reset in the order of ``reset.nonzero()``, -1 where there is none."""
        if self.reset is None:
            return None
        numbers = self.reset.flatten().cumsum(0).reshape(self.reset.shape) - 1
        return torch.where(self.reset, numbers, -1)
