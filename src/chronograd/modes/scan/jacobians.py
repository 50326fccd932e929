"""The built-in cells at all steps at once: their states, what the way back multiplies by, and dh_t/dh_{t-1}.

Steps and rows lie side by side, N = T B of them. Everything comes from ``kernels.cells``: one call of its forward step
on N rows, its factors, and from these the Jacobians in closed form::

    tanh, relu    J = diag(f') W
    GRU           J = diag(z) + sum over blocks k of diag(d h'/d product_k) W_k
    LSTM          the same for c' by h, then h' = o tanh(c') on top: [[dh'/dh, dh'/dc], [dc'/dh, dc'/dc]]
    eLSTM         J = diag(f + zf w_z + fz w_f), and nothing beside its diagonal
"""

from __future__ import annotations

import torch
from torch import Tensor

from chronograd.kernels.cells import Cell

__all__ = ["diagonals", "jacobians", "step_all"]

State = tuple[Tensor, ...]


def step_all(cell: Cell, drive: Tensor, before: State, weight: Tensor, bias: Tensor | None) -> tuple[State, State]:
    """One step of N rows, drives (N, G) and states (N, H): the new states, and the factors of the way back."""
    kept = drive.new_empty(len(drive), cell.kept * before[0].shape[-1])
    after = tuple(torch.empty_like(part) for part in before)
    cell.forward(cell.views(drive, kept), before, cell.ready(weight), bias, after)
    return after, cell.factors(kept, before, after)


def jacobians(kind: str, factors: State, weight: Tensor) -> Tensor:
    """J (N, n, n) of a nonlinear cell, n = H or 2 H for (h, c); a tensor of its own.

    >>> jacobians("tanh", (torch.tensor([[0.5]]),), torch.tensor([[3.0]]))
    tensor([[[1.5000]]])
    """
    if weight.dim() == 1:
        return torch.diag_embed(diagonals(kind, factors, weight))
    blocks = weight.unflatten(0, (-1, weight.shape[1]))  # (G / H, H, H)
    if kind == "tanh":
        return factors[0].unsqueeze(-1) * weight
    if kind == "relu":
        return weight.expand(len(factors[0]), -1, -1).masked_fill(factors[0].unsqueeze(-1), 0)
    if kind == "gru":
        to_product, _, z = factors
        found = torch.diag_embed(z)
        for number, block in enumerate(blocks):
            found.addcmul_(to_product[:, number].unsqueeze(-1), block)
        return found
    h_to_c, from_c, to_o, f = factors
    size = f.shape[-1]
    found = f.new_zeros(len(f), 2 * size, 2 * size)
    by_h = found[:, size:, :size]
    for number in range(3):
        by_h.addcmul_(from_c[:, number].unsqueeze(-1), blocks[number])
    torch.mul(h_to_c.unsqueeze(-1), by_h, out=found[:, :size, :size])
    found[:, :size, :size].addcmul_(to_o.unsqueeze(-1), blocks[3])
    found[:, :size, size:].diagonal(dim1=1, dim2=2).copy_(h_to_c * f)
    found[:, size:, size:].diagonal(dim1=1, dim2=2).copy_(f)
    return found


def diagonals(kind: str, factors: State, weight: Tensor) -> Tensor:
    """The diagonal of J, (N, n), without J; a tensor of its own.

    >>> diagonals("elstm", (torch.tensor([[[0.5], [0.25]]]), torch.tensor([[0.75]])), torch.tensor([1.0, 2.0]))
    tensor([[1.7500]])
    """
    if kind == "elstm":
        to_product, f = factors
        return f + (to_product * weight.view(2, -1)).sum(1)
    own = weight.unflatten(0, (-1, weight.shape[1])).diagonal(dim1=1, dim2=2)  # (G / H, H)
    if kind == "tanh":
        return factors[0] * own[0]
    if kind == "relu":
        return own[0].expand_as(factors[0]).masked_fill(factors[0], 0)
    if kind == "gru":
        to_product, _, z = factors
        return z + (to_product * own).sum(1)
    h_to_c, from_c, to_o, f = factors
    return torch.cat((h_to_c * (from_c * own[:3]).sum(1) + to_o * own[3], f), -1)
