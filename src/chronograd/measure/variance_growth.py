r"""Whether the variance of random truncation is finite: rho^2 against 1 - c.

The gradient of lag k has a size of about rho^k, rho being the factor by which gradients grow a step, and the weight R_k
of mean 1. Its second moment is rho^(2k) E[R_k^2].

- Geometric tail, cut probability c: E[R_k^2] = (1 - c)^-k. The variance of a lag's gradient grows by the factor

      rate = rho^2 / (1 - c)

  a step, and the variance of their sum is finite where rho^2 < 1 - c, which is a mean length 1 / c > 1 / (1 - rho^2).
  For a linear recurrence z_t = v + xi_t A z_{t-1} the condition is sharp: its second moment solves a Lyapunov equation
  with A / sqrt(1 - c), which has a finite solution exactly where the spectral radius of A is below sqrt(1 - c) (or v
  has no part in the eigenvectors beyond).
- Polynomial tail: E[R_k^2] <= 1 / P(length > k) ~ k^alpha. The variance is finite for every rho < 1, at any mean length
  and any alpha; the rate is rho^2, but for that power.
- rho >= 1: infinite with either tail, at any mean length. The exact gradient has no limit then either.

Infinite is meant in the limit of many steps. Over T steps every variance is finite, and grows like rate^T.

Known gaps: rho is given, or is the spectral radius of a matrix; it is not measured on a model.

References: Tallec and Ollivier, "Unbiasing truncated backpropagation through time", arXiv:1705.08209 (2017); Beatson
and Adams, "Efficient optimization of loops and limits with randomized telescoping sums", ICML 2019.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from chronograd.truncation import RandomTruncation

__all__ = ["VarianceGrowth", "variance_growth"]


@dataclass(frozen=True)
class VarianceGrowth:
    """Whether the variance of random truncation stays finite as the look-back grows.

    Attributes:
        truncation: as the command line writes it.
        growth: rho, the factor by which gradients grow (or shrink) a step.
        rate: the factor by which the variance of one lag's gradient grows a step: rho^2 / (1 - c), or rho^2 for the
            polynomial tail, whose weights add a power of the lag.
        finite: whether the variance has a finite limit: ``rate`` < 1.
        mean_length: the variance is finite for mean lengths above this one; None where it is for none.
    """

    truncation: str
    growth: float
    rate: float
    finite: bool
    mean_length: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        if self.finite:
            power = ", but for a power of the lag" if "polynomial" in self.truncation else ""
            return f"variance shrinks by {self.rate:.4g} a step{power}: finite"
        text = f"variance grows by {self.rate:.4g} a step: infinite"
        if self.mean_length is None:
            return f"{text} at any mean length; exact gradients do not shrink either ({self.growth:.4g} a step)"
        return f"{text}; take a mean length above {self.mean_length:.4g}"


def variance_growth(recurrence: Tensor | float, truncation: RandomTruncation) -> VarianceGrowth:
    """Whether random truncation of a recurrence has a finite variance, from the rate at which its gradients grow.

    For a nonlinear recurrence rho is exp of the largest Lyapunov exponent; the spectral radius of its W_hh is not it.
    When not to use it: to learn how large the variance is. Finite is not small: a matrix that is not normal may first
    grow by orders of magnitude (influence balancing has rho = 1/2, and a deviation of 201 around a mean of -6 at mean
    length 8). `random_variance.influence_moments` and `gradient_moments` compute it.

    Args:
        recurrence: W_hh (n, n) or the diagonal (n,) of a linear recurrence, real or complex, whose spectral radius is
            rho; or rho itself, a number of at least 0, for any model.
        truncation: geometric or polynomial.

    Raises:
        TypeError: ``recurrence`` is neither, or ``truncation`` is no RandomTruncation.
        ValueError: the tensor's shape is another, an entry is not finite, or the number is negative.

    >>> print(variance_growth(0.95, RandomTruncation(6)))
    variance grows by 1.083 a step: infinite; take a mean length above 10.26
    >>> print(variance_growth(0.95, RandomTruncation(16)))
    variance shrinks by 0.9627 a step: finite
    >>> print(variance_growth(0.95, RandomTruncation(6, tail="polynomial")))
    variance shrinks by 0.9025 a step, but for a power of the lag: finite
    """
    if not isinstance(truncation, RandomTruncation):
        raise TypeError(f"variance_growth: truncation must be a RandomTruncation, not {truncation!r}")
    rho = _radius(recurrence)
    rate = rho**2 / (1 - 1 / truncation.mean_length) if truncation.tail == "geometric" else rho**2
    least = None if rho >= 1 else 1 / (1 - rho**2) if truncation.tail == "geometric" else 1.0
    return VarianceGrowth(truncation.spec(), rho, rate, rate < 1, least)


def _radius(recurrence: Tensor | float) -> float:
    if isinstance(recurrence, Tensor) and recurrence.dim():
        if not (recurrence.is_floating_point() or recurrence.is_complex()):
            raise TypeError(f"variance_growth: a matrix must hold floating-point numbers, not {recurrence.dtype}")
        square = recurrence.dim() == 2 and recurrence.shape[0] == recurrence.shape[1]
        if not recurrence.numel() or not (square or recurrence.dim() == 1):
            raise ValueError(f"variance_growth: a matrix must be (n, n) or (n,), got {tuple(recurrence.shape)}")
        if not bool(torch.isfinite(recurrence).all()):
            raise ValueError("variance_growth: the matrix holds NaN or infinity")
        values = recurrence.detach().cpu().to(torch.complex128)
        return float((torch.linalg.eigvals(values) if square else values).abs().max())
    number = recurrence.item() if isinstance(recurrence, Tensor) else recurrence
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"variance_growth: recurrence must be a matrix or the growth of a step, not {recurrence!r}")
    if not 0 <= number < math.inf:
        raise ValueError(f"variance_growth: the growth of a step must be finite and at least 0, not {number}")
    return float(number)
