"""Unbiased online recurrent optimization: the influence as one random product of two vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .base import Forward, Simple

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from .joint import Influence, Step

__all__ = ["UORO"]


@dataclass(frozen=True)
class UORO(Forward):
    """Unbiased online recurrent optimization: the influence of all parameters kept as one random product A B.

    Instead of M_t (E4), a vector A of the state's size and one B of the parameters' for each row, E[A B] = M_t::

        A <- p0 xi_t J_t A + p1 nu,     B <- B / p0 + (nu^T I_t) / p1,     dl_t/dw = (q_t . A) B

    with J_t, I_t, q_t and the gate xi_t as for ``RTRL``, signs nu = +-1 for each unit, drawn anew at every step,
    ``p0 = sqrt(|B| / |xi J A|)`` and ``p1 = sqrt(|nu^T I| / |nu|)``, which balance the two parts. Where a product is
    zero (after a cut or a reset, at the beginning, in dead units) both of its factors are left out, the limit of the
    formula.

    Unbiased for whatever terms the truncation keeps, exactly: the cross terms are odd in nu, since p1 is even and p0
    knows nothing of it. Signs are a function of the stream's seed, position, row id and unit, never of the calls.

    Cost for S units of state and P parameters that can reach the next state: memory B (S + P) numbers, time one step
    forward on tangents and one back, O(B P). Stacks of this library's and torch's layers take up to 64 steps of a call
    at once and touch B once for all of them; other models take two passes of ``torch.func`` at every step.

    Variance: large, and growing with S; the relative variance of a gradient over 50 steps of a dense tanh layer is
    about 18 at 8 units, 110 at 32 and 210 at 64. Rows draw each their own signs, so it falls with the batch. It needs
    small learning rates, and grows without bound where the recurrence does not forget.

    When not to use it: where sequences can be walked back (``Reverse()``), where a layer of tanh units takes
    ``KFRTRL()``, whose variance does not grow so, or a small bias is no harm (``SnAp(1)``, ``Chunks(k)``).

    Known gaps: rank one only, no optimal combination of several products (Benzing et al. 2019). A step whose way back
    has no derivative in ``torch.func`` takes the whole J_t, S ways back. After an optimizer's step A and B are those of
    the old parameters. Models that draw random numbers are refused.

    Args:
        limit: bytes that A and B may take.

    Raises:
        ValueError: here, for a limit that is no positive whole number. In the call, in one line: where A and B would
            take more than ``limit``; for models that draw random numbers; for windows that overlap.

    >>> import torch, chronograd as cg
    >>> _ = torch.manual_seed(0)
    >>> model, x = cg.GRU(2, 3).double(), torch.randn(20, 1, 2, dtype=torch.float64)
    >>> loss_fn = lambda outputs, targets: outputs.square().sum(-1)
    >>> exact, _ = cg.value_and_grad(model, loss_fn, x, None)
    >>> total = sum(
    ...     cg.value_and_grad(model, loss_fn, x, None, mode=cg.UORO(), seed=seed)[0].grads["weight_hh_l0"]
    ...     for seed in range(400)
    ... )
    >>> bool((total / 400 - exact.grads["weight_hh_l0"]).norm() < 0.4 * exact.grads["weight_hh_l0"].norm())
    True

    References: Tallec and Ollivier, "Unbiased online recurrent optimization" (arXiv:1702.05043, 2017); Cooijmans and
    Martens 2019 (its variance).
    """

    limit: int = 2 * 10**9

    name = "uoro"
    exact = False
    random = True
    instead = "mode=cg.Reverse()"

    @property
    def unbiased(self) -> bool:
        return True

    def walk(self, onward: Any, section: dict[str, Any]) -> Any:
        from .joint import JointWalk
        from .layer import find_stack
        from .rank_one import RankOneWalk
        from .tangents import KINDS

        stack = find_stack(onward)
        if stack is not None and stack.kind in KINDS:
            return RankOneWalk(self, stack, onward, section)
        return JointWalk(self, _Product(onward.signs), onward, section)


class _Product(Simple):
    """A (S,) and B (P,) for each row."""

    def __init__(self, signs: Callable[..., Tensor]) -> None:
        self._signs = signs

    def shapes(self, units: int, parameters: int) -> dict[str, tuple[int, ...]]:
        return {"state": (units,), "parameters": (parameters,)}

    def advance(self, influence: Influence, step: Step) -> Influence:
        from .balance import balance, norms

        a, b = step.along(influence["state"]), influence["parameters"]
        nu = self._signs(step.position, 1, step.rows, a.shape[1])[0].to(a)
        v = step.against(nu)
        p0, q0 = balance(norms(a), norms(b))
        p1, q1 = balance(norms(nu), norms(v))
        return {
            "state": p0.unsqueeze(1) * a + p1.unsqueeze(1) * nu,
            "parameters": q0.unsqueeze(1) * b + q1.unsqueeze(1) * v,
        }

    def pull(self, cotangent: Tensor, influence: Influence) -> Tensor:
        return (cotangent * influence["state"]).sum(1) @ influence["parameters"]
