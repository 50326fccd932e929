"""The built-in cells' steps on tangents, forward: what a small change of state and drive makes of the next state.

From the same factors as the way back (``kernels.cells``)::

    tanh, relu    h' = f' (W a + d)
    GRU           h' = z a + sum over blocks k of to_product_k W_k a + to_drive_k d_k
    LSTM          c' = f a_c + sum over k < 3 of from_c_k (W_k a + d_k),   h' = (o tanh(c'))'
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["KINDS", "tangent"]

State = tuple[Tensor, ...]
KINDS = frozenset({"tanh", "relu", "linear", "gru", "lstm"})


def tangent(kind: str, factors: State, before: State, product: Tensor, drive: Tensor | None) -> State:
    """The tangent of the state after a step, (B, H) for each part.

    Args:
        factors: the cell's, of these rows.
        before: the tangent a of the state before.
        product: that of the recurrent product, W a, (B, G).
        drive: d, that of the drive, (B, G); None for 0.

    >>> import torch
    >>> tangent("tanh", (torch.tensor([[0.5]]),), (), torch.tensor([[3.0]]), None)
    (tensor([[1.5000]]),)
    """
    if kind == "gru":
        to_product, to_drive, z = factors
        made = z * before[0] + (to_product * product.view(to_product.shape)).sum(1)
        return (made if drive is None else made + (to_drive * drive.view(to_drive.shape)).sum(1),)
    both = product if drive is None else product + drive
    if kind == "tanh":
        return (factors[0] * both,)
    if kind == "relu":
        return (both.masked_fill(factors[0], 0),)
    if kind == "linear":
        return (both,)
    h_to_c, from_c, to_o, f = factors
    gates = both.view(-1, 4, f.shape[-1])
    c = f * before[1] + (from_c * gates[:, :3]).sum(1)
    return h_to_c * c + to_o * gates[:, 3], c
