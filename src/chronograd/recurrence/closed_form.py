r"""The linear RNN with every gradient written out: the section's worked example, and an oracle.

    h_t = W_hx x_t + W_hh h_{t-1}        o_t = W_qh h_t        L = sum_t a_t l(o_t, y_t),  a_t = 1/T

No biases and no activation, so each gradient has a closed form. `linear_rnn_forward` runs the two
recurrences, `linear_rnn_gradients` walks back through E8-E11 and forms the weight gradients E9 and E13, and
`power_expansion` gives the same dL/dh_t without walking, as the sum over powers of W_hh (E12).

Shapes: x (T, B, D), h (T, B, H), o (T, B, Q), W_hx (H, D), W_hh (H, H), W_qh (Q, H), h_0 (B, H). Times run
from 1 to T in the equations and from 0 to T - 1 in the tensors: `states[0]` is h_1.

Cost: forward and E8-E11, E13 take O(T B H (D + H + Q)) operations and O(T B H) memory; E12 takes
O(T H^3 + T^2 B H^2) operations and O(T H^2) memory, and its powers over- or underflow where W_hh's spectral
radius is far from 1. It is here to be read and to check the others by, not to train with: for that there is
`cg.LinearRNN`.

References: Zhang, Lipton, Li, Smola, *Dive into Deep Learning*, section "Backpropagation Through Time";
Werbos, "Backpropagation through time: what it does and how to do it", Proc. IEEE 78 (1990).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "LinearRNNGradients",
    "LinearRNNRun",
    "linear_rnn_forward",
    "linear_rnn_gradients",
    "power_expansion",
    "power_terms",
]


@dataclass(frozen=True)
class LinearRNNRun:
    """One forward pass of the linear RNN: what went in, and what came out.

    `states` (T, B, H) holds h_1 .. h_T and `outputs` (T, B, Q) holds o_1 .. o_T; `previous_states` is h_0 ..
    h_{T-1}.
    """

    x: Tensor
    W_hx: Tensor
    W_hh: Tensor
    W_qh: Tensor
    h0: Tensor
    states: Tensor
    outputs: Tensor

    @property
    def previous_states(self) -> Tensor:
        """h_0 .. h_{T-1}, shape (T, B, H): the state each step started from."""
        return torch.cat((self.h0.unsqueeze(0), self.states[:-1]))


@dataclass(frozen=True)
class LinearRNNGradients:
    """Every gradient of L for the linear RNN, each field named for what L is differentiated by.

    | field  | shape     | what                                  | equation                |
    |--------|-----------|---------------------------------------|-------------------------|
    | `o`    | (T, B, Q) | dL/do_t for every t                   | E8                      |
    | `W_qh` | (Q, H)    | dL/dW_qh                              | E9                      |
    | `h`    | (T, B, H) | dL/dh_t for every t                   | E10 at t = T, E11 below |
    | `W_hx` | (H, D)    | dL/dW_hx                              | E13                     |
    | `W_hh` | (H, H)    | dL/dW_hh                              | E13                     |
    | `h0`   | (B, H)    | dL/dh_0 = W_hh^T dL/dh_1              | E11 without its loss    |
    | `x`    | (T, B, D) | dL/dx_t = W_hx^T dL/dh_t              | chain rule              |
    """

    o: Tensor
    W_qh: Tensor
    h: Tensor
    W_hx: Tensor
    W_hh: Tensor
    h0: Tensor
    x: Tensor

    def to_dict(self) -> dict[str, Tensor]:
        """The same tensors under their field names."""
        return {
            "o": self.o,
            "W_qh": self.W_qh,
            "h": self.h,
            "W_hx": self.W_hx,
            "W_hh": self.W_hh,
            "h0": self.h0,
            "x": self.x,
        }


def linear_rnn_forward(x: Tensor, W_hx: Tensor, W_hh: Tensor, W_qh: Tensor, h0: Tensor | None = None) -> LinearRNNRun:
    """Run h_t = W_hx x_t + W_hh h_{t-1} and o_t = W_qh h_t for a batch of sequences (E1, linear).

    Args:
        x: inputs, (T, B, D), floating point.
        W_hx: input weights, (H, D).
        W_hh: recurrent weights, (H, H).
        W_qh: output weights, (Q, H).
        h0: the state before the first step, (B, H); None means zero.

    Returns:
        The run: all states (T, B, H), all outputs (T, B, Q), and what went in. Differentiable by autograd.

    Raises:
        TypeError: something is not a floating-point tensor, or the dtypes differ.
        ValueError: a shape does not fit.

    >>> eye = torch.eye(1)
    >>> run = linear_rnn_forward(torch.ones(3, 1, 1), eye, 0.5 * eye, 2 * eye)
    >>> run.states.flatten().tolist(), run.outputs.flatten().tolist()
    ([1.0, 1.5, 1.75], [2.0, 3.0, 3.5])
    """
    if h0 is None and isinstance(x, Tensor) and isinstance(W_hh, Tensor) and x.dim() == 3 and W_hh.dim() == 2:
        h0 = W_hh.new_zeros(x.shape[1], W_hh.shape[0])
    _require_real(x=x, W_hx=W_hx, W_hh=W_hh, W_qh=W_qh, **({} if h0 is None else {"h0": h0}))
    if x.dim() != 3 or x.shape[0] == 0:
        raise ValueError(f"x must be (T, B, D) with T >= 1, got shape {tuple(x.shape)}")
    if W_hh.dim() != 2 or W_hh.shape[0] != W_hh.shape[1]:
        raise ValueError(f"W_hh must be square, (H, H), got shape {tuple(W_hh.shape)}")
    steps, rows, width = x.shape
    units = W_hh.shape[0]
    _require_shape("W_hx", W_hx, (units, width), "(H, D), with H from W_hh and D from x")
    if W_qh.dim() != 2 or W_qh.shape[1] != units:
        raise ValueError(f"W_qh must be (Q, H) with H = {units} from W_hh, got shape {tuple(W_qh.shape)}")
    assert h0 is not None  # x and W_hh have the dimensions for which it was filled in above
    _require_shape("h0", h0, (rows, units), "(B, H)")

    state, states = h0, []
    for t in range(steps):
        state = x[t] @ W_hx.mT + state @ W_hh.mT
        states.append(state)
    all_states = torch.stack(states)
    return LinearRNNRun(x, W_hx, W_hh, W_qh, h0, all_states, all_states @ W_qh.mT)


def linear_rnn_gradients(run: LinearRNNRun, dl_do: Tensor, step_weights: Tensor | None = None) -> LinearRNNGradients:
    r"""All gradients of L for one run of the linear RNN, by E8-E11 and E13; no autograd involved.

    With the derivative of each step's own loss handed in, dl_do[t, b] = dl(o[t, b], y[t, b]) / do[t, b]:

        E8   dL/do_t  = a_t dl/do_t                                  a_t = 1/T
        E9   dL/dW_qh = sum_t dL/do_t h_t^T
        E10  dL/dh_T  = W_qh^T dL/do_T
        E11  dL/dh_t  = W_hh^T dL/dh_{t+1} + W_qh^T dL/do_t          t < T
        E13  dL/dW_hx = sum_t dL/dh_t x_t^T,   dL/dW_hh = sum_t dL/dh_t h_{t-1}^T

    What L is, for a batch: L = sum over t and b of a[t, b] l(o[t, b], y[t, b]), where a comes from
    `step_weights`:

    - None: a[t, b] = 1/(T B), the mean over steps and over rows;
    - shape (T,), the a_t of the section: a[t, b] = a_t / B, still the mean over rows;
    - shape (T, B): a[t, b] as given, nothing divided by anything. (A weighted mean is `weights /
      weights.sum()`.)

    The sums over t in E9 and E13 run over the rows as well; the row's 1/B is already inside dL/do.

    Args:
        run: what `linear_rnn_forward` returned.
        dl_do: (T, B, Q), the derivative of each l by its own output.
        step_weights: None, (T,) or (T, B), as above.

    Raises:
        TypeError: a tensor is not floating point, or the dtypes differ.
        ValueError: a shape does not fit.

    >>> eye = torch.eye(1)
    >>> run = linear_rnn_forward(torch.ones(2, 1, 1), eye, 0.5 * eye, eye)
    >>> gradients = linear_rnn_gradients(run, dl_do=torch.ones(2, 1, 1))     # l = o, so L = (o_1 + o_2) / 2
    >>> gradients.h.flatten().tolist(), gradients.W_hh.item()
    ([0.75, 0.5], 0.5)
    """
    steps, rows, _ = run.x.shape
    _require_real(x=run.x, dl_do=dl_do, **({} if step_weights is None else {"step_weights": step_weights}))
    _require_shape("dl_do", dl_do, tuple(run.outputs.shape), "(T, B, Q), like the outputs")
    if step_weights is None:
        a = dl_do.new_full((steps, rows), 1.0 / (steps * rows))
    elif step_weights.shape == (steps,):
        a = (step_weights / rows).unsqueeze(1).expand(steps, rows)
    elif step_weights.shape == (steps, rows):
        a = step_weights
    else:
        raise ValueError(
            f"step_weights must be (T,) = ({steps},) or (T, B) = ({steps}, {rows}), got {tuple(step_weights.shape)}"
        )

    d_o = a.unsqueeze(-1) * dl_do  # E8
    d_W_qh = torch.einsum("tbq,tbh->qh", d_o, run.states)  # E9
    d_state = d_o[-1] @ run.W_qh  # E10; rows are row vectors here, so W^T v reads v W
    d_states = [d_state]
    for t in range(steps - 2, -1, -1):
        d_state = d_state @ run.W_hh + d_o[t] @ run.W_qh  # E11
        d_states.append(d_state)
    d_h = torch.stack(d_states[::-1])
    return LinearRNNGradients(
        o=d_o,
        W_qh=d_W_qh,
        h=d_h,
        W_hx=torch.einsum("tbh,tbd->hd", d_h, run.x),  # E13
        W_hh=torch.einsum("tbh,tbg->hg", d_h, run.previous_states),  # E13
        h0=d_h[0] @ run.W_hh,
        x=d_h @ run.W_hx,
    )


def power_expansion(W_hh: Tensor, W_qh: Tensor, dL_do: Tensor) -> Tensor:
    """dL/dh_t for every t by the expansion in powers of W_hh (E12), without recursion.

        dL/dh_t = sum_{i=t}^{T} (W_hh^T)^{T-i} W_qh^T dL/do_{T+t-i}

    The powers are the whole story of vanishing and exploding gradients: see `chronograd.measure.powers`.

    Args:
        W_hh: (H, H).
        W_qh: (Q, H).
        dL_do: (T, B, Q), the E8 gradients (`LinearRNNGradients.o`).

    Returns:
        (T, B, H), equal to `LinearRNNGradients.h`. Costs O(T^2): an oracle and a lesson, not a training
        method.

    >>> one = torch.ones(1, 1)
    >>> power_expansion(0.5 * one, one, torch.ones(3, 1, 1)).flatten().tolist()    # 1 + 1/2 + 1/4, 1 + 1/2, 1
    [1.75, 1.5, 1.0]
    """
    steps = _require_expansion(W_hh, W_qh, dL_do)
    return torch.stack([power_terms(W_hh, W_qh, dL_do, t).sum(0) for t in range(1, steps + 1)])


def power_terms(W_hh: Tensor, W_qh: Tensor, dL_do: Tensor, t: int) -> Tensor:
    """The single terms of E12 for one t: what each later output sends back to h_t.

    Term k = 0 .. T - t is (W_hh^T)^k W_qh^T dL/do_{t+k}, the share of the output k steps later: E12's term i
    = T - k.

    Args:
        W_hh: (H, H).
        W_qh: (Q, H).
        dL_do: (T, B, Q).
        t: the step, 1 .. T as in the equations.

    Returns:
        (T - t + 1, B, H), by rising lag k; the sum over the first dimension is dL/dh_t.

    >>> one = torch.ones(1, 1)
    >>> power_terms(0.5 * one, one, torch.ones(3, 1, 1), t=1).flatten().tolist()
    [1.0, 0.5, 0.25]
    """
    steps = _require_expansion(W_hh, W_qh, dL_do)
    if not 1 <= t <= steps:
        raise ValueError(f"t counts steps from 1 to T = {steps}, got {t}")
    terms, power = [], torch.eye(W_hh.shape[0], dtype=W_hh.dtype, device=W_hh.device)
    for lag in range(steps - t + 1):
        terms.append(dL_do[t - 1 + lag] @ W_qh @ power)  # v -> power^T (W_qh^T v), on row vectors
        power = power @ W_hh
    return torch.stack(terms)


def _require_expansion(W_hh: Tensor, W_qh: Tensor, dL_do: Tensor) -> int:
    _require_real(W_hh=W_hh, W_qh=W_qh, dL_do=dL_do)
    if W_hh.dim() != 2 or W_hh.shape[0] != W_hh.shape[1]:
        raise ValueError(f"W_hh must be square, (H, H), got shape {tuple(W_hh.shape)}")
    if W_qh.dim() != 2 or W_qh.shape[1] != W_hh.shape[0]:
        raise ValueError(f"W_qh must be (Q, H) with H = {W_hh.shape[0]} from W_hh, got shape {tuple(W_qh.shape)}")
    if dL_do.dim() != 3 or dL_do.shape[0] == 0 or dL_do.shape[2] != W_qh.shape[0]:
        raise ValueError(f"dL_do must be (T, B, Q) with T >= 1 and Q = {W_qh.shape[0]}, got shape {tuple(dL_do.shape)}")
    return dL_do.shape[0]


def _require_real(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name} must be a real floating-point tensor, got {kind}")
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise TypeError(f"all tensors must have one dtype, got {listed}; convert them with .to(dtype)")


def _require_shape(name: str, tensor: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must be {shape}, which is {meaning}; got shape {tuple(tensor.shape)}")
