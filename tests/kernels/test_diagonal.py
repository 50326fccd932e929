"""Diagonal recurrences that project few features by themselves: chunks, spans, sums, stores past the cache."""

from __future__ import annotations

import pytest
import torch

from chronograd.kernels import Edges, run_projected
from chronograd.kernels.compiled import Choice
from layer_case import EDGES, Case, can, isas


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize(
    ("shape", "block"),
    [
        ((40, 3, 1100, 1), 0),  # columns of a row in two chunks
        ((40, 2, 2049, 2), 0),
        ((40, 3, 512, 2), 0),  # complex: a full chunk with all that may belong to it
        ((40, 70, 64, 2), 0),  # rows in several chunks
        ((300, 5, 17, 3), 0),  # many spans, sums that go over into doubles
        ((300, 6, 32, 4), 113),  # blocks of time that end within a span
        ((600, 4, 256, 1), 0),  # states written past the cache
        ((1100, 4, 251, 1), 0),  # as many, but no whole vectors
    ],
)
def test_sizes_beyond_every_bound(native, threads, isa, shape, block, complex_):
    can(native, isa)
    edges = ((), ("gates", "reset", "valid"))[shape[0] == 300]
    case = Case("diagonal", shape, complex_, edges)
    expected = case.twin()
    for ours, theirs in zip(case.projected(Choice(isa, block=block, native=native)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize("complex_", [False, True])
def test_both_ways_to_the_drive_agree(native, threads, complex_, edges):
    """A thread that has part of the units gets its drive from a product of its own."""
    case = Case("diagonal", (40, 9, 33, 2), complex_, edges)
    by_rows, by_units = (case.projected(Choice(split=split, native=native)) for split in ("rows", "units"))
    for one, other in zip(by_rows, by_units, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("biases", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("split", ["rows", "units"])
def test_biases_that_are_not_there(native, biases, split):
    case = Case("diagonal", (40, 3, 7, 2))
    bias_ih, bias = (part if there else None for part, there in zip((case.bias_ih, case.bias), biases))
    zero = torch.zeros_like(case.bias_ih)
    leaves = [case.x, case.weight_ih, case.weight, *(part for part in (bias_ih, bias) if part is not None)]
    found = []
    for pair in ((bias_ih, bias), [zero if part is None else part for part in (bias_ih, bias)]):
        arguments = (case.initial, case.weight, pair[1], Edges(), None, Choice(split=split, native=native))
        path = run_projected("diagonal", case.x, case.weight_ih, pair[0], *arguments)
        found.append([*path, *torch.autograd.grad(path, leaves, case.cotangents)])
    for without, zeros in zip(*found, strict=True):
        torch.testing.assert_close(without, zeros)


def test_sums_over_many_steps_keep_their_digits(native):
    """float32 over 40,000 rows against the same in float64."""
    case = Case("diagonal", (20_000, 2, 16, 1))
    with torch.no_grad():
        case.weight.tanh_()
    exact = case.projected(Choice(native=native))
    for name in ("x", "weight_ih", "bias_ih", "weight", "bias"):
        setattr(case, name, getattr(case, name).detach().float().requires_grad_())
    case.initial = tuple(part.detach().float().requires_grad_() for part in case.initial)
    case.leaves = [case.x, case.weight_ih, case.bias_ih, case.weight, case.bias, *case.initial]
    case.cotangents = [part.float() for part in case.cotangents]
    for ours, theirs in zip(case.projected(Choice(native=native)), exact, strict=True):
        assert (ours - theirs).abs().max() < 2e-6 * theirs.abs().max()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("size", [7, 32])
def test_what_is_not_finite_stays_in_its_row(native, bad, size):
    case = Case("diagonal", (40, 5, size, 2))
    with torch.no_grad():
        case.x[20, 3, 1] = bad
        case.cotangents[0][10, 1, 2] = bad
    for ours, theirs in zip(case.projected(Choice(native=native)), case.twin(), strict=True):
        torch.testing.assert_close(ours.isfinite(), theirs.isfinite())
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-10, atol=1e-10)


def test_a_bias_changed_before_the_way_back_is_noticed(native):
    """The states are computed again with it."""
    case = Case("diagonal", (5, 3, 7, 2))
    path = case.path(Choice(native=native))
    with torch.no_grad():
        case.bias.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        path[0].sum().backward()
