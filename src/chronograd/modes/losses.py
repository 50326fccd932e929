"""From losses (T, B) to one number: sum(w l) / sum(w) over the entries that count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from chronograd.recurrence.states import leaves, tree_map

from .replay import in_memory, steps_of

__all__ = ["Losses"]

Tree = Any


@dataclass(frozen=True)
class Losses:
    """The losses of a stretch: ``loss_fn(outputs, targets)`` -> (T, B), ``weights`` (T, B), and which entries are
    ``used`` (T, B) bool, None for all.
    """

    loss_fn: Callable[[Any, Any], Tensor]
    targets: Tree
    weights: Tensor
    used: Tensor | None

    @property
    def weight(self) -> float:
        """sum(w) over the used entries."""
        counted = self.weights if self.used is None else self.weights[self.used]
        return float(counted.sum(dtype=torch.float64))

    @property
    def begin(self) -> int:
        """The first step with a used entry; beyond the last where there is none."""
        if self.used is None:
            return 0
        steps = self.used.any(1).nonzero()
        return int(steps[0]) if len(steps) else len(self.weights)

    def silent(self, cuts: Sequence[int], at: int = 0) -> int:
        """The last of the ``cuts``, steps before which every row is cut, that no used entry lies before, or 0: no loss
        reaches behind it, and parameters that are of use only there stay absent. These losses begin at step ``at``.
        """
        return max([0, *(cut for cut in cuts if cut <= at + self.begin)])

    def __getitem__(self, index: Any) -> Losses:
        """The losses of some steps, or of any (steps, rows) index."""
        used = None if self.used is None else self.used[index]
        return Losses(self.loss_fn, steps_of(self.targets, index), self.weights[index], used)

    def in_memory(self) -> Losses:
        """The same with targets that are read."""
        return replace(self, targets=in_memory(self.targets))

    def sum(self, outputs: Tree) -> Tensor | None:
        """sum(w l) over the used entries, or None where there is none.

        Entries that are not used are filled with one that is, before the loss sees them, and selected away after:
        whatever they hold (padding, NaN, a class out of range) reaches neither the loss nor a gradient.

        Raises:
            ValueError: where the loss is not one number for each step and row.
        """
        shape, used = tuple(self.weights.shape), self.used
        for leaf in leaves(outputs):
            if tuple(leaf.shape[:2]) != shape:
                raise ValueError(
                    f"the model's outputs have shape {tuple(leaf.shape)}, expected (T, B, ...) = "
                    f"({shape[0]}, {shape[1]}, ...); a model is called with time first"
                )
        targets = in_memory(self.targets)
        if used is not None:
            if not bool(used.any()):
                return None
            t, b = (int(i) for i in used.nonzero()[0])

            def fill(x: Tensor) -> Tensor:
                mask = used.to(x.device).reshape(*shape, *[1] * (x.dim() - 2))
                return torch.where(mask, x, x[t, b].expand_as(x))

            outputs, targets = tree_map(fill, outputs), tree_map(fill, targets)
        losses = self.loss_fn(outputs, targets)
        _check(losses, shape)
        weighted = losses * self.weights.to(losses)
        return (weighted if used is None else torch.where(used.to(losses.device), weighted, 0)).sum()


def _check(losses: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(losses, Tensor):
        raise TypeError(f"loss_fn must return a tensor (T, B), not {type(losses).__name__}")
    if losses.dim() == 0:
        raise ValueError(
            f"loss_fn returned one number, but a loss for each step and row is needed, shape (T, B) = {shape}: "
            'use reduction="none"'
        )
    if tuple(losses.shape) != shape:
        raise ValueError(
            f"loss_fn returned shape {tuple(losses.shape)}, expected (T, B) = {shape}: one loss for each step and row "
            '(reduction="none", then reduce the features, as in .mean(-1))'
        )
