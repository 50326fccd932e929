"""Linear recurrences as layers: ``LinearRNN`` with a full W_hh, ``DiagonalRNN`` with one number for each unit."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .contract import shown
from .layers import check_dtype
from .sequence import LayerWeights, layer_sequence

__all__ = ["DiagonalRNN", "LinearRNN"]


class _LinearLayer(nn.Module):
    """Input projection, one layer of state (1, B, H), and the loop."""

    kind: str
    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor | None

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{type(self).__name__}: {name} must be a whole number of at least 1, not {size!r}")
        self.input_size, self.hidden_size = input_size, hidden_size

    def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(T, B, d) and (1, B, H) or None -> outputs (T, B, H), final state (1, B, H).

        Raises:
            TypeError: where inputs or state are no tensors.
            ValueError: where their shape or dtype is not the layer's.
        """
        if not isinstance(inputs, Tensor):
            raise TypeError(f"{type(self).__name__}: input must be a tensor (T, B, d), not {shown(inputs)}")
        if state is not None and not isinstance(state, Tensor):
            raise TypeError(
                f"{type(self).__name__}: state must be a tensor (1, B, {self.hidden_size}) or None, not {shown(state)}"
            )
        if inputs.dim() != 3 or inputs.shape[-1] != self.input_size:
            raise ValueError(
                f"{type(self).__name__}: expected input (T, B, {self.input_size}), got {tuple(inputs.shape)}"
            )
        if inputs.numel() == 0:
            raise ValueError(f"{type(self).__name__}: expected at least one step and row, got {tuple(inputs.shape)}")
        if self.weight_ih.is_complex() and not inputs.is_complex():
            inputs = inputs.to(inputs.dtype.to_complex())
        check_dtype(self, "input", inputs, self.weight_ih)
        shape = (1, inputs.shape[1], self.hidden_size)
        if state is None:
            state = self.weight_ih.new_zeros(shape)
        if tuple(state.shape) != shape:
            raise ValueError(f"{type(self).__name__}: state has shape {tuple(state.shape)}, expected {shape}")
        check_dtype(self, "state", state, self.weight_ih)
        outputs, final = layer_sequence(
            self.kind, inputs, (state,), [LayerWeights(self.weight_ih, self.weight_hh, self.bias)]
        )
        return outputs, final[0]

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, bias={self.bias is not None}"


class LinearRNN(_LinearLayer):
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


class DiagonalRNN(_LinearLayer):
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
