"""Every truncation against the brute-force oracle, over shapes, resets, lengths, weights and call boundaries."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

import chronograd as cg
from chronograd.truncation import Place
from oracle import Attending, Deep, Delayed, Opaque, assert_close, assert_same_grads, brute_force, squared

MODELS = {
    "recurrent": lambda: cg.Recurrent(nn.GRUCell(2, 3), nn.Linear(3, 2)),
    "own": lambda: Deep(cg.GRU(3, 3, num_layers=2), cg.RNN(3, 3)),
    "elstm": lambda: Deep(cg.ELSTM(3, 3), cg.LSTM(3, 3)),
    "torch": lambda: Deep(nn.LSTM(3, 3), nn.GRU(3, 3)),
    "opaque": Opaque,
    "attending": Attending,
    "delayed": Delayed,
}


@st.composite
def streams(draw, most: int = 8):
    """A stream of a few calls: (models, calls), every call a dict of the arguments of value_and_grad."""
    steps, rows = draw(st.integers(1, most)), draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**16))
    cuts = sorted(draw(st.sets(st.integers(1, steps - 1), max_size=3))) if steps > 1 else []
    bounds = list(zip([0, *cuts], [*cuts, steps]))
    reset = torch.tensor(
        draw(
            st.lists(
                st.lists(st.sampled_from([False] * 6 + [True]), min_size=rows, max_size=rows),
                min_size=steps,
                max_size=steps,
            )
        )
    )
    valid = torch.ones(steps, rows, dtype=torch.bool)
    lengths = []
    for begin, end in bounds:
        short = draw(st.booleans()) and draw(st.booleans())
        length = torch.tensor([draw(st.integers(0, end - begin)) if short else end - begin for _ in range(rows)])
        valid[begin:end] = torch.arange(end - begin).unsqueeze(1) < length
        lengths.append(length if short else None)
    reset &= valid
    weights = (
        torch.tensor(
            draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=steps * rows, max_size=steps * rows))
        )
        if draw(st.booleans())
        else None
    )
    weights = None if weights is None else weights.reshape(steps, rows).double()
    name = draw(st.sampled_from(sorted(MODELS)))
    return name, seed, bounds, rows, reset, valid, lengths, weights


def run_stream(name, seed, bounds, rows, reset, valid, lengths, weights, truncation, with_state=False):
    """The weighted sum of the calls' gradients, and what the oracle needs."""
    torch.manual_seed(seed)
    model = MODELS[name]().double()
    steps = bounds[-1][1]
    x, y = torch.randn(steps, rows, 2, dtype=torch.float64), torch.randn(steps, rows, 2, dtype=torch.float64)
    carry, total = cg.Carry.start(rows, seed=seed), None
    for (begin, end), length in zip(bounds, lengths):
        gradient, carry = cg.value_and_grad(
            model,
            squared,
            x[begin:end],
            y[begin:end],
            carry,
            truncation=truncation,
            reset=reset[begin:end],
            lengths=length,
            weights=None if weights is None else weights[begin:end],
        )
        total = gradient if total is None else total + gradient
    assert carry.stream.position == steps
    return model, x, y, total


def check(case, truncation, gate):
    model, x, y, ours = run_stream(*case, truncation)
    *_, reset, valid, _, weights = case
    counts = valid if weights is None else valid & (weights > 0)
    if not counts.any():
        assert ours.weight == 0 and ours.loss == 0 and all((g == 0).all() for g in ours.grads.values())
        return
    loss, grads, _, _ = brute_force(model, squared, x, y, gate, reset=reset, valid=valid, weights=weights)
    assert_close(ours.loss, loss)
    assert_same_grads(ours.grads, grads)


relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.filterwarnings("ignore:value_and_grad with Full")
@given(streams())
@relaxed
def test_full(case):
    check(case, cg.Full(), lambda t, s, b: 1.0)


@given(streams(), st.integers(1, 10))
@relaxed
def test_chunks(case, k):
    check(case, cg.Chunks(k), lambda t, s, b: float(s % k != 0))


@given(streams(), st.integers(1, 6), st.integers(1, 6))
@relaxed
def test_windows(case, k1, k2):
    # The loss at step t = 1, 2, ... of block j = ceil(t / k1) reaches back to step min(t, j k1 - k2 + 1).
    def gate(t, s, b):
        reach = min(t + 1, -(-(t + 1) // k1) * k1 - k2 + 1)
        return float(s + 1 != reach)

    check(case, cg.Window(k1, k2), gate)


@given(streams(), st.sampled_from([1.5, 3.0]), st.sampled_from(["geometric", "polynomial"]))
@relaxed
def test_random(case, mean, tail):
    truncation = cg.RandomTruncation(mean, tail=tail, alpha=2.5)
    _, seed, bounds, rows, reset, valid, *_ = case
    starts = reset.clone()
    for begin, _ in bounds[1:]:  # rows that begin late start there
        starts[begin] |= valid[begin] & ~valid[:begin].any(0)
    place = Place(0, bounds[-1][1], torch.arange(rows), seed, torch.zeros(rows, dtype=torch.int64), starts)
    gates = truncation.plan(place).gates
    check(case, truncation, lambda t, s, b: float(gates[s, b]))


WITH_STATE = {
    "own": (lambda: Deep(cg.GRU(3, 3), nn.GRU(3, 3)), lambda: (torch.randn(1, 2, 3), torch.randn(1, 2, 3)), [1, 1]),
    "recurrent": (MODELS["recurrent"], lambda: torch.randn(2, 3), [0]),
    "opaque": (Opaque, lambda: {"h": torch.randn(2, 3), "c": [torch.randn(3, 2)]}, [0, 1]),
}
GATES = {
    cg.Full(): lambda t, s, b: 1.0,
    cg.Chunks(4): lambda t, s, b: float(s % 4 != 0),
    cg.Window(2, 5): lambda t, s, b: float(s + 1 != min(t + 1, -(-(t + 1) // 2) * 2 - 4)),
}


@pytest.mark.filterwarnings("ignore:value_and_grad with Full")
@pytest.mark.parametrize("bounds", [[(0, 7)], [(0, 3), (3, 4), (4, 7)]], ids=["one call", "three calls"])
@pytest.mark.parametrize("truncation", GATES, ids=str)
@pytest.mark.parametrize("name", WITH_STATE)
def test_inputs_and_a_given_state_get_their_gradients_over_calls(name, truncation, bounds):
    torch.manual_seed(0)
    build, begin_state, dims = WITH_STATE[name]
    model, state = build().double(), tree_map(torch.Tensor.double, begin_state())
    x, y = torch.randn(7, 2, 2, dtype=torch.float64), torch.randn(7, 2, 2, dtype=torch.float64)
    rows = [take_row(state, dims, b) for b in range(2)]
    loss, grads, dx, dstate = brute_force(model, squared, x, y, GATES[truncation], state=rows)
    carry, total, ours_x, ours_state = cg.Carry.start(2, state=state), None, torch.zeros_like(x), None
    for begin, end in bounds:
        reached, share = carry.segment.start, (end - begin) / 7
        gradient, carry = cg.value_and_grad(
            model, squared, x[begin:end], y[begin:end], carry, truncation=truncation, wrt_inputs=True
        )
        total = gradient if total is None else total + gradient
        ours_x[begin:end] += gradient.inputs * share
        if gradient.past_inputs is not None:
            ours_x[reached:begin] += gradient.past_inputs * share
        if gradient.state is not None:
            scaled = tree_map(lambda g, share=share: g * share, gradient.state)
            ours_state = scaled if ours_state is None else tree_map(torch.add, ours_state, scaled)
    assert_close(total.loss, loss)
    assert_same_grads(total.grads, grads)
    assert_close(ours_x, dx)
    for b in range(2):
        for ours, expected in zip(tree_leaves(take_row(ours_state, dims, b)), tree_leaves(dstate[b])):
            assert_close(ours, expected)


def take_row(state, dims, b):
    leaves, spec = tree_flatten(state)
    return tree_unflatten([leaf.narrow(dim, b, 1) for leaf, dim in zip(leaves, dims)], spec)
