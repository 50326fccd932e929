"""Kronecker-factored RTRL: the influence as one random Kronecker product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .base import Forward

if TYPE_CHECKING:
    from .layer import Stack

__all__ = ["KFRTRL"]

_TAKES = ("tanh", "relu", "linear")


@dataclass(frozen=True)
class KFRTRL(Forward):
    """Kronecker-factored RTRL: the influence of a layer's weights kept as one random Kronecker product a (x) B.

    The step h_t = phi(W ahat_t) with ahat = [x_t; h_{t-1}; 1, one for each bias] has the influence ahat_t (x) D_t, D =
    diag(phi'), and J_t = D_t W_hh. Instead of M_t (E4), a vector a as long as ahat and a matrix B (H, H) for each row,
    E[a (x) B] = M_t::

        a <- nu0 p0 a + nu1 p1 ahat_t,     B <- nu0 xi_t J_t B / p0 + nu1 D_t / p1,     dl_t/dW = (q_t B)^T a^T

    with q_t and the gate xi_t as for ``RTRL``, two signs nu0, nu1 = +-1 drawn anew at every step,
    ``p0 = sqrt(|xi J B| / |a|)`` and ``p1 = sqrt(|D| / |ahat|)``, which balance the two parts. Where a product is zero
    (after a cut or a reset, at the beginning) both of its factors are left out, the limit of the formula.

    Unbiased for whatever terms the truncation keeps, exactly: the cross terms carry nu0 nu1, and nothing else knows the
    signs. These are a function of the stream's seed, position and row id, never of the calls.

    Cost for H units, d inputs: memory B (H^2 + H + d) numbers, time of a step B H^3.

    Variance: much less than that of ``UORO``, and it does not grow with the layer: the relative variance of a gradient
    over 50 steps of a dense tanh layer is 1.6 to 3, at 8 units and at 64.

    When not to use it: where sequences can be walked back (``Reverse()``); for other cells and for stacks, whose
    influence is no such product (a GRU's and an LSTM's gates each meet inputs and states in their own way, and lower
    layers reach upper ones), take ``UORO()`` or ``RTRL()``. They are refused.

    Known gaps: one product only, no optimal sum of several (OK, Benzing et al. 2019). Cells in a loop and trained maps
    before the layer are refused too, though for some of them the product would hold. After an optimizer's step a and B
    are those of the old parameters.

    Args:
        limit: bytes that a and B may take.

    Raises:
        ValueError: here, for a limit that is no positive whole number. In the call, in one line: for other models;
            where a and B would take more than ``limit``; for windows that overlap.

    >>> import torch, chronograd as cg
    >>> _ = torch.manual_seed(0)
    >>> model, x = cg.RNN(2, 3).double(), torch.randn(20, 1, 2, dtype=torch.float64)
    >>> loss_fn = lambda outputs, targets: outputs.square().sum(-1)
    >>> exact, _ = cg.value_and_grad(model, loss_fn, x, None)
    >>> total = sum(
    ...     cg.value_and_grad(model, loss_fn, x, None, mode=cg.KFRTRL(), seed=seed)[0].grads["weight_hh_l0"]
    ...     for seed in range(400)
    ... )
    >>> bool((total / 400 - exact.grads["weight_hh_l0"]).norm() < 0.2 * exact.grads["weight_hh_l0"].norm())
    True

    References: Mujika, Meier and Steger, "Approximating real-time recurrent learning with random Kronecker factors"
    (NeurIPS 2018, arXiv:1805.10842).
    """

    limit: int = 2 * 10**9

    name = "kfrtrl"
    exact = False
    random = True
    instead = "mode=cg.UORO() or mode=cg.Reverse()"

    @property
    def unbiased(self) -> bool:
        return True

    def walk(self, onward: Any, section: dict[str, Any]) -> Any:
        from .kronecker import KroneckerWalk
        from .layer import find_stack

        stack = find_stack(onward)
        if (why := _why_not(stack)) or stack is None:
            raise ValueError(f"mode {self}: {why}; use mode=cg.UORO(), which takes any model, or mode=cg.RTRL()")
        return KroneckerWalk(self, stack, onward, section)


def _why_not(stack: Stack | None) -> str | None:
    """Why the influence of a step is no Kronecker product, or None."""
    if stack is None:
        return (
            "it needs one layer of cg.RNN, torch.nn.RNN or cg.LinearRNN with nothing trained before it, and the model "
            "is made otherwise"
        )
    if stack.kind not in _TAKES:
        reason = {
            "gru": "each gate of a GRU",
            "lstm": "each gate of an LSTM, and its second state,",
        }.get(stack.kind, f"the weights of a {stack.kind} layer each")
        return f"it needs a step of tanh, relu or linear units; {reason} would need a product of its own"
    if len(stack.entries) > 1:
        return f"it needs a single layer, and in a stack of {len(stack.entries)} lower ones reach upper ones"
    return None
