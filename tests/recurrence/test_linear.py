"""LinearRNN and DiagonalRNN against a plain loop, and against the section's closed form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import chronograd as cg
from chronograd.kernels import Edges
from chronograd.recurrence.adapters import adapt


def made(kind, d, H, bias):
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    layer = cg.LinearRNN(d, H, bias) if kind == "full" else cg.DiagonalRNN(d, H, bias, complex=kind == "complex")
    torch.set_default_dtype(torch.float32)
    if bias:
        torch.nn.init.normal_(layer.bias.real if kind != "complex" else torch.view_as_real(layer.bias.detach()))
    return layer


def loop(layer, x, state, gates):
    h = torch.zeros(x.shape[1], layer.hidden_size, dtype=layer.weight_hh.dtype) if state is None else state[0]
    path = []
    for t in range(x.shape[0]):
        xi = gates[t].unsqueeze(-1)
        h = xi * h + (1 - xi) * h.detach()
        h = x[t].to(h.dtype) @ layer.weight_ih.T + (
            layer.weight_hh * h if layer.weight_hh.dim() == 1 else h @ layer.weight_hh.T
        )
        h = h if layer.bias is None else h + layer.bias
        path.append(h)
    return torch.stack(path), h.unsqueeze(0)


@pytest.mark.parametrize("kind", ["full", "diagonal", "complex"])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_equal_a_plain_loop(kind, data):
    T, B, d, H = (data.draw(st.integers(1, n)) for n in (6, 3, 3, 3))
    layer = made(kind, d, H, data.draw(st.booleans()))
    x = torch.randn(T, B, d, dtype=torch.float64, requires_grad=True)
    state = torch.randn(1, B, H, dtype=layer.weight_hh.dtype).requires_grad_() if data.draw(st.booleans()) else None
    gates = torch.ones(T, B, dtype=torch.float64)
    if data.draw(st.booleans()):
        gates = torch.where(torch.rand(T, B) < 0.5, torch.rand(T, B, dtype=torch.float64), gates)
        gates = torch.where(torch.rand(T, 1) < 0.3, 0, gates)
    ours, theirs = adapt(layer, x).run(x, state, Edges(gates)), loop(layer, x, state, gates)
    wrt = [x, *layer.parameters(), *([] if state is None else [state])]
    cotangents = [torch.randn_like(part) for part in theirs]
    found = [*ours, *torch.autograd.grad(ours, wrt, cotangents, allow_unused=True)]
    expected = [*theirs, *torch.autograd.grad(theirs, wrt, cotangents, allow_unused=True)]
    for a, b in zip(found, expected):
        if a is None or b is None:
            # A state that no gate lets through: zero, or not reached at all.
            assert all(part is None or bool((part == 0).all()) for part in (a, b))
            continue
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_complex_eigenvalues_of_a_real_rotation():
    """A full W_hh = [[a, -b], [b, a]] is one complex unit of eigenvalue a + bi."""
    full, unit = made("full", 1, 2, False), made("complex", 1, 1, False)
    with torch.no_grad():
        unit.weight_hh.copy_(torch.tensor([0.6 + 0.7j]))
        unit.weight_ih.copy_(torch.tensor([[0.3 - 0.2j]]))
        full.weight_hh.copy_(torch.tensor([[0.6, -0.7], [0.7, 0.6]]))
        full.weight_ih.copy_(torch.tensor([[0.3], [-0.2]]))
    x = torch.randn(7, 2, 1, dtype=torch.float64)
    torch.testing.assert_close(full(x)[0], torch.view_as_real(unit(x)[0]).squeeze(2))


def test_nothing_explodes_at_the_start():
    torch.manual_seed(0)
    assert torch.linalg.eigvals(cg.LinearRNN(2, 16).weight_hh).abs().max() < 0.91
    for complex in (False, True):
        size = cg.DiagonalRNN(2, 100, complex=complex).weight_hh.abs()
        assert size.min() >= 0.5 and size.max() <= 0.99


@pytest.mark.parametrize("kind", [cg.LinearRNN, cg.DiagonalRNN, cg.ELSTM])
def test_errors_are_one_clear_line(kind):
    layer, name = kind(3, 4), kind.__name__
    cases = [
        (lambda: kind(0, 4), f"{name}: input_size must be a whole number of at least 1, not 0"),
        (lambda: kind(3, 2.5), f"{name}: hidden_size must be a whole number"),
        (lambda: kind(2.0, 3), f"{name}: input_size must be a whole number of at least 1, not 2.0"),
        (lambda: kind(True, 2), f"{name}: input_size must be a whole number of at least 1, not True"),
        (lambda: kind("3", 2), f"{name}: input_size must be a whole number of at least 1, not '3'"),
        (lambda: layer(torch.zeros(5, 2, 7)), f"{name}: expected input (T, B, 3), got (5, 2, 7)"),
        (lambda: layer(torch.zeros(5, 3)), f"{name}: expected input (T, B, 3)"),
        (lambda: layer(torch.zeros(0, 2, 3)), f"{name}: expected at least one step"),
        (lambda: layer(torch.zeros(5, 2, 3), torch.zeros(2, 4)), f"{name}: state has shape (2, 4), expected (1, 2, 4)"),
        (lambda: layer(torch.zeros(5, 2, 3).double()), f"{name}: input is torch.float64, but the weights are"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError) as error:
            call()
        assert message in str(error.value) and "\n" not in str(error.value)
    h = torch.zeros(1, 2, 4)
    for call, message in [
        (lambda: layer(torch.zeros(5, 2, 3), (h,)), f"{name}: state must be a tensor (1, B, 4) or None, not (tensor("),
        (lambda: layer(torch.zeros(5, 2, 3), {"h": h}), f"{name}: state must be a tensor"),
        (lambda: layer([[[1.0, 2.0, 3.0]]]), f"{name}: input must be a tensor (T, B, d), not [[[1.0, 2.0, 3.0]]]"),
    ]:
        with pytest.raises(TypeError) as error:
            call()
        assert message in str(error.value) and "\n" not in str(error.value)
    assert repr(layer) == f"{name}(3, 4, bias={layer.bias is not None})"
