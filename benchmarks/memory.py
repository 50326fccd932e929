"""The most memory that one layer's forward and backward pass needs at once, beyond what the caller holds.

Run as a script it is the server that measures: for each line on its standard input, ``WHOSE LAYER T B d H``, it forks a
process that has run no layer yet, and that process prints the bytes. What is counted is resident anonymous memory, as
the kernel counts it: whatever asked for it, torch, oneDNN or our kernels, caches and scratch memory included.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cases import KINDS, Case, Shape

__all__ = ["Memory", "memory_server"]

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

# The allocator gives back at once what is freed, and keeps nothing for later.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "0",
    "MALLOC_TOP_PAD_": "0",
    "MALLOC_ARENA_MAX": "1",
}


class Memory:
    """A running server; ``bytes`` asks it."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self.server = server

    def bytes(self, whose: str, name: str, shape: Shape) -> int:
        """The peak of a call of ``"torch"``'s layer or ``"ours"``."""
        assert self.server.stdin and self.server.stdout
        print(whose, name, *shape, file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())


@contextmanager
def memory_server(threads: int) -> Iterator[Memory | None]:
    """A server with so many threads of torch; None where the system does not tell a process its peak."""
    if not CLEAR.exists():
        yield None
        return
    command, environment = [sys.executable, __file__, str(threads)], {**os.environ, **ENVIRONMENT}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield Memory(server)
        assert server.stdin
        server.stdin.close()


def measure(whose: str, name: str, shape: Shape) -> int:
    """Bytes at the peak of a call, without the inputs, the outputs' cotangent, the weights and their gradients.

    What was there before the layer had run at all is subtracted from the peak of its second call, so that memory kept
    between calls counts. Pages of code do not.
    """
    tiny = Case(name, Shape(2, 1, 1, 1))
    tiny.run(getattr(tiny, whose))
    case = Case(name, shape)
    layer = getattr(case, whose)
    ctypes.CDLL(None).malloc_trim(0)
    before = _kilobytes("RssAnon")
    case.run(layer)
    case.clear()
    CLEAR.write_text("5", encoding="ascii")
    case.run(layer)
    peak = _kilobytes("VmHWM") - _kilobytes("RssFile") - _kilobytes("RssShmem")
    return max(0, 1024 * (peak - before) - sum(value.nbytes for value in layer.parameters()))


def _kilobytes(field: str) -> int:
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def serve(threads: int) -> None:
    import torch

    for line in sys.stdin:
        whose, name, *shape = line.split()
        assert name in KINDS
        child = os.fork()
        if not child:
            torch.set_num_threads(threads)
            print(measure(whose, name, Shape(*map(int, shape))), flush=True)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
