"""A jitted ``jax.lax.scan``, timed in a process of its own that takes turns with ours."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep

import numpy as np
import torch
from cases import Case
from torch import Tensor

__all__ = ["Scan", "jax_python", "scan_process"]

# Threads that wait for work spin for a while; the other process's turn begins when they have stopped.
PAUSE = 0.01
WORKER = Path(__file__).with_name("scan_worker.py")


def jax_python(named: str | None) -> str | None:
    """The interpreter that has jax: the named one, or this one where it can import jax, or none."""
    return named or (sys.executable if importlib.util.find_spec("jax") else None)


class Scan:
    """A running worker; ``version`` is jax's."""

    def __init__(self, worker: subprocess.Popen[str], folder: Path) -> None:
        self.worker, self.folder = worker, folder
        self.version = self._answer()

    def prepare(self, case: Case) -> dict[str, Tensor]:
        """Compile for a case; the gradients, by the names of ``Case.gradients``."""
        given: Mapping[str, Tensor] = {"inputs": case.inputs, "cotangent": case.cotangent, **case.ours.state_dict()}
        np.savez(self.folder / "given.npz", **{name: value.detach().numpy() for name, value in given.items()})
        self._ask(f"prepare {case.name} {self.folder}")
        with np.load(self.folder / "found.npz") as found:
            return {name: torch.from_numpy(found[name]) for name in found.files}

    def run(self) -> float:
        """The seconds of one call, until its gradients are ready."""
        sleep(PAUSE)
        took = float(self._ask("go"))
        sleep(PAUSE)
        return took

    def _ask(self, line: str) -> str:
        assert self.worker.stdin
        print(line, file=self.worker.stdin, flush=True)
        return self._answer()

    def _answer(self) -> str:
        assert self.worker.stdout
        answer = self.worker.stdout.readline().strip()
        if not answer:
            raise RuntimeError("the process that runs jax ended; what it said is above")
        return answer


@contextmanager
def scan_process(python: str | None, threads: int) -> Iterator[Scan | None]:
    """A worker whose compiled code runs on so many threads; None without jax.

    XLA makes as many threads as the variable NPROC says.
    """
    if python is None:
        yield None
        return
    left_out = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "XLA_FLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {"NPROC": str(threads), "JAX_PLATFORMS": "cpu"}
    with (
        TemporaryDirectory() as folder,
        subprocess.Popen(
            [python, str(WORKER)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as worker,
    ):
        yield Scan(worker, Path(folder))
        assert worker.stdin
        worker.stdin.close()
