"""The scan against the loop that it replaces, for every kind of coefficient, both directions and any length."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chronograd.modes.scan.associative import Constant, Dense, Diagonal, scan
from oracle import assert_close


def loop(matrices, terms, start, reverse):
    """a_t = b_t + C_t a_{t-1} by hand, every coefficient a matrix (T, B, n, n)."""
    steps = range(len(terms) - 1, -1, -1) if reverse else range(len(terms))
    state, out = start, torch.empty_like(terms)
    for t in steps:
        through = 0 if state is None else torch.einsum("bij,bj->bi", matrices[t], state)
        state = out[t] = terms[t] + through
    return out


class Case:
    def __init__(self, kind, steps, rows, units, marks, complex_, seed):
        random = torch.Generator().manual_seed(seed)
        dtype = torch.complex128 if complex_ else torch.float64

        def new(*shape):
            return torch.randn(*shape, dtype=dtype, generator=random)

        self.terms, self.start = new(steps, rows, units), new(rows, units)
        eye = torch.eye(units, dtype=dtype)
        chance = torch.rand(2, steps, rows, generator=random)
        cut = chance[0] < 0.2 if "cut" in marks else None
        idle = chance[1] < 0.4 if "idle" in marks else None
        if kind == "constant":
            matrix, scale = new(units, units) / units**0.5, None
            self.matrices = matrix.expand(steps, rows, units, units)
            if idle is not None:
                self.matrices = torch.where(idle[..., None, None], eye, self.matrices)
            if cut is not None:
                scale = torch.randn(steps, rows, dtype=torch.float64, generator=random).masked_fill(cut, 0)
                self.matrices = self.matrices * scale[..., None, None]
            self.coefficients = Constant(matrix, scale, idle)
        elif kind == "dense":
            self.matrices = values = new(steps, rows, units, units) / units**0.5
            self.coefficients = Dense(values, cut)
        else:
            values = new(1 if kind == "alike" else steps, 1 if kind == "alike" else rows, units)
            self.matrices = torch.diag_embed(values).expand(steps, rows, units, units)
            self.coefficients = Diagonal(values, cut)
        if cut is not None:
            self.matrices = self.matrices.masked_fill(cut[..., None, None], 0)


KINDS = ("constant", "dense", "diagonal", "alike")


@given(
    kind=st.sampled_from(KINDS),
    steps=st.integers(0, 70),
    rows=st.integers(1, 3),
    units=st.integers(1, 4),
    marks=st.sets(st.sampled_from(["cut", "idle"])),
    complex_=st.booleans(),
    begins=st.booleans(),
    reverse=st.booleans(),
    block=st.integers(2, 5),
    seed=st.integers(0, 999),
)
@settings(max_examples=200, deadline=None)
def test_a_scan_is_the_loop(kind, steps, rows, units, marks, complex_, begins, reverse, block, seed):
    case = Case(kind, steps, rows, units, marks, complex_, seed)
    start = case.start if begins else None
    ours = scan(case.coefficients, case.terms, start, reverse=reverse, block=block)
    assert_close(ours, loop(case.matrices, case.terms, start, reverse), 1e-11)


@pytest.mark.parametrize("kind", ["alike", "constant"])
def test_e5_in_closed_form(kind):
    """a_t = sum_i c^{t-i} b_i = (1 - c^t) / (1 - c) for b = 1."""
    c, steps = torch.tensor([0.9, -0.5], dtype=torch.float64), 5000
    coefficients = Diagonal(c.view(1, 1, 2)) if kind == "alike" else Constant(c.diag())
    ours = scan(coefficients, torch.ones(steps, 1, 2, dtype=torch.float64))[:, 0]
    powers = c ** torch.arange(1, steps + 1, dtype=torch.float64).unsqueeze(1)
    assert_close(ours, (1 - powers) / (1 - c), 1e-13)


@pytest.mark.parametrize("kind", ["dense", "diagonal"])
def test_a_cut_lets_nothing_through_whatever_comes(kind):
    """What overflows before a cut does not reach what comes after it."""
    steps = 400
    cut = torch.zeros(steps, 1, dtype=torch.bool)
    cut[350] = True
    values = torch.full((steps, 1, 1), 1e3, dtype=torch.float64)
    values[350:] = 0.5
    coefficients = Diagonal(values, cut) if kind == "diagonal" else Dense(values.unsqueeze(-1), cut)
    found = scan(coefficients, torch.ones(steps, 1, 1, dtype=torch.float64)).flatten()
    assert not torch.isfinite(found[349])
    assert_close(found[350:], 2 - 0.5 ** torch.arange(50, dtype=torch.float64))


def test_depth_is_logarithmic():
    """Calls of the coefficient one after the other, for a thousand times the steps."""

    class Counting(Diagonal):
        calls = 0

        def step(self, at, state, term):
            Counting.calls += 1
            return super().step(at, state, term)

        def fold(self, ats):
            return Counting(super().fold(ats).values)

    counts = []
    for steps in (100, 100_000):
        Counting.calls = 0
        scan(Counting(torch.full((1, 1, 1), 0.5)), torch.ones(steps, 1, 1))
        counts.append(Counting.calls)
    assert counts[1] < 4 * counts[0] < 400
