"""A cell of the user's own in parallel over time.

The cell is called once for all steps and rows, as the rows of one batch; that is what its independent rows allow. Its
Jacobians come from the same: one way back for each of the n numbers of a state gives dh_t/dh_{t-1} at every step. Where
the states are known, one more call with a graph, from states without one, holds all steps side by side; ``_Adjoint``
turns what the losses give each state into what it owes to all later ones, and autograd does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from chronograd.kernels import Edges
from chronograd.modes.replay import snapshot
from chronograd.recurrence.contract import shown
from chronograd.recurrence.quiet import uncast
from chronograd.recurrence.sequence import Path, check_rows, run_cell
from chronograd.recurrence.states import RowDims, detach, leaves, tree_map

from .associative import Diagonal
from .edges import step_coefficients
from .mode import Scan
from .report import Way
from .solver import Solver

__all__ = ["run_cell_at_once"]

Tree = Any
Cell = Callable[[Tree, Tree], Tree]

NOT_AT_ZERO = "Newton begins at states of zeros, where the cell is not finite; the states are the loop's"


def run_cell_at_once(mode: Scan, ways: list[Way], cell: Cell, inputs: Tree, state: Tree, edges: Edges) -> Path:
    """Run a cell over (T, B, ...); as ``sequence.run_cell``.

    Raises:
        ValueError: as ``Scan`` says, and for states that are not real numbers of one dtype.
    """
    # What Newton solves must be smooth: rounded to half precision, f goes in steps.
    context, inputs, state = uncast(inputs, state)
    with context:
        return _run(mode, ways, cell, inputs, state, edges)


def _run(mode: Scan, ways: list[Way], cell: Cell, inputs: Tree, state: Tree, edges: Edges) -> Path:
    random = snapshot()
    first = None
    if state is None:
        first = state = cell(tree_map(lambda x: x[0], inputs), None)
        check_rows(state, leaves(inputs)[0].shape[1])
        inputs, edges = tree_map(lambda x: x[1:], inputs), edges[1:]
    states = None if first is None else tree_map(lambda x: x.unsqueeze(0), first)
    if leaves(inputs)[0].shape[0]:
        steps = _Steps(mode, ways, cell, inputs, state, edges)
        if not all(map(torch.equal, random, snapshot())):
            raise ValueError(
                f"mode {mode}: the {steps.solver.loop} draws random numbers, and its steps are run several times, each "
                "time with others; switch them off (model.eval()), draw them outside of the cell, or use "
                "mode=cg.Reverse()"
            )
        rest = steps.run()
        states = rest if first is None else tree_map(lambda one, more: torch.cat((one, more)), states, rest)
    # A copy, so that a carried state does not keep all others in memory.
    return Path(states, tree_map(lambda x: x[-1].clone(), states), _Each(leaves(states)))


class _Each(Sequence[tuple[Tensor, ...]]):
    """The tensors of each step's state, taken from all of them when they are asked for."""

    def __init__(self, states: list[Tensor]) -> None:
        self.states = states

    def __len__(self) -> int:
        return len(self.states[0])

    def __getitem__(self, step: Any) -> Any:
        return tuple(part[step] for part in self.states)


class _Steps:
    """All steps of one loop, from a state that is there."""

    def __init__(self, mode: Scan, ways: list[Way], cell: Cell, inputs: Tree, state: Tree, edges: Edges) -> None:
        self.cell, self.inputs, self.state, self.edges = cell, inputs, state, edges
        self.steps, self.rows = leaves(inputs)[0].shape[:2]
        self.spec = pytree.tree_structure(state)
        self.shapes = [leaf.shape[1:] for leaf in leaves(state)]
        self.size, self.dtype = sum(shape.numel() for shape in self.shapes), leaves(state)[0].dtype
        self.solver = Solver(mode, f"cell of {self.size} numbers", ways)
        check_rows(state, self.rows)
        self._check(state)
        self.flat_inputs = tree_map(lambda x: x.flatten(0, 1), inputs)
        self.fresh = None
        if edges.reset is not None:
            at = edges.reset.nonzero().unbind(1)
            self.fresh = self._flat(cell(tree_map(lambda x: x[at], inputs), None), len(at[0]))
        else:
            with torch.no_grad():  # does it draw random numbers?
                self.call(self._laid(detach(state)).expand(self.steps, -1, -1))

    def _check(self, state: Tree) -> None:
        kinds = {leaf.dtype for leaf in leaves(state)}
        plain = all(isinstance(leaf, Tensor | None) for leaf in pytree.tree_leaves(state))
        if not plain or len(kinds) != 1:
            held = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds)) or "none"
            raise ValueError(
                f"mode {self.solver.mode}: the state of the cell must be tensors of one dtype, not {held}"
                f"{'' if plain else ' and plain numbers'}; make it so, or use mode=cg.Reverse()"
            )
        self.solver.check_dtype(kinds.pop(), linear=False)
        self.solver.check_bytes(self.steps * self.rows, self.size, leaves(state)[0].dtype)

    def call(self, before: Tensor) -> Tensor:
        """f of all steps, from the states (T, B, n) before them."""
        try:
            after = self.cell(self.flat_inputs, self._tree(before.flatten(0, 1)))
        except Exception as error:
            error.add_note(
                f"chronograd called the cell once for all steps, as {self.steps * self.rows} rows; a cell made for one "
                "batch size runs under mode=cg.Reverse()"
            )
            raise
        after = self._flat(after, self.steps * self.rows)
        return self._arrived(after.unflatten(0, (self.steps, self.rows)), before)

    def _arrived(self, after: Tensor, before: Tensor) -> Tensor:
        """With the fresh step of rows that reset, and the old state of those that are frozen."""
        if self.edges.reset is not None and self.fresh is not None:
            fresh = self.fresh if torch.is_grad_enabled() else self.fresh.detach()
            after = after.index_put(self.edges.reset.nonzero().unbind(1), fresh)
        if self.edges.valid is not None:
            after = torch.where(self.edges.valid.unsqueeze(-1), after, before)
        return after

    def linearize(self, before: Tensor, full: bool | None) -> tuple[Tensor, Tensor]:
        """f, and dh_t/dh_{t-1} (T, B, n, n), or its diagonal (T, B, n); None of it where ``full`` is None."""
        if full is None:
            with torch.no_grad():
                return self.call(before), before
        with torch.enable_grad():
            given = before.detach().requires_grad_()
            after = self.call(given)
            found = []
            for number in range(self.size):
                row = _pulled(after[..., number], given)
                found.append(row if full else row[..., number])
        return after.detach(), torch.stack(found, 2 if full else -1)

    def run(self) -> Tree:
        """The states after every step, (T, B, ...)."""
        mode = self.solver.mode
        start = self._laid(detach(self.state))[0]
        if mode.forward == "loop":
            self.solver.ways.append(Way(self.solver.loop, "jacobians"))
            path = self._walk(self.edges, self.steps)
        else:
            path = self.solver.solve(self.linearize, start, self.edges, self.steps, self._first_jacobians)
            if path.isnan().all():  # a state of zeros may be none that the cell can start from
                self.solver.ways[-1] = Way(self.solver.loop, "jacobians", NOT_AT_ZERO)
                path = self._walk(self.edges, self.steps)
        if torch.is_grad_enabled():
            state = self.state
            if self.edges.gates is not None:
                state = RowDims([0] * len(self.shapes)).gate(state, self.edges.gates[0])
            before = torch.cat((self._laid(state), path[:-1].detach()))
            after = self.call(before)
            path = _Adjoint.apply(self, before.detach(), after) if after.requires_grad else after
        return self._tree(path)  # pyright: ignore[reportArgumentType]

    def cotangents(self, before: Tensor, given: Tensor) -> Tensor:
        """delta (T, B, n), from what the losses give (T, B, n)."""
        solver = self.solver
        if solver.mode.forward == "quasi":
            own = step_coefficients(self.linearize(before, False)[1], self.edges, back=True)
            assert isinstance(own, Diagonal)
            with torch.enable_grad():
                leaf = before.detach().requires_grad_()
                after = self.call(leaf)

            def pull(delta: Tensor) -> Tensor:
                flow = _pulled(after, leaf, delta)
                return flow if self.edges.gates is None else _gated(flow, self.edges.gates)

            return solver.solve_back(pull, own, given, before)
        if self.steps == 1:
            return given
        jacobian = self.linearize(before, True)[1]
        return solver.scan_back(step_coefficients(jacobian[1:], self.edges[1:], back=True), given)

    def _walk(self, edges: Edges, steps: int) -> Tensor:
        with torch.no_grad():
            path = run_cell(self.cell, tree_map(lambda x: x[:steps], self.inputs), detach(self.state), edges)
            states = tree_map(lambda x: x.flatten(0, 1), path.outputs)
            return self._flat(states, steps * self.rows).unflatten(0, (steps, self.rows))

    def _first_jacobians(self, steps: int) -> Tensor:
        """Along the loop's first few steps."""
        few = _Steps(
            self.solver.mode, [], self.cell, tree_map(lambda x: x[:steps], self.inputs), detach(self.state), Edges()
        )
        path = few._walk(few.edges, steps)
        return few.linearize(torch.cat((few._laid(few.state), path[:-1])), True)[1]

    def _laid(self, state: Tree) -> Tensor:
        """A state as (1, B, n)."""
        return self._flat(state, self.rows).unsqueeze(0)

    def _flat(self, state: Tree, rows: int) -> Tensor:
        """A state of any number of rows as (rows, n)."""
        found = leaves(state)
        if pytree.tree_structure(state) != self.spec or any(
            leaf.shape != (rows, *shape) or leaf.dtype != self.dtype for leaf, shape in zip(found, self.shapes)
        ):
            raise ValueError(
                f"mode {self.solver.mode}: the cell is called once for all steps, as {rows} rows, and returned "
                f"{', '.join(map(shown, found))}; it must treat every row by itself and keep the state's shapes and "
                "dtypes, or use mode=cg.Reverse()"
            )
        return torch.cat([leaf.reshape(rows, -1) for leaf in found], -1)

    def _tree(self, flat: Tensor) -> Tree:
        """(..., n) nested as the state is."""
        parts = flat.split([shape.numel() for shape in self.shapes], -1)
        laid = iter([part.reshape(*flat.shape[:-1], *shape) for part, shape in zip(parts, self.shapes)])
        return tree_map(lambda _: next(laid), self.state)


class _Adjoint(torch.autograd.Function):
    """The identity on states (T, B, n); on the way back, the cotangents that all later states add."""

    @staticmethod
    def forward(ctx: Any, steps: _Steps, before: Tensor, after: Tensor) -> Tensor:
        ctx.steps = steps
        ctx.save_for_backward(before)
        return after.view_as(after)

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> tuple[None, None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, None, ctx.steps.cotangents(*ctx.saved_tensors, given)


def _pulled(after: Tensor, before: Tensor, given: Tensor | None = None) -> Tensor:
    """What ``given`` (None is ones) on ``after`` gives ``before``: zeros where the step does not look at the state."""
    if not after.requires_grad:
        return torch.zeros_like(before)
    given = torch.ones_like(after) if given is None else given
    return torch.autograd.grad(after, before, given, retain_graph=True, materialize_grads=True)[0]


def _gated(flow: Tensor, gates: Tensor) -> Tensor:
    xi = gates.to(flow.dtype).unsqueeze(-1)
    return (flow * xi).masked_fill(xi == 0, 0)
