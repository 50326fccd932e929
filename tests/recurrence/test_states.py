"""Nested states: gates, row operations, and finding the dimension of the rows."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_structure

from chronograd.recurrence.states import RowDims, check_state, detach, find_row_dims, gate, leaves, tree_map

Pair = namedtuple("Pair", "h c")
H = torch.ones(2)


def test_gate_is_the_identity_forward_and_xi_back():
    value = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    xi = torch.tensor([0.0, 1.0, 2.5])
    out = gate(value, xi, 1)
    assert torch.equal(out, value)
    cotangent = torch.randn(2, 3, 4, dtype=torch.float64)
    cotangent[:, 0] = float("inf")
    (grad,) = torch.autograd.grad(out, value, cotangent)
    torch.testing.assert_close(grad[:, 1:], cotangent[:, 1:] * xi[1:].reshape(1, 2, 1).double())
    assert bool((grad[:, 0] == 0).all())


def test_gate_of_complex_numbers():
    value = torch.randn(3, 2, dtype=torch.complex64, requires_grad=True)
    (grad,) = torch.autograd.grad(gate(value, torch.tensor([2.0, 1.0, 0.0])).abs().sum(), value)
    (plain,) = torch.autograd.grad(value.abs().sum(), value)
    torch.testing.assert_close(grad, plain * torch.tensor([[2.0], [1.0], [0.0]]))


def test_states_keep_their_nesting_dtype_and_device():
    state = {
        "h": Pair(torch.zeros(1, 3), torch.zeros(3, 2, dtype=torch.float16)),
        "n": [torch.zeros(3, dtype=torch.int64)],
    }
    dims = RowDims([1, 0, 0])
    mask = torch.tensor([True, False, True])
    ones = tree_map(torch.ones_like, state)
    for result in (dims.choose(mask, ones, state), dims.take(ones, torch.arange(3)), dims.join([ones]), detach(state)):
        assert isinstance(result["h"], Pair) and isinstance(result["n"], list)
        assert [leaf.dtype for leaf in leaves(result)] == [torch.float32, torch.float16, torch.int64]
    chosen = dims.choose(mask, ones, state)
    assert chosen["h"].h.tolist() == [[1, 0, 1]] and chosen["n"][0].tolist() == [1, 0, 1]
    assert dims.take(chosen, torch.tensor([1, 2]))["h"].c.tolist() == [[0, 0], [1, 1]]
    joined = dims.join([state, ones])
    assert [leaf.shape for leaf in leaves(joined)] == [(1, 6), (6, 2), (6,)]


def test_gates_on_a_state():
    h, n = torch.ones(1, 2, 3, requires_grad=True), torch.zeros(2, dtype=torch.int64)
    dims = RowDims([1, 0])
    state = (h * 1, n)
    assert dims.gate(state, torch.ones(2)) is state
    assert not dims.gate(state, torch.zeros(2))[0].requires_grad
    (grad,) = torch.autograd.grad(dims.gate(state, torch.tensor([0.0, 3.0]))[0].sum(), h)
    assert grad[0, :, 0].tolist() == [0, 3]


def test_dictionaries_are_matched_by_key():
    yes = {"a": torch.ones(2), "b": torch.full((2,), 2.0)}
    no = {"b": torch.full((2,), -2.0), "a": -torch.ones(2)}
    chosen = RowDims([0, 0]).choose(torch.tensor([True, False]), yes, no)
    assert chosen["a"].tolist() == [1, -1] and chosen["b"].tolist() == [2, -2]


def test_what_all_rows_share():
    a, b = (torch.zeros(2, 1), torch.tensor(5)), (torch.ones(3, 1), torch.tensor(5))
    dims = RowDims([0, None])
    assert dims.join([a, b])[0].shape == (5, 1)
    assert dims.choose(torch.tensor([True, False]), (a[0], torch.tensor(7)), a)[1] == 7
    with pytest.raises(ValueError, match="side by side"):
        dims.join([a, (b[0], torch.tensor(6))])
    with pytest.raises(ValueError, match="side by side"):
        RowDims([0]).join([(a[0], 3), (b[0], 4)])


def test_rows_are_found_by_comparing_two_batch_sizes():
    state = (torch.zeros(2, 2, 5), torch.zeros(2, 7), torch.tensor(0))
    other = (torch.zeros(2, 3, 5), torch.zeros(3, 7), torch.tensor(0))
    assert find_row_dims(state, other, 2, 3).dims == (1, 0, None)


@pytest.mark.parametrize(
    ("shape", "other"),
    [((2, 2), (3, 3)), ((4, 5), (4, 5)), ((2, 4), (2, 4, 1)), ((4, 5), (6, 5))],
    ids=["two follow", "none follows", "other dimensions", "another size"],
)
def test_ambiguity_is_an_error(shape, other):
    with pytest.raises(ValueError, match="cannot tell where the rows of state tensor 0 lie: .* state_row_dim"):
        find_row_dims(torch.zeros(shape), torch.zeros(other), 2, 3)


def test_a_state_of_another_number_of_tensors():
    with pytest.raises(ValueError, match="1 tensors for 2 rows and 2 for 3"):
        find_row_dims((torch.zeros(2),), (torch.zeros(3), torch.zeros(3)), 2, 3)


def test_declared_rows():
    state = (torch.zeros(2, 2), torch.zeros(4, 2))
    assert find_row_dims(state, None, 2, 3, [0, -1]).dims == (0, 1)
    assert find_row_dims(state, None, 2, 3, 1).dims == (1, 1)
    assert find_row_dims(state, None, 2, 3, (None, 1)).dims == (None, 1)
    with pytest.raises(ValueError, match="state_row_dim names 1 dimensions, but the state has 2"):
        find_row_dims(state, None, 2, 3, [0])
    with pytest.raises(ValueError, match=r"says 0 for state tensor 1 of shape \(4, 2\), which does not have 2 rows"):
        find_row_dims(state, None, 2, 3, 0)


def test_states_that_gates_cannot_reach():
    check_state([torch.zeros(1), None, 3, {"a": 0.5}])
    with pytest.raises(TypeError, match="the model's state holds a set; make it of tuples, lists"):
        check_state((torch.zeros(1), {1}))
    with pytest.raises(TypeError, match="^the given state holds a ndarray"):
        check_state({"h": np.zeros(2)}, "the given state")


@pytest.mark.parametrize(
    "tree", [H := torch.ones(2), None, 3, (H, None), [H, (H, "a")], {"b": H, "a": [H]}, Pair(H, (H,))]
)
def test_nestings_are_walked_as_torchs_pytree_walks_them(tree):
    found = leaves(tree)
    assert all(a is b for a, b in zip(found, [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]))
    doubled = tree_map(lambda x: 2 * x, tree)
    assert tree_structure(doubled) == tree_structure(tree)
    assert [int(leaf.sum()) for leaf in leaves(doubled)] == [4] * len(found)
