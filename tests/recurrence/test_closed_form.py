"""E8-E13 of the linear RNN against autograd, in float64, and E12 against E10-E11."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chronograd.recurrence.closed_form import (
    linear_rnn_forward,
    linear_rnn_gradients,
    power_expansion,
    power_terms,
)


def assert_equal(found, expected, name=""):
    """Equal to 1e-10, relative to the largest entry expected."""
    assert found.shape == expected.shape, f"{name}: {tuple(found.shape)} and {tuple(expected.shape)}"
    error = (found - expected).abs().max()
    assert error <= 1e-10 * expected.abs().max() + 1e-14, f"{name}: {found} and {expected} differ by {error}"


sizes = st.tuples(*(st.integers(1, top) for top in (9, 3, 4, 5, 4)))  # T, B, D, H, Q


def draw(size, seed):
    """Inputs, weights of mixed scales (contracting and expanding), an initial state, targets."""
    T, B, D, H, Q = size
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    weights = [normal(H, D), normal(H, H) * (0.3 + seed % 3 * 0.5) / H**0.5, normal(Q, H)]
    return normal(T, B, D), *weights, normal(B, H), normal(T, B, Q)


def by_hand(x, W_hx, W_hh, W_qh, h0):
    """The forward pass unit by unit, without a single matrix product of the code under test."""
    states, outputs = [], []
    h = h0.tolist()
    for x_t in x.tolist():
        h = [
            [
                sum(w * v for w, v in zip(W_hx[i].tolist(), row)) + sum(w * v for w, v in zip(W_hh[i].tolist(), old))
                for i in range(len(W_hh))
            ]
            for row, old in zip(x_t, h)
        ]
        states.append(h)
        outputs.append([[sum(w * v for w, v in zip(line, row)) for line in W_qh.tolist()] for row in h])
    return torch.tensor(states, dtype=torch.float64), torch.tensor(outputs, dtype=torch.float64)


def slope(error):
    """dl/do of the loss that `by_autograd` differentiates."""
    return error / torch.sqrt(1 + error**2)


def by_autograd(x, W_hx, W_hh, W_qh, h0, y, a):
    """L = sum a l with l = sqrt(1 + (o - y)^2); autograd's gradients by everything, o and h included."""
    leaves = [tensor.clone().requires_grad_() for tensor in (x, W_hx, W_hh, W_qh, h0)]
    xs, whx, whh, wqh, h = leaves
    states, outputs, loss = [], [], torch.zeros((), dtype=torch.float64)
    for t in range(len(x)):
        h = torch.nn.functional.linear(xs[t], whx) + torch.nn.functional.linear(h, whh)
        states.append(h)
        outputs.append(torch.nn.functional.linear(h, wqh))
        loss = loss + (a[t] * torch.sqrt(1 + (outputs[t] - y[t]) ** 2).sum(-1)).sum()
    found = torch.autograd.grad(loss, [*leaves, *states, *outputs], materialize_grads=True)
    names = dict(zip(("x", "W_hx", "W_hh", "W_qh", "h0"), found))
    T = len(x)
    return names | {"h": torch.stack(found[5 : 5 + T]), "o": torch.stack(found[5 + T :])}


@given(sizes, st.integers(0, 50), st.sampled_from(["none", "steps", "entries"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_gradient_equals_autograd(size, seed, weighting, zero_start):
    x, W_hx, W_hh, W_qh, h0, y = draw(size, seed)
    T, B = size[:2]
    if zero_start:
        h0 = torch.zeros_like(h0)
    generator = torch.Generator().manual_seed(seed + 1)
    steps = torch.rand(T, dtype=torch.float64, generator=generator)
    entries = torch.rand(T, B, dtype=torch.float64, generator=generator)
    given_weights, a = {
        "none": (None, torch.full((T, B), 1 / T / B, dtype=torch.float64)),
        "steps": (steps, (steps / B).unsqueeze(1).repeat(1, B)),
        "entries": (entries, entries),
    }[weighting]

    run = linear_rnn_forward(x, W_hx, W_hh, W_qh, None if zero_start else h0)
    states, outputs = by_hand(x, W_hx, W_hh, W_qh, h0)
    assert_equal(run.states, states)
    assert_equal(run.outputs, outputs)

    found = linear_rnn_gradients(run, slope(run.outputs - y), given_weights).to_dict()
    expected = by_autograd(x, W_hx, W_hh, W_qh, h0, y, a)
    assert found.keys() == expected.keys()
    for name in expected:
        assert_equal(found[name], expected[name], name)


@given(sizes, st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_expansion_by_powers_equals_autograd(size, seed):
    x, W_hx, W_hh, W_qh, h0, y = draw(size, seed)
    T, B = size[:2]
    a = torch.full((T, B), 1 / T / B, dtype=torch.float64)
    expected = by_autograd(x, W_hx, W_hh, W_qh, h0, y, a)
    assert_equal(power_expansion(W_hh, W_qh, expected["o"]), expected["h"])


def test_each_term_of_the_expansion_is_the_share_of_one_output():
    """Term k of dL/dh_t is what autograd gives when only the loss at step t + k is kept."""
    x, W_hx, W_hh, W_qh, h0, y = draw((6, 2, 3, 4, 2), seed=5)
    t = 2
    run = linear_rnn_forward(x, W_hx, W_hh, W_qh, h0)
    d_o = linear_rnn_gradients(run, slope(run.outputs - y)).o
    terms = power_terms(W_hh, W_qh, d_o, t)
    assert terms.shape == (5, 2, 4)
    for lag in range(5):
        a = torch.zeros(6, 2, dtype=torch.float64)
        a[t - 1 + lag] = 1 / 12
        alone = by_autograd(x, W_hx, W_hh, W_qh, h0, y, a)["h"][t - 1]
        assert_equal(terms[lag], alone)


def test_a_step_count_of_one_has_no_recurrent_gradient_from_a_zero_start():
    x, W_hx, W_hh, W_qh, _, y = draw((1, 2, 3, 4, 2), seed=1)
    run = linear_rnn_forward(x, W_hx, W_hh, W_qh)
    found = linear_rnn_gradients(run, run.outputs - y)
    assert found.W_hh.count_nonzero() == 0
    assert_equal(found.h[0], (run.outputs - y)[0] @ W_qh / 2)


def test_forward_is_differentiable():
    x, W_hx, W_hh, W_qh, h0, _ = draw((3, 1, 2, 2, 1), seed=2)
    leaves = tuple(tensor.requires_grad_() for tensor in (x, W_hx, W_hh, W_qh, h0))
    assert torch.autograd.gradcheck(lambda *args: linear_rnn_forward(*args).outputs, leaves)


GOOD = {"x": (4, 2, 3), "W_hx": (5, 3), "W_hh": (5, 5), "W_qh": (2, 5), "h0": (2, 5)}


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("x", (4, 3), r"x must be \(T, B, D\)"),
        ("x", (0, 2, 3), "T >= 1"),
        ("W_hx", (3, 5), r"W_hx must be \(5, 3\)"),
        ("W_hh", (5, 4), "W_hh must be square"),
        ("W_qh", (2, 4), "W_qh must be .* H = 5"),
        ("h0", (5,), r"h0 must be \(2, 5\)"),
    ],
)
def test_wrong_shapes_are_named(name, shape, words):
    arguments = {key: torch.zeros(shape if key == name else size) for key, size in GOOD.items()}
    with pytest.raises(ValueError, match=words) as caught:
        linear_rnn_forward(**arguments)
    assert "\n" not in str(caught.value)


def test_wrong_kinds_are_named():
    arguments = {key: torch.zeros(size) for key, size in GOOD.items()}
    with pytest.raises(TypeError, match="x must be a real floating-point tensor, got torch.int64"):
        linear_rnn_forward(**arguments | {"x": torch.zeros(4, 2, 3, dtype=torch.int64)})
    with pytest.raises(TypeError, match="W_hh must be .* got list"):
        linear_rnn_forward(**arguments | {"W_hh": [[1.0]]})
    with pytest.raises(TypeError, match=r"one dtype, .*W_hh torch.float64.*\.to\(dtype\)"):
        linear_rnn_forward(**arguments | {"W_hh": torch.zeros(5, 5, dtype=torch.float64)})


def test_wrong_loss_gradients_and_weights_are_named():
    run = linear_rnn_forward(**{key: torch.zeros(size) for key, size in GOOD.items()})
    with pytest.raises(ValueError, match=r"dl_do must be \(4, 2, 2\)"):
        linear_rnn_gradients(run, torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"step_weights must be \(T,\) = \(4,\) or \(T, B\) = \(4, 2\), got \(2,\)"):
        linear_rnn_gradients(run, torch.zeros(4, 2, 2), torch.zeros(2))
    for t in (0, 5):
        with pytest.raises(ValueError, match=f"t counts steps from 1 to T = 4, got {t}"):
            power_terms(run.W_hh, run.W_qh, torch.zeros(4, 2, 2), t)
    with pytest.raises(ValueError, match=r"dL_do must be \(T, B, Q\) .* Q = 2"):
        power_expansion(run.W_hh, run.W_qh, torch.zeros(4, 2, 3))
