"""Recurrent: any f and g (E1), any nesting of the state."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import chronograd as cg


def test_e1_step_by_step():
    torch.manual_seed(0)
    cell, readout = nn.GRUCell(3, 4).double(), nn.Linear(4, 2).double()
    model = cg.Recurrent(cell, readout)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    h, outputs = None, []
    for t in range(5):
        h = cell(x[t], h)
        outputs.append(readout(h))
    found, final = model(x)
    torch.testing.assert_close(found, torch.stack(outputs))
    torch.testing.assert_close(final, h)
    assert {name for name, _ in model.named_parameters()} == {
        *(f"cell.{n}" for n, _ in cell.named_parameters()),
        "readout.weight",
        "readout.bias",
    }


def test_nested_states_and_readouts_of_them():
    def cell(x, state):
        state = {"fast": torch.zeros_like(x), "slow": (torch.zeros_like(x),)} if state is None else state
        fast = torch.tanh(x + state["slow"][0])
        return {"fast": fast, "slow": (0.9 * state["slow"][0] + 0.1 * fast,)}

    x = torch.randn(4, 2, 3)
    outputs, final = cg.Recurrent(cell)(x)
    assert outputs.shape == (4, 2, 3) and torch.equal(outputs[-1], final["fast"])
    summed, _ = cg.Recurrent(cell, lambda states: states["fast"] + states["slow"][0])(x)
    torch.testing.assert_close(summed[-1], final["fast"] + final["slow"][0])


def test_the_output_of_a_pair_is_its_first_tensor():
    outputs, (h, _) = cg.Recurrent(nn.LSTMCell(3, 4))(torch.randn(4, 2, 3))
    assert torch.equal(outputs[-1], h)


def test_errors_are_one_clear_line():
    with pytest.raises(TypeError, match="Recurrent: cell must be callable, not int"):
        cg.Recurrent(3)  # pyright: ignore
    with pytest.raises(TypeError, match="Recurrent: readout must be callable"):
        cg.Recurrent(nn.GRUCell(3, 4), "x")  # pyright: ignore
    with pytest.raises(ValueError, match="at least one step"):
        cg.Recurrent(nn.GRUCell(3, 4))(torch.zeros(0, 2, 3))
    with pytest.raises(ValueError, match="state tensor 0 of the cell has shape"):
        cg.Recurrent(lambda x, state: x.sum(0))(torch.zeros(5, 2, 3))
    with pytest.raises(TypeError, match="state holds a object"):
        cg.Recurrent(lambda x, state: object())(torch.zeros(5, 2, 3))
