"""What a model and a loss must keep to: each breach in one line, and nothing said where there is none."""

from __future__ import annotations

from collections import namedtuple
from functools import partial

import pytest
import torch
from torch import nn

import chronograd as cg
from chronograd.recurrence.adapters import adapt
from chronograd.recurrence.contract import (
    NODES,
    WatchedLoss,
    check_call,
    check_pair,
    describe,
    explain_failure,
    shown,
)
from oracle import Deep, Delayed, Opaque, squared

X = torch.randn(5, 2, 2, generator=torch.Generator().manual_seed(0))
H = torch.zeros(1, 2, 4)


def one_line(caught, message):
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_values_in_words():
    tree = {"h": torch.zeros(2, 3), "c": [torch.zeros(1, dtype=torch.int64), None], "n": (3, "a"), "one": (H,)}
    expected = "{h: float32 (2, 3), c: (int64 (1,), None), n: (int, str), one: (float32 (1, 2, 4),)}"
    assert describe(tree) == expected
    assert shown(torch.randn(50, 50)) == "float32 (50, 50)" and shown(None) == "None"
    assert len(shown("a" * 500)) == 80 and "\n" not in shown([torch.randn(9, 9)])


@pytest.mark.parametrize(
    ("made", "what"),
    [
        (torch.zeros(2, 3), "a Tensor"),
        ((H, H, H), "3 values"),
        ((H,), "one value"),
        ([], "0 values"),
        (None, "a NoneType"),
        ({"outputs": H, "state": H}, "a dict"),
    ],
)
def test_a_model_returns_a_pair(made, what):
    with pytest.raises(TypeError) as caught:
        check_pair(made)
    one_line(caught, f"the model returned {what}; return a pair (outputs, state)")


def test_pairs_of_any_kind():
    for made in ((X, H), [X, H], namedtuple("Pair", "outputs state")(X, H), (X, None)):
        outputs, state = check_pair(made)
        assert outputs is X and state is made[1]


def test_models_that_take_no_state():
    for model in (nn.Linear(2, 3), nn.Sequential(nn.GRU(2, 3))):
        with pytest.raises(TypeError) as caught:
            check_call(model, X)
        one_line(caught, f"{type(model).__name__} cannot be called with (inputs, state): a model takes both")
    for model in (nn.GRU(2, 3), nn.LSTM(2, 3)):
        with pytest.raises(TypeError) as caught:
            check_call(model, [X, X])
        one_line(caught, f"{type(model).__name__} takes one tensor of inputs (T, B, d), not a list")


def test_models_that_can_be_called():
    class Rest(nn.Module):
        def forward(self, *args, **options):
            return args

    class Defaults(nn.Module):
        def forward(self, x, state=None, *, scale=1.0):
            return x, state

    class Silent(nn.Module):
        forward = staticmethod(max)  # a builtin whose signature nobody tells

    torchs, ours = (nn.GRU(2, 3), nn.LSTMCell(2, 3)), (cg.LSTM(2, 3), cg.LinearRNN(2, 3))
    for model in (*torchs, *ours, Opaque(), Rest(), Defaults(), Silent()):
        check_call(model, X)
    for model in (Opaque(), cg.Recurrent(nn.GRUCell(2, 3))):
        check_call(model, {"a": X})


FOREIGN = [
    (lambda: nn.LSTM(2, 4), H, "is float32 (1, 2, 4), but LSTM makes (float32 (1, 2, 4), float32 (1, 2, 4))"),
    (lambda: cg.LSTM(2, 4), H, "but LSTM makes (float32 (1, 2, 4), float32 (1, 2, 4))"),
    (lambda: nn.GRU(2, 4), (H, H), "is (float32 (1, 2, 4), float32 (1, 2, 4)), but GRU makes float32 (1, 2, 4)"),
    (lambda: nn.GRU(2, 5), H, "is float32 (1, 2, 4), but GRU makes float32 (1, 2, 5)"),
    (lambda: nn.GRU(2, 4, 2), H, "but GRU makes float32 (2, 2, 4)"),
    (lambda: nn.GRU(2, 4), H.double(), "is float64 (1, 2, 4), but GRU makes float32 (1, 2, 4)"),
    (lambda: nn.GRUCell(2, 4), H, "but GRUCell makes float32 (2, 4)"),
    (lambda: nn.GRU(2, 4, batch_first=True), H[:, :1], "is float32 (1, 1, 4), but GRU makes float32 (1, 2, 4)"),
    (lambda: Opaque(2, 3), H, "but Opaque makes {h: float32 (2, 3), c: (float32 (3, 2),)}"),
    (lambda: Deep(cg.LSTM(3, 3), nn.GRU(3, 3)), H, "but Deep makes ((float32 (1, 2, 3), float32 (1, 2, 3)), float32"),
]


@pytest.mark.parametrize(("make", "state", "message"), FOREIGN)
def test_the_state_of_another_model(make, state, message):
    model = make()
    call = adapt(model, X).call
    before, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    with pytest.raises(ValueError) as caught, explain_failure(model, call, X, state):
        call(X, state)
    one_line(caught, "the carry's state " + (message if message.startswith("is") else ""))
    one_line(caught, message)
    assert caught.value.__cause__ is not None
    assert torch.equal(torch.get_rng_state(), before) and [module.training for module in model.modules()] == modes


class Growing(nn.Module):
    """A state that holds all steps so far."""

    def forward(self, x, state=None):
        state = x if state is None else torch.cat((state, x))
        return state[-x.shape[0] :], state


def test_other_faults_pass_through():
    def fault():
        raise KeyError("theirs")

    h = torch.zeros(1, 2, 3)
    for model, state in ((nn.GRU(2, 3), h), (nn.GRU(2, 3), None), (Growing(), X), (Delayed(), h), (nn.Linear(2, 2), H)):
        with pytest.raises(KeyError, match="theirs"), explain_failure(model, model, X, state):
            fault()


def test_nothing_runs_where_nothing_fails():
    model = Opaque()
    model.register_forward_hook(lambda *_: pytest.fail("the model was run"))
    with explain_failure(model, model, X, H):
        pass


class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(4, 1)

    def forward(self, outputs, targets):
        return self.scale(outputs).squeeze(-1).square()


class Callable:
    def __init__(self):
        self.inner = Weighted()

    def __call__(self, outputs, targets):
        return self.inner(outputs, targets)

    def method(self, outputs, targets):
        return self.inner(outputs, targets)


def by_closure():
    head, table = nn.Linear(4, 1), torch.ones(4, requires_grad=True)
    return [
        (lambda o, t: head(o).squeeze(-1), "head.weight"),
        (lambda o, t: (o * table).sum(-1), "table"),
    ]


CHOSEN = nn.Parameter(torch.ones(4))


FOREIGN_LOSSES = [
    (Weighted(), "loss_fn.scale.weight"),
    (partial(Weighted(), targets=None), "loss_fn.scale.weight"),
    (Callable(), "loss_fn.inner.scale.weight"),
    (Callable().method, "loss_fn.inner.scale.weight"),
    (lambda o, t: (o * CHOSEN).sum(-1), "CHOSEN"),
    (partial(lambda scale, o, t: (o * scale).sum(-1), CHOSEN), "loss_fn[0]"),
    (lambda o, t: (o * nn.Parameter(torch.ones(4))).sum(-1), "a tensor"),
    *by_closure(),
]


def watch(loss_fn, parameters, outputs, targets):
    if isinstance(loss_fn, partial) and "targets" in loss_fn.keywords:
        return WatchedLoss(lambda o, t: loss_fn(o), parameters)(outputs, targets)
    return WatchedLoss(loss_fn, parameters)(outputs, targets)


@pytest.mark.parametrize(("loss_fn", "name"), FOREIGN_LOSSES)
def test_a_loss_with_parameters_of_its_own(loss_fn, name):
    model = nn.GRU(2, 4)
    outputs = model(X)[0]
    with pytest.raises(ValueError) as caught:
        watch(loss_fn, list(model.parameters()), outputs, None)
    one_line(caught, f"the loss depends on {name}, a trainable parameter (")
    one_line(caught, "outside the model, whose gradient would be lost; register its module inside the model, or freeze")


def test_losses_that_are_the_models_own_affair():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.GRU(2, 4), nn.Linear(4, 3)

        def forward(self, x, state=None):
            return self.rnn(x, state)

    model, teacher, frozen = Both(), nn.Linear(2, 3), nn.Linear(3, 3).requires_grad_(False)
    targets = teacher(X)  # with a graph of its own: it is data

    def loss_fn(outputs, given):
        return squared(frozen(model.head(outputs)), given) + model.rnn.weight_hh_l0.square().mean()

    watched = WatchedLoss(loss_fn, [p for p in model.parameters() if p.requires_grad])
    for _ in range(2):
        outputs = model(X)[0]
        found, expected = watched(outputs, targets), loss_fn(outputs, targets)
        assert torch.equal(found, expected) and found.requires_grad
    leaf = X.clone().requires_grad_()
    for outputs in (leaf, leaf * 2, X):
        assert torch.equal(WatchedLoss(squared, [])(outputs, X), squared(outputs, X))
    assert WatchedLoss(lambda o, t: "no tensor", [])(X, X) == "no tensor"


def test_a_loss_that_writes_into_the_outputs():
    model = nn.GRU(2, 4)
    made = model(X)[0] * 1
    loss = WatchedLoss(lambda o, t: o.sub_(t).square().mean(-1), [])(made, torch.zeros(5, 2, 4))
    assert loss.shape == (5, 2)


def test_looking_at_a_loss_ends_at_the_outputs_and_is_bounded():
    """Not one node of the model is looked at; and what a loss reaches behind the outputs' back ends after NODES."""
    model = Opaque()
    outputs = model(X)[0]
    WatchedLoss(squared, [])(outputs, torch.zeros(5, 2, 2))  # its parameters are not known, and not found
    far = nn.Parameter(torch.ones(()))
    for steps, found in ((NODES // 2, True), (2 * NODES, False)):
        value = far
        for _ in range(steps):
            value = value * 1.0
        watched = WatchedLoss(lambda o, t, value=value: squared(o, t) * value, [])
        if found:
            with pytest.raises(ValueError, match="outside the model"):
                watched(X, torch.zeros(5, 2, 2))
        else:
            watched(X, torch.zeros(5, 2, 2))


def test_only_the_first_loss_is_looked_at():
    loose = nn.Parameter(torch.ones(()))
    on = []
    watched = WatchedLoss(lambda o, t: squared(o, t) * (loose if on else 1.0), [])
    watched(X.clone().requires_grad_() * 1, X)
    on.append(True)
    watched(X.clone().requires_grad_() * 1, X)


def test_losses_are_real():
    with pytest.raises(ValueError) as caught:
        WatchedLoss(lambda o, t: torch.fft.fft(o).sum(-1), [])(X, X)
    one_line(caught, "loss_fn returned complex64 numbers, but a loss is real; take their .abs() or .real")
