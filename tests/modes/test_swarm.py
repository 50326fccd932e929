"""Particles side by side."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import chronograd as cg
from chronograd.modes.evolution import swarm
from oracle import assert_same_grads


@pytest.mark.parametrize("make", [cg.RNN, cg.GRU, cg.LSTM, cg.LinearRNN, cg.DiagonalRNN, cg.ELSTM])
def test_every_layer_is_mapped_over_particles(make, monkeypatch):
    mapped = []
    through = swarm.vmap

    def watched(*args, **options):
        return lambda *given: mapped.append(through(*args, **options)(*given)) or mapped[-1]

    monkeypatch.setattr(swarm, "vmap", watched)
    model = make(2, 3).double()
    x = torch.randn(5, 2, 2, dtype=torch.float64)
    cg.value_and_grad(model, lambda outputs, targets: outputs.square().sum(-1), x, None, mode=cg.PES(3, 0.1))
    assert mapped


class Counting(nn.Module):
    """A state that holds a plain number, which every step looks at."""

    def __init__(self):
        super().__init__()
        self.cell = nn.RNNCell(2, 2)

    def forward(self, x, state=None):
        h, count = (x.new_zeros(x.shape[1], 2), 0) if state is None else state
        outputs = []
        for step in x:
            h, count = (1 + count % 2) * self.cell(step, h), count + 1
            outputs.append(h)
        return torch.stack(outputs), (h, count)


@pytest.mark.parametrize("calls", [[1] * 6, [3, 2, 1]], ids=str)
def test_numbers_in_a_state_are_those_before_the_steps(calls):
    torch.manual_seed(0)
    model, x, mode = Counting().double(), torch.randn(6, 2, 2, dtype=torch.float64), cg.PES(3, 0.1, 6)
    loss_fn, carry, total = lambda outputs, targets: outputs.square().sum(-1), cg.Carry.start(2, seed=1), None
    for part in x.split(calls):
        gradient, carry = cg.value_and_grad(model, loss_fn, part, None, carry, mode=mode)
        total = gradient if total is None else total + gradient
    whole, _ = cg.value_and_grad(model, loss_fn, x, None, cg.Carry.start(2, seed=1), mode=mode)
    assert_same_grads(total.grads, whole.grads)
