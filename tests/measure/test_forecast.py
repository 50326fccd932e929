"""What a long sequence is said to take, against what it then takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import chronograd as cg
from chronograd.measure.forecast import forecast
from chronograd.modes.peak import PeakBytes
from chronograd.modes.recompute import Walk
from chronograd.modes.step_bytes import PER_TENSOR
from chronograd.training.losses import cross_entropy
from chronograd.training.model import CharModel

# The allocator gives back at once what is freed, and keeps nothing for later.
GIVING_BACK = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "0",
    "MALLOC_TOP_PAD_": "0",
    "MALLOC_ARENA_MAX": "1",
}
# Cell, hidden, features, rows, steps; modes.
CASES = [
    (("gru", 64, 32, 1, 40_000), ["reverse", "reverse:64MB", "reverse:16MB"]),
    (("lstm", 24, 16, 2, 20_000), ["reverse", "reverse:16MB"]),
    (("rnn", 48, 8, 1, 60_000), ["reverse", "reverse:64MB"]),
]
WARM = 6000  # steps, so that every mode has done once what it does


def sample(features=5, rows=1, steps=300):
    return torch.randint(features, (2, steps, rows), generator=torch.Generator().manual_seed(0))


def resident(lines, environment):
    """What ``resident.py`` measures for each line, in bytes."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("resident.py"))],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.splitlines()]


needs_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="a process cannot see its peak here")


@needs_proc
def test_peaks_are_what_a_process_then_holds():
    """Within 20 % or 16 MB."""
    lines = [" ".join(map(str, (*case, mode, WARM))) for case, modes in CASES for mode in modes]
    measured = iter(resident(lines, GIVING_BACK))
    for (cell, hidden, features, rows, steps), modes in CASES:
        model = CharModel(features, cell, hidden)
        for row in forecast(model, cross_entropy, *sample(features, rows), length=steps, modes=modes).modes:
            really = next(measured)
            assert abs(row.peak_bytes - really) <= max(0.2 * really, 16e6), (cell, row, really)


@needs_proc
def test_segments_one_after_the_other_take_no_more_room_than_one():
    """Under the system's own allocator: what is kept of each must not split the holes that the others leave."""
    few, many = resident([f"gru 64 32 1 {steps} reverse:16MB 8000" for steps in (16_000, 176_000)], {})
    assert many < few + 20e6  # of each of 41 more segments 1 MB was lost


@pytest.mark.parametrize("mode", ["reverse:100KB", "reverse:1MB", "reverse:1GB"])
def test_the_plan_is_the_one_that_the_mode_follows(monkeypatch, mode):
    model, (x, y), plans = CharModel(5, "gru", 8), sample(steps=6000), []
    stretch = Walk.stretch

    def noting(self, begin, end, state, plan):
        plans.append(plan)
        return stretch(self, begin, end, state, plan)

    (row,) = forecast(model, cross_entropy, x[:300], y[:300], 6000, [mode]).modes
    monkeypatch.setattr(Walk, "stretch", noting)
    cg.value_and_grad(model, cross_entropy, x, y, mode=cg.Reverse(mode.partition(":")[2]))
    (plan,) = plans
    assert row.runs == plan.runs
    if plan.segments > 1:
        assert row.peak_bytes >= plan.nbytes
    else:
        assert row.peak_bytes < plan.nbytes


def test_many_parameters_under_a_small_budget():
    """Then fewer steps are looked at than without one: another step, another smallest budget, and it is the peak."""
    torch.manual_seed(0)
    model, (x, y) = CharModel(16, "lstm", 128), sample(16, steps=2000)
    refused, within = forecast(model, cross_entropy, x[:300], y[:300], 2000, ["reverse:1KB", "reverse:8MB"]).modes
    with pytest.raises(ValueError) as caught:
        cg.value_and_grad(model, cross_entropy, x, y, mode=cg.Reverse("1KB"))
    assert refused.refusal == str(caught.value)
    with PeakBytes() as count:
        cg.value_and_grad(model, cross_entropy, x, y, mode=cg.Reverse("8MB"))
    own = sum(parameter.nbytes for parameter in model.parameters())
    assert within.peak_bytes == pytest.approx(count.peak + PER_TENSOR * count.tensors - own, rel=0.1)


def test_a_step_measured_on_few_is_that_of_many():
    model, (x, y) = CharModel(32, "gru", 64), sample(32, steps=3000)
    few, many = (forecast(model, cross_entropy, x[:n], y[:n], 10**6, ["reverse"]) for n in (100, 3000))
    assert (few.step_bytes, few.state_bytes) == (many.step_bytes, many.state_bytes)
    assert few.modes[0].peak_bytes == many.modes[0].peak_bytes > 10**9


@pytest.mark.parametrize("mode", ["reverse", "scan", "scan:quasi"])
def test_tensors_of_a_cell_of_the_users_own(mode):
    torch.manual_seed(0)
    model, x = cg.Recurrent(torch.nn.GRUCell(3, 6), torch.nn.Linear(6, 2)), torch.randn(400, 4, 3)

    def loss_fn(outputs, targets):
        return (outputs - targets).square().mean(-1)

    (row,) = forecast(model, loss_fn, x[:200], x[:200, :, :2], 400, [mode]).modes
    with PeakBytes() as count:
        cg.value_and_grad(model, loss_fn, x, x[..., :2], mode=cg.modes.parse(mode))
    assert row.peak_bytes == pytest.approx(count.peak + PER_TENSOR * count.tensors, rel=0.2)


def test_what_cannot_run_says_why():
    model, (x, y) = CharModel(5, "gru", 64), sample()
    refused, scan, quasi = forecast(model, cross_entropy, x, y, 10**6, ["reverse:5KB", "scan", "scan:quasi,1"]).modes
    assert "a budget of 5KB cannot work" in refused.refusal and "the smallest budget that can is" in refused.refusal
    assert scan.refusal == "full Jacobians of 1,000,000 steps take 32.8GB, and the mode's limit is 2GB"
    assert "did not converge" in quasi.refusal
    assert {refused.peak_bytes, scan.seconds, quasi.fits, quasi.runs} == {None}


def test_it_leaves_everything_as_it_was():
    torch.manual_seed(0)
    model = torch.nn.LSTM(3, 4, 2, dropout=0.5)
    x, state = torch.randn(50, 2, 3), torch.get_rng_state()
    found = forecast(model, lambda out, _: out.square().mean(-1), x, None, 1000, ["reverse", "reverse:100KB"])
    assert torch.equal(state, torch.get_rng_state()) and model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert json.loads(json.dumps(found.to_dict()))["modes"][1]["mode"] == "reverse:100KB"
    assert len(found.table().splitlines()) == 3


def test_progress_ends_with_done():
    model, (x, y), notes = CharModel(5, "rnn", 4), sample(), []
    forecast(model, cross_entropy, x, y, 500, on_progress=lambda *note: notes.append(note))
    assert [done for done, _, _ in notes] == sorted(done for done, _, _ in notes)
    assert notes[-1][0] == notes[-1][1] and notes[-1][2] == "done"


def test_wrong_arguments():
    model, (x, y) = CharModel(5, "rnn", 4), sample()
    for length in (0, True, 2.5):
        with pytest.raises(ValueError, match="length must be a whole number"):
            forecast(model, cross_entropy, x, y, length)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="length must be at most 10,000,000,000,000, not 10,000,000,000,001"):
        forecast(model, cross_entropy, x, y, 10**13 + 1)
    with pytest.raises(ValueError, match="mode 'revers' is not understood"):
        forecast(model, cross_entropy, x, y, 5, ["revers"])
