"""What ``adapt`` makes of a model, run under gates, resets and frozen rows, against single steps of the model itself.

In that loop a gate is ``xi h + (1 - xi) h.detach()``, a reset is ``torch.where`` between the step taken and the step
taken with ``state=None``, a frozen row is ``torch.where`` between the new state and the old.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import tree_map

import chronograd as cg
from chronograd.kernels import Edges
from chronograd.recurrence.adapters import adapt
from chronograd.recurrence.states import leaves


class Hand(nn.Module):
    """tanh(x W + h U), written by hand; an own initial state that learns."""

    def __init__(self):
        super().__init__()
        self.W, self.U, self.h0 = (nn.Parameter(torch.randn(*s)) for s in ((3, 4), (4, 4), (4,)))

    def forward(self, x, h=None):
        h = self.h0.expand(x.shape[1], 4) if h is None else h
        path = []
        for x_t in x:
            h = torch.tanh(x_t @ self.W + h @ self.U)
            path.append(h)
        return torch.stack(path), h


class Learned(nn.Module):
    """Two LSTMs one after the other, each with an initial state that learns, between two linear maps."""

    def __init__(self, layer=nn.LSTM):
        super().__init__()
        self.into, self.a, self.b, self.out = nn.Linear(3, 4), layer(4, 5, 2), layer(5, 4), nn.Linear(4, 2)
        self.starts = nn.ParameterList([torch.randn(n, 1, size) for n, size in ((2, 5), (2, 5), (1, 4), (1, 4))])

    def forward(self, x, state=None):
        if state is None:
            parts = [p.expand(-1, x.shape[1], -1).contiguous() for p in self.starts]
            state = (tuple(parts[:2]), tuple(parts[2:]))
        x, first = self.a(self.into(x), state[0])
        x, second = self.b(x, state[1])
        return self.out(x), (first, second)


class CellLoop(nn.Module):
    """A GRUCell in a loop of the user's, with an embedding before and a readout after."""

    def __init__(self):
        super().__init__()
        self.into, self.cell, self.out = nn.Linear(3, 4), nn.GRUCell(4, 5), nn.Linear(5, 2)

    def forward(self, x, h=None):
        path = []
        for x_t in self.into(x):
            h = self.cell(x_t, h)
            path.append(h)
        return self.out(torch.stack(path)), h


class TwoCells(nn.Module):
    """An LSTMCell above a GRUCell, as one state of three tensors in a dict."""

    def __init__(self):
        super().__init__()
        self.low, self.high = nn.GRUCell(3, 4), nn.LSTMCell(4, 5)

    def forward(self, x, state=None):
        low, high = (None, None) if state is None else (state["low"], state["high"])
        path = []
        for x_t in x:
            low = self.low(x_t, low)
            high = self.high(low, high)
            path.append(high[0])
        return torch.stack(path), {"low": low, "high": high}


class Counter(nn.Module):
    """A GRU and the number of steps taken, which the output depends on."""

    def __init__(self):
        super().__init__()
        self.layer = nn.GRU(3, 4)

    def forward(self, x, state=None):
        h, count = (None, torch.tensor(0)) if state is None else state
        out, h = self.layer(x, h)
        times = count + torch.arange(1, len(x) + 1)
        return out * torch.cos(times.to(x.dtype)).reshape(-1, 1, 1), (h, count + len(x))


class Mixed(nn.Module):
    """A GRU whose state is squeezed between steps by the model itself, and its old value in a list."""

    def __init__(self):
        super().__init__()
        self.layer = nn.GRU(3, 4)

    def forward(self, x, state=None):
        path, h = [], None if state is None else state[0]
        for x_t in x:
            out, h = self.layer(x_t.unsqueeze(0), h)
            h = 0.9 * h
            path.append(out)
        return torch.cat(path), [h]


def nested(x, state):
    """A cell for ``Recurrent`` with a nested state."""
    if state is None:
        state = {"a": torch.zeros(len(x), 3, dtype=x.dtype), "b": (torch.ones(len(x), 3, dtype=x.dtype),)}
    a = torch.tanh(x + state["a"] * 0.7 - 0.3 * state["b"][0])
    return {"a": a, "b": (torch.sin(state["b"][0] + a),)}


MODELS = {
    "nn.RNN": (lambda: nn.RNN(3, 4, 2), "layers"),
    "nn.GRU": (lambda: nn.GRU(3, 4), "layers"),
    "nn.LSTM": (lambda: nn.LSTM(3, 4, 2), "layers"),
    "nn.LSTM batch_first": (lambda: nn.LSTM(3, 4, batch_first=True), "layers"),
    "cg.GRU": (lambda: cg.GRU(3, 4, 2), "layers"),
    "cg.LSTM batch_first": (lambda: cg.LSTM(3, 4, batch_first=True), "layers"),
    "cg.LinearRNN": (lambda: cg.LinearRNN(3, 4), "layers"),
    "cg.ELSTM": (lambda: cg.ELSTM(3, 4), "layers"),
    "nn.RNNCell": (lambda: nn.RNNCell(3, 4), "layers"),
    "nn.GRUCell": (lambda: nn.GRUCell(3, 4), "layers"),
    "nn.LSTMCell": (lambda: nn.LSTMCell(3, 4), "layers"),
    "learned": (Learned, "layers"),
    "learned own": (lambda: Learned(cg.LSTM), "layers"),
    "cell loop": (CellLoop, "layers"),
    "two cells": (TwoCells, "layers"),
    "recurrent": (lambda: cg.Recurrent(nn.LSTMCell(3, 4), nn.Linear(4, 2) and (lambda s: s[0] * 2)), "layers"),
    "recurrent nested": (lambda: cg.Recurrent(nested, lambda s: s["a"] + s["b"][0]), "layers"),
    "hand": (Hand, "opaque"),
    "counter": (Counter, "opaque"),
    "mixed": (Mixed, "opaque"),
}


def stepper(model):
    """The model as a function of one step, whatever way round it takes its input."""
    if isinstance(model, nn.RNNCell | nn.GRUCell):
        return lambda x, s: (lambda h: (h.unsqueeze(0), h))(model(x[0], s))
    if isinstance(model, nn.LSTMCell):
        return lambda x, s: (lambda h: (h[0].unsqueeze(0), h))(model(x[0], s))
    if getattr(model, "batch_first", False):
        return lambda x, s: (lambda out, new: (out.transpose(0, 1), new))(*model(x.transpose(0, 1), s))
    return model


def column(mask, leaf, rows):
    """A mask over rows in the shape of a state tensor: (L, B, H) or (B, H)."""
    assert leaf.shape[-2] == rows
    return mask.reshape((1, -1, 1) if leaf.dim() == 3 else (-1, 1))


def loop(model, x, state, gates, reset, valid):
    step, rows, outputs, states = stepper(model), x.shape[1], [], []
    for t in range(len(x)):
        if state is not None:

            def gated(h, t=t):
                if not h.is_floating_point():
                    return h
                xi = column(gates[t], h, rows)
                return xi * h + (1 - xi) * h.detach()

            state = tree_map(gated, state)
        states.append(state)
        out, new = step(x[t : t + 1], state)
        if reset[t].any():
            fresh_out, fresh = step(x[t : t + 1], None)
            out = torch.where(reset[t].reshape(1, -1, 1), fresh_out, out)
            new = tree_map(lambda f, n, t=t: torch.where(column(reset[t], n, rows), f, n) if n.dim() else n, fresh, new)
        if not valid[t].all():
            new = tree_map(lambda n, o, t=t: torch.where(column(valid[t], n, rows), n, o) if n.dim() else n, new, state)
        outputs.append(out)
        state = new
    return torch.cat(outputs), state, states


def scene(name, T, B, seed):
    torch.manual_seed(seed)
    model = MODELS[name][0]().double()
    return model, torch.randn(T, B, 3, dtype=torch.float64, requires_grad=True)


def assert_gradients(found, expected, wrt, valid):
    grads = []
    for outputs, final in (found, expected):
        weight = torch.arange(outputs.numel(), dtype=torch.float64).reshape(outputs.shape).cos()
        loss = torch.where(valid.unsqueeze(-1), outputs * weight, 0).sum()
        loss = loss + sum((leaf.sin() * 1.7).sum() for leaf in leaves(final) if leaf.is_floating_point())
        grads.append(torch.autograd.grad(loss, wrt, allow_unused=True))
    for a, b, leaf in zip(*grads, wrt):
        a, b = (torch.zeros_like(leaf) if g is None else g for g in (a, b))
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_kind(name):
    model, x = scene(name, 4, 7, 0)
    before = torch.get_rng_state()
    recurrence = adapt(model, x)
    assert recurrence.kind == MODELS[name][1]
    assert torch.equal(torch.get_rng_state(), before)
    _, state = stepper(model)(x[:1], None)
    expected = [leaf.shape.index(7) if leaf.dim() else None for leaf in leaves(state)]
    assert list(recurrence.dims.dims) == expected


SIDE_BY_SIDE = {
    "torch layer": nn.GRU(3, 4),
    "torch cell": nn.GRUCell(3, 4),
    "recurrent": cg.Recurrent(nn.GRUCell(3, 4)),
    "opaque": Hand(),
}


def test_what_lays_stretches_side_by_side():
    x = torch.randn(3, 2, 3)
    rows = {name: adapt(model, x).few_rows for name, model in SIDE_BY_SIDE.items()}
    assert adapt(cg.GRU(3, 4), x).folds and not any(adapt(model, x).folds for model in SIDE_BY_SIDE.values())
    assert rows == {"torch layer": 8, "torch cell": 32, "recurrent": 32, "opaque": 0}


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_edges_equal_a_loop_of_single_steps(name, data):
    T, B = data.draw(st.integers(1, 7)), data.draw(st.sampled_from([1, 7]))
    model, x = scene(name, T, B, 0)
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    gates = torch.ones(T, B, dtype=torch.float64)
    if data.draw(st.booleans()):
        gates[torch.rand(T, B, generator=g) < 0.3] = 1.8
        gates[torch.rand(T, B, generator=g) < 0.3] = 0
    if data.draw(st.booleans()):
        gates[torch.rand(T, generator=g) < 0.3] = 0
    reset = torch.rand(T, B, generator=g) < (0.2 if data.draw(st.booleans()) else 0)
    valid = torch.ones(T, B, dtype=torch.bool)
    if data.draw(st.booleans()):
        valid = torch.arange(T).unsqueeze(1) < torch.randint(1, T + 1, (B,), generator=g)
        reset &= valid
    gates[reset] = 0
    state, extra = None, []
    if data.draw(st.booleans()):
        with torch.no_grad():
            _, state = stepper(model)(torch.randn(1, B, 3, dtype=torch.float64), None)
        state = tree_map(lambda h: h.clone().requires_grad_(h.is_floating_point()), state)
        extra = [h for h in leaves(state) if h.requires_grad]
    visits = sorted(data.draw(st.sets(st.integers(0, T - 1))))
    outputs, final, seen = adapt(model, x).run_and_visit(x, state, Edges(gates, reset, valid), visits)
    expected, expected_final, states = loop(model, x, state, gates, reset, valid)
    torch.testing.assert_close(outputs[valid], expected[valid])
    for a, b in zip(leaves([final, *seen]), leaves([expected_final, *(states[t] for t in visits)]), strict=True):
        assert a.dtype == b.dtype and a.device == b.device
        torch.testing.assert_close(a, b)
    assert [s is None for s in seen] == [states[t] is None for t in visits]
    assert_gradients((outputs, final), (expected, expected_final), [x, *model.parameters(), *extra], valid)


@pytest.mark.parametrize("name", MODELS)
def test_plain_stretches_are_calls_of_the_model(name):
    model, x = scene(name, 3, 2, 0)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    adapt(model, x).run(x, None, Edges())
    assert len(calls) == (3 if isinstance(model, nn.RNNCellBase) else 1)


@pytest.mark.parametrize("name", MODELS)
def test_one_step_and_what_its_outputs_are_made_of(name):
    """The cotangents of ``own`` explain that of every parameter the readout does not have: nothing flows past them."""
    model, x = scene(name, 1, 3, 0)
    recurrence = adapt(model, x)
    with torch.no_grad():
        _, state = stepper(model)(x, None)
    state = tree_map(lambda h: h.clone().requires_grad_(h.is_floating_point()), state)
    outputs, final, own = recurrence.run_step(x, state, Edges())
    expected, expected_final = stepper(model)(x, state)
    torch.testing.assert_close(outputs, expected)
    for a, b in zip(leaves(final), leaves(expected_final)):
        torch.testing.assert_close(a, b)
    own = [part for part in own if part.requires_grad]
    if name not in ("hand", "counter", "mixed"):
        last = torch.autograd.grad(outputs.square().sum(), own, retain_graph=True, allow_unused=True)
        assert any(g is not None and g.abs().sum() > 0 for g in last)
    through = torch.autograd.grad(
        sum(h.square().sum() for h in leaves(final) if h.requires_grad), own, allow_unused=True
    )
    assert all(g is not None for g in through)


@pytest.mark.parametrize("name", ["learned", "learned own", "hand"])
def test_a_learned_initial_state_learns_whatever_the_gate_before_it(name):
    """A stream that begins is no cut, and neither is a reset: both are steps from ``state=None``."""
    model, x = scene(name, 4, 2, 0)
    gates = torch.ones(4, 2, dtype=torch.float64)
    gates[[0, 2]] = 0
    reset = torch.zeros(4, 2, dtype=torch.bool)
    reset[2] = True
    starts = [p for n, p in model.named_parameters() if n == "h0" or n.startswith("starts")]
    for begin, edges in ((0, Edges(gates)), (2, Edges(gates, reset))):
        outputs, _ = adapt(model, x).run(x, None, edges)
        found = torch.autograd.grad(outputs[begin:].square().sum(), starts)
        assert all(bool((g != 0).any()) for g in found)


def test_gates_do_not_advance_the_generator():
    torch.manual_seed(0)
    model, x = nn.GRU(3, 4, 2, dropout=0.5), torch.randn(6, 2, 3)
    reset = torch.zeros(6, 2, dtype=torch.bool)
    reset[3, 1] = True
    states = []
    for edges in (Edges(), Edges(torch.full((6, 2), 0.5)), Edges(None, reset)):
        torch.manual_seed(1)
        adapt(model, x).run(x, None, edges)
        states.append(torch.get_rng_state())
    assert all(torch.equal(states[0], other) for other in states)


def test_looking_at_a_model_leaves_its_buffers():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.layer = nn.BatchNorm1d(3), nn.GRU(3, 4)
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

        def forward(self, x, h=None):
            self.calls += 1
            return self.layer(self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2]), h)

    model, x = Normed(), torch.randn(4, 3, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recurrence = adapt(model, x)
    assert recurrence.kind == "layers" and model.training
    assert recurrence.dims.dims == (1,)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    recurrence.run(x, None, Edges(torch.full((4, 3), 0.5)))
    assert model.calls == 1


def test_hidden_steps():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.MultiheadAttention(4, 2)

        def forward(self, x, state=None):
            return self.heads(x, x, x)[0], state

    x = torch.randn(3, 2, 4)
    recurrence = adapt(Attends(), x)
    assert recurrence.kind == "whole" and recurrence.hides == "heads attends over time"
    recurrence = adapt(nn.GRU(4, 5, bidirectional=True), x)
    assert recurrence.kind == "whole" and recurrence.hides == "GRU is bidirectional"
    outputs, _ = recurrence.run(x, None, Edges())
    assert outputs.shape == (3, 2, 10)


def test_a_layer_used_only_sometimes():
    """Seen as layers in the first steps, run otherwise later: it goes on as an opaque model."""

    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.GRU(3, 4), nn.GRU(3, 4)

        def forward(self, x, h=None):
            if h is None:
                h = x.new_zeros(1, x.shape[1], 4)
            path = []
            for x_t in nn.functional.dropout(x, 0.5, self.training):
                out, h = (self.b if x_t.sum() > 1e3 else self.a)(x_t.unsqueeze(0), h)
                path.append(out)
            return torch.cat(path), h

    torch.manual_seed(0)
    model, x = Sometimes().double(), torch.randn(5, 2, 3, dtype=torch.float64)

    class Late(Sometimes):
        def forward(self, x, h=None):
            if len(x) < 3:
                return self.a(x, h)
            first, h = self.a(x[:2], h)
            second, h = self.a(x[2:], h)
            return torch.cat([first, second]), h

    assert adapt(model, x).kind == "opaque"
    late = Late().double()
    recurrence = adapt(late, x)
    assert recurrence.kind == "layers"
    gates = torch.rand(5, 2, dtype=torch.float64)
    outputs, final = recurrence.run(x, None, Edges(gates))
    assert recurrence.kind == "opaque"
    no = torch.zeros(5, 2, dtype=torch.bool)
    expected = loop(late, x, None, gates, no, ~no)[:2]
    assert_gradients((outputs, final), expected, list(late.a.parameters()), ~no)


def test_a_model_found_to_be_opaque_in_its_run_draws_the_same_numbers():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.GRU(3, 4)

        def forward(self, x, h=None):
            x = nn.functional.dropout(x, 0.5, self.training)
            halves = [x] if len(x) < 3 else [x[:2], x[2:]]
            path = []
            for half in halves:
                out, h = self.layer(half, h)
                path.append(out)
            return torch.cat(path), h

    model, x = Late(), torch.randn(6, 2, 3)
    gates = torch.ones(6, 2, dtype=torch.float64)
    gates[5, 0] = 0.5
    torch.manual_seed(0)
    first, h = model(x[:5])
    last, _ = model(x[5:], h)
    expected = torch.cat([first, last])
    torch.manual_seed(0)
    recurrence = adapt(model, x)
    outputs, _ = recurrence.run(x, None, Edges(gates))
    assert recurrence.kind == "opaque"
    torch.testing.assert_close(outputs, expected)


def test_one_cell_for_two_streams():
    """The same weights, two states: told apart by the states that come back."""

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRUCell(3, 4)

        def forward(self, x, state=None):
            a, b = (None, None) if state is None else state
            path = []
            for x_t in x:
                a, b = self.cell(x_t, a), self.cell(-x_t, b)
                path.append(a * b)
            return torch.stack(path), (a, b)

    torch.manual_seed(0)
    model, x = Shared().double(), torch.randn(5, 7, 3, dtype=torch.float64)
    gates, reset = torch.rand(5, 7, dtype=torch.float64), torch.rand(5, 7) < 0.3
    recurrence = adapt(model, x)
    assert recurrence.kind == "layers"
    found = recurrence.run(x, None, Edges(gates, reset))
    expected = loop(model, x, None, gates, reset, torch.ones_like(reset))[:2]
    assert_gradients(found, expected, list(model.parameters()), torch.ones_like(reset))


def test_a_side_layer_whose_state_is_not_carried_is_opaque():
    class Side(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.GRU(3, 4), nn.GRU(3, 4)

        def forward(self, x, h=None):
            out, h = self.a(x, h)
            return out + self.b(x)[0], h

    assert adapt(Side(), torch.randn(3, 2, 3)).kind == "opaque"


def test_states_that_change_places_are_opaque():
    class Swap(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.GRU(3, 4), nn.GRU(3, 4)

        def forward(self, x, state=None):
            p, q = (None, None) if state is None else state
            out, p = self.a(x, p)
            other, q = self.b(x, q)
            return out + other, (q, p)

    assert adapt(Swap(), torch.randn(3, 2, 3)).kind == "opaque"


def test_a_model_without_a_state():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(3, 2)

        def forward(self, x, state=None):
            return self.out(x), None

    model, x = Flat(), torch.randn(4, 2, 3)
    reset = torch.zeros(4, 2, dtype=torch.bool)
    reset[2] = True
    outputs, state = adapt(model, x).run(x, None, Edges(torch.zeros(4, 2), reset))
    torch.testing.assert_close(outputs, model.out(x))
    assert state is None


def test_where_rows_lie_is_declared_or_an_error():
    class Matrix(nn.Module):
        """A state of B x B, as nobody should have; the rows are in the second dimension."""

        def forward(self, x, state=None):
            state = x.new_zeros(x.shape[1], x.shape[1]) if state is None else state
            return x.cumsum(0) + state.sum(0).reshape(1, -1, 1), state + 1

    x = torch.randn(4, 2, 3)
    gates = torch.full((4, 2), 0.5)
    with pytest.raises(ValueError, match="cannot tell where the rows of state tensor 0 lie"):
        adapt(Matrix(), x).run(x, None, Edges(gates))
    model = Matrix()
    model.state_row_dim = 1
    assert adapt(model, x).dims.dims == (1,)
    model.state_row_dim = [0, 1]
    with pytest.raises(ValueError, match="state_row_dim names 2 dimensions, but the state has 1 tensors"):
        assert adapt(model, x).dims


def test_a_model_made_for_one_batch_size():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.U = nn.Parameter(torch.eye(3))
            self.register_buffer("start", torch.zeros(5, 3))

        def forward(self, x, h=None):
            h, path = self.start if h is None else h, []
            for x_t in x:
                h = torch.tanh(x_t + h @ self.U)
                path.append(h)
            return torch.stack(path), h

    model, x = Fixed(), torch.randn(4, 5, 3)
    with pytest.raises(RuntimeError) as error:
        assert adapt(model, x).dims
    assert "state_row_dim" in error.value.__notes__[0]
    model.state_row_dim = 0
    outputs, _ = adapt(model, x).run(x, None, Edges(torch.rand(4, 5)))
    torch.testing.assert_close(outputs, model(x)[0])


def test_a_state_that_gates_cannot_reach_is_refused():
    class Box:
        def __init__(self, h):
            self.h = h

    class Boxed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.GRU(3, 4)

        def forward(self, x, state=None):
            out, h = self.layer(x, None if state is None else state.h)
            return out, Box(h)

    x = torch.randn(4, 2, 3)
    with pytest.raises(TypeError, match="state holds a Box"):
        adapt(Boxed(), x).run(x, None, Edges(torch.rand(4, 2)))


@pytest.mark.parametrize("name", ["nn.LSTM", "learned", "hand", "cell loop"])
def test_without_gradients_and_with_frozen_parameters(name):
    model, x = scene(name, 5, 3, 0)
    x = x.detach()
    gates = torch.rand(5, 3, dtype=torch.float64)
    reset = torch.zeros(5, 3, dtype=torch.bool)
    reset[2, 0] = True
    with torch.no_grad():
        outputs, final = adapt(model, x).run(x, None, Edges(gates, reset))
    assert not outputs.requires_grad
    frozen = list(model.parameters())[1]
    frozen.requires_grad_(False)
    outputs, final = adapt(model, x).run(x, None, Edges(gates, reset))
    expected = loop(model, x, None, gates, reset, torch.ones(5, 3, dtype=torch.bool))
    wrt = [p for p in model.parameters() if p.requires_grad]
    assert len(wrt) < len(list(model.parameters()))
    assert_gradients((outputs, final), expected[:2], wrt, torch.ones(5, 3, dtype=torch.bool))


def test_single_precision_states_stay_so():
    x = torch.randn(4, 2, 3)
    gates = torch.rand(4, 2, dtype=torch.float64)
    for model in (nn.LSTM(3, 4), Hand(), CellLoop(), cg.Recurrent(nested)):
        outputs, final = adapt(model, x).run(x, None, Edges(gates))
        assert {leaf.dtype for leaf in [outputs, *leaves(final)]} == {torch.float32}


def test_inputs_may_be_nested():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.GRU(3, 4)

        def forward(self, inputs, h=None):
            return self.layer(inputs["x"] + inputs["shift"][0], h)

    x = torch.randn(4, 2, 3, dtype=torch.float64)
    model, inputs = Two().double(), {"x": x, "shift": [x * 0.5]}
    reset = torch.zeros(4, 2, dtype=torch.bool)
    reset[1, 1] = True
    recurrence = adapt(model, inputs)
    assert recurrence.kind == "layers"
    outputs, _ = recurrence.run(inputs, None, Edges(None, reset))
    torch.testing.assert_close(outputs[1:, 1:], model.layer(x[1:, 1:] * 1.5)[0])
