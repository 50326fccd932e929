"""Models, data and streams that a walk within a budget of memory could easily get wrong."""

from __future__ import annotations

import pytest
import torch

import chronograd as cg
from chronograd.modes.budget import StepBytes
from chronograd.modes.peak import PeakBytes
from chronograd.modes.schedule import Plan, binomial_advances

MODE = cg.Reverse("1GB")


@pytest.fixture
def fours(monkeypatch):
    """Segments of four steps and two kept states, whatever a step takes."""

    def plan(self, steps, budget):
        return Plan(steps, min(4, steps), 2, 0 if steps <= 4 else 4 * binomial_advances(-(-steps // 4), 2), 0)

    monkeypatch.setattr(StepBytes, "plan", plan)


def loss_fn(outputs, targets):
    return (outputs - targets).square().mean(-1)


def data(steps, rows=2):
    random = torch.Generator().manual_seed(1)
    return (torch.randn(steps, rows, 2, dtype=torch.float64, generator=random) for _ in range(2))


def both(model, x, y, **asked):
    """The stored gradient, and that within a budget."""
    return [cg.value_and_grad(model, loss_fn, x, y, mode=mode, **asked)[0] for mode in (cg.Reverse(), MODE)]


def same(found, expected):
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)
    assert found.grads.keys() == expected.grads.keys()
    for name, theirs in expected.grads.items():
        torch.testing.assert_close(found.grads[name], theirs, rtol=0, atol=1e-12 * float(theirs.abs().max()))


class Loop(torch.nn.Module):
    """A GRU cell in a loop, and a readout that ``touch`` may change."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.readout = torch.nn.GRUCell(2, 3).double(), torch.nn.Linear(3, 2).double()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def touch(self):
        self.count.add_(1)

    def forward(self, x, h=None):
        outputs = []
        for step in x:
            h = self.cell(step, h)
            self.touch()
            outputs.append(self.readout(h) / self.count.item() ** 0.5)
        return torch.stack(outputs), h


class Assigned(Loop):
    def touch(self):
        self.count = self.count + 1


@pytest.mark.parametrize("kind", [Loop, Assigned])
def test_buffers_that_the_outputs_read(fours, kind):
    x, y = data(31)
    (stored, one), (within, two) = (
        (cg.value_and_grad(model, loss_fn, x, y, mode=mode)[0], model)
        for mode, model in ((cg.Reverse(), kind()), (MODE, kind()))
    )
    same(within, stored)
    assert one.count == two.count == 31


@pytest.mark.parametrize("real", [False, True])
def test_windows_draw_new_numbers_in_every_call(request, real):
    if not real:
        request.getfixturevalue("fours")
    drawn = []

    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.GRUCell(2, 3)

        def forward(self, x, h):
            noise = torch.rand(1, 3, dtype=x.dtype)
            drawn.append(float(noise[0, 0]))
            return self.inner(x, h) * (noise > 0.3)

    model, (x, y) = cg.Recurrent(Noisy(), torch.nn.Linear(3, 2)).double(), data(40)
    carry, before = None, set()
    for a, b in zip(x.split(10), y.split(10)):
        drawn.clear()
        _, carry = cg.value_and_grad(model, loss_fn, a, b, carry, truncation=cg.Window(3, 11), mode=MODE)
        assert not before & set(drawn)
        before |= set(drawn)


@pytest.mark.parametrize("real", [False, True])
def test_inputs_of_adaptive_windows(request, real):
    if not real:
        request.getfixturevalue("fours")
    torch.manual_seed(0)
    model, (x, y) = cg.GRU(2, 2).double(), data(40)
    truncation = cg.AdaptiveTruncation(0.1, window=20)
    stored, within = both(model, x, y, truncation=truncation, wrt_inputs=True)
    torch.testing.assert_close(within.inputs, stored.inputs, rtol=1e-10, atol=1e-14)


class Delay(torch.nn.Module):
    """The output is what went in six steps before: the first losses reach no parameter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = torch.nn.Linear(2, 2).double()

    def forward(self, x, state=None):
        state = [torch.zeros_like(x[0])] * 6 if state is None else state
        outputs = []
        for step in x:
            outputs.append(state[0])
            state = [*state[1:], torch.tanh(self.weight(step) + 0.5 * state[-1])]
        return torch.stack(outputs), state


def test_segments_whose_losses_reach_no_parameter(fours):
    stored, within = both(Delay(), *data(30))
    same(within, stored)


def test_losses_that_reach_no_parameter_at_all(fours):
    class Cut(Delay):
        def forward(self, x, state=None):
            outputs, state = super().forward(x, state)
            return outputs.detach(), state

    for mode in (cg.Reverse(), MODE):
        with pytest.raises(ValueError, match="the loss depends on no trainable parameter"):
            cg.value_and_grad(Cut(), loss_fn, *data(30), mode=mode)


class Ticking(torch.nn.Module):
    """A whole number in the state that counts calls, not steps."""

    def __init__(self, late):
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.calls, self.late = torch.nn.GRUCell(2, 3).double(), 0, late

    def forward(self, x, state=None):
        h, ticks = (None, torch.zeros(x.shape[1], dtype=torch.long)) if state is None else state
        outputs = []
        for step in x:
            h = self.cell(step, h)
            self.calls += 1
            ticks = ticks + (self.calls if self.calls > self.late else 1)
            outputs.append(h[:, :2] * (ticks[:, None] % 7))
        return torch.stack(outputs), (h, ticks)


@pytest.mark.parametrize(("late", "when"), [(0, "seen on the first one"), (60, "after step")])
def test_whole_numbers_that_do_not_come_again(fours, late, when):
    with pytest.raises(ValueError, match=rf"{when}.*use mode=cg.Reverse\(\)"):
        cg.value_and_grad(Ticking(late), loss_fn, *data(31), mode=MODE)


@pytest.mark.parametrize("size", [0.1, 0.001])
def test_private_noise_however_small_is_seen(size):
    class Private(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.random = torch.nn.GRUCell(2, 2).double(), torch.Generator().manual_seed(0)

        def forward(self, x, h):
            return self.cell(x, h) * (1 + size * torch.randn(2, dtype=x.dtype, generator=self.random))

    with pytest.raises(ValueError, match="the model gives other numbers when its steps are run again"):
        cg.value_and_grad(cg.Recurrent(Private()), loss_fn, *data(31), mode=MODE)


def test_inputs_and_targets_with_a_graph_are_refused():
    x, y = data(10)
    for given in ((x.requires_grad_() * 2, y), (x.detach(), 2 * y.requires_grad_())):
        with pytest.raises(ValueError, match="inputs or targets carry an autograd graph"):
            cg.value_and_grad(cg.GRU(2, 2).double(), loss_fn, *given, mode=MODE)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("truncation", [cg.Full(), cg.Window(100, 1000)])
def test_what_is_not_finite_early_is_named(truncation, streamed):
    x, y = data(3000)
    x[700, 1, 0] = torch.nan
    with pytest.raises(ValueError, match=r"inputs hold NaN or infinity at step 700 of this call, row 1"):
        cg.value_and_grad(
            cg.GRU(2, 2).double(),
            loss_fn,
            cg.Streamed(x) if streamed else x,
            y,
            truncation=truncation,
            mode=cg.Reverse("300KB"),
        )


@pytest.mark.parametrize("truncation", [cg.Window(3, 11), cg.Window(1, 4), cg.AdaptiveTruncation(0.1, window=10)])
def test_windows_that_fit_over_streamed_targets(truncation):
    torch.manual_seed(0)
    model, (x, y) = cg.GRU(2, 2).double(), data(40)
    expected, _ = cg.value_and_grad(model, loss_fn, x, y, truncation=truncation)
    found, _ = cg.value_and_grad(model, loss_fn, cg.Streamed(x), cg.Streamed(y), truncation=truncation, mode=MODE)
    same(found, expected)


def test_a_carry_over_streamed_steps_says_what_to_write():
    model, (x, y) = cg.GRU(2, 2).double(), data(10)
    _, carry = cg.value_and_grad(model, loss_fn, cg.Streamed(x), y, mode=MODE)
    with pytest.raises(TypeError, match=r"segment.pieces.inputs is a stream, .* carry.cut\(\).state_dict\(\)"):
        carry.state_dict()
    assert cg.Carry.from_state_dict(carry.cut().state_dict()).stream.position == 10


def test_measuring_keeps_to_the_budget():
    """Large weights and few rows want many steps to be told apart from a step's share."""
    model, x = cg.GRU(16, 128), torch.randn(4000, 1, 16)
    with PeakBytes() as count:
        cg.value_and_grad(
            model, lambda o, y: o.square().mean(-1), x, None, truncation=cg.Chunks(35), mode=cg.Reverse("3MB")
        )
    assert count.peak <= 3_000_000 + 16 * len(x)


def test_large_buffers_are_not_copied_for_every_segment(fours):
    class Table(Loop):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.zeros(300_000, dtype=torch.float64))

    model, copies = Table(), []
    with PeakBytes() as count:
        watch = count._watch
        count._watch = lambda storage: (copies.append(storage.nbytes()), watch(storage))[1]
        cg.value_and_grad(model, loss_fn, *data(200), mode=MODE)
    assert sum(size >= model.table.nbytes for size in copies) <= 10
