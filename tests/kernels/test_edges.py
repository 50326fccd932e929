"""Edges: what becomes None, where all rows are cut, numbers of the resets; and the order of the walk back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chronograd.kernels import Edges
from chronograd.kernels.order import side_by_side, tiles


def test_what_does_nothing_is_none():
    ones, no = torch.ones(3, 2), torch.zeros(3, 2, dtype=torch.bool)
    assert Edges(ones, no, ~no).plain and Edges().plain
    assert not Edges(ones * 2).plain and Edges(ones * 2).cuts == ()


def test_cuts_are_common_to_all_rows():
    gates = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert Edges(gates).cuts == (0, 2)
    assert Edges(gates)[1:].cuts == (1,)


def test_a_frozen_row_does_not_reset():
    reset = torch.tensor([[True, True], [False, True]])
    valid = torch.tensor([[True, False], [True, True]])
    edges = Edges(None, reset, valid)
    assert edges.reset is not None and edges.reset.tolist() == [[True, False], [False, True]]
    numbers = edges.fresh_rows()
    assert numbers is not None and numbers.tolist() == [[0, -1], [-1, 1]]
    assert edges.reset_steps() == [True, True] and edges.frozen_steps() == [True, False]
    assert Edges().reset_steps() == [] and Edges().frozen_steps() == [] and Edges().fresh_rows() is None


def test_to_keeps_what_is_there():
    edges = Edges(torch.zeros(2, 1), None, torch.tensor([[True], [False]]))
    moved = edges.to(torch.device("cpu"))
    assert moved is edges


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="one shape"):
        Edges(torch.ones(3, 2), torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="one shape"):
        Edges(torch.ones(3))


@given(
    steps=st.integers(1, 40),
    rows=st.sampled_from([1, 3, 200, 600]),
    most=st.integers(0, 50),
    data=st.data(),
)
def test_every_step_is_walked_once_and_after_those_that_follow_it(steps, rows, most, data):
    cuts = sorted(data.draw(st.sets(st.integers(0, steps - 1))))
    walked = []
    initial = []
    for group in side_by_side(cuts, steps, rows):
        assert sum(group.sizes) == len(group.steps) and list(group.sizes) == sorted(group.sizes)
        assert len(group.sizes) == 1 or group.sizes[-1] * rows <= 512 or group.sizes[-1] == 1
        place = 0
        batches = []
        for size in group.sizes:
            batches.append(list(group.steps[place : place + size]))
            place += size
        for early, late in zip(batches, batches[1:]):
            # A stretch keeps its place; what is new at the end begins there.
            assert [step + 1 for step in early] == late[: len(early)]
            assert all(step in {0, *cuts} for step in late[len(early) :])
        if group.initial is not None:
            initial.append(batches[group.initial[0]][group.initial[1]])
        walked += group.steps
        pieces = list(tiles(group, most))
        assert [t.last for t in pieces[1:]] == [t.first for t in pieces[:-1]]
        assert pieces[0].end == len(group.steps) and pieces[-1].begin == 0 and pieces[-1].first == 0
        assert all(t.end - t.begin == sum(group.sizes[t.first : t.last]) for t in pieces)
        assert all(t.end - t.begin <= most or t.last - t.first == 1 for t in pieces)
    assert sorted(walked) == list(range(steps)) and initial == [0]
