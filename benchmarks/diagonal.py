"""``cg.DiagonalRNN`` over a long sequence against the copy rate of the memory and against a loop in Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from time import perf_counter

import torch
from timing import interleaved, markdown, medians
from torch import Tensor

import chronograd as cg

__all__ = ["report"]

STEPS, ROWS, UNITS = 65536, 8, 256
# glibc: nothing freed goes back to the system.
KEEPING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
# How the loops take their inputs, and the steps over which they are timed: every step of a loop costs the same.
LOOPS = {"indexed": 256, "iterated": 4096, "hoisted": 4096}


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

    def loop(self, how: str) -> None:
        steps = LOOPS[how]
        self._unrolled(steps, how).backward(self.cotangent[:steps])

    def _unrolled(self, steps: int, how: str) -> Tensor:
        """The same by hand."""
        state, states = torch.zeros_like(self.cotangent[0]), []
        weight, linear = self.layer.weight_ih, torch.nn.functional.linear
        if how == "hoisted":
            drives: Iterable[Tensor] = linear(self.inputs[:steps], weight)
        elif how == "iterated":
            drives = (linear(x, weight) for x in self.inputs[:steps])
        else:
            drives = (linear(self.inputs[t], weight) for t in range(steps))
        for drive in drives:
            state = self.layer.weight_hh * state + drive
            states.append(state)
        return torch.stack(states)

    def check(self) -> None:
        """The layer and the loop agree."""
        steps = 500
        found = []
        for outputs in (self.layer(self.inputs[:steps])[0], *(self._unrolled(steps, how) for how in LOOPS)):
            self.clear()
            outputs.backward(self.cotangent[:steps])
            found.append((outputs.detach(), self.inputs.grad, self.layer.weight_hh.grad))
        for ours, *theirs in zip(*found):
            for loop in theirs:
                torch.testing.assert_close(ours, loop, rtol=1e-3, atol=1e-3)


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


def second(function: Callable[[], object], clear: Callable[[], object]) -> float:
    """Seconds of the second of two runs in a row.

    What a system frees for seconds it may give away, at worst to the host of a virtual machine, which takes ten times
    as long to get back as to clear; no round should pay for the time that the others took.
    """
    function()
    clear()
    start = perf_counter()
    function()
    return perf_counter() - start


def measure(rounds: int, threads: int) -> list[tuple[str, ...]]:
    """The rows of the table, measured in this process."""
    torch.set_num_threads(threads)
    rows = []
    for name, complex in (("real", False), ("complex", True)):
        long, copy = Long(complex), Copy()
        long.check()
        functions = {"ours": long.run, "copy": copy.run, "fresh": partial(torch.clone, copy.source)}
        functions |= {how: partial(long.loop, how) for how in LOOPS}
        functions = {name: partial(second, function, long.clear) for name, function in functions.items()}
        took = medians(interleaved(functions, rounds, long.clear))
        rate, loops = copy.rate(took["copy"]), {how: took[how] * STEPS / steps for how, steps in LOOPS.items()}
        stream = long.streamed / rate
        rows.append(
            (
                name,
                f"{took['ours']:.3f}",
                f"{rate / 1e9:.1f}",
                f"{copy.rate(took['fresh']) / 1e9:.1f}",
                f"{long.streamed / 1e9:.2f}",
                f"{stream:.3f}",
                f"{took['ours'] / stream:.2f}",
                *(f"{loop:.2f}" for loop in loops.values()),
                *(f"{loop / took['ours']:.0f}" for loop in loops.values()),
            )
        )
    return rows


def report(rounds: int, threads: int) -> str:
    """The section of the page; each allocator has a process of its own."""
    rows = []
    for memory, variables in (("kept", KEEPING), ("new", {})):
        command = [sys.executable, __file__, str(rounds), str(threads)]
        done = subprocess.run(command, env=os.environ | variables, check=True, stdout=subprocess.PIPE, text=True)
        rows += [(f"{numbers}, {memory} memory", *rest) for numbers, *rest in json.loads(done.stdout)]
    headings = ("numbers", "cg.DiagonalRNN, s", "copy, GB/s", "clone, GB/s", "arrays, GB", "arrays at copy rate, s")
    headings += ("cg / arrays", *(f"{how} loop, s" for how in LOOPS), *(f"{how} / cg" for how in LOOPS))
    return (
        "## A diagonal recurrence\n\n"
        f"`cg.DiagonalRNN(1, {UNITS})` over {STEPS} steps of {ROWS} rows, forward and backward on {threads} threads, "
        "float32 and complex64. *Arrays* are the five that such a recurrence streams, of T B H numbers each: forward "
        "the projected inputs and the states, back the states' cotangents, the states again and the projected inputs' "
        "cotangent. With so few features the kernels have only the states to write and their cotangents to read: "
        "drives stay in registers, states are computed again in the cache; on these two arrays alone the ratios are "
        "5/2 larger. *Copy* is `target.copy_(source)` of 537 MB between arrays touched before, bytes read and written; "
        "*clone* is `source.clone()`. With *kept memory* the C library's allocator holds on to what is freed, so that "
        "outputs lie where the last call's did; with *new memory*, its default, the system has to find and clear pages "
        "for the states in every call, as it has to for a clone. In each round everything runs twice in a row, and the "
        "second run is timed: memory that lies free for seconds may be given away, on a virtual machine to its host. "
        "The *loops* are the recurrence in Python with autograd: *indexed* takes `inputs[t]` in each step, whose way "
        "back fills a gradient as long as all inputs every time; *iterated* goes over the inputs; *hoisted* projects "
        "all of them before it. They are timed over "
        f"{', '.join(map(str, LOOPS.values()))} steps and multiplied by what is missing to {STEPS}.\n\n"
        + markdown(headings, rows)
    )


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    print(json.dumps(measure(*map(int, sys.argv[1:]))))
