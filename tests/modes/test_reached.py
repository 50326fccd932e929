"""Which parameters have a gradient: those that a loss which counts can reach, under every mode alike."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import chronograd as cg
from oracle import assert_close, squared


class Learned(nn.Module):
    """A layer that begins in a learned state."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.begin = layer, nn.Parameter(torch.randn(1, 1, 3))

    def forward(self, x, state=None):
        return self.layer(x, self.begin.expand(1, x.shape[1], 3).contiguous() if state is None else state)


LAYERS = {"diagonal": lambda: cg.DiagonalRNN(2, 3), "gru": lambda: cg.GRU(2, 3), "torch": lambda: nn.RNN(2, 3)}
MODES = ["reverse", "reverse:1MB", "scan", "scan:always", "scan:quasi,always", "scan:loop,always"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("weights", ["011111", "100000", "000011", "101011", "001100"])
def test_a_learned_state_is_reached_by_losses_of_the_first_chunk(mode, name, k, weights):
    torch.manual_seed(0)
    model, x = Learned(LAYERS[name]()).double(), torch.randn(6, 2, 2, dtype=torch.float64)
    counted = torch.tensor([float(w) for w in weights]).unsqueeze(1).expand(6, 2)
    found, _ = cg.value_and_grad(
        model,
        squared,
        x,
        x.new_zeros(6, 2, 1),
        truncation=cg.Chunks(k),
        weights=counted,
        mode=cg.modes.parse(mode),
    )
    assert ("begin" in found.grads) == ("1" in weights[:k])
    total = {}
    for at in range(0, 6, k):  # chunk by chunk, by hand
        state = None if at == 0 else model(x[:at])[1].detach()
        losses = squared(model(x[at : at + k], state)[0], torch.zeros(())) * counted[at : at + k] / counted.sum()
        for key, grad in zip(
            dict(model.named_parameters()),
            torch.autograd.grad(losses.sum(), list(model.parameters()), allow_unused=True),
        ):
            total[key] = total.get(key, 0) + (0 if grad is None else grad)
    for key, grad in found.grads.items():
        assert_close(grad, total[key], 1e-9)


@pytest.mark.filterwarnings("ignore:value_and_grad with Full")
@pytest.mark.parametrize("mode", MODES)
def test_losses_that_reach_into_the_call_before(mode):
    """The first loss of a call may count or not: the open history before it is walked back through all the same."""
    torch.manual_seed(0)
    model, x = Learned(cg.GRU(2, 3)).double(), torch.randn(9, 2, 2, dtype=torch.float64)
    weights = torch.ones(5, 2).double()
    weights[:2] = 0
    options = {"truncation": cg.Chunks(6), "mode": cg.modes.parse(mode)}
    _, carry = cg.value_and_grad(model, squared, x[:4], x.new_zeros(4, 2, 1), **options)
    found, _ = cg.value_and_grad(model, squared, x[4:], x.new_zeros(5, 2, 1), carry, weights=weights, **options)
    assert "begin" not in found.grads
    weights[1] = 1
    found, _ = cg.value_and_grad(model, squared, x[4:], x.new_zeros(5, 2, 1), carry, weights=weights, **options)
    outputs, state = model(x[:6])
    loss = squared(outputs[5:], torch.zeros(())).sum() + squared(model(x[6:], state.detach())[0], torch.zeros(())).sum()
    for (key, _), grad in zip(model.named_parameters(), torch.autograd.grad(loss / 8, list(model.parameters()))):
        assert_close(found.grads[key], grad, 1e-9)
