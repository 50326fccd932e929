"""The brute-force oracle: every loss unrolled by itself, one row and one step at a time, gates put on by hand.

It uses the model's own single steps, torch's autograd and nothing of the package, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Gate = Callable[[int, int, int], float]
"""The gate on the edge into step s of row b, for the loss at step t: ``gate(t, s, b)``."""


class Opaque(nn.Module):
    """A hand-written loop with a learned initial state and a nested state, rows in dimension 1 of one tensor."""

    def __init__(self, d: int = 2, n: int = 3) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(n))
        self.w, self.u = nn.Parameter(torch.randn(d, n) / 2), nn.Parameter(torch.randn(n, n) / 2)
        self.readout = nn.Linear(n, 2)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        h, c = (
            (self.start.expand(x.shape[1], -1), x.new_zeros(3, x.shape[1]))
            if state is None
            else (state["h"], state["c"][0])
        )
        outputs = []
        for step in x:
            h = torch.tanh(step @ self.w + h @ self.u + 0.3 * c.T)
            c = 0.9 * c + h.T.sin()
            outputs.append(self.readout(h) + c.T[:, :2])
        return torch.stack(outputs), {"h": h, "c": [c]}


class Deep(nn.Module):
    """Recurrent layers deep inside a model, with a state for each and a skip around them."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 3)
        self.body = nn.ModuleDict({"a": first, "b": second})
        self.readout = nn.Linear(6, 2)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        x = self.embed(x)
        one, two = (None, None) if state is None else state
        a, one = self.body["a"](x, one)
        b, two = self.body["b"](a, two)
        return self.readout(torch.cat((a, b), -1)), (one, two)


class Attending(nn.Module):
    """A layer whose state is read by something else too: the input of each step attends to h_{t-1}."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.attend, self.readout = nn.GRUCell(2, 3), nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        h = x.new_zeros(x.shape[1], 3) if state is None else state
        outputs = []
        for step in x:
            h = self.cell(step + self.attend(h), h)
            outputs.append(self.readout(h))
        return torch.stack(outputs), h


class Delayed(nn.Module):
    """The output of each step is the state before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.readout = nn.GRU(2, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        h = x.new_zeros(1, x.shape[1], 3) if state is None else state
        outputs, final = self.layer(x, h)
        return self.readout(torch.cat((h, outputs[:-1]))), final


def brute_force(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    inputs: Tensor,
    targets: Tensor,
    gate: Gate,
    *,
    reset: Tensor | None = None,
    valid: Tensor | None = None,
    weights: Tensor | None = None,
    state: Any = None,
) -> tuple[Tensor, dict[str, Tensor], Tensor, Any]:
    """Loss, gradients by name, gradient of the inputs and of the given state, each of sum(w l) / sum(w).

    ``state`` is one tree for each row (or None), with B = 1.
    """
    steps, rows = inputs.shape[:2]
    reset = torch.zeros(steps, rows, dtype=torch.bool) if reset is None else reset
    valid = torch.ones(steps, rows, dtype=torch.bool) if valid is None else valid
    weights = inputs.new_ones(steps, rows) if weights is None else weights
    x = inputs.detach().clone().requires_grad_()
    given = (
        None if state is None else [pytree.tree_map(lambda s: s.detach().clone().requires_grad_(), s) for s in state]
    )
    total = inputs.new_zeros(())
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    targets_of = [p for p in model.parameters() if p.requires_grad] + [x]
    extra = [] if given is None else pytree.tree_leaves(given)
    grads: list[Tensor | None] = [None] * (len(targets_of) + len(extra))
    scale = weights[valid].sum()
    for b in range(rows):
        for t in range(steps):
            if not valid[t, b] or weights[t, b] == 0:
                continue
            h = None if given is None else given[b]
            out = None
            for s in range(t + 1):
                h = None if h is None else _scale(h, gate(t, s, b) if s else 1.0)
                if reset[s, b]:
                    h = None
                if valid[s, b]:
                    out, h = model(x[s : s + 1, b : b + 1], h)
            loss = loss_fn(out, targets[t : t + 1, b : b + 1])[0, 0] * weights[t, b] / scale
            total = total + loss.detach()
            found = torch.autograd.grad(loss, [*targets_of, *extra], allow_unused=True)
            grads = [g if old is None else old if g is None else old + g for old, g in zip(grads, found)]
    named = {name: g for name, g in zip(names, grads) if g is not None}
    dx = grads[len(names)]
    spec = None if given is None else pytree.tree_structure(given)
    dstate = None
    if spec is not None:
        flat = [torch.zeros_like(e) if g is None else g for g, e in zip(grads[len(names) + 1 :], extra)]
        dstate = pytree.tree_unflatten(flat, spec)
    return total, named, torch.zeros_like(x) if dx is None else dx, dstate


def _scale(state: Any, xi: float) -> Any:
    return pytree.tree_map(lambda h: h * xi + h.detach() * (1 - xi), state)


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss with a number for each step and row."""
    return (outputs - targets).square().sum(-1)


def assert_close(ours: Any, theirs: Any, tolerance: float = 1e-10) -> None:
    """Relative to the largest entry of what is expected."""
    size = max(float(theirs.abs().max()), 1e-12) if theirs.numel() else 1.0
    error = float((ours - theirs).abs().max()) if theirs.numel() else 0.0
    assert ours.shape == theirs.shape
    assert error <= tolerance * max(size, 1e-3), f"off by {error:g} of {size:g}"


def assert_same_grads(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    """Names that one side lacks must be zero on the other."""
    for name in {*ours, *theirs}:
        a, b = ours.get(name), theirs.get(name)
        if a is None or b is None:
            other = b if a is None else a
            assert other is not None and float(other.abs().max()) == 0, (
                f"{name} is absent on one side and not zero on the other"
            )
        else:
            assert_close(a, b, tolerance)


class Bias(nn.Module):
    """h' = w h + b with only b to learn, so that dh_T/db = sum_k w^k."""

    def __init__(self, w):
        super().__init__()
        self.w, self.b = w, nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x, state=None):
        h = x.new_zeros(x.shape[1]) if state is None else state
        outputs = []
        for _ in x:
            h = self.w * h + self.b
            outputs.append(h)
        return torch.stack(outputs), h
