"""E4-E7 against autograd in float64; the means of gated sums by exact enumeration of all gate patterns."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chronograd.recurrence.closed_form import linear_rnn_forward, linear_rnn_gradients
from chronograd.recurrence.sensitivity import (
    closed_sum,
    forward_sensitivity,
    gated_sensitivity,
    linearize,
    one_gate_sensitivity,
    recurrence,
    unrolled_sensitivity,
)


def assert_equal(found, expected, name=""):
    """Equal to 1e-10, relative to the largest entry expected."""
    assert found.shape == expected.shape, f"{name}: {tuple(found.shape)} and {tuple(expected.shape)}"
    error = (found - expected).abs().max()
    assert error <= 1e-10 * expected.abs().max() + 1e-14, f"{name}: {found} and {expected} differ by {error}"


def normal(seed, *shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cell(inputs, units):
    """A gated, biased, saturating cell on flat vectors, and how many parameters it takes."""

    def f(x, h, w):
        W, U, b = w.split([units * inputs, units * units, units])
        pre = W.view(units, inputs) @ x + U.view(units, units) @ h + b
        keep = torch.sigmoid(pre.flip(0))
        return keep * h + (1 - keep) * torch.tanh(pre)

    return f, units * (inputs + units + 1)


def setting(T, D, H, seed, rows=None):
    f, P = cell(D, H)
    row = () if rows is None else (rows,)
    return f, normal(seed, T, *row, D), normal(seed + 1, *row, H), 0.7 * normal(seed + 2, P)


def whole_jacobians(f, xs, h0, w, t):
    """dh_t/dw through all steps by reverse-mode autograd, one backward per unit over the unrolled program."""
    leaf = w.clone().requires_grad_()
    h = h0
    for x in xs[: t + 1]:
        h = f(x, h, leaf)
    return torch.stack([torch.autograd.grad(h[i], leaf, retain_graph=True)[0] for i in range(len(h))])


@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 4), st.integers(0, 50))
@settings(max_examples=25, deadline=None)
def test_forward_recursion_and_unrolled_sum_equal_autograd(T, D, H, seed):
    f, xs, h0, w = setting(T, D, H, seed)
    lin = linearize(f, xs, h0, w)
    assert not lin.states.requires_grad and lin.partial_w.shape == (T, H, len(w)) and lin.partial_h.shape == (T, H, H)
    expected = torch.stack([whole_jacobians(f, xs, h0, w, t) for t in range(T)])
    assert_equal(forward_sensitivity(lin), expected)
    assert_equal(unrolled_sensitivity(lin), expected)
    assert_equal(gated_sensitivity(lin, torch.ones(T, dtype=torch.float64)), expected)


def test_partial_derivatives_hold_the_last_state_fixed():
    f, xs, h0, w = setting(4, 2, 3, seed=3)
    lin = linearize(f, xs, h0, w)
    before = torch.cat((h0.unsqueeze(0), lin.states[:-1]))
    step = 1e-6
    for t in range(4):
        for p in range(0, len(w), 5):
            nudge = torch.zeros_like(w)
            nudge[p] = step
            slope = (f(xs[t], before[t], w + nudge) - f(xs[t], before[t], w - nudge)) / (2 * step)
            torch.testing.assert_close(lin.partial_w[t, :, p], slope, rtol=1e-6, atol=1e-8)
        for j in range(3):
            nudge = torch.zeros(3, dtype=torch.float64)
            nudge[j] = step
            slope = (f(xs[t], before[t] + nudge, w) - f(xs[t], before[t] - nudge, w)) / (2 * step)
            torch.testing.assert_close(lin.partial_h[t, :, j], slope, rtol=1e-6, atol=1e-8)


def test_rows_are_independent_sequences():
    f, xs, h0, w = setting(5, 2, 3, seed=8, rows=3)
    together = linearize(f, xs, h0, w)
    gates = torch.tensor([[1.0, 0, 2], [0, 1, 2], [2, 2, 0], [1, 1, 1], [0, 2, 1]], dtype=torch.float64)
    for b in range(3):
        alone = linearize(f, xs[:, b], h0[b], w)
        assert_equal(together.states[:, b], alone.states)
        for question in (forward_sensitivity, unrolled_sensitivity):
            assert_equal(question(together)[:, b], question(alone))
        for question in (gated_sensitivity, one_gate_sensitivity):
            assert_equal(question(together, gates)[:, b], question(alone, gates[:, b]))
            shared = question(together, gates[:, 0])
            assert_equal(shared[:, b], question(alone, gates[:, 0]))


def test_an_initial_state_that_depends_on_the_parameters():
    f, xs, _, w = setting(4, 2, 3, seed=13)
    lift = normal(14, 3, len(w))
    lin = linearize(f, xs, torch.tanh(lift @ w), w)
    leaf = w.clone().requires_grad_()
    h = torch.tanh(lift @ leaf)
    dh0_dw = torch.diag(1 - h.detach() ** 2) @ lift
    for x in xs:
        h = f(x, h, leaf)
    expected = torch.stack([torch.autograd.grad(h[i], leaf, retain_graph=True)[0] for i in range(3)])
    assert_equal(forward_sensitivity(lin, dh0_dw)[-1], expected)
    assert_equal(unrolled_sensitivity(lin, dh0_dw)[-1], expected)


def test_sensitivities_give_the_gradient_of_the_linear_rnn():
    """E3 with E4 forwards, E8-E13 backwards: two routes to dL/dW_hh and dL/dW_hx."""
    T, D, H, Q = 5, 2, 3, 2
    x, W_hx, W_hh, W_qh = normal(20, T, 1, D), normal(21, H, D), 0.6 * normal(22, H, H), normal(23, Q, H)
    run = linear_rnn_forward(x, W_hx, W_hh, W_qh)
    dl_do = normal(24, T, 1, Q)
    backward = linear_rnn_gradients(run, dl_do)

    def step(x, h, w):
        return w[: H * D].view(H, D) @ x + w[H * D :].view(H, H) @ h

    lin = linearize(step, x[:, 0], torch.zeros(H, dtype=torch.float64), torch.cat((W_hx.flatten(), W_hh.flatten())))
    forward = torch.einsum("tq,qh,thp->p", dl_do[:, 0] / T, W_qh, forward_sensitivity(lin))
    assert_equal(forward, torch.cat((backward.W_hx.flatten(), backward.W_hh.flatten())))


def unrolled_by_definition(b, c, a0):
    a, values = a0, []
    for b_t, c_t in zip(b, c):
        a = b_t + (c_t * a if c.dim() == 1 else torch.tensordot(c_t, a, dims=1))
        values.append(a)
    return torch.stack(values)


@given(
    st.integers(1, 7),
    st.sampled_from(["scalar", "scalar-array", "vector", "matrix"]),
    st.booleans(),
    st.integers(0, 50),
)
@settings(max_examples=60, deadline=None)
def test_general_solution(T, kind, from_zero, seed):
    shape, matrix = {
        "scalar": ((), ()),
        "scalar-array": ((2, 3), ()),
        "vector": ((3,), (3, 3)),
        "matrix": ((3, 2), (3, 3)),
    }[kind]
    b, c, a0 = normal(seed, T, *shape), normal(seed + 1, T, *matrix), normal(seed + 2, *shape)
    if from_zero:
        a0 = torch.zeros_like(a0)
    expected = unrolled_by_definition(b, c, a0)
    assert_equal(recurrence(b, c, None if from_zero else a0), expected)
    assert_equal(closed_sum(b, c, None if from_zero else a0), expected)


def test_order_of_the_matrix_products():
    """Two rotations and a stretch that do not commute: b_1 arrives as c_3 c_2 b_1."""
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    stretch = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    b = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    c = torch.stack((torch.eye(2), stretch, turn))
    assert closed_sum(b, c)[-1].tolist() == [0.0, 2.0]  # stretched to (2, 0), then turned
    assert recurrence(b, c)[-1].tolist() == [0.0, 2.0]


@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_reach_equals_starting_anew_reach_steps_ago(T, reach, seed):
    """The truncated sum at t is the full recursion started at t - reach + 1 from zero."""
    b, c = normal(seed, T, 2), normal(seed + 1, T, 2, 2)
    cut = closed_sum(b, c, reach=reach)
    for t in range(T):
        first = max(0, t - reach + 1)
        alone = unrolled_by_definition(b[first : t + 1], c[first : t + 1], torch.zeros(2, dtype=torch.float64))
        assert_equal(cut[t], alone[-1])


def test_reach_drops_the_initial_value_once_it_is_out_of_reach():
    b, c, a0 = torch.zeros(4), torch.full((4,), 2.0), torch.tensor(1.0)
    assert closed_sum(b, c, a0, reach=2).tolist() == [2.0, 4.0, 0.0, 0.0]


def test_the_published_example():
    lin = linearize(
        lambda x, h, w: w * h,
        torch.zeros(3, 1, dtype=torch.float64),
        torch.tensor([0.9], dtype=torch.float64),
        torch.tensor([0.2], dtype=torch.float64),
    )
    for reach, expected in ((None, 0.108), (2, 0.072), (1, 0.036)):
        assert unrolled_sensitivity(lin, reach=reach)[-1].item() == pytest.approx(expected, rel=1e-12)


def patterns(probabilities):
    """Every gate pattern of independent xi_t = 1/pi_t or 0, as columns (T, 2^T), and its probability."""
    kept = torch.tensor(list(product((0.0, 1.0), repeat=len(probabilities))), dtype=torch.float64).T
    pi = torch.tensor(probabilities, dtype=torch.float64).unsqueeze(1)
    return kept / pi, (kept * pi + (1 - kept) * (1 - pi)).prod(0)


def mean(values, chances):
    return torch.einsum("n,tnhp->thp", chances, values)


def test_gated_recursion_is_unbiased_exactly():
    """E[z_t] = dh_t/dw (E7) by summing over all 2^T patterns: no sampling, so to rounding."""
    probabilities = (0.9, 0.5, 0.7, 0.3, 0.8, 0.6)
    f, xs, h0, w = setting(6, 2, 3, seed=30)
    lin = linearize(f, xs, h0, w)
    exact = torch.stack([whole_jacobians(f, xs, h0, w, t) for t in range(6)])
    gates, chances = patterns(probabilities)
    assert chances.sum().item() == pytest.approx(1)
    z = gated_sensitivity(lin, gates)
    assert_equal(mean(z, chances), exact)
    assert (z - exact.unsqueeze(1)).abs().max() > 1e-2  # no single pattern is the exact derivative


def test_gated_recursion_is_unbiased_in_the_mean_of_draws():
    """The same by Monte Carlo: within 4 standard errors along fixed random directions."""
    T, draws, pi = 6, 20_000, 0.7
    f, xs, h0, w = setting(T, 2, 2, seed=40)
    lin = linearize(f, xs, h0, w)
    exact = forward_sensitivity(lin)[-1]
    generator = torch.Generator().manual_seed(0)
    gates = (torch.rand(T, draws, dtype=torch.float64, generator=generator) < pi).double() / pi
    z = gated_sensitivity(lin, gates)[-1]
    directions = normal(41, 3, *exact.shape)
    shares = torch.einsum("dhp,nhp->dn", directions, z)
    error = shares.mean(1) - torch.einsum("dhp,hp->d", directions, exact)
    spread = shares.std(1) / draws**0.5
    assert (error.abs() < 4 * spread).all()
    cut = torch.einsum("dhp,hp->d", directions, lin.partial_w[-1]) - torch.einsum("dhp,hp->d", directions, exact)
    assert (cut.abs() > 4 * spread).any()  # the test can tell a biased estimator (gates all 0) from this one


def test_printed_form_fed_with_the_exact_derivative():
    """Also unbiased, with a variance of its own: only the last gate is random."""
    probabilities = (0.9, 0.5, 0.7, 0.3)
    f, xs, h0, w = setting(4, 2, 2, seed=50)
    lin = linearize(f, xs, h0, w)
    exact = forward_sensitivity(lin)
    gates, chances = patterns(probabilities)
    printed = one_gate_sensitivity(lin, gates)
    assert_equal(mean(printed, chances), exact)

    variance = mean((printed - exact.unsqueeze(1)) ** 2, chances)
    for t in range(1, 4):
        carried = lin.partial_h[t] @ exact[t - 1]
        assert_equal(variance[t], (1 / probabilities[t] - 1) * carried**2)
    fed_back = mean((gated_sensitivity(lin, gates) - exact.unsqueeze(1)) ** 2, chances)
    assert_equal(fed_back[:2], variance[:2])  # alike until a second gate comes in
    assert fed_back[-1].sum() > 1.2 * variance[-1].sum()


def test_dependent_gates_part_the_two_readings():
    """One coin for all steps: every gate has mean 1, yet their products have a mean of 1/pi and more."""
    T, pi = 4, 0.5
    f, xs, h0, w = setting(T, 2, 2, seed=60)
    lin = linearize(f, xs, h0, w)
    exact = forward_sensitivity(lin)
    gates = torch.tensor([[0.0, 1 / pi]], dtype=torch.float64).expand(T, 2)
    chances = torch.tensor([1 - pi, pi], dtype=torch.float64)
    assert_equal(mean(one_gate_sensitivity(lin, gates), chances), exact)
    biased = mean(gated_sensitivity(lin, gates), chances)
    assert_equal(biased[:2], exact[:2])
    lag_two = lin.partial_h[2] @ lin.partial_h[1] @ lin.partial_w[0]
    assert_equal(biased[2] - exact[2], (1 / pi - 1) * lag_two)


def test_dependent_gates_of_conditional_mean_one_are_unbiased():
    """What the recursion needs is E[xi_t | earlier gates] = 1: pi depends on the time since the last cut."""
    T = 5
    f, xs, h0, w = setting(T, 2, 2, seed=70)
    lin = linearize(f, xs, h0, w)
    columns, chances = [], []
    for kept in product((False, True), repeat=T):
        since, column, chance = 1, [], 1.0
        for keep in kept:
            pi = 1 - 1.5 / (2 + since)
            column.append(1 / pi if keep else 0.0)
            chance *= pi if keep else 1 - pi
            since = since + 1 if keep else 1
        columns.append(column)
        chances.append(chance)
    gates, chances = torch.tensor(columns, dtype=torch.float64).T, torch.tensor(chances, dtype=torch.float64)
    assert_equal(mean(gated_sensitivity(lin, gates), chances), forward_sensitivity(lin))


def test_a_zero_gate_forgets_everything_before_it():
    f, xs, h0, w = setting(6, 2, 3, seed=80)
    lin = linearize(f, xs, h0, w)
    gates = torch.tensor([1.0, 1, 1, 0, 1, 1], dtype=torch.float64)
    late = linearize(f, xs[3:], lin.states[2], w)
    assert_equal(gated_sensitivity(lin, gates)[3:], forward_sensitivity(late))


def test_wrong_input_is_named():
    f, xs, h0, w = setting(4, 2, 3, seed=90)
    lin = linearize(f, xs, h0, w)
    rows = linearize(*setting(4, 2, 3, seed=90, rows=2))
    cases = [
        (lambda: linearize(f, xs, h0, w.view(1, -1)), "w must be one flat vector"),
        (lambda: linearize(f, xs[0], h0, w), r"xs must be \(T, D\) or \(T, B, D\)"),
        (lambda: linearize(f, xs[:0], h0, w), "T >= 1"),
        (lambda: linearize(f, xs, h0.unsqueeze(0), w), r"h0 must be \(H,\)"),
        (lambda: linearize(f, xs.unsqueeze(1), h0, w), r"h0 must be \(B, H\) with B = 1"),
        (
            lambda: linearize(lambda x, h, w: h[:1], xs, h0, w),
            r"f must return a state of shape \(3,\), it returned \(1,\)",
        ),
        (
            lambda: gated_sensitivity(lin, torch.ones(3)),
            r"gates must be .*\(4,\) or \(4, B\); got shape \(3,\)",
        ),
        (
            lambda: one_gate_sensitivity(rows, torch.ones(4, 3)),
            r"gates must be .*\(4,\) or \(4, 2\); got shape \(4, 3\)",
        ),
        (
            lambda: unrolled_sensitivity(lin, reach=0),
            "reach is the number of terms kept and must be at least 1, got 0",
        ),
        (lambda: recurrence(torch.ones(3), torch.ones(2)), "one first dimension"),
        (lambda: recurrence(torch.ones(3), torch.ones(3, 2)), r"scalars \(T,\) or square matrices"),
        (
            lambda: recurrence(torch.ones(3, 4), torch.ones(3, 2, 2)),
            r"b must be \(T, ..., n\) or \(T, ..., n, m\)",
        ),
        (
            lambda: closed_sum(torch.ones(3, 2), torch.ones(3, 2, 2), torch.ones(3)),
            r"a0 must have the shape of b\[0\], \(2,\)",
        ),
    ]
    for call, words in cases:
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
