"""A model of the benchmarks: a layer, and a readout of one number."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Read"]


class Read(nn.Module):
    """A layer and a readout of one number."""

    def __init__(self, layer: nn.Module, units: int) -> None:
        super().__init__()
        self.layer, self.readout = layer, nn.Linear(units, 1)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        outputs, state = self.layer(x, state)
        return self.readout(outputs), state
