"""The carry: the seed it takes and when, and what is written and read back."""

from __future__ import annotations

import io
from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import chronograd as cg
from chronograd.stretch import lay_stretch
from oracle import squared

Pair = namedtuple("Pair", "h c")
X = torch.randn(6, 2, 2, generator=torch.Generator().manual_seed(0))


def through_bytes(carry):
    file = io.BytesIO()
    torch.save(carry.state_dict(), file)
    file.seek(0)
    return cg.Carry.from_state_dict(torch.load(file, weights_only=True))


def test_starting_a_stream_takes_no_random_number():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    carry = cg.Carry.start(2)
    for truncation in (cg.Full(), cg.Chunks(2), cg.Window(1, 3), cg.AdaptiveTruncation(0.1)):
        for begun in (None, carry):
            lay_stretch(X, begun, None, None, None, draws=truncation.random)
    lay_stretch(X, None, None, None, 5, draws=True)  # it has its seed
    assert torch.equal(torch.get_rng_state(), before)
    assert carry.stream.seed is None and through_bytes(carry).stream.seed is None


@pytest.mark.parametrize("calls", [1, 2])
def test_dropout_draws_the_masks_of_a_loop_written_by_hand(calls):
    model, steps = nn.GRU(2, 2, num_layers=2, dropout=0.5), 6 // calls
    torch.manual_seed(5)
    state, expected = None, []
    for x in X.split(steps):
        model.zero_grad()
        outputs, state = model(x, state)
        squared(outputs, x).mean().backward()
        state = state.detach()
        expected.append({name: p.grad.clone() for name, p in model.named_parameters()})
    torch.manual_seed(5)
    carry, found = None, []
    for x in X.split(steps):
        gradient, carry = cg.value_and_grad(model, squared, x, x, carry, truncation=cg.Chunks(steps))
        found.append(gradient.grads)
    torch.testing.assert_close(found, expected)


def seeds(count, truncation=cg.RandomTruncation(3), carry=None):  # noqa: B008
    return [lay_stretch(X, carry, None, None, None, truncation).carry.stream.seed for _ in range(count)]


def test_a_random_truncation_takes_its_seed_from_torchs_generator():
    torch.manual_seed(3)
    first = seeds(20)
    assert len({*first}) == 20  # whole sequences, a call each: the generator moves, so that no two draw the same cuts
    torch.manual_seed(3)
    assert seeds(20, carry=cg.Carry.start(2)) == first
    torch.manual_seed(4)
    assert not {*seeds(20)} & {*first}


def test_a_stream_keeps_the_seed_it_took():
    model, carry, found = nn.GRU(2, 2), None, []
    for _ in range(3):
        _, carry = cg.value_and_grad(model, squared, X, X, carry, truncation=cg.RandomTruncation(3))
        found.append(carry.stream.seed)
    assert found[0] is not None and found == [found[0]] * 3


def test_what_is_written_is_read_back():
    given = {"h": (torch.randn(2, 3), [torch.zeros(2, dtype=torch.int64)]), "n": OrderedDict(a=1, b=None)}
    carry = cg.Carry.start(2, rows=[7, 4], seed=2**70, state=given)
    read = through_bytes(carry)
    assert pytree.tree_structure(read.state) == pytree.tree_structure(given)
    assert str(read.state) == str(given)
    assert (read.stream.rows.tolist(), read.stream.seed, read.stream.begun.tolist()) == ([7, 4], 2**70, [True, True])


class Named(nn.Module):
    """A state with names."""

    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(2, 2)

    def forward(self, x, state=None):
        path = []
        for x_t in x:
            state = Pair(*self.cell(x_t, state))
            path.append(state.h)
        return torch.stack(path), state


def test_a_named_tuple_is_carried_along_but_not_written():
    carry = None
    for _ in range(2):
        _, carry = cg.value_and_grad(Named(), squared, X, X, carry, truncation=cg.Window(2, 4))
    assert isinstance(carry.state, Pair)
    with pytest.raises(TypeError, match="Carry.state_dict: stream.state holds a Pair, which torch.load") as caught:
        carry.state_dict()
    assert "\n" not in str(caught.value)
