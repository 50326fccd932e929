"""How long random truncation's stretches are, and the mean length for a wanted look-back."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import chronograd as cg
from chronograd.truncation import Place

TAILS = st.sampled_from(["geometric", "polynomial"])


@pytest.mark.parametrize(("alpha", "mean", "tail"), [(4, 16, 0.0026), (6, 50, 0.0013), (4, 50, 0.0027)])
def test_few_stretches_are_longer_than_ten_mean_lengths(alpha, mean, tail):
    truncation = cg.RandomTruncation(mean, tail="polynomial", alpha=alpha)
    assert round(truncation.survival(10 * mean), 4) == tail


@pytest.mark.parametrize(("alpha", "mean"), [(4, 16), (6, 50), (4, 50), (2.5, 7)])
def test_the_mean_length_is_exactly_the_one_asked_for(alpha, mean):
    truncation = cg.RandomTruncation(mean, tail="polynomial", alpha=alpha)
    lags, total, survived = 3000, 0.0, 1.0  # E[length] = sum of P(length > n)
    for n in range(lags):
        total += survived
        survived *= 1 - alpha / ((alpha - 1) * mean + n + 1)
    # The rest telescopes: with B = (alpha - 1) mean, sum_{n >= N} S(n) = S(N) (B + N) / (alpha - 1).
    rest = truncation.survival(lags) * ((alpha - 1) * mean + lags) / (alpha - 1)
    assert total + rest == pytest.approx(mean, rel=1e-12)
    assert survived == pytest.approx(truncation.survival(lags), rel=1e-12)


@pytest.mark.parametrize(("alpha", "mean"), [(4.0, 16), (1.5, 3.0), (20.0, 100), (4.0, 1e5), (100.0, 10)])
def test_survival_is_the_product_of_the_edges_kept(alpha, mean):
    truncation = cg.RandomTruncation(mean, tail="polynomial", alpha=alpha)
    logs = torch.log1p(-truncation.cut_probability(torch.arange(1, 100_001))).cumsum(0)
    for lag in (1, 10, 4096, 4097, 20_000, 100_000):  # a sum and, beyond 4096, an expansion
        assert math.log(truncation.survival(lag)) == pytest.approx(float(logs[lag - 1]), rel=1e-9)


@pytest.mark.parametrize("tail", ["geometric", "polynomial"])
def test_the_plan_s_stretches_survive_as_often_as_said(tail):
    truncation, rows = cg.RandomTruncation(5, tail=tail, alpha=3.0), 20_000
    gates = truncation.plan(Place(0, 26, torch.arange(rows), 3, torch.zeros(rows, dtype=torch.int64))).gates
    for lag in (1, 3, 10, 25):
        expected, found = truncation.survival(lag), float((gates[1 : lag + 1] > 0).all(0).double().mean())
        assert abs(found - expected) < 4 * (expected * (1 - expected) / rows) ** 0.5
        # Where a stretch is kept its weight is the inverse, so the mean is 1.
        weights = gates[1 : lag + 1].prod(0)
        assert float(weights.max()) == pytest.approx(1 / expected, rel=1e-12)


@given(st.integers(1, 500), st.floats(1.05, 1e4))
def test_the_geometric_mean_length_is_the_formula(lag, weight):
    found = cg.RandomTruncation.reaching(lag, weight=weight)
    c = -math.expm1(-math.log(weight) / lag)
    assert found.mean_length == pytest.approx(1 / c, rel=1e-9)
    by_std = cg.RandomTruncation.reaching(lag, std=math.sqrt(weight - 1))
    assert by_std.mean_length == pytest.approx(1 / c, rel=1e-9)


@given(st.integers(1, 300), st.floats(1.05, 1e4), TAILS, st.floats(1.5, 8))
def test_mean_length_and_look_back_are_inverse(lag, weight, tail, alpha):
    truncation = cg.RandomTruncation.reaching(lag, weight=weight, tail=tail, alpha=alpha)
    assert truncation.tail == tail and truncation.alpha == alpha
    assert truncation.look_back(weight=weight) == lag
    # It is the shortest: a little shorter, and the lag is out of reach.
    if truncation.mean_length > 1.001:
        shorter = cg.RandomTruncation(1 + (truncation.mean_length - 1) * (1 - 1e-6), tail, alpha)
        assert shorter.look_back(weight=weight) < lag


@given(st.floats(1.2, 200), st.floats(1.5, 1e3), TAILS)
def test_look_back_and_mean_length_are_inverse(mean, weight, tail):
    truncation = cg.RandomTruncation(mean, tail)
    lag = truncation.look_back(weight=weight)
    assert truncation.survival(lag) >= 1 / weight > truncation.survival(lag + 1) * (1 - 1e-12)
    assert cg.RandomTruncation.reaching(lag + 1, weight=weight, tail=tail).mean_length > mean * (1 - 1e-9)
    if lag:
        assert cg.RandomTruncation.reaching(lag, weight=weight, tail=tail).mean_length <= mean * (1 + 1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cg.RandomTruncation(5).survival(-1), "lag must be at least 0, not -1"),
        (lambda: cg.RandomTruncation(5).survival(2.5), "whole number"),
        (lambda: cg.RandomTruncation(5).look_back(), "give either weight or std"),
        (lambda: cg.RandomTruncation(5).look_back(weight=2, std=1), "give either weight or std"),
        (lambda: cg.RandomTruncation(5).look_back(weight=1), "weight must be above 1"),
        (lambda: cg.RandomTruncation(5).look_back(std=0), "std must be above 0"),
        (lambda: cg.RandomTruncation(5).look_back(std=float("nan")), "std must be above 0"),
        (lambda: cg.RandomTruncation(5).look_back(weight="8"), "weight must be a number, not '8'"),
        (lambda: cg.RandomTruncation.reaching(0, weight=8), "lag must be at least 1, not 0"),
        (lambda: cg.RandomTruncation.reaching(10, weight=float("inf")), "finite"),
        (lambda: cg.RandomTruncation.reaching(10, weight=8, tail="heavy"), "'geometric' or 'polynomial'"),
        (lambda: cg.RandomTruncation.reaching(10**9, std=1e-5), "take Full()"),
    ],
)
def test_what_has_no_meaning_is_refused_in_one_line(make, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        make()
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("mean", [1e9, 1e15, 1e17, 1e30])
def test_long_mean_lengths_keep_their_digits(mean):
    assert cg.RandomTruncation(mean).survival(int(mean)) == pytest.approx(math.exp(-1), rel=1e-8)
    assert cg.RandomTruncation(mean).look_back(weight=8) == pytest.approx(mean * math.log(8), rel=1e-8)
