"""Randomized truncation: cut at random, and reweight what is kept so that the mean is exact.

References: Tallec and Ollivier, "Unbiasing truncated backpropagation through time" (ARTBP, arXiv:1705.08209, 2017); the
textbook's z_t with E[z_t] = dh_t/dw (E7). It is Russian roulette over lags (Beatson and Adams, 2019).

Known gaps: the variance grows with the compensation, exponentially in the lag for the geometric tail. It is finite only
where the recurrence contracts faster than that: roughly rho^2 < 1 - c for Jacobians of norm rho and cut probability c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .base import GatePlan, Place, Truncation, gate_plan
from .draws import uniforms

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RandomTruncation"]


@dataclass(frozen=True)
class RandomTruncation(Truncation):
    """Cut each row at random places, and weigh what passes so that the expected gradient is the exact one.

    With cut probability c_t, the gate is 1 / (1 - c_t) with probability 1 - c_t, else 0, drawn for each row and step by
    itself, so E[xi_t | earlier xi] = 1. With the geometric tail c = 1 / mean_length (the section's pi = 1 - c); with
    the polynomial tail c_t = alpha / ((alpha - 1) mean_length + time since the last cut) (ARTBP), whose weights grow
    only polynomially with the lag.

    Unbiased; the price is variance. When not to use it: on recurrences with long memory and a short mean length (the
    variance can be infinite), or where a plain cut's bias is already below the noise of the minibatch.

    Args:
        mean_length: mean number of steps between cuts, above 1.
        tail: ``"geometric"`` or ``"polynomial"``.
        alpha: exponent of the polynomial tail, above 1; it has no meaning for the geometric one.

    >>> RandomTruncation(16).spec()
    'random:16'
    >>> RandomTruncation(16, tail="polynomial", alpha=4.0).spec()
    'random:16,polynomial,4.0'
    """

    mean_length: float
    tail: Literal["geometric", "polynomial"] = "geometric"
    alpha: float = 4.0
    primitive = "gates"
    name = "random"
    random = True
    unbiased = True

    def __post_init__(self) -> None:
        if isinstance(self.mean_length, bool) or not isinstance(self.mean_length, int | float):
            raise TypeError(f"RandomTruncation: mean_length must be a number of steps, not {self.mean_length!r}")
        if not 1 < self.mean_length < float("inf"):
            raise ValueError(
                f"RandomTruncation: mean_length must be above 1 (and finite), not {self.mean_length:g}; "
                "Chunks(1) cuts every step"
            )
        if self.tail not in ("geometric", "polynomial"):
            raise ValueError(f"RandomTruncation: tail must be 'geometric' or 'polynomial', not {self.tail!r}")
        if not isinstance(self.alpha, int | float) or not 1 < self.alpha < float("inf"):
            raise ValueError(f"RandomTruncation: alpha must be a number above 1, not {self.alpha!r}")

    def spec(self) -> str:
        length = str(self.mean_length).removesuffix(".0")
        return f"random:{length}" if self.tail == "geometric" else f"random:{length},polynomial,{self.alpha}"

    def cut_probability(self, since: Tensor) -> Tensor:
        """c_t, float64, for rows that have taken ``since`` >= 1 steps since stream start, reset or cut."""
        import torch

        if self.tail == "geometric":
            return torch.full(since.shape, 1.0 / self.mean_length, dtype=torch.float64)
        return self.alpha / ((self.alpha - 1.0) * self.mean_length + since.to(torch.float64))

    def plan(self, place: Place) -> GatePlan:
        import torch

        draws = uniforms(place.seed, place.position, place.steps + 1, place.rows)
        if self.tail == "geometric":  # the time since the last cut does not matter, so all steps are drawn at once
            since = torch.ones(draws.shape, dtype=torch.int64)
            since[0] = place.since
            return gate_plan(place, *self._cuts_and_gates(draws, since))
        since = place.since.clone()
        cut = torch.zeros(draws.shape, dtype=torch.bool)
        gates = torch.ones(draws.shape, dtype=torch.float64)
        for step, draw in enumerate(draws):
            cut[step], gates[step] = self._cuts_and_gates(draw, since)
            new = cut[step] if place.reset is None or step == place.steps else cut[step] | place.reset[step].cpu()
            since = torch.where(new, 1, since + 1)
        return gate_plan(place, cut, gates)

    def _cuts_and_gates(self, draws: Tensor, since: Tensor) -> tuple[Tensor, Tensor]:
        """Where the draws cut, and the gates."""
        import torch

        probability = self.cut_probability(since)
        edge = since > 0  # no edge lies before a stream's first step
        cut = edge & (draws < probability)
        return cut, torch.where(edge, torch.where(cut, 0.0, 1.0 / (1.0 - probability)), 1.0)
