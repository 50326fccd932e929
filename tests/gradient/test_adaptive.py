"""The adaptive rule against a fit by numpy, and what it keeps for later against a simulation of the losses to come."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import chronograd as cg
from chronograd.truncation import Place
from chronograd.truncation.adaptive import LagStatistics, relative_bias
from oracle import Bias


def bound_by_numpy(norms, totals):
    """delta(K), K = 1..D: what lies beyond the D measured lags follows the line through the log norms of the later
    half of them, lags D // 2 .. D - 1, and is summed term by term until nothing is left.
    """
    depth = len(norms)
    lags = np.arange(depth // 2, depth)
    slope, offset = np.polyfit(lags, np.log(norms[depth // 2 :]), 1)
    if slope >= -1e-12:
        return [math.inf] * depth
    tail = math.fsum(math.exp(offset + slope * k) for k in range(depth, depth + int(60 / -slope) + 2))
    missing = [math.fsum([*norms[k:], tail]) for k in range(1, depth + 1)]
    least = max(total - lost for total, lost in zip(totals, missing))
    return [lost / least if least > 0 else math.inf for lost in missing]


@given(
    st.integers(4, 21).flatmap(
        lambda depth: st.tuples(
            st.lists(st.floats(-1, 1), min_size=depth, max_size=depth), st.floats(0.2, 0.9), st.floats(0.2, 0.9)
        )
    )
)
def test_the_tail_is_fitted_to_the_later_half_of_the_lags(drawn):
    wobble, early, late = drawn
    depth = len(wobble)
    norms = [math.exp(w) * early ** min(k, depth // 2) * late ** max(0, k - depth // 2) for k, w in enumerate(wobble)]
    totals = [math.fsum(norms[: k + 1]) for k in range(depth)]
    found, expected = relative_bias(LagStatistics(norms, totals)), bound_by_numpy(norms, totals)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("depth", [10, 11])
@pytest.mark.parametrize("moved", range(11))
def test_which_lags_move_the_tail(depth, moved):
    """A single lag ten times as large changes the fit if, and only if, it lies in the later half."""
    if moved >= depth:
        return
    plain = [0.7**k for k in range(depth)]
    norms = [value * (10 if k == moved else 1) for k, value in enumerate(plain)]
    far = [1000.0] * depth  # so that E(D) = bound * (1000 - E(D)) tells the tail alone

    def tail(statistics):
        bound = relative_bias(statistics)[-1]
        return bound * 1000 / (1 + bound)

    assert tail(LagStatistics(plain, far)) == pytest.approx(0.7**depth / 0.3)
    same = tail(LagStatistics(norms, far)) == pytest.approx(0.7**depth / 0.3)
    assert same == (moved < depth // 2)


def test_two_rates_are_judged_by_the_later():
    depth = 20
    norms = [0.3 ** min(k, 10) * 0.9 ** max(0, k - 10) for k in range(depth)]  # fast at first, then slow
    bounds = relative_bias(LagStatistics(norms, [1000.0] * depth))
    lost = norms[10] * 0.9**10 / 0.1
    assert bounds[-1] == pytest.approx(lost / (1000 - lost))


def reaches(window, look_back, position):
    """The definition: blocks of K losses from each decision on, which reach back to K - 1 steps before their first."""
    decision = position // window * window
    block = decision + (position - decision) // look_back * look_back
    return max(0, block - look_back + 1)


def needed(window, look_back, end):
    """The earliest step that anything after ``end`` looks at, by trying all that can come.

    Up to the next decision losses reach back by the look-back decided last, from then on by any from 1 to the longest;
    and at a decision its whole window is measured. A decision at ``end`` itself is taken, but its look-back may still
    be any.
    """
    depth, following = window // 2, -(-end // window) * window
    later = [reaches(window, look_back, p) for p in range(end, following)]
    later += [reaches(window, k, p) for k in range(1, depth + 1) for p in range(following, following + window)]
    measured = following - window if following > end else end
    return min([*later, measured])


@given(st.integers(4, 14), st.data())
def test_the_plan_keeps_what_later_losses_can_reach_and_no_more(window, data):
    truncation = cg.AdaptiveTruncation(0.1, window=window)
    position = data.draw(st.integers(0, 3 * window))
    end = data.draw(st.integers(position + 1, truncation.next_decision(position)))
    look_back = data.draw(st.integers(1, window // 2))
    zero = torch.zeros(1, dtype=torch.int64)
    plan = truncation.plan(Place(position, end - position, zero, 0, zero), look_back)
    assert plan.keep_from == needed(window, look_back, end)
    for span in plan.spans:
        assert all(reaches(window, look_back, p) == span.start for p in range(span.first, span.last + 1))
    assert sorted(p for span in plan.spans for p in range(span.first, span.last + 1)) == [*range(position, end)]


@pytest.mark.parametrize("cuts", [1, 3, 5, 12, 13])
@pytest.mark.parametrize(("w", "tolerance"), [(0.5, 0.1), (0.2, 0.1), (0.99, 0.1)])
def test_a_carry_holds_what_later_losses_can_reach_and_no_more(w, tolerance, cuts):
    window = 12
    truncation, carry = cg.AdaptiveTruncation(tolerance, window=window), None
    decided = set()
    for x in torch.zeros(50, 2, 1, dtype=torch.float64).split(cuts):
        _, carry = cg.value_and_grad(Bias(w), lambda o, t: o, x, x, carry, truncation=truncation)
        look_back = carry.truncation.get("look_back", window // 2)
        end = carry.stream.position
        assert carry.segment.start == needed(window, look_back, end)
        assert carry.open_steps == end - carry.segment.start
        decided.add(look_back)
    # dL_s/dh_{s-k} = w^k: the fast ones are cut short, the slow one is not.
    assert (min(decided) < window // 2) == (w < 0.9)
