"""One layer with random weights, inputs and edges, by the compiled kernels and by their twin in plain torch."""

from __future__ import annotations

import pytest
import torch

from chronograd.kernels import CELLS, Edges, library, reference, run_projected
from chronograd.kernels.compiled import KINDS as COMPILED

__all__ = ["BLOCKS", "EDGES", "KINDS", "Case", "can", "isas"]

KINDS = sorted(COMPILED)
BLOCKS = {"gru": 3, "lstm": 4, "elstm": 2}
ELEMENTWISE = ("diagonal", "elstm")
EDGES = [(), ("gates",), ("reset",), ("valid",), ("gates", "reset", "valid")]


def isas():
    """All names; a test skips those that this machine cannot run."""
    return library.ISAS


def can(native, isa):
    if isa not in library.isas(native):
        pytest.skip(f"this machine has no {isa}")


class Case:
    """One layer with random weights, inputs and edges, and what it gives by any of its functions."""

    def __init__(self, kind, shape, complex_=False, edges=(), fresh=True, seed=0):
        steps, rows, size, inputs = shape
        random = torch.Generator().manual_seed(seed)
        dtype = torch.complex128 if complex_ else torch.float64
        parts, across = CELLS[kind].parts, BLOCKS.get(kind, 1) * size

        def new(*sizes):
            return torch.randn(*sizes, dtype=dtype, generator=random)

        self.kind = kind
        self.weight = new(across) * 0.5 if kind in ELEMENTWISE else new(across, size) / size**0.5
        self.x, self.weight_ih = new(steps, rows, inputs), new(across, inputs) / inputs**0.5
        self.bias_ih, self.bias = new(across), new(across)
        self.initial = tuple(new(rows, size) for _ in range(parts))
        gates = torch.randn(steps, rows, dtype=torch.float64, generator=random)
        chance = torch.rand(3, steps, rows, generator=random)
        gates[chance[0] < 0.3] = 0
        gates[::3] = gates[::3].where(chance[0, ::3] < 0.5, 1)
        self.edges = Edges(
            gates if "gates" in edges else None,
            chance[1] < 0.3 if "reset" in edges else None,
            chance[2] < 0.7 if "valid" in edges else None,
        )
        count = 0 if self.edges.reset is None else int(self.edges.reset.sum())
        self.fresh = tuple(new(count, size) for _ in range(parts)) if count and fresh else None
        self.cotangents = [new(steps, rows, size) for _ in range(parts)]
        self.leaves = [
            part.requires_grad_()
            for part in (
                self.x,
                self.weight_ih,
                self.bias_ih,
                self.weight,
                self.bias,
                *self.initial,
                *(self.fresh or ()),
            )
        ]

    def gives(self, run):
        path = run(self)
        grads = torch.autograd.grad(path, self.leaves, self.cotangents, allow_unused=True)
        return [*path, *grads]

    def drive(self):
        return self.x @ self.weight_ih.mT + self.bias_ih

    def twin(self):
        return self.gives(
            lambda c: reference.run_layer(c.kind, c.drive(), c.initial, c.weight, c.bias, c.edges, c.fresh)
        )

    def path(self, choice):
        return run_projected(
            self.kind,
            self.x,
            self.weight_ih,
            self.bias_ih,
            self.initial,
            self.weight,
            self.bias,
            self.edges,
            self.fresh,
            choice,
        )

    def projected(self, choice):
        return self.gives(lambda c: c.path(choice))

    def check(self, choice):
        expected = self.twin()
        for ours, theirs in zip(self.projected(choice), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
