"""Randomized truncation: cut at random, and reweight what is kept so that the mean is exact.

References: Tallec and Ollivier, "Unbiasing truncated backpropagation through time" (ARTBP, arXiv:1705.08209, 2017); the
textbook's z_t with E[z_t] = dh_t/dw (E7). It is Russian roulette over lags (Beatson and Adams, 2019).

Known gaps: the variance grows with the compensation, exponentially in the lag for the geometric tail. It is finite only
where the recurrence contracts faster than that; `chronograd.measure.random_variance` says by how much, in closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .base import GatePlan, Place, Truncation, gate_plan, whole_number
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

    def survival(self, lag: int) -> float:
        """P(length > lag): the probability that no cut comes within ``lag`` steps after a cut or a stream's start.

        The gradient that crosses those steps is kept with this probability and multiplied by its inverse. With c the
        cut probability, B = (alpha - 1) mean_length and G the gamma function it is::

            (1 - c)^lag                                                          geometric
            prod_{i=1..lag} (B + i - alpha) / (B + i)
                = G(B + 1) G(B + 1 - alpha + lag) / (G(B + 1 - alpha) G(B + 1 + lag))   polynomial, ~ lag^-alpha

        The sum over lags 0, 1, ... is the mean length. The polynomial tail cuts less often the longer ago the last cut
        is: from a step that is not fresh from a cut, ``lag`` steps survive with a higher probability than this one.

        Raises:
            TypeError: ``lag`` is no int.
            ValueError: it is below 0.

        >>> round(RandomTruncation(4).survival(2), 4)                  # (3/4)^2
        0.5625
        >>> round(RandomTruncation(16, tail="polynomial").survival(160), 4)      # ten mean lengths
        0.0026
        """
        whole_number("RandomTruncation.survival", "lag", lag, least=0)
        if self.tail == "geometric":
            return math.exp(lag * math.log1p(-1.0 / self.mean_length))  # 1 - c would round where c is small
        base, alpha = (self.alpha - 1.0) * self.mean_length, self.alpha
        head = min(lag, 4096)
        log = sum(math.log1p(-alpha / (base + i)) for i in range(1, head + 1))
        # Beyond, G(y) / G(y - alpha) by its expansion in w = y - (alpha + 1) / 2; lgamma would lose digits there.
        first, last = (base + 1 + end - (alpha + 1) / 2 for end in (head, lag))
        correction = alpha * (alpha**2 - 1) / 24 * (first**-2 - last**-2)
        return math.exp(log - alpha * math.log1p((lag - head) / first) - correction)

    def look_back(self, *, weight: float | None = None, std: float | None = None) -> int:
        """The longest lag whose gradient is weighed by ``weight`` at most, or has a relative deviation of ``std``.

        Where the gradient of a lag is kept it is multiplied by 1 / survival(lag). Its share in one row's gradient has
        the standard deviation sqrt(1 / survival(lag) - 1), relative to that share's size; so the two bounds are one,
        weight = 1 + std^2. With the polynomial tail both are reached ``lag`` steps after a cut or a stream's start and
        are smaller elsewhere. The mean over B rows has std / sqrt(B). The inverse of ``reaching``.

        Raises:
            TypeError: not exactly one of the two is given, or it is no number.
            ValueError: ``weight`` is not above 1, ``std`` not above 0, or not finite.

        >>> RandomTruncation(16).look_back(weight=8)                   # (15/16)^-32 = 7.9
        32
        """
        bound = _weight("RandomTruncation.look_back", weight, std)
        low, high = 0, 1  # survival falls with the lag: low is within the bound, high, once found, is not
        while self.survival(high) * bound >= 1:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.survival(middle) * bound >= 1 else (low, middle)
        return low

    @classmethod
    def reaching(
        cls,
        lag: int,
        *,
        weight: float | None = None,
        std: float | None = None,
        tail: Literal["geometric", "polynomial"] = "geometric",
        alpha: float = 4.0,
    ) -> RandomTruncation:
        """The shortest mean length that keeps the gradient of ``lag`` within a bound on its weight or its deviation.

        The bounds are those of ``look_back``. For the geometric tail the cut probability is c = 1 - weight^(-1 / lag),
        so a mean length of about lag / log(weight). When not to use it: to bound the deviation of a whole gradient,
        whose lags add up and may cancel; `chronograd.measure.random_variance` computes that.

        Args:
            lag: steps between a loss and the state that its gradient shall reach, at least 1.
            weight: largest factor on the gradient of that lag, above 1.
            std: largest standard deviation of its share, relative to that share's size, above 0; instead of ``weight``.
            tail, alpha: of the truncation that is returned.

        Raises:
            TypeError: ``lag`` is no int, not exactly one bound is given, or it is no number.
            ValueError: an argument is out of its range, or the mean length would be beyond 1e15.

        >>> truncation = RandomTruncation.reaching(100, weight=8)
        >>> round(truncation.mean_length, 2), truncation.look_back(weight=8)
        (48.59, 100)
        """
        whole_number("RandomTruncation.reaching", "lag", lag)
        bound = _weight("RandomTruncation.reaching", weight, std)

        def within(length: float) -> bool:
            return cls(length, tail, alpha).survival(lag) * bound >= 1

        low, high = 1.0, 2.0
        while not within(high):
            low, high = high, 2.0 * high
            if high > 1e15:
                raise ValueError(
                    f"RandomTruncation.reaching: lag {lag} within a weight of {bound:g} needs a mean length beyond "
                    "1e15; take Full()"
                )
        while low < (middle := (low + high) / 2) < high and high - low > 1e-14 * high:
            low, high = (low, middle) if within(middle) else (middle, high)
        return cls(high, tail, alpha)

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


def _weight(owner: str, weight: float | None, std: float | None) -> float:
    """The bound on a lag's weight that either argument states."""
    if (weight is None) == (std is None):
        raise TypeError(f"{owner}: give either weight or std")
    name, value, least = ("weight", weight, 1) if std is None else ("std", std, 0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{owner}: {name} must be a number, not {value!r}")
    if not least < value < math.inf:
        raise ValueError(f"{owner}: {name} must be above {least} (and finite), not {value:g}")
    return value if std is None else 1.0 + value * value
