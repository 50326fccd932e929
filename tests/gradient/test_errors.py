"""Bad arguments of the door: one clear line that names the thing and the remedy, and nothing changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import chronograd as cg
from oracle import Opaque, squared

X, Y = torch.zeros(6, 2, 2), torch.zeros(6, 2, 4)
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


def test_a_gradient_goes_only_to_a_model_of_its_shape():
    gradient, _ = call()
    with pytest.raises(
        ValueError, match=r"'weight_ih_l0', shape \(12, 2\), does not fit the model \(shape \(15, 2\)\)"
    ):
        gradient.assign(nn.GRU(2, 5))
    with pytest.raises(ValueError, match="no such parameter"):
        gradient.add_to(nn.Linear(2, 2))


def test_a_carry_of_another_version_is_refused():
    with pytest.raises(ValueError, match="schema 99 is not 1"):
        cg.Carry.from_state_dict({**started().state_dict(), "schema": 99})
    with pytest.raises(ValueError, match="must name 2 row ids"):
        started(2, rows=[1, 2, 3])


def test_a_failed_call_leaves_the_carry_usable():
    model = nn.GRU(2, 4)
    _, carry = cg.value_and_grad(model, squared, X, Y, truncation=cg.Chunks(4))
    with pytest.raises(ValueError, match="lengths"):
        cg.value_and_grad(model, squared, X, Y, carry, truncation=cg.Chunks(4), lengths=[9, 9])
    _, after = cg.value_and_grad(model, squared, X, Y, carry, truncation=cg.Chunks(4))
    assert (carry.stream.position, after.stream.position) == (6, 12)
