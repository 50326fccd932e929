"""Plans of gates and spans against the sentences that define them, and the words that name them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import chronograd as cg
from chronograd.truncation import Place, parse
from chronograd.truncation.adaptive import LagStatistics, relative_bias


def place(position=0, steps=10, rows=2, seed=0, since=None, reset=None):
    since = torch.full((rows,), position) if since is None else since
    return Place(position, steps, torch.arange(rows), seed, since, reset)


def test_chunks_cut_on_the_grid_of_positions_and_not_at_resets():
    reset = torch.zeros(7, 2, dtype=torch.bool)
    reset[3, 0] = True
    gates = cg.Chunks(3).plan(place(position=5, steps=7, reset=reset)).gates
    assert gates[:, 1].tolist() == [1, 0, 1, 1, 0, 1, 1]  # positions 5..11: cut at 6 and 9
    assert gates[:, 0].tolist() == [1, 0, 1, 0, 0, 1, 1]  # and at the reset, position 8


@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 12), st.integers(1, 12))
def test_windows_reach_where_the_definition_says(k1, k2, position, steps):
    plan = cg.Window(k1, k2).plan(place(position, steps))
    for p in range(position, position + steps):
        t = p + 1  # the definition counts from 1
        reach = max(1, min(t, -(-t // k1) * k1 - k2 + 1))
        if k2 <= k1:
            cut = [q for q in range(position, p + 1) if q > 0 and plan.gates[q - position, 0] == 0]
            assert (max(cut) + 1 if cut else None) == (reach if reach - 1 >= max(1, position) else None)
        else:
            (span,) = [span for span in plan.spans if span.first <= p <= span.last]
            # A span's start is its block's; a step before it reaches itself at least.
            assert min(span.start, p) + 1 == reach
    if k2 > k1:
        later = range(position + steps + 1, position + steps + 40)
        earliest = min(max(1, min(t, -(-t // k1) * k1 - k2 + 1)) for t in later)
        assert min(plan.keep_from, position + steps) == min(earliest - 1, position + steps)


def scalar_gates(truncation, seed, steps, row, resets):
    """The rule of random truncation, one number at a time."""
    from chronograd.truncation.draws import uniforms

    gates, since = [], 0
    for t in range(steps):
        draw = float(uniforms(seed, t, 1, torch.tensor([row])))
        if since == 0:
            gate, cut = 1.0, False
        else:
            if truncation.tail == "geometric":
                c = 1 / truncation.mean_length
            else:
                c = truncation.alpha / ((truncation.alpha - 1) * truncation.mean_length + since)
            cut = draw < c
            gate = 0.0 if cut else 1 / (1 - c)
        if t in resets:
            gate, cut = 0.0, True
        gates.append(gate)
        since = 1 if cut else since + 1
    return gates


@given(st.integers(0, 2**40), st.sampled_from(["geometric", "polynomial"]), st.sets(st.integers(1, 29), max_size=3))
def test_random_gates_follow_the_rule_and_never_the_call_boundaries(seed, tail, resets):
    truncation = cg.RandomTruncation(4, tail=tail, alpha=3.0)
    reset = torch.zeros(30, 2, dtype=torch.bool)
    reset[sorted(resets)] = True
    whole = truncation.plan(place(steps=30, seed=seed, reset=reset))
    for row in range(2):
        assert whole.gates[:, row].tolist() == pytest.approx(scalar_gates(truncation, seed, 30, row, resets))
    first = truncation.plan(place(steps=11, seed=seed, reset=reset[:11]))
    second = truncation.plan(place(11, 19, seed=seed, since=first.since, reset=reset[11:]))
    assert torch.equal(torch.cat((first.gates, second.gates)), whole.gates)
    assert torch.equal(second.since, whole.since)


@given(
    st.sampled_from([cg.Full(), cg.Chunks(1), cg.Chunks(3), cg.Window(4, 2), cg.RandomTruncation(2)]),
    st.integers(0, 7),
    st.integers(1, 9),
    st.sets(st.integers(0, 8), max_size=2),
)
def test_what_a_plan_says_of_its_gates_is_what_they_are(truncation, position, steps, resets):
    reset = torch.zeros(steps, 2, dtype=torch.bool)
    reset[[step for step in resets if step < steps], 0] = True
    plan = truncation.plan(place(position, steps, reset=reset))
    assert plan.gates.shape == (steps, 2) and plan.gates.dtype == torch.float64
    assert list(plan.gated) == [t for t in range(steps) if bool((plan.gates[t] != 1).any())]
    assert list(plan.cuts) == [t for t in range(steps) if bool((plan.gates[t] == 0).all())]
    following = truncation.plan(place(position + steps, 1, since=plan.since)).gates[0]
    assert plan.reach == max(int(since) if gate else 0 for since, gate in zip(plan.since, following))


def test_draws_are_uniform_and_differ_by_seed_position_and_row():
    from chronograd.truncation.draws import uniforms

    draws = uniforms(1, 0, 400, torch.arange(250))
    assert draws.min() >= 0 and draws.max() < 1 and draws.unique().numel() == draws.numel()
    n = draws.numel()
    assert abs(float(draws.mean()) - 0.5) < 4 / (12 * n) ** 0.5
    # Chi-square over 100 bins: mean 99, standard deviation sqrt(198).
    counts = torch.histc(draws, 100, 0, 1)
    assert abs(float(((counts - n / 100) ** 2 / (n / 100)).sum()) - 99) < 5 * 198**0.5
    for other in (draws.roll(1, 0), draws.roll(1, 1), uniforms(2, 0, 400, torch.arange(250))):
        correlation = float(torch.corrcoef(torch.stack((draws.flatten(), other.flatten())))[0, 1])
        assert abs(correlation) < 4 / n**0.5


@pytest.mark.parametrize(("alpha", "mean"), [(4, 16), (6, 50), (4, 50)])
def test_the_polynomial_tail_has_the_mean_length_it_is_asked_for(alpha, mean):
    truncation = cg.RandomTruncation(mean, tail="polynomial", alpha=alpha)
    c = truncation.cut_probability(torch.arange(1, 2_000_000))
    survival = torch.cat((torch.ones(1, dtype=torch.float64), torch.cumprod(1 - c, 0)))
    assert float(survival.sum()) == pytest.approx(mean, rel=1e-4)  # E[length] = sum of P(length > n)


def test_the_adaptive_rule_takes_the_smallest_look_back_within_the_tolerance():
    beta = 0.8
    norms = [beta**k for k in range(50)]
    totals = [(1 - beta ** (k + 1)) / (1 - beta) for k in range(50)]
    bounds = relative_bias(LagStatistics(norms, totals))
    # E(K) = beta^K / (1 - beta), and the best lower bound of the gradient is at the longest look-back.
    assert bounds[4] == pytest.approx(beta**5 / (1 - 2 * beta**50), rel=1e-6)
    for tolerance in (0.5, 0.1, 0.01):
        expected = next(k for k in range(1, 51) if beta**k / (1 - 2 * beta**50) <= tolerance)
        assert cg.AdaptiveTruncation(tolerance).decide(LagStatistics(norms, totals)) == expected
    flat = LagStatistics([1.0] * 50, [float(k + 1) for k in range(50)])
    assert cg.AdaptiveTruncation(0.1).decide(flat) == 50  # no decay, no bound: the longest


SPECS = ["full", "chunks:35", "window:5,50", "random:16", "random:2.5", "random:16,polynomial,4.0", "adaptive:0.1,100"]


@pytest.mark.parametrize("text", SPECS)
def test_words_and_values_are_inverse(text):
    truncation = parse(text)
    assert truncation.spec() == text and parse(truncation.spec()) == truncation and hash(truncation) is not None


@given(st.floats(1.001, 1e6))
def test_any_mean_length_survives_being_written(mean):
    assert parse(cg.RandomTruncation(mean).spec()) == cg.RandomTruncation(mean)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cg.Chunks(0), "Chunks: k must be at least 1, not 0"),
        (lambda: cg.Chunks(2.5), "whole number"),
        (lambda: cg.Chunks(True), "whole number"),
        (lambda: cg.Window(0, 3), "k1 must be at least 1"),
        (lambda: cg.Window(3, -1), "k2 must be at least 1"),
        (lambda: cg.RandomTruncation(1), "above 1"),
        (lambda: cg.RandomTruncation(float("inf")), "finite"),
        (lambda: cg.RandomTruncation(5, tail="heavy"), "'geometric' or 'polynomial'"),
        (lambda: cg.RandomTruncation(5, tail="polynomial", alpha=1), "alpha"),
        (lambda: cg.AdaptiveTruncation(0), "tolerance must be above 0"),
        (lambda: cg.AdaptiveTruncation(0.1, window=3), "window must be at least 4"),
        (lambda: parse("chunk:35"), "is not understood; write"),
        (lambda: parse("chunks:x"), "'x' is not a whole number"),
        (lambda: parse("window:3"), "is not understood"),
        (lambda: parse(""), "is not understood"),
    ],
)
def test_what_has_no_meaning_is_refused_in_one_line(make, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
