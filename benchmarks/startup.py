"""What the package adds to start-up, in fresh processes."""

from __future__ import annotations

from timing import inside, markdown, whole_process

ADDED = """
from time import perf_counter
import torch
start = perf_counter()
import chronograd
{more}
print(perf_counter() - start)
"""
TORCH = """
from time import perf_counter
start = perf_counter()
import torch
print(perf_counter() - start)
"""


def report(rounds: int) -> str:
    """The section of the page."""
    every = "for name in chronograd.__all__: getattr(chronograd, name)"
    rows = [
        ("`import torch` alone", f"{inside(TORCH, rounds):.4f}"),
        ("`import chronograd` after it", f"{inside(ADDED.format(more=''), rounds):.4f}"),
        ("the same, and every public name used", f"{inside(ADDED.format(more=every), rounds):.4f}"),
        ("`chronograd --help`, the whole process", f"{whole_process(['-m', 'chronograd', '--help'], rounds):.4f}"),
    ]
    return "## Start-up\n\nFresh processes.\n\n" + markdown(("what", "seconds"), rows)
