"""``RNN``, ``GRU`` and ``LSTM``: torch's layers, with large matrix products for the weight gradients.

They take the arguments and the ``state_dict`` of ``torch.nn.RNN``, ``GRU`` and ``LSTM`` and give the same numbers.
The states are stored once and walked back once, and dL/dW_hh comes from products over many steps and rows (E13), where
torch adds up one small product for each step. On a GPU and in half precision torch's own functions run
(``torch_layers``), with gates and resets the same loop in plain torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .contract import shown
from .sequence import LayerWeights, layer_sequence

__all__ = ["GRU", "LSTM", "RNN"]

State = tuple[Tensor, ...]


def check_dtype(
    layer: torch.nn.Module, name: str, tensor: Tensor, weight: Tensor, kind: type[Exception] = ValueError
) -> None:
    """Raise ``kind`` where ``tensor`` is of another dtype than the weights, which autocast alone may mix."""
    if tensor.dtype != weight.dtype and not torch.is_autocast_enabled(tensor.device.type):
        raise kind(
            f"{type(layer).__name__}: {name} is {tensor.dtype}, but the weights are {weight.dtype}; convert one of them"
        )


def _run(layer: torch.nn.RNNBase, kind: str, inputs: Tensor, hx: Any) -> tuple[Tensor, State]:
    """The layer over time: (T, B, d), or (B, T, d) with batch_first, or (T, d) without a batch."""
    name, parts = type(layer).__name__, 2 if kind == "lstm" else 1
    if inputs.dim() not in (2, 3):
        raise ValueError(f"{name}: expected input of 2 or 3 dimensions, (T, d) or (T, B, d), got {tuple(inputs.shape)}")
    if inputs.shape[-1] != layer.input_size:
        raise RuntimeError(f"{name}: input has {inputs.shape[-1]} features, expected input_size = {layer.input_size}")
    weights = [getattr(layer, each) for each in layer._flat_weights_names]
    check_dtype(layer, "input", inputs, weights[0])
    batched = inputs.dim() == 3
    x = inputs.unsqueeze(1) if not batched else inputs.transpose(0, 1) if layer.batch_first else inputs
    given = _initial(layer, name, hx, parts, batched, x.shape[1], weights[0])
    each = 4 if layer.bias else 2
    stacked = [LayerWeights(*weights[each * n : each * (n + 1)]) for n in range(layer.num_layers)]
    outputs, final = layer_sequence(kind, x, given, stacked, layer.dropout if layer.training else 0.0)
    if not batched:
        return outputs.squeeze(1), tuple(part.squeeze(1) for part in final)
    return outputs.transpose(0, 1) if layer.batch_first else outputs, final


def _initial(
    layer: torch.nn.RNNBase, name: str, hx: Any, parts: int, batched: bool, rows: int, weight: Tensor
) -> State:
    """The state before the first step, (L, B, H) each."""
    shape = (layer.num_layers, rows, layer.hidden_size)
    if hx is None:
        return tuple(weight.new_zeros(shape) for _ in range(parts))
    given = hx if parts == 2 else (hx,)
    if not isinstance(given, tuple | list) or len(given) != parts or not all(isinstance(h, Tensor) for h in given):
        wanted = "a pair of tensors (h, c)" if parts == 2 else "a tensor"
        raise TypeError(f"{name}: hx must be {wanted} or None, not {type(hx).__name__}")
    expected = shape if batched else (shape[0], shape[2])
    for part in given:
        if tuple(part.shape) != expected:
            meaning = "(layers, batch, hidden)" if batched else "(layers, hidden) for input without a batch"
            raise RuntimeError(f"{name}: hx has shape {tuple(part.shape)}, expected {meaning} = {expected}")
        check_dtype(layer, "hx", part, weight, RuntimeError)
    return tuple(given) if batched else tuple(part.unsqueeze(1) for part in given)


def _torch_only(layer: torch.nn.RNNBase, inputs: Any) -> bool:
    """What torch's own path serves: packed, empty, bidirectional and projected sequences, and traces to be saved.

    Raises:
        TypeError: where the inputs are neither a tensor nor packed.
    """
    if not isinstance(inputs, Tensor | PackedSequence):
        raise TypeError(f"{type(layer).__name__}: input must be a tensor (T, B, d), not {shown(inputs)}")
    if isinstance(inputs, PackedSequence) or torch.jit.is_tracing():
        return True
    return inputs.numel() == 0 or layer.bidirectional or layer.proj_size > 0


class RNN(torch.nn.RNN):
    """h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), or relu: arguments, ``state_dict`` and numbers of
    ``torch.nn.RNN``.

    Inputs (T, B, d), state (layers, B, H); ``batch_first``, several layers, dropout and input without a batch as in
    torch. Packed and bidirectional input goes through torch's own path. Elman, Cognitive Science 14, 1990.

    Raises:
        RuntimeError, ValueError: where the shape or dtype of input or state is not the layer's, as in torch.
        TypeError: where they are no tensors.

    >>> import torch
    >>> layer, other = RNN(3, 4), torch.nn.RNN(3, 4)
    >>> _ = other.load_state_dict(layer.state_dict())
    >>> x = torch.randn(5, 2, 3)
    >>> torch.allclose(layer(x)[0], other(x)[0], atol=1e-6)
    True
    """

    def forward(self, input: Any, hx: Tensor | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if _torch_only(self, input):
            return super().forward(input, hx)
        outputs, final = _run(self, self.nonlinearity, input, hx)
        return outputs, final[0]


class GRU(torch.nn.GRU):
    """The gated recurrent unit: arguments, ``state_dict`` and numbers of ``torch.nn.GRU``.

    Inputs (T, B, d), state (layers, B, H). Cho et al., arXiv:1406.1078, with torch's reset gate inside the recurrent
    product::

        r, z = sigmoid(W x_t + b + U h_{t-1} + c)       n = tanh(W_n x_t + b_n + r (U_n h_{t-1} + c_n))
        h_t = (1 - z) n + z h_{t-1}

    Raises:
        RuntimeError, ValueError: where the shape or dtype of input or state is not the layer's, as in torch.
        TypeError: where they are no tensors.

    >>> import torch
    >>> outputs, state = GRU(3, 4, num_layers=2)(torch.randn(5, 2, 3))
    >>> outputs.shape, state.shape
    (torch.Size([5, 2, 4]), torch.Size([2, 2, 4]))
    """

    def forward(self, input: Any, hx: Tensor | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if _torch_only(self, input):
            return super().forward(input, hx)
        outputs, final = _run(self, "gru", input, hx)
        return outputs, final[0]


class LSTM(torch.nn.LSTM):
    """Long short-term memory: arguments, ``state_dict`` and numbers of ``torch.nn.LSTM``.

    Inputs (T, B, d), state ``(h, c)`` of (layers, B, H) each. Hochreiter and Schmidhuber 1997, with forget gates
    (Gers et al. 2000)::

        i, f, o = sigmoid(W x_t + b + U h_{t-1} + c)    g = tanh(W_g x_t + b_g + U_g h_{t-1} + c_g)
        c_t = f c_{t-1} + i g                           h_t = o tanh(c_t)

    ``proj_size`` goes through torch's own path.

    Raises:
        RuntimeError, ValueError: where the shape or dtype of input or state is not the layer's, as in torch.
        TypeError: where they are no tensors.

    >>> import torch
    >>> outputs, (h, c) = LSTM(3, 4)(torch.randn(5, 2, 3))
    >>> bool((outputs[-1] == h[0]).all())
    True
    """

    def forward(self, input: Any, hx: tuple[Tensor, Tensor] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if _torch_only(self, input):
            return super().forward(input, hx)
        return _run(self, "lstm", input, hx)
