"""``Reverse(memory=...)``: the stored computation's gradient, within the bytes that it was given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import chronograd as cg
from chronograd.modes import parse
from chronograd.modes.budget import StepBytes, parse_bytes, show_bytes
from chronograd.modes.course import Course
from chronograd.modes.losses import Losses
from chronograd.modes.peak import PeakBytes
from chronograd.modes.recompute import Walk
from chronograd.modes.schedule import Plan, binomial_advances, internal
from chronograd.modes.tally import Tally
from chronograd.recurrence.adapters import adapt
from chronograd.stretch import lay_stretch

LAYERS = {
    "gru": lambda: cg.GRU(2, 3),
    "lstm": lambda: cg.LSTM(2, 3, num_layers=2),
    "tanh": lambda: cg.RNN(2, 3),
    "complex": lambda: cg.DiagonalRNN(2, 3, complex=True),
    "torch": lambda: torch.nn.LSTM(2, 3),
    "cell": lambda: cg.Recurrent(torch.nn.GRUCell(2, 3)),
}


class Model(torch.nn.Module):
    """A layer and a readout; real outputs."""

    def __init__(self, name):
        super().__init__()
        self.layer, self.readout = LAYERS[name](), torch.nn.Linear(3, 2)

    def forward(self, x, state=None):
        weight = next(self.layer.parameters())
        outputs, state = self.layer(x.to(weight.dtype), state)
        return self.readout(outputs.real if outputs.is_complex() else outputs), state


def model_of(name):
    torch.manual_seed(0)
    model = Model(name)
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False):
            wide = torch.complex128 if parameter.is_complex() else torch.float64
            setattr(module, key, torch.nn.Parameter(parameter.detach().to(wide)))
    return model


def loss_fn(outputs, targets):
    return (outputs - targets).square().mean(-1)


def data(steps, rows=2, seed=1):
    random = torch.Generator().manual_seed(seed)
    return (torch.randn(steps, rows, 2, dtype=torch.float64, generator=random) for _ in range(2))


def in_fours(self, steps, budget):
    """Segments of four steps and two kept states, whatever a step takes: many segments in little time."""
    return Plan(steps, min(4, steps), 2, 0 if steps <= 4 else 4 * binomial_advances(-(-steps // 4), 2), 0)


def near(found, expected, tolerance=1e-12):
    assert found.keys() == expected.keys()
    for name, theirs in expected.items():
        size = float(theirs.abs().max())
        torch.testing.assert_close(found[name], theirs, rtol=0, atol=tolerance * max(size, 1e-300))


TRUNCATIONS = [cg.Full(), cg.Chunks(7), cg.Chunks(3), cg.RandomTruncation(5), cg.Window(4, 3), cg.Window(3, 11)]


@pytest.mark.filterwarnings("ignore:value_and_grad with Full")
@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from([*LAYERS]),
    truncation=st.sampled_from(TRUNCATIONS),
    calls=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    edges=st.sampled_from(["", "reset", "lengths", "weights"]),
    seed=st.integers(0, 3),
)
def test_the_stored_gradient(name, truncation, calls, edges, seed):
    """Over streams of calls, with resets, lengths and weights: gradients, losses, states and what stays open."""
    model, random = model_of(name), torch.Generator().manual_seed(seed)
    stored = within = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepBytes, "plan", in_fours)
        for number, steps in enumerate(calls):
            x, y = data(steps, seed=10 * seed + number)
            asked = {"truncation": truncation, "seed": 5 if number == 0 else None}
            if edges == "reset":
                asked["reset"] = torch.rand(steps, 2, generator=random) < 0.2
            if edges == "lengths" and number == len(calls) - 1:
                asked["lengths"] = torch.tensor([steps, steps // 2])
            if edges == "weights":
                asked["weights"] = torch.rand(steps, 2, generator=random)
            a, stored = cg.value_and_grad(model, loss_fn, x, y, stored, **asked)
            b, within = cg.value_and_grad(model, loss_fn, x, y, within, mode=cg.Reverse("1GB"), **asked)
            torch.testing.assert_close(b.loss, a.loss, rtol=1e-12, atol=0)
            near(b.grads, a.grads)
            assert within.open_steps == stored.open_steps
            torch.testing.assert_close(within.state, stored.state, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("truncation", [cg.Full(), cg.Chunks(9), cg.Window(3, 11), cg.Window(2, 5)])
@pytest.mark.parametrize("name", ["gru", "cell"])
def test_gradients_of_inputs_and_of_the_initial_state(monkeypatch, name, truncation):
    monkeypatch.setattr(StepBytes, "plan", in_fours)
    model, (x, y) = model_of(name), data(23)
    state = torch.randn(1, 2, 3, dtype=torch.float64) if name == "gru" else torch.randn(2, 3, dtype=torch.float64)
    found = [
        cg.value_and_grad(
            model, loss_fn, x, y, cg.Carry.start(2, state=state), truncation=truncation, mode=mode, wrt_inputs=True
        )[0]
        for mode in (cg.Reverse(), cg.Reverse("1GB"))
    ]
    for ours, theirs in ((found[1].inputs, found[0].inputs), (found[1].state, found[0].state)):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def adaptive(mode, model, x, y):
    carry, found = None, []
    for a, b in zip(x.split(30), y.split(30)):
        gradient, carry = cg.value_and_grad(
            model, loss_fn, a, b, carry, truncation=cg.AdaptiveTruncation(0.1, window=20), mode=mode
        )
        found.append(gradient)
    return found, carry


def test_adaptive_truncation_decides_alike(monkeypatch):
    monkeypatch.setattr(StepBytes, "plan", in_fours)
    model, (x, y) = model_of("gru"), data(90)
    (stored, one), (within, two) = (adaptive(mode, model, x, y) for mode in (cg.Reverse(), cg.Reverse("1GB")))
    assert one.truncation == two.truncation
    for ours, theirs in zip(within, stored):
        near(ours.grads, theirs.grads)


# --- How often the steps are run ---


class Counting(torch.nn.Module):
    """A cell that counts its calls, with a graph and without, and the most steps whose graph was stored at once."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.9, dtype=torch.float64))
        self.taped = self.plain = 0

    def forward(self, x, h):
        if torch.is_grad_enabled():
            self.taped += 1
        else:
            self.plain += 1
        return torch.tanh(self.weight * (x if h is None else h + x))


class Internal(Plan):
    """The schedule that keeps whole steps with their graphs."""

    def actions(self):
        return internal(self.segments, self.slots)


@pytest.mark.parametrize(
    ("plan", "plain", "taped"),
    [
        (Plan(1000, 1, 50, 1948, 0), 1948, 1000),
        (Plan(1000, 1, 10, 3636, 0), 3636, 1000),
        (Plan(10, 1, 3, 15, 0), 15, 10),
        (Internal(1000, 1, 50, 950, 0), 950, 1000),
    ],
)
def test_forward_steps_are_the_optimum(plan, plain, taped):
    """Griewank and Walther 2000, and C(1000, 50) = 1950 of Gruslys et al. 2016, by counting the calls of a cell."""
    cell = Counting()
    model = cg.Recurrent(cell)
    x = torch.randn(plan.steps, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    stretch = lay_stretch(x, None, None, None, None, draws=False)
    losses = Losses(lambda o, y: (o - y).square(), x, torch.ones(plan.steps, 1), None)
    recurrence = adapt(model, x)
    _ = recurrence.layout
    cell.taped = cell.plain = 0
    tally = Tally(dict(model.named_parameters()))
    walk = Walk(recurrence, Course([stretch.piece]), losses, 0, 1 / plan.steps, tally)
    walk.stretch(0, plan.steps, None, plan)
    assert (cell.plain, cell.taped) == (plain, taped)
    expected, _ = cg.value_and_grad(model, lambda o, y: (o - y).square(), x, x)
    near(tally.grads, expected.grads)


def test_to_the_last_bit_where_the_segments_are_alike(monkeypatch):
    """The same segments run one after the other in one graph, walked back by autograd."""
    monkeypatch.setattr(StepBytes, "plan", in_fours)
    model, (x, y) = model_of("gru"), data(19)
    found, _ = cg.value_and_grad(model, loss_fn, x, y, mode=cg.Reverse("1GB"))
    state, losses = None, []
    for a, b in zip(x.split(4), y.split(4)):
        outputs, state = model(a, state)
        losses.append(loss_fn(outputs, b).sum())
    total = sum(losses[::-1]) * (1 / 38)
    names, parameters = zip(*model.named_parameters())
    for name, expected in zip(names, torch.autograd.grad(total, parameters)):
        assert torch.equal(found.grads[name], expected), name


# --- What a model may do ---


class Noisy(torch.nn.Module):
    """A cell that draws random numbers in every step."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.GRUCell(2, 3).double()

    def forward(self, x, h):
        return torch.nn.functional.dropout(self.inner(x, h), 0.3)


@pytest.mark.parametrize("truncation", [cg.Full(), cg.Chunks(9), cg.RandomTruncation(6)])
def test_random_numbers_inside_a_cell_are_drawn_again(monkeypatch, truncation):
    monkeypatch.setattr(StepBytes, "plan", in_fours)
    torch.manual_seed(0)
    model, (x, y) = cg.Recurrent(Noisy(), torch.nn.Linear(3, 2).double()), data(31)
    found = []
    for mode in (cg.Reverse(), cg.Reverse("1GB")):
        torch.manual_seed(7)
        gradient, carry = cg.value_and_grad(model, loss_fn, x[:20], y[:20], truncation=truncation, mode=mode, seed=1)
        last, _ = cg.value_and_grad(model, loss_fn, x[20:], y[20:], carry.cut(), truncation=truncation, mode=mode)
        found.append((gradient, last, torch.get_rng_state()))
    for ours, theirs in zip(found[1][:2], found[0][:2]):
        near(ours.grads, theirs.grads)
    assert torch.equal(found[0][2], found[1][2])


@pytest.mark.filterwarnings("ignore:value_and_grad with Full")
def test_an_open_history_is_run_again_under_its_own_random_numbers(monkeypatch):
    monkeypatch.setattr(StepBytes, "plan", in_fours)
    torch.manual_seed(0)
    model, (x, y) = cg.Recurrent(Noisy(), torch.nn.Linear(3, 2).double()), data(31)
    found = []
    for mode in (cg.Reverse(), cg.Reverse("1GB")):
        torch.manual_seed(7)
        _, carry = cg.value_and_grad(model, loss_fn, x[:13], y[:13], mode=mode)
        found.append((cg.value_and_grad(model, loss_fn, x[13:], y[13:], carry, mode=mode)[0], torch.get_rng_state()))
    near(found[1][0].grads, found[0][0].grads)
    assert torch.equal(found[0][1], found[1][1])


class Written(torch.nn.Module):
    """A cell that counts its steps in a buffer."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.GRUCell(2, 3).double()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x, h):
        self.steps += 1
        return self.inner(x, h)


def test_buffers_are_written_once(monkeypatch):
    monkeypatch.setattr(StepBytes, "plan", in_fours)
    x, y = data(31)
    cell = Written()
    cg.value_and_grad(cg.Recurrent(cell, torch.nn.Linear(3, 2).double()), loss_fn, x, y, mode=cg.Reverse("1GB"))
    assert cell.steps == 31


class Forgetful(Written):
    """A cell that computes something else each time it is called, after it has been called often."""

    def forward(self, x, h):
        self.calls = getattr(self, "calls", 0) + 1
        return self.inner(x, h) * (1 + 0.1 * max(0, self.calls - 100))


def test_a_cell_that_does_not_repeat_itself_is_refused(monkeypatch):
    monkeypatch.setattr(StepBytes, "plan", in_fours)
    x, y = data(31)
    model = cg.Recurrent(Forgetful(), torch.nn.Linear(3, 2).double())
    with pytest.raises(ValueError, match=r"another state after step \d+ when its steps were run again"):
        cg.value_and_grad(model, loss_fn, x, y, mode=cg.Reverse("1GB"))


def test_a_model_that_hides_its_steps_is_refused():
    model, (x, y) = torch.nn.GRU(2, 1, bidirectional=True).double(), data(5)
    with pytest.raises(ValueError, match=r"hides|bidirectional"):
        cg.value_and_grad(model, loss_fn, x, y, mode=cg.Reverse("1GB"))


# --- Bytes ---


@pytest.mark.parametrize("budget", [100_000, 400_000])
@pytest.mark.parametrize("truncation", [cg.Full(), cg.Chunks(900), cg.Window(500, 1000)])
@pytest.mark.parametrize("name", ["gru", "lstm", "torch", "cell"])
def test_a_budget_is_kept(name, truncation, budget):
    """Bytes of tensors alive at once, beyond what the gates and masks of all steps take."""
    steps = 600 if name == "cell" else 2000
    model, (x, y) = model_of(name), data(steps)
    with PeakBytes() as count:
        found, _ = cg.value_and_grad(model, loss_fn, x, y, truncation=truncation, mode=cg.Reverse(budget))
    assert count.peak <= budget + 16 * x.shape[0] * x.shape[1]
    expected, _ = cg.value_and_grad(model, loss_fn, x, y, truncation=truncation)
    near(found.grads, expected.grads, 1e-10)


def test_a_budget_that_cannot_work_names_the_smallest_that_can():
    model, (x, y) = model_of("gru"), data(500)
    with pytest.raises(
        ValueError, match=r"a budget of 1KB cannot work: .* smallest budget that can is ([\d.]+KB)"
    ) as error:
        cg.value_and_grad(model, loss_fn, x, y, mode=cg.Reverse("1KB"))
    smallest = str(error.value).rpartition(" ")[2]
    found, _ = cg.value_and_grad(model, loss_fn, x, y, mode=cg.Reverse(smallest))
    expected, _ = cg.value_and_grad(model, loss_fn, x, y)
    near(found.grads, expected.grads)


def test_a_budget_that_just_fits_long_segments_is_better_spent_on_states():
    plan = StepBytes(step=1000, state=100, fixed=0).plan(100_000, 32 * 1000 + 100)
    assert plan.nbytes <= 32_100 and plan.runs < 5


def test_half_of_what_is_free(monkeypatch):
    from chronograd.modes import reverse

    monkeypatch.setattr(reverse, "free_bytes", lambda device: 1000)
    assert cg.Reverse("auto").budget() == 500
    monkeypatch.undo()
    assert (cg.Reverse("auto").budget() or 0) > 2**20


@pytest.mark.parametrize("text", ["reverse", "reverse:256MB", "reverse:auto", "reverse:1000B"])
def test_modes_as_text(text):
    assert parse(text).spec() == text
    assert parse(cg.Reverse(1000).spec()).budget() == 1000


@pytest.mark.parametrize("bad", ["", "256", "256 apples", "-1MB", "0MB", "MB", 0, -5, True, 2.5, []])
def test_sizes_that_are_none(bad):
    with pytest.raises((ValueError, TypeError), match="^Reverse: memory "):
        cg.Reverse(bad)


@given(st.integers(1, 10**15))
def test_what_is_shown_is_enough(count):
    assert count <= parse_bytes(show_bytes(count)) <= max(1000, 1.11 * count)


# --- Streams ---


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("mode", [cg.Reverse(), cg.Reverse("1GB")])
@pytest.mark.parametrize("kind", ["array", "chunks"])
def test_streamed_data(monkeypatch, truncation, mode, kind):
    """Streams give what tensors give, and so does a second call that reaches back into the first."""
    monkeypatch.setattr(StepBytes, "plan", in_fours)
    model, (x, y) = model_of("gru"), data(40)
    expected, carry = cg.value_and_grad(model, loss_fn, x[:30], y[:30], truncation=truncation, seed=1)
    after, _ = quietly(model, x[30:], y[30:], carry, truncation)
    if kind == "array":
        inputs, targets = cg.Streamed(x[:30].numpy()), cg.Streamed(y[:30].numpy())
    else:
        inputs, targets = cg.Streamed([*zip(x[:30].split(7), y[:30].split(7))]).unzip()
    found, carry = cg.value_and_grad(model, loss_fn, inputs, targets, truncation=truncation, mode=mode, seed=1)
    near(found.grads, expected.grads)
    near(quietly(model, x[30:], y[30:], carry, truncation, mode)[0].grads, after.grads)


def quietly(model, x, y, carry, truncation, mode=cg.Reverse()):  # noqa: B008
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cg.value_and_grad(model, loss_fn, x, y, carry, truncation=truncation, mode=mode)


def test_streamed_padding(monkeypatch):
    monkeypatch.setattr(StepBytes, "plan", in_fours)
    model, (x, y) = model_of("gru"), data(30)
    lengths = torch.tensor([30, 11])
    expected, _ = cg.value_and_grad(model, loss_fn, x, y, lengths=lengths)
    x[11:, 1] = torch.nan
    found, _ = cg.value_and_grad(
        model, loss_fn, cg.Streamed(x), cg.Streamed(y), lengths=lengths, mode=cg.Reverse("1GB")
    )
    near(found.grads, expected.grads)


def test_a_mapped_file(tmp_path, monkeypatch):
    monkeypatch.setattr(StepBytes, "plan", in_fours)
    model, (x, y) = model_of("gru"), data(30)
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    found, _ = cg.value_and_grad(model, loss_fn, cg.Streamed(mapped), y, mode=cg.Reverse("1GB"))
    near(found.grads, cg.value_and_grad(model, loss_fn, x, y)[0].grads)


@pytest.mark.parametrize("where", ["inputs", "targets"])
def test_what_is_not_finite_is_found_in_a_stream(where):
    model, (x, y) = model_of("gru"), data(3000)
    (x if where == "inputs" else y)[2700, 1, 0] = torch.nan
    with pytest.raises(ValueError, match=rf"{where} hold NaN or infinity at step 2700 of this call, row 1"):
        cg.value_and_grad(model, loss_fn, cg.Streamed(x), cg.Streamed(y), mode=cg.Reverse("300KB"))


def test_streams_that_do_not_keep_their_word(monkeypatch):
    monkeypatch.setattr(StepBytes, "plan", in_fours)
    model, (x, y) = model_of("gru"), data(30)
    openings = []

    def shorter():
        openings.append(1)
        return iter(x.split(5) if len(openings) == 1 else x[:20].split(5))

    with pytest.raises(ValueError, match=r"the stream ended after step 20 when it was opened again"):
        cg.value_and_grad(model, loss_fn, cg.Streamed(shorter), y, mode=cg.Reverse("1GB"))
    with pytest.raises(TypeError, match="cannot be opened again"):
        cg.Streamed(iter(x.split(5)))
    with pytest.raises(ValueError, match=r"targets have shape \(29, 2, ...\), expected as of inputs"):
        cg.value_and_grad(model, loss_fn, cg.Streamed(x), cg.Streamed(y[:29]), mode=cg.Reverse("1GB"))
    with pytest.raises(ValueError, match="wrt_inputs asks for a gradient as long as the inputs, which are streamed"):
        cg.value_and_grad(model, loss_fn, cg.Streamed(x), y, mode=cg.Reverse("1GB"), wrt_inputs=True)
