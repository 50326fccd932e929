"""Sums of gradients: right whatever autograd hands out, in place, and nobody else's memory."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

import chronograd as cg
from chronograd.modes.peak import PeakBytes
from chronograd.modes.tally import Tally, saved_bytes
from oracle import squared


class Lending(torch.autograd.Function):
    """w * x, whose gradient of w is the very tensor x."""

    @staticmethod
    def forward(ctx, w, x):
        ctx.save_for_backward(x)
        return (w * x).sum()

    @staticmethod
    def backward(ctx, given):
        return ctx.saved_tensors[0], None


def overlap(tensors):
    places = [x.untyped_storage().data_ptr() for x in tensors]
    return len(set(places)) < len(places) or any(0 in x.stride() for x in tensors)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("times", [1, 2, 4])
def test_sums_of_what_is_not_ones_own(again, times):
    a, b, c, d = (nn.Parameter(torch.randn(3)) for _ in range(4))
    x, tally = torch.tensor([1.0, 2.0, 3.0]), Tally({"a": a, "b": b, "c": c, "d": d})
    tally.again = again
    for _ in range(times):
        flow = (a + b) * x  # one tensor is the gradient of both
        tally.add(flow.sum() + c.sum() + Lending.apply(d, x), 1.0)  # c's is one number, seen three times
    assert x.tolist() == [1, 2, 3]
    expected = {"a": [1, 2, 3], "b": [1, 2, 3], "c": [1, 1, 1], "d": [1, 2, 3]}
    assert {name: (grad / times).tolist() for name, grad in tally.grads.items()} == expected
    assert not overlap(tally.grads.values())


def test_gradients_found_otherwise_are_left_alone():
    found, tally = {"a": torch.ones(2)}, Tally({"a": nn.Parameter(torch.zeros(2))})
    for _ in range(3):
        tally.add_found(found)
    assert tally.grads["a"].tolist() == [3, 3] and found["a"].tolist() == [1, 1]


def test_sparse_gradients_are_added():
    embed, tokens = nn.Embedding(5, 2, sparse=True), torch.tensor([1, 1, 4])
    tally = Tally(dict(embed.named_parameters()))
    tally.again = True
    for _ in range(3):
        tally.add(embed(tokens).sum(), 1.0)
    assert tally.grads["weight"].to_dense()[:, 0].tolist() == [0, 6, 0, 0, 3]


@pytest.mark.parametrize("build", [nn.GRU, cg.GRU, cg.LSTM])
@pytest.mark.parametrize("mode", [cg.Reverse(), cg.Reverse("200KB"), cg.Scan()])
def test_the_callers_gradients_are_the_callers(build, mode):
    torch.manual_seed(0)
    model, x = build(2, 3), torch.randn(300, 2, 2)
    gradient, carry = cg.value_and_grad(
        model, squared, x, x.new_zeros(300, 2, 1), truncation=cg.Chunks(50), mode=mode, wrt_inputs=True
    )
    state = carry.state if isinstance(carry.state, tuple) else (carry.state,)
    assert not overlap([*gradient.grads.values(), *state, *model.parameters(), x])


@pytest.mark.parametrize("truncation", [cg.Full(), cg.Chunks(150), cg.Window(50, 90)])
def test_a_budget_that_few_steps_and_many_parameters_share(truncation):
    """Sums of gradients are made in place: beside the gradient itself, that of one segment is all there is."""
    torch.manual_seed(0)
    model, x = cg.GRU(4, 160), torch.randn(400, 1, 4)
    own = sum(parameter.nbytes for parameter in model.parameters())
    budget = int(1.25 * own)
    with PeakBytes() as count:
        cg.value_and_grad(model, squared, x, x[..., :1], truncation=truncation, mode=cg.Reverse(budget))
    assert count.peak - own <= budget


def test_counting_what_is_saved_holds_no_graph():
    """An operator whose result is saved: kept as it is it would hold the operator that holds it, for ever."""
    w = torch.randn(3, requires_grad=True)
    with saved_bytes() as count:
        made = w.tanh()
    assert count.total == made.nbytes
    alive = weakref.ref(made)
    del made
    assert alive() is None
    with saved_bytes():
        made = w.exp()
    (found,) = torch.autograd.grad(made.sum(), w)
    assert torch.equal(found, w.detach().exp())


@pytest.mark.parametrize("truncation", [cg.Full(), cg.Chunks(10), cg.Window(5, 15), cg.RandomTruncation(10)], ids=str)
@pytest.mark.parametrize("build", [cg.GRU, lambda *sizes: cg.Recurrent(nn.RNNCell(*sizes))])
def test_calls_leave_nothing_behind(build, truncation):
    """Also where most stretches have no loss that counts, so that nothing walks back through their graphs."""
    torch.manual_seed(0)
    model, x = build(2, 3), torch.randn(100, 2, 2)
    weights = torch.zeros(100, 2)
    weights[-1] = 1

    def tensors():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())  # no word to lazy objects

    counts = []
    for seed in range(3):
        cg.value_and_grad(model, squared, x, x.new_zeros(100, 2, 1), truncation=truncation, weights=weights, seed=seed)
        counts.append(tensors())
    assert counts[-1] <= counts[0], counts
