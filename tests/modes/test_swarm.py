"""Particles side by side."""

from __future__ import annotations

import pytest
import torch

import chronograd as cg
from chronograd.modes.evolution import swarm


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
