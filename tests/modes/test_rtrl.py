"""Real-time recurrent learning against the walk back, autograd and the section's own recursion."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

import chronograd as cg
from chronograd.recurrence.sensitivity import forward_sensitivity, linearize
from oracle import Deep, Opaque, assert_close, assert_same_grads, squared

T, B = 11, 3
torch.manual_seed(0)
X, Y = torch.randn(T, B, 2, dtype=torch.float64), torch.randn(T, B, 2, dtype=torch.float64)
RESET = torch.zeros(T, B, dtype=torch.bool)
RESET[4, 0] = RESET[8, 1] = RESET[4, 2] = True
EDGES = {
    "plain": {},
    "reset": {"reset": RESET},
    "all": {"reset": RESET, "lengths": torch.tensor([T, 9, 6]), "weights": torch.rand(T, B, dtype=torch.float64)},
}
GATES = [cg.Full(), cg.Chunks(4), cg.Window(5, 2), cg.RandomTruncation(3), cg.RandomTruncation(3, tail="polynomial")]


class Read(nn.Module):
    """A layer, and a readout of the real parts of its states."""

    def __init__(self, layer, units):
        super().__init__()
        self.layer, self.readout = layer, nn.Linear(units, 2)

    def forward(self, x, state=None):
        states, state = self.layer(x, state)
        return self.readout(states.real if states.is_complex() else states), state


class Begun(nn.Module):
    """A cell whose initial state is learned."""

    def __init__(self):
        super().__init__()
        self.cell, self.begin = nn.GRUCell(2, 2), nn.Parameter(torch.randn(2))

    def forward(self, x, state):
        return self.cell(x, self.begin.expand(len(x), 2) if state is None else state)


class Branching(nn.Module):
    """A cell that ``torch.func`` cannot follow: it looks at its numbers, and writes in place."""

    def __init__(self):
        super().__init__()
        self.cell = nn.RNNCell(2, 2)

    def forward(self, x, state):
        state = x.new_zeros(len(x), 2) if state is None else state
        after = self.cell(x, state)
        scale = torch.empty_like(after)
        for row in range(len(x)):
            scale[row] = 2.0 if float(x[row].detach().sum()) > 0 else 0.5
        return after * scale


class Glance(nn.Module):
    """Outputs look at h_{t-1} and at a parameter that the recurrence uses too."""

    def __init__(self):
        super().__init__()
        self.cell = nn.RNNCell(2, 2)

    def forward(self, x, state=None):
        state = x.new_zeros(x.shape[1], 2) if state is None else state
        outputs = []
        for step in x:
            after = self.cell(step, state)
            outputs.append(after * state @ self.cell.weight_ih)
            state = after
        return torch.stack(outputs), state


class Embedded(nn.Module):
    """Parameters before the recurrence, in it, and shared with the readout."""

    def __init__(self):
        super().__init__()
        self.code, self.layer = nn.Linear(2, 2), cg.RNN(2, 2)

    def forward(self, x, state=None):
        states, state = self.layer(self.code(x), state)
        return states @ self.code.weight, state


MODELS = {
    "tanh": lambda: Read(cg.RNN(2, 4), 4),
    "relu": lambda: Read(cg.RNN(2, 4, nonlinearity="relu", bias=False), 4),
    "gru": lambda: Read(cg.GRU(2, 3, num_layers=2), 3),
    "lstm": lambda: Read(cg.LSTM(2, 3, num_layers=2), 3),
    "torch": lambda: Read(nn.LSTM(2, 3), 3),
    "linear": lambda: Read(cg.LinearRNN(2, 4, bias=True), 4),
    "diagonal": lambda: Read(cg.DiagonalRNN(2, 4, bias=True), 4),
    "complex": lambda: Read(cg.DiagonalRNN(2, 4, complex=True), 4),
    "deep": lambda: Deep(cg.LSTM(3, 3), nn.GRU(3, 3)),
    "opaque": Opaque,
    "begun": lambda: cg.Recurrent(Begun()),
    "branching": lambda: cg.Recurrent(Branching()),
    "glance": Glance,
    "embedded": Embedded,
}


def build(name):
    torch.manual_seed(1)
    model = MODELS[name]()
    for module in model.modules():
        for key, value in module._parameters.items():
            if value is not None:
                wide = torch.complex128 if value.is_complex() else torch.float64
                module._parameters[key] = nn.Parameter(value.detach().to(wide))
    return model


def gradient(model, mode, x=X, y=Y, carry=None, **options):
    options = {"truncation": cg.Full(), **options}
    return cg.value_and_grad(model, squared, x, y, carry, mode=mode, **options)


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
        assert a == b if isinstance(a, str) else torch.allclose(a, b, rtol=1e-10)


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


def test_after_a_step_the_influence_is_stale_and_stays_finite():
    model, carry = build("tanh"), None
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for begin in range(T):
        part, carry = gradient(model, cg.RTRL(), X[begin : begin + 1], Y[begin : begin + 1], carry)
        part.assign(model)
        optimizer.step()
    fresh, _ = gradient(model, cg.Reverse())
    assert all(torch.isfinite(grad).all() for grad in fresh.grads.values())


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
