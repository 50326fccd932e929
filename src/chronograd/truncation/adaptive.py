"""Adaptive truncation: the shortest look-back whose relative bias is bounded by a tolerance.

Reference: Aicher, Foti and Fox, "Adaptively truncating backpropagation through time to control gradient bias" (UAI
    2019).
With phi_k = E ||dL_s/dh_{s-k}||, assumed to decay by a factor beta from some lag on, the bias of keeping the lags
0..K-1 is at most E(K) = M sum_{k>=K} phi_k and the relative bias at most delta(K) = E(K) / (||g|| - E(K)); the bound
M on ||dh/dw|| cancels when ||g|| is measured in the same units.

Known gaps: beta is fitted on a finite window by least squares on log phi, so a dependence longer than the window is not
seen; the bound is on the expected gradient, not on one minibatch's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .base import Place, Span, SpanPlan, Truncation, whole_number

__all__ = ["AdaptiveTruncation", "LagStatistics", "relative_bias"]


@dataclass(frozen=True)
class LagStatistics:
    """What a block's decision rests on, for lags 0..D-1.

    ``norms[k]`` is the mean over losses s and rows of ||dL_s/dh_{s-k}||; ``totals[k]`` the norm of the mean of
    sum_{j<=k} dL_s/dh_{s-j}: how much gradient the first k + 1 lags hold together, cancellations included.
    """

    norms: Sequence[float]
    totals: Sequence[float]


def relative_bias(statistics: LagStatistics) -> list[float]:
    """The bound delta(K) on the relative bias of keeping K lags, for K = 1..D (infinite where no bound holds).

    >>> decay = [0.5**k for k in range(40)]
    >>> sums = [sum(decay[: k + 1]) for k in range(40)]
    >>> bound = relative_bias(LagStatistics(decay, sums))
    >>> round(bound[0], 6), round(bound[4], 6)   # E(K) = 2 * 0.5^K against a total of 2
    (0.5, 0.03125)
    """
    norms, depth = statistics.norms, len(statistics.norms)
    logs = [(k, math.log(norm)) for k, norm in enumerate(norms) if k >= depth // 2 and norm > 1e-30]
    tail = 0.0
    if len(logs) >= 2:
        mean_k, mean_log = sum(k for k, _ in logs) / len(logs), sum(v for _, v in logs) / len(logs)
        slope = sum((k - mean_k) * (v - mean_log) for k, v in logs) / sum((k - mean_k) ** 2 for k, _ in logs)
        # Beyond the window phi goes on as its fitted line does; a line that does not fall has no finite tail.
        tail = math.exp(mean_log + slope * (depth - mean_k)) / (1.0 - math.exp(slope)) if slope < -1e-12 else math.inf
    missing = [tail] * depth
    for k in range(depth - 1, 0, -1):
        missing[k - 1] = missing[k] + norms[k]
    lower = max((total - lost for total, lost in zip(statistics.totals, missing)), default=0.0)
    return [0.0 if lost == 0 else lost / lower if lower > 0 and lost < math.inf else math.inf for lost in missing]


@dataclass(frozen=True)
class AdaptiveTruncation(Truncation):
    """The smallest look-back K whose relative bias is bounded by ``tolerance``, decided anew every ``window`` steps.

    At the stream positions window, 2 window, ... the last ``window`` completed steps are measured (phi_k for lags up
    to window / 2) and K is chosen for the steps that follow, so that every loss reaches back at least K steps: blocks
    of K losses with windows of 2K - 1 steps. K is at most window // 2, which is also its first value. Deterministic
    given the data; biased within the tolerance.

    When not to use it: on short sequences (fewer than two windows), with random states (dropout) that make the
    measure noisy, or when you know k: the measurement costs about as much as one more backward pass.

    Args:
        tolerance: bound on the relative bias, above 0 (0.1 keeps the bias to a tenth of the gradient).
        window: steps between decisions, at least 4.

    >>> AdaptiveTruncation(0.1).spec()
    'adaptive:0.1,100'
    """

    tolerance: float
    window: int = 100
    primitive = "spans"
    name = "adaptive"

    def __post_init__(self) -> None:
        if isinstance(self.tolerance, bool) or not isinstance(self.tolerance, int | float):
            raise TypeError(f"AdaptiveTruncation: tolerance must be a number, not {self.tolerance!r}")
        if not 0 < self.tolerance < float("inf"):
            raise ValueError(f"AdaptiveTruncation: tolerance must be above 0, not {self.tolerance:g}")
        whole_number("AdaptiveTruncation", "window", self.window, least=4)

    @property
    def depth(self) -> int:
        """The largest look-back, and the number of lags that are measured."""
        return self.window // 2

    def decide(self, statistics: LagStatistics) -> int:
        """The smallest K with delta(K) <= tolerance; ``depth`` when none is."""
        for k, bound in enumerate(relative_bias(statistics), start=1):
            if bound <= self.tolerance:
                return k
        return self.depth

    @property
    def samples(self) -> list[int]:
        """The steps of a window, counted from its start, whose losses are measured: up to four, evenly spaced over
        its second half.
        """
        first, last = self.depth, self.window - 1
        return sorted({round(first + part * (last - first) / 3) for part in range(4)})

    def next_decision(self, position: int) -> int:
        """The first decision after ``position``."""
        return (position // self.window + 1) * self.window

    def plan(self, place: Place, look_back: int | None = None) -> SpanPlan:
        """Spans of the steps at ``place``, which must not cross a decision, under the look-back decided for them."""
        k = self.depth if look_back is None else look_back
        base, end = place.position // self.window * self.window, place.position + place.steps
        if end > base + self.window:
            raise ValueError("AdaptiveTruncation.plan: the steps asked for cross a decision")
        spans = []
        for block in range((place.position - base) // k, (end - 1 - base) // k + 1):
            begin = base + block * k
            spans.append(Span(max(0, begin - k + 1), max(place.position, begin), min(begin + k, end) - 1))
        begin = base + (end - base) // k * k if end < base + self.window else end
        reach = begin - (k if end < base + self.window else self.depth) + 1
        return SpanPlan(spans, max(0, min(base if end < base + self.window else end, reach)))
