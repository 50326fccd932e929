"""Run as a script: how much more memory a process holds at the peak of a gradient, as the system counts it.

For each line on standard input, ``CELL HIDDEN FEATURES ROWS STEPS MODE WARM``, it forks a process that has computed
nothing yet, and that process prints the bytes over what it held after a gradient of ``WARM`` steps.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import torch

import chronograd as cg
from chronograd.modes import parse
from chronograd.training.losses import cross_entropy
from chronograd.training.model import CharModel

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def kilobytes(field: str) -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))


def measure(cell: str, hidden: int, features: int, rows: int, steps: int, mode: str, warm: int) -> int:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = CharModel(features, cell, hidden)
    x, y = torch.randint(features, (2, steps, rows))
    cg.value_and_grad(model, cross_entropy, x[:warm], y[:warm], mode=parse(mode))
    model.zero_grad()
    ctypes.CDLL(None).malloc_trim(0)
    before = kilobytes("RssAnon")
    CLEAR.write_text("5", encoding="ascii")
    cg.value_and_grad(model, cross_entropy, x, y, mode=parse(mode))
    peak = kilobytes("VmHWM") - kilobytes("RssFile") - kilobytes("RssShmem")
    return 1024 * (peak - before)


if __name__ == "__main__":
    for line in sys.stdin:
        cell, *sizes, mode, warm = line.split()
        child = os.fork()
        if not child:
            print(measure(cell, *map(int, sizes), mode, int(warm)), flush=True)  # pyright: ignore
            os._exit(0)
        os.waitpid(child, 0)
