"""Newton's method over a whole sequence, and on the way back the same with diagonals.

The states of a recurrence are the root of all h_t - f(x_t, h_{t-1}) at once. A step of Newton's method linearizes f at
the guess and solves the linear recurrence that comes of it, with one scan::

    h_t <- f(x_t, h_{t-1}^old) + J_t (h_{t-1} - h_{t-1}^old)

After k iterations the first k states are right whatever f is, so T are enough; where the recurrence forgets, the
number does not grow with T and the error is squared each time. With the diagonal of J_t alone the steps are cheaper
and the error shrinks by a factor instead; what is small in all states but still on its way through them may grow again,
so small changes alone are not the end. Lim et al., arXiv:2309.12252 (DEER); Gonzalez et al., arXiv:2407.19115
(quasi-DEER).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from chronograd.kernels import Edges

from .associative import Diagonal, scan
from .edges import step_coefficients

__all__ = ["NotConverged", "Solved", "growth", "solve", "solve_back", "tolerance_of"]

Step = Callable[[Tensor, bool | None], tuple[Tensor, Tensor]]
# Of a rounding of f, as a change of the last digit before it shows it: sums of many numbers round more than once.
ROUNDINGS = 32
PROBED = 8  # steps over which a probe turns into the direction that grows


@dataclass(frozen=True)
class Solved:
    """The root (T, B, n), and how far it was before each iteration and moved in it."""

    path: Tensor
    residuals: tuple[float, ...]
    changes: tuple[float, ...]


class NotConverged(Exception):
    """The allowed iterations were not enough; ``changes`` of each. ``astray`` is the first step that was still wrong by
    more than rounding where nothing large changed any more, else None.
    """

    def __init__(self, changes: tuple[float, ...], astray: int | None = None) -> None:
        super().__init__(f"no convergence in {len(changes)} iterations")
        self.changes, self.astray = changes, astray


def tolerance_of(given: float | None, dtype: torch.dtype) -> float:
    """The given tolerance, or eps^(3/4): well above rounding, and its square far below."""
    return torch.finfo(dtype).eps ** 0.75 if given is None else given


def solve(
    step: Step, start: Tensor, edges: Edges, steps: int, *, full: bool, iterations: int, tolerance: float
) -> Solved:
    """The states of a recurrence, from a guess of zeros.

    Args:
        step: ``step(before, full) -> (after, jacobian)``: f at the states (T, B, n) before each step, and J (T, B, n,
            n), or with ``full=False`` its diagonal (T, B, n), a tensor of its own; with None f alone is asked for.
            Where a row resets it gives the fresh step whatever comes before.
        start: the state before the first step, (B, n).
        edges: resets and frozen rows.

    Returns:
        The states; all NaN where f is not finite to begin with: then the data are not, or f is not at a state of zeros.

    Raises:
        NotConverged: when a number of a row's state still changes by more than ``tolerance`` times its largest value,
            or is at some step further from f than ``tolerance`` times its own size there.

    >>> halve = lambda before, full: (before.cos(), -before.sin())
    >>> found = solve(halve, torch.zeros(1, 1), Edges(), 50, full=False, iterations=20, tolerance=1e-6)
    >>> round(found.path[-1].item(), 5), len(found.changes)
    (0.73909, 6)
    """
    path = start.new_zeros(steps, *start.shape)
    residuals: list[float] = []
    changes: list[float] = []
    shares: list[float] = []
    astray = None
    idle = None if edges.valid is None else ~edges.valid.unsqueeze(-1)

    def arrive(before: Tensor, full: bool | None) -> tuple[Tensor, Tensor]:
        after, jacobian = step(before, full)
        return after if idle is None else torch.where(idle, before, after), jacobian

    for _ in range(iterations):
        before = torch.cat((start.unsqueeze(0), path[:-1]))
        after, jacobian = arrive(before, full)
        residuals.append(float((after - path).abs().amax()))
        if not changes and not math.isfinite(residuals[0]):  # f of plain zeros: the data or the weights are not finite
            return Solved(torch.full_like(path, torch.nan), tuple(residuals), ())
        coefficients = step_coefficients(jacobian, edges)
        # b = f - J h, by the coefficients themselves: a cut or frozen row is then what they say.
        terms = after - coefficients.step(slice(None), before, torch.zeros_like(before))
        new = scan(coefficients, terms, start)
        moved = (new - path).abs()
        changes.append(float(moved.amax()))
        # The right beginning of the path grows by a step at least each time, so what overflowed may begin again.
        path = torch.where(torch.isfinite(new), new, 0)
        astray = None
        settled = _settled(path, moved, shares, tolerance)
        del before, after, jacobian, coefficients, terms, new, moved  # room for what looking takes
        if settled:
            astray = _astray(lambda before: arrive(before, None)[0], start, path, tolerance)
            if astray is None:
                return Solved(path, tuple(residuals), tuple(changes))
    raise NotConverged(tuple(changes), astray)


def solve_back(
    pull: Callable[[Tensor], Tensor],
    own: Diagonal,
    given: Tensor,
    before: Tensor,
    *,
    iterations: int,
    tolerance: float,
) -> Solved:
    """All delta_t = g_t + M_{t+1} delta_{t+1} with no M in memory: its diagonal is scanned, the rest iterated.

    Args:
        pull: delta (T, B, n) -> M_t delta_t (T, B, n), for all steps at once.
        own: the diagonals of M_t, all T of them.
        given: g, (T, B, n).
        before: the states before each step, (T, B, n), which delta is multiplied by in gradients.

    Returns:
        delta; all NaN where g is not finite.

    Raises:
        NotConverged: as ``solve``.
    """
    later = slice(1, None)
    own = Diagonal(own.values[later], None if own.cut is None else own.cut[later])
    rates, rounding = None, ROUNDINGS * torch.finfo(given.dtype).eps
    delta = torch.zeros_like(given)
    residuals: list[float] = []
    changes: list[float] = []
    shares: list[float] = []
    for _ in range(iterations):
        terms = given.clone()
        terms[:-1] += pull(delta)[1:]
        residual = float((terms - delta).abs().amax())
        if not changes and not math.isfinite(residual):
            return Solved(torch.full_like(given, torch.nan), (residual,), ())
        terms[:-1] -= own.step(slice(None), delta[1:], torch.zeros_like(delta[1:]))
        new = torch.cat((scan(own, terms[:-1], terms[-1], reverse=True), terms[-1:]))
        moved = (new - delta).abs()
        delta = torch.where(torch.isfinite(new), new, 0)
        size = max(float(delta.abs().amax()), torch.finfo(given.dtype).tiny)
        residuals.append(residual / size)
        changes.append(float(moved.amax()) / size)
        settled = _settled(delta, moved, shares, tolerance)
        del terms, new, moved
        if settled:
            flow = torch.cat((pull(delta)[1:], torch.zeros_like(delta[:1])))
            off = (given + flow - delta).norm(dim=-1, keepdim=True)
            done = _right(off, delta, tolerance) or _right(off, given.abs() + flow.abs() + delta.abs(), rounding)
            if not done:
                rates = _rates(pull, delta) if rates is None else rates
                done = _stays_small(off, rates, delta, before, tolerance)
            if done:
                return Solved(delta, tuple(residuals), tuple(changes))
    raise NotConverged(tuple(changes))


def _astray(f: Callable[[Tensor], Tensor], start: Tensor, path: Tensor, tolerance: float) -> int | None:
    """The first step whose state is not f of the one before, to ``tolerance`` of each number's own size there or to
    rounding; None where there is none.

    Changes that are small beside the largest state do not tell: what is on its way through small states may grow again.
    A number that only crosses zero has its size in the steps beside it.
    """
    before = torch.cat((start.unsqueeze(0), path[:-1]))
    after = f(before)
    size = torch.cat((before, path[-1:])).abs()
    size = torch.maximum(size[:-1], size[1:])
    size[:-1] = torch.maximum(size[:-1], size[1:])
    off, numbers = (after - path).abs(), torch.finfo(path.dtype)
    slack = tolerance * size + numbers.tiny
    if not bool((off <= slack).all()):
        signs = torch.randint(2, before.shape, generator=torch.Generator().manual_seed(0)).to(before) * 2 - 1
        turns = numbers.eps * before * signs
        one, other = ((f(before + turn) - after).abs() for turn in (turns, -turns))  # a kink shows on one side only
        slack = slack + ROUNDINGS * (torch.maximum(one, other) + numbers.eps * after.abs())
    wrong = (~(off <= slack)).flatten(1).any(1)
    return int(wrong.nonzero()[0]) if bool(wrong.any()) else None


def _rates(pull: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """How much a cotangent grows from each step to the one before, (T - 1, B, 1), seen on probes that have turned into
    the direction that grows.
    """
    random = torch.Generator().manual_seed(0)
    probe = torch.randn(like.shape, generator=random, dtype=torch.float64).to(like)
    last = probe[-1:]
    rates = like.new_zeros(*like.shape[:-1], 1)
    for _ in range(PROBED):
        probe = probe / probe.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(like.dtype).tiny)
        probe = torch.cat((pull(probe)[1:], last))
        rates = probe.norm(dim=-1, keepdim=True)
    return rates[:-1]


def _right(off: Tensor, found: Tensor, tolerance: float) -> bool:
    """Whether each step is ``off`` by little beside its own size."""
    slack = tolerance * found.norm(dim=-1, keepdim=True) + torch.finfo(found.dtype).tiny
    return bool((off <= slack).all())


def _stays_small(off: Tensor, rates: Tensor, found: Tensor, before: Tensor, tolerance: float) -> bool:
    """Whether what each step is ``off`` by stays little beside the largest on its whole way back, by itself and times
    each number of the state that it meets: it may be little now and grow where it comes to next, or meet larger ones.
    """
    left = torch.cat((scan(Diagonal(rates), off[:-1], off[-1], reverse=True), off[-1:]))
    size = found.norm(dim=-1, keepdim=True)
    return all(
        bool(((left * factor).amax(0) <= tolerance * (size * factor).amax(0)).all())
        for factor in (torch.ones_like(left), before.abs())
    )


def _settled(found: Tensor, moved: Tensor, shares: list[float], tolerance: float) -> bool:
    """Whether each number of each row's state moved little beside its own largest value over time, so that a large one
    hides no small one; ``shares`` are what the worst of them moved by in each iteration. Or all of them little beside
    the largest, and the worst no less than before: then it is rounding.
    """
    size, most = found.abs().amax(0), moved.amax(0)
    shares.append(float(torch.where(most == 0, 0, most / size).amax()))
    if shares[-1] <= tolerance:
        return True
    together = float(most.amax()) <= tolerance * float(size.amax())
    return together and len(shares) > 1 and shares[-1] >= shares[-2]


def growth(jacobian: Tensor) -> float:
    """The largest Lyapunov exponent along a path, mean log of how nearby states grow apart in a step, from its
    Jacobians (T, B, n, n): that of the row where it is largest.

    >>> growth(torch.eye(3).mul(0.5).expand(20, 1, 3, 3))
    -0.693...
    """
    steps, rows, size = jacobian.shape[:3]
    random = torch.Generator().manual_seed(0)
    apart = torch.randn(rows, size, 1, generator=random, dtype=torch.float64).to(jacobian)
    total = apart.new_zeros(rows)
    for number, each in enumerate(jacobian):
        apart = each @ apart
        length = apart.norm(dim=(1, 2)).clamp_min(torch.finfo(apart.dtype).tiny)
        apart = apart / length.reshape(-1, 1, 1)
        if number >= steps // 10:  # the first steps turn any direction into the one that grows most
            total += length.log()
    return float(total.max()) / (steps - steps // 10)
