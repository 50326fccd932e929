"""Real-time recurrent learning against the walk back, autograd and the section's own recursion."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn
from torch.func import functional_call

import chronograd as cg
from chronograd.recurrence.sensitivity import forward_sensitivity, linearize
from forward_case import EDGES, GATES, MODELS, RESET, B, Read, T, X, Y, build, gradient
from oracle import assert_close, assert_same_grads, squared


@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize("truncation", GATES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_walk_back(name, truncation, edges):
    model = build(name)
    ours, _ = gradient(model, cg.RTRL(), truncation=truncation, seed=2, **EDGES[edges])
    theirs, _ = gradient(model, cg.Reverse(), truncation=truncation, seed=2, **EDGES[edges])
    assert_close(ours.loss, theirs.loss)
    assert_same_grads(ours.grads, theirs.grads)


@pytest.mark.parametrize("name", ["tanh", "lstm", "diagonal", "complex", "opaque", "begun"])
def test_a_stream_of_calls_equals_one_call_and_stays_small(name):
    model, carry, total = build(name), None, None
    sizes = []
    for begin, end in ((0, 1), (1, 2), (2, 3), (3, 7), (7, T)):
        part, carry = gradient(model, cg.RTRL(), X[begin:end], Y[begin:end], carry, reset=RESET[begin:end])
        file = io.BytesIO()
        torch.save(carry.state_dict(), file)
        sizes.append(file.tell())
        file.seek(0)
        carry = cg.Carry.from_state_dict(torch.load(file, weights_only=True))
        total = part if total is None else total + part
    whole, last = gradient(model, cg.RTRL(), reset=RESET)
    assert_same_grads(total.grads, whole.grads)
    assert carry.open_steps == 0 and carry.stream.position == T
    assert max(sizes) - min(sizes) < 600
    for a, b in zip(torch.utils._pytree.tree_leaves(carry.mode), torch.utils._pytree.tree_leaves(last.mode)):
        assert torch.allclose(a, b, rtol=1e-10) if isinstance(a, torch.Tensor) else a == b


def test_the_influence_is_the_sections_recursion():
    torch.manual_seed(2)
    cell = nn.RNNCell(2, 3, bias=False).double()
    model = cg.Recurrent(cell)
    w = torch.cat([cell.weight_ih.flatten(), cell.weight_hh.flatten()]).detach()

    def step(x, h, w):
        return torch.tanh(w[:6].view(3, 2) @ x + w[6:].view(3, 3) @ h)

    _, carry = cg.value_and_grad(model, squared, X, X[..., :1], mode=cg.RTRL())
    for row in range(B):
        exact = forward_sensitivity(linearize(step, X[:, row], torch.zeros(3, dtype=torch.float64), w))[-1]
        assert_close(carry.mode["influence"]["matrix"][row], exact)


def test_cut_forgets_the_influence():
    model = build("tanh")
    _, carry = gradient(model, cg.RTRL(), X[:5], Y[:5])
    ours, _ = gradient(model, cg.RTRL(), X[5:], Y[5:], carry.cut())
    theirs, _ = gradient(model, cg.Reverse(), X[5:], Y[5:], cg.Carry.start(B, state=carry.state))
    assert_same_grads(ours.grads, theirs.grads)


@pytest.mark.parametrize("name", ["tanh", "lstm", "diagonal", "opaque"])
def test_after_a_step_the_influence_is_that_of_the_old_parameters(name):
    """A push on the parameters of all steps alike, each step under the ones that it was taken with."""
    model, carry, state = build(name), None, None
    push = {key: torch.zeros_like(value, requires_grad=True) for key, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for begin in range(T):
        x, y = X[begin : begin + 1], Y[begin : begin + 1]
        pushed = {key: value.detach().clone() + push[key] for key, value in model.named_parameters()}
        outputs, state = functional_call(model, pushed, (x, state))
        stale = torch.autograd.grad(squared(outputs, y).mean(), list(push.values()), retain_graph=True)
        part, carry = gradient(model, cg.RTRL(), x, y, carry)
        assert_same_grads(part.grads, dict(zip(push, stale)))
        part.assign(model)
        optimizer.step()


def test_what_is_refused():
    model = build("tanh")
    _, back = gradient(model, cg.Reverse(), X[:5], Y[:5])
    with pytest.raises(ValueError, match="holds 5 open steps of a mode that walks back.*carry.cut"):
        gradient(model, cg.RTRL(), X[5:], Y[5:], back)
    _, forward = gradient(model, cg.RTRL(), X[:5], Y[:5])
    with pytest.raises(ValueError, match="what mode rtrl knows of the past.*carry.cut"):
        gradient(model, cg.Reverse(), X[5:], Y[5:], forward)
    other = Read(cg.RNN(2, 6), 6).double()
    with pytest.raises(ValueError, match="this model's would be|the carry's state is"):
        gradient(other, cg.RTRL(), X[5:], Y[5:], forward)
    with pytest.raises(ValueError, match="use mode=cg.Reverse"):
        gradient(model, cg.RTRL(), truncation=cg.Window(1, 5))
    with pytest.raises(ValueError, match="leave wrt_inputs out"):
        gradient(model, cg.RTRL(), wrt_inputs=True)
    with pytest.raises(ValueError, match="carry an autograd graph"):
        gradient(model, cg.RTRL(), X * torch.ones((), dtype=torch.float64, requires_grad=True))
    with pytest.raises(ValueError, match="above its limit"):
        gradient(model, cg.RTRL(limit=100))
    with pytest.raises(ValueError, match="draws random numbers"):
        gradient(Read(nn.LSTM(2, 3, 2, dropout=0.5), 3).double(), cg.RTRL())
    with pytest.raises(ValueError, match="hides its steps"):
        gradient(Read(nn.GRU(2, 3, bidirectional=True), 6).double(), cg.RTRL())
    for limit in (0, -1, True, 1.5):
        with pytest.raises(ValueError, match="limit must be a positive number of bytes"):
            cg.RTRL(limit=limit)


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_stacked_layers_go_on_with_a_single_row(name):
    model, carry, total = build(name), None, None
    for begin, end in ((0, 1), (1, 4), (4, T)):
        part, carry = gradient(model, cg.RTRL(), X[begin:end, :1], Y[begin:end, :1], carry)
        total = part if total is None else total + part
    theirs, _ = gradient(model, cg.Reverse(), X[:, :1], Y[:, :1])
    assert_same_grads(total.grads, theirs.grads)


class Clocked(nn.Module):
    """Every third step is another cell's, which so reaches the state late; rows have clocks of their own."""

    def __init__(self):
        super().__init__()
        self.cells = nn.ModuleList([nn.RNNCell(2, 2), nn.RNNCell(2, 2)])

    def forward(self, x, state=None):
        h, clock = state or (x.new_zeros(x.shape[1], 2), x.new_zeros(x.shape[1], dtype=torch.int64))
        outputs = []
        for step in x:
            h = torch.stack([self.cells[int(c) % 3 == 2](step[row], h[row]) for row, c in enumerate(clock)])
            clock = clock + 1
            outputs.append(h)
        return torch.stack(outputs), (h, clock)


@pytest.mark.parametrize("mode", [cg.RTRL(), cg.SnAp(2)], ids=str)
@pytest.mark.parametrize("calls", [[T], [1] * T, [2, 1, 5, 3]], ids=str)
def test_parameters_may_reach_the_state_late(calls, mode):
    model, carry, total = Clocked().double(), None, None
    for x, y, reset in zip(X.split(calls), Y.split(calls), RESET.split(calls)):
        part, carry = gradient(model, mode, x, y, carry, reset=reset)
        carry = cg.Carry.from_state_dict(carry.state_dict())
        total = part if total is None else total + part
    assert_same_grads(total.grads, gradient(model, cg.Reverse(), reset=RESET)[0].grads)


def test_what_is_trained_before_layers_on_some_steps_only_is_refused():
    class Started(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.instead = cg.GRU(2, 2), nn.Parameter(torch.ones(2))

        def forward(self, x, state=None):
            missing = x[..., :1] > 9
            return self.layer(torch.where(missing, self.instead, x) if bool(missing.any()) else x, state)

    x = X.clone()
    x[5, 0] = 10.0
    with pytest.raises(ValueError, match="did not at the first step.*use mode=cg.Reverse"):
        gradient(Started().double(), cg.RTRL(), x)


def test_a_carry_after_freezing_is_refused():
    model = build("opaque")
    _, carry = gradient(model, cg.RTRL(), X[:5], Y[:5])
    name = carry.mode["names"][0]
    model.get_parameter(name).requires_grad_(False)
    with pytest.raises(ValueError, match=f"influence of {name} .*carry.cut"):
        gradient(model, cg.RTRL(), X[5:], Y[5:], carry)
    gradient(model, cg.RTRL(), X[5:], Y[5:], carry.cut())
