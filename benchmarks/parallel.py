"""``mode=cg.Scan()`` against the loop over time, on the CPU: where it is slower, and where it is not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from timing import interleaved, markdown, medians
from torch import Tensor, nn

import chronograd as cg

__all__ = ["report"]

FEATURES = 4
LINEAR_STEPS, NEWTON_STEPS = (1_000, 10_000, 100_000), (1_000, 10_000)
LINEAR: dict[str, Callable[[], nn.Module]] = {
    "LinearRNN, 16 units": lambda: cg.LinearRNN(FEATURES, 16),
    "DiagonalRNN, 64 units": lambda: cg.DiagonalRNN(FEATURES, 64),
    "DiagonalRNN, 64 complex": lambda: cg.DiagonalRNN(FEATURES, 64, complex=True),
}
NONLINEAR: dict[str, Callable[[], nn.Module]] = {
    "RNN, 8 units": lambda: cg.RNN(FEATURES, 8),
    "GRU, 8 units": lambda: cg.GRU(FEATURES, 8),
    "GRU, 16 units": lambda: cg.GRU(FEATURES, 16),
    "Recurrent(GRUCell), 8 units": lambda: cg.Recurrent(nn.GRUCell(FEATURES, 8)),
}
NEWTON = (cg.Scan(), cg.Scan("quasi"), cg.Scan("loop"))


def energy(outputs: Tensor, targets: None) -> Tensor:
    """A loss that asks for all outputs."""
    return (outputs.abs() if outputs.is_complex() else outputs).square().sum(-1)


class Sequence:
    """A model and one long sequence, a single row: the case in which a loop is worst."""

    def __init__(self, build: Callable[[], nn.Module], steps: int) -> None:
        torch.manual_seed(0)
        self.model, self.inputs = build(), torch.randn(steps, 1, FEATURES)

    def gradient(self, mode: cg.Reverse | cg.Scan) -> cg.Gradient:
        return cg.value_and_grad(self.model, energy, self.inputs, None, mode=mode)[0]

    def check(self, mode: cg.Scan) -> None:
        """The mode gives the loop's gradient."""
        ours, theirs = self.gradient(mode).grads, self.gradient(cg.Reverse()).grads
        for name, grad in theirs.items():
            torch.testing.assert_close(ours[name], grad, rtol=1e-3, atol=1e-3 * float(grad.abs().max()))

    def iterations(self, mode: cg.Scan) -> str:
        """Of each solution: of the states, and where it is one of its own, of the way back."""
        return " + ".join(str(way.iterations) for way in self.gradient(mode).how)

    def times(self, modes: tuple[cg.Scan, ...], rounds: int) -> list[float]:
        for mode in modes:
            self.check(mode)
        every = (cg.Reverse(), *modes)
        took = medians(interleaved({str(mode): partial(self.gradient, mode) for mode in every}, rounds))
        return [took[str(mode)] for mode in every]


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def report(rounds: int, threads: int) -> str:
    """The section of the page."""
    torch.set_num_threads(threads)
    scans, newtons = [], []
    for name, build in LINEAR.items():
        for steps in LINEAR_STEPS:
            loop, scan = Sequence(build, steps).times((cg.Scan(always=True),), rounds)
            scans.append((f"{name}, T = {steps}", milliseconds(loop), milliseconds(scan), f"{loop / scan:.2f}"))
    for name, build in NONLINEAR.items():
        for steps in NEWTON_STEPS:
            case = Sequence(build, steps)
            loop, *others = case.times(NEWTON, rounds)
            counts = [case.iterations(mode) for mode in NEWTON[:2]]
            ratios = [f"{loop / other:.2f}" for other in others]
            times = [milliseconds(each) for each in (loop, *others)]
            newtons.append((f"{name}, T = {steps}", *times, *counts, *ratios))
    headings = ("layer", "loop, ms", "newton, ms", "quasi, ms", "loop + scan back, ms")
    headings += ("iterations", "quasi's", "loop / newton", "loop / quasi", "loop / scan back")
    return (
        "## In parallel over time\n\n"
        f"The whole gradient, `cg.value_and_grad`, of one row over T steps on {threads} threads in float32: "
        "`mode=cg.Reverse()`, which is the kernels' loop, beside `cg.Scan`. A ratio below 1 says that the scan is "
        "slower. A scan does two to three times a loop's work in about 2 B log_B(T) dependent steps (blocks of "
        "B = 16), so it needs more processors than a CPU has; that is why `cg.Scan()` takes the loop for these layers "
        "there, and `always=True` was given to measure:\n\n"
        + markdown(("layer", "loop, ms", "scan, ms", "loop / scan"), scans)
        + "\n\nNonlinear layers, with full Jacobians (*newton*), with their diagonals (*quasi*, iterations forward + "
        "back), and with the loop's states and only the way back as a scan of Jacobians. `Recurrent(GRUCell)` is a "
        "loop in Python, and the one that a few cores can beat: one call of the cell for all steps is cheaper than a "
        "call for each:\n\n" + markdown(headings, newtons)
    )
