"""Real-time recurrent learning: the exact gradient without a walk back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .base import Forward, Simple

if TYPE_CHECKING:
    from torch import Tensor

    from .joint import Influence, Step

__all__ = ["RTRL"]


@dataclass(frozen=True)
class RTRL(Forward):
    """Real-time recurrent learning: the exact gradient, walking forward with the data, in memory that does not grow.

    The influence M_t = ds_t/dw of the parameters on the state is carried along (E4), gates on the way (E7)::

        M_t = xi_t J_t M_{t-1} + I_t          dl_t/dw = q_t M_t + (dl_t/dw with the state fixed)

    with J_t = ds_t/ds_{t-1}, I_t = ds_t/dw for s_{t-1} fixed, q_t = dl_t/ds_t. Rows have influences of their own. Only
    parameters that can reach the next state have any; readouts are plain autograd. A reset drops a row's influence, a
    frozen row keeps it.

    Exact for whatever terms the truncation keeps, and reaches back to the beginning of the stream (or the last cut)
    whatever the length of the calls: nothing is run again, and ``Full()`` costs no more with every call. After an
    optimizer's step the influence is that of the old parameters on the way they led (stale); it is exact for fixed
    ones. Takes any model of the contract.

    For S numbers of state and P such parameters: memory B S P numbers. Time for each step B S^2 P; where calls have
    many steps the layers of this library and torch's take B S (S + P) and once a block B S^2 P, since M then goes over
    the block as S walks back do (Schmidhuber 1992). One element-wise layer (``cg.DiagonalRNN``, ``cg.ELSTM``) alone
    needs B P of both.

    When not to use it: where a sequence can be walked back, ``Reverse()`` costs S times less. Beyond some hundred units
    the influence is too large (a GRU of 256 units on 64 inputs: 63 million numbers a row). With dropout inside the
    recurrence it is refused.

    Args:
        limit: bytes that the influence may take.

    Raises:
        ValueError: here, for a limit that is no positive whole number. In the call, in one line: where the influence
            would take more than ``limit``; for models that draw random numbers; for windows that overlap; where what
            stands before layers is trained on some steps only.

    >>> import torch, chronograd as cg
    >>> _ = torch.manual_seed(0)
    >>> model, x = cg.Recurrent(torch.nn.GRUCell(2, 3)).double(), torch.randn(20, 4, 2, dtype=torch.float64)
    >>> loss_fn = lambda outputs, targets: outputs.square().sum(-1)
    >>> carry, total = None, None
    >>> for step in x.split(1):  # one step at a time, nothing kept but the influence
    ...     gradient, carry = cg.value_and_grad(model, loss_fn, step, None, carry, mode=cg.RTRL())
    ...     total = gradient if total is None else total + gradient
    >>> whole, _ = cg.value_and_grad(model, loss_fn, x, None)
    >>> all(torch.allclose(total.grads[name], whole.grads[name], rtol=1e-10) for name in whole.grads)
    True

    References: Robinson and Fallside 1987; Williams and Zipser 1989; Schmidhuber 1992 (blocks); Irie et al. 2023 and
    Zucchet et al. 2023 (element-wise recurrences).
    """

    limit: int = 2 * 10**9

    name = "rtrl"
    exact = True

    def walk(self, onward: Any, section: dict[str, Any]) -> Any:
        from .blocks import BlockWalk
        from .joint import JointWalk
        from .layer import find_stack
        from .own import OwnWalk, began

        stack = None if began(section) else find_stack(onward)
        if began(section) or (stack is not None and stack.cell.element_wise):
            return OwnWalk(self, onward, section, through_weights=True)
        if stack is not None:
            return BlockWalk(self, stack, onward, section)
        return JointWalk(self, _Whole(), onward, section)


class _Whole(Simple):
    """The whole influence, (S, P) for each row."""

    def shapes(self, units: int, parameters: int) -> dict[str, tuple[int, ...]]:
        return {"matrix": (units, parameters)}

    def advance(self, influence: Influence, step: Step) -> Influence:
        if step.jacobian is None:
            return {"matrix": step.immediate}
        return {"matrix": step.immediate + step.jacobian @ influence["matrix"]}

    def pull(self, cotangent: Tensor, influence: Influence) -> Tensor:
        return (cotangent.unsqueeze(1) @ influence["matrix"]).sum((0, 1))
