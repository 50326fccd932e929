"""The loop over time and its way back against a plain loop of torch operations with autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chronograd.kernels import CELLS, Edges, walk
from chronograd.kernels.reference import run_layer

KINDS = ["tanh", "relu", "linear", "diagonal", "complex", "gru", "lstm", "elstm"]


def name(kind):
    return "diagonal" if kind == "complex" else kind


def step(kind, x, state, W, b):
    """One step from the textbook formulas."""
    h = state[0]
    if kind == "elstm":
        (xz, xf), (wz, wf) = (x if b is None else x + b).chunk(2, -1), W.chunk(2)
        z, f = torch.tanh(xz + wz * h), torch.sigmoid(xf + wf * h)
        return (f * h + (1 - f) * z,)
    product = W * h if name(kind) == "diagonal" else h @ W.T
    if b is not None:
        product = product + b
    if kind in ("tanh", "relu"):
        return (getattr(torch, kind)(x + product),)
    if kind == "gru":
        (xr, xz, xn), (hr, hz, hn) = x.chunk(3, -1), product.chunk(3, -1)
        r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
        return ((1 - z) * torch.tanh(xn + r * hn) + z * h,)
    if kind == "lstm":
        i, f, g, o = (x + product).chunk(4, -1)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    return (x + product,)


def loop(kind, drive, initial, W, b, gates=None, reset=None, valid=None, fresh=None):
    """Gates as xi h + (1 - xi) h.detach(), resets and frozen rows as where."""
    state, path, number = initial, [], 0
    for t in range(drive.shape[0]):
        if gates is not None:
            xi = gates[t].unsqueeze(-1)
            state = tuple(xi * part + (1 - xi) * part.detach() for part in state)
        if reset is not None:
            new = [part.clone() for part in state]
            for row in range(drive.shape[1]):
                if reset[t, row] and (valid is None or valid[t, row]):
                    for p in range(len(state)):
                        new[p][row] = 0 if fresh is None else fresh[p][number]
                    number += 1
            state = tuple(new)
        after = step(kind, drive[t], state, W, b)
        if valid is not None:
            after = tuple(torch.where(valid[t].unsqueeze(-1), a, s) for a, s in zip(after, state))
        state = after
        path.append(state)
    return tuple(torch.stack(parts) for parts in zip(*path))


def setting(kind, T, B, H, seed, bias=True, resets=0):
    g = torch.Generator().manual_seed(seed)
    blocks = {"gru": 3, "lstm": 4, "elstm": 2}.get(kind, 1)
    dtype = torch.complex128 if kind == "complex" else torch.float64

    def normal(*shape):
        return torch.randn(shape, dtype=dtype, generator=g).requires_grad_()

    parts = CELLS[name(kind)].parts
    W = normal(blocks * H) if name(kind) in ("diagonal", "elstm") else normal(blocks * H, H)
    return {
        "drive": normal(T, B, blocks * H),
        "initial": tuple(normal(B, H) for _ in range(parts)),
        "W": W,
        "b": normal(blocks * H) if bias else None,
        "fresh": tuple(normal(resets, H) for _ in range(parts)) if resets else None,
    }


def tensors(given):
    return [t for v in given.values() if v is not None for t in (v if isinstance(v, tuple) else (v,))]


def assert_same(kind, given, gates=None, reset=None, valid=None, seed=0):
    """States and every gradient, for random cotangents of all parts of the state."""
    W, b, fresh = given["W"], given["b"], given["fresh"]
    ours = run_layer(name(kind), given["drive"], given["initial"], W, b, Edges(gates, reset, valid), fresh)
    theirs = loop(kind, given["drive"], given["initial"], W, b, gates, reset, valid, fresh)
    g = torch.Generator().manual_seed(seed)
    cotangents = [torch.randn(p.shape, dtype=p.dtype, generator=g) for p in ours]
    wrt = tensors(given)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(ours, wrt, cotangents, allow_unused=True)
    expected = torch.autograd.grad(theirs, wrt, cotangents, allow_unused=True)
    for a, b, leaf in zip(found, expected, wrt):
        b = torch.zeros_like(leaf) if b is None else b
        a = torch.zeros_like(leaf) if a is None else a
        scale = 1 + float(b.abs().max()) if b.numel() else 1
        torch.testing.assert_close(a / scale, b / scale, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_plain(kind, bias):
    assert_same(kind, setting(kind, 6, 3, 4, 0, bias))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_gates_resets_and_frozen_rows(kind, data):
    T, B, H = (data.draw(st.integers(1, n)) for n in (9, 3, 3))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    gates = torch.rand(T, B, generator=g, dtype=torch.float64) * 2
    gates[torch.rand(T, B, generator=g) < 0.4] = 1
    gates[torch.rand(T, B, generator=g) < 0.2] = 0
    # Cuts common to all rows, in half of the examples: the side-by-side walk.
    if data.draw(st.booleans()):
        gates[torch.rand(T, generator=g) < 0.4] = 0
    if data.draw(st.booleans()):
        gates = torch.where(gates == 0, gates, 1)
    reset = torch.rand(T, B, generator=g) < 0.25 if data.draw(st.booleans()) else None
    valid = torch.rand(T, B, generator=g) < 0.7 if data.draw(st.booleans()) else None
    count = 0
    if reset is not None and data.draw(st.booleans()):
        count = int((reset if valid is None else reset & valid).sum())
    assert_same(kind, setting(kind, T, B, H, 1, resets=count), gates, reset, valid)


@pytest.mark.parametrize("rows_together", [1, 2, 512])
@pytest.mark.parametrize("tile", [1, 700, 10**9])
@pytest.mark.parametrize("kind", ["gru", "lstm", "linear", "elstm"])
def test_tiles_and_groups_change_nothing(kind, tile, rows_together, monkeypatch):
    monkeypatch.setattr(walk, "TILE_BYTES", tile)
    monkeypatch.setattr("chronograd.kernels.order.ROWS_TOGETHER", rows_together)
    g = torch.Generator().manual_seed(3)
    gates = torch.ones(14, 2, dtype=torch.float64)
    gates[[3, 4, 8, 13]] = 0
    gates[6, 1] = 1.5
    reset = torch.rand(14, 2, generator=g) < 0.2
    reset[4] = True
    valid = torch.rand(14, 2, generator=g) < 0.8
    given = setting(kind, 14, 2, 3, 4, resets=int((reset & valid).sum()))
    assert_same(kind, given, gates, reset, valid)
    assert_same(kind, setting(kind, 14, 2, 3, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_before_the_first_step_lets_nothing_through(kind):
    given = setting(kind, 3, 2, 2, 0)
    gates = torch.ones(3, 2, dtype=torch.float64)
    gates[0] = 0
    path = run_layer(name(kind), given["drive"], given["initial"], given["W"], None, Edges(gates))
    grads = torch.autograd.grad(sum(p.abs().sum() for p in path), given["initial"])
    assert all(bool((grad == 0).all()) for grad in grads)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    given = setting(kind, 3, 2, 2, 5)
    parts = len(given["initial"])

    def f(drive, W, b, *initial):
        return run_layer(name(kind), drive, initial[:parts], W, b, Edges())

    torch.autograd.gradcheck(f, (given["drive"], given["W"], given["b"], *given["initial"]))


@pytest.mark.parametrize("kind", ["gru", "lstm", "elstm"])
def test_only_what_is_asked_for(kind):
    given = setting(kind, 4, 2, 3, 6)
    drive, W = given["drive"].detach(), given["W"].detach()
    path = run_layer(kind, drive, given["initial"], W, None, Edges())
    assert torch.autograd.grad(path[0][-1].sum(), given["initial"][0])[0].abs().sum() > 0
    with torch.no_grad():
        again = run_layer(kind, drive, given["initial"], W, None, Edges())
    assert all(torch.equal(a, b) for a, b in zip(path, again))
    assert not again[0].requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_what_padding_holds_reaches_no_gradient_of_the_recurrence(kind):
    given = setting(kind, 4, 2, 3, 7)
    valid = torch.ones(4, 2, dtype=torch.bool)
    valid[2:, 1] = False
    drive = given["drive"].detach().clone()
    drive[2:, 1] = float("nan")
    drive.requires_grad_()
    path = run_layer(name(kind), drive, given["initial"], given["W"], given["b"], Edges(None, None, valid))
    assert all(bool(torch.isfinite(torch.view_as_real(p) if p.is_complex() else p).all()) for p in path)
    grads = torch.autograd.grad(path[0].abs().sum(), [drive, given["W"], given["b"], *given["initial"]])
    for grad in grads:
        assert bool(torch.isfinite(torch.view_as_real(grad) if grad.is_complex() else grad).all())
    assert bool((grads[0][2:, 1] == 0).all())


def test_a_gate_of_zero_stops_an_infinite_flow():
    drive = torch.zeros(3, 1, 1, dtype=torch.float64, requires_grad=True)
    W = torch.full((1, 1), 1e200, dtype=torch.float64)
    gates = torch.tensor([[1.0], [0.0], [1.0]], dtype=torch.float64)
    gates = gates.repeat(1, 2)
    gates[1, 1] = 1  # no cut common to both rows
    two = drive.expand(3, 2, 1)
    path = run_layer("linear", two, (torch.zeros(2, 1, dtype=torch.float64),), W, None, Edges(gates))
    cotangent = torch.zeros_like(path[0])
    cotangent[2] = 1e200
    (found,) = torch.autograd.grad(path[0], two, cotangent)
    assert found[0, 0] == 0 and found[0, 1] == float("inf")


def test_twice_is_refused():
    given = setting("tanh", 3, 2, 2, 0)
    path = run_layer("tanh", given["drive"], given["initial"], given["W"], None, Edges())
    with pytest.raises(RuntimeError, match="differentiated twice"):
        torch.autograd.grad(path[0].sum(), given["W"], create_graph=True)


def test_outputs_can_be_changed_in_place():
    given = setting("gru", 3, 2, 2, 0)
    outputs = run_layer("gru", given["drive"], given["initial"], given["W"], None, Edges())[0]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.mul_(2).sum().backward()
