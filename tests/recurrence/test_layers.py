"""RNN, GRU and LSTM against torch.nn: outputs, final states, every gradient, every argument."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import chronograd as cg
from pairs import PAIRS, assert_same, pair, state_of, tensors


@pytest.mark.parametrize("kind", PAIRS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_equal_torch(kind, data):
    T, B, d, H = (data.draw(st.integers(1, n)) for n in (6, 3, 4, 4))
    layers, bias, first = data.draw(st.integers(1, 3)), data.draw(st.booleans()), data.draw(st.booleans())
    given_state, batched = data.draw(st.booleans()), data.draw(st.booleans())
    dropout = data.draw(st.sampled_from([0.0, 0.4])) if layers > 1 else 0.0
    torch.manual_seed(0)
    ours, theirs = pair(kind, d, H, num_layers=layers, bias=bias, batch_first=first, dropout=dropout)
    shape = ((B, T, d) if first else (T, B, d)) if batched else (T, d)
    hx = state_of(kind, *((layers, B, H) if batched else (layers, H))) if given_state else None
    assert_same(ours, theirs, torch.randn(shape, dtype=torch.float64), hx)


@pytest.mark.parametrize("kind", PAIRS)
def test_equal_in_single_precision(kind):
    torch.manual_seed(0)
    ours, theirs = pair(kind, 5, 8, num_layers=2, dtype=torch.float32)
    x = torch.randn(20, 4, 5)
    assert_same(ours, theirs, x, state_of(kind, 2, 4, 8, dtype=torch.float32), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", PAIRS)
def test_dropout_is_off_in_evaluation(kind):
    torch.manual_seed(0)
    ours, theirs = pair(kind, 3, 4, num_layers=2, dropout=0.5)
    assert_same(ours.eval(), theirs.eval(), torch.randn(4, 2, 3, dtype=torch.float64))


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("options", [{"bidirectional": True}, {"bidirectional": True, "num_layers": 2, "bias": False}])
def test_bidirectional_goes_through_torch(kind, options):
    torch.manual_seed(0)
    assert_same(*pair(kind, 3, 4, **options), torch.randn(4, 2, 3, dtype=torch.float64))


def test_projections_go_through_torch():
    torch.manual_seed(0)
    assert_same(*pair("lstm", 3, 4, proj_size=2), torch.randn(4, 2, 3, dtype=torch.float64))


@pytest.mark.parametrize("kind", PAIRS)
def test_packed_sequences_go_through_torch(kind):
    torch.manual_seed(0)
    ours, theirs = pair(kind, 3, 4)
    x = pack_padded_sequence(torch.randn(5, 2, 3, dtype=torch.float64), torch.tensor([5, 2]))
    (a, a_state), (b, b_state) = ours(x), theirs(x)
    torch.testing.assert_close(pad_packed_sequence(a)[0], pad_packed_sequence(b)[0])
    for p, q in zip(tensors(a_state), tensors(b_state)):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("kind", PAIRS)
def test_state_dict_goes_both_ways(kind):
    ours, theirs = pair(kind, 3, 4, num_layers=2)
    other = PAIRS[kind][1](3, 4, num_layers=2, **PAIRS[kind][2]).double()
    ours.load_state_dict(other.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_same(ours, other, torch.randn(3, 2, 3, dtype=torch.float64))


@pytest.mark.parametrize("kind", PAIRS)
def test_parameters_that_are_replaced_are_used(kind):
    """Copies, functional calls and parametrizations hand in weights of their own."""
    ours, theirs = pair(kind, 3, 4)
    x = torch.randn(3, 2, 3, dtype=torch.float64)
    doubled = {name: 2 * p.detach() for name, p in ours.named_parameters()}
    called = torch.func.functional_call(ours, doubled, (x,))[0]
    theirs.load_state_dict(doubled)
    torch.testing.assert_close(called, theirs(x)[0])
    torch.testing.assert_close(copy.deepcopy(ours)(x)[0], ours(x)[0])
    nn.utils.parametrizations.weight_norm(ours, "weight_hh_l0")
    assert ours(x)[0].requires_grad


@pytest.mark.parametrize("kind", PAIRS)
def test_frozen_parameters(kind):
    ours, theirs = pair(kind, 3, 4)
    for layer in (ours, theirs):
        layer.weight_hh_l0.requires_grad_(False)
        layer.bias_ih_l0.requires_grad_(False)
        layer(torch.ones(3, 2, 3, dtype=torch.float64))[0].sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters()):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("kind", PAIRS)
def test_autocast_keeps_the_recurrence_in_the_precision_of_the_weights(kind):
    torch.manual_seed(0)
    ours, theirs = pair(kind, 5, 8, dtype=torch.float32)
    x = torch.randn(6, 2, 5)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, _ = ours(x)
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs, theirs(x)[0], rtol=0.05, atol=0.05)
    outputs.sum().backward()
    assert all(p.grad is not None for p in ours.parameters())


@pytest.mark.parametrize("kind", PAIRS)
def test_half_precision_weights(kind):
    ours, theirs = pair(kind, 3, 4, dtype=torch.bfloat16)
    x = torch.ones(3, 2, 3, dtype=torch.bfloat16)
    torch.testing.assert_close(ours(x)[0], theirs(x)[0], rtol=0.05, atol=0.05)


def test_errors_are_one_clear_line():
    rnn, gru, lstm = cg.RNN(3, 4), cg.GRU(3, 4), cg.LSTM(3, 4, batch_first=True)
    x = torch.randn(5, 2, 3)
    cases = [
        (lambda: gru(torch.randn(5, 2, 7)), RuntimeError, "GRU: input has 7 features, expected input_size = 3"),
        (lambda: gru(torch.randn(5)), ValueError, "GRU: expected input of 2 or 3 dimensions"),
        (lambda: rnn(torch.randn(1, 5, 2, 3)), ValueError, "RNN: expected input of 2 or 3 dimensions"),
        (
            lambda: gru(x, torch.zeros(1, 3, 4)),
            RuntimeError,
            "GRU: hx has shape (1, 3, 4), expected (layers, batch, hidden)",
        ),
        (
            lambda: gru(x[:, 0], torch.zeros(1, 2, 4)),
            RuntimeError,
            "(layers, hidden) for input without a batch = (1, 4)",
        ),
        (lambda: gru(x, (torch.zeros(1, 2, 4),)), TypeError, "GRU: hx must be a tensor or None, not tuple"),
        (lambda: lstm(x, torch.zeros(1, 5, 4)), TypeError, "LSTM: hx must be a pair of tensors (h, c) or None"),
        (lambda: lstm(x, (torch.zeros(1, 2, 4),) * 2), RuntimeError, "expected (layers, batch, hidden) = (1, 5, 4)"),
        (lambda: gru([x, x]), TypeError, "GRU: input must be a tensor (T, B, d), not [tensor("),
        (lambda: lstm(None), TypeError, "LSTM: input must be a tensor (T, B, d), not None"),
        (lambda: gru(x.double()), ValueError, "GRU: input is torch.float64, but the weights are torch.float32"),
        (lambda: gru(x, torch.zeros(1, 2, 4).double()), RuntimeError, "GRU: hx is torch.float64"),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind) as error:
            call()
        assert message in str(error.value) and "\n" not in str(error.value)


def test_empty_input_is_torch_s_affair():
    for kind, empty in product(PAIRS, [torch.zeros(0, 2, 3).double(), torch.zeros(3, 0, 3).double()]):
        ours, theirs = pair(kind, 3, 4)
        try:
            expected = theirs(empty)[0]
        except RuntimeError as error:
            with pytest.raises(RuntimeError, match=str(error)[:20]):
                ours(empty)
        else:
            assert ours(empty)[0].shape == expected.shape


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("make", [cg.RNN, cg.GRU, cg.LinearRNN])
def test_complex_weights_are_refused(make):
    with pytest.raises(ValueError, match="real numbers only.*complex64; use cg.DiagonalRNN"):
        make(2, 3).to(torch.complex64)(torch.randn(4, 2, 2, dtype=torch.complex64))
