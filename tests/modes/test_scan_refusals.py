"""The mode as plain numbers and text, what it refuses, and what it says of how it ran."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import chronograd as cg
from chronograd.measure.cost import PeakBytes
from chronograd.modes import parse
from oracle import Opaque, squared

options = st.fixed_dictionaries(
    {},
    optional={
        "forward": st.sampled_from(["newton", "quasi", "loop"]),
        "always": st.booleans(),
        "iterations": st.integers(1, 10**6),
        "tolerance": st.floats(1e-300, 1e300, exclude_min=True),
        "limit": st.integers(1, 2**40),
    },
)


@given(options)
def test_text_is_the_mode(given_options):
    mode = cg.Scan(**given_options)
    assert parse(mode.spec()) == mode and hash(parse(str(mode))) == hash(mode)
    assert parse(f" {mode.spec().replace('scan', 'SCAN')} ") == mode


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scan:fast", "'fast' is none of newton, quasi, loop, always"),
        ("scan:quasi,newton", "'newton' says again what forward is"),
        ("scan:0", "iterations must be a whole number of at least 1, not 0"),
        ("scan:-1e-3", "tolerance must be above 0"),
        ("scan:0.5XB", "'0.5XB' is none of"),
        ("scam", "not understood; write reverse, "),
        ("reverse:1", "is no size"),
    ],
)
def test_text_that_means_nothing(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse(text)
    assert repr(text) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bad",
    [{"forward": "deer"}, {"always": 1}, {"iterations": 0}, {"iterations": 2.0}, {"limit": True}, {"tolerance": 0.0}],
)
def test_numbers_that_make_no_sense(bad):
    with pytest.raises(ValueError, match=f"Scan: {next(iter(bad))} must be"):
        cg.Scan(**bad)


def test_the_mode_loads_without_torch():
    code = (
        "import sys; from chronograd.modes import Scan, parse; parse('scan:quasi'); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def x_of(steps=6, dtype=torch.float32):
    torch.manual_seed(0)
    return torch.randn(steps, 2, 2, dtype=dtype)


class Looped(nn.Module):
    """A loop over torch's cell, whose steps nothing can take at once."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(2, 2)

    def forward(self, x, state=None):
        outputs, h = [], x.new_zeros(x.shape[1], 2) if state is None else state
        for step in x:
            h = self.cell(step, h)
            outputs.append(h)
        return torch.stack(outputs), h


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout()

    def forward(self, x, state):
        return self.drop(x if state is None else (x + state).tanh())


def counting(x, state):
    return (x, torch.zeros(len(x), dtype=torch.int64)) if state is None else (state[0] + x, state[1] + 1)


def two_rows(x, state):
    return (x if state is None else state + x)[:2]


REFUSED = {
    "opaque": (Opaque(), cg.Scan(), r"its loop over time is not to be seen.*use mode=cg.Reverse\(\)"),
    "torch cells in a loop": (Looped(), cg.Scan(), r"put the step into cg.Recurrent\(cell\)"),
    "bidirectional": (nn.GRU(2, 1, bidirectional=True), cg.Scan(), r"use mode=cg.Reverse\(\)"),
    "dropout in a cell": (cg.Recurrent(Noisy()), cg.Scan(), r"draws random numbers.*model.eval\(\)"),
    "counter in a state": (cg.Recurrent(counting), cg.Scan(), r"tensors of one dtype, not float32, int64"),
    "a cell for two rows": (cg.Recurrent(two_rows), cg.Scan("loop"), r"must treat every row by itself"),
    "half precision": (cg.GRU(2, 2).bfloat16(), cg.Scan(), r"computes in bfloat16.*use mode=cg.Reverse\(\)"),
    "bytes": (
        cg.GRU(2, 64),
        cg.Scan(limit=10_000),
        r"take 0\.4 MB, and the limit is 0\.0 MB; use cg.Scan\(\"quasi\"\)",
    ),
    "bytes of a cell": (cg.Recurrent(nn.GRUCell(2, 64)), cg.Scan("loop", limit=10_000), r"limit=\d+\) or mode=cg"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_so_in_one_line(name):
    model, mode, message = REFUSED[name]
    x = x_of(dtype=torch.bfloat16 if name == "half precision" else torch.float32)
    loss_fn = lambda outputs, targets: outputs.float().square().sum(-1)  # noqa: E731
    with pytest.raises(ValueError, match=message) as caught:
        cg.value_and_grad(model, loss_fn, x, None, mode=mode)
    assert "\n" not in str(caught.value) and "mode scan" in str(caught.value)


@pytest.mark.parametrize("truncation", [cg.Window(1, 4), cg.AdaptiveTruncation(0.1, 4)], ids=str)
def test_windows_that_overlap_are_refused(truncation):
    with pytest.raises(ValueError, match=r"rows of a batch already.*use mode=cg.Reverse\(\)"):
        cg.value_and_grad(cg.GRU(2, 2), squared, x_of(), x_of(), truncation=truncation, mode=cg.Scan())


@pytest.mark.parametrize(
    "model",
    [cg.GRU(2, 2), cg.Recurrent(nn.GRUCell(2, 2)), cg.LinearRNN(2, 2), cg.ELSTM(2, 2)],
    ids=lambda m: type(m).__name__,
)
def test_data_that_is_not_finite_is_named(model):
    x = x_of(50)
    x[31, 1] = torch.nan
    with pytest.raises(ValueError, match="inputs hold NaN or infinity at step 31 of this call, row 1"):
        cg.value_and_grad(model, squared, x, torch.zeros(50, 2, 2), mode=cg.Scan())


def test_on_a_cpu_linear_layers_take_the_loop_and_say_so():
    for model in (cg.LinearRNN(2, 2), cg.DiagonalRNN(2, 2)):
        gradient, _ = cg.value_and_grad(model, squared, x_of(), x_of(), mode=cg.Scan())
        (way,) = gradient.how
        assert way.how == "loop" and "faster than a scan" in str(way) and way.iterations == 0
        gradient, _ = cg.value_and_grad(model, squared, x_of(), x_of(), mode=cg.Scan(always=True))
        assert gradient.how[0].how == "scan"


@pytest.mark.parametrize("mode", [cg.Scan(), cg.Scan("loop")], ids=str)
def test_the_bytes_that_are_predicted_are_those_that_are_taken(mode):
    size, steps = 48, 256
    predicted = 2 * steps * 2 * size**2 * 4
    model, x = cg.RNN(2, size), torch.randn(steps, 2, 2)
    loss_fn = lambda outputs, targets: outputs.square().sum(-1)  # noqa: E731
    with pytest.raises(ValueError, match=f"limit={predicted}"):
        cg.value_and_grad(model, loss_fn, x, None, mode=cg.Scan(mode.forward, limit=predicted - 1))
    with PeakBytes() as count:
        cg.value_and_grad(model, loss_fn, x, None, mode=cg.Scan(mode.forward, limit=predicted))
    assert 0.5 * predicted < count.peak < 1.3 * predicted
    with PeakBytes() as count:
        cg.value_and_grad(model, loss_fn, x, None, mode=cg.Scan("quasi", limit=1))
    assert count.peak < 0.2 * predicted


@pytest.mark.parametrize("forward", ["newton", "quasi", "loop"])
def test_a_diagonal_jacobian_is_never_made_full(forward):
    size, steps = 48, 256
    model, x = cg.ELSTM(2, size), torch.randn(steps, 2, 2)
    loss_fn = lambda outputs, targets: outputs.square().sum(-1)  # noqa: E731
    with PeakBytes() as count:
        cg.value_and_grad(model, loss_fn, x, None, mode=cg.Scan(forward, limit=1))
    assert count.peak < 0.5 * steps * 2 * size**2 * 4


def test_powers_of_a_weight_for_rows_that_end_early_are_within_the_limit():
    """Each row and block of 16 steps has its own power; with no row that ends early, one serves all."""
    size, steps = 48, 1024
    predicted = 2 * (steps // 16) * 4 * size**2 * 4
    model, x, lengths = cg.LinearRNN(2, size), torch.randn(steps, 4, 2), torch.tensor([steps, 900, 700, 30])
    loss_fn = lambda outputs, targets: outputs[..., :1].square().sum(-1)  # noqa: E731
    little = cg.Scan(always=True, limit=predicted - 1)
    with pytest.raises(ValueError, match=f"end early.*limit={predicted}\\), no lengths, or mode=cg") as caught:
        cg.value_and_grad(model, loss_fn, x, None, mode=little, lengths=lengths)
    assert "\n" not in str(caught.value)
    peaks = []
    for each in (None, lengths):
        with PeakBytes() as count:
            cg.value_and_grad(model, loss_fn, x, None, mode=cg.Scan(always=True, limit=predicted), lengths=each)
        peaks.append(count.peak)
    assert 0.25 * predicted < peaks[1] - peaks[0] < predicted
    cg.value_and_grad(model, loss_fn, x, None, mode=little)
