"""One table of what every mode must keep to, under every truncation that it takes."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

import chronograd as cg
from chronograd.modes import parse
from chronograd.support import find, row_of
from forward_case import EDGES, RESET, B, Read, T, X, Y, build, gradient
from oracle import assert_close, assert_same_grads

MODES = {
    "reverse": cg.Reverse(),
    "budget": cg.Reverse("1MB"),
    "scan": cg.Scan(always=True),
    "rtrl": cg.RTRL(),
    "snap1": cg.SnAp(1),
    "snap2": cg.SnAp(2),
    "rflo": cg.RFLO(),
    "eprop": cg.EProp(),
    "eprop total": cg.EProp("total"),
    "uoro": cg.UORO(),
    "kfrtrl": cg.KFRTRL(),
    "pes": cg.PES(4, 0.1, unroll=4),
    "nres": cg.PES(4, 0.1, unroll=4, reuse_noise=True),
    "pes analytic": cg.PES(4, 0.1, analytic=True),
}
WALKING = [name for name, mode in MODES.items() if mode.online]
TRUNCATIONS = [
    cg.Full(),
    cg.Chunks(4),
    cg.Window(5, 2),
    cg.Window(2, 5),
    cg.RandomTruncation(3),
    cg.RandomTruncation(3, tail="polynomial"),
    cg.AdaptiveTruncation(0.3, window=6),
]
GATES = [truncation for truncation in TRUNCATIONS if truncation.primitive == "gates"]
MODEL = dict.fromkeys(MODES, "lstm") | {"kfrtrl": "tanh"}  # two layers, two numbers a unit


def same(ours, theirs, exactly=False):
    """What two carries hold of the past is the same."""
    for a, b in zip(*(torch.utils._pytree.tree_leaves(carry.mode) for carry in (ours, theirs)), strict=True):
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b) if exactly else torch.allclose(a, b, rtol=1e-10, atol=1e-14)
        else:
            assert a == b


def works(truncation, mode, kind="layers"):
    return bool(find(row_of(truncation), mode.row, kind))


@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=str)
@pytest.mark.parametrize("name", MODES)
def test_it_works_or_is_refused_with_the_remedy(name, truncation):
    model, mode = build(MODEL[name]), MODES[name]
    if not works(truncation, mode):
        with pytest.raises(ValueError, match="use "):
            gradient(model, mode, truncation=truncation, seed=1)
        return
    found, carry = gradient(model, mode, truncation=truncation, seed=1)
    exact, _ = gradient(model, cg.Reverse(), truncation=truncation, seed=1)
    assert {k: v.shape for k, v in found.grads.items()} == {k: v.shape for k, v in exact.grads.items()}
    assert_close(found.loss, exact.loss)
    assert carry.stream.position == T and found.weight == exact.weight
    if mode.exact or name == "snap2":  # which is RTRL on dense layers, and says so
        assert_same_grads(found.grads, exact.grads)
    elif not mode.unbiased:
        if mode.smoothed:
            return
        off = sum(float((found.grads[k] - exact.grads[k]).square().sum()) for k in exact.grads)
        assert off > 1e-6 * sum(float(grad.square().sum()) for grad in exact.grads.values())


@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize("name", WALKING)
def test_a_step_that_looks_back_on_nothing_is_exact(name, edges):
    model, mode = build(MODEL[name]), MODES[name]
    found, _ = gradient(model, mode, truncation=cg.Chunks(1), **EDGES[edges])
    exact, _ = gradient(model, cg.Reverse(), truncation=cg.Chunks(1), **EDGES[edges])
    if mode.smoothed:
        return
    assert_close(found.grads["readout.weight"], exact.grads["readout.weight"])
    if mode.random:
        return
    for key in ("weight_ih_l1", "weight_hh_l1", "bias_ih_l1", "bias_hh_l1"):  # of the last layer
        assert_close(found.grads[f"layer.{key}"], exact.grads[f"layer.{key}"])


@pytest.mark.parametrize("edges", ["plain", "all"])
@pytest.mark.parametrize("truncation", GATES, ids=str)
@pytest.mark.parametrize("name", WALKING)
def test_calls_equal_one_call_through_written_carries(name, truncation, edges):
    model, mode, options = build(MODEL[name]), MODES[name], EDGES[edges]
    if not works(truncation, mode):
        pytest.skip(f"{truncation} is refused")
    carry, total = cg.Carry.start(B, seed=3), None
    for begin, end in ((0, 1), (1, 2), (2, 6), (6, T)):
        part = {k: v[begin:end] for k, v in options.items() if k != "lengths"}
        if "lengths" in options:
            part["lengths"] = (options["lengths"] - begin).clamp(0, end - begin)
        found, carry = gradient(model, mode, X[begin:end], Y[begin:end], carry, truncation=truncation, **part)
        file = io.BytesIO()
        torch.save(carry.state_dict(), file)
        file.seek(0)
        carry = cg.Carry.from_state_dict(torch.load(file, weights_only=True))
        assert carry.open_steps == 0
        total = found if total is None else total + found
    whole, last = gradient(model, mode, carry=cg.Carry.start(B, seed=3), truncation=truncation, **options)
    assert_close(total.loss, whole.loss)
    assert_same_grads(total.grads, whole.grads)
    same(carry, last)


@pytest.mark.parametrize("name", WALKING)
def test_a_reset_forgets_and_a_frozen_row_keeps(name):
    model, mode = build(MODEL[name]), MODES[name]
    anew = torch.zeros(T, B, dtype=torch.bool)
    anew[6] = True
    both, _ = gradient(model, mode, carry=cg.Carry.start(B, seed=3), reset=anew)
    first, carry = gradient(model, mode, X[:6], Y[:6], cg.Carry.start(B, seed=3))
    start = cg.Carry.start(B, seed=3)
    second, _ = gradient(model, mode, X[6:], Y[6:], carry, reset=anew[6:])
    assert_same_grads(both.grads, (first + second).grads)
    if not mode.random:
        fresh, _ = gradient(model, mode, X[6:], Y[6:], start)
        assert_same_grads(second.grads, fresh.grads)
    still, after = gradient(model, mode, X[:3], Y[:3], carry, lengths=torch.zeros(B, dtype=torch.int64))
    assert still.weight == 0
    if mode.row != "evolution":  # particles of a frozen row go on meeting noise
        same(carry, after, exactly=True)


@pytest.mark.parametrize("name", WALKING)
def test_a_carry_is_not_changed(name):
    model, mode = build(MODEL[name]), MODES[name]
    _, carry = gradient(model, mode, X[:5], Y[:5], cg.Carry.start(B, seed=3))
    one, _ = gradient(model, mode, X[5:], Y[5:], carry)
    two, _ = gradient(model, mode, X[5:], Y[5:], carry)
    assert all(torch.equal(one.grads[k], two.grads[k]) for k in one.grads)


@pytest.mark.parametrize("name", MODES)
def test_its_text_is_read_back(name):
    mode = MODES[name]
    assert parse(mode.spec()) == mode and hash(mode) == hash(parse(str(mode)))
    assert isinstance(mode.exact, bool) and isinstance(mode.unbiased, bool) and isinstance(mode.online, bool)


def test_a_mode_that_needs_several_steps_at_once_is_not_online():
    mode = cg.PES(4, 0.1, unroll=2, analytic=True)
    assert not mode.online and cg.PES(4, 0.1, unroll=2).online
    model, carry = build("lstm"), cg.Carry.start(B, seed=3)
    _, carry = gradient(model, mode, X[:1], Y[:1], carry)
    with pytest.raises(ValueError, match="this call begins 1 steps into one; end calls at multiples of 2"):
        gradient(model, mode, X[1:2], Y[1:2], carry)


@pytest.mark.parametrize("name", WALKING)
def test_going_on_with_another_mode_is_refused(name):
    model, mode = build(MODEL[name]), MODES[name]
    _, carry = gradient(model, mode, X[:5], Y[:5], cg.Carry.start(B, seed=3))
    for other in (cg.Reverse(), cg.RTRL() if name != "rtrl" else cg.SnAp(1)):
        with pytest.raises(ValueError, match="carry.cut"):
            gradient(model, other, X[5:], Y[5:], carry)
    gradient(model, cg.Reverse(), X[5:], Y[5:], carry.cut())


@pytest.mark.parametrize("name", WALKING)
def test_streamed_inputs_are_read_as_they_are_needed(name):
    model, mode = build(MODEL[name]), MODES[name]
    found, _ = gradient(model, mode, cg.Streamed(X), cg.Streamed(Y), cg.Carry.start(B, seed=3), reset=RESET)
    whole, _ = gradient(model, mode, carry=cg.Carry.start(B, seed=3), reset=RESET)
    assert_same_grads(found.grads, whole.grads)


FROZEN = {
    "layer": lambda: Read(cg.GRU(2, 3), 3),
    "diagonal": lambda: Read(cg.DiagonalRNN(2, 3), 3),
    "cell": lambda: cg.Recurrent(nn.GRUCell(2, 3), nn.Linear(3, 2)),
}


@pytest.mark.parametrize("make", FROZEN)
@pytest.mark.parametrize("name", ["rtrl", "snap1", "snap2", "uoro", "pes"])
def test_a_frozen_recurrence_leaves_the_readout_to_plain_autograd(name, make):
    model = FROZEN[make]().double()
    for key, value in model.named_parameters():
        value.requires_grad_("readout" in key)
    carry, total, edges = None, None, {"reset": RESET}
    for begin, end in ((0, 2), (2, T)):
        options = {key: part[begin:end] for key, part in edges.items()}
        lengths = (EDGES["all"]["lengths"] - begin).clamp(0, end - begin)
        part, carry = gradient(model, MODES[name], X[begin:end], Y[begin:end], carry, lengths=lengths, **options)
        total = part if total is None else total + part
    exact, _ = gradient(model, cg.Reverse(), reset=RESET, lengths=EDGES["all"]["lengths"])
    assert total.grads.keys() == exact.grads.keys()
    if not MODES[name].smoothed:
        assert_same_grads(total.grads, exact.grads)
