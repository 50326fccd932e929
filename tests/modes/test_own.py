"""Each unit's own influence: SnAp(1), RFLO and e-prop against recursions over dense Jacobians written here."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import chronograd as cg
from forward_case import EDGES, GATES, B, Read, T, X, Y, build, gradient
from oracle import assert_close, assert_same_grads, squared

DENSE = ["tanh", "relu", "gru1", "lstm1", "linear"]
BUILD = {
    "gru1": lambda: Read(cg.GRU(2, 3), 3),
    "lstm1": lambda: Read(nn.LSTM(2, 3), 3),
}
UNITS = {"tanh": 4, "relu": 4, "linear": 4, "gru1": 3, "lstm1": 3}


def model_of(name):
    if name not in BUILD:
        return build(name)
    torch.manual_seed(1)
    return BUILD[name]().double()


def by_hand(model, keep, gates, reset=None, valid=None, weights=None):
    """The gradient of the layer's weights under M <- keep(J) M + I, one step and row after the other, by autograd."""
    layer, lstm = model.layer, isinstance(model.layer, nn.LSTM)
    names = [name for name, _ in layer.named_parameters()]
    values = [value for _, value in layer.named_parameters()]
    units = layer.hidden_size
    weights = torch.ones(T, B, dtype=torch.float64) if weights is None else weights
    total, weight = [torch.zeros_like(v) for v in values], 0.0
    for row in range(B):
        state = torch.zeros(2 * units if lstm else units, dtype=torch.float64)
        influence = [torch.zeros(len(state), *v.shape, dtype=torch.float64) for v in values]
        for t in range(T):
            if valid is not None and not valid[t, row]:
                continue
            if reset is not None and reset[t, row]:
                state = torch.zeros_like(state)
            s = state.detach().requires_grad_()
            given = tuple(part.view(1, 1, -1) for part in s.chunk(2)) if lstm else s.view(1, 1, -1)
            out, after = layer(X[t : t + 1, row : row + 1], given)
            new = torch.cat([part.flatten() for part in after]) if lstm else after.flatten()
            rows = [torch.autograd.grad(n, [s, *values], retain_graph=True) for n in new]
            jacobian = torch.stack([r[0] for r in rows])
            xi = gates[t, row] if reset is None or not reset[t, row] else 0.0
            kept = keep(jacobian, layer, units) * xi
            influence = [
                torch.einsum("st,t...->s...", kept, old) + torch.stack([r[1 + n] for r in rows])
                for n, old in enumerate(influence)
            ]
            h = new[:units].detach().requires_grad_()
            loss = squared(model.readout(h).view(1, 1, -1), Y[t, row].view(1, 1, -1)).sum() * weights[t, row]
            q = torch.zeros_like(new)
            q[:units] = torch.autograd.grad(loss, h)[0]
            for n, m in enumerate(influence):
                total[n] = total[n] + torch.einsum("s,s...->...", q, m)
            weight += float(weights[t, row])
            state = new.detach()
    return {f"layer.{name}": value / weight for name, value in zip(names, total)}


def own_blocks(jacobian, layer, units):
    """SnAp(1): what leads from a unit to itself."""
    parts = len(jacobian) // units
    return jacobian * torch.eye(units, dtype=torch.float64).repeat(parts, parts)


def leak(jacobian, layer, units):
    """What does not go through the recurrent weights: found as J of the same layer with those weights' part taken off."""
    raise NotImplementedError


@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize("truncation", [cg.Full(), cg.Chunks(4), cg.RandomTruncation(3)], ids=str)
@pytest.mark.parametrize("name", DENSE)
def test_snap_1_is_rtrl_with_the_units_own_blocks(name, truncation, edges):
    model, options = model_of(name), EDGES[edges]
    ours, _ = gradient(model, cg.SnAp(1), truncation=truncation, seed=2, **options)
    from chronograd.truncation import Place

    place = Place(0, T, torch.arange(B), 2, torch.zeros(B, dtype=torch.int64), options.get("reset"))
    gates = truncation.plan(place).gates
    valid = None if "lengths" not in options else torch.arange(T).unsqueeze(1) < options["lengths"]
    theirs = by_hand(model, own_blocks, gates, options.get("reset"), valid, options.get("weights"))
    assert_same_grads({k: v for k, v in ours.grads.items() if k in theirs}, theirs)
    exact, _ = gradient(model, cg.Reverse(), truncation=truncation, seed=2, **options)
    assert_close(ours.grads["readout.weight"], exact.grads["readout.weight"])


@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize("truncation", GATES, ids=str)
@pytest.mark.parametrize("name", ["tanh", "relu", "linear", "gru", "lstm", "diagonal", "complex", "deep", "embedded"])
def test_e_props_factorisation_is_the_whole_gradient(name, truncation, edges):
    model = build(name)
    ours, _ = gradient(model, cg.EProp("total"), truncation=truncation, seed=2, **EDGES[edges])
    exact, _ = gradient(model, cg.Reverse(), truncation=truncation, seed=2, **EDGES[edges])
    assert_same_grads(ours.grads, exact.grads)
