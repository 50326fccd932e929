"""One layer over time, on the fastest path that serves it: the compiled kernels on the CPU, plain torch elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from . import fused, reference
from .cells import fold_biases
from .edges import Edges
from .library import library

__all__ = ["run_projected", "serves"]

State = tuple[Tensor, ...]


def serves(kind: str, weight: Tensor, *tensors: Tensor | None) -> bool:
    """Whether the compiled kernels take these tensors: plain ones on the CPU, all float32 or all float64 (complex too
    for the diagonal recurrence).

    >>> serves("tanh", torch.zeros(2, 2, dtype=torch.float16))
    False
    """
    dtypes = (torch.float32, torch.float64) + ((torch.complex64, torch.complex128) if kind == "diagonal" else ())
    given = [weight, *(part for part in tensors if part is not None)]
    if weight.dtype not in dtypes or torch.compiler.is_compiling():
        return False
    mixed = torch.is_autocast_enabled("cpu")
    plain = all(type(part) in (Tensor, Parameter) and part.device.type == "cpu" for part in given)
    return plain and (mixed or all(part.dtype == weight.dtype for part in given)) and library() is not None


def run_projected(
    kind: str,
    inputs: Tensor,
    weight_ih: Tensor,
    bias_ih: Tensor | None,
    initial: State,
    weight: Tensor,
    bias: Tensor | None,
    edges: Edges,
    fresh: State | None = None,
) -> State:
    """Run one layer over time.

    Args:
        kind: a name in ``CELLS``.
        inputs: (T, B, d), T at least 1.
        weight_ih: (G, d), and ``bias_ih`` (G,) or None: x_t W_ih^T + b_ih drives the recurrence.
        initial: the state before the first step, (B, H) each.
        weight: (G, H) recurrent weight ((H,) for the diagonal one); ``bias`` (G,) or None is added to its product.
        edges: gates, resets and frozen rows.
        fresh: the initial states of the rows that start anew, (R, H) each, in the order of
            ``edges.reset.nonzero()``; None is zeros.

    Returns:
        The states after every step, (T, B, H) each.

    >>> x, one = torch.ones(3, 1, 1), torch.ones(1, 1)
    >>> run_projected("linear", x, one, None, (torch.zeros(1, 1),), 0.5 * one, None, Edges())[0].flatten()
    tensor([1.0000, 1.5000, 1.7500])
    """
    if serves(kind, weight, inputs, weight_ih, bias_ih, bias, *initial, *(fresh or ())):
        return fused.run_projected(kind, inputs, weight_ih, bias_ih, initial, weight, bias, edges, fresh)
    bias_ih, bias = fold_biases(kind, bias_ih, bias)
    drive = torch.nn.functional.linear(inputs, weight_ih, bias_ih)
    return reference.run_layer(kind, drive, initial, weight, bias, edges, fresh)
