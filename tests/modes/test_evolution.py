"""Persistent evolution strategies against loops by hand, closed forms, quadrature and the walk back."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

import chronograd as cg
from chronograd.modes import parse
from chronograd.modes.evolution import swarm
from chronograd.modes.evolution.noise import noise
from forward_case import Read
from oracle import Deep, Opaque, assert_close, assert_same_grads, squared

T, B, N, SIGMA = 9, 3, 2, 0.2
torch.manual_seed(0)
X, Y = torch.randn(T, B, 2, dtype=torch.float64), torch.randn(T, B, 2, dtype=torch.float64)
RESET = torch.zeros(T, B, dtype=torch.bool)
RESET[4, 0] = RESET[5, 1] = RESET[8, 1] = True
WHOLE = torch.zeros(T, B, dtype=torch.bool)
WHOLE[5] = True
EDGES = {
    "plain": {},
    "reset": {"reset": RESET},
    "whole": {"reset": WHOLE},
    "all": {"reset": RESET, "lengths": torch.tensor([T, 9, 5]), "weights": torch.rand(T, B, dtype=torch.float64)},
}
MODES = {
    "1": cg.PES(N, SIGMA),
    "3": cg.PES(N, SIGMA, 3),
    "reuse": cg.PES(N, SIGMA, reuse_noise=True),
    "analytic": cg.PES(N, SIGMA, 3, analytic=True),
}


class Writing(nn.Module):
    """A cell that ``torch.func`` cannot map: it looks at its numbers, and writes in place."""

    def __init__(self):
        super().__init__()
        self.cell, self.begin = nn.RNNCell(2, 2), nn.Parameter(torch.randn(2))

    def forward(self, x, state):
        state = self.begin.expand(len(x), 2).clone() if state is None else state
        after = self.cell(x, state)
        scale = torch.empty_like(after)
        for row in range(len(x)):
            scale[row] = 2.0 if float(state[row].detach().sum()) > 0 else 0.5
        return after * scale


class Counting(nn.Module):
    """A state that counts steps, for each row and for all."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, 2))

    def forward(self, x, state=None):
        if state is None:
            state = {"h": x.new_zeros(x.shape[1], 2), "n": torch.zeros(x.shape[1], dtype=torch.int64), "all": 0}
        h, n, outputs = state["h"], state["n"], []
        for step in x:
            n = n + 1
            h = torch.tanh(step + h @ self.w) / n.unsqueeze(1) ** 0.1
            outputs.append(h)
        return torch.stack(outputs), {"h": h, "n": n, "all": state["all"] + len(x)}


MODELS = {
    "tanh": lambda: Read(cg.RNN(2, 4), 4),
    "relu": lambda: Read(cg.RNN(2, 4, nonlinearity="relu"), 4),
    "gru": lambda: Read(cg.GRU(2, 3, num_layers=2), 3),
    "lstm": lambda: Read(cg.LSTM(2, 3), 3),
    "linear": lambda: Read(cg.LinearRNN(2, 4, bias=True), 4),
    "complex": lambda: Read(cg.DiagonalRNN(2, 4, bias=True, complex=True), 4),
    "deep": lambda: Deep(cg.LSTM(3, 3), nn.GRU(3, 3)),
    "cell": lambda: cg.Recurrent(nn.GRUCell(2, 2)),
    "pair": lambda: cg.Recurrent(nn.LSTMCell(2, 2)),
    "opaque": Opaque,
    "writing": lambda: cg.Recurrent(Writing()),
    "counting": Counting,
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


def gradient(model, mode, x=X, y=Y, carry=None, loss=squared, seed=5, **options):
    seed = seed if carry is None else None
    return cg.value_and_grad(model, loss, x, y, carry, mode=mode, seed=seed, **options)


def flat_of(model, tensors):
    parts = [torch.view_as_real(part) if part.is_complex() else part for part in tensors]
    return torch.cat([part.reshape(-1) for part in parts])


def unflatten(model, flat):
    values, at = {}, 0
    for name, value in model.named_parameters():
        size = value.numel() * (2 if value.is_complex() else 1)
        part = flat[at : at + size]
        part = torch.view_as_complex(part.reshape(*value.shape, 2)) if value.is_complex() else part.reshape(value.shape)
        values[name], at = part, at + size
    return values


def by_hand(model, mode, cut=None, reset=None, lengths=None, weights=None, seed=5):
    """The formula, one row, particle and step at a time; ``cut`` are steps before which all rows are cut."""
    cut = cut or set()
    weights = torch.ones(T, B, dtype=torch.float64) if weights is None else weights
    valid = torch.ones(T, B, dtype=torch.bool)
    if lengths is not None:
        valid = torch.arange(T).unsqueeze(1) < lengths
    weights = torch.where(valid, weights, 0)
    reset = torch.zeros(T, B, dtype=torch.bool) if reset is None else reset
    base = flat_of(model, [p.detach() for p in model.parameters()])
    total = torch.zeros_like(base)

    def step(theta, t, b, state):
        return functional_call(model, unflatten(model, theta), (X[t : t + 1, b : b + 1], state))

    def copy(state):
        return torch.utils._pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, state)

    for b in range(B):
        begun, centre, wide = 0, None, None  # wide: the run without noise with its graph within the unroll
        particles = [[None, None] for _ in range(N)]
        xi = torch.zeros(N, len(base), dtype=torch.float64)
        theta = base.clone().requires_grad_()
        for t in range(T):
            everywhere = t in cut or bool(reset[t].all())
            if everywhere:
                begun, particles = t, [[copy(centre), copy(centre)] for _ in range(N)]
            key = begun if mode.reuse_noise else t // mode.unroll
            eps = noise(seed, key, N, base, SIGMA)
            if mode.reuse_noise:
                xi = eps
            elif everywhere or reset[t, b]:
                xi = eps.clone()
            elif t % mode.unroll == 0:
                xi = xi + eps
            if reset[t, b]:
                centre, particles = None, [[None, None] for _ in range(N)]
            if t % mode.unroll == 0 or everywhere or reset[t, b]:
                wide = copy(centre)
            if not valid[t, b]:
                continue
            out, wide = step(theta, t, b, wide)
            centre = torch.utils._pytree.tree_map(lambda x: x.detach() if isinstance(x, torch.Tensor) else x, wide)
            loss = squared(out, Y[t : t + 1, b : b + 1])[0, 0] * weights[t, b]
            p = torch.autograd.grad(loss, theta, retain_graph=True)[0] if mode.analytic else torch.zeros_like(base)
            total = total + p
            for i in range(N):
                found = []
                for side, sign in enumerate((1, -1)):
                    with torch.no_grad():
                        out, particles[i][side] = step(base + sign * eps[i], t, b, particles[i][side])
                    found.append(squared(out, Y[t : t + 1, b : b + 1])[0, 0] * weights[t, b])
                met = xi[i] - eps[i] if mode.analytic else xi[i]
                total = total + (found[0] - found[1] - 2 * eps[i] @ p) * met / (2 * SIGMA**2 * N)
    return unflatten(model, total.detach() / weights.sum())


@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["tanh", "opaque", "complex"])
def test_it_is_the_formula(name, mode, edges):
    model = build(name)
    ours, _ = gradient(model, MODES[mode], **EDGES[edges])
    assert_same_grads(ours.grads, by_hand(model, MODES[mode], **EDGES[edges]))


@pytest.mark.parametrize("mode", ["1", "3", "reuse", "analytic"])
@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("tanh", "opaque", "complex")])
def test_any_model(name, mode):
    model = build(name)
    ours, carry = gradient(model, MODES[mode])
    theirs, back = gradient(model, cg.Reverse())
    assert_same_grads(ours.grads, by_hand(model, MODES[mode]))
    assert_close(ours.loss, theirs.loss)
    for a, b in zip(torch.utils._pytree.tree_leaves(carry.state), torch.utils._pytree.tree_leaves(back.state)):
        assert a == b if isinstance(a, int) else torch.allclose(a.double().abs(), b.double().abs(), rtol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("truncation", "cut"), [(cg.Chunks(4), {4, 8}), (cg.Window(5, 2), {1, 2, 3, 5, 6, 7, 8})])
def test_cuts_begin_anew_from_the_run_without_noise(truncation, cut, mode):
    model = build("gru")
    ours, _ = gradient(model, MODES[mode], truncation=truncation)
    assert_same_grads(ours.grads, by_hand(model, MODES[mode], cut=cut))


def test_chunks_of_an_unroll_are_truncated_es():
    model, k = build("tanh"), 4
    ours, _ = gradient(model, cg.PES(N, SIGMA, k), truncation=cg.Chunks(k))
    base, total, centre = flat_of(model, [p.detach() for p in model.parameters()]), 0.0, None
    for block, at in enumerate(range(0, T, k)):
        x, y = X[at : at + k], Y[at : at + k]
        for eps in noise(5, block, N, base, SIGMA):
            plus, minus = (functional_call(model, unflatten(model, base + e), (x, centre))[0] for e in (eps, -eps))
            total = total + (squared(plus, y) - squared(minus, y)).sum().detach() * eps / (2 * SIGMA**2 * N)
        centre = model(x, centre)[1].detach()
    assert_same_grads(ours.grads, unflatten(model, total / (T * B)))


def test_particle_by_particle_is_the_same(monkeypatch):
    model = build("gru")
    ours, _ = gradient(model, MODES["3"])
    monkeypatch.setattr(swarm, "AT_ONCE", 1)  # chunks of one pair
    few, _ = gradient(model, MODES["3"])
    monkeypatch.setattr(swarm, "LARGE", 0)
    monkeypatch.setattr(swarm, "MANY", 1)  # the kernels
    alone, _ = gradient(model, MODES["3"])
    assert_same_grads(few.grads, ours.grads)
    assert_same_grads(alone.grads, ours.grads)


@pytest.mark.parametrize("edges", ["plain", "reset", "whole"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["gru", "opaque", "counting"])
def test_a_stream_of_calls_equals_one_call_and_stays_small(name, mode, edges):
    model, carry, total, sizes = build(name), None, None, []
    bounds = (0, 3, 6, T) if mode == "analytic" else (0, 1, 2, 3, 7, T)
    for begin, end in zip(bounds, bounds[1:]):
        edge = {key: value[begin:end] for key, value in EDGES[edges].items()}
        part, carry = gradient(model, MODES[mode], X[begin:end], Y[begin:end], carry, **edge)
        file = io.BytesIO()
        torch.save(carry.state_dict(), file)
        sizes.append(file.tell())
        file.seek(0)
        carry = cg.Carry.from_state_dict(torch.load(file, weights_only=True))
        total = part if total is None else total + part
    whole, last = gradient(model, MODES[mode], **EDGES[edges])
    assert_same_grads(total.grads, whole.grads)
    assert carry.open_steps == 0 and carry.stream.position == T
    if edges == "plain":
        assert max(sizes) - min(sizes) < 600
    for a, b in zip(torch.utils._pytree.tree_leaves(carry.mode), torch.utils._pytree.tree_leaves(last.mode)):
        assert torch.allclose(a, b, rtol=1e-12) if isinstance(a, torch.Tensor) else a == b


def test_the_same_seed_is_the_same_draw():
    model = build("tanh")
    one, two, other = (gradient(model, MODES["1"], seed=seed)[0].grads for seed in (3, 3, 4))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)
    found = torch.cat([noise(-7, block, 50, torch.zeros(40), 0.5).flatten() for block in range(4)])
    assert abs(float(found.std()) - 0.5) < 0.02 and abs(float(found.mean())) < 0.02 and len(found.unique()) > 7900


class Steps(nn.Module):
    """No derivative anywhere: signs, an argmax, and no graph."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[0.3, -0.2], [0.1, 0.4]], dtype=torch.float64))

    @torch.no_grad()
    def forward(self, x, state):
        h = x + (x.new_zeros(x.shape) if state is None else state) @ self.w
        return nn.functional.one_hot(h.argmax(-1), 2).to(h) + torch.sign(h)


def test_a_model_without_derivatives():
    model = cg.Recurrent(Steps())
    ours, _ = gradient(model, MODES["3"])
    assert_same_grads(ours.grads, by_hand(model, MODES["3"]))
    assert float(ours.grads["cell.w"].abs().max()) > 0
    with pytest.raises(ValueError, match="leave analytic out"):
        gradient(model, MODES["analytic"])


def test_dropout_is_the_same_for_all_particles():
    model = Read(nn.LSTM(2, 3, 2, dropout=0.5), 3).double()
    mode = cg.PES(200, 1e-5, reuse_noise=True)
    draws = [gradient(model, mode, X[:1], Y[:1], seed=seed)[0].grads["readout.bias"] for seed in (0, 1)]
    # Masks of their own would leave differences of losses of the order of the losses, divided by sigma.
    assert float(torch.stack(draws).abs().max()) < 20


def test_a_loss_that_takes_a_parameter_from_the_model():
    model = build("tanh")
    mode = cg.PES(N, SIGMA, reuse_noise=True)
    ours, _ = gradient(model, mode, loss=lambda outputs, targets: squared(outputs, targets) + model.readout.bias.sum())
    plain, _ = gradient(model, mode)
    eps = noise(5, 0, N, flat_of(model, list(model.parameters())), SIGMA)
    of_bias = torch.stack([unflatten(model, e)["readout.bias"].sum() for e in eps])
    assert_close(
        ours.grads["readout.bias"] - plain.grads["readout.bias"],
        unflatten(model, of_bias @ eps / SIGMA**2 / N)["readout.bias"],
    )


def test_cut_forgets_the_particles():
    model = build("tanh")
    for mode in MODES.values():
        _, carry = gradient(model, mode, X[:5], Y[:5])
        ours, _ = gradient(model, mode, X[5:], Y[5:], carry.cut())
        again, _ = gradient(model, mode, X[5:], Y[5:], carry.cut())
        assert_same_grads(ours.grads, again.grads)
    _, carry = gradient(model, MODES["1"], X[:6], Y[:6])
    ours, _ = gradient(model, MODES["1"], X[6:], Y[6:], carry.cut())
    theirs, _ = gradient(model, MODES["1"], X[6:], Y[6:], carry, truncation=cg.Chunks(6))
    assert_same_grads(ours.grads, theirs.grads)


def test_frozen_parameters_are_absent_and_no_weight_is_no_gradient():
    model = build("tanh")
    model.readout.requires_grad_(False)
    ours, _ = gradient(model, MODES["1"])
    assert {name.split(".")[0] for name in ours.grads} == {"layer"}
    nothing, _ = gradient(model, MODES["1"], weights=torch.zeros(T, B))
    assert nothing.loss == 0 and all(not bool(grad.any()) for grad in nothing.grads.values())
    model.requires_grad_(False)
    assert gradient(model, MODES["1"])[0].grads == {}


def test_compare_draws_it_again():
    model = build("tanh")
    found = cg.compare(model, squared, X, Y, ["full pes:5,0.01"], draws=8).candidates[1]
    assert found.draws == 8 and found.variance > 0 and not found.unbiased


def test_text():
    for mode in (
        cg.PES(100, 0.1),
        cg.PES(100, 1e-05, 5),
        cg.PES(7, 2.0, 5, analytic=True),
        cg.PES(7, 2, reuse_noise=True, limit=10**6),
    ):
        assert parse(mode.spec()) == mode
    assert parse("pes:100,0.1,5,analytic,512MB") == cg.PES(100, 0.1, 5, analytic=True, limit=512 * 10**6)
    for text in ("pes", "pes:3", "pes:3,a", "pes:3,0.1,5,6", "pes:3,0.1,again"):
        with pytest.raises(ValueError, match="PES"):
            parse(text)


def test_what_is_refused():
    model = build("tanh")
    _, carry = gradient(model, MODES["1"], X[:5], Y[:5])
    with pytest.raises(ValueError, match="what mode pes knows of the past.*carry.cut"):
        gradient(model, cg.RTRL(), X[5:], Y[5:], carry)
    with pytest.raises(ValueError, match=r"holds particles of mode pes:2,0.2, which mode pes:2,0.2,3 .*carry.cut"):
        gradient(model, MODES["3"], X[5:], Y[5:], carry)
    with pytest.raises(ValueError, match="this model has|the carry's state is"):
        gradient(Read(cg.RNN(2, 6), 6).double(), MODES["1"], X[5:], Y[5:], carry)
    with pytest.raises(ValueError, match="no way back; use cg.Full"):
        gradient(model, MODES["1"], truncation=cg.RandomTruncation(3))
    with pytest.raises(ValueError, match="particles of their own; use mode=cg.Reverse"):
        gradient(model, MODES["1"], truncation=cg.Window(1, 5))
    with pytest.raises(ValueError, match="hides its steps"):
        gradient(Read(nn.GRU(2, 3, bidirectional=True), 6).double(), MODES["1"])
    with pytest.raises(ValueError, match="leave wrt_inputs out"):
        gradient(model, MODES["1"], wrt_inputs=True)
    _, carry = gradient(model, MODES["analytic"], X[:4], Y[:4])
    with pytest.raises(ValueError, match="begins 1 steps into one; end calls at multiples of 3"):
        gradient(model, MODES["analytic"], X[4:], Y[4:], carry)
    with pytest.raises(ValueError, match="MB of particles .*above its limit .*fewer particles"):
        gradient(model, cg.PES(N, SIGMA, limit=100))
    size = sum(p.numel() for p in model.parameters())
    with pytest.raises(ValueError, match="2 groups of rows .*reuse_noise=True"):
        gradient(model, cg.PES(N, SIGMA, limit=N * 8 * (2 * size + 2 * B * 4) + 10), reset=RESET)
    for given in ((0, 0.1), (2.5, 0.1), (True, 0.1), (3, 0), (3, -1.0), (3, math.inf), (3, "a"), (3, 0.1, 0)):
        with pytest.raises(ValueError, match="PES: .*must be"):
            cg.PES(*given)
    with pytest.raises(ValueError, match="leave one of them out"):
        cg.PES(3, 0.1, reuse_noise=True, analytic=True)
    with pytest.raises(ValueError, match="reuse_noise must be True or False"):
        cg.PES(3, 0.1, reuse_noise=1)
