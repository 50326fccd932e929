"""e-prop: an eligibility trace for each weight, and a learning signal for each unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .base import Forward

__all__ = ["EProp"]


@dataclass(frozen=True)
class EProp(Forward):
    """Eligibility propagation: the gradient as learning signals L_t of units times eligibility traces e_t of weights.

    A trace follows a unit's own dynamics, without the recurrent weights, as in ``RFLO``::

        e_t = xi_t C_t e_{t-1} + D_t met_t          dL/dw = sum_t L_t e_t

    With ``signal="total"`` the learning signal is the total derivative of the loss by what the unit tells the others
    (h_t, with its own memory held fixed), which is the walk back through the recurrent weights::

        L_t = q_t + (J_{t+1} - C_{t+1})^T delta_{t+1}

    and the sum is exactly the gradient: the factorisation of Bellec et al. It needs the future, so it works on whole
    sequences in one call (or calls that the truncation cuts apart), and is here to be looked at. With ``"partial"``,
    e-prop itself, L_t = q_t is what the loss of the step itself says: it walks forward with the data, and on the layers
    of this library gives the numbers of ``RFLO``, under the other paper's name and derivation.

    Partial is biased: credit through recurrent weights is lost. No variance. Time for each step B P, memory B P numbers
    (total: those of ``Reverse`` beside them).

    When not to use it: ``"total"`` for training, which ``Reverse`` does for less; ``"partial"`` where ``SnAp(1)`` can
    be had.

    Args:
        signal: ``"partial"`` or ``"total"``.
        limit: bytes that the traces may take.

    Raises:
        ValueError: for other signals or limits; in the call as ``RFLO``, and with ``"total"`` where losses would reach
            into an earlier call, or the model is more than layers.

    >>> import torch, chronograd as cg
    >>> _ = torch.manual_seed(0)
    >>> model, x = cg.LSTM(2, 3).double(), torch.randn(20, 4, 2, dtype=torch.float64)
    >>> loss_fn = lambda outputs, targets: outputs.square().sum(-1)
    >>> total, _ = cg.value_and_grad(model, loss_fn, x, None, mode=cg.EProp("total"))
    >>> exact, _ = cg.value_and_grad(model, loss_fn, x, None)
    >>> all(torch.allclose(total.grads[name], exact.grads[name], rtol=1e-10) for name in exact.grads)
    True
    >>> cg.EProp().spec(), cg.EProp("total").exact
    ('eprop', True)

    References: Bellec et al. 2020 (Nature Communications, "A solution to the learning dilemma for recurrent networks of
    spiking neurons").
    """

    signal: Literal["partial", "total"] = "partial"
    limit: int = 2 * 10**9

    name = "eprop"

    def __post_init__(self) -> None:
        if self.signal not in ("partial", "total"):
            raise ValueError(f"EProp: signal must be 'partial' or 'total', not {self.signal!r}")
        super().__post_init__()

    @property
    def exact(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether it adds nothing to the truncation's error: with the total learning signal."""
        return self.signal == "total"

    @property
    def online(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether it needs no more than one step at a time: with the partial learning signal."""
        return self.signal == "partial"

    @property
    def past(self) -> str:
        return self.name if self.signal == "partial" else f"{self.name}:{self.signal}"

    def walk(self, onward: Any, section: dict[str, Any]) -> Any:
        from .rflo import local_walk

        if self.signal == "partial":
            return local_walk(self, onward, section)
        from .layer import made_of_layers
        from .own import TotalWalk

        if not made_of_layers(onward):
            raise ValueError(
                f"mode {self} needs layers whose units it can tell apart, of torch or of this library; use "
                "mode=cg.Reverse()"
            )
        return TotalWalk(self, onward, section, through_weights=False)
