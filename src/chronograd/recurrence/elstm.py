"""``ELSTM``: the element-wise LSTM, gates and nonlinearity with one number of recurrence for each unit."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .single import SingleLayer

__all__ = ["ELSTM"]


class ELSTM(SingleLayer):
    """The element-wise LSTM: each unit sees the inputs and its own state, no other unit's. Irie, Gopalakrishnan,
    Schmidhuber, arXiv:2305.19044::

        z_t = tanh(W_z x_t + w_z * c_{t-1} + b_z)       f_t = sigmoid(W_f x_t + w_f * c_{t-1} + b_f)
        c_t = f_t * c_{t-1} + (1 - f_t) * z_t           dc_t/dc_{t-1} = diag(f + zf w_z + fz w_f)
        zf = (1 - f) (1 - z^2)                          fz = (c_{t-1} - z) f (1 - f)

    Inputs (T, B, d), state c (1, B, H) or None for zeros; outputs are the states c (T, B, H). Parameters, real floating
    point of one dtype: ``weight_ih`` (2H, d), ``weight_hh`` (2H,) and ``bias`` (2H,), or None; rows in the order z, f.
    An output gate feeds nothing back, so it is no part of the recurrence: it belongs to the readout, which sees inputs
    and states (``examples/element_wise_lstm.py``).

    The Jacobian is diagonal: the exact influence of every parameter on the state is a recurrence of one number, and
    under ``cg.Scan`` Newton's method and its way back are scans of T B H numbers, not T B H^2.

    When not to use it: where units must mix at every step (a position in a grammar, a counter of many states), take
    ``cg.GRU`` or ``cg.LSTM``, or stack layers; for speed on a CPU too, since this one is a loop in plain torch there.

    Args:
        input_size, hidden_size: d and H, at least 1.
        bias: adds ``bias``, which starts as 0 for z and 1 for f, so that units remember for some steps.

    W starts normal with variance 1/d, w uniform in [-1/2, 1/2].

    Raises:
        ValueError: for sizes that are no whole numbers of at least 1; in the call, where the shape or dtype of input or
            state is not the layer's, or the weights are complex.
        TypeError: in the call, where input or state is no tensor.

    >>> import torch
    >>> outputs, state = ELSTM(3, 4)(torch.randn(5, 2, 3))
    >>> outputs.shape, state.shape, bool((outputs[-1] == state[0]).all())
    (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]), True)
    """

    kind = "elstm"

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True) -> None:
        super().__init__(input_size, hidden_size)
        self.weight_ih = nn.Parameter(torch.randn(2 * hidden_size, input_size) / math.sqrt(input_size))
        self.weight_hh = nn.Parameter(torch.empty(2 * hidden_size).uniform_(-0.5, 0.5))
        self.bias = nn.Parameter(torch.cat((torch.zeros(hidden_size), torch.ones(hidden_size)))) if bias else None

    def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.weight_ih.is_complex():
            raise ValueError(f"ELSTM: the weights are {self.weight_ih.dtype}, but its gates take real numbers only")
        return super().forward(inputs, state)
