"""ELSTM against a plain loop of torch operations, the recursion of its influence, and finite differences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import chronograd as cg
from chronograd.kernels import Edges
from chronograd.recurrence.adapters import adapt


def made(d, H, bias=True):
    torch.manual_seed(0)
    layer = cg.ELSTM(d, H, bias).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


def loop(layer, x, state, gates, reset, valid):
    """The formulas of the paper, one step and gate after the other."""
    W_z, W_f = layer.weight_ih.chunk(2)
    w_z, w_f = layer.weight_hh.chunk(2)
    b_z, b_f = (0, 0) if layer.bias is None else layer.bias.chunk(2)
    c, path = torch.zeros(x.shape[1], layer.hidden_size).double() if state is None else state[0], []
    for t in range(len(x)):
        xi = gates[t].unsqueeze(-1)
        before = torch.where(reset[t].unsqueeze(-1), 0, xi * c + (1 - xi) * c.detach())
        z = torch.tanh(x[t] @ W_z.T + w_z * before + b_z)
        f = torch.sigmoid(x[t] @ W_f.T + w_f * before + b_f)
        c = torch.where(valid[t].unsqueeze(-1), f * before + (1 - f) * z, xi * c + (1 - xi) * c.detach())
        path.append(c)
    return torch.stack(path), c.unsqueeze(0)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_equal_a_plain_loop(data):
    T, B, d, H = (data.draw(st.integers(1, n)) for n in (9, 3, 3, 3))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    layer = made(d, H, data.draw(st.booleans()))
    x = torch.randn(T, B, d, dtype=torch.float64, generator=g, requires_grad=True)
    state = (
        torch.randn(1, B, H, dtype=torch.float64, generator=g).requires_grad_() if data.draw(st.booleans()) else None
    )
    gates, reset = torch.ones(T, B, dtype=torch.float64), torch.zeros(T, B, dtype=torch.bool)
    valid = ~reset
    if data.draw(st.booleans()):
        gates = torch.where(torch.rand(T, B, generator=g) < 0.5, 2 * torch.rand(T, B, generator=g).double(), gates)
        gates[torch.rand(T, generator=g) < 0.3] = 0
    if data.draw(st.booleans()):
        valid = torch.rand(T, B, generator=g) < 0.8
    if data.draw(st.booleans()):
        reset = (torch.rand(T, B, generator=g) < 0.2) & valid
    ours = adapt(layer, x).run(x, state, Edges(gates, reset, valid))
    theirs = loop(layer, x, state, gates, reset, valid)
    wrt = [x, *layer.parameters(), *([] if state is None else [state])]
    cotangents = [torch.randn(part.shape, dtype=torch.float64, generator=g) for part in theirs]
    found = [*ours, *torch.autograd.grad(ours, wrt, cotangents, allow_unused=True)]
    expected = [*theirs, *torch.autograd.grad(theirs, wrt, cotangents, allow_unused=True)]
    for a, b in zip(found, expected):
        if a is None or b is None:
            # A state that no gate lets through: zero, or not reached at all.
            assert all(part is None or bool((part == 0).all()) for part in (a, b))
            continue
        scale = 1 + float(b.detach().abs().max())
        torch.testing.assert_close(a / scale, b / scale, rtol=0, atol=1e-12)


def influence_gradient(layer, x, given):
    """Gradients by real-time recurrent learning, walking forward: field by field dc/dtheta <- k dc/dtheta + its own
    part, each as large as the parameters for each row. ``given`` (T, B, H) are the losses' derivatives by the states.
    """
    T, B, d = x.shape
    H = layer.hidden_size
    W_z, W_f = layer.weight_ih.chunk(2)
    w_z, w_f = layer.weight_hh.chunk(2)
    b_z, b_f = layer.bias.chunk(2)
    c = x.new_zeros(B, H)
    Z, F = x.new_zeros(B, H, d), x.new_zeros(B, H, d)
    wz, wf, bz, bf = (x.new_zeros(B, H) for _ in range(4))
    total = {name: torch.zeros_like(part) for name, part in layer.named_parameters()}
    for t in range(T):
        z = torch.tanh(x[t] @ W_z.T + w_z * c + b_z)
        f = torch.sigmoid(x[t] @ W_f.T + w_f * c + b_f)
        zf, fz = (1 - f) * (1 - z * z), (c - z) * f * (1 - f)
        k = f + zf * w_z + fz * w_f
        Z = k.unsqueeze(-1) * Z + zf.unsqueeze(-1) * x[t].unsqueeze(1)
        F = k.unsqueeze(-1) * F + fz.unsqueeze(-1) * x[t].unsqueeze(1)
        wz, wf = c * zf + k * wz, c * fz + k * wf
        bz, bf = zf + k * bz, fz + k * bf
        c = f * c + (1 - f) * z
        g = given[t]
        total["weight_ih"] += torch.cat([(g.unsqueeze(-1) * part).sum(0) for part in (Z, F)])
        total["weight_hh"] += torch.cat([(g * part).sum(0) for part in (wz, wf)])
        total["bias"] += torch.cat([(g * part).sum(0) for part in (bz, bf)])
    return c, total


def test_the_influence_that_walks_forward_gives_the_same_gradient():
    """Irie et al.'s own check: 70 steps, 10 rows, 5 units, 3 features."""
    layer, x = made(3, 5), torch.randn(70, 10, 3, dtype=torch.float64)
    given = torch.randn(70, 10, 5, dtype=torch.float64)
    outputs, state = layer(x)
    found = torch.autograd.grad(outputs, list(layer.parameters()), given)
    with torch.no_grad():
        c, expected = influence_gradient(layer, x, given)
    torch.testing.assert_close(state[0], c, rtol=1e-12, atol=1e-12)
    for ours, (name, theirs) in zip(found, expected.items(), strict=True):
        assert (ours - theirs).abs().max() < 1e-10 * theirs.abs().max(), name


@pytest.mark.parametrize("bias", [True, False])
def test_finite_differences(bias):
    layer = made(2, 3, bias)
    x, state = torch.randn(4, 2, 2).double().requires_grad_(), torch.randn(1, 2, 3).double().requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def run(x, state, *weights):
        return torch.func.functional_call(layer, dict(zip(names, weights)), (x, state))

    assert torch.autograd.gradcheck(run, (x, state, *layer.parameters()))


def test_the_state_is_a_mean_of_what_it_was_and_a_tanh():
    """c_t lies between c_{t-1} and z_t, so no input drives it out of [-1, 1]."""
    layer, x = made(2, 4), 50 * torch.randn(200, 3, 2, dtype=torch.float64)
    outputs, _ = layer(x)
    assert outputs.abs().max() <= 1
    with torch.no_grad():
        layer.bias[4:] = 1e3  # a forget gate that is 1 whatever the inputs keeps the state for ever
        layer.weight_ih[4:] = layer.weight_hh[4:] = 0
    start = torch.randn(1, 3, 4, dtype=torch.float64)
    assert torch.equal(layer(x, start)[0], start.expand(200, -1, -1))


def test_shapes_names_and_the_start():
    layer = cg.ELSTM(3, 4)
    assert {name: tuple(part.shape) for name, part in layer.state_dict().items()} == {
        "weight_ih": (8, 3),
        "weight_hh": (8,),
        "bias": (8,),
    }
    assert cg.ELSTM(3, 4, bias=False).bias is None
    assert layer.weight_hh.abs().max() <= 0.5 and layer.bias.tolist() == [0.0] * 4 + [1.0] * 4
    outputs, state = layer(torch.randn(5, 2, 3))
    assert outputs.shape == (5, 2, 4) and state.shape == (1, 2, 4)
    with pytest.raises(RuntimeError, match="differentiated twice"):
        torch.autograd.grad(outputs.sum(), layer.weight_hh, create_graph=True)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_complex_weights_are_refused():
    layer = cg.ELSTM(3, 4).to(torch.complex64)
    with pytest.raises(ValueError, match="torch.complex64, but its gates take real numbers only"):
        layer(torch.randn(5, 2, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_near(dtype):
    layer, x = made(3, 4), torch.randn(20, 2, 3).double().to(dtype)
    exact = layer(x.double())[0]
    near = layer.to(dtype)(x)[0]
    assert near.dtype == dtype and (near.double() - exact).abs().max() < 0.1
