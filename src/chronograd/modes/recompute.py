"""Reverse mode within a budget of memory: keep some states, run what lies between them again, walk back part by part.

What lies between two steps at which every row is cut is walked back by itself. A stretch whose stored steps do not fit
the budget is cut into segments, and ``schedule`` says which of their start states to keep and what to run again. The
gradient is that of the stored computation, whatever the model: its random numbers are drawn again, what it writes into
its buffers is written once, and a model that does not come to the same state twice is refused.

Cost: one forward pass more where the budget holds the start state of every segment, else ``Plan.advances`` steps.

References: Griewank and Walther 2000 (Revolve); Chen et al. 2016 (two levels); Gruslys et al. 2016 (recurrent nets).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from chronograd.carry import Piece
from chronograd.kernels import Edges
from chronograd.recurrence.adapters import Recurrence
from chronograd.recurrence.quiet import keep_buffers, keep_random
from chronograd.recurrence.states import detach, leaves, tree_map

from .budget import StepBytes
from .course import Course
from .losses import Losses
from .peak import PeakBytes
from .replay import edges_of, restore, snapshot
from .schedule import Advance, Back, Free, Plan, Restore, Store, Tape
from .shelf import Shelf
from .tally import Tally

__all__ = ["PER_TENSOR", "Passage", "Walk", "measured_bytes", "steps_measured"]

# Steps of short stretches that are run at once: more would be no faster.
MOST_TOGETHER = 4096
# Of a tensor beside its numbers: the tensor, its storage, the node of the graph that made it.
PER_TENSOR = 1000
LOOKED_AT = 32  # steps, at least, to measure their bytes


@dataclass(frozen=True)
class Passage:
    """What a walk met when it first came by a step: the state before it, and the generators' states."""

    state: Any
    random: list[Tensor]


@dataclass(frozen=True)
class _Taped:
    """Steps that have run with their graph, until they are walked back: their losses, the leaves they began with, those
    of their inputs with the piece and the step they belong to, and the state they ended in.
    """

    loss: Tensor | None
    start: list[Tensor]
    inputs: list[tuple[Tensor, Tensor, int]]
    end: Any


@dataclass
class Walk:
    """A walk over ``course``, forwards and back, that adds the gradient of its losses to ``tally``.

    ``losses`` are those of the steps from ``new`` on. At the course's marks a ``Passage`` is kept.
    """

    recurrence: Recurrence
    course: Course
    losses: Losses
    new: int
    scale: float
    tally: Tally
    edges: Callable[[Piece, Any], Edges] = edges_of
    passed: dict[int, Passage] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._resume: int | None = None  # the step at which the generators go on from where the walk found them
        self._upto = 0  # the step that no run has gone beyond
        self._random = snapshot()  # the last one that was looked at
        self._begun = self._ended = self._random

    @property
    def ended(self) -> list[Tensor]:
        """The generators' states after the last step that has run."""
        return self._ended

    def within(self, budget: int, cuts: Sequence[int], state: Any) -> Any:
        """Add the gradient of all losses, with ``state`` before the first step and every row cut before the steps
        ``cuts`` (ascending); the state after the last step, without graph.

        Raises:
            ValueError: where so few bytes cannot work, with the smallest number that can.
        """
        if any(piece.random for piece in self.course.pieces):
            self._resume = self.new
        steps = self.course.steps
        each = measured_bytes(self.recurrence, self.course, self.losses, state, self.tally)
        bounds = [0, *(cut for cut in cuts if cut), steps]
        longest = max(end - begin for begin, end in zip(bounds[:-1], bounds[1:]))
        plans = {longest: each.plan(longest, budget)}
        room = min(MOST_TOGETHER, each.plan(steps, budget).length)
        for begin, end in _together(bounds, room):
            if end - begin not in plans:
                plans[end - begin] = each.plan(end - begin, budget)
            state = self.stretch(begin, end, state, plans[end - begin])
        return state

    def stretch(self, begin: int, end: int, state: Any, plan: Plan) -> Any:
        """Add the gradient of the losses of the steps begin..end-1, nothing flowing in from behind; the state after
        them, without graph.
        """
        bounds = [*range(begin, end, plan.length), end]
        kept, random = Shelf(min(plan.slots, len(bounds) - 1)), {}
        taped: dict[int, _Taped] = {}
        cotangents: list[Tensor | None] = []
        met: dict[int, list[Tensor]] = {}  # the start of what was walked back through last, as it was the first time
        first, final = state, None
        for action in plan.actions():
            match action:
                case Store(i):
                    kept.put(i, state)
                    random[i] = self._snapshot()
                case Free(i):
                    kept.free(i)
                    del random[i]
                case Restore(i):
                    state = kept.get(i) if i else first  # the very tensors that may want a gradient
                    restore(random[i])
                case Advance(i, j):
                    for n in range(i, j):
                        state = self.advance(bounds[n], bounds[n + 1], state)
                case Tape(i):
                    taped[i] = self._tape(bounds[i], bounds[i + 1], state, inner=i > 0)
                    state = detach(taped[i].end)
                    if i + 2 == len(bounds):
                        final = state
                    if i + 1 in met:
                        _same_again(state, met[i + 1], bounds[i + 1])
                case Back(i):
                    met = {i: detach(taped[i].start)}
                    cotangents = self._back(taped.pop(i), cotangents)
        restore(self._ended)  # what was run again has set the generators back
        return final

    def advance(self, begin: int, end: int, state: Any) -> Any:
        """The state after the steps begin..end-1, without graph."""
        with torch.no_grad(), self._again(begin):
            for first, _, part in self.course.parts(begin, end):
                self._enter(first, state)
                _, state = self.recurrence.run(part.inputs, state, self.edges(part, state))
        self._leave(end)
        return detach(state)

    def _tape(self, begin: int, end: int, state: Any, inner: bool) -> _Taped:
        """Run steps with their graph. Where they lie ``inner`` in a stretch the gradient of their first state is
        wanted, at its start only that of a state that asks for it by itself.
        """
        if inner:
            state = _as_leaves(state)
        start = [leaf for leaf in leaves(state) if inner and leaf.requires_grad]
        loss, inputs = None, []
        with torch.enable_grad(), self._again(begin):
            for first, last, part in self.course.parts(begin, end):
                self._enter(first, state)
                piece, into = self.course.given(first)
                inputs += [
                    (laid, whole, into)
                    for laid, whole in zip(leaves(part.inputs), leaves(piece.inputs))
                    if laid.requires_grad
                ]
                outputs, state = self.recurrence.run(part.inputs, state, self.edges(part, state))
                at = max(first, self.new)
                if at < last:
                    counted = outputs if at == first else tree_map(lambda x, b=at - first: x[b:], outputs)
                    more = self.losses[at - self.new : last - self.new].sum(counted)
                    loss = more if loss is None else loss if more is None else loss + more
        self._leave(end)
        return _Taped(loss, start, inputs, state)

    def _back(self, taped: _Taped, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Walk back through steps; the cotangents of the state they began with, given those of the state they ended in
        (none for 0).
        """
        ends = [leaf for leaf in leaves(taped.end) if _flows(leaf)]
        flowing = [(end, flow) for end, flow in zip(ends, cotangents) if flow is not None and end.requires_grad]
        wanted = [*taped.start, *(laid for laid, _, _ in taped.inputs)]
        found = self.tally.add(taped.loss, self.scale, flowing, wanted)
        for (_, whole, at), grad in zip(taped.inputs, found[len(taped.start) :]):
            if grad is not None:
                self.tally.put(whole, at, grad)
        return found[: len(taped.start)]

    def _again(self, begin: int) -> Any:
        """What the model writes into its buffers is written by the first run over its steps."""
        return keep_buffers(self.recurrence.model) if begin < self._upto else nullcontext()

    def _enter(self, step: int, state: Any) -> None:
        piece = self.course.at(step)
        if piece is not None and piece.random:
            restore(piece.random)
        elif step == self._resume:
            restore(self._begun)
        if step in self.course.marks and step not in self.passed:
            self.passed[step] = Passage(detach(state), self._snapshot())

    def _leave(self, step: int) -> None:
        if step > self._upto:
            self._upto, self._ended = step, self._snapshot()

    def _snapshot(self) -> list[Tensor]:
        """The generators' states; the same tensors as the last time where nothing was drawn."""
        now = snapshot()
        if len(now) != len(self._random) or not all(map(torch.equal, now, self._random)):
            self._random = now
        return self._random


def steps_measured(parameters: int, state: int) -> int:
    """Steps that a course must have so that ``measured_bytes`` finds on it what it finds on any longer one, for so many
    bytes of parameters and of a state.
    """
    return 8 * max(LOOKED_AT, 2 * parameters // max(1, state))


def measured_bytes(
    recurrence: Recurrence, course: Course, losses: Losses, state: Any, tally: Tally, inner: bool = True
) -> StepBytes:
    """What steps of a course take, counted over some of its first ones; ``losses`` are of its steps.

    A peak is taken over some steps and over twice as many; what it grows by is a step's share. On few steps the
    parameters' gradients would hide what the steps take, so as many are run as take several times their bytes.

    Steps that do not lie ``inner`` in a stretch are all of it: nothing flows in from behind them, and none is wanted
    of their first state, which takes less.
    """
    most = min(course.steps, len(losses.weights))

    def peak(steps: int) -> int:
        nonlocal held
        with PeakBytes() as count:
            walk = Walk(recurrence, course, losses, 0, 1.0, Tally(tally.parameters))
            taped = walk._tape(0, steps, begun, inner)
            walk._back(taped, [torch.ones_like(leaf) for leaf in leaves(taped.end) if inner and _flows(leaf)])
        held = sum(leaf.nbytes for leaf in leaves(taped.end))
        if walk._ended is not walk._begun:
            held += sum(part.nbytes for part in walk._ended)
        return count.peak + PER_TENSOR * count.tensors

    held = 0
    with keep_random(), keep_buffers(recurrence.model):
        with torch.no_grad():  # what is found out about a model is found out here
            _, begun = recurrence.run(*_first(course, state))
        few = min(LOOKED_AT, max(1, most // 2))
        each = peak(few) / few  # at least a step's share
        weights = sum(parameter.nbytes for parameter in tally.parameters.values())
        few = max(few, min(most // 8, 2 * weights // max(1, held)))
        low, high = peak(few), peak(min(most, 2 * few))
    step = max(1, -(-(high - low) // few)) if most > few else int(each)
    return StepBytes(step, held, held + max(0, low - step * few))


def _together(bounds: Sequence[int], room: int) -> Iterator[tuple[int, int]]:
    """Neighbouring stretches as one as long as they are no longer than ``room``: (begin, end) each."""
    begin = upto = bounds[0]
    for end in bounds[1:]:
        if end - begin > room and upto > begin:
            yield begin, upto
            begin = upto
        upto = end
    yield begin, upto


def _first(course: Course, state: Any) -> tuple[Any, Any, Any]:
    _, _, part = next(course.parts(0, 1))
    return part.inputs, state, edges_of(part, state)


def _flows(leaf: Tensor) -> bool:
    return leaf.is_floating_point() or leaf.is_complex()


def _as_leaves(state: Any) -> Any:
    return tree_map(lambda x: x.detach().requires_grad_() if _flows(x) else x, state)


def _same_again(state: Any, before: list[Tensor], step: int) -> None:
    """Raise where a model that ran again came to another state than before; rounding passes.

    Raises:
        ValueError: naming the step.
    """
    now = [leaf for leaf in leaves(state) if _flows(leaf)]
    for ours, theirs in zip(now, before):
        near = torch.finfo(ours.dtype).eps ** 0.25
        size = theirs.abs().max() if theirs.numel() else 0
        if not torch.allclose(ours, theirs, rtol=near, atol=float(near * size), equal_nan=True):
            raise ValueError(
                f"the model came to another state after step {step - 1} when its steps were run again: a budget of "
                "memory needs a model that repeats itself; draw random numbers from torch's generators, keep nothing "
                "between calls outside of the state, or use mode=cg.Reverse()"
            )
