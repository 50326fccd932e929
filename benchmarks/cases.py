"""What the layers are measured on: nine shapes, torch's layer and ours with the same weights, and the time that their
matrix products take alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import chronograd as cg
from chronograd.kernels import Edges, run_projected

__all__ = ["KINDS", "SHAPES", "Case", "Limit", "Shape", "differ"]


class Shape(NamedTuple):
    """Steps, rows, features of the input, units."""

    steps: int
    rows: int
    features: int
    units: int

    def __str__(self) -> str:
        return ", ".join(map(str, self))


SHAPES = (
    Shape(35, 32, 28, 256),
    Shape(35, 32, 28, 512),
    Shape(128, 32, 64, 128),
    Shape(512, 16, 64, 256),
    Shape(1000, 32, 128, 128),
    Shape(1000, 1, 32, 64),
    Shape(1000, 1, 64, 256),
    Shape(4096, 4, 32, 64),
    Shape(200, 128, 64, 1024),
)

# The layers, and the kernels' names for their cells.
KINDS = {"RNN": "tanh", "GRU": "gru", "LSTM": "lstm"}
NO_EDGES = Edges()


class Case:
    """One layer forward and backward, torch's and ours: the same weights, inputs that want their gradient, a fixed
    cotangent of the outputs.
    """

    def __init__(self, name: str, shape: Shape) -> None:
        torch.manual_seed(0)
        self.name, self.shape = name, shape
        self.torch: nn.RNNBase = getattr(nn, name)(shape.features, shape.units)
        self.ours: nn.RNNBase = getattr(cg, name)(shape.features, shape.units)
        self.ours.load_state_dict(self.torch.state_dict())
        self.inputs = torch.randn(shape.steps, shape.rows, shape.features, requires_grad=True)
        self.cotangent = torch.randn(shape.steps, shape.rows, shape.units)

    def clear(self) -> None:
        """Forget all gradients."""
        self.inputs.grad = None
        for layer in (self.torch, self.ours):
            layer.zero_grad(set_to_none=True)

    def run(self, layer: nn.RNNBase) -> None:
        """What is timed."""
        layer(self.inputs)[0].backward(self.cotangent)

    def run_loop(self, edges: Edges = NO_EDGES, **choice: Any) -> None:
        """The same of our layer's loop over time alone, under edges and with what else ``run_projected`` takes."""
        wi, w, bi, b = self.ours.parameters()
        zeros = torch.zeros(self.shape.rows, self.shape.units)
        initial = (zeros, zeros) if self.name == "LSTM" else (zeros,)
        states = run_projected(KINDS[self.name], self.inputs, wi, bi, initial, w, b, edges, **choice)
        states[0].backward(self.cotangent)

    def gradients(self, layer: nn.RNNBase) -> dict[str, Tensor]:
        """What a run gives: the gradients of the weights by their names, and of the ``inputs``."""
        self.clear()
        self.run(layer)
        found = {"inputs": self.inputs.grad, **{name: value.grad for name, value in layer.named_parameters()}}
        return {name: value for name, value in found.items() if value is not None}


def differ(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The largest difference of a gradient's entries, relative to the largest entry of that gradient."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - other).abs().max() / other.abs().max()) for name, other in theirs.items())


class Limit:
    """The time of a layer's matrix products alone: their operations at the rate of torch's own product.

    Forward and backward take 6 T B H (d + H) operations for each of the cell's blocks of units; the rate is that of one
    product of (T B, H) and (H, H), made in the same rounds as what is compared with it.
    """

    def __init__(self, case: Case) -> None:
        steps, rows, features, units = case.shape
        self.left, self.right = torch.randn(steps * rows, units), torch.randn(units, units)
        self.out = torch.empty(steps * rows, units)
        blocks = len(dict(case.torch.named_parameters())["weight_hh_l0"]) // units
        self.wanted = 3 * (features + units) / units * blocks

    def run(self) -> None:
        torch.mm(self.left, self.right, out=self.out)

    def seconds(self, took: float) -> float:
        """The limit, given the time of a ``run``."""
        return took * self.wanted
