"""What the recurrent loops of a model are handed to under ``Scan``, wherever in the model they sit (``gating``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from chronograd.kernels import Edges, run_projected
from chronograd.recurrence.sequence import LayerWeights, Path, run_layers

from .cell import run_cell_at_once
from .layer import LINEAR, run_layer_at_once
from .mode import Scan
from .report import Way
from .solver import OVERFLOWS, Solver

__all__ = ["ParallelEngine"]

State = tuple[Tensor, ...]
SLOWER = "on a CPU the kernels' loop is faster than a scan; always=True scans"


class ParallelEngine:
    """Runs loops in parallel over time, and keeps in ``ways`` how each was computed. Made for one call."""

    def __init__(self, mode: Scan) -> None:
        self.mode = mode
        self.ways: list[Way] = []

    def layers(
        self,
        kind: str,
        inputs: Tensor,
        initial: State,
        weights: Sequence[LayerWeights],
        dropout: float,
        edges: Edges,
        fresh: State | None,
    ) -> Path:
        """Stacked built-in layers; as ``sequence.run_layers``."""
        return run_layers(kind, inputs, initial, weights, dropout, edges, fresh, self._layer)

    def _layer(self, kind: str, inputs: Tensor, *rest: Any) -> State:
        initial = rest[2]
        loop = f"{kind} layer of {initial[0].shape[-1]} units"
        if kind in LINEAR and inputs.device.type == "cpu" and not self.mode.always:
            self.ways.append(Way(loop, "loop", SLOWER))
            return run_projected(kind, inputs, *rest)
        if self.mode.forward == "loop":
            self.ways.append(Way(loop, "jacobians"))
        elif kind in LINEAR:
            self.ways.append(Way(loop, "scan"))
        found = run_layer_at_once(Solver(self.mode, loop, self.ways), kind, inputs, *rest)
        if kind in LINEAR and not all(bool(torch.isfinite(part).all()) for part in found):
            self.ways[-1] = Way(loop, "loop", OVERFLOWS)
            return run_projected(kind, inputs, *rest)
        return found

    def cell(self, cell: Callable[[Any, Any], Any], inputs: Any, state: Any, edges: Edges) -> Path:
        """A cell of the user's own; as ``sequence.run_cell``."""
        return run_cell_at_once(self.mode, self.ways, cell, inputs, state, edges)
