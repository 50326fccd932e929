"""``cg.DiagonalRNN`` over a long sequence against the copy rate of the memory and against a loop in Python."""

from __future__ import annotations

from functools import partial

import torch
from timing import interleaved, markdown, medians
from torch import Tensor

import chronograd as cg

__all__ = ["report"]

STEPS, ROWS, UNITS = 65536, 8, 256
# The loop is timed over fewer steps; every step costs the same.
LOOP_STEPS = 4096


class Long:
    """A layer of one feature, so that its time is the recurrence's and not a matrix product's."""

    def __init__(self, complex: bool) -> None:
        torch.manual_seed(0)
        self.layer = cg.DiagonalRNN(1, UNITS, complex=complex)
        dtype = self.layer.weight_ih.dtype
        self.inputs = torch.randn(STEPS, ROWS, 1, dtype=dtype, requires_grad=True)
        self.cotangent = torch.randn(STEPS, ROWS, UNITS, dtype=dtype)

    @property
    def streamed(self) -> int:
        """Bytes of the arrays of a recurrence, once for each way that they are used: forward its drive and its states,
        back the cotangents, the states again and the drive's cotangent.
        """
        return 5 * self.cotangent.nbytes

    def clear(self) -> None:
        self.inputs.grad = None
        self.layer.zero_grad(set_to_none=True)

    def run(self) -> None:
        self.layer(self.inputs)[0].backward(self.cotangent)

    def loop(self, hoisted: bool) -> None:
        self._unrolled(LOOP_STEPS, hoisted).backward(self.cotangent[:LOOP_STEPS])

    def _unrolled(self, steps: int, hoisted: bool = True) -> Tensor:
        """The same by hand, inputs projected all at once or in each step."""
        state, states = torch.zeros_like(self.cotangent[0]), []
        inputs, weight = self.inputs[:steps], self.layer.weight_ih
        linear = torch.nn.functional.linear
        for x in linear(inputs, weight) if hoisted else inputs:
            state = self.layer.weight_hh * state + (x if hoisted else linear(x, weight))
            states.append(state)
        return torch.stack(states)

    def check(self) -> None:
        """The layer and the loop agree."""
        steps = 500
        found = []
        for outputs in (self.layer(self.inputs[:steps])[0], self._unrolled(steps)):
            self.clear()
            outputs.backward(self.cotangent[:steps])
            found.append((outputs.detach(), self.inputs.grad, self.layer.weight_hh.grad))
        for ours, theirs in zip(*found):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


class Copy:
    """A copy from one long array into another, both touched before."""

    def __init__(self) -> None:
        self.source = torch.ones(STEPS * ROWS * UNITS)
        self.target = torch.zeros_like(self.source)

    def run(self) -> None:
        self.target.copy_(self.source)

    def rate(self, took: float) -> float:
        """Bytes a second, read and written, given the time of a ``run``."""
        return 2 * self.source.nbytes / took


def report(rounds: int, threads: int) -> str:
    """The section of the page."""
    torch.set_num_threads(threads)
    rows = []
    for name, complex in (("real", False), ("complex", True)):
        long, copy = Long(complex), Copy()
        long.check()
        functions = {"ours": long.run, "copy": copy.run, "fresh": partial(torch.clone, copy.source)}
        functions |= {"loop": partial(long.loop, False), "hoisted": partial(long.loop, True)}
        took = medians(interleaved(functions, rounds, long.clear))
        rate, more = copy.rate(took["copy"]), STEPS / LOOP_STEPS
        stream = long.streamed / rate
        rows.append(
            (
                name,
                f"{took['ours']:.3f}",
                f"{rate / 1e9:.1f}",
                f"{long.streamed / 1e9:.2f}",
                f"{stream:.3f}",
                f"{took['ours'] / stream:.2f}",
                f"{copy.rate(took['fresh']) / 1e9:.1f}",
                *(f"{took[each] * more:.2f}" for each in ("loop", "hoisted")),
                *(f"{took[each] * more / took['ours']:.0f}" for each in ("loop", "hoisted")),
            )
        )
    headings = ("numbers", "cg.DiagonalRNN, s", "copy, GB/s", "arrays, GB", "arrays at that rate, s", "cg / arrays")
    headings += ("copy to new memory, GB/s", "loop, s", "hoisted loop, s", "loop / cg", "hoisted / cg")
    return (
        "## A diagonal recurrence\n\n"
        f"`cg.DiagonalRNN(1, {UNITS})` over {STEPS} steps of {ROWS} rows, forward and backward on {threads} threads, "
        "float32 and complex64. *Arrays* counts each array as often as it has to cross memory: the states written on "
        "the way forward and read on the way back, their cotangents read, the inputs read twice and their gradient "
        "written. *Copy* is `target.copy_(source)` of 537 MB, bytes read and written; *copy to new memory* is "
        "`source.clone()`, where the system has to find pages first, as it has to for the layer's outputs. *Loop* is "
        f"the recurrence in Python with autograd, every step's input projected in the step; *hoisted loop*, all inputs "
        f"projected before it. Both are timed over {LOOP_STEPS} steps and multiplied by {STEPS // LOOP_STEPS}.\n\n"
        + markdown(headings, rows)
    )
