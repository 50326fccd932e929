"""Linear recurrences as layers: ``LinearRNN`` with a full W_hh, ``DiagonalRNN`` with one number for each unit."""

from __future__ import annotations

import math

import torch
from torch import nn

from .single import SingleLayer

__all__ = ["DiagonalRNN", "LinearRNN"]


class LinearRNN(SingleLayer):
    """h_t = W_hx x_t + W_hh h_{t-1} (+ b): the section's linear recurrence (E8-E13), without its readout.

    Args:
        input_size, hidden_size: d and H.
        bias: adds b (H,); the section has none.

    W_hh starts as a random orthogonal matrix times 0.9, so that neither states nor gradients explode.

    >>> import torch
    >>> outputs, state = LinearRNN(3, 4)(torch.randn(5, 2, 3))
    >>> outputs.shape, state.shape
    (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))
    """

    kind = "linear"

    def __init__(self, input_size: int, hidden_size: int, bias: bool = False) -> None:
        super().__init__(input_size, hidden_size)
        self.weight_ih = nn.Parameter(torch.randn(hidden_size, input_size) / math.sqrt(input_size))
        self.weight_hh = nn.Parameter(0.9 * nn.init.orthogonal_(torch.empty(hidden_size, hidden_size)))
        self.bias = nn.Parameter(torch.zeros(hidden_size)) if bias else None


class DiagonalRNN(SingleLayer):
    """h_t = lambda * h_{t-1} + W x_t (+ b), element by element: each unit is a recurrence of one number.

    Args:
        input_size, hidden_size: d and H.
        bias: adds b (H,).
        complex: lambda, W and the states are complex; a readout must take real parts itself (``torch.view_as_real``).

    The size of lambda starts uniform in [0.5, 0.99] (complex: with a uniform angle); nothing keeps it below 1 during
    training. Gradients of complex numbers follow torch's convention.

    >>> import torch
    >>> DiagonalRNN(3, 4, complex=True)(torch.randn(5, 2, 3))[0].dtype
    torch.complex64
    """

    kind = "diagonal"

    def __init__(self, input_size: int, hidden_size: int, bias: bool = False, complex: bool = False) -> None:
        super().__init__(input_size, hidden_size)
        dtype = torch.get_default_dtype().to_complex() if complex else torch.get_default_dtype()
        size = torch.empty(hidden_size).uniform_(0.5, 0.99)
        eigenvalues = torch.polar(size, torch.rand(hidden_size) * 2 * math.pi) if complex else size
        self.weight_ih = nn.Parameter(torch.randn(hidden_size, input_size, dtype=dtype) / math.sqrt(input_size))
        self.weight_hh = nn.Parameter(eigenvalues)
        self.bias = nn.Parameter(torch.zeros(hidden_size, dtype=dtype)) if bias else None
