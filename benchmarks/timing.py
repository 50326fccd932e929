"""Timing that a shared machine disturbs as little as possible: interleaved runs, and medians."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, median
from time import perf_counter

__all__ = ["geometric_mean", "inside", "interleaved", "markdown", "medians", "whole_process"]


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    before: Callable[[], object] = lambda: None,
    at_least: float = 0.0,
    warm: bool = False,
) -> dict[str, list[float]]:
    """Seconds of each function in every round; the functions take turns, so that a slow moment meets them all.

    ``before`` runs ahead of each call and is not timed. A function that times itself (in another process) returns its
    seconds. Where the rounds are over before ``at_least`` seconds are, there are more, up to five times as many.
    Each function runs once before the first round, unless all are ``warm``.
    """
    for function in () if warm else functions.values():
        before()
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    begun, done = perf_counter(), 0
    while done < rounds or (done < 5 * rounds and perf_counter() - begun < at_least):
        for name, function in functions.items():
            before()
            start = perf_counter()
            own = function()
            seconds[name].append(own if isinstance(own, float) else perf_counter() - start)
        done += 1
    return seconds


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each function's seconds."""
    return {name: median(each) for name, each in seconds.items()}


def geometric_mean(values: Iterable[float]) -> float:
    """The mean that suits ratios.

    >>> geometric_mean([0.5, 2.0])
    1.0
    """
    return math.exp(fmean(map(math.log, values)))


def whole_process(arguments: Sequence[str], rounds: int) -> float:
    """Median seconds from the start of ``python ARGUMENTS`` to its end."""
    seconds = []
    for _ in range(rounds):
        start = perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        seconds.append(perf_counter() - start)
    return median(seconds)


def inside(code: str, rounds: int) -> float:
    """Median of the one number that ``code`` prints, over fresh processes."""
    return median(
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
        for _ in range(rounds)
    )


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left and the others to the right."""
    lines = [f"| {' | '.join(headings)} |", "|---|" + "---:|" * (len(headings) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
