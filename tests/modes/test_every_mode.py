"""One table of what every mode must keep to, under every truncation that it takes."""

from __future__ import annotations

import io

import pytest
import torch

import chronograd as cg
from chronograd.modes import parse
from chronograd.support import find, row_of
from forward_case import EDGES, RESET, B, T, X, Y, build, gradient
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
MODEL = "lstm"  # two layers, two numbers a unit


def works(truncation, mode, kind="layers"):
    return bool(find(row_of(truncation), mode.row, kind))


@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=str)
@pytest.mark.parametrize("name", MODES)
def test_it_works_or_is_refused_with_the_remedy(name, truncation):
    model, mode = build(MODEL), MODES[name]
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
        off = sum(float((found.grads[k] - exact.grads[k]).square().sum()) for k in exact.grads)
        assert off > 1e-6 * sum(float(grad.square().sum()) for grad in exact.grads.values())


@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize("name", WALKING)
def test_a_step_that_looks_back_on_nothing_is_exact(name, edges):
    model, mode = build(MODEL), MODES[name]
    found, _ = gradient(model, mode, truncation=cg.Chunks(1), **EDGES[edges])
    exact, _ = gradient(model, cg.Reverse(), truncation=cg.Chunks(1), **EDGES[edges])
    if mode.random:
        return
    assert_close(found.grads["readout.weight"], exact.grads["readout.weight"])
    for key in ("weight_ih_l1", "weight_hh_l1", "bias_ih_l1", "bias_hh_l1"):
        assert_close(found.grads[f"layer.{key}"], exact.grads[f"layer.{key}"])


@pytest.mark.parametrize("edges", ["plain", "all"])
@pytest.mark.parametrize("truncation", GATES, ids=str)
@pytest.mark.parametrize("name", WALKING)
def test_calls_equal_one_call_through_written_carries(name, truncation, edges):
    model, mode, options = build(MODEL), MODES[name], EDGES[edges]
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
    for a, b in zip(*(torch.utils._pytree.tree_leaves(c.mode) for c in (carry, last)), strict=True):
        assert a == b if isinstance(a, str) else torch.allclose(a, b, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", WALKING)
def test_a_reset_forgets_and_a_frozen_row_keeps(name):
    model, mode = build(MODEL), MODES[name]
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
    for a, b in zip(*(torch.utils._pytree.tree_leaves(c.mode) for c in (carry, after)), strict=True):
        assert a == b if isinstance(a, str) else torch.equal(a, b)


@pytest.mark.parametrize("name", WALKING)
def test_a_carry_is_not_changed(name):
    model, mode = build(MODEL), MODES[name]
    _, carry = gradient(model, mode, X[:5], Y[:5], cg.Carry.start(B, seed=3))
    one, _ = gradient(model, mode, X[5:], Y[5:], carry)
    two, _ = gradient(model, mode, X[5:], Y[5:], carry)
    assert all(torch.equal(one.grads[k], two.grads[k]) for k in one.grads)


@pytest.mark.parametrize("name", MODES)
def test_its_text_is_read_back(name):
    mode = MODES[name]
    assert parse(mode.spec()) == mode and hash(mode) == hash(parse(str(mode)))
    assert isinstance(mode.exact, bool) and isinstance(mode.unbiased, bool) and isinstance(mode.online, bool)


@pytest.mark.parametrize("name", WALKING)
def test_going_on_with_another_mode_is_refused(name):
    model, mode = build(MODEL), MODES[name]
    _, carry = gradient(model, mode, X[:5], Y[:5], cg.Carry.start(B, seed=3))
    for other in (cg.Reverse(), cg.RTRL() if name != "rtrl" else cg.SnAp(1)):
        with pytest.raises(ValueError, match="carry.cut"):
            gradient(model, other, X[5:], Y[5:], carry)
    gradient(model, cg.Reverse(), X[5:], Y[5:], carry.cut())


@pytest.mark.parametrize("name", WALKING)
def test_streamed_inputs_are_read_as_they_are_needed(name):
    model, mode = build(MODEL), MODES[name]
    found, _ = gradient(model, mode, cg.Streamed(X), cg.Streamed(Y), cg.Carry.start(B, seed=3), reset=RESET)
    whole, _ = gradient(model, mode, carry=cg.Carry.start(B, seed=3), reset=RESET)
    assert_same_grads(found.grads, whole.grads)
