"""The public assertions pass on what is right and fail on what is wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import chronograd as cg
from chronograd.testing import assert_gradients_match, assert_resumable, assert_unbiased
from oracle import Deep, squared

X, Y = torch.randn(8, 2, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(8, 2, 3)


def test_matching_sees_a_wrong_entry_a_missing_name_a_nan_and_a_shape():
    model = nn.GRU(2, 3)
    gradient, _ = cg.value_and_grad(model, squared, X, Y)
    squared(model(X)[0], Y).mean().backward()
    autograd = {name: p.grad for name, p in model.named_parameters()}
    assert_gradients_match(gradient, autograd, 1e-5)
    wrong = {**autograd, "bias_hh_l0": autograd["bias_hh_l0"].clone()}
    wrong["bias_hh_l0"][4] += 1e-2
    with pytest.raises(AssertionError, match=r"'bias_hh_l0' is off by 0.01 at \[4\]"):
        assert_gradients_match(gradient, wrong, 1e-5)
    with pytest.raises(AssertionError, match="weight_hh_l0"):
        assert_gradients_match({k: v for k, v in autograd.items() if k != "weight_hh_l0"}, autograd)
    with pytest.raises(AssertionError, match="off by nan"):
        assert_gradients_match({"w": torch.tensor([torch.nan])}, {"w": torch.ones(1)})
    with pytest.raises(AssertionError, match="shape"):
        assert_gradients_match({"w": torch.ones(2)}, {"w": torch.ones(1)})


def test_unbiasedness_is_seen_and_bias_too():
    model = nn.GRU(2, 3)
    exact, _ = cg.value_and_grad(model, squared, X, Y)

    def draw(truncation):
        return lambda seed: cg.value_and_grad(model, squared, X, Y, truncation=truncation, seed=seed)[0]

    assert_unbiased(draw(cg.RandomTruncation(4)), exact, 60)
    with pytest.raises(AssertionError, match="standard errors where 4 are allowed"):
        assert_unbiased(draw(cg.Chunks(2)), exact, 2)
    with pytest.raises(ValueError, match="draws"):
        assert_unbiased(draw(cg.Full()), exact, 1)


@pytest.mark.filterwarnings("ignore:value_and_grad with Full")
@pytest.mark.parametrize(
    "truncation",
    [cg.Full(), cg.Chunks(3), cg.Window(2, 4), cg.RandomTruncation(3), cg.AdaptiveTruncation(0.5, window=4)],
    ids=str,
)
def test_every_truncation_resumes_bit_for_bit_with_dropout_too(truncation):
    model = Deep(cg.LSTM(3, 3, num_layers=2, dropout=0.5), nn.GRU(3, 3))
    assert_resumable(model, squared, X, torch.zeros(8, 2, 2), truncation=truncation, chunk=3)


def test_a_carry_that_forgets_is_seen(monkeypatch):
    forget = cg.Carry.state_dict
    monkeypatch.setattr(cg.Carry, "state_dict", lambda carry: forget(carry.cut()))
    with pytest.raises(AssertionError, match="after step"):
        assert_resumable(nn.GRU(2, 3), squared, X, Y, truncation=cg.Chunks(5), chunk=2)


@pytest.mark.parametrize("mode", [cg.RTRL(), cg.SnAp(1), cg.UORO(), cg.PES(2, 0.1, 3)], ids=str)
def test_streams_of_modes_that_walk_forward_are_resumable(mode):
    assert_resumable(cg.GRU(2, 2), squared, X, torch.zeros(8, 2, 2), mode=mode, chunk=3)
