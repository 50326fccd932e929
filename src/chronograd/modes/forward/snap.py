"""SnAp: real-time recurrent learning with only the influence that arrives within n steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .base import Forward

if TYPE_CHECKING:
    from torch import Tensor

    from .joint import Influence, Step
    from .linearize import Linearizer

__all__ = ["SnAp"]

LOOKS = 3  # at random states, beside the one that is there


@dataclass(frozen=True)
class SnAp(Forward):
    """Sparse n-step approximation: the influence of a weight is kept on those units that it reaches within n steps.

    With P_n the pattern of what n steps can reach (I for n = 1, then one J more each)::

        M_t = P_n * (xi_t J_t M_{t-1} + I_t)          dl_t/dw = q_t M_t

    ``SnAp(1)`` keeps for every weight the influence on its own unit alone (for an LSTM on its h and c), so J_t acts by
    its own blocks and a step costs what a forward pass costs. In stacked layers each layer does so by itself, and what
    stands before a layer gets the credit of the step it takes part in, no more. ``SnAp(n)`` for n >= 2 on a dense
    recurrent weight reaches every unit: it is then computed as ``RTRL``, and ``gradient.how`` says so. For cells of
    your own the pattern is read from the numbers of J and I at some states when a stream begins.

    Biased: credit that goes round through other units is lost. No variance. Exact where units do not feed each other
    (one layer of ``cg.DiagonalRNN`` or ``cg.ELSTM``). Time for each step B P, memory B P numbers for n = 1 and layers;
    as ``RTRL`` for n >= 2 and for cells of your own (known gap: zeros in the pattern are kept and multiplied all the
    same).

    When not to use it: on dense nets with short memory, where ``Chunks(4)`` has less bias for the same money (measured
    in ``studies``); where a sequence can be walked back at all.

    Args:
        n: steps that influence may take to arrive, at least 1.
        limit: bytes that the influence may take.

    Raises:
        ValueError, TypeError: for numbers that make no sense, and as ``RTRL`` in the call.

    >>> import torch, chronograd as cg
    >>> model, x = cg.DiagonalRNN(2, 3).double(), torch.randn(20, 4, 2, dtype=torch.float64)
    >>> loss_fn = lambda outputs, targets: outputs.square().sum(-1)
    >>> ours, _ = cg.value_and_grad(model, loss_fn, x, None, mode=cg.SnAp(1))
    >>> exact, _ = cg.value_and_grad(model, loss_fn, x, None)
    >>> all(torch.allclose(ours.grads[name], exact.grads[name], rtol=1e-10) for name in exact.grads)
    True
    >>> cg.SnAp(2).spec()
    'snap:2'

    References: Menick et al. 2021 (ICLR, "Practical real time recurrent learning with a sparse approximation").
    """

    n: int = 1
    limit: int = 2 * 10**9

    name = "snap"
    exact = False

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or not isinstance(self.n, int):
            raise TypeError(f"SnAp: n must be a whole number of steps, not {self.n!r}")
        if self.n < 1:
            raise ValueError(f"SnAp: n must be at least 1, not {self.n}")
        super().__post_init__()

    def spec(self) -> str:
        """``snap:1``; the number is always written."""
        text = super().spec()
        return text if self.n > 1 else text.replace("snap:", "snap:1,", 1) if ":" in text else "snap:1"

    @property
    def past(self) -> str:
        return f"{self.name}:{self.n}"

    def walk(self, onward: Any, section: dict[str, Any]) -> Any:
        from .joint import JointWalk
        from .layer import dense, made_of_layers
        from .own import OwnWalk
        from .rtrl import RTRL

        if made_of_layers(onward):
            if self.n == 1:
                return OwnWalk(self, onward, section, through_weights=True)
            if dense(onward):
                walk = RTRL(self.limit).walk(onward, section)
                walk.mode, walk.ways = self, (f"{self}: in {self.n} steps every unit is reached, so this is RTRL",)
                return walk
        return JointWalk(self, _Pattern(self.n, section.get("pattern")), onward, section)


class _Pattern:
    """The influence (S, P) where the pattern says that it can be."""

    def __init__(self, n: int, pattern: Tensor | None) -> None:
        self.n, self.pattern = n, pattern

    def look(self, linearize: Linearizer, inputs: Any, state: Any) -> None:
        """Read the pattern from the numbers at some states like ``state``; what is known of it stays."""
        import torch

        from chronograd.recurrence.states import flows, tree_map

        numbers = torch.Generator().manual_seed(0)

        def other(x: Tensor) -> Tensor:
            return torch.randn(x.shape, generator=numbers).to(x) if flows(x) else x

        looks = [linearize(inputs, state), *(linearize(inputs, tree_map(other, state)) for _ in range(LOOKS))]
        reached = torch.stack([(by_s != 0).any(0) for by_s, _ in looks if by_s is not None]).any(0)
        arrived = torch.stack([(by_w != 0).any(0) for _, by_w in looks]).any(0)
        pattern = arrived
        for _ in range(self.n - 1):
            pattern = arrived | ((reached.float() @ pattern.float()) != 0)
        if self.pattern is not None:
            pattern[:, : self.pattern.shape[1]] |= self.pattern
        self.pattern = pattern

    def section(self) -> dict[str, Any]:
        return {} if self.pattern is None else {"pattern": self.pattern}

    def shapes(self, units: int, parameters: int) -> dict[str, tuple[int, ...]]:
        return {"matrix": (units, parameters)}

    def advance(self, influence: Influence, step: Step) -> Influence:
        if step.jacobian is None:
            return {"matrix": step.immediate}
        assert self.pattern is not None
        return {"matrix": self.pattern * (step.jacobian @ influence["matrix"]) + step.immediate}

    def pull(self, cotangent: Tensor, influence: Influence) -> Tensor:
        return (cotangent.unsqueeze(1) @ influence["matrix"]).sum((0, 1))
