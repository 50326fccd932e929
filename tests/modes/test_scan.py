"""``mode=cg.Scan()`` under the one door, against losses unrolled one by one (``oracle.brute_force``) and the loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import tree_leaves

import chronograd as cg
from chronograd.truncation import Place
from oracle import Deep, assert_close, assert_same_grads, brute_force, squared


class Nested(nn.Module):
    """A cell with a nested state, one part a matrix, and a learned initial state."""

    def __init__(self):
        super().__init__()
        self.start = nn.Parameter(torch.randn(2) / 2)
        self.mix = nn.Linear(2 + 2 + 4, 2 + 4)

    def forward(self, x, state):
        h, c = (self.start.expand(len(x), -1), x.new_zeros(len(x), 2, 2)) if state is None else (state["h"], state["c"])
        new = self.mix(torch.cat((x, h, c.flatten(1)), -1))
        return {"h": new[:, :2].tanh(), "c": (0.5 * c + 0.5 * new[:, 2:].view(-1, 2, 2).sin())}


class Read(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 2)

    def forward(self, states):
        return self.linear(torch.cat((states["h"], states["c"].flatten(2)), -1))


MODELS = {
    "linear": lambda: Deep(cg.LinearRNN(3, 3, bias=True), cg.DiagonalRNN(3, 3)),
    "own": lambda: Deep(cg.GRU(3, 3, num_layers=2), cg.RNN(3, 3)),
    "elstm": lambda: Deep(cg.ELSTM(3, 3), cg.ELSTM(3, 3, bias=False)),
    "torch": lambda: Deep(nn.LSTM(3, 3), nn.RNN(3, 3, nonlinearity="relu")),
    "cell": lambda: cg.Recurrent(nn.GRUCell(2, 3), nn.Linear(3, 2)),
    "nested": lambda: cg.Recurrent(Nested(), Read()),
}
MODES = [cg.Scan(always=True), cg.Scan("quasi", always=True), cg.Scan("loop", always=True), cg.Scan()]
GATES = {
    "full": lambda k: (cg.Full(), lambda t, s, b: 1.0),
    "chunks": lambda k: (cg.Chunks(k), lambda t, s, b: float(s % k != 0)),
    "window": lambda k: (cg.Window(k, k), lambda t, s, b: float(s % k != 0)),
}


@st.composite
def cases(draw):
    steps, rows = draw(st.integers(1, 8)), draw(st.integers(1, 2))
    random = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    bounds = sorted(draw(st.sets(st.integers(1, steps - 1), max_size=2))) if steps > 1 else []
    reset = torch.rand(steps, rows, generator=random) < draw(st.sampled_from([0.0, 0.25]))
    valid, lengths = torch.ones(steps, rows, dtype=torch.bool), []
    for begin, end in zip([0, *bounds], [*bounds, steps]):
        # A row that has had no step begins late, which the oracle does not know.
        length = torch.tensor([draw(st.integers(1 if begin == 0 else 0, end - begin)) for _ in range(rows)])
        lengths.append(length)
        valid[begin:end] = torch.arange(end - begin).unsqueeze(1) < length
    return steps, rows, bounds, reset & valid, valid, lengths, random


def run(model, x, y, bounds, reset, lengths, truncation, mode, seed=7):
    carry, total = cg.Carry.start(x.shape[1], seed=seed), None
    for number, (begin, end) in enumerate(zip([0, *bounds], [*bounds, len(x)])):
        part = slice(begin, end)
        options = {"reset": reset[part], "lengths": lengths[number]}
        gradient, carry = cg.value_and_grad(
            model, squared, x[part], y[part], carry, truncation=truncation, mode=mode, **options
        )
        total = gradient if total is None else total + gradient
    return total, carry


@pytest.mark.filterwarnings("ignore:value_and_grad with Full")
@given(
    cases(), st.sampled_from(sorted(MODELS)), st.sampled_from(MODES), st.sampled_from(sorted(GATES)), st.integers(1, 4)
)
@settings(max_examples=90, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_loss_by_itself(case, name, mode, kind, k):
    steps, rows, bounds, reset, valid, lengths, random = case
    torch.manual_seed(int(torch.randint(999, (), generator=random)))
    model = MODELS[name]().double()
    x, y = (torch.randn(steps, rows, 2, dtype=torch.float64, generator=random) for _ in range(2))
    truncation, gate = GATES[kind](k)
    ours, _ = run(model, x, y, bounds, reset, lengths, truncation, mode)
    loss, grads, _, _ = brute_force(model, squared, x, y, gate, reset=reset, valid=valid)
    assert_close(ours.loss, loss)
    assert_same_grads(ours.grads, grads, 1e-9 if mode.forward == "quasi" else 1e-10)


@given(cases(), st.sampled_from(sorted(MODELS)), st.sampled_from(MODES))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_gates(case, name, mode):
    steps, rows, _, reset, valid, _, random = case
    length = valid.sum(0)
    valid = torch.arange(steps).unsqueeze(1) < length
    reset &= valid
    torch.manual_seed(0)
    model, truncation = MODELS[name]().double(), cg.RandomTruncation(2)
    x, y = (torch.randn(steps, rows, 2, dtype=torch.float64, generator=random) for _ in range(2))
    ours, _ = run(model, x, y, [], reset, [length], truncation, mode)
    gates = truncation.plan(Place(0, steps, torch.arange(rows), 7, torch.zeros(rows, dtype=torch.int64), reset)).gates
    gate = lambda t, s, b: float(gates[s, b])  # noqa: E731
    loss, grads, _, _ = brute_force(model, squared, x, y, gate, reset=reset, valid=valid)
    assert_close(ours.loss, loss)
    assert_same_grads(ours.grads, grads, 1e-9)


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("truncation", [cg.Full(), cg.Chunks(6), cg.RandomTruncation(8)], ids=str)
def test_the_loop_over_longer_streams(name, mode, truncation):
    """Long enough for two levels of blocks; inputs and the given state get their gradients too."""
    torch.manual_seed(1)
    model = MODELS[name]().double()
    x, y = torch.randn(2, 90, 2, 2, dtype=torch.float64)
    reset = torch.rand(90, 2) < 0.03
    lengths = torch.tensor([90, 71])
    reset &= torch.arange(90).unsqueeze(1) < lengths
    _, state = model(x[:1], None)
    begin = cg.Carry.start(2, seed=3, state=torch.utils._pytree.tree_map(lambda s: s.detach() + 0.1, state))
    found = [
        cg.value_and_grad(
            model, squared, x, y, begin, truncation=truncation, mode=m, reset=reset, lengths=lengths, wrt_inputs=True
        )
        for m in (mode, cg.Reverse())
    ]
    (ours, carry), (theirs, expected) = found
    tolerance = 1e-9 if mode.forward == "quasi" else 1e-10
    assert_close(ours.loss, theirs.loss)
    assert_same_grads(ours.grads, theirs.grads, tolerance)
    assert_close(ours.inputs, theirs.inputs, tolerance)
    for a, b in zip(tree_leaves([ours.state, carry.state]), tree_leaves([theirs.state, expected.state]), strict=True):
        assert_close(a, b, tolerance)
    assert ours.how and not theirs.how


@pytest.mark.parametrize("kind", ["dense", "diagonal", "complex"])
def test_a_hundred_thousand_steps_to_1e_12(kind):
    """E5 by hand, step by step; the gradient by the kernels' loop."""
    torch.manual_seed(0)
    steps = 100_000
    model = cg.LinearRNN(1, 3).double() if kind == "dense" else cg.DiagonalRNN(1, 3, complex=kind == "complex")
    for name, weight in list(model.named_parameters()):  # .to(complex128) warns that it is new
        setattr(model, name, nn.Parameter(weight.to(torch.complex128 if kind == "complex" else torch.float64)))
    x = torch.randn(steps, 1, 1, dtype=torch.float64)

    def loss_fn(outputs, targets):
        flat = torch.view_as_real(outputs).flatten(2) if outputs.is_complex() else outputs
        return (flat - 0.3).square().sum(-1)

    ours, carry = cg.value_and_grad(model, loss_fn, x, None, mode=cg.Scan(always=True))
    assert [way.how for way in ours.how] == ["scan"]
    theirs, _ = cg.value_and_grad(model, loss_fn, x, None, mode=cg.Reverse())
    assert_close(ours.loss, theirs.loss, 1e-12)
    assert_same_grads(ours.grads, theirs.grads, 1e-12)
    with torch.no_grad():
        h, w = torch.zeros(3, dtype=model.weight_hh.dtype), model.weight_hh
        for b in (x.to(w.dtype) @ model.weight_ih.mT)[:, 0]:
            h = b + (w @ h if kind == "dense" else w * h)
    assert_close(carry.state[0, 0], h, 1e-12)


def test_dropout_between_layers_is_drawn_once():
    torch.manual_seed(0)
    model = cg.GRU(2, 3, num_layers=2, dropout=0.5).double()
    x = torch.randn(40, 2, 2, dtype=torch.float64)
    loss_fn = lambda outputs, targets: outputs.square().sum(-1)  # noqa: E731
    found = []
    for mode in (cg.Scan(), cg.Reverse()):
        torch.manual_seed(5)
        found.append(cg.value_and_grad(model, loss_fn, x, None, mode=mode)[0])
    assert_same_grads(found[0].grads, found[1].grads)


def test_a_cell_that_ignores_its_state_and_frozen_parameters():
    class Forgetful(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 3)

        def forward(self, x, state):
            return self.linear(x).tanh()

    torch.manual_seed(0)
    x, y = torch.randn(9, 2, 2), torch.randn(9, 2, 2)
    for cell in (Forgetful(), lambda x, state: x.repeat(1, 2)[:, :3]):
        model = cg.Recurrent(cell, nn.Linear(3, 2))
        for mode in (cg.Scan(), cg.Scan("quasi"), cg.Scan("loop")):
            ours, _ = cg.value_and_grad(model, squared, x, y, mode=mode)
            theirs, _ = cg.value_and_grad(model, squared, x, y)
            assert_same_grads(ours.grads, theirs.grads, 1e-5)
    model = cg.GRU(2, 2).requires_grad_(False)
    model.weight_ih_l0.requires_grad_()
    ours, _ = cg.value_and_grad(model, squared, x, y, mode=cg.Scan())
    assert list(ours.grads) == ["weight_ih_l0"]


def test_compare_shows_the_modes_beside_each_other():
    torch.manual_seed(0)
    x, y = torch.randn(2, 30, 3, 2, dtype=torch.float64)
    model = cg.RNN(2, 2).double()
    result = cg.compare(model, squared, x, y, [(cg.Full(), cg.Scan()), (cg.Chunks(5), cg.Scan("loop"))], draws=2)
    assert "scan" in result.table() and "scan:loop" in result.table()
    first = next(row for row in result.candidates if row.mode == "scan")
    assert first.bias < 1e-10


@pytest.mark.parametrize("mode", [cg.Scan(), cg.Scan("quasi"), cg.Scan("loop")], ids=str)
def test_a_loss_whose_slope_is_not_finite_is_not_made_finite(mode):
    model, x = cg.RNN(2, 2), torch.randn(20, 2, 2)
    loss_fn = lambda outputs, targets: (outputs - outputs.detach()).abs().sum(-1).sqrt()  # noqa: E731
    gradient, _ = cg.value_and_grad(model, loss_fn, x, None, mode=mode)
    assert gradient.loss == 0 and not any(grad.isfinite().all() for grad in gradient.grads.values())


@pytest.mark.parametrize("kind", ["tanh", "relu", "gru"])
def test_the_loop_that_a_gpu_takes(kind, monkeypatch):
    """Where torch's own functions serve, the states come from them."""
    served = []
    monkeypatch.setattr("chronograd.modes.scan.layer.torch_serves", lambda *args: served.append(args) or True)
    torch.manual_seed(0)
    model = (cg.GRU(2, 3) if kind == "gru" else cg.RNN(2, 3, nonlinearity=kind)).double()
    x = torch.randn(40, 2, 2, dtype=torch.float64)
    loss_fn = lambda outputs, targets: outputs.square().sum(-1)  # noqa: E731
    ours, theirs = (
        cg.value_and_grad(model, loss_fn, x, None, mode=mode)[0] for mode in (cg.Scan("loop"), cg.Reverse())
    )
    assert served
    assert_same_grads(ours.grads, theirs.grads)


@pytest.mark.parametrize("layer", [cg.LinearRNN, cg.DiagonalRNN, cg.GRU, cg.LSTM])
def test_the_way_back_under_autocast_keeps_the_precision_of_the_weights(layer):
    """``value_and_grad`` walks back where it is called, so inside of the autocast region too."""
    torch.manual_seed(0)
    model, x = layer(3, 8), torch.randn(60, 2, 3)
    loss_fn = lambda outputs, targets: outputs.square().sum(-1)  # noqa: E731
    expected, _ = cg.value_and_grad(model, loss_fn, x, None)
    for mode in (cg.Scan(always=True), cg.Scan("loop", always=True)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found, _ = cg.value_and_grad(model, loss_fn, x, None, mode=mode)
        assert_same_grads(found.grads, expected.grads, 1e-5)
