"""Forward over the joint state of any model, step by step: an influence that a rule carries along, E4 and E7.

Each step is run once with a graph, cut at the state it makes: what the loss of the step owes to that state (q_t) meets
the influence of the parameters on it, what it owes to the state before (where outputs look at h_{t-1} themselves) the
influence of the step before, and what it owes to parameters directly is plain autograd::

    M_t = xi_t J_t M_{t-1} + I_t          dl_t/dw = q_t M_t + xi_t r_t M_{t-1} + (dl_t/dw with states fixed)

Rows go each their own way: those that start anew take the step from ``state=None`` with no influence before it, frozen
rows keep state and influence. A parameter may reach the state for the first time at any step (Python's branches on a
counter or on data): the graph of every step is looked through for those that are not known yet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from chronograd.carry import Piece
from chronograd.kernels import Edges
from chronograd.modes.losses import Losses
from chronograd.modes.replay import device_of
from chronograd.recurrence.states import as_leaves, detach, flows, leaves, tree_map

from .linearize import Linearizer, flat_state
from .onward import Onward, Parameters, begins_at, check_shapes, reaching, refuse_bytes, refuse_draws

__all__ = ["JointWalk", "Rule", "Step"]

Influence = dict[str, Tensor]  # each (B, ...)


class Step:
    """A step of R rows, linearised as far as a rule asks: J (R, S, S), gates (R,) on it, None both where rows begin; I
    (R, S, P); or only their products with a vector for each row. Position and row ids are for what a rule draws.
    """

    def __init__(
        self, linearize: Linearizer, inputs: Any, before: Any, gates: Tensor | None, position: int, rows: Tensor
    ) -> None:
        self.position, self.rows, self.gates = position, rows, gates
        self._linearize, self._given = linearize, (inputs, before)

    @cached_property
    def _dense(self) -> tuple[Tensor | None, Tensor]:
        return self._linearize(*self._given)

    @cached_property
    def jacobian(self) -> Tensor | None:
        jacobian = self._dense[0]
        return jacobian if jacobian is None else self._gated(jacobian)

    @property
    def immediate(self) -> Tensor:
        return self._dense[1]

    def along(self, tangent: Tensor) -> Tensor:
        """J a for a tangent a (R, S); zeros where the rows begin."""
        if self._given[1] is None:
            return torch.zeros_like(tangent)
        return self._gated(self._linearize.along(*self._given, tangent))

    def against(self, cotangent: Tensor) -> Tensor:
        """v I for a cotangent v (R, S): (R, P)."""
        return self._linearize.against(*self._given, cotangent)

    def _gated(self, part: Tensor) -> Tensor:
        if self.gates is None:
            return part
        xi = self.gates.to(part).reshape(-1, *[1] * (part.dim() - 1))
        return torch.where(xi == 0, 0, part * xi)


class Rule(Protocol):
    """How an influence is carried along, and what it says about a gradient."""

    def look(self, linearize: Linearizer, inputs: Any, state: Any) -> None:
        """Look at the model where a stream begins, and again where it meets parameters that are new."""
        ...

    def section(self) -> dict[str, Any]:
        """What the rule hands on beside the influence."""
        ...

    def shapes(self, units: int, parameters: int) -> dict[str, tuple[int, ...]]:
        """What it keeps for each row; parameters last, where there are any."""
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
        self.influence: Influence | None = section.get("influence")
        self._take(reaching(onward) if self.influence is None else self._named(section["names"]))

    def section(self) -> dict[str, Any]:
        if not self.influence:
            return {}
        return {"influence": self.influence, "names": list(self.parameters.values), **self.rule.section()}

    def _take(self, values: dict[str, Tensor]) -> None:
        """Take these to be the parameters that reach the next state."""
        self.parameters = Parameters(values)
        self.linearize = Linearizer(self.onward.recurrence, self.parameters)
        self._others = {id(x): name for name, x in self.onward.tally.parameters.items() if name not in values}

    def _named(self, names: list[str]) -> dict[str, Tensor]:
        trained = self.onward.tally.parameters
        if gone := [name for name in names if name not in trained]:
            raise ValueError(
                f"the carry holds the influence of {', '.join(gone)} under mode {self.mode}, which this model does not "
                "train: give each model the carry that its own calls returned, and carry.cut() after freezing"
            )
        return {name: trained[name] for name in names}

    def _meet(self, made: list[Tensor]) -> bool:
        """Take in the parameters that reach a state for the first time; whether there are any."""
        new = begins_at(made) & self._others.keys() if self._others else set()
        if new:
            names = [name for number, name in self._others.items() if number in new]
            self._take({**self.parameters.values, **self._named(names)})
        return bool(new)

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
            parts.append((frozen, self._of(state, frozen), self._held(frozen)))
        if len(parts) == 1:
            _, state, self.influence = parts[0]
            return state
        order = torch.cat([rows for rows, _, _ in parts]).argsort()
        dims = self.onward.recurrence.dims
        state = dims.take(dims.join([made for _, made, _ in parts]), order)
        helds = [self._widened(held) if held else self._held(rows) for rows, _, held in parts]
        self.influence = {
            name: torch.cat([held[name] for held in helds])[order.to(part.device)] for name, part in helds[0].items()
        }
        return state

    def _of(self, state: Any, rows: Tensor) -> Any:
        return state if len(rows) == len(self.onward.rows) else self.onward.recurrence.dims.take(state, rows)

    def _rows(
        self, piece: Piece, t: int, state: Any, losses: Losses, rows: Tensor, position: int
    ) -> tuple[Any, Influence]:
        """One step of some rows: their state and influence after it."""
        recurrence = self.onward.recurrence
        every = len(rows) == piece.rows
        inputs = tree_map(lambda x: x[t : t + 1] if every else x[t : t + 1, rows.to(x.device)], piece.inputs)
        at = (slice(t, t + 1),) if every else (slice(t, t + 1), rows)
        before = as_leaves(detach(state)) if state is not None else None
        given = [leaf for leaf in leaves(before) if flows(leaf)]
        outputs, after, own = recurrence.run_step(inputs, before, Edges())
        new = self._meet(own)
        parameters = self.parameters
        cotangent = _Cut(own)
        loss = losses[at if len(at) > 1 else at[0]].sum(outputs)
        direct = self.onward.tally.add(loss, self.onward.scale, (), given)
        del outputs, loss
        after = detach(after)
        if not parameters.values:  # nothing that is trained reaches a state
            return after, {}
        gates = None if before is None else piece.gates[t, rows].to(device_of(piece))
        new, units = new or self.influence is None, flat_state(leaves(after), recurrence.dims.dims)
        self._make(units, new)
        if new:
            self.rule.look(self.linearize, inputs, after if before is None else detach(before))
        held = self._held(rows, begins=before is None)
        if gates is not None and any(part is not None for part in direct):
            parts = [torch.zeros_like(x) if part is None else part for x, part in zip(given, direct)]
            dims = [dim for leaf, dim in zip(leaves(before), recurrence.dims.dims) if flows(leaf)]
            past = flat_state(parts, tuple(dims)) * gates.to(units).unsqueeze(1)
            self.onward.tally.add_found(parameters.split(self.rule.pull(past, held)))
        gates = None if gates is None else gates.to(units)
        held = self.rule.advance(held, Step(self.linearize, inputs, before, gates, position, self.onward.rows[rows]))
        if (q := cotangent.flat(len(rows), recurrence)) is not None:
            self.onward.tally.add_found(parameters.split(self.rule.pull(q.to(units), held)))
        return after, held

    def _make(self, like: Tensor, new: bool) -> None:
        """Zeros where nothing is known of the past, or parameters are ``new``; ``like`` (R, S) is a state."""
        rows = len(self.onward.rows)
        self._shapes = shapes = self.rule.shapes(like.shape[1], self.parameters.size)
        if new:
            wanted = rows * sum(map(math.prod, shapes.values())) * like.element_size()
            what = f"{rows} rows, {like.shape[1]} numbers of state, {self.parameters.size} parameters"
            refuse_bytes(self.mode, wanted, self.mode.limit, what, self.mode.instead)
            held = self.influence or {name: like.new_zeros(rows, *shape) for name, shape in shapes.items()}
            self.influence = self._widened(held)
        assert self.influence is not None
        check_shapes(self.mode, self.influence, {name: (rows, *shape) for name, shape in shapes.items()})

    def _widened(self, held: Influence) -> Influence:
        """With zeros for parameters that were not known when it was made."""
        missing = {name: self._shapes[name][-1] - part.shape[-1] for name, part in held.items()}
        return {name: pad(part, (0, missing[name])) if missing[name] > 0 else part for name, part in held.items()}

    def _held(self, rows: Tensor, begins: bool = False) -> Influence:
        """The influence of some rows before a step; zeros where they begin."""
        held = {name: part[rows.to(part.device)] for name, part in (self.influence or {}).items()}
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
