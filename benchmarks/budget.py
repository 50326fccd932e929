"""Exact gradients of long sequences within a budget of memory: the peak and the time, against the stored computation.

Run as a script it is the child that measures: ``budget.py peak STEPS MODE THREADS`` prints bytes, ``budget.py time
STEPS MODE ROUNDS THREADS`` the median seconds of the stored computation and of the mode, which take turns.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from threading import Event, Thread

import numpy as np
import torch
from read import Read
from timing import interleaved, markdown, medians
from torch import Tensor, nn

import chronograd as cg
from chronograd.modes import parse
from chronograd.modes.course import Course
from chronograd.modes.losses import Losses
from chronograd.modes.peak import PeakBytes
from chronograd.modes.recompute import Walk
from chronograd.modes.schedule import Plan, binomial_advances, internal, internal_runs
from chronograd.modes.tally import Tally
from chronograd.recurrence.adapters import adapt
from chronograd.stretch import lay_stretch

__all__ = ["report"]

FEATURES, UNITS = 32, 64
ASKED = ((1_000_000, "reverse:256MB"), (1_000_000, "reverse:16MB"), (100_000, "reverse:16MB"))
STATUS = Path("/proc/self/status")


def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean(-1)


class Long:
    """A sequence of one row, in files."""

    def __init__(self, steps: int, folder: str) -> None:
        torch.manual_seed(0)
        self.model = Read(cg.GRU(FEATURES, UNITS), UNITS)
        random = torch.Generator().manual_seed(1)
        self.files = [os.path.join(folder, f"{name}{steps}.npy") for name in "xy"]
        for file, size in zip(self.files, (FEATURES, 1)):
            if not os.path.exists(file):
                np.save(file, torch.randn(steps, 1, size, generator=random).numpy())

    def stored(self) -> None:
        """Data and states in memory."""
        x, y = (torch.from_numpy(np.load(file)) for file in self.files)
        cg.value_and_grad(self.model, loss_fn, x, y)

    def within(self, mode: str) -> None:
        """Data read as it is needed."""
        x, y = (cg.Streamed(np.load(file, mmap_mode="r")) for file in self.files)
        cg.value_and_grad(self.model, loss_fn, x, y, mode=parse(mode))


class Watched:
    """``with Watched() as watched:`` the bytes of resident anonymous memory at its peak beyond what there was,
    ``watched.extra``; looked at a thousand times a second.
    """

    def __enter__(self) -> Watched:
        ctypes.CDLL(None).malloc_trim(0)
        self._before = self._most = _anonymous()
        self._over = Event()
        self._thread = Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(0.001):
            self._most = max(self._most, _anonymous())

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()
        self.extra = self._most - self._before


def _anonymous() -> int:
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def peak(steps: int, mode: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        long = Long(steps, folder)
        run = long.stored if mode == "reverse" else partial(long.within, mode)
        run()  # the warm-up, of the same shape
        with Watched() as watched:
            run()
        return watched.extra


def time(steps: int, mode: str, rounds: int) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        long = Long(steps, folder)
        took = medians(interleaved({"stored": long.stored, "within": partial(long.within, mode)}, rounds))
        return took["stored"], took["within"]


def _child(*arguments: object) -> list[float]:
    done = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True
    )
    return [float(word) for word in done.stdout.split()]


class Internal(Plan):
    """Slots that hold whole steps with their graphs (Gruslys et al. 2016)."""

    def actions(self):
        return internal(self.segments, self.slots)


def published(rounds: int) -> str:
    """The point that Gruslys et al. publish, T = 1000, run as they count it and as ours is planned."""
    steps, slots = 1000, 50
    torch.manual_seed(0)
    model = cg.Recurrent(nn.GRUCell(64, 256), nn.Linear(256, 1))
    x, y = torch.randn(steps, 32, 64), torch.randn(steps, 32, 1)
    recurrence, piece = adapt(model, x), lay_stretch(x, None, None, None, None, cg.Full()).piece
    losses = Losses(loss_fn, y, torch.ones(steps, 32), None)

    def run(plan: Plan) -> None:
        walk = Walk(recurrence, Course([piece]), losses, 0, 1.0, Tally(dict(model.named_parameters())))
        walk.stretch(0, steps, None, plan)

    plans = {
        "stored": Plan(steps, steps, 1, 0, 0),
        "50 slots of one step with its graph": Internal(steps, 1, slots, internal_runs(steps, slots) - steps, 0),
        "50 states, steps run again one by one": Plan(steps, 1, slots, binomial_advances(steps, slots), 0),
        "ours: 31 states, segments of 32 steps": Plan(steps, 32, 31, 32 * binomial_advances(32, 31), 0),
    }
    took = medians(interleaved({name: partial(run, plan) for name, plan in plans.items()}, rounds))
    bytes_ = {}
    for name, plan in plans.items():
        with PeakBytes() as count:
            run(plan)
        bytes_[name] = count.peak
    rows = []
    for name, plan in plans.items():
        # A step with its graph is run for itself only where its graph is not kept from the first run.
        runs = plan.runs
        rows.append(
            (
                name,
                f"{plan.advances + steps}",
                f"{(runs + 2) / 3:.2f}",
                f"{(runs + 1) / 2:.2f}",
                f"{took[name] / took['stored']:.2f}",
                f"{bytes_[name] / bytes_['stored']:.3f}",
            )
        )
    headings = ("T = 1000", "steps run forward", "time, back = 2 forward", "time, back = 1 forward")
    headings += ("time / stored", "bytes / stored")
    return markdown(headings, rows)


def report(rounds: int, threads: int) -> str:
    """The section of the page."""
    rows = []
    for steps, mode in ASKED:
        (stored_peak,), (within_peak,) = _child("peak", steps, "reverse", threads), _child("peak", steps, mode, threads)
        stored, within = _child("time", steps, mode, rounds, threads)
        cells = (f"{stored_peak / 1e6:.0f}", f"{within_peak / 1e6:.1f}", f"{stored:.2f}", f"{within:.2f}")
        rows.append((f"{steps:,}, {mode}", *cells, f"{within / stored:.2f}"))
    headings = ("steps, mode", "stored, MB", "within, MB", "stored, s", "within, s", "within / stored")
    torch.set_num_threads(threads)
    return (
        "## Long sequences in little memory\n\n"
        f"The exact gradient (`Full()`) of one row through `cg.GRU({FEATURES}, {UNITS})` and a readout, float32, "
        f"{threads} threads. *Stored*: `Reverse()`, data in memory. *Within*: `Reverse(memory=...)`, data streamed "
        "from mapped files. *MB* (10^6 bytes) is resident anonymous memory at the peak of a call, beyond what there "
        "was after a warm-up of the same shape, in a fresh process; of the stored computation the data counts too. "
        "Times are of calls that take turns, reading the data from files included.\n\n"
        + markdown(headings, rows)
        + "\n\nGruslys et al. (2016) publish for T = 1000 that 95% of memory are saved for a third more time. That is "
        "50 slots that hold a step with all of its graph, and a way back that costs two forward steps: "
        "(1950 + 2000) / 3000. Where the way back costs as much as the way forward it is (1950 + 1000) / 2000. "
        "Measured here on `cg.Recurrent(torch.nn.GRUCell(64, 256))`, a loop in Python of 32 rows; bytes are those of "
        "tensors alive at once, the parameters' gradients among them.\n\n" + published(rounds)
    )


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    torch.set_num_threads(int(sys.argv[-1]))
    if sys.argv[1] == "peak":
        print(peak(int(sys.argv[2]), sys.argv[3]))
    else:
        print(*time(int(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
