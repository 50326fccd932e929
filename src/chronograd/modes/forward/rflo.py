"""Random-feedback local online learning, without the random feedback: influence through a unit's leak alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .base import Forward, Simple

if TYPE_CHECKING:
    from torch import Tensor

    from .joint import Influence, Step

__all__ = ["RFLO", "local_walk"]


@dataclass(frozen=True)
class RFLO(Forward):
    """Local online learning: the influence of a weight on its own unit, passed on by what the unit keeps of itself.

    Of J_t only what does not go through the recurrent weights is kept, the leak::

        e_t = xi_t (1 - alpha) e_{t-1} + D_t met_t          dl_t/dw = q_t e_t

    For a leaky net h' = (1 - alpha) h + alpha tanh(W h + U x), as a cell of your own in ``cg.Recurrent`` that says its
    ``leak`` alpha (a number, or one for each unit). In the layers of this library and torch's the leak is what a unit
    keeps: z of a GRU, f of an LSTM's c; nothing of a tanh layer, where this is one-step truncation.

    With the exact error signal q_t; the paper's random feedback, which spares a brain the transport of weights and a
    computer nothing, is left out. Biased: all credit that goes through recurrent weights is lost. No variance. Time and
    memory for each step as ``SnAp(1)``, B P; B S P for cells of your own (known gap: their influence is kept dense).

    When not to use it: wherever ``SnAp(1)`` can be had, which costs the same and keeps the unit's own weight too; on a
    tanh layer.

    Args:
        limit: bytes that the influence may take.

    Raises:
        ValueError: here, for a limit that makes no sense; in the call, for cells that do not say their leak, and as
            ``RTRL``.

    >>> import torch, chronograd as cg
    >>> class Leaky(torch.nn.Module):
    ...     leak = 0.1
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.cell = torch.nn.RNNCell(2, 3)
    ...     def forward(self, x, h):
    ...         h = x.new_zeros(len(x), 3) if h is None else h
    ...         return (1 - self.leak) * h + self.leak * self.cell(x, h)
    >>> loss_fn = lambda outputs, targets: outputs.square().sum(-1)
    >>> gradient, _ = cg.value_and_grad(cg.Recurrent(Leaky()), loss_fn, torch.randn(9, 4, 2), None, mode=cg.RFLO())
    >>> sorted(gradient.grads)[-1]
    'cell.cell.weight_ih'

    References: Murray 2019 (eLife, "Local online learning in recurrent networks with random feedback").
    """

    limit: int = 2 * 10**9

    name = "rflo"
    exact = False

    def walk(self, onward: Any, section: dict[str, Any]) -> Any:
        return local_walk(self, onward, section)


def local_walk(mode: Forward, onward: Any, section: dict[str, Any]) -> Any:
    """The walk that keeps of J_t what does not go through recurrent weights.

    Raises:
        ValueError: for cells that do not say their leak.
    """
    from .joint import JointWalk
    from .layer import made_of_layers
    from .own import OwnWalk

    if made_of_layers(onward):
        return OwnWalk(mode, onward, section, through_weights=False)
    leak = getattr(getattr(onward.recurrence.call, "cell", None), "leak", None)
    if leak is None:
        raise ValueError(
            f"mode {mode} needs to know what a unit keeps of itself: give the cell in cg.Recurrent(cell) an attribute "
            "leak, alpha of h' = (1 - alpha) h + alpha f(...), or use mode=cg.SnAp(1), which reads it from derivatives"
        )
    return JointWalk(mode, _Leak(leak), onward, section)


class _Leak(Simple):
    """The influence (S, P), passed on by the leak alone."""

    def __init__(self, leak: Any) -> None:
        self.leak = leak

    def shapes(self, units: int, parameters: int) -> dict[str, tuple[int, ...]]:
        return {"matrix": (units, parameters)}

    def advance(self, influence: Influence, step: Step) -> Influence:
        if step.gates is None:
            return {"matrix": step.immediate}
        import torch

        leak = torch.as_tensor(self.leak, dtype=step.immediate.dtype, device=step.immediate.device)
        keeps = 1 - leak.detach()
        if keeps.dim() > 1 or (keeps.dim() == 1 and len(keeps) != step.immediate.shape[1]):
            raise ValueError(
                f"the cell's leak has shape {tuple(keeps.shape)}, but its state has {step.immediate.shape[1]} numbers "
                "a row; give one number, or one for each"
            )
        keeps = (step.gates.reshape(-1, 1) * keeps).unsqueeze(-1)
        return {"matrix": keeps * influence["matrix"] + step.immediate}

    def pull(self, cotangent: Tensor, influence: Influence) -> Tensor:
        return (cotangent.unsqueeze(1) @ influence["matrix"]).sum((0, 1))
