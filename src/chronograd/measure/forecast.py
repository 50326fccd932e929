"""What would the gradient of a long sequence take? Memory and time of each mode, from some hundred steps of it.

Bytes are those that ``Reverse(memory=...)`` measures before it plans, and the plan is the one that it would follow.
Seconds are those of the same walk over as many steps as it would store at once, repeated, and scaled up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from chronograd.gradient import value_and_grad
from chronograd.modes import Mode, Reverse, Scan, parse
from chronograd.modes.budget import StepBytes, free_bytes, show_bytes
from chronograd.modes.course import Course
from chronograd.modes.losses import Losses
from chronograd.modes.peak import PeakBytes
from chronograd.modes.recompute import Walk
from chronograd.modes.replay import edges_of, in_memory
from chronograd.modes.scan.solver import TooManyBytes
from chronograd.modes.schedule import Plan
from chronograd.modes.step_bytes import PER_TENSOR, measured_bytes, steps_measured
from chronograd.modes.tally import Tally
from chronograd.recurrence.adapters import adapt
from chronograd.recurrence.quiet import keep_buffers, keep_random
from chronograd.recurrence.states import leaves, tree_map
from chronograd.stretch import lay_losses, lay_stretch

from .cost import seconds, seconds_of_pages
from .outlook import LONGEST, Forecast, Outlook

__all__ = ["forecast"]

ROUNDS = 5
# Half the width of a 95 % interval for one more measurement after five: Student's t of 4 degrees, times sqrt(1 + 1/5).
WIDTH = 2.776 * math.sqrt(1 + 1 / ROUNDS)
UNSEEN = 0.1  # what a short run does not show of a long one: caches, pages, a machine that warms up
LONG = 0.3  # seconds of a round that are enough
BEYOND_CACHE = 64 * 2**20  # bytes of stored steps from which on time grows with their number
NEVER_KEPT = 2**28  # bytes of stored steps from which on each of their tensors is a block of its own to the C library
FEW = 256  # steps on which a scan is measured

Clock = Callable[[], float]  # measures once, and says how long the whole sequence takes by it


def forecast(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    inputs: Any,
    targets: Any,
    length: int,
    modes: Sequence[Mode | str] = (Reverse(),),
    *,
    on_progress: Callable[[int, int, str], object] | None = None,
) -> Forecast:
    """Predict what the exact gradient (``Full()``) of a sequence takes under some modes, without running all of it.

    Args:
        model, loss_fn: as for ``value_and_grad``.
        inputs, targets: some hundred steps (T, B, ...) like those of the sequence; they are repeated where more are
            needed, so their values matter little.
        length: steps of the sequence.
        modes: ``Reverse`` with and without a budget, ``Scan``; or their names.
        on_progress: called with (done, total, what) before each measurement.

    Returns:
        A ``Forecast``: ``.table()``, ``.to_dict()``, ``.modes``. Peak memory is what tensors hold, beyond the model,
        its gradients and the data; a process holds more where its allocator keeps what was freed. The time is an
        interval for one more run like those that were measured: 95 % of their spread, and a tenth on both sides. A
        mode that cannot run has its refusal in its row, a budget the smallest that can.

    Raises:
        ValueError, TypeError: ``length`` below 1 or above 10^13, a mode of another kind; as ``value_and_grad`` for what
            it refuses.

    Known gaps: truncations other than ``Full``; how long ``Scan`` iterates on states that the calibration did not meet.

    >>> import torch, chronograd as cg
    >>> model, x = cg.GRU(4, 8), torch.randn(200, 1, 4)
    >>> loss_fn = lambda outputs, targets: outputs.square().mean(-1)
    >>> found = forecast(model, loss_fn, x, None, 100_000, ["reverse", "reverse:2MB", "reverse:1KB"])
    >>> stored, within, refused = found.modes
    >>> stored.peak_bytes > 10 * within.peak_bytes, stored.runs, round(within.runs)
    (True, 1.0, 2)
    >>> refused.refusal
    'a budget of 1KB cannot work: one stored step takes ...; the smallest budget that can is ...'
    """
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ValueError(f"forecast: length must be a whole number of at least 1, not {length!r}")
    if length > LONGEST:
        raise ValueError(f"forecast: length must be at most {LONGEST:,}, not {length:,}; no plan is sought beyond it")
    asked = [mode if isinstance(mode, Mode) else parse(mode) for mode in modes]
    for mode in asked:
        if not isinstance(mode, Reverse | Scan):
            raise TypeError(f"forecast: mode {mode} is neither cg.Reverse nor cg.Scan")
    progress = on_progress or (lambda done, total, what: None)
    total = 2 + len(asked) + ROUNDS
    sample = _Sample(model, loss_fn, in_memory(inputs), in_memory(targets), length)
    with keep_random(), keep_buffers(model):
        progress(0, total, "bytes of a step")
        inner = sample.bytes(inner=True)
        progress(1, total, "bytes of a step")
        whole = sample.bytes(inner=False)
        rows, clocks = [], []
        for number, mode in enumerate(asked):
            progress(2 + number, total, f"{mode}")
            row, clock = _outlook(sample, mode, whole)
            rows.append(row)
            clocks.append(clock)
        times: list[list[float]] = [[] for _ in rows]
        for turn in range(ROUNDS):  # interleaved, so that a slow moment of the machine meets all alike
            for mode, clock, found in zip(asked, clocks, times):
                progress(2 + len(asked) + turn, total, f"{mode}: time")
                if clock is not None:
                    found.append(clock())
        progress(total, total, "done")
    free = _free(sample.device)
    rows = [
        replace(row, seconds=_interval(found), fits=None if free is None else (row.peak_bytes or 0) < free)
        if found
        else row
        for row, found in zip(rows, times)
    ]
    return Forecast(tuple(rows), length, sample.rows, inner.step, inner.state, free)


@dataclass(frozen=True)
class _Sample:
    """The model, and steps to calibrate on: as many as are asked for, made of the given ones again and again."""

    model: nn.Module
    loss_fn: Callable[[Any, Any], Tensor]
    inputs: Any
    targets: Any
    length: int

    @property
    def given(self) -> int:
        return leaves(self.inputs)[0].shape[0]

    @property
    def rows(self) -> int:
        return leaves(self.inputs)[0].shape[1]

    @property
    def device(self) -> str:
        return leaves(self.inputs)[0].device.type

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    @property
    def own(self) -> int:
        """Bytes of the parameters' gradients, which are not the mode's."""
        return sum(value.nbytes for value in self.parameters.values())

    def steps(self, count: int) -> tuple[Any, Any]:
        """Inputs and targets of so many steps."""
        times = -(-count // self.given)

        def lay(x: Tensor) -> Tensor:
            return (x if times == 1 else torch.cat([x] * times))[:count]

        return tree_map(lay, self.inputs), tree_map(lay, self.targets)

    def walk(self, steps: int) -> Walk:
        """A walk over so many steps, from the initial state."""
        inputs, targets = self.steps(steps)
        piece = lay_stretch(inputs, None, None, None, None, draws=False).piece
        losses: Losses = lay_losses(self.loss_fn, targets, None, piece, self.parameters.values())
        recurrence = adapt(self.model, inputs, None)
        return Walk(recurrence, Course([piece]), losses, 0, 1 / max(1.0, losses.weight), Tally(self.parameters))

    def bytes(self, inner: bool, limit: int | None = None) -> StepBytes:
        """What ``Reverse(memory=...)`` would find on the whole sequence, within ``limit`` bytes."""
        walk = self.walk(min(self.length, self._looked_at))
        return measured_bytes(walk, None, inner, limit)

    @cached_property
    def _looked_at(self) -> int:
        walk = self.walk(1)
        piece = walk.course.pieces[0]
        with torch.no_grad():
            _, state = walk.recurrence.run(piece.inputs, None, edges_of(piece, None))
        held = sum(leaf.nbytes for leaf in leaves(state))
        return steps_measured(self.own, held)

    def clock(self, mode: Mode, most: int) -> Clock:
        """The time of a whole call on at most so many steps, and no more of them than take ``LONG``."""
        steps, took = min(self.length, most, self.given), 0.0
        while True:
            call = partial(value_and_grad, self.model, self.loss_fn, *self.steps(steps), mode=mode)
            took, _ = seconds(call)
            if took >= LONG / 2 or steps >= min(self.length, most):
                break
            steps = min(self.length, most, max(2 * steps, int(steps * LONG / took)))
        with PeakBytes() as count:
            value_and_grad(self.model, self.loss_fn, *self.steps(self.given), mode=mode)
        # Large blocks go back to the system when they are freed, and are paid for again; smaller ones are used again.
        held, made = (share / self.given * self.length for share in (count.peak, count.total))
        pages = 0.0 if self.device != "cpu" or steps == self.length else made if held > NEVER_KEPT else held

        def clock() -> float:
            return seconds(call)[0] * self.length / steps + seconds_of_pages() * pages

        return clock

    def clock_walk(self, plan: Plan, most: int) -> Clock:
        """The time of following a plan: of two of its segments, and of advancing over one, none of them longer than
        ``most`` steps.
        """
        length = min(plan.length, most)
        steps = min(plan.steps, 2 * length)
        two = Plan(steps, length, 1, length, 0)

        def clock() -> float:
            walk = self.walk(steps)
            ahead, _ = seconds(partial(walk.advance, 0, length, None))
            walk = self.walk(steps)
            both, _ = seconds(partial(walk.stretch, 0, steps, None, two))
            back = max(0.0, both - ahead) / steps
            return back * plan.steps + ahead / length * plan.advances

        clock()
        return clock


def _outlook(sample: _Sample, mode: Mode, whole: StepBytes) -> tuple[Outlook, Clock | None]:
    """A mode's row but for its time, and what measures that."""
    if isinstance(mode, Scan):
        return _scan(sample, mode)
    stored = whole.fixed + whole.step * sample.length
    enough = max(1, BEYOND_CACHE // whole.step)
    try:
        budget = mode.budget(sample.device)
        if budget is None:
            return Outlook(str(mode), stored, 1.0), sample.clock(mode, enough)
        # Within the budget fewer steps are looked at, so what is found depends on it.
        with PeakBytes() as count:
            took, found = seconds(partial(sample.bytes, inner=True, limit=budget))
        plan = found.plan(sample.length, budget)
    except (ValueError, OSError) as error:
        return Outlook(str(mode), refusal=str(error)), None
    looking = count.peak + PER_TENSOR * count.tensors - sample.own
    if plan.segments == 1:
        clock = sample.clock(Reverse(), enough)
        return Outlook(str(mode), max(stored, looking), plan.runs), lambda: took + clock()
    clock = sample.clock_walk(plan, enough)
    return Outlook(str(mode), max(plan.nbytes, looking), plan.runs), lambda: took + clock()


def _scan(sample: _Sample, mode: Scan) -> tuple[Outlook, Clock | None]:
    """Peaks on some steps and on twice as many, and a line through them."""
    high = min(sample.length, FEW)
    low = max(1, high // 2)
    # Jacobians grow with the steps: what is too much for the whole sequence is too much for a part in its proportion.
    limited = replace(mode, limit=max(1, mode.limit * low // sample.length))

    def peak(steps: int, mode: Mode) -> int:
        with PeakBytes() as count:
            value_and_grad(sample.model, sample.loss_fn, *sample.steps(steps), mode=mode)
        return count.peak + PER_TENSOR * count.tensors

    try:
        few = peak(low, limited)
        step = (peak(high, mode) - few) / max(1, high - low)
    except TooManyBytes as error:
        needed = error.needed * sample.length / low
        return Outlook(
            str(mode),
            refusal=f"full Jacobians of {sample.length:,} steps take {show_bytes(needed)}, and the mode's limit is "
            f"{show_bytes(mode.limit)}",
        ), None
    except ValueError as error:
        return Outlook(str(mode), refusal=str(error)), None
    found = Outlook(str(mode), max(0, int(few + step * (sample.length - low)) - sample.own))
    return found, sample.clock(mode, max(high, int(BEYOND_CACHE / max(1.0, step))))


def _interval(times: Sequence[float]) -> tuple[float, float]:
    """Between which one more time will lie; in logarithms, as what disturbs a clock makes it slower by a factor.

    >>> low, high = _interval([1.0, 1.1, 1.0, 1.2, 1.1])
    >>> 0.6 < low < 0.9 and 1.3 < high < 1.6
    True
    """
    logs = [math.log(max(1e-9, time)) for time in times]
    half = WIDTH * stdev(logs) + math.log1p(UNSEEN)
    return math.exp(fmean(logs) - half), math.exp(fmean(logs) + half)


def _free(device: str) -> int | None:
    try:
        return free_bytes(device)
    except OSError:
        return None
