"""How each recurrent loop of a call was computed: what ``gradient.how`` holds after ``mode=cg.Scan()``."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Way"]


@dataclass(frozen=True)
class Way:
    """One recurrent loop of a call, in one direction or both.

    Attributes:
        loop: what it is, such as ``"gru layer of 8 units"``.
        how: ``"scan"``, ``"newton"``, ``"quasi"``, ``"jacobians"`` (states by the loop, the way back a scan) or
            ``"loop"`` (nothing in parallel).
        why: why it is not the scan that was asked for; empty where it is.
        residuals: max |h_t - f(x_t, h_{t-1})| before each iteration of Newton's method.
        changes: max |new h_t - old h_t| of each iteration; the last is below the tolerance, or rounding. On the way
            back of ``quasi`` both are of delta_t, relative to the largest.

    >>> way = Way("gru layer of 8 units", "newton", residuals=(0.5, 1e-4), changes=(0.6, 2e-13))
    >>> print(way)
    gru layer of 8 units: newton, 2 iterations, last change 2.0e-13
    """

    loop: str
    how: str
    why: str = ""
    residuals: tuple[float, ...] = ()
    changes: tuple[float, ...] = ()

    @property
    def iterations(self) -> int:
        """Of Newton's method; 0 where there were none to make."""
        return len(self.changes)

    def __str__(self) -> str:
        text = f"{self.loop}: {self.how}"
        if self.changes:
            text += f", {self.iterations} iterations, last change {self.changes[-1]:.1e}"
        return f"{text} ({self.why})" if self.why else text
