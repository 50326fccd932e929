"""Each unit's own influence: SnAp(1), RFLO and e-prop against recursions over dense Jacobians written here."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import chronograd as cg
from chronograd.truncation import Place
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
            known = (jacobian, units) if keep is own_blocks else (model, t, row, state, new.detach())
            kept = keep(*known) * xi
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


def own_blocks(jacobian, units):
    """SnAp(1): what leads from a unit to itself."""
    parts = len(jacobian) // units
    return jacobian * torch.eye(units, dtype=torch.float64).repeat(parts, parts)


def gates_of(truncation, options):
    place = Place(0, T, torch.arange(B), 2, torch.zeros(B, dtype=torch.int64), options.get("reset"))
    valid = None if "lengths" not in options else torch.arange(T).unsqueeze(1) < options["lengths"]
    return truncation.plan(place).gates, options.get("reset"), valid, options.get("weights")


@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize("truncation", [cg.Full(), cg.Chunks(4), cg.RandomTruncation(3)], ids=str)
@pytest.mark.parametrize("name", DENSE)
def test_snap_1_is_rtrl_with_the_units_own_blocks(name, truncation, edges):
    model, options = model_of(name), EDGES[edges]
    ours, _ = gradient(model, cg.SnAp(1), truncation=truncation, seed=2, **options)
    theirs = by_hand(model, own_blocks, *gates_of(truncation, options))
    assert_same_grads({k: v for k, v in ours.grads.items() if k in theirs}, theirs)
    exact, _ = gradient(model, cg.Reverse(), truncation=truncation, seed=2, **options)
    assert_close(ours.grads["readout.weight"], exact.grads["readout.weight"])


@torch.no_grad()
def kept_of_itself(model, t, row, state, after):
    """J without the recurrent weights, from the layers' equations: z of a GRU, f of an LSTM's c, nothing elsewhere."""
    layer, units = model.layer, model.layer.hidden_size
    found = torch.zeros(len(state), len(state), dtype=torch.float64)
    if not isinstance(layer, nn.GRU | nn.LSTM):
        return found
    w, u = layer.weight_ih_l0, layer.weight_hh_l0
    drive, product = w @ X[t, row] + layer.bias_ih_l0, u @ state[:units] + layer.bias_hh_l0
    if isinstance(layer, nn.GRU):
        return torch.diag(torch.sigmoid(drive + product)[units : 2 * units])
    _, f, _, o = torch.sigmoid(drive + product).chunk(4)
    found[units:, units:] = torch.diag(f)
    found[:units, units:] = torch.diag(o * (1 - after[units:].tanh() ** 2) * f)
    return found


@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize("truncation", [cg.Full(), cg.Chunks(4), cg.RandomTruncation(3)], ids=str)
@pytest.mark.parametrize("name", DENSE)
def test_rflo_keeps_what_a_unit_keeps_of_itself(name, truncation, edges):
    model, options = model_of(name), EDGES[edges]
    ours, _ = gradient(model, cg.RFLO(), truncation=truncation, seed=2, **options)
    theirs = by_hand(model, kept_of_itself, *gates_of(truncation, options))
    assert_same_grads({k: v for k, v in ours.grads.items() if k in theirs}, theirs)
    eprop, _ = gradient(model, cg.EProp(), truncation=truncation, seed=2, **options)
    assert_same_grads(eprop.grads, ours.grads)


class Leaky(nn.Module):
    leak = 0.3

    def __init__(self, sparse=False):
        super().__init__()
        self.w, self.u = nn.Parameter(torch.randn(4, 4) * 0.5), nn.Parameter(torch.randn(4, 2))
        if sparse:
            self.w.data *= torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 1]])

    def forward(self, x, h):
        h = x.new_zeros(len(x), 4) if h is None else h
        return (1 - self.leak) * h + self.leak * torch.tanh(h @ self.w.T + x @ self.u.T)


def leaky_by_hand(cell, keep):
    """q_t e_t with E <- keep(J) E + alpha phi'(a) (x) [h; x], for the loss sum h^2."""
    totals = torch.zeros(4, 4, 6, dtype=torch.float64)
    total = torch.zeros(4, 6, dtype=torch.float64)
    eye = torch.eye(4, dtype=torch.float64)
    for row in range(B):
        h, e = torch.zeros(4, dtype=torch.float64), torch.zeros_like(totals)  # e[s, unit, weight]
        for t in range(T):
            slope = 1 - torch.tanh(cell.w @ h + cell.u @ X[t, row]) ** 2
            jacobian = (1 - cell.leak) * eye + cell.leak * slope.unsqueeze(1) * cell.w
            met = torch.cat([h, X[t, row]])
            immediate = torch.einsum("su,u,m->sum", eye, cell.leak * slope, met)
            e = keep(jacobian, e, immediate)
            h = (1 - cell.leak) * h + cell.leak * torch.tanh(cell.w @ h + cell.u @ X[t, row])
            total += torch.einsum("s,sum->um", 2 * h, e) / (T * B)
    return {"cell.w": total[:, :4].detach(), "cell.u": total[:, 4:].detach()}


def leaky_gradient(cell, mode):
    return cg.value_and_grad(cg.Recurrent(cell), lambda h, _: h.square().sum(-1), X, None, mode=mode)[0].grads


def test_rflo_of_a_leaky_cell_is_the_papers_recursion():
    torch.manual_seed(4)
    cell = Leaky().double()

    def keep(jacobian, e, immediate):
        return (1 - cell.leak) * e + immediate

    assert_same_grads(leaky_gradient(cell, cg.RFLO()), leaky_by_hand(cell, keep))
    with pytest.raises(ValueError, match="an attribute leak.*SnAp"):
        leaky_gradient(nn.RNNCell(2, 3).double(), cg.RFLO())


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_snap_n_keeps_what_n_steps_reach(n):
    torch.manual_seed(4)
    cell = Leaky(sparse=True).double()
    reached = torch.eye(4, dtype=torch.float64)
    for _ in range(n - 1):
        reached = ((reached + (cell.w != 0).to(reached) @ reached) != 0).to(reached)

    def keep(jacobian, e, immediate):
        return torch.einsum("sk,kum->sum", jacobian, e) * reached.unsqueeze(-1) + immediate

    assert_same_grads(leaky_gradient(cell, cg.SnAp(n)), leaky_by_hand(cell, keep))
    if n == 4:  # the chain is as long as that
        exact, _ = cg.value_and_grad(cg.Recurrent(cell), lambda h, _: h.square().sum(-1), X, None)
        assert_same_grads(leaky_gradient(cell, cg.SnAp(n)), exact.grads)


def test_snap_2_of_a_dense_layer_is_rtrl_and_says_so():
    model = build("tanh")
    ours, _ = gradient(model, cg.SnAp(2))
    assert "this is RTRL" in str(ours.how[0])
    with torch.no_grad():
        model.layer.weight_hh_l0.copy_(torch.triu(torch.tril(model.layer.weight_hh_l0, 1)))  # a chain
    sparse, _ = gradient(model, cg.SnAp(2))
    exact, _ = gradient(model, cg.Reverse())
    assert not sparse.how
    off = max(float((sparse.grads[k] - exact.grads[k]).abs().max()) for k in exact.grads)
    assert off > 1e-6


def test_e_prop_in_total_needs_the_whole_sequence():
    model = build("tanh")
    _, carry = gradient(model, cg.EProp("total"), X[:4], Y[:4])
    with pytest.raises(ValueError, match="in one call"):
        gradient(model, cg.EProp("total"), X[4:], Y[4:], carry)
    ours, _ = gradient(model, cg.EProp("total"), X[4:], Y[4:], carry, truncation=cg.Chunks(4))
    exact, _ = gradient(model, cg.Reverse(), X[4:], Y[4:], carry.cut(), truncation=cg.Chunks(4))
    assert_same_grads(ours.grads, exact.grads)
    with pytest.raises(ValueError, match="needs layers"):
        gradient(build("opaque"), cg.EProp("total"))


def test_what_makes_no_sense_is_refused():
    for make, kind in [
        (lambda: cg.SnAp(0), ValueError),
        (lambda: cg.SnAp(1.5), TypeError),
        (lambda: cg.SnAp(True), TypeError),
        (lambda: cg.EProp("random"), ValueError),
        (lambda: cg.RFLO(limit=0), ValueError),
    ]:
        with pytest.raises(kind):
            make()
    with pytest.raises(ValueError, match="above its limit"):
        gradient(build("lstm"), cg.SnAp(1, limit=10))


@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize("truncation", GATES, ids=str)
@pytest.mark.parametrize("name", ["tanh", "relu", "linear", "gru", "lstm", "diagonal", "complex", "deep", "embedded"])
def test_e_props_factorisation_is_the_whole_gradient(name, truncation, edges):
    model = build(name)
    ours, _ = gradient(model, cg.EProp("total"), truncation=truncation, seed=2, **EDGES[edges])
    exact, _ = gradient(model, cg.Reverse(), truncation=truncation, seed=2, **EDGES[edges])
    assert_same_grads(ours.grads, exact.grads)


class Counted(nn.Module):
    """A layer below dropout and a readout, which counts how often it runs."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.drop, self.readout, self.runs = layer, nn.Dropout(0.5), nn.Linear(4, 1), 0

    def forward(self, x, state=None):
        self.runs += 1
        outputs, state = self.layer(x, state)
        return self.readout(self.drop(outputs)), state


@pytest.mark.parametrize("mode", [cg.SnAp(1), cg.RFLO(), cg.EProp(), cg.RTRL()], ids=str)
def test_only_the_first_call_of_a_stream_looks_at_the_model(mode):
    torch.manual_seed(0)
    layer = cg.DiagonalRNN(2, 4) if isinstance(mode, cg.RTRL) else cg.GRU(2, 4)
    model = Counted(layer).double().eval()
    runs, carry, grads = [], None, []
    for begin in range(0, T, 2):
        before = model.runs
        part, carry = cg.value_and_grad(model, squared, X[begin : begin + 2], Y[begin : begin + 2], carry, mode=mode)
        carry = cg.Carry.from_state_dict(carry.state_dict())
        runs.append(model.runs - before)
        grads.append(part)
    assert runs[0] > 1 and set(runs[1:]) == {1}
    whole, _ = cg.value_and_grad(model, squared, X, Y, mode=mode)
    assert_same_grads(sum(grads[1:], grads[0]).grads, whole.grads)
    model.train()  # what the first call saw no longer holds
    with pytest.raises(ValueError, match=r"draws random numbers.*model.eval\(\)"):
        cg.value_and_grad(model, squared, X, Y, carry, mode=mode)


@pytest.mark.parametrize("make", [lambda: build("tanh"), lambda: cg.Recurrent(nn.RNNCell(2, 4)).double()])
def test_a_carry_of_another_n_is_refused(make):
    model = make()
    for mode, other in ((cg.SnAp(1), cg.SnAp(2)), (cg.SnAp(3), cg.SnAp(1))):
        _, carry = cg.value_and_grad(model, squared, X[:5], Y[:5, :, :1], mode=mode)
        with pytest.raises(ValueError, match=f"what mode {mode} knows.*which mode {other} cannot use.*carry.cut"):
            cg.value_and_grad(model, squared, X[5:], Y[5:, :, :1], carry, mode=other)


def test_the_limit_is_of_all_layers_together():
    model = cg.RNN(2, 4, num_layers=3).double()
    _, carry = cg.value_and_grad(model, squared, X, Y[..., :1], mode=cg.SnAp(1))
    held = sum(part.nbytes for layer in carry.mode["influence"] for part in layer.values())
    cg.value_and_grad(model, squared, X, Y[..., :1], mode=cg.SnAp(1, limit=held))
    with pytest.raises(ValueError, match="and the 2 layers before it.*above its limit"):
        cg.value_and_grad(model, squared, X, Y[..., :1], mode=cg.SnAp(1, limit=held - 1))


def test_nothing_goes_on_where_the_exact_factorisation_forgot():
    model = build("tanh")
    _, carry = gradient(model, cg.EProp("total"), X[:5], Y[:5])
    for mode in (cg.EProp(), cg.SnAp(1), cg.Reverse()):
        with pytest.raises(ValueError, match=r"what mode eprop:total knows.*carry.cut"):
            gradient(model, mode, X[5:], Y[5:], carry)
    ours = gradient(model, cg.EProp("total"), X[5:], Y[5:], carry.cut())[0]
    exact = gradient(model, cg.Reverse(), X[5:], Y[5:], carry.cut())[0]
    assert_same_grads(ours.grads, exact.grads)
