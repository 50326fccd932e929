r"""What powers of a matrix do: the section's exercises X1 and X2 as functions, X3 as the reading of them.

**X1.** If M v = lambda v then M^k v = lambda^k v: the eigenvalues of M^k are lambda_i^k. `power_eigenvalues`
computes both sides and matches them.

**X2.** For a diagonalizable M with eigenvalues |lambda_1| > |lambda_2| >= ... and unit eigenvectors v_i,
write x = sum_i c_i v_i. Then

    M^k x = c_1 lambda_1^k ( v_1 + e_k ),      e_k = sum_{i>=2} (c_i / c_1) (lambda_i / lambda_1)^k v_i,

and |e_k| <= C |lambda_2 / lambda_1|^k with C = sum_{i>=2} |c_i / c_1|. So M^k x turns towards the line of
v_1, at the geometric rate |lambda_2 / lambda_1|^k. With theta_k the angle between M^k x and that line, and P
the projection onto it,

    sin theta_k = |(1 - P) e_k| / |v_1 + e_k|  <=  C r / (1 - C r),  r = |lambda_2 / lambda_1|^k, if C r < 1.

`power_alignment` measures the angle by multiplying, and predicts it by the formula.

**X3, what this means for gradients.** In a linear RNN the share of the loss at step t + k in dL/dh_t is
(W_hh^T)^k W_qh^T dL/do_{t+k} (E12; `chronograd.recurrence.closed_form.power_terms`), a power of M = W_hh^T.
Therefore:

- its size goes like |lambda_1|^k: it explodes for a spectral radius above 1, vanishes below, and only at 1
  does it keep. There is no setting of the step size that serves lags 1 and 100 at once;
- its direction goes to v_1 whatever the error was: after some 1 / log|lambda_1 / lambda_2| steps (times a
  few) every distant error arrives as a multiple of one vector. All that the past can still be told is one
  number;
- where the leading eigenvalues are a complex pair the share goes on turning in a plane instead of settling on
  a line;
- both are statements about large k. A non-normal M (large C) may first grow by orders of magnitude though
  |lambda_1| < 1: for the k that occur, look at singular values too;
- in a nonlinear RNN the powers become products of Jacobians, eigenvalues give way to Lyapunov exponents
  (`cg.spectrum`), and the same two things happen.

References: von Mises & Pollaczek-Geiringer, "Praktische Verfahren der Gleichungsaufloesung", ZAMM 9 (1929),
the power iteration; Golub & Van Loan, *Matrix Computations*, 7.3; Pascanu, Mikolov, Bengio, "On the
difficulty of training recurrent neural networks", ICML 2013.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["PowerAlignment", "PowerEigenvalues", "power_alignment", "power_eigenvalues"]


@dataclass(frozen=True)
class PowerEigenvalues:
    """Both sides of X1: `of_power[i]`, an eigenvalue of M^k, beside `powers[i]`, its match of the lambda^k.

    Both are complex128 tensors (n,), by falling |lambda|. `difference` is the largest |of_power - powers|,
    relative to the largest |lambda|^k (0 where that is 0).
    """

    k: int
    of_power: Tensor
    powers: Tensor
    difference: float

    def to_dict(self) -> dict[str, object]:
        """Plain numbers: complex ones as [real, imaginary]."""
        return {
            "k": self.k,
            "of_power": torch.view_as_real(self.of_power).tolist(),
            "powers": torch.view_as_real(self.powers).tolist(),
            "difference": self.difference,
        }

    def table(self) -> str:
        """One line per eigenvalue."""
        head = f"{f'eigenvalue of M^{self.k}':>28}  {f'lambda^{self.k}':>28}"
        pairs = zip(self.of_power.tolist(), self.powers.tolist())
        return "\n".join([head, *(f"{left:>28.6g}  {right:>28.6g}" for left, right in pairs)])


@dataclass(frozen=True)
class PowerAlignment:
    """How far M^k x has turned towards the dominant eigenvector (X2).

    - `eigenvector`: v_1, unit length, (n,), real where M is; its sign (phase) is the one that x has along it;
    - `eigenvalues`: (n,) complex128, by falling modulus;
    - `alignment`: |cos theta_k|, measured: 1 when M^k x lies on the line of v_1;
    - `misalignment`: sin theta_k, measured by multiplying by M k times (normalized on the way, so no
      overflow);
    - `predicted`: sin theta_k by the formula, from eigenvalues and the components of x;
    - `ratio`: |lambda_2 / lambda_1|; `rate`: that to the power k, the pace at which sin theta_k falls;
    - `constant`: C = sum_{i>=2} |c_i / c_1|, so that sin theta_k <= C rate / (1 - C rate) once C rate < 1.
    """

    k: int
    eigenvector: Tensor
    eigenvalues: Tensor
    alignment: float
    misalignment: float
    predicted: float
    ratio: float
    rate: float
    constant: float

    def to_dict(self) -> dict[str, object]:
        """Plain numbers: complex ones as [real, imaginary]."""
        vector = self.eigenvector
        return {
            "k": self.k,
            "eigenvector": (torch.view_as_real(vector) if vector.is_complex() else vector).tolist(),
            "eigenvalues": torch.view_as_real(self.eigenvalues).tolist(),
            "alignment": self.alignment,
            "misalignment": self.misalignment,
            "predicted": self.predicted,
            "ratio": self.ratio,
            "rate": self.rate,
            "constant": self.constant,
        }

    def table(self) -> str:
        """One line per number."""
        rows = {
            "k": f"{self.k}",
            "|lambda_2 / lambda_1|": f"{self.ratio:.6g}",
            "|lambda_2 / lambda_1|^k": f"{self.rate:.6g}",
            "cos(M^k x, v_1)": f"{self.alignment:.12g}",
            "sin(M^k x, v_1), measured": f"{self.misalignment:.6g}",
            "sin(M^k x, v_1), predicted": f"{self.predicted:.6g}",
        }
        return "\n".join(f"{name:<28}{value}" for name, value in rows.items())


def power_eigenvalues(M: Tensor, k: int) -> PowerEigenvalues:
    """The eigenvalues of M^k beside the k-th powers of the eigenvalues of M (X1: they are the same).

    Computed in float64 (complex128). The two lists are matched by taking the closest pair, then the closest
    of what is left, and so on. For a defective M the two agree only to about eps^(1/m), m the size of its
    largest Jordan block: such eigenvalues are that badly conditioned.

    Args:
        M: square matrix (n, n), real or complex.
        k: the power, k >= 0.

    Raises:
        TypeError: M is not a floating-point or complex tensor, k is not an integer.
        ValueError: M is not square, is empty or holds NaN or infinity; k < 0; or M^k is too large for
            float64.

    >>> result = power_eigenvalues(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), k=4)
    >>> [round(value.real, 9) for value in result.of_power.tolist()], result.difference < 1e-12
    ([81.0, 16.0], True)
    """
    matrix = _square(M)
    k = _whole(k)
    power = torch.linalg.matrix_power(matrix, k)
    eigenvalues = torch.linalg.eigvals(matrix)
    powers = (eigenvalues**k)[torch.argsort(eigenvalues.abs(), descending=True, stable=True)]
    if not (_finite(power) and _finite(powers)):
        raise ValueError(f"M^{k} is too large for float64; take a smaller k or scale M, as (M / s)^k = M^k / s^k")
    of_power = torch.linalg.eigvals(power)

    distance = (of_power.unsqueeze(0) - powers.unsqueeze(1)).abs()
    order = torch.empty(len(powers), dtype=torch.long)
    for _ in range(len(powers)):
        mine, other = divmod(int(distance.argmin()), len(powers))
        order[mine] = other
        distance[mine, :] = math.inf
        distance[:, other] = math.inf
    of_power = of_power[order]
    scale = float(powers.abs().max())
    difference = float((of_power - powers).abs().max()) / scale if scale > 0 else 0.0
    return PowerEigenvalues(k, of_power, powers, difference)


def power_alignment(M: Tensor, x: Tensor, k: int) -> PowerAlignment:
    """How far M^k x points along the dominant eigenvector v_1, measured, and predicted by the formula (X2).

    Defined where M is diagonalizable, its largest eigenvalue in modulus stands alone, and x has a component
    along v_1. The sign (or phase) of M^k x is left out of it: a negative lambda_1 flips the vector at each
    step, its line stays.

    Args:
        M: square matrix (n, n), real or complex.
        x: vector (n,), real or complex.
        k: the power, k >= 0.

    Raises:
        TypeError: M or x is not a floating-point or complex tensor, k is not an integer.
        ValueError: a shape does not fit; an entry is not finite; k < 0; or there is nothing to align with:
            - M is not diagonalizable to working precision (its eigenvectors' condition number exceeds 7e7):
              then a Jordan block's direction is approached like 1/k, not geometrically;
            - a real M's dominant eigenvalues are a complex pair: M^k x turns in their plane for ever;
            - |lambda_1| = |lambda_2| otherwise (to 1.5e-8 relative: a smaller gap would take over 10^7
              powers): with lambda_1 = lambda_2 the limit depends on x, with lambda_1 = -lambda_2 there is
              none;
            - x has no component along v_1: then M^k x never turns there, except by rounding errors.

    >>> M = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> result = power_alignment(M, torch.tensor([1.0, 1.0]), k=10)          # M^10 x = (1024, 1)
    >>> result.rate == 2**-10, round(result.misalignment * 1024, 5), round(result.predicted * 1024, 5)
    (True, 1.0, 1.0)
    """
    matrix = _square(M)
    k = _whole(k)
    n = matrix.shape[0]
    if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
        raise TypeError(f"x must be a floating-point or complex tensor, got {_kind(x)}")
    if x.shape != (n,):
        raise ValueError(f"x must be a vector ({n},) to go with M, got shape {tuple(x.shape)}")
    if not _finite(x):
        raise ValueError("x holds NaN or infinity")
    vector = x.detach().cpu().to(torch.complex128)

    eigenvalues, vectors = torch.linalg.eig(matrix)
    order = torch.argsort(eigenvalues.abs(), descending=True, stable=True)
    eigenvalues, vectors = eigenvalues[order], vectors[:, order]
    precision = math.sqrt(torch.finfo(torch.float64).eps)
    condition = float(torch.linalg.cond(vectors))
    if not condition < 1 / precision:
        raise ValueError(
            f"M is not diagonalizable to working precision (its eigenvectors' condition is {condition:.1e}): "
            "no basis of eigenvectors, so no such rate; perturb M or look at its Schur form"
        )
    largest = float(eigenvalues[0].abs())
    if largest == 0:
        raise ValueError("M is zero, so M x is zero and points nowhere")
    if n > 1:
        _require_dominant(eigenvalues, real=not matrix.is_complex(), tolerance=precision)
    components = torch.linalg.solve(vectors, vector)
    if float(components[0].abs()) <= n * torch.finfo(torch.float64).eps * condition * float(components.abs().max()):
        raise ValueError(
            "x has no component along the dominant eigenvector v_1, so M^k x does not turn towards it; "
            "add to x a multiple of v_1, or take a random x"
        )

    dominant = vectors[:, 0]
    dominant = dominant * (components[0] / components[0].abs())  # so that x points along +v_1
    relative = components[1:] / components[0].abs()
    rest = vectors[:, 1:] @ (relative * (eigenvalues[1:] / eigenvalues[0]) ** k)
    predicted = _sine(dominant + rest, dominant)

    powered = vector / vector.norm()
    full = matrix.to(torch.complex128)
    for _ in range(k):
        powered = full @ powered
        powered = powered / powered.norm()
    ratio = float(eigenvalues[1].abs()) / largest if n > 1 else 0.0
    real = not matrix.is_complex() and not x.is_complex()
    return PowerAlignment(
        k=k,
        eigenvector=dominant.real.clone() if real else dominant,
        eigenvalues=eigenvalues,
        alignment=min(1.0, float(torch.vdot(dominant, powered).abs())),
        misalignment=_sine(powered, dominant),
        predicted=predicted,
        ratio=ratio,
        rate=ratio**k,
        constant=float(relative.abs().sum()),
    )


def _sine(vector: Tensor, unit: Tensor) -> float:
    """The sine of the angle between a vector and the line of a unit vector, exact near zero too."""
    return float((vector - torch.vdot(unit, vector) * unit).norm() / vector.norm())


def _require_dominant(eigenvalues: Tensor, *, real: bool, tolerance: float) -> None:
    first, second = complex(eigenvalues[0]), complex(eigenvalues[1])
    if abs(first) - abs(second) > tolerance * abs(first):
        return
    if real and abs(first - second.conjugate()) <= tolerance * abs(first) < abs(first.imag):
        why = "are a complex pair, so M^k x turns in their plane and settles on no line"
    elif abs(first - second) <= tolerance * abs(first):
        why = "are equal, so there is no single v_1: where M^k x settles depends on x"
    else:
        why = "have the same modulus, so neither outgrows the other; shift M by a multiple of the identity"
    raise ValueError(f"the two largest eigenvalues of M, {first:.6g} and {second:.6g}, {why}")


def _square(M: Tensor) -> Tensor:
    if not isinstance(M, Tensor) or not (M.is_floating_point() or M.is_complex()):
        raise TypeError(f"M must be a floating-point or complex tensor, got {_kind(M)}")
    if M.dim() != 2 or M.shape[0] != M.shape[1] or M.shape[0] == 0:
        raise ValueError(f"M must be a square matrix (n, n) with n >= 1, got shape {tuple(M.shape)}")
    if not _finite(M):
        raise ValueError("M holds NaN or infinity")
    return M.detach().cpu().to(torch.complex128 if M.is_complex() else torch.float64)


def _whole(k: int) -> int:
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k must be an integer, got {type(k).__name__}")
    if k < 0:
        raise ValueError(f"k must be at least 0, got {k}")
    return k


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
