"""Newton's method as a mode asks for it: how exactly, how long, in how much memory; what it says when it fails."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from chronograd.kernels import Edges

from .associative import BLOCK, Coefficients, Diagonal, scan
from .mode import Scan
from .newton import NotConverged, Solved, Step, growth, solve, solve_back, tolerance_of
from .report import Way

__all__ = ["OVERFLOWS", "Solver", "TooManyBytes"]

OVERFLOWS = "products of coefficients over many steps are too large for a scan"

# Steps over which growth is measured, and the bytes that their Jacobians may take.
MEASURED, MEASURED_BYTES = 500, 2**26


class TooManyBytes(ValueError):
    """Full Jacobians take more than the mode's limit: ``needed`` bytes, which grow with the steps."""

    def __init__(self, text: str, needed: int) -> None:
        super().__init__(text)
        self.needed = needed

    def __reduce__(self) -> tuple[type[TooManyBytes], tuple[str, int]]:
        return type(self), (str(self), self.needed)


@dataclass(frozen=True)
class Solver:
    """One recurrent loop under a mode: ``loop`` says what it is, ``ways`` collects how it was computed."""

    mode: Scan
    loop: str
    ways: list[Way]

    def check_dtype(self, dtype: torch.dtype, linear: bool) -> None:
        """Refuse half precision, and complex numbers where the cell is not linear.

        Raises:
            ValueError
        """
        wanted = [torch.float32, torch.float64, *([torch.complex64, torch.complex128] if linear else [])]
        if dtype not in wanted:
            name = str(dtype).removeprefix("torch.")
            raise ValueError(
                f"mode {self.mode}: the {self.loop} computes in {name}, which a scan over time does not "
                "(float32 and float64, complex for linear and diagonal layers); convert the model, or use "
                "mode=cg.Reverse()"
            )

    def check_bytes(self, count: int, size: int, dtype: torch.dtype) -> None:
        """Refuse Jacobians of ``count`` steps and rows and states of ``size`` that take more than the limit: they lie
        in memory about twice while they are made.

        Raises:
            TooManyBytes
        """
        needed = 2 * count * size**2 * dtype.itemsize
        if self.mode.forward != "quasi" and needed > self.mode.limit:
            raise TooManyBytes(
                f"mode {self.mode}: full Jacobians of the {self.loop}, {count} steps times rows of "
                f"{size} x {size} numbers, take {_megabytes(needed)}, and the limit is {_megabytes(self.mode.limit)}; "
                f'use cg.Scan("quasi"), cg.Scan(limit={needed}) or mode=cg.Reverse()',
                needed,
            )

    def check_powers(self, steps: int, rows: int, size: int, dtype: torch.dtype) -> None:
        """Refuse powers of one matrix of ``size`` for each row and block of steps that take more than the limit: rows
        that end early have their own, and they lie in memory about twice while they are gathered.

        Raises:
            TooManyBytes
        """
        count = -(-steps // BLOCK) * rows
        needed = 2 * count * size**2 * dtype.itemsize
        if needed > self.mode.limit:
            raise TooManyBytes(
                f"mode {self.mode}: rows of the {self.loop} end early, so each has its own powers of the weight, "
                f"{count} blocks times rows of {size} x {size} numbers, which take {_megabytes(needed)}, and the limit "
                f"is {_megabytes(self.mode.limit)}; use cg.Scan(always=True, limit={needed}), no lengths, or "
                "mode=cg.Reverse()",
                needed,
            )

    def solve(self, step: Step, start: Tensor, edges: Edges, steps: int, walk: Callable[[int], Tensor]) -> Tensor:
        """The states (T, B, n); ``walk(few)`` gives the Jacobians of the first few steps of the loop, where Newton
        fails.

        Raises:
            ValueError: where it does not converge.
        """
        mode, tolerance = self.mode, tolerance_of(self.mode.tolerance, start.dtype)
        try:
            found = solve(
                step,
                start,
                edges,
                steps,
                full=mode.forward == "newton",
                iterations=mode.iterations,
                tolerance=tolerance,
            )
        except NotConverged as failed:
            bytes_of_step = start.numel() * start.shape[-1] * start.itemsize
            few = min(steps, MEASURED, max(20, MEASURED_BYTES // max(1, bytes_of_step)))
            self._refuse(failed, tolerance, "states", steps, walk(few))
        self.note(found)
        return found.path

    def solve_back(self, pull: Callable[[Tensor], Tensor], own: Diagonal, given: Tensor, before: Tensor) -> Tensor:
        """The cotangents of the states (T, B, n), given the states ``before`` each step.

        Raises:
            ValueError: where the iteration does not converge.
        """
        tolerance = tolerance_of(self.mode.tolerance, given.dtype)
        try:
            found = solve_back(pull, own, given, before, iterations=self.mode.iterations, tolerance=tolerance)
        except NotConverged as failed:
            self._refuse(failed, tolerance, "cotangents", len(given), None)
        self.note(found, back=True)
        return found.path

    def scan_back(self, coefficients: Coefficients, given: Tensor) -> Tensor:
        """The cotangents of the states (T, B, n), by one scan with the coefficients of all steps but the first; one
        step after the other where their products overflow, and what they are multiplied by is zero.
        """
        first, last = given[:-1], given[-1]
        delta = torch.cat((scan(coefficients, first, last, reverse=True), given[-1:]))
        if not bool(torch.isfinite(delta).all()) and bool(torch.isfinite(given).all()):
            self.ways.append(Way(f"{self.loop}, way back", "loop", OVERFLOWS))
            delta = torch.cat((scan(coefficients, first, last, reverse=True, block=len(given)), given[-1:]))
        return delta

    def note(self, found: Solved, back: bool = False) -> None:
        """Report how a root was found."""
        loop = f"{self.loop}, way back" if back else self.loop
        self.ways.append(Way(loop, self.mode.forward, residuals=found.residuals, changes=found.changes))

    def _refuse(
        self, failed: NotConverged, tolerance: float, what: str, steps: int, jacobian: Tensor | None
    ) -> NoReturn:
        allowed = len(failed.changes)
        if not math.isfinite(failed.changes[-1]):
            raise ValueError(
                f"mode {self.mode}: the {self.loop} did not converge, its {what} overflow in {allowed} iterations; use "
                "mode=cg.Reverse(), which shows whether the model's own do"
            )
        still = f"its {what} still change by {failed.changes[-1]:.1e} after {allowed} iterations"
        if failed.astray is not None:
            still = f"what came before step {failed.astray} is still on its way through it after {allowed} iterations"
        text = f"mode {self.mode}: the {self.loop} did not converge, {still} (tolerance {tolerance:.1e})"
        rate = None if jacobian is None else growth(jacobian)
        if rate is None or not rate > 0:
            forgets = "" if rate is None else f", though nearby states come together by {math.exp(rate):.3f} a step"
            needed = steps if failed.astray is not None else _needed(failed.changes, tolerance)
            ways = ['cg.Scan("newton")'] if self.mode.forward == "quasi" else []
            if needed is None:
                forgets = f" and no less than before{forgets}"
            else:
                which = '"quasi", ' if self.mode.forward == "quasi" else ""
                ways.append(f"cg.Scan({which}iterations={min(needed, steps + 1)})")
            raise ValueError(f"{text}{forgets}; use {' or '.join([*ways, 'mode=cg.Reverse()'])}")
        raise ValueError(
            f"{text}: the recurrence is chaotic, nearby states grow apart by {math.exp(rate):.3f} a step (Lyapunov "
            f"exponent {rate:+.3f} over {len(jacobian)} steps); use mode=cg.Reverse()"  # pyright: ignore[reportArgumentType]
        )


def _needed(changes: tuple[float, ...], tolerance: float) -> int | None:
    """Half as many iterations more than the changes would take to shrink to the tolerance if they went on as they last
    did; None where they do not shrink.

    >>> _needed((1.0, 1e-1, 1e-2, 1e-3), 1e-7), _needed((1.0, 0.9, 1.1, 0.9), 1e-7)
    (12, None)
    """
    before, last = changes[len(changes) // 2 - 1], changes[-1]
    if len(changes) > 1 and not last < before:
        return None
    if len(changes) < 4:
        return 20 * len(changes)
    rate = math.log(before / last) / (len(changes) - len(changes) // 2)
    return math.ceil(1.5 * (len(changes) + math.log(max(1.0, last / max(tolerance * changes[0], 1e-300))) / rate))


def _megabytes(count: int) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.1f} MB"
