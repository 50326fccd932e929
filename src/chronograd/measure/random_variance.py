r"""The variance that random truncation pays for its mean, without sampling.

`cg.RandomTruncation` cuts the way back at random and weighs what passes, so that the gradient's mean is exact. With
xi_t the gate before step t, the gradient of the loss at step T that comes from lag k is multiplied by

    R_k = xi_T xi_{T-1} ... xi_{T-k+1},        E[R_k] = 1.

Given the data and the parameters the states do not depend on the gates, so the variance over the draws is linear
algebra, for nonlinear recurrences too:

- `lag_moments`: E[R_j R_k], from the survival probabilities S(n) = P(length > n). With constant c the gates are
  independent, and E[R_j R_k] = 1 / S(min(j, k)) = (1 - c)^-min(j, k). With the polynomial tail a gate depends on the
  time since the last cut, the age, which counts forward. Over the ages a of step T - k, for j <= k,

      E[R_j R_k] = sum_a P(age of T-k is a) S(a + k - j) / S(a + k),        P(age of u is a) = r_{u-a} S(a),

  with r_u the probability that a cut (or the stream's start) lies before step u: r_0 = 1 and r_u = sum_{n=1..u}
  (S(n-1) - S(n)) r_{u-n} (the renewal equation). It is at most 1 / S(j).
- `influence_moments`: mean and covariance of the influence estimate z_T = sum_k R_k A^k v of a linear recurrence, one
  loss at the end. With constant c and no start it is a Lyapunov equation, as z_t = v + xi_t A z_{t-1}:

      m = v + A m,        E[z z^T] = v v^T + v (A m)^T + (A m) v^T + (1 - c)^-1 A E[z z^T] A^T.

- `gradient_moments`: mean and variance of the gradient of losses at every step, sum_t q_t^T z_t with z_t = df_t/dw +
  xi_t J_t z_{t-1} (E7), for any recurrence: its partial derivatives are what `recurrence.sensitivity.linearize` finds.

Whether the variance stays finite as the look-back grows is `measure.variance_growth`.

Known gaps: the covariance between parameters is left out of `gradient_moments` (put a direction into the partial
derivatives instead, see there). Resets are not in the formulas: a sequence after a reset is a stream of its own.

References: Tallec and Ollivier, "Unbiasing truncated backpropagation through time", arXiv:1705.08209 (2017); Beatson
and Adams, "Efficient optimization of loops and limits with randomized telescoping sums", ICML 2019; Feller, *An
Introduction to Probability Theory and Its Applications* I, chapter XIII (renewal).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from chronograd.recurrence.sensitivity import Linearization
from chronograd.truncation import RandomTruncation
from chronograd.truncation.base import whole_number

from .variance_growth import variance_growth

__all__ = [
    "GradientMoments",
    "InfluenceMoments",
    "gradient_moments",
    "influence_moments",
    "lag_moments",
]


def lag_moments(truncation: RandomTruncation, lags: int, before: int = 0) -> Tensor:
    """E[R_j R_k] of the weights of the lags j, k = 0 .. lags - 1 of one loss, (lags, lags) float64.

    The covariance of any sum over lags follows: that of sum_k R_k u_k is sum_{j,k} (E[R_j R_k] - 1) u_j u_k^T.

    Args:
        truncation: what draws the gates.
        lags: steps that the loss reaches, its own included, at least 1.
        before: steps of the stream before those. It matters for the polynomial tail only: the later in a stream, the
            longer ago the last cut may be and the smaller the moments; some mean lengths make them stationary.

    Cost: lags^3 / 6 products for the polynomial tail, and (lags + before)^2 for its ages.

    Raises:
        TypeError: ``lags`` or ``before`` is no int, or ``truncation`` no RandomTruncation.
        ValueError: ``lags`` < 1 or ``before`` < 0, or a moment is too large for float64.

    >>> lag_moments(RandomTruncation(2), 3).tolist()                        # 2^min(j, k)
    [[1.0, 1.0, 1.0], [1.0, 2.0, 2.0], [1.0, 2.0, 4.0]]
    """
    _require_random("lag_moments", truncation)
    whole_number("lag_moments", "lags", lags)
    whole_number("lag_moments", "before", before, least=0)
    lag = torch.arange(lags)
    if truncation.tail == "geometric":
        keep = 1 - 1 / truncation.mean_length
        return _finite(keep ** -torch.minimum(lag, lag.unsqueeze(1)).to(torch.float64), truncation)
    steps = before + lags
    survival = _survival(truncation, steps + 1)
    ends = (survival[:-1] - survival[1:]).flip(0)  # P(length = steps), ..., P(length = 1)
    cut = torch.ones(1, dtype=torch.float64)  # r_0, r_1, ...
    for u in range(1, steps):
        cut = torch.cat((cut, (ends[-u:] @ cut).reshape(1)))
    moments = torch.ones(lags, lags, dtype=torch.float64)
    for k in range(1, lags):
        first = steps - 1 - k  # the step that lag k reaches; its age is at most that
        weight = cut[: first + 1].flip(0) * survival[: first + 1] / survival[k : k + first + 1]
        row = survival[:steps].unfold(0, first + 1, 1)[: k + 1] @ weight  # of k - j = 0, ..., k
        moments[k, : k + 1] = moments[: k + 1, k] = row.flip(0)
    return _finite(moments, truncation)


@dataclass(frozen=True)
class InfluenceMoments:
    """Mean (n,) and covariance (n, n) of an influence estimate over the draws of one row, float64."""

    mean: Tensor
    covariance: Tensor

    @property
    def std(self) -> Tensor:
        """Standard deviation of each unit, (n,)."""
        return self.covariance.diagonal().clamp(min=0).sqrt()

    def to_dict(self) -> dict[str, object]:
        """Plain numbers."""
        return {"mean": self.mean.tolist(), "covariance": self.covariance.tolist(), "std": self.std.tolist()}


def influence_moments(
    A: Tensor, v: Tensor, truncation: RandomTruncation, steps: int | None = None, before: int = 0
) -> InfluenceMoments:
    """Mean and covariance of z = sum_k R_k A^k v: how much a loss at the last step feels a push v at every step.

    z is the estimate of dh_T/dtheta in h_t = A h_{t-1} + theta v, and a loss l(h_T) has the gradient q . z with q =
    dl/dh_T, of variance q^T covariance q. The covariance is of one row's draws; the mean of B rows has a B-th of it.
    When not to use it: for losses at several steps, which share their gates; that is `gradient_moments`.

    Args:
        A: W_hh, (n, n), or the diagonal (n,) of a diagonal recurrence, real.
        v: (n,).
        truncation: geometric or polynomial.
        steps: T, the number of terms; None is the limit of many steps (the geometric tail only).
        before: steps of the stream before the first term, as in `lag_moments`.

    Raises:
        TypeError: A or v is no real floating-point tensor, or as in `lag_moments`.
        ValueError: a shape does not fit or an entry is not finite; or, without ``steps``, the variance is infinite or
            the tail is polynomial.

    The influence balancing problem (23 units, exact influence -6): the price of the mean at mean length 16.

    >>> A = torch.eye(23) / 2 + torch.diag(torch.full((22,), 0.5), 1)
    >>> v = torch.tensor([1.0] * 10 + [-1.0] * 13)
    >>> moments = influence_moments(A, v, RandomTruncation(16))
    >>> round(moments.mean[0].item(), 6), round(moments.std[0].item(), 2)
    (-6.0, 54.2)
    """
    _require_random("influence_moments", truncation)
    matrix, vector = _real("influence_moments", "A", A), _real("influence_moments", "v", v)
    if matrix.dim() == 1:
        matrix = torch.diag(matrix)
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or vector.shape != matrix.shape[:1]:
        raise ValueError(
            f"influence_moments: A must be (n, n) or (n,) and v (n,), got {tuple(A.shape)} and {tuple(v.shape)}"
        )
    if steps is None:
        return _stationary(matrix, vector, truncation)
    whole_number("influence_moments", "steps", steps)
    moments = lag_moments(truncation, steps, before)
    terms = [vector]
    for _ in range(steps - 1):
        terms.append(matrix @ terms[-1])
    u = torch.stack(terms)
    return InfluenceMoments(u.sum(0), u.T @ (moments - 1) @ u)


def _stationary(A: Tensor, v: Tensor, truncation: RandomTruncation) -> InfluenceMoments:
    """The limit of many steps, geometric tail: the Lyapunov equation, by doubling."""
    if truncation.tail != "geometric":
        raise ValueError("influence_moments: the limit of many steps is for the geometric tail; give steps")
    growth = variance_growth(A, truncation)
    if not growth.finite:
        raise ValueError(f"influence_moments: {growth}; or give steps")
    keep = 1 - 1 / truncation.mean_length
    mean = torch.linalg.solve(torch.eye(len(v), dtype=torch.float64) - A, v)
    later = A @ mean
    # Cov = (1/p - 1) A m (A m)^T + (1/p) A Cov A^T: no second moment, whose digits would cancel.
    covariance, power = (1 / keep - 1) * torch.outer(later, later), A / math.sqrt(keep)
    for _ in range(64):  # each doubles the steps
        if float(power.abs().max()) < 1e-30:
            break
        covariance, power = covariance + power @ covariance @ power.T, power @ power
    return InfluenceMoments(mean, covariance)


@dataclass(frozen=True)
class GradientMoments:
    """Mean (P,), the exact gradient, and variance (P,) of each parameter's gradient over the draws, float64."""

    mean: Tensor
    variance: Tensor

    @property
    def relative(self) -> float:
        """E ||estimate - gradient||^2 / ||gradient||^2, what `cg.compare` measures by draws."""
        size = float(self.mean.square().sum())
        return float(self.variance.sum()) / size if size else math.inf if float(self.variance.sum()) else 0.0

    def to_dict(self) -> dict[str, object]:
        """Plain numbers."""
        return {"mean": self.mean.tolist(), "variance": self.variance.tolist(), "relative": self.relative}


def gradient_moments(lin: Linearization, cotangents: Tensor, truncation: RandomTruncation) -> GradientMoments:
    """Mean and variance of the randomly truncated gradient of losses at every step, parameter by parameter.

    The gradient is G = sum_t q_t^T z_t with z_t = df_t/dw + xi_t J_t z_{t-1} (E7), its gates shared by all losses; rows
    draw their gates independently, so their variances add up. For any recurrence, linear or not, at fixed data and
    parameters. The second moments of y_t = (z_t, G_t, 1) are carried forward, one set for each age (time since the last
    cut), as the gates depend on nothing else; the geometric tail needs one set only. y_t = M_t(xi_t) y_{t-1} is linear,
    and with p the probability that an age survives its next edge

        E[y y^T; age + 1] = p M_t(1/p) E[y y^T; age] M_t(1/p)^T
        E[y y^T; 0]       = sum_ages (1 - p) M_t(0) E[y y^T; age] M_t(0)^T

    The state before the first step is a constant here.

    For the variance along a direction d (P,) of the parameters, replace ``partial_w`` by ``partial_w @ d[:, None]``.

    Args:
        lin: partial derivatives along one sequence or B rows, as `linearize` returns them.
        cotangents: q_t = a_t dl_t/dh_t, (T, [B,] H), each loss's own derivative with its weight a_t.
        truncation: geometric or polynomial.

    Cost: T P H^3 operations and P H^2 numbers for each row, T times that for the polynomial tail. When not to use it:
    for large layers, where that does not fit; sample with `cg.compare` there.

    Raises:
        TypeError: ``truncation`` is no RandomTruncation.
        ValueError: the shape of ``cotangents`` is not that of the states.

    One weight, h_t = w h_{t-1} from h_0 = 1 over two steps, loss h_2: the gradient is h_1 + xi w h_0, and xi has the
    variance c / (1 - c).

    >>> from chronograd.recurrence.sensitivity import linearize
    >>> lin = linearize(lambda x, h, w: w * h, torch.zeros(2, 1), torch.tensor([1.0]), torch.tensor([0.5]))
    >>> moments = gradient_moments(lin, torch.tensor([[0.0], [1.0]]), RandomTruncation(4))
    >>> moments.mean.item(), round(moments.variance.item(), 12) == round(0.25 / 3, 12)
    (1.0, True)
    """
    _require_random("gradient_moments", truncation)
    if cotangents.shape != lin.states.shape:
        raise ValueError(
            f"gradient_moments: cotangents must have the states' shape {tuple(lin.states.shape)}, "
            f"got {tuple(cotangents.shape)}"
        )
    b, C, q = (part.to("cpu", torch.float64) for part in (lin.partial_w, lin.partial_h, cotangents))
    if b.dim() == 3:
        b, C, q = b.unsqueeze(1), C.unsqueeze(1), q.unsqueeze(1)
    b = b.transpose(-1, -2)  # (T, B, P, H): one influence vector z (H,) for each row and parameter
    T, B, P, H = b.shape
    keep = 1 - truncation.cut_probability(torch.arange(1, max(T, 2)))

    def step(t: int, gate: Tensor) -> Tensor:
        """M_t of each gate (A,): (A, B, P, H + 2, H + 2)."""
        move = torch.zeros(len(gate), B, P, H + 2, H + 2, dtype=torch.float64)
        move[..., :H, :H] = gate.reshape(-1, 1, 1, 1, 1) * C[t].unsqueeze(1)
        move[..., :H, H + 1] = b[t]
        move[..., H, H], move[..., H + 1, H + 1] = 1, 1
        move[..., H, :] += torch.einsum("bh,abphi->abpi", q[t], move[..., :H, :])  # G gains q_t^T z_t
        return move

    cut = torch.zeros(1, dtype=torch.float64)
    moments = torch.zeros(1, B, P, H + 2, H + 2, dtype=torch.float64)
    moments[..., H + 1, H + 1] = 1
    for t in range(T):
        if t == 0:  # no edge lies before it
            moments = step(t, cut) @ moments @ step(t, cut).mT
            continue
        p = keep[:1] if truncation.tail == "geometric" else keep[: len(moments)]
        anew, on = step(t, cut), step(t, 1 / p)
        p = p.reshape(-1, 1, 1, 1, 1)
        anew = anew @ ((1 - p) * moments).sum(0, keepdim=True) @ anew.mT
        moments = torch.cat((anew, on @ (p * moments) @ on.mT))
        if truncation.tail == "geometric":
            moments = moments.sum(0, keepdim=True)
    total = moments.sum(0)
    mean = total[..., H, H + 1]
    return GradientMoments(mean.sum(0), (total[..., H, H] - mean.square()).clamp(min=0).sum(0))


def _survival(truncation: RandomTruncation, count: int) -> Tensor:
    """P(length > n) for n = 0 .. count - 1, as `RandomTruncation.survival` gives one by one."""
    cuts = truncation.cut_probability(torch.arange(1, count))
    return torch.cat((torch.ones(1, dtype=torch.float64), torch.cumprod(1 - cuts, 0)))


def _finite(moments: Tensor, truncation: RandomTruncation) -> Tensor:
    if not bool(torch.isfinite(moments).all()):
        raise ValueError(f"lag_moments: {len(moments)} lags of {truncation} have weights too large for float64")
    return moments


def _require_random(owner: str, truncation: RandomTruncation) -> None:
    if not isinstance(truncation, RandomTruncation):
        raise TypeError(f"{owner}: truncation must be a RandomTruncation, not {truncation!r}; others have no variance")


def _real(owner: str, name: str, tensor: Tensor) -> Tensor:
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{owner}: {name} must be a real floating-point tensor, not {kind}")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{owner}: {name} holds NaN or infinity")
    return tensor.detach().cpu().to(torch.float64)
