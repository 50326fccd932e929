"""What the layers with one part of state and weights in names of their own share: checks, and the loop over time."""

from __future__ import annotations

from torch import Tensor, nn

from .contract import shown
from .layers import check_dtype
from .sequence import LayerWeights, layer_sequence

__all__ = ["SingleLayer"]


class SingleLayer(nn.Module):
    """Input projection, one layer of state (1, B, H), and the loop. ``kind`` is a name in ``kernels.CELLS``."""

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
