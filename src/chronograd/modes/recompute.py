"""Reverse mode within a budget of memory: keep some states, run what lies between them again, walk back part by part.

What lies between two steps at which every row is cut is walked back by itself. A stretch whose stored steps do not fit
the budget is cut into segments, and ``schedule`` says which of their start states to keep and what to run again. The
gradient is that of the stored computation: random numbers are drawn again, buffers that the model writes are set back,
and a model that does not come to the same state twice is refused.

Cost: one forward pass more where the budget holds the start state of every segment, else ``Plan.advances`` steps; and
the steps on which bytes are measured.

Known gaps: what draws random numbers for a whole sequence at once (dropout between layers) draws them segment by
segment, so they are others than in the stored computation. Weights that a model caches between its calls
(``parametrize.cached``) are made without a graph.

References: Griewank and Walther 2000 (Revolve); Chen et al. 2016 (two levels); Gruslys et al. 2016 (recurrent nets).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from chronograd.carry import Piece
from chronograd.kernels import Edges
from chronograd.recurrence.adapters import Recurrence
from chronograd.recurrence.states import as_leaves, detach, flows, leaves, tree_map

from .course import Course
from .losses import Losses
from .replay import edges_of, restore
from .schedule import Advance, Back, Free, Plan, Restore, Store, Tape
from .shelf import Shelf
from .step_bytes import Budget
from .surroundings import Scene, Surroundings
from .tally import Tally

__all__ = ["Passage", "Walk"]

# Steps of short stretches that are run at once: more would be no faster.
MOST_TOGETHER = 4096


@dataclass(frozen=True)
class Passage:
    """What a walk met when it first came by a step: the state before it, and the generators' states."""

    state: Any
    random: list[Tensor]


@dataclass(frozen=True)
class Taped:
    """Steps that have run with their graph, until they are walked back: their losses, the state they ``began`` with and
    its leaves that want a gradient, those of their inputs with the tensor and the step they belong to, and the state
    they ended in.
    """

    loss: Tensor | None
    began: Any
    start: list[Tensor]
    inputs: list[tuple[Tensor, Tensor, int]]
    end: Any


@dataclass
class Walk:
    """A walk over ``course``, forwards and back, that adds the gradient of its losses to ``tally``.

    ``losses`` are those of the steps from ``new`` on. At the course's marks a ``Passage`` is kept. ``replays`` says
    that pieces draw the random numbers again that they have drawn before.
    """

    recurrence: Recurrence
    course: Course
    losses: Losses
    new: int
    scale: float
    tally: Tally
    edges: Callable[[Piece, Any], Edges] = edges_of
    replays: bool = True
    passed: dict[int, Passage] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._around = Surroundings(self.recurrence)
        self._upto = 0  # the step that no run has gone beyond
        self.begun = self.ended = self._around.now()
        # The step at which the generators go on from where the walk found them.
        again = self.replays and any(piece.random for piece in self.course.pieces)
        self._resume = self.new if again else None

    def trial(self) -> Walk:
        """A walk over the same steps whose gradient goes nowhere."""
        return replace(self, tally=Tally(self.tally.parameters), passed={})

    def within(self, budget: Budget, cuts: Sequence[int], state: Any) -> Any:
        """Add the gradient of all losses, with ``state`` before the first step and every row cut before the steps
        ``cuts`` (ascending); the state after the last step, without graph.

        Raises:
            ValueError: where so few bytes cannot work, with the smallest number that can.
        """
        steps = self.course.steps
        bounds = [0, *(cut for cut in cuts if cut), steps]
        lengths = {end - begin for begin, end in zip(bounds[:-1], bounds[1:])} | {steps}
        plans = {length: budget.plan(self, state, length) for length in lengths}
        self.tally.again = len(lengths) > 1 or any(plan.segments > 1 for plan in plans.values())
        silent = self.losses.silent(cuts, self.new)
        halves = [[b for b in bounds if b <= silent], [b for b in bounds if b >= silent]]
        room = min(MOST_TOGETHER, plans[steps].length)
        for begin, end in (both for half in halves if len(half) > 1 for both in _together(half, room)):
            if end - begin not in plans:
                plans[end - begin] = budget.plan(self, state, end - begin)
            state = self.stretch(begin, end, state, plans[end - begin])
        return state

    def stretch(self, begin: int, end: int, state: Any, plan: Plan) -> Any:
        """Add the gradient of the losses of the steps begin..end-1, nothing flowing in from behind; the state after
        them, without graph.
        """
        bounds = [*range(begin, end, plan.length), end]
        kept, around = Shelf(min(plan.slots, len(bounds) - 1)), dict[int, Scene]()
        taped: dict[int, Taped] = {}
        cotangents: list[Tensor | None] = []
        met: dict[int, Any] = {}  # the start of what was walked back through last, as it was the first time
        first, final = state, None
        for action in plan.actions():
            match action:
                case Store(i):
                    kept.put(i, state)
                    around[i] = self._around.now()
                case Free(i):
                    kept.free(i)
                    del around[i]
                case Restore(i):
                    state = kept.get(i) if i else first  # the very tensors that may want a gradient
                    self._around.set(around[i])
                case Advance(i, j):
                    for n in range(i, j):
                        state = self.advance(bounds[n], bounds[n + 1], state)
                case Tape(i):
                    taped[i] = self.tape(bounds[i], bounds[i + 1], state, inner=i > 0)
                    state = detach(taped[i].end)
                    if i + 2 == len(bounds):
                        final = state
                    if i + 1 in met:
                        _same_again(state, met[i + 1], bounds[i + 1])
                case Back(i):
                    met = {i: detach(taped[i].began)}
                    cotangents = self.back(taped.pop(i), cotangents)
        if len(bounds) > 2:
            self._around.set(self.ended)  # what was run again has set them back
        return final

    def advance(self, begin: int, end: int, state: Any) -> Any:
        """The state after the steps begin..end-1, without graph."""
        with torch.no_grad():
            for first, _, part in self.course.parts(begin, end):
                self._enter(first, state)
                _, state = self.recurrence.run(part.inputs, state, self.edges(part, state))
        self._leave(end)
        return detach(state)

    def first_step(self, state: Any) -> Any:
        """Outputs and state of the first step."""
        _, _, part = next(self.course.parts(0, 1))
        return self.recurrence.run(part.inputs, state, self.edges(part, state))

    def tape(self, begin: int, end: int, state: Any, inner: bool) -> Taped:
        """Run steps with their graph. Where they lie ``inner`` in a stretch the gradient of their first state is
        wanted, at its start only that of a state that asks for it by itself.
        """
        state = began = as_leaves(state) if inner else state
        start = [leaf for leaf in leaves(state) if inner and leaf.requires_grad]
        loss, inputs = None, []
        with torch.enable_grad():
            for first, last, part in self.course.parts(begin, end):
                self._enter(first, state)
                piece, into = self.course.given(first)
                inputs += [
                    (laid, whole, into)
                    for laid, whole in zip(leaves(part.inputs), leaves(piece.inputs))
                    if laid.requires_grad and laid.is_leaf
                ]
                outputs, state = self.recurrence.run(part.inputs, state, self.edges(part, state))
                at = max(first, self.new)
                if at < last:
                    counted = outputs if at == first else tree_map(lambda x, b=at - first: x[b:], outputs)
                    more = self.losses[at - self.new : last - self.new].sum(counted)
                    loss = more if loss is None else loss if more is None else loss + more
        self._leave(end)
        return Taped(loss, began, start, inputs, state)

    def back(self, taped: Taped, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Walk back through steps; the cotangents of the state they began with, given those of the state they ended in
        (none for 0).
        """
        ends = [leaf for leaf in leaves(taped.end) if flows(leaf)]
        flowing = [(end, flow) for end, flow in zip(ends, cotangents) if flow is not None and end.requires_grad]
        wanted = [*taped.start, *(laid for laid, _, _ in taped.inputs)]
        found = self.tally.add(taped.loss, self.scale, flowing, wanted)
        for (_, whole, at), grad in zip(taped.inputs, found[len(taped.start) :]):
            if grad is not None:
                self.tally.put(whole, at, grad)
        return found[: len(taped.start)]

    def _enter(self, step: int, state: Any) -> None:
        piece = self.course.at(step)
        if self.replays and piece is not None and piece.random:
            restore(piece.random)
        elif step == self._resume:
            restore(self.begun.random)
        if step in self.course.marks and step not in self.passed:
            self.passed[step] = Passage(detach(state), self._around.now().random)

    def _leave(self, step: int) -> None:
        if step > self._upto:
            self._upto, self.ended = step, self._around.now()


def _together(bounds: Sequence[int], room: int) -> Iterator[tuple[int, int]]:
    """Neighbouring stretches as one as long as they are no longer than ``room``: (begin, end) each."""
    begin = upto = bounds[0]
    for end in bounds[1:]:
        if end - begin > room and upto > begin:
            yield begin, upto
            begin = upto
        upto = end
    yield begin, upto


def _same_again(state: Any, before: Any, step: int) -> None:
    """Raise where a model that ran again came to another state than before.

    Rounding passes, and what a recurrence may make of it over a segment: with a graph and without, layers of torch
    round otherwise. Models that do not repeat themselves at all are found when bytes are measured.

    Raises:
        ValueError: naming the step.
    """
    ours, theirs = leaves(state), leaves(before)
    if len(ours) != len(theirs) or not all(map(_near, ours, theirs)):
        raise ValueError(
            f"the model came to another state after step {step - 1} when its steps were run again: a budget of "
            "memory needs a model that repeats itself; draw random numbers from torch's generators, keep nothing "
            "between calls outside of the state, or use mode=cg.Reverse()"
        )


def _near(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape or not flows(ours):
        return ours.shape == theirs.shape and torch.equal(ours, theirs)
    finite = torch.isfinite(theirs)
    if not torch.equal(finite, torch.isfinite(ours)):
        return False
    near = torch.finfo(ours.dtype).eps ** 0.25
    size = float(theirs[finite].abs().max()) if bool(finite.any()) else 0.0
    return torch.allclose(ours[finite], theirs[finite], rtol=near, atol=near * size)
