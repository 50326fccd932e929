"""The threshold of a finite variance, against variances computed on both sides of it."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import chronograd as cg
from chronograd.measure.random_variance import influence_moments
from chronograd.measure.variance_growth import variance_growth


@given(st.floats(0.05, 0.99), st.floats(1.1, 100), st.integers(0, 20))
def test_the_variance_of_a_linear_recurrence_grows_at_the_rate(rho, mean, seed):
    g = torch.Generator().manual_seed(seed)
    A = torch.randn(4, 4, dtype=torch.float64, generator=g)
    A = (A + A.T) / 2  # normal, so that powers follow the radius from the first lag on
    A = A * rho / torch.linalg.eigvalsh(A).abs().max()
    found = variance_growth(A, cg.RandomTruncation(mean))
    assert found.growth == pytest.approx(rho) and found.rate == pytest.approx(rho**2 / (1 - 1 / mean))
    # Beside the power iteration: E|R_k A^k v|^2 = |A^k v|^2 / p^k along the dominant eigenvector.
    values, vectors = torch.linalg.eigh(A)
    v = vectors[:, values.abs().argmax()]
    second = [float((torch.linalg.matrix_power(A, k) @ v).square().sum()) / (1 - 1 / mean) ** k for k in (5, 6)]
    assert second[1] / second[0] == pytest.approx(found.rate, rel=1e-6)
    assert found.finite == (mean > found.mean_length)


@pytest.mark.parametrize("side", [0.9, 1.1])
def test_the_mean_length_named_is_where_the_variance_becomes_finite(side):
    w, v = torch.tensor([0.9], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    threshold = variance_growth(w, cg.RandomTruncation(4)).mean_length
    assert threshold == pytest.approx(1 / (1 - 0.81))
    truncation = cg.RandomTruncation(side * threshold)
    assert variance_growth(w, truncation).finite == (side > 1)
    # 1000 steps against 2000: settled on one side of it, growing on the other.
    short, long = (float(influence_moments(w, v, truncation, steps).covariance) for steps in (1000, 2000))
    assert (long == pytest.approx(short, rel=1e-3)) == (side > 1)


def test_the_lines():
    geometric, polynomial = cg.RandomTruncation(6), cg.RandomTruncation(6, tail="polynomial")
    line = "variance grows by 1.083 a step: infinite; take a mean length above 10.26"
    assert str(variance_growth(0.95, geometric)) == line
    assert str(variance_growth(0.5, geometric)) == "variance shrinks by 0.3 a step: finite"
    assert str(variance_growth(0.95, polynomial)).endswith("0.9025 a step, but for a power of the lag: finite")
    for truncation, rate in ((geometric, 1.452), (polynomial, 1.21)):
        assert str(variance_growth(1.1, truncation)) == (
            f"variance grows by {rate:.4g} a step: infinite at any mean length; "
            "exact gradients do not shrink either (1.1 a step)"
        )


def test_matrices_diagonals_and_numbers_say_the_same():
    truncation = cg.RandomTruncation(16)
    turning = torch.tensor([[0.0, -0.9], [0.9, 0.0]])
    for recurrence in (turning, torch.tensor([0.9j, -0.3]), torch.tensor([-0.9, 0.2]), torch.tensor(0.9), 0.9):
        assert variance_growth(recurrence, truncation).rate == pytest.approx(0.81 * 16 / 15, rel=1e-6)
    assert variance_growth(0, truncation).finite and variance_growth(0, truncation).mean_length == 1
    found = json.loads(json.dumps(variance_growth(0.9, truncation).to_dict()))
    assert found == {
        "truncation": "random:16",
        "growth": 0.9,
        "rate": pytest.approx(0.864),
        "finite": True,
        "mean_length": pytest.approx(1 / 0.19),
    }


@pytest.mark.parametrize(
    ("recurrence", "message"),
    [
        (torch.ones(2, 3), "a matrix must be (n, n) or (n,), got (2, 3)"),
        (torch.ones(0), "got (0,)"),
        (torch.ones(2, 2, dtype=torch.int64), "floating-point"),
        (torch.full((2,), float("nan")), "holds NaN or infinity"),
        (-0.5, "at least 0, not -0.5"),
        (float("inf"), "must be finite"),
        ("W", "must be a matrix or the growth of a step, not 'W'"),
    ],
)
def test_what_has_no_meaning_is_refused_in_one_line(recurrence, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        variance_growth(recurrence, cg.RandomTruncation(4))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="must be a RandomTruncation"):
        variance_growth(0.5, cg.Full())
