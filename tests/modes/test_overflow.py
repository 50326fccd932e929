"""Powers that overflow where the states do not: what a loop multiplies by zero, a scan must not make NaN of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import chronograd as cg
from oracle import assert_close, squared

STEPS = 1000  # a scan multiplies 256 steps together, and 2^256 is beyond float32


def inputs():
    torch.manual_seed(0)
    x = torch.randn(STEPS, 2, 2)
    x[..., 0] = 0  # the direction that grows stays empty
    return x


def by_hand(step, x, weights):
    """Loss and gradients of a loop of single steps, by autograd."""
    h, losses = x.new_zeros(2, 2), []
    for one in x:
        h = step(one, h)
        losses.append(h[:, 1:].square().sum(-1))  # of what does not grow: its cotangents do not either
    loss = torch.stack(losses).mean()
    return loss.detach(), torch.autograd.grad(loss, weights)


def second(outputs, targets):
    return outputs[..., 1:].square().sum(-1)


def close(gradient, loss, grads):
    assert_close(gradient.loss, loss, 1e-5)
    for ours, theirs in zip(gradient.grads.values(), grads, strict=True):
        assert_close(ours, theirs, 1e-5)


@pytest.mark.parametrize("kind", ["linear", "diagonal"])
def test_linear_layers_take_the_loop_and_say_so(kind):
    model, x = (cg.LinearRNN(2, 2) if kind == "linear" else cg.DiagonalRNN(2, 2)), inputs()
    with torch.no_grad():
        model.weight_ih.copy_(torch.eye(2))
        model.weight_hh.copy_(torch.diag(torch.tensor([2.0, 0.5])) if kind == "linear" else torch.tensor([2.0, 0.5]))
    through = (lambda h: h @ model.weight_hh.T) if kind == "linear" else (lambda h: h * model.weight_hh)
    loss, grads = by_hand(lambda one, h: one @ model.weight_ih.T + through(h), x, list(model.parameters()))
    ours, _ = cg.value_and_grad(model, second, x, x, mode=cg.Scan(always=True))
    close(ours, loss, grads)
    assert [way.how for way in ours.how] == ["loop"] and "too large for a scan" in str(ours.how[0])


class Slope(nn.Module):
    """A linear step that is not known as one."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.diag(torch.tensor([2.0, 0.5])))

    def forward(self, x, h):
        return x if h is None else x + h @ self.weight.mT


def test_the_way_back_over_jacobians_goes_step_by_step_and_says_so():
    model, x = cg.Recurrent(Slope()), inputs()
    loss, grads = by_hand(lambda one, h: model.cell(one, h), x, list(model.parameters()))
    ours, _ = cg.value_and_grad(model, second, x, x, mode=cg.Scan("loop"))
    close(ours, loss, grads)
    assert [way.how for way in ours.how] == ["jacobians", "loop"] and "way back: loop (products" in str(ours.how[1])


def test_states_that_overflow_in_the_loop_too_are_the_loops():
    model, x = cg.DiagonalRNN(2, 2), inputs()
    with torch.no_grad():
        model.weight_hh.fill_(2.0)
    x[:] = 1
    ours, _ = cg.value_and_grad(model, squared, x, x, mode=cg.Scan(always=True))
    theirs, _ = cg.value_and_grad(model, squared, x, x)
    assert ours.loss == theirs.loss == torch.inf
    for name, grad in theirs.grads.items():
        assert torch.equal(ours.grads[name].nan_to_num(), grad.nan_to_num())
