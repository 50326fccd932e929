"""The calls of the compiled kernels in plain torch, against the kernels; for other kinds, against autograd."""

from __future__ import annotations

import pytest
import torch

from chronograd.kernels import CELLS, compiled, plain
from chronograd.kernels.compiled import Call, Choice
from chronograd.kernels.layer import _crossings
from layer_case import EDGES, KINDS, Case

UNCOMPILED = sorted({*CELLS} - {*KINDS})


def call_of(case):
    crossings = _crossings(case.edges, case.weight, bool(case.fresh))
    given = (case.x, case.weight_ih, case.bias_ih, case.weight, case.bias)
    given, states = ([part.detach() for part in parts] for parts in (given, (*case.initial, *(case.fresh or ()))))
    return Call(case.kind, *given, crossings, tuple(states))


def numbers(call, case, kernels, *choice):
    """States and all gradients, the cotangents of the first part alone given where there are two."""
    path, kept = kernels.forward(call, True, *choice)
    given = [*case.cotangents[:1], *(None for _ in case.cotangents[1:])]
    found = kernels.back(call.remembered, path, kept, given, [True] * 5, *choice)
    return [*path, *found[:5], *found.states]


@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize(("kind", "complex_"), [*((kind, False) for kind in KINDS), ("diagonal", True)])
def test_the_numbers_of_the_compiled_kernels(native, kind, complex_, fresh, edges):
    case = Case(kind, (7, 3, 5, 2), complex_, edges, fresh)
    call = call_of(case)
    found, expected = numbers(call, case, plain), numbers(call, case, compiled, Choice(native=native))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize("kind", UNCOMPILED)
def test_the_numbers_of_autograd(kind, edges):
    case = Case(kind, (7, 3, 5, 2), edges=edges)
    for ours, theirs in zip(numbers(call_of(case), case, plain), case.twin(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [*KINDS, *UNCOMPILED])
def test_nothing_that_is_not_wanted(kind):
    case = Case(kind, (4, 2, 3, 2))
    call = call_of(case)
    path, kept = plain.forward(call, False)
    assert kept is None
    path, kept = plain.forward(call, True)
    found = plain.back(call, path, kept, case.cotangents, [False] * 5)
    assert found[:5] == (None,) * 5 and len(found.states) == CELLS[kind].parts
