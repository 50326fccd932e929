"""The two primitives every truncation is made of: gates and spans (windows).

A *gate* ``xi[t, b]`` sits on the edge from ``h_t`` back to ``h_{t-1}`` of row ``b`` and multiplies what flows back::

    delta_t = a_t dl_t/dh_t  +  xi_{t+1} J_{t+1}^T delta_{t+1}

A *span* lets the losses of the steps ``first..last`` reach back to the step ``start`` and no further. Positions are
counted from 0 at the beginning of the stream (the textbook counts from 1) and are the same for all rows.

The command line reads truncations before torch is loaded, so the files of this folder import torch where they compute.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GatePlan", "Place", "Span", "SpanPlan", "Truncation", "whole_number"]


@dataclass(frozen=True)
class Place:
    """Where in the stream a truncation is asked for its plan.

    ``position`` is the first step, ``steps`` how many follow; ``rows`` (B,) int64 are the global row ids and ``seed``
    the stream's seed: a draw depends on these and on the position only. ``since`` (B,) int64 counts the steps each
    row has taken since its stream, its last reset or its last cut (0 before the first step); ``reset`` (steps, B)
    bool marks new sequences.
    """

    position: int
    steps: int
    rows: Tensor
    seed: int
    since: Tensor
    reset: Tensor | None = None


@dataclass(frozen=True)
class GatePlan:
    """Gates of a stretch of ``steps``, ``since`` (B,) after it, and how many of its last steps the next step's loss can
    ``reach`` in the row that reaches back furthest (0 where all are cut there).

    Before the steps ``gated`` some row's gate is not 1, before the ``cuts`` among them every row's is 0; both
    ascending. ``drawn`` are the gates (T, B), None where they are 1 but at the cuts.
    """

    steps: int
    since: Tensor
    reach: int
    gated: tuple[int, ...]
    cuts: tuple[int, ...]
    drawn: Tensor | None

    @cached_property
    def gates(self) -> Tensor:
        """(T, B) float64."""
        import torch

        if self.drawn is not None:
            return self.drawn
        if not self.cuts:
            return torch.ones((), dtype=torch.float64).expand(self.steps, self.since.numel())
        gates = torch.ones(self.steps, self.since.numel(), dtype=torch.float64)
        return gates.index_fill_(0, torch.tensor(self.cuts, dtype=torch.int64), 0.0)


@dataclass(frozen=True)
class Span:
    """The losses of positions ``first..last`` (both included) reach back to ``start``, and no further."""

    start: int
    first: int
    last: int


@dataclass(frozen=True)
class SpanPlan:
    """Spans that hold every loss of a stretch exactly once, and the earliest position a later loss can reach
    (``keep_from``).
    """

    spans: Sequence[Span]
    keep_from: int


class Truncation(ABC):
    """Which terms of the sum over time are kept: a frozen dataclass of plain numbers.

    Every truncation is a plan that yields gates or spans; nothing else tells one from another.
    """

    primitive: ClassVar[Literal["gates", "spans"]]
    name: ClassVar[str]
    random: ClassVar[bool] = False
    unbiased: ClassVar[bool] = False

    @abstractmethod
    def plan(self, place: Place) -> GatePlan | SpanPlan:
        """The gates or spans of the steps at ``place``."""

    def spec(self) -> str:
        """The truncation as the command line and TOML files write it, such as ``chunks:35``."""
        values = [str(getattr(self, field.name)) for field in fields(self)]  # pyright: ignore[reportArgumentType]
        return ":".join([self.name, ",".join(values)]) if values else self.name

    def __str__(self) -> str:
        return self.spec()


def whole_number(owner: str, name: str, value: object, least: int = 1) -> None:
    """Refuse anything but a whole number of at least ``least``, in one line that names the argument.

    Raises:
        TypeError: if ``value`` is no int.
        ValueError: if it is below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{owner}: {name} must be a whole number of steps, not {value!r}")
    if value < least:
        raise ValueError(f"{owner}: {name} must be at least {least}, not {value}")


def common_plan(place: Place, cuts: range) -> GatePlan:
    """The plan that cuts every row before the steps ``cuts``, counted from the place; the last may be the next step."""
    import torch

    steps, rows = place.steps, place.rows.numel()
    if steps == 0 or (place.reset is not None and bool(place.reset.any())):
        cut = torch.zeros(steps + 1, rows, dtype=torch.bool)
        cut[cuts.start : cuts.stop : cuts.step] = True
        return gate_plan(place, cut, (~cut).to(torch.float64))
    inside = range(cuts.start, min(cuts.stop, steps), cuts.step)
    since = torch.full_like(place.since, steps - inside[-1]) if inside else place.since + steps
    reach = 0 if steps in cuts else steps - inside[-1] if inside else int(since.max())
    return GatePlan(steps, since, reach, tuple(inside), tuple(inside), None)


def gate_plan(place: Place, cut: Tensor, gates: Tensor) -> GatePlan:
    """Put resets into ``gates``, count steps since each row's last cut, and see how far back the next step reaches.

    ``cut`` and ``gates`` are (steps + 1, B): one step more than asked, so that the next step's gate is known.
    """
    import torch

    steps, rows = place.steps, place.rows.numel()
    if place.reset is not None and bool(place.reset.any()):
        reset = torch.zeros(steps + 1, rows, dtype=torch.bool)
        reset[:steps] = place.reset.cpu()
        cut, gates = cut | reset, gates.masked_fill(reset, 0.0)
    since = place.since + steps
    if steps:
        since = torch.where(cut[:steps], torch.arange(steps, 0, -1).unsqueeze(1), since).amin(0)
    reach = int(torch.where(cut[steps], 0, since).max())
    gates = gates[:steps]
    gated, cuts = (which.nonzero().flatten().tolist() for which in ((gates != 1).any(1), (gates == 0).all(1)))
    return GatePlan(steps, since, reach, tuple(gated), tuple(cuts), gates)
