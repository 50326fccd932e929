"""Edges as coefficients of a scan: a reset or a cut is 0, a frozen row 1, a gate a factor on the way back."""

from __future__ import annotations

import torch
from torch import Tensor

from chronograd.kernels import Edges

from .associative import Coefficients, Constant, Dense, Diagonal

__all__ = ["linear_coefficients", "step_coefficients"]


def step_coefficients(jacobian: Tensor, edges: Edges, *, back: bool = False) -> Coefficients:
    """Coefficients for Jacobians (T, B, n, n), or their diagonals (T, B, n), that differ from step to step.

    ``back`` transposes them and puts the gates on: entry t is then what delta_t is multiplied by on its way to
    delta_{t-1}. ``jacobian`` is changed in place.
    """
    dense, tail = jacobian.dim() == 4, (1,) * (jacobian.dim() - 2)
    if edges.valid is not None:
        one = torch.eye(jacobian.shape[-1], dtype=jacobian.dtype, device=jacobian.device) if dense else 1
        jacobian[~edges.valid] = one
    if back and edges.gates is not None:
        jacobian.mul_(edges.gates.to(jacobian.real.dtype).reshape(*edges.gates.shape, *tail))
    values = (jacobian.mT if dense else jacobian).conj() if back else jacobian
    return Dense(values, _cuts(edges, back)) if dense else Diagonal(values, _cuts(edges, back))


def linear_coefficients(weight: Tensor, edges: Edges, *, back: bool = False) -> Coefficients:
    """The same for one weight at all steps: a matrix (n, n), or a diagonal (n,)."""
    if weight.dim() == 2:
        cut, scale = _cuts(edges, back), None
        if cut is not None:
            gates = edges.gates if back and edges.gates is not None else torch.ones_like(cut)
            scale = gates.to(weight.real.dtype).masked_fill(cut, 0)
        return Constant(weight.mH if back else weight, scale, None if edges.valid is None else ~edges.valid)
    marks = next((part for part in (edges.reset, edges.valid, edges.gates if back else None) if part is not None), None)
    if marks is None:
        return Diagonal((weight.conj() if back else weight).expand(1, 1, -1))
    return step_coefficients(weight.expand(*marks.shape, -1).clone(), edges, back=back)


def _cuts(edges: Edges, back: bool) -> Tensor | None:
    """Where nothing passes, (T, B) bool; None where something always does. Gates that are not 0 count as such only
    where they matter.
    """
    if not back or edges.gates is None:
        return edges.reset
    cut = edges.gates == 0
    return cut if edges.reset is None else cut | edges.reset
