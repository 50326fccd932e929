"""KF-RTRL against its formula one row at a time, against all of its signs, and against the walk back in the mean."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import chronograd as cg
from chronograd.modes import parse
from chronograd.testing import assert_unbiased
from chronograd.truncation import Place
from chronograd.truncation.draws import signs
from online_case import (
    EDGES,
    LENGTHS,
    RESET,
    B,
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
from oracle import Deep, assert_close, assert_same_grads

MODELS = {
    "tanh": lambda: Read(cg.RNN(2, 4), 4),
    "relu": lambda: Read(nn.RNN(2, 4, nonlinearity="relu"), 4),
    "unbiased": lambda: Read(cg.RNN(2, 4, bias=False), 4),
    "linear": lambda: Read(cg.LinearRNN(2, 4, bias=True), 4),
}


def formula(model, kind, truncation, edges, seed):
    """The published recursion, one row and one step at a time."""
    layer = model.layer
    w, u, *biases = (p.detach() for p in layer.parameters())  # (H, d), (H, H)
    reset, lengths = edges.get("reset", torch.zeros(T, B, dtype=torch.bool)), edges.get("lengths", torch.full((B,), T))
    place = Place(0, T, torch.arange(B), seed, torch.zeros(B, dtype=torch.int64), edges.get("reset"))
    gates = truncation.plan(place).gates
    total = 0
    for row in range(B):
        h, a, b = torch.zeros(4, dtype=torch.float64), None, None
        for t in range(int(lengths[row])):
            if reset[t, row]:
                h = torch.zeros_like(h)
            ahat = torch.cat([X[t, row], h, torch.ones(len(biases), dtype=torch.float64)])
            before = w @ X[t, row] + u @ h + sum(biases)
            h = {"tanh": before.tanh(), "relu": before.relu(), "linear": before}[kind]
            slope = {"tanh": 1 - h * h, "relu": (h > 0).double(), "linear": torch.ones_like(h)}[kind]
            nu0, nu1 = signs(seed, t, 1, torch.tensor([row]), 2)[0, 0].double()
            new_a, new_b = 0, 0
            if b is not None:
                jb = gates[t, row] * torch.diag(slope) @ u @ b
                if jb.norm() > 0:
                    p0 = (jb.norm() / a.norm()).sqrt()
                    new_a, new_b = nu0 * p0 * a, nu0 * jb / p0
            if slope.norm() > 0:
                p1 = (slope.norm() / ahat.norm()).sqrt()
                new_a, new_b = new_a + nu1 * p1 * ahat, new_b + nu1 * torch.diag(slope) / p1
            a, b = new_a, new_b
            q = 2 * (model.readout(h) - Y[t, row]) @ model.readout.weight
            total = total + torch.outer(q @ b, a).detach() / float(lengths.sum())
    parts = total.split([2, 4, *[1] * len(biases)], 1)
    return {f"layer.{name}": part.view(p.shape) for (name, p), part in zip(layer.named_parameters(), parts)}


@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize("truncation", [cg.Full(), cg.Chunks(4), cg.RandomTruncation(3)], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_formula(name, truncation, edges):
    model = build(MODELS[name])
    if edges == "all":
        edges = {**EDGES["all"], "reset": EDGES["all"]["reset"] & (torch.arange(T).unsqueeze(1) < LENGTHS)}
    else:
        edges = EDGES[edges]
    ours, _ = gradient(model, cg.KFRTRL(), truncation=truncation, seed=5, **edges)
    theirs = formula(model, "tanh" if name == "unbiased" else name, truncation, edges, 5)
    assert_same_grads({key: ours.grads[key] for key in theirs}, theirs)
    exact, _ = gradient(model, cg.Reverse(), truncation=truncation, seed=5, **edges)
    readout = [key for key in exact.grads if "readout" in key]
    assert_same_grads({key: ours.grads[key] for key in readout}, {key: exact.grads[key] for key in readout})
    assert_close(ours.loss, exact.loss)


@pytest.mark.parametrize(
    "options",
    [{}, {"truncation": cg.RandomTruncation(2), "seed": 4}, {"reset": RESET[2:7, :1]}],
    ids=["full", "gates", "reset"],
)
@pytest.mark.parametrize("name", ["tanh", "linear"])
def test_the_mean_over_all_signs_is_the_gradient(name, options, monkeypatch):
    model, x, y = build(MODELS[name]), X[:5, :1], Y[:5, :1]
    exact, _ = gradient(model, cg.Reverse(), x, y, **options)
    assert_same_grads(mean_over_signs(monkeypatch, model, cg.KFRTRL(), x, y, 2, **options), exact.grads)


@pytest.mark.parametrize("truncation", [cg.Full(), cg.Chunks(4), cg.RandomTruncation(8)], ids=str)
def test_it_is_unbiased(truncation):
    model, edges = build(MODELS["tanh"]), {"reset": RESET, "lengths": LENGTHS}
    kept = cg.Full() if truncation.unbiased else truncation
    exact, _ = gradient(model, cg.Reverse(), truncation=kept, **edges)
    assert_unbiased(replicas(cg.KFRTRL(), 40, edges, truncation)(model), exact, draws=40)


def test_only_what_is_trained_is_kept():
    model = build(MODELS["tanh"])
    model.layer.weight_ih_l0.requires_grad_(False)
    exact, _ = gradient(model, cg.Reverse())
    assert_unbiased(replicas(cg.KFRTRL(), 40, {})(model), exact, draws=30)
    for parameter in model.layer.parameters():
        parameter.requires_grad_(False)
    ours, _ = gradient(model, cg.KFRTRL(), seed=0)
    assert_same_grads(ours.grads, gradient(model, cg.Reverse())[0].grads)


def test_a_stream_of_calls_equals_one_call():
    check_stream(build(MODELS["tanh"]), cg.KFRTRL())


def test_the_same_seed_is_the_same_draw():
    model = build(MODELS["tanh"])
    one, two, other = (gradient(model, cg.KFRTRL(), seed=seed)[0].grads for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one if "readout" not in name)


def test_noise_does_not_grow_with_the_layer():
    few, many = (relative_variance(cg.KFRTRL(), units, nets=12, calls=2) for units in (8, 32))
    assert 0.5 < few < 8 and many < 3 * few


REFUSED = {
    "gru": (lambda: Read(cg.GRU(2, 3), 3), "each gate of a GRU would need a product of its own"),
    "lstm": (lambda: Read(nn.LSTM(2, 3), 3), "each gate of an LSTM, and its second state"),
    "diagonal": (lambda: Read(cg.DiagonalRNN(2, 3), 3), "weights of a diagonal layer"),
    "stacked": (lambda: Read(cg.RNN(2, 3, num_layers=2), 3), "in a stack of 2 lower ones reach upper ones"),
    "own": (own_cell, "the model is made otherwise"),
    "deep": (lambda: Deep(cg.RNN(3, 3), cg.RNN(3, 3)), "the model is made otherwise"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_models_are_refused(name):
    make, why = REFUSED[name]
    with pytest.raises(ValueError, match=f"{why}.*use mode=cg.UORO.*or mode=cg.RTRL"):
        gradient(build(make), cg.KFRTRL())


def test_what_else_is_refused_and_how_it_is_written():
    model, mode = build(MODELS["tanh"]), cg.KFRTRL()
    assert mode.random and mode.unbiased and mode.online and not mode.exact
    assert str(mode) == "kfrtrl" and parse("kfrtrl") == mode and parse("kfrtrl:1GB") == cg.KFRTRL(10**9)
    with pytest.raises(ValueError, match="above its limit.*use mode=cg.UORO"):
        gradient(model, cg.KFRTRL(limit=100))
    with pytest.raises(ValueError, match="limit must be a positive number of bytes"):
        cg.KFRTRL(limit=True)
    with pytest.raises(ValueError, match="would each need an influence"):
        gradient(model, mode, truncation=cg.Window(1, 5))
    _, carry = gradient(model, mode, seed=0)
    with pytest.raises(ValueError, match="what mode kfrtrl knows of the past.*carry.cut"):
        gradient(model, cg.UORO(), carry=carry)
    with pytest.raises(ValueError, match="this model's would be|the carry's state is"):
        gradient(build(lambda: Read(cg.RNN(2, 5), 5)), mode, carry=carry)
