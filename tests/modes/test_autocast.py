"""Under torch.autocast a model is what it is without, and its gradient the same but for half precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import chronograd as cg
from chronograd.recurrence.adapters import adapt
from oracle import Attending, assert_close


class Between(nn.Module):
    """A recurrent layer between two linear ones, which autocast runs in half precision."""

    def __init__(self, layer):
        super().__init__()
        self.into, self.layer, self.out = nn.Linear(3, 3), layer, nn.Linear(8, 4)

    def forward(self, x, state=None):
        outputs, state = self.layer(self.into(x), state)
        return self.out(outputs), state


MODELS = {
    "ours": lambda: Between(cg.GRU(3, 8)),
    "our lstm": lambda: Between(cg.LSTM(3, 8)),
    "diagonal": lambda: Between(cg.DiagonalRNN(3, 8)),
    "cell": lambda: cg.Recurrent(nn.GRUCell(3, 8), nn.Linear(8, 4)),
    "cell of two": lambda: cg.Recurrent(nn.LSTMCell(3, 8)),
    "gru": lambda: Between(nn.GRU(3, 8)),
    "lstm": lambda: Between(nn.LSTM(3, 8)),
    "tanh": lambda: Between(nn.RNN(3, 8)),
    "bare": lambda: nn.GRU(3, 8),
}


def loss_fn(outputs, targets):
    return outputs[0].float().square().sum(-1) if isinstance(outputs, tuple) else outputs.float().square().sum(-1)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("mode", "truncation"),
    [
        (cg.Scan(always=True), cg.Full()),
        (cg.Scan("quasi"), cg.Chunks(7)),
        (cg.Scan("loop"), cg.RandomTruncation(10)),
        (cg.Reverse(), cg.RandomTruncation(10)),
        (cg.Reverse(), cg.Window(5, 10)),
    ],
)
def test_the_gradient_is_that_without_but_for_half_precision(name, mode, truncation):
    torch.manual_seed(0)
    model, x = MODELS[name](), torch.randn(60, 2, 3)
    expected, _ = cg.value_and_grad(model, loss_fn, x, None, truncation=truncation, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = cg.value_and_grad(model, loss_fn, x, None, truncation=truncation, mode=mode, seed=0)
    for key, grad in expected.grads.items():
        assert found.grads[key].dtype == torch.float32
        assert_close(found.grads[key], grad, 0.1)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "mode", [cg.RTRL(), cg.SnAp(1), cg.SnAp(2), cg.UORO(), cg.KFRTRL(), cg.PES(2, 0.1, 3)], ids=str
)
def test_influence_is_that_without_but_for_half_precision(name, mode):
    if isinstance(mode, cg.KFRTRL):
        model = {"tanh": cg.RNN(3, 8), "bare": nn.RNN(3, 8)}.get(name)
        if model is None:
            pytest.skip("no layer of tanh units alone")
    else:
        torch.manual_seed(0)
        model = MODELS[name]()
    x, found = torch.randn(9, 2, 3), {}
    for low in (False, True):
        carry, total = cg.Carry.start(2, seed=0), None
        for part in x.split([1, 2, 6]):
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                grads, carry = cg.value_and_grad(model, loss_fn, part, None, carry, mode=mode)
            total = grads if total is None else total + grads
        found[low] = total
        assert all(
            leaf.dtype == torch.float32 for leaf in torch.utils._pytree.tree_leaves(carry.mode.get("influence", []))
        )
    for key, grad in found[False].grads.items():
        assert found[True].grads[key].dtype == torch.float32
        assert_close(found[True].grads[key], grad, 0.1)


def test_inputs_in_half_precision():
    torch.manual_seed(0)
    model, x = Between(nn.GRU(3, 8)), torch.randn(60, 2, 3).bfloat16()
    expected, _ = cg.value_and_grad(model, loss_fn, x.float(), None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = cg.value_and_grad(model, loss_fn, x, None, mode=cg.Scan())
    for key, grad in expected.grads.items():
        assert_close(found.grads[key], grad, 0.1)


def test_what_reads_a_state_beside_the_layers_is_seen():
    """Half precision would hide it among its rounding."""
    torch.manual_seed(0)
    model, x = Attending(), torch.randn(5, 2, 2)
    with torch.no_grad():
        for parameter in model.attend.parameters():
            parameter.mul_(0.05)
    assert adapt(model, x).kind == "opaque"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert adapt(model, x).kind == "opaque"
