"""The bytes that steps take on the way back, measured on some of them, and the plans that a budget of bytes buys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from chronograd.recurrence.quiet import keep_buffers, keep_random
from chronograd.recurrence.states import flows, leaves

from .budget import StepBytes
from .peak import PeakBytes
from .schedule import Plan

if TYPE_CHECKING:
    from .recompute import Walk

__all__ = ["PER_TENSOR", "Budget", "measured_bytes", "steps_measured"]

# Of a tensor beside its numbers: the tensor, its storage, the node of the graph that made it.
PER_TENSOR = 1000
LOOKED_AT = 32  # steps, at least, to measure their bytes
AT_FIRST = 4  # steps, to see how many may be looked at


class Budget:
    """So many bytes, for one call; what a step takes is measured when a plan is first asked for."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._each: StepBytes | None = None

    def measure(self, walk: Walk, state: Any) -> StepBytes:
        """The bytes of the steps of ``walk``, with ``state`` before the first one."""
        if self._each is None:
            self._each = measured_bytes(walk, state, limit=self.limit)
        return self._each

    def plan(self, walk: Walk, state: Any, steps: int) -> Plan:
        """The best plan for so many steps.

        Raises:
            ValueError: where there is none, with the smallest budget that can work.
        """
        return self.measure(walk, state).plan(steps, self.limit)


def steps_measured(parameters: int, state: int) -> int:
    """Steps that a course must have so that ``measured_bytes`` finds on it what it finds on any longer one, for so many
    bytes of parameters and of a state.
    """
    return 8 * max(LOOKED_AT, 2 * parameters // max(1, state))


def measured_bytes(walk: Walk, state: Any, inner: bool = True, limit: int | None = None) -> StepBytes:
    """What the steps of a walk take, counted over some of those whose losses count, from the first one on.

    A peak is taken over some steps and over twice as many; what it grows by is a step's share. On few steps the
    parameters' gradients would hide what the steps take, so as many are run as take several times their bytes; within
    ``limit`` bytes, though, so that measuring keeps to the budget that it is for.

    Steps that do not lie ``inner`` in a stretch are all of it: nothing flows in from behind them, and none is wanted
    of their first state, which takes less.

    Known gap: steps that take more than those (a state that grows) are not foreseen.

    Raises:
        ValueError: where the model gives other numbers when its steps are run again.
    """
    recurrence, held = walk.recurrence, 0
    most, counted = len(walk.losses.weights), 0
    if walk.losses.used is not None and bool(walk.losses.used.any()):
        counted = int(walk.losses.used.any(1).nonzero()[0])

    def peak(steps: int) -> int:
        nonlocal held
        at = walk.new + max(0, min(counted, most - steps))
        with PeakBytes() as count:
            trial = walk.trial()
            taped = trial.tape(at, at + steps, begun, inner)
            trial.back(taped, [torch.ones_like(leaf) for leaf in leaves(taped.end) if inner and flows(leaf)])
        held = sum(leaf.nbytes for leaf in leaves(taped.end))
        if trial.ended is not trial.begun:
            held += trial.ended.nbytes
        return count.peak + PER_TENSOR * count.tensors

    with keep_random(), keep_buffers(recurrence.model):
        _ = recurrence.written
        begun = _begun(walk, state)
        few = max(1, min(AT_FIRST, most // 2))
        low = peak(few)
        each = low / few  # more than a step's share, and once more steps are run about as much
        if most > 1:
            each = max(1.0, (peak(min(most, 2 * few)) - low) / few)
        weights = sum(parameter.nbytes for parameter in walk.tally.parameters.values())
        few = max(LOOKED_AT, min(most // 8, 2 * weights // max(1, held)))
        if limit is not None:
            few = min(few, int(limit / each / 4))
        few = max(1, min(few, most // 2))
        low, high = peak(few), peak(min(most, 2 * few))
    step = max(1, -(-(high - low) // few)) if most > few else int(low / few)
    return StepBytes(step, held, held + max(0, low - step * few))


def _begun(walk: Walk, state: Any) -> Any:
    """The state after one step, which is taken twice to see whether it comes out alike."""
    found = []
    with torch.no_grad():
        for _ in range(2):
            with keep_random(), keep_buffers(walk.recurrence.model):
                found.append(walk.first_step(state))
    if not all(map(_alike, leaves(found[0]), leaves(found[1]))):
        raise ValueError(
            "the model gives other numbers when its steps are run again, seen on the first one; a budget of memory "
            "needs a model that repeats itself: draw random numbers from torch's generators, keep nothing between "
            "calls outside of the state, or use mode=cg.Reverse()"
        )
    return found[0][1]


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    """Equal but for rounding."""
    if not flows(ours):
        return torch.equal(ours, theirs)
    finite = theirs[torch.isfinite(theirs)].abs()
    slack = 100 * torch.finfo(ours.dtype).eps
    return torch.allclose(
        ours, theirs, rtol=slack, atol=slack * float(finite.max()) if finite.numel() else 0, equal_nan=True
    )
