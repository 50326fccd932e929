"""Bad arguments of the door: one clear line that names the thing and the remedy, and nothing changed."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import chronograd as cg
from oracle import Opaque, squared

X, Y = torch.zeros(6, 2, 2), torch.zeros(6, 2, 4)
Pair = namedtuple("Pair", "h c")
NAN = X.clone()
NAN[3, 1, 0] = torch.nan


def call(**changes):
    first = {"model": nn.GRU(2, 4), "loss_fn": squared, "inputs": X, "targets": Y}
    given = [changes.pop(name, usual) for name, usual in first.items()]
    return cg.value_and_grad(*given, **changes)


def started(batch=2, **options):
    return cg.Carry.start(batch, **options)


BAD = [
    ({"model": lambda x, s: (x, s)}, "model must be a Module such as torch.nn.GRU"),
    ({"inputs": [[1.0]]}, r"inputs must be a tensor \(T, B, ...\)"),
    ({"inputs": torch.zeros(6)}, r"inputs have shape \(6,\), expected \(T, B, ...\): time first"),
    ({"inputs": torch.zeros(0, 2, 2)}, "at least one step and one row"),
    ({"inputs": (X, torch.zeros(5, 2, 2))}, r"\(5, 2, 2\), expected .* as the first"),
    ({"targets": torch.zeros(5, 2, 4)}, r"targets have shape \(5, 2, 4\), expected as of inputs .* \(6, 2, ...\)"),
    ({"targets": Y.numpy()}, "targets must be tensors .*; they hold a ndarray: torch.as_tensor makes a tensor"),
    ({"targets": Y.tolist()}, "targets must be tensors .*; they hold a float"),
    ({"targets": (Y, 0.5)}, "targets must be tensors .*; they hold a float: .* constants belong into loss_fn"),
    ({"targets": {"y": Y, "z": "text"}}, "targets must be tensors .*; they hold a str"),
    ({"inputs": (X, X.numpy())}, "inputs hold a ndarray; make them of tensors"),
    ({"inputs": X.numpy()}, r"inputs must be a tensor \(T, B, ...\) or a nesting of them, not ndarray"),
    ({"inputs": pack_padded_sequence(X, [6, 5])}, "inputs hold a PackedSequence.*pad_packed_sequence.*lengths="),
    ({"loss_fn": None}, "loss_fn must be callable"),
    ({"loss_fn": nn.MSELoss()}, 'returned one number.*reduction="none"'),
    ({"loss_fn": nn.MSELoss(reduction="none")}, r"returned shape \(6, 2, 4\), expected \(T, B\) = \(6, 2\)"),
    ({"loss_fn": lambda o, t: 1.0}, "loss_fn must return a tensor"),
    ({"truncation": 35}, r"truncation must be a Truncation such as cg.Chunks\(35\), not 35"),
    ({"truncation": "chunks:35"}, "truncation must be a Truncation"),
    ({"truncation": cg.Chunks}, "truncation must be a Truncation"),
    ({"mode": "reverse"}, r"mode must be a Mode such as cg.Reverse\(\)"),
    ({"lengths": [7, 2]}, r"lengths says 7 for row 0, but the inputs have 6 steps"),
    ({"lengths": [-1, 2]}, "lengths says -1 for row 0"),
    ({"lengths": [2]}, r"lengths must be whole numbers of shape \(B,\) = \(2,\)"),
    ({"lengths": [2.5, 1.0]}, "lengths must be whole numbers"),
    ({"lengths": "ab"}, r"lengths must be whole numbers of shape \(B,\) = \(2,\), not 'ab'"),
    ({"lengths": [[1, 2], [3]]}, r"lengths must be whole numbers of shape \(B,\) = \(2,\), not \[\[1, 2\], \[3\]\]"),
    ({"lengths": [1, None]}, "lengths must be whole numbers"),
    ({"lengths": 6}, r"lengths must be whole numbers of shape \(B,\) = \(2,\), not int64 \(\)"),
    ({"lengths": torch.ones(2) * 1j}, "lengths must be whole numbers"),
    ({"lengths": [True, False]}, "lengths must be whole numbers"),
    ({"reset": torch.zeros(6, 2)}, "reset must be a bool tensor"),
    ({"reset": torch.zeros(5, 2, dtype=torch.bool)}, r"reset must be a bool tensor of shape \(T, B\) = \(6, 2\)"),
    (
        {"reset": torch.eye(6)[:, 4:].bool(), "lengths": [6, 5]},
        "reset marks step 5 of row 1, .* beyond that row's length",
    ),
    ({"weights": torch.ones(6)}, r"weights must be a real tensor of shape \(T, B\) = \(6, 2\)"),
    ({"weights": torch.ones(6, 2) * 1j}, "weights must be a real tensor"),
    ({"loss_fn": lambda o, t: squared(o, t).detach()}, "the loss depends on no trainable parameter"),
    ({"weights": -torch.ones(6, 2)}, "weights must be finite and not negative; that of step 0, row 0 is -1"),
    ({"weights": torch.full((6, 2), torch.inf)}, "weights must be finite"),
    ({"carry": torch.zeros(1, 2, 4)}, r"carry must be what an earlier call returned.*cg.Carry.start\(batch, state="),
    ({"carry": started(3)}, "the carry has 3 rows, but inputs .* have 2"),
    ({"carry": started(), "seed": 1}, "seed is for a new carry"),
    ({"seed": "a"}, "seed must be a whole number or None, not 'a'"),
    ({"seed": 1.5}, "seed must be a whole number or None, not 1.5"),
    ({"seed": True}, "seed must be a whole number or None, not True"),
    ({"seed": torch.zeros(40, 3)}, r"seed must be a whole number or None, not float32 \(40, 3\)"),
    (
        {"carry": started(state=nn.Parameter(torch.ones(1, 2, 4)) * 1)},
        r"initial state carries an autograd graph.*wrt_inputs",
    ),
    ({"inputs": NAN}, "inputs hold NaN or infinity at step 3 of this call, row 1"),
    ({"targets": torch.full((6, 2, 4), torch.nan)}, "targets hold NaN or infinity at step 0"),
    ({"model": Opaque(), "inputs": torch.zeros(6, 2, 2), "targets": torch.zeros(6, 2, 3)}, "size of tensor"),
]


@pytest.mark.parametrize(("changes", "message"), BAD[:-1])
def test_one_clear_line(changes, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        call(**changes)
    assert "\n" not in str(caught.value)


class Three(Opaque):
    def forward(self, x, state=None):
        return (*super().forward(x, state), 0)


class Alone(Opaque):
    """Its two steps of outputs would be taken for a pair."""

    def forward(self, x, state=None):
        return super().forward(x, state)[0]


class Own(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, outputs, targets):
        return (self.scale * (outputs - targets)).square().mean(-1)


GRU, LSTM, HAND = nn.GRU(2, 4), nn.LSTM(2, 4), Opaque()
OF_THE_GRU = cg.value_and_grad(GRU, squared, X, Y, truncation=cg.Chunks(4))[1]
TRUNCATIONS = [cg.Full(), cg.Chunks(4), cg.Window(2, 4), cg.RandomTruncation(3), cg.AdaptiveTruncation(0.1, 4)]
CONTRACT = [
    ({"model": nn.Linear(2, 4)}, r"Linear cannot be called with \(inputs, state\): a model takes both and returns"),
    ({"model": nn.Sequential(nn.GRU(2, 4))}, r"Sequential cannot be called with \(inputs, state\)"),
    ({"inputs": [X, X]}, r"GRU takes one tensor of inputs \(T, B, d\), not a list; torch.stack makes one"),
    ({"model": Three(), "targets": X}, r"the model returned 3 values; return a pair \(outputs, state\)"),
    ({"model": Alone(), "inputs": X[:2], "targets": X[:2]}, "the model returned a Tensor; return a pair"),
    ({"model": LSTM, "carry": OF_THE_GRU}, r"the carry's state is float32 \(1, 2, 4\), but LSTM makes \(float32"),
    (
        {"model": HAND, "carry": OF_THE_GRU, "targets": X},
        r"float32 \(1, 2, 4\), but Opaque makes \{h: float32 \(2, 3\)",
    ),
    ({"carry": started(state=torch.zeros(2, 4))}, r"is float32 \(2, 4\), but GRU makes float32 \(1, 2, 4\)"),
    ({"carry": started(state=torch.zeros(1, 2, 5))}, r"is float32 \(1, 2, 5\), but GRU makes float32 \(1, 2, 4\)"),
    ({"loss_fn": Own()}, r"the loss depends on loss_fn.scale, a trainable parameter \(4,\) outside the model"),
    ({"loss_fn": lambda o, t: torch.fft.fft(o).sum(-1)}, "loss_fn returned complex64 numbers, but a loss is real"),
]


@pytest.mark.filterwarnings("ignore:value_and_grad with Full")
@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=str)
@pytest.mark.parametrize(("changes", "message"), CONTRACT)
def test_a_model_and_a_loss_keep_to_their_contract(changes, message, truncation):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        call(**changes, truncation=truncation)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("changes", "message"), [case for case in CONTRACT if "loss_fn" not in case[0]])
def test_unroll_says_the_same(changes, message):
    given = {"model": GRU, "inputs": X, **changes}
    given.pop("targets", None)
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        cg.unroll(**given, truncation=cg.Chunks(4))
    assert "\n" not in str(caught.value)


def test_a_fault_in_the_users_own_loss_is_theirs_and_passes_through():
    changes, message = BAD[-1]
    with pytest.raises(RuntimeError, match=message):
        call(**changes)


def test_nan_that_comes_from_the_model_is_no_fault_of_the_data():
    model = nn.GRU(2, 4)
    with torch.no_grad():
        model.weight_hh_l0.fill_(torch.inf)
    gradient, _ = call(model=model, inputs=torch.ones(6, 2, 2))
    assert not torch.isfinite(gradient.loss)


def test_only_gradients_are_added():
    gradient, _ = call(inputs=X + 1)
    total = sum([gradient, gradient])
    assert total.weight == 2 * gradient.weight
    torch.testing.assert_close(total.loss, gradient.loss)
    torch.testing.assert_close(total.grads, gradient.grads)
    for add in (lambda: gradient + 3, lambda: 3 + gradient, lambda: "a" + gradient, lambda: sum([gradient], 1)):
        with pytest.raises(TypeError):
            add()


def test_a_gradient_goes_only_to_a_model_of_its_shape():
    gradient, _ = call()
    with pytest.raises(
        ValueError, match=r"'weight_ih_l0', shape \(12, 2\), does not fit the model \(shape \(15, 2\)\)"
    ):
        gradient.assign(nn.GRU(2, 5))
    with pytest.raises(ValueError, match="no such parameter"):
        gradient.add_to(nn.Linear(2, 2))


def test_a_loss_that_looks_at_no_targets_is_given_none():
    for nothing in (None, (None, {"y": None})):
        gradient, _ = cg.value_and_grad(nn.GRU(2, 4), lambda o, t: o.square().mean(-1), X + 1, nothing)
        assert gradient.norm() > 0


@dataclass
class Box:
    h: torch.Tensor


STATE = started(state=torch.zeros(1, 2, 4)).state_dict()
NO_STREAM = {name: value for name, value in STATE.items() if name != "stream"}
NO_SEED = {**STATE, "stream": {name: value for name, value in STATE["stream"].items() if name != "seed"}}
CARRIES = [
    (lambda: started(0), "Carry.start: batch must be at least 1, not 0"),
    (lambda: started(-1), "Carry.start: batch must be at least 1, not -1"),
    (lambda: started(2.5), "Carry.start: batch must be a whole number of rows, not 2.5"),
    (lambda: started(True), "Carry.start: batch must be a whole number of rows, not True"),
    (lambda: started(None), "Carry.start: batch must be a whole number of rows, not None"),
    (lambda: started(X), r"Carry.start: batch must be a whole number of rows, not float32 \(6, 2, 2\)"),
    (lambda: started(2, rows=[1, 2, 3]), "must name 2 row ids, one for each row, not 3"),
    (lambda: started(2, rows=[1, 1]), "rows name 1 more than once; .* give each row its own id"),
    (lambda: started(2, rows=[3, -1]), "rows must not be negative; row 1 is -1"),
    (lambda: started(2, rows=[0.5, 1.0]), "rows must be whole numbers, not float32"),
    (lambda: started(2, rows="ab"), "rows must be whole numbers, one for each row, not 'ab'"),
    (lambda: started(2, rows=[[0], [1, 2]]), "rows must be whole numbers"),
    (lambda: started(seed="a"), "seed must be a whole number or None, not 'a'"),
    (lambda: started(seed=1.5), "seed must be a whole number or None"),
    (lambda: started(state=Box(X)), "the state given to Carry.start holds a Box; make it of tuples, lists and dicts"),
    (lambda: started(state={"h": X.numpy()}), "the state given to Carry.start holds a ndarray"),
    (lambda: started(state=Pair(X, X)).state_dict(), "state_dict: stream.state holds a Pair, .* plain tuples, lists"),
    (lambda: cg.Carry.from_state_dict(None), r"give what carry.state_dict\(\) returned, not None"),
    (lambda: cg.Carry.from_state_dict([1]), r"give what carry.state_dict\(\) returned, not \[1\]"),
    (lambda: cg.Carry.from_state_dict({}), r"there is no 'schema' among its keys \[\], so no carry wrote it"),
    (lambda: cg.Carry.from_state_dict({**STATE, "schema": 99}), "schema 99 is not 1: another version wrote it"),
    (lambda: cg.Carry.from_state_dict({"schema": 1}), "the carry lacks stream, segment, truncation, mode"),
    (lambda: cg.Carry.from_state_dict(NO_STREAM), "the carry lacks stream; give what .* returned, unchanged"),
    (lambda: cg.Carry.from_state_dict(NO_SEED), "stream lacks seed"),
    (lambda: cg.Carry.from_state_dict({**STATE, "more": {}}), "the carry has unknown more"),
    (lambda: cg.Carry.from_state_dict({**STATE, "stream": None}), "stream must be a dict, not None"),
    (lambda: cg.Carry.from_state_dict({**STATE, "segment": {}}), "segment lacks start, state, pieces"),
]


@pytest.mark.parametrize(("make", "message"), CARRIES)
def test_a_carry_that_cannot_go_on_is_refused_in_one_line(make, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_whole_numbers_of_other_kinds_are_taken():
    carry = started(np.int64(2), seed=torch.tensor(7), rows=np.array([5, 3]))
    assert (carry.stream.rows.tolist(), carry.stream.seed) == ([5, 3], 7)
    assert type(carry.stream.seed) is int
    assert started(2, rows=(0, 9)).stream.rows.tolist() == [0, 9]


def test_a_failed_call_leaves_the_carry_usable():
    model = nn.GRU(2, 4)
    _, carry = cg.value_and_grad(model, squared, X, Y, truncation=cg.Chunks(4))
    with pytest.raises(ValueError, match="lengths"):
        cg.value_and_grad(model, squared, X, Y, carry, truncation=cg.Chunks(4), lengths=[9, 9])
    _, after = cg.value_and_grad(model, squared, X, Y, carry, truncation=cg.Chunks(4))
    assert (carry.stream.position, after.stream.position) == (6, 12)
