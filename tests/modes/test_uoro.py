"""UORO against its formula one row at a time, against all of its signs, and against the walk back in the mean."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian as derivative
from torch.utils import _pytree as tree

import chronograd as cg
from chronograd.modes import parse
from chronograd.testing import assert_unbiased
from chronograd.truncation import Place
from chronograd.truncation.draws import signs, uniforms
from online_case import (
    EDGES,
    LENGTHS,
    RESET,
    B,
    Leaky,
    Read,
    T,
    X,
    Y,
    build,
    check_stream,
    gradient,
    mean_over_signs,
    own_cell,
    relative_variance,
    replicas,
)
from oracle import Deep, Opaque, assert_close, assert_same_grads, squared

MODELS = {
    "tanh": lambda: Read(cg.RNN(2, 4), 4),
    "relu": lambda: Read(cg.RNN(2, 4, nonlinearity="relu", bias=False, num_layers=2), 4),
    "gru": lambda: Read(cg.GRU(2, 3, num_layers=2), 3),
    "lstm": lambda: Read(cg.LSTM(2, 3, num_layers=2), 3),
    "torch": lambda: Read(nn.LSTM(2, 3), 3),
    "linear": lambda: Read(cg.LinearRNN(2, 4, bias=True), 4),
}


@pytest.fixture
def any_model(monkeypatch):
    """Take the way of any model where layers are known."""
    monkeypatch.setattr("chronograd.modes.forward.layer.find_stack", lambda onward: None)


def formula(model, truncation, edges, seed):
    """The published recursion, one row and one step at a time, with whole Jacobians from autograd; for models whose
    ``readout`` sees the last layer's first part of the state.
    """
    named = dict(model.named_parameters())
    ours = [name for name in named if "readout" not in name]
    w = torch.cat([named[name].detach().flatten() for name in ours])
    reset, lengths = edges.get("reset", torch.zeros(T, B, dtype=torch.bool)), edges.get("lengths", torch.full((B,), T))
    place = Place(0, T, torch.arange(B), seed, torch.zeros(B, dtype=torch.int64), edges.get("reset"))
    gates = truncation.plan(place).gates
    flat, spec = tree.tree_flatten(model(X[:1, :1], None)[1])

    def unpack(w):
        parts = w.split([named[name].numel() for name in ours])
        return {name: part.view(named[name].shape) for name, part in zip(ours, parts)}

    def nested(s):
        parts = s.split([part.numel() for part in flat])
        return tree.tree_unflatten([part.view(like.shape) for part, like in zip(parts, flat)], spec)

    def step(w, s, x):
        made = torch.func.functional_call(model, unpack(w), (x.view(1, 1, -1), None if s is None else nested(s)))[1]
        return torch.cat([part.flatten() for part in tree.tree_leaves(made)])

    def loss(s, y):
        return squared(model.readout(tree.tree_leaves(nested(s))[0][-1].view(1, 1, -1)), y.view(1, 1, -1)).sum()

    total = torch.zeros_like(w)
    for row in range(B):
        s = a = b = None
        for t in range(int(lengths[row])):
            s, x, y = None if reset[t, row] else s, X[t, row], Y[t, row]
            after = step(w, s, x).detach()
            nu = signs(seed, t, 1, torch.tensor([row]), len(after))[0, 0].double()
            v = nu @ derivative(lambda w, s=s, x=x: step(w, s, x), w)
            p1 = (v.norm() / nu.norm()).sqrt()
            new_a, new_b = p1 * nu, v / p1
            if s is not None:
                ja = gates[t, row] * derivative(lambda s, x=x: step(w, s, x), s) @ a
                if ja.norm() > 0:
                    p0 = (b.norm() / ja.norm()).sqrt()
                    new_a, new_b = new_a + p0 * ja, new_b + b / p0
            s, a, b = after, new_a, new_b
            total += (derivative(lambda s, y=y: loss(s, y), s) @ a) * b / float(lengths.sum())
    return unpack(total)


@pytest.mark.parametrize("edges", ["plain", "all"])
@pytest.mark.parametrize("truncation", [cg.Full(), cg.RandomTruncation(3)], ids=str)
@pytest.mark.parametrize("name", ["tanh", "gru", "lstm", "own"])
def test_it_is_the_formula(name, truncation, edges):
    model = build(own_cell if name == "own" else MODELS[name])
    ours, _ = gradient(model, cg.UORO(), truncation=truncation, seed=5, **EDGES[edges])
    theirs = formula(model, truncation, EDGES[edges], 5)
    assert_same_grads({key: ours.grads[key] for key in theirs}, theirs)
    exact, _ = gradient(model, cg.Reverse(), truncation=truncation, seed=5, **EDGES[edges])
    readout = [key for key in exact.grads if "readout" in key]
    assert_same_grads({key: ours.grads[key] for key in readout}, {key: exact.grads[key] for key in readout})
    assert_close(ours.loss, exact.loss)


@pytest.mark.parametrize(
    ("truncation", "edges"), [(cg.Chunks(4), "plain"), (cg.RandomTruncation(3), "all")], ids=["chunks", "random"]
)
@pytest.mark.parametrize("name", MODELS)
def test_layers_and_any_model_go_the_same_way(name, truncation, edges, monkeypatch):
    model, found = build(MODELS[name]), []
    for _ in range(2):
        found.append(gradient(model, cg.UORO(), truncation=truncation, seed=3, **EDGES[edges]))
        monkeypatch.setattr("chronograd.modes.forward.layer.find_stack", lambda onward: None)
    (ours, carry), (theirs, other) = found
    assert_same_grads(ours.grads, theirs.grads)
    for key, part in carry.mode["influence"].items():
        assert_close(part, other.mode["influence"][key])


CASES = {
    "tanh": (lambda: cg.RNN(1, 2), 2),
    "gru": (lambda: cg.GRU(1, 2), 2),
    "lstm": (lambda: cg.LSTM(1, 2), 4),
    "stacked": (lambda: cg.RNN(1, 2, num_layers=2), 4),
}
ALONE = {"full": {}, "gates": {"truncation": cg.RandomTruncation(2), "seed": 4}, "reset": {"reset": RESET[2:5, :1]}}


@pytest.mark.parametrize("options", ALONE)
@pytest.mark.parametrize("name", CASES)
def test_the_mean_over_all_signs_is_the_gradient(name, options, monkeypatch):
    make, units = CASES[name]
    model, x, y = build(lambda: Read(make(), 2)), X[:3, :1, :1], Y[:3, :1]
    exact, _ = gradient(model, cg.Reverse(), x, y, **ALONE[options])
    assert_same_grads(mean_over_signs(monkeypatch, model, cg.UORO(), x, y, units, **ALONE[options]), exact.grads)


@pytest.mark.parametrize("options", ALONE)
def test_the_mean_over_all_signs_is_the_gradient_of_any_model(options, any_model, monkeypatch):
    model, x, y = build(lambda: Read(cg.RNN(1, 2), 2)), X[:3, :1, :1], Y[:3, :1]
    exact, _ = gradient(model, cg.Reverse(), x, y, **ALONE[options])
    assert_same_grads(mean_over_signs(monkeypatch, model, cg.UORO(), x, y, 2, **ALONE[options]), exact.grads)


@pytest.mark.parametrize(
    ("make", "edges", "truncation"),
    [
        (MODELS["gru"], {"reset": RESET}, cg.RandomTruncation(8)),
        (MODELS["lstm"], {"reset": RESET, "lengths": LENGTHS}, cg.Full()),
        (MODELS["lstm"], {}, cg.Chunks(4)),
        (own_cell, {"reset": RESET, "lengths": LENGTHS}, cg.RandomTruncation(8)),
    ],
    ids=["gru", "lstm", "chunks", "own"],
)
def test_it_is_unbiased(make, edges, truncation):
    model = build(make)
    kept = cg.Full() if truncation.unbiased else truncation
    exact, _ = gradient(model, cg.Reverse(), truncation=kept, **edges)
    assert_unbiased(replicas(cg.UORO(), 40, edges, truncation)(model), exact, draws=25)


@pytest.mark.parametrize("make", [MODELS["lstm"], own_cell, Opaque, lambda: Deep(cg.GRU(3, 3), nn.RNN(3, 3))])
def test_a_stream_of_calls_equals_one_call(make):
    check_stream(build(make), cg.UORO())


def test_a_long_call_equals_many_short_ones():
    model, carry, total = build(MODELS["gru"]), None, None
    torch.manual_seed(3)
    x, y = torch.randn(150, 2, 2, dtype=torch.float64), torch.randn(150, 2, 2, dtype=torch.float64)
    whole, _ = gradient(model, cg.UORO(), x, y, seed=1)  # more than two blocks
    for begin in range(0, 150, 50):
        seed = {"seed": 1} if carry is None else {}
        part, carry = gradient(model, cg.UORO(), x[begin : begin + 50], y[begin : begin + 50], carry, **seed)
        total = part if total is None else total + part
    assert_same_grads(total.grads, whole.grads)


@pytest.mark.parametrize("make", [MODELS["gru"], own_cell])
def test_the_same_seed_is_the_same_draw(make):
    model = build(make)
    one, two, other = (gradient(model, cg.UORO(), seed=seed)[0].grads for seed in (1, 1, 2))
    names = [name for name in one if "readout" not in name]
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in names)


def test_rows_draw_by_their_ids():
    model = build(MODELS["gru"])
    carry = cg.Carry.start(1, seed=6, rows=torch.tensor([2]))
    alone, _ = gradient(model, cg.UORO(), X[:, 2:], Y[:, 2:], carry)
    only = torch.zeros(T, B, dtype=torch.float64)
    only[:, 2] = 1
    among, _ = gradient(model, cg.UORO(), weights=only, seed=6)
    assert_same_grads(alone.grads, among.grads)


def test_signs_are_fair_and_of_their_own():
    rows = torch.arange(40)
    found = signs(3, 0, 50, rows, 130).double()
    assert found.unique().tolist() == [-1, 1]
    count = found.numel()
    assert abs(float(found.mean())) < 4 / count**0.5
    for a, b in ((found[1:], found[:-1]), (found[:, 1:], found[:, :-1]), (found[..., 64:], found[..., :-64])):
        assert abs(float((a * b).mean())) < 4 / a.numel() ** 0.5
    again = signs(3, 0, 50, rows, 130, salt=1)
    assert abs(float((found * again).mean())) < 4 / count**0.5
    draws = uniforms(3, 0, 50, rows) - 0.5
    assert abs(float((found * draws.unsqueeze(2)).mean())) < 4 / (12 * count) ** 0.5
    assert float(uniforms(7, 5, 1, torch.tensor([3]))) == 0.34363344419349395  # as ever


def test_frozen_weights_and_dead_units_make_no_trouble():
    model = build(MODELS["relu"])
    model.layer.weight_ih_l0.requires_grad_(False)
    with torch.no_grad():
        model.layer.weight_ih_l0.zero_()  # h = 0 for ever: J A = 0 and I = 0
    ours, _ = gradient(model, cg.UORO(), seed=1)
    exact, _ = gradient(model, cg.Reverse())
    assert_same_grads(ours.grads, exact.grads)
    assert "layer.weight_ih_l0" not in ours.grads
    for parameter in model.layer.parameters():
        parameter.requires_grad_(False)
    ours, _ = gradient(model, cg.UORO(), seed=1)
    assert_same_grads(ours.grads, gradient(model, cg.Reverse())[0].grads)


class Branching(nn.Module):
    """A cell that ``torch.func`` cannot follow."""

    def __init__(self):
        super().__init__()
        self.cell = Leaky()

    def forward(self, x, state):
        after = self.cell(x, state)
        scale = torch.empty_like(after)
        for row in range(len(x)):
            scale[row] = 1.0 if float(x[row].detach().sum()) < 1e9 else 0.5
        return after * scale


class Backward(torch.autograd.Function):
    """The identity, with a way back alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, flow):
        return flow


class OneWay(Leaky):
    def forward(self, x, state):
        return Backward.apply(super().forward(x, state))


@pytest.mark.parametrize("kind", [Branching, OneWay])
def test_steps_without_forward_mode_are_taken_too(kind):
    plain, model = build(own_cell), build(lambda: cg.Recurrent(kind(), nn.Linear(3, 2)))
    inner = model.cell.cell if kind is Branching else model.cell
    inner.load_state_dict(plain.cell.state_dict())
    model.readout.load_state_dict(plain.readout.state_dict())
    ours, theirs = (gradient(m, cg.UORO(), seed=4, **EDGES["all"])[0].grads for m in (model, plain))
    assert_same_grads({key.replace("cell.cell.", "cell."): grad for key, grad in ours.items()}, theirs)


def test_noise_grows_with_the_layer():
    few, many = (relative_variance(cg.UORO(), units, nets=12, calls=2) for units in (8, 32))
    assert 10 < few < 60 and many > 3 * few


def test_what_is_refused_and_how_it_is_written():
    model = build(MODELS["gru"])
    mode = cg.UORO()
    assert mode.random and mode.unbiased and mode.online and not mode.exact
    assert str(mode) == "uoro" and parse("uoro") == mode and parse("uoro:1GB") == cg.UORO(10**9)
    with pytest.raises(ValueError, match="is none of its numbers"):
        parse("uoro:7")
    with pytest.raises(ValueError, match="above its limit.*use mode=cg.Reverse"):
        gradient(model, cg.UORO(limit=100))
    with pytest.raises(ValueError, match="above its limit"):
        gradient(build(own_cell), cg.UORO(limit=100))
    with pytest.raises(ValueError, match="limit must be a positive number of bytes"):
        cg.UORO(limit=0)
    with pytest.raises(ValueError, match="would each need an influence"):
        gradient(model, mode, truncation=cg.Window(1, 5))
    with pytest.raises(ValueError, match="draws random numbers"):
        gradient(Read(cg.LSTM(2, 3, 2, dropout=0.5), 3).double(), mode)
    _, carry = gradient(model, mode, seed=0)
    with pytest.raises(ValueError, match="what mode uoro knows of the past.*carry.cut"):
        gradient(model, cg.RTRL(), carry=carry)
    with pytest.raises(ValueError, match="this model's would be|the carry's state is"):
        gradient(build(lambda: Read(cg.GRU(2, 5), 5)), mode, carry=carry)


class Shut(nn.Module):
    """A cell whose gate sees the state, but passes no gradient to it."""

    def __init__(self):
        super().__init__()
        self.inner = nn.RNNCell(1, 2)

    def forward(self, x, state):
        state = x.new_zeros(len(x), 2) if state is None else state
        with torch.no_grad():
            gate = (3 * state).sigmoid()
        return gate * self.inner(x, state) + 0.5 * state


def test_what_is_shut_off_from_gradients_is_shut_off_forward_too(monkeypatch):
    model, x, y = build(lambda: cg.Recurrent(Shut())), X[:3, :1, :1], Y[:3, :1]
    exact, _ = gradient(model, cg.Reverse(), x, y)
    assert_same_grads(mean_over_signs(monkeypatch, model, cg.UORO(), x, y, 2), exact.grads)
