"""Forward over the joint state of any model, step by step: an influence that a rule carries along, E4 and E7.

Each step is run once with a graph, cut at the state it makes: what the loss of the step owes to that state (q_t) meets
the influence of the parameters on it, what it owes to the state before (where outputs look at h_{t-1} themselves) the
influence of the step before, and what it owes to parameters directly is plain autograd::

    M_t = xi_t J_t M_{t-1} + I_t          dl_t/dw = q_t M_t + xi_t r_t M_{t-1} + (dl_t/dw with states fixed)

Rows go each their own way: those that start anew take the step from ``state=None`` with no influence before it, frozen
rows keep state and influence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from chronograd.carry import Piece
from chronograd.kernels import Edges
from chronograd.modes.losses import Losses
from chronograd.modes.replay import device_of
from chronograd.recurrence.states import as_leaves, detach, flows, leaves, tree_map

from .linearize import Linearizer, flat_state
from .onward import Onward, Parameters, check_shapes, reaching, refuse_bytes, refuse_draws

__all__ = ["JointWalk", "Rule", "Step"]

Influence = dict[str, Tensor]  # each (B, ...)


@dataclass(frozen=True)
class Step:
    """A linearised step of R rows: J (R, S, S) with the gates (R,) on it, None both where the rows begin; I (R, S, P);
    position and row ids for what a rule draws.
    """

    jacobian: Tensor | None
    gates: Tensor | None
    immediate: Tensor
    position: int
    rows: Tensor


class Rule(Protocol):
    """How an influence is carried along, and what it says about a gradient."""

    def look(self, linearize: Linearizer, inputs: Any, state: Any) -> None:
        """Look at the model where a stream begins."""
        ...

    def section(self) -> dict[str, Any]:
        """What the rule hands on beside the influence."""
        ...

    def shapes(self, units: int, parameters: int) -> dict[str, tuple[int, ...]]:
        """What it keeps for each row."""
        ...

    def advance(self, influence: Influence, step: Step) -> Influence:
        """The influence after a step."""
        ...

    def pull(self, cotangent: Tensor, influence: Influence) -> Tensor:
        """sum over rows of cotangent (R, S) times the influence: (P,)."""
        ...


class JointWalk:
    """Walks forward step by step; see the module's text."""

    block = 256
    ways: tuple[Any, ...] = ()

    def __init__(self, mode: Any, rule: Rule, onward: Onward, section: dict[str, Any]) -> None:
        self.mode, self.rule, self.onward = mode, rule, onward
        refuse_draws(mode, onward.recurrence)
        self.parameters = Parameters(reaching(onward))
        self.linearize = Linearizer(onward.recurrence, self.parameters)
        self.influence: Influence | None = section.get("influence")

    def section(self) -> dict[str, Any]:
        return {} if self.influence is None else {"influence": self.influence, **self.rule.section()}

    def through(self, piece: Piece, state: Any, losses: Losses, position: int) -> Any:
        """Take the steps of a piece one by one."""
        for t in range(piece.steps):
            state = self._step(piece, t, state, losses, position + t)
        return state

    def _step(self, piece: Piece, t: int, state: Any, losses: Losses, position: int) -> Any:
        parts = [
            (rows, *self._rows(piece, t, None if anew else self._of(state, rows), losses, rows, position))
            for rows, anew in _groups(piece, t, state)
        ]
        frozen = torch.empty(0) if piece.valid is None or state is None else (~piece.valid[t]).nonzero().flatten()
        if len(frozen):
            assert self.influence is not None
            held = {name: part[frozen.to(part.device)] for name, part in self.influence.items()}
            parts.append((frozen, self._of(state, frozen), held))
        if len(parts) == 1:
            _, state, self.influence = parts[0]
            return state
        order = torch.cat([rows for rows, _, _ in parts]).argsort()
        dims = self.onward.recurrence.dims
        state = dims.take(dims.join([made for _, made, _ in parts]), order)
        self.influence = {
            name: torch.cat([held[name] for _, _, held in parts])[order.to(part.device)]
            for name, part in parts[0][2].items()
        }
        return state

    def _of(self, state: Any, rows: Tensor) -> Any:
        return state if len(rows) == len(self.onward.rows) else self.onward.recurrence.dims.take(state, rows)

    def _rows(
        self, piece: Piece, t: int, state: Any, losses: Losses, rows: Tensor, position: int
    ) -> tuple[Any, Influence]:
        """One step of some rows: their state and influence after it."""
        recurrence, parameters = self.onward.recurrence, self.parameters
        every = len(rows) == piece.rows
        inputs = tree_map(lambda x: x[t : t + 1] if every else x[t : t + 1, rows.to(x.device)], piece.inputs)
        at = (slice(t, t + 1),) if every else (slice(t, t + 1), rows)
        before = as_leaves(detach(state)) if state is not None else None
        given = [leaf for leaf in leaves(before) if flows(leaf)]
        outputs, after, own = recurrence.run_step(inputs, before, Edges())
        cotangent = _Cut(own)
        loss = losses[at if len(at) > 1 else at[0]].sum(outputs)
        direct = self.onward.tally.add(loss, self.onward.scale, (), given)
        del outputs, loss
        after = detach(after)
        gates = None if before is None else piece.gates[t, rows].to(device_of(piece))
        fresh = self.influence is None
        self._make(flat_state(leaves(after), recurrence.dims.dims))
        if fresh:
            self.rule.look(self.linearize, inputs, after)
        jacobian, immediate = self.linearize(inputs, before)
        if jacobian is not None and gates is not None:
            gates = gates.to(jacobian)
            xi = gates.reshape(-1, 1, 1)
            jacobian = torch.where(xi == 0, 0, jacobian * xi)
        held = self._held(rows, begins=before is None)
        if gates is not None and any(part is not None for part in direct):
            parts = [torch.zeros_like(x) if part is None else part for x, part in zip(given, direct)]
            dims = [dim for leaf, dim in zip(leaves(before), recurrence.dims.dims) if flows(leaf)]
            past = flat_state(parts, tuple(dims)) * gates.to(immediate).unsqueeze(1)
            self.onward.tally.add_found(parameters.split(self.rule.pull(past, held)))
        step = Step(jacobian, gates, immediate, position, self.onward.rows[rows])
        held = self.rule.advance(held, step)
        if (q := cotangent.flat(len(rows), recurrence)) is not None:
            self.onward.tally.add_found(parameters.split(self.rule.pull(q.to(immediate), held)))
        return after, held

    def _make(self, like: Tensor) -> None:
        """Zeros where nothing is known of the past; ``like`` (R, S) is a state."""
        rows = len(self.onward.rows)
        shapes = self.rule.shapes(like.shape[1], self.parameters.size)
        if self.influence is None:
            wanted = rows * sum(map(math.prod, shapes.values())) * like.element_size()
            what = f"{rows} rows, {like.shape[1]} numbers of state, {self.parameters.size} parameters"
            refuse_bytes(self.mode, wanted, self.mode.limit, what, self.mode.instead)
            self.influence = {name: like.new_zeros(rows, *shape) for name, shape in shapes.items()}
        check_shapes(self.mode, self.influence, {name: (rows, *shape) for name, shape in shapes.items()})

    def _held(self, rows: Tensor, begins: bool) -> Influence:
        """The influence of some rows before a step; zeros where they begin."""
        assert self.influence is not None
        held = {name: part[rows.to(part.device)] for name, part in self.influence.items()}
        return {name: torch.zeros_like(part) for name, part in held.items()} if begins else held


class _Cut:
    """Cuts a graph at tensors: what flows back into them is kept, and flows no further."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors
        self.found: dict[int, Tensor] = {}
        for number, tensor in enumerate(tensors):
            if tensor.requires_grad:
                tensor.register_hook(lambda flow, number=number: self._keep(number, flow))

    def _keep(self, number: int, flow: Tensor | None) -> Tensor | None:
        if flow is None:  # autograd's zero
            return None
        self.found[number] = flow
        return torch.zeros_like(flow)

    def flat(self, rows: int, recurrence: Any) -> Tensor | None:
        """(R, S) real numbers, or None where nothing flowed."""
        if not self.found:
            return None
        parts = [self.found.get(number, torch.zeros_like(tensor)) for number, tensor in enumerate(self.tensors)]
        if recurrence.layout is None:
            return flat_state(parts, recurrence.dims.dims)
        real = [torch.view_as_real(part) if part.is_complex() else part for part in parts]
        return torch.cat([part.reshape(rows, -1) for part in real], 1)


def _groups(piece: Piece, t: int, state: Any) -> Iterator[tuple[Tensor, bool]]:
    """Rows that take the step together, and whether they begin with it: from ``state=None`` all do."""
    every = torch.ones(piece.rows, dtype=torch.bool)
    going = every if piece.valid is None or state is None else piece.valid[t]
    anew = every if state is None else every ^ every if piece.reset is None else piece.reset[t] & going
    for rows, begins in ((going & ~anew, False), (anew, True)):
        if bool(rows.any()):
            yield rows.nonzero().flatten(), begins
