"""Stacked layers in one call of torch's own functions: the GPU, and the dtypes that the compiled kernels do not have.

cuDNN runs them on CUDA, oneDNN or plain torch elsewhere. They know no gates: under gates, resets or frozen rows such
layers take single steps (``kernels.reference``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

__all__ = ["run_in_torch", "torch_serves"]

State = tuple[Tensor, ...]

_FUNCTIONS = {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu, "gru": torch.gru, "lstm": torch.lstm}


def torch_serves(kind: str, weight: Tensor) -> bool:
    """Whether a layer of recurrent weight ``weight`` is torch's to run where nothing happens on its edges: the GPU, and
    every dtype but float32 and float64.

    >>> torch_serves("gru", torch.zeros(6, 2, dtype=torch.bfloat16)), torch_serves("gru", torch.zeros(6, 2))
    (True, False)
    """
    ours = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)
    return not ours and kind in _FUNCTIONS


def run_in_torch(
    kind: str, inputs: Tensor, initial: State, weights: Sequence[Iterable[Tensor | None]], dropout: float
) -> tuple[Tensor, State]:
    """Outputs (T, B, H) and final state (L, B, H) of stacked layers; arguments as ``sequence.layer_sequence``.

    >>> weights = [(torch.zeros(4, 3), torch.zeros(4, 4), torch.ones(4), torch.zeros(4))]
    >>> outputs, (state,) = run_in_torch("relu", torch.zeros(5, 2, 3), (torch.zeros(1, 2, 4),), weights, 0.0)
    >>> outputs.shape, state[0, 0]
    (torch.Size([5, 2, 4]), tensor([1., 1., 1., 1.]))
    """
    flat = [part for layer in weights for part in layer if part is not None]
    device = inputs.device.type
    mixed = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if mixed:
        # As in the kernels: sums over many steps are kept in the precision of the weights.
        inputs, initial = inputs.to(flat[0].dtype), tuple(part.to(flat[0].dtype) for part in initial)
    initial = tuple(part.contiguous() for part in initial)  # cuDNN takes no other
    # cuDNN walks back only over what ran in training mode; without dropout the numbers are the same.
    training = dropout > 0 or torch.is_grad_enabled()
    hx = initial if kind == "lstm" else initial[0]
    with torch.autocast(device, enabled=False) if mixed else nullcontext():
        outputs, *final = _FUNCTIONS[kind](
            inputs, hx, flat, len(flat) > 2 * len(weights), len(weights), dropout, training, False, False
        )
    return outputs, tuple(final)
