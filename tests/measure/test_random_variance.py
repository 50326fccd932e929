"""The variance of random truncation in closed form, against all cut patterns one by one and against draws."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from torch import nn

import chronograd as cg
from chronograd.measure.random_variance import gradient_moments, influence_moments, lag_moments
from chronograd.recurrence.sensitivity import Linearization, forward_sensitivity, gated_sensitivity, linearize
from oracle import squared

TRUNCATIONS = [
    cg.RandomTruncation(3),
    cg.RandomTruncation(1.5),
    cg.RandomTruncation(3, tail="polynomial"),
    cg.RandomTruncation(5, tail="polynomial", alpha=1.5),
]


def normal(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def patterns(truncation, steps):
    """Every pattern of cuts: its gates (steps, patterns) and probabilities, from the rule in the class's docstring."""
    gates, probabilities = [], []
    for cuts in itertools.product((False, True), repeat=steps - 1):
        row, probability, since = [1.0], 1.0, 1
        for cut in cuts:
            if truncation.tail == "geometric":
                c = 1 / truncation.mean_length
            else:
                c = truncation.alpha / ((truncation.alpha - 1) * truncation.mean_length + since)
            row.append(0.0 if cut else 1 / (1 - c))
            probability *= c if cut else 1 - c
            since = 1 if cut else since + 1
        gates.append(row)
        probabilities.append(probability)
    assert math.fsum(probabilities) == pytest.approx(1)
    return torch.tensor(gates, dtype=torch.float64).T, torch.tensor(probabilities, dtype=torch.float64)


def influence_balancing():
    A = torch.eye(23, dtype=torch.float64) / 2 + torch.diag(torch.full((22,), 0.5, dtype=torch.float64), 1)
    return A, torch.tensor([1.0] * 10 + [-1.0] * 13, dtype=torch.float64)


@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=str)
@pytest.mark.parametrize(("lags", "before"), [(1, 0), (1, 4), (8, 0), (5, 4)])
def test_moments_of_the_weights_are_those_of_all_patterns(truncation, lags, before):
    gates, probability = patterns(truncation, before + lags)
    # R_k is the product of the gates of the last k edges.
    weights = torch.stack([gates[before + lags - k :].prod(0) for k in range(lags)])
    assert torch.allclose(weights @ probability, torch.ones(lags, dtype=torch.float64))
    expected = (weights * probability) @ weights.T
    assert torch.allclose(lag_moments(truncation, lags, before), expected, rtol=1e-12)


def test_polynomial_weights_are_largest_at_a_stream_s_start():
    truncation = cg.RandomTruncation(6, tail="polynomial")
    fresh, later = lag_moments(truncation, 40), lag_moments(truncation, 40, before=300)
    bound = [1 / truncation.survival(k) for k in range(40)]
    assert float(fresh[39, 39]) == pytest.approx(bound[39])  # the loss 39 steps into the stream
    assert bool((later.diagonal() <= torch.tensor(bound) * (1 + 1e-12)).all())
    assert bool((later.diagonal()[1:] < fresh.diagonal()[1:]).sum() >= 38)
    # Some mean lengths into a stream the moments have settled.
    assert torch.allclose(later, lag_moments(truncation, 40, before=600), rtol=1e-4)


TABLE = {8: 201.2, 10: 118.6, 16: 54.20, 20: 41.16, 32: 25.88, 50: 18.21, 64: 15.33}


@pytest.mark.parametrize(("mean", "std"), TABLE.items())
def test_the_table_of_influence_balancing(mean, std):
    A, v = influence_balancing()
    for steps in (None, 300):
        moments = influence_moments(A, v, cg.RandomTruncation(mean), steps)
        assert float(moments.mean[0]) == pytest.approx(-6, abs=1e-9)
        assert float(f"{float(moments.std[0]):.4g}") == std


def test_the_limit_of_many_steps_is_the_sum_s_limit():
    A = normal(0, 5, 5)
    A = 0.8 * A / float(torch.linalg.eigvals(A).abs().max())
    v, truncation = normal(1, 5), cg.RandomTruncation(5)
    limit, long = influence_moments(A, v, truncation), influence_moments(A, v, truncation, 400)
    assert torch.allclose(limit.mean, long.mean, rtol=1e-10)
    assert torch.allclose(limit.covariance, long.covariance, rtol=1e-9)
    # One unit: Var = (1/p - 1) (w m)^2 / (1 - w^2 / p) with m = 1 / (1 - w).
    w, p = 0.7, 0.8
    one = influence_moments(torch.tensor([w], dtype=torch.float64), torch.ones(1), truncation)
    assert float(one.covariance) == pytest.approx((1 / p - 1) * (w / (1 - w)) ** 2 / (1 - w**2 / p), rel=1e-12)


def test_beyond_the_threshold_the_variance_grows_with_the_steps():
    v, truncation = torch.ones(1, dtype=torch.float64), cg.RandomTruncation(6)
    w = torch.tensor([0.95], dtype=torch.float64)
    variance = [float(influence_moments(w, v, truncation, steps).covariance) for steps in (400, 401)]
    assert variance[1] / variance[0] == pytest.approx(0.95**2 * 6 / 5, rel=1e-6)  # rho^2 / (1 - c)
    with pytest.raises(ValueError, match="infinite; take a mean length above 10.26; or give steps"):
        influence_moments(w, v, truncation)
    # The polynomial tail: finite.
    polynomial = cg.RandomTruncation(6, tail="polynomial")
    variance = [float(influence_moments(w, v, polynomial, steps).covariance) for steps in (400, 600)]
    assert variance[1] == pytest.approx(variance[0], rel=1e-3)


@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=str)
@pytest.mark.parametrize("linear", [True, False])
def test_moments_of_the_gradient_are_those_of_all_patterns(truncation, linear):
    T, n, d = 7, 2, 1
    w = normal(1, n * n + n * d)

    def step(x, h, w):
        h = w[: n * n].reshape(n, n) @ h + w[n * n :].reshape(n, d) @ x
        return h if linear else torch.tanh(h)

    lin = linearize(step, normal(0, T, d), normal(2, n), w)
    q = normal(3, T, n)
    gates, probability = patterns(truncation, T)
    estimates = torch.einsum("th,tbhp->bp", q, gated_sensitivity(lin, gates))
    exact = torch.einsum("th,thp->p", q, forward_sensitivity(lin))
    moments = gradient_moments(lin, q, truncation)
    assert torch.allclose(probability @ estimates, exact, rtol=1e-11)
    assert torch.allclose(moments.mean, exact, rtol=1e-11)
    assert torch.allclose(moments.variance, probability @ (estimates - exact) ** 2, rtol=1e-10, atol=1e-12)
    # Along a direction of the parameters: covariances count.
    along = normal(4, w.numel(), 1)
    turned = gradient_moments(Linearization(lin.states, lin.partial_w @ along, lin.partial_h), q, truncation)
    expected = probability @ ((estimates - exact) @ along) ** 2
    assert torch.allclose(turned.variance, expected, rtol=1e-10)


def test_rows_add_and_one_loss_at_the_end_is_the_influence():
    A, v = 0.5 * normal(0, 3, 3), normal(1, 3)
    q = torch.zeros(9, 3, dtype=torch.float64)
    q[-1, 0] = 1

    def step(x, h, theta):
        return A @ h + theta[0] * v

    for truncation in TRUNCATIONS:
        lin = linearize(step, torch.zeros(9, 1, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), q[-1, :1])
        gradient, influence = gradient_moments(lin, q, truncation), influence_moments(A, v, truncation, 9)
        assert float(gradient.mean) == pytest.approx(float(influence.mean[0]), rel=1e-12)
        assert float(gradient.variance) == pytest.approx(float(influence.covariance[0, 0]), rel=1e-10)
        rows = Linearization(*(torch.stack((part, part), 1) for part in (lin.states, lin.partial_w, lin.partial_h)))
        both = gradient_moments(rows, torch.stack((q, 3 * q), 1), truncation)
        assert float(both.mean) == pytest.approx(4 * float(gradient.mean), rel=1e-12)
        assert float(both.variance) == pytest.approx(10 * float(gradient.variance), rel=1e-10)


def within_four_errors(draws, mean, variance):
    """Mean and variance of draws (N, ...) along the first dimension."""
    rows = len(draws)
    assert bool(((draws.mean(0) - mean).abs() <= 4 * (variance / rows) ** 0.5 + 1e-12).all())
    centred = (draws - mean) ** 2
    assert bool(((centred.mean(0) - variance).abs() <= 4 * centred.std(0) / rows**0.5 + 1e-12).all())


@pytest.mark.parametrize("truncation", [cg.RandomTruncation(6), cg.RandomTruncation(6, tail="polynomial")], ids=str)
def test_influence_drawn_by_value_and_grad_has_these_moments(truncation):
    torch.manual_seed(0)
    model, rows, steps, before = cg.LinearRNN(1, 3).double(), 20_000, 12, 8
    x = torch.zeros(before + steps, rows, 1, dtype=torch.float64)
    weights = torch.zeros(before + steps, rows)
    weights[-1] = 1
    q = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    gradient, _ = cg.value_and_grad(
        model, lambda outputs, _: outputs @ q, x, x, truncation=truncation, weights=weights, seed=5, wrt_inputs=True
    )
    draws = gradient.inputs[before:, :, 0].sum(0) * rows  # each row's q . z of the last steps
    moments = influence_moments(model.weight_hh.detach(), model.weight_ih.detach()[:, 0], truncation, steps, before)
    within_four_errors(draws, q @ moments.mean, q @ moments.covariance @ q)


@pytest.mark.parametrize("truncation", [cg.RandomTruncation(4), cg.RandomTruncation(4, tail="polynomial")], ids=str)
def test_gradients_drawn_by_value_and_grad_have_these_moments(truncation):
    torch.manual_seed(0)
    n, rows, steps = 2, 20_000, 10
    model = cg.LinearRNN(n, n).double()
    nn.init.eye_(model.weight_ih)  # so that the gradient of a row's inputs is its dL/dh_t
    xs, ys = normal(1, steps, 1, n), normal(2, steps, 1, n)
    x, y = xs.expand(-1, rows, -1), ys.expand(-1, rows, -1)
    gradient, _ = cg.value_and_grad(model, squared, x, y, truncation=truncation, seed=7, wrt_inputs=True)
    with torch.no_grad():
        states = model(xs)[0][:, 0]
    previous = torch.cat((torch.zeros(1, n, dtype=torch.float64), states[:-1]))
    draws = torch.einsum("tbi,tj->bij", gradient.inputs, previous).flatten(1) * rows  # E13, row by row
    assert torch.allclose(draws.mean(0), gradient.grads["weight_hh"].flatten(), rtol=1e-10)

    lin = linearize(
        lambda x, h, w: w.reshape(n, n) @ h + x,
        xs[:, 0],
        torch.zeros(n, dtype=torch.float64),
        model.weight_hh.detach().flatten(),
    )
    outputs = states.requires_grad_()
    (q,) = torch.autograd.grad(squared(outputs.unsqueeze(1), ys).mean(), outputs)  # a_t = 1/T
    moments = gradient_moments(lin, q, truncation)
    exact, _ = cg.value_and_grad(model, squared, xs, ys)
    assert torch.allclose(moments.mean, exact.grads["weight_hh"].flatten(), rtol=1e-10)
    within_four_errors(draws, moments.mean, moments.variance)


def test_results_are_plain_data():
    A, v = influence_balancing()
    found = json.loads(json.dumps(influence_moments(A, v, cg.RandomTruncation(16)).to_dict()))
    assert set(found) == {"mean", "covariance", "std"} and round(found["std"][0], 2) == 54.2
    one = torch.ones(1, 1, dtype=torch.float64)
    found = gradient_moments(Linearization(one, one.unsqueeze(0), one.unsqueeze(0)), one, cg.RandomTruncation(16))
    assert json.loads(json.dumps(found.to_dict())) == {"mean": [1.0], "variance": [0.0], "relative": 0.0}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lag_moments(cg.Chunks(3), 4), "must be a RandomTruncation, not Chunks(k=3)"),
        (lambda: lag_moments(cg.RandomTruncation(3), 0), "lags must be at least 1, not 0"),
        (lambda: lag_moments(cg.RandomTruncation(3), 2, -1), "before must be at least 0, not -1"),
        (lambda: lag_moments(cg.RandomTruncation(3), 2.0), "lags must be a whole number of steps, not 2.0"),
        (lambda: lag_moments(cg.RandomTruncation(1.1), 400), "400 lags of random:1.1 have weights too large"),
        (lambda: influence_moments(torch.eye(2), torch.ones(3), cg.RandomTruncation(3)), "got (2, 2) and (3,)"),
        (lambda: influence_moments(torch.eye(2) * math.nan, torch.ones(2), cg.RandomTruncation(3)), "A holds NaN"),
        (lambda: influence_moments([[1.0]], torch.ones(1), cg.RandomTruncation(3)), "floating-point tensor, not list"),
        (lambda: influence_moments(torch.eye(2), torch.ones(2), cg.RandomTruncation(3), 0), "steps must be at least 1"),
        (lambda: influence_moments(torch.eye(2), torch.ones(2), cg.RandomTruncation(3)), "do not shrink either"),
        (
            lambda: influence_moments(torch.eye(2), torch.ones(2), cg.RandomTruncation(3, tail="polynomial")),
            "the limit of many steps is for the geometric tail; give steps",
        ),
        (
            lambda: gradient_moments(
                Linearization(torch.ones(3, 2), torch.ones(3, 2, 1), torch.ones(3, 2, 2)),
                torch.ones(3, 1),
                cg.RandomTruncation(3),
            ),
            "must have the states' shape (3, 2), got (3, 1)",
        ),
    ],
)
def test_what_has_no_meaning_is_refused_in_one_line(make, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        make()
    assert message in str(caught.value) and "\n" not in str(caught.value)
