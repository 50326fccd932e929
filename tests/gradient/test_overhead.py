"""What a call adds to the model's own work, counted: runs of the model, and tensor operations."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import chronograd as cg
from oracle import assert_same_grads, squared


class Counting(nn.Module):
    """A user's own model around a torch layer; keeps the shapes it was called with."""

    def __init__(self, layer=nn.LSTM):
        super().__init__()
        self.layer, self.readout = layer(2, 3), nn.Linear(3, 2)
        self.calls = []

    def forward(self, x, state=None):
        self.calls.append(tuple(x.shape[:2]))
        h, state = self.layer(x, state)
        return self.readout(h), state


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def chunks(calls=4, steps=5, rows=12):
    torch.manual_seed(0)
    return torch.randn(calls, steps, rows, 2)


def detached(state):
    return tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()


@pytest.mark.parametrize("layer", [nn.RNN, nn.GRU, nn.LSTM, cg.LSTM])
def test_aligned_chunks_run_the_model_once_and_give_the_detach_loops_numbers(layer):
    model, carry, state = Counting(layer), None, None
    for chunk in chunks():
        model.calls.clear()
        gradient, carry = cg.value_and_grad(model, squared, chunk, chunk, carry, truncation=cg.Chunks(5))
        assert model.calls == [(5, 12)]
        model.zero_grad()
        outputs, state = model(chunk, None if state is None else detached(state))
        loss = squared(outputs, chunk).mean()
        loss.backward()
        torch.testing.assert_close(gradient.loss, loss.detach())
        assert_same_grads(gradient.grads, {name: p.grad for name, p in model.named_parameters()}, 1e-6)


def test_aligned_chunks_add_few_operations_to_the_detach_loops():
    model, carry, state = Counting(), None, None
    counts = []
    for chunk in chunks():
        with Operations() as ours:
            gradient, carry = cg.value_and_grad(model, squared, chunk, chunk, carry, truncation=cg.Chunks(5))
        model.zero_grad()
        with Operations() as theirs:
            outputs, state = model(chunk, None if state is None else detached(state))
            squared(outputs, chunk).mean().backward()
        counts.append(ours.count - theirs.count)
    assert max(counts) <= 25, counts


@pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM])
def test_chunks_on_many_rows_of_a_torch_layer_look_at_no_model(layer):
    """Where nothing is gained from knowing a model's layers, it runs the steps of the data and no others."""
    model, carry = Counting(layer), None
    for begin, runs in ((0, [(3, 12)]), (3, [(3, 12), (2, 12), (1, 12)]), (6, [(1, 12), (3, 12)])):
        model.calls.clear()
        x = chunks(1, 9)[0][begin : begin + 3]
        _, carry = cg.value_and_grad(model, squared, x, x, carry, truncation=cg.Chunks(5))
        assert model.calls == runs  # what is open of the call before, then what lies between the cuts


def test_the_edge_into_an_open_segment_needs_no_gate():
    """Its state has no graph, so a random gate there changes nothing: the segment runs as the model itself."""
    x = chunks(1, 8)[0].double()
    whole, carry, total = Counting().double(), cg.Carry.start(12, seed=3), None
    expected, _ = cg.value_and_grad(whole, squared, x, x, carry, truncation=cg.RandomTruncation(2.0))
    for step in x.split(1):
        gradient, carry = cg.value_and_grad(whole, squared, step, step, carry, truncation=cg.RandomTruncation(2.0))
        total = gradient if total is None else total + gradient
    assert total is not None
    assert_same_grads(total.grads, expected.grads)
