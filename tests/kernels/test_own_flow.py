"""The compiled way back where each unit's own weights alone let the gradient flow, against a loop of autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chronograd.kernels import CELLS, Edges, compiled
from chronograd.kernels.compiled import Choice
from chronograd.kernels.layer import as_call
from layer_case import can, isas

KINDS = ["tanh", "relu", "linear", "gru", "lstm"]
BLOCKS = {"gru": 3, "lstm": 4}


def only(values, flow):
    """``values``, back through which only ``flow`` goes."""
    return values.detach() + flow - flow.detach()


def step(kind, x, h, c, w, own):
    """One step by the formulas of torch.nn; the old h reaches the products through ``own`` alone."""
    w_ih, w_hh, b_ih, b_hh = w
    units = h.shape[1]
    blocks = [(own.view(-1, units)[g] * h) for g in range(len(own) // units)]
    product = h.detach() @ w_hh.T + b_hh
    flow = torch.cat(blocks, 1)
    product = product + flow - flow.detach()
    drive = x @ w_ih.T + b_ih
    if kind == "gru":
        (r, z, n), (pr, pz, pn) = drive.chunk(3, 1), product.chunk(3, 1)
        r, z = torch.sigmoid(r + pr), torch.sigmoid(z + pz)
        n = torch.tanh(n + r * pn)
        return (1 - z) * n + z * h, None
    if kind == "lstm":
        i, f, g, o = (drive + product).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    squash = {"tanh": torch.tanh, "relu": torch.relu, "linear": lambda v: v}[kind]
    return squash(drive + product), None


def by_autograd(kind, x, w, own, initial, edges, given):
    h, c = initial[0], initial[-1]
    total = 0.0
    for t in range(len(x)):
        old_h, old_c = h, c
        if edges.gates is not None:
            xi = edges.gates[t].unsqueeze(-1)
            old_h, old_c = only(h, xi * h), only(c, xi * c)
        if edges.reset is not None:
            again = edges.reset[t].unsqueeze(-1)
            old_h, old_c = torch.where(again, 0, old_h), torch.where(again, 0, old_c)
        h, c_new = step(kind, x[t], old_h, old_c, w, own)
        c = old_c if c_new is None else c_new
        if edges.valid is not None:
            moves = edges.valid[t].unsqueeze(-1)
            h, c = torch.where(moves, h, old_h), torch.where(moves, c, old_c)
        total = total + sum((part * g[t]).sum() for part, g in zip((h, c), given))
    return torch.autograd.grad(total, [*w, *initial])


def check(native, kind, shape, edges, seed, choice, zero=False):
    steps, rows, units, features = shape
    torch.manual_seed(seed)

    def some(*shape):
        return torch.randn(*shape, dtype=torch.float64).requires_grad_()

    across, parts = BLOCKS.get(kind, 1) * units, CELLS[kind].parts
    x = some(steps, rows, features).detach()
    w = [some(across, features), some(across, units), some(across), some(across)]
    initial = [some(rows, units) for _ in range(parts)]
    given = [some(steps, rows, units).detach() for _ in range(parts)]
    made = {
        "gates": torch.tensor([0.0, 1.0, 1.5], dtype=torch.float64)[torch.randint(3, (steps, rows))],
        "reset": torch.rand(steps, rows) < 0.3,
        "valid": torch.rand(steps, rows) < 0.7,
    }
    edges = Edges(**{name: made[name] for name in edges})
    own = torch.cat([block.diagonal() for block in w[1].detach().split(units)]).contiguous()
    own = torch.zeros_like(own) if zero else own
    expected = by_autograd(kind, x, w, own, initial, edges, given)
    with torch.no_grad():
        call = as_call(kind, x, w[0], w[2], tuple(initial), w[1], w[3], edges)
        path, kept = compiled.forward(call, True, choice)
        found = compiled.back(call, path, kept, given, (False, True, True, True, True), choice, own)
    for ours, theirs in zip((found.weight_ih, found.weight, found.bias_ih, found.bias), expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(found.states, expected[4:]):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("edges", [(), ("gates",), ("reset", "valid"), ("gates", "reset", "valid")], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_only_own_weights_let_the_gradient_flow(native, threads, kind, edges, isa):
    can(native, isa)
    for number, split in enumerate(("auto", "rows", "units")):
        check(native, kind, (6, 5, 19, 3), edges, number, Choice(isa, split, number, native), zero=number == 1)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(KINDS),
    steps=st.sampled_from([1, 2, 9]),
    rows=st.sampled_from([1, 3, 17]),
    units=st.sampled_from([1, 8, 33]),
    features=st.sampled_from([1, 5]),
    split=st.sampled_from(["auto", "rows", "units"]),
    block=st.sampled_from([0, 1, 4]),
    seed=st.integers(0, 100),
)
def test_odd_shapes(native, threads, kind, steps, rows, units, features, split, block, seed):
    check(native, kind, (steps, rows, units, features), (), seed, Choice(None, split, block, native))
