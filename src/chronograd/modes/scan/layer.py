"""One built-in layer in parallel over time: the states by a scan, by Newton's method or by the ordinary loop; the way
back by one scan; the gradients of its weights from all steps and rows at once (E13).

The way back computes again, in one step of T B rows, what the cell's derivatives are made of, so nothing but states
and projected inputs is stored in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chronograd.kernels import CELLS, Edges, run_projected
from chronograd.kernels.cells import Cell, fold_biases
from chronograd.kernels.reference import refuse_twice, run_layer, start_anew, states_before
from chronograd.recurrence.torch_layers import run_in_torch, torch_serves

from .associative import Coefficients, Diagonal, scan
from .edges import linear_coefficients, step_coefficients
from .jacobians import diagonals, jacobians, step_all
from .solver import Solver

__all__ = ["LINEAR", "run_layer_at_once"]

State = tuple[Tensor, ...]
LINEAR = ("linear", "diagonal")
# Nonlinear, with Jacobians that are their diagonals: Newton and quasi-Newton are one method, and exact.
ELEMENTWISE = ("elstm",)


def run_layer_at_once(
    solver: Solver,
    kind: str,
    inputs: Tensor,
    weight_ih: Tensor,
    bias_ih: Tensor | None,
    initial: State,
    weight: Tensor,
    bias: Tensor | None,
    edges: Edges,
    fresh: State | None = None,
) -> State:
    """Run one layer; arguments and result as ``kernels.run_projected``.

    Raises:
        ValueError: as ``Scan`` says.
    """
    device = inputs.device.type
    if solver.mode.forward == "loop":
        with torch.no_grad():
            known = _looped(kind, inputs, weight_ih, bias_ih, initial, weight, bias, edges, fresh)
    else:
        known = None
    if fresh is None and edges.reset is not None:
        count = int(edges.reset.sum())
        fresh = tuple(weight.new_zeros(count, part.shape[-1]) for part in initial)
    states = (*initial, *(fresh or ()))
    bias_ih, bias = fold_biases(kind, bias_ih, bias)
    with torch.autocast(device, enabled=False):
        # As in the kernels: sums over many steps are kept in the precision of the recurrent weight.
        cast = [None if part is None else part.to(weight.dtype) for part in (inputs, weight_ih, bias_ih, bias, *states)]
        inputs, weight_ih, bias_ih, bias, *states = cast  # pyright: ignore[reportAssignmentType]
        drive = torch.nn.functional.linear(inputs, weight_ih, bias_ih)
        solver.check_dtype(weight.dtype, kind in LINEAR)
        if kind == "linear" and edges.valid is not None:
            solver.check_powers(drive.shape[0], drive.shape[1], weight.shape[1], weight.dtype)
        elif kind not in LINEAR and kind not in ELEMENTWISE:
            solver.check_bytes(drive.shape[0] * drive.shape[1], CELLS[kind].parts * weight.shape[1], weight.dtype)
        out = _Layer.apply(_Plan(solver, kind, edges, known), drive, weight, bias, *states)
    return out if CELLS[kind].parts > 1 else (out,)  # pyright: ignore[reportReturnType]


def _looped(
    kind: str,
    inputs: Tensor,
    weight_ih: Tensor,
    bias_ih: Tensor | None,
    initial: State,
    weight: Tensor,
    bias: Tensor | None,
    edges: Edges,
    fresh: State | None,
) -> State:
    """The states by the fastest loop: torch's own on a GPU, where nothing happens on the edges and the outputs are all
    of the state.
    """
    if CELLS[kind].parts == 1 and edges.plain and torch_serves(kind, weight):
        weights = [(weight_ih, weight, bias_ih, bias)]
        return (run_in_torch(kind, inputs, tuple(part.unsqueeze(0) for part in initial), weights, 0.0)[0],)
    return run_projected(kind, inputs, weight_ih, bias_ih, initial, weight, bias, edges, fresh)


@dataclass(frozen=True)
class _Plan:
    """What the node is told that is no tensor of its graph; ``known`` are states that the loop has computed."""

    solver: Solver
    kind: str
    edges: Edges
    known: State | None

    @property
    def cell(self) -> Cell:
        return CELLS[self.kind]


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, drive: Tensor, weight: Tensor, bias: Tensor | None, *states: Tensor):
        parts = plan.cell.parts
        initial, fresh = states[:parts], states[parts:]
        path = plan.known or _states(plan, drive, weight, bias, initial, fresh)
        ctx.set_materialize_grads(False)
        ctx.plan, ctx.has_bias = plan, bias is not None
        ctx.save_for_backward(drive, weight, bias, *path, *states)
        return path if parts > 1 else path[0]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None):  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_twice()
        plan, parts = ctx.plan, ctx.plan.cell.parts
        drive, weight, bias, *saved = ctx.saved_tensors
        path, states = tuple(saved[:parts]), tuple(saved[parts:])
        before = states_before(states[:parts], path, plan.edges, states[parts:])
        back = _WayBack(plan, drive, weight, bias, before, path)
        given = _flat(tuple(torch.zeros_like(p) if g is None else g for g, p in zip(cotangents, path)))
        delta = back.cotangents(given)
        flow = back.pull(delta)
        product = flow.product.flatten(0, 1)
        dweight = plan.cell.weight_back(product, before[0].flatten(0, 1)) if ctx.needs_input_grad[2] else None
        dbias = product.sum(0) if ctx.has_bias and ctx.needs_input_grad[3] else None
        initial, fresh = (None,) * parts, (None,) * (len(states) - parts)
        if any(ctx.needs_input_grad[4 : 4 + parts]):
            initial = _parts(back.crossed(back.before(delta, flow, slice(0, 1)))[0], parts)
        if any(ctx.needs_input_grad[4 + parts :]):
            fresh = _parts(back.before(delta, flow, plan.edges.reset), parts)
        return None, flow.drive, dweight, dbias, *initial, *fresh


def _states(plan: _Plan, drive: Tensor, weight: Tensor, bias: Tensor | None, initial: State, fresh: State) -> State:
    """The states after every step, (T, B, H) each."""
    edges, cell, (steps, rows) = plan.edges, plan.cell, drive.shape[:2]
    if plan.kind in LINEAR:
        start, coefficients = initial[0], linear_coefficients(weight, edges)
        terms = drive
        if edges.reset is not None:  # the fresh state's step, whatever came before
            anew = fresh[0] @ weight.mT if weight.dim() == 2 else fresh[0] * weight
            terms = terms.index_put(edges.reset.nonzero().unbind(1), terms[edges.reset] + anew)
        if edges.valid is not None:
            terms = terms.masked_fill(~edges.valid.unsqueeze(-1), 0)
        return (scan(coefficients, terms, start),)
    numbers = None if edges.reset is None else edges.fresh_rows()

    def step(before: Tensor, full: bool | None) -> tuple[Tensor, Tensor]:
        given = _parts(before, cell.parts)
        if edges.reset is not None:
            given = start_anew(given, edges.reset, fresh, numbers)
        after, factors = step_all(cell, drive.flatten(0, 1), tuple(part.flatten(0, 1) for part in given), weight, bias)
        derivative = jacobians if full and plan.kind not in ELEMENTWISE else diagonals
        jacobian = derivative(plan.kind, factors, weight)
        return _flat(after).unflatten(0, (steps, rows)), jacobian.unflatten(0, (steps, rows))

    def walk(few: int) -> Tensor:
        path = run_layer(plan.kind, drive[:few], initial, weight, bias, Edges())
        before = tuple(part.flatten(0, 1) for part in states_before(initial, path, Edges(), ()))
        _, factors = step_all(cell, drive[:few].flatten(0, 1), before, weight, bias)
        return jacobians(plan.kind, factors, weight).unflatten(0, (few, rows))

    found = plan.solver.solve(step, _flat(initial), edges, steps, walk)
    return tuple(part.contiguous() for part in _parts(found, cell.parts))


class _Flow(NamedTuple):
    """One step back from the states: cotangents of the products and drives (T, B, G), and what goes to each part of the
    old state beside the product, (T, B, H) or None.
    """

    product: Tensor
    drive: Tensor
    past: tuple[Tensor | None, ...]


class _WayBack:
    """The way back through a layer whose states are known, all steps at once."""

    def __init__(
        self, plan: _Plan, drive: Tensor, weight: Tensor, bias: Tensor | None, before: State, path: State
    ) -> None:
        self.plan, self.weight = plan, weight
        self.across, self.rows = drive.shape[:2], drive.shape[0] * drive.shape[1]
        self.still = None if plan.edges.valid is None else ~plan.edges.valid.unsqueeze(-1)
        old, new = (tuple(part.flatten(0, 1) for part in states) for states in (before, path))
        cell, self.old = plan.cell, _flat(before)
        if cell.kept:
            self.factors = step_all(cell, drive.flatten(0, 1), old, weight, bias)[1]
        else:
            self.factors = cell.factors(drive.new_empty(0), old, new)

    def cotangents(self, given: Tensor) -> Tensor:
        """delta (T, B, n), from what the losses give (T, B, n)."""
        plan, exact = self.plan, self.plan.kind in LINEAR or self.plan.kind in ELEMENTWISE
        if not exact and plan.solver.mode.forward == "quasi":
            own = step_coefficients(self._each(diagonals), plan.edges, back=True)
            assert isinstance(own, Diagonal)
            every = slice(None)
            pull = lambda delta: self.crossed(self.before(delta, self.pull(delta), every))  # noqa: E731
            return plan.solver.solve_back(pull, own, given, self.old)
        if len(given) == 1:
            return given
        edges = plan.edges[1:]
        coefficients: Coefficients
        if plan.kind in LINEAR:
            coefficients = linear_coefficients(self.weight, edges, back=True)
        else:
            each = diagonals if plan.kind in ELEMENTWISE else jacobians
            coefficients = step_coefficients(self._each(each)[1:], edges, back=True)
        return plan.solver.scan_back(coefficients, given)

    def pull(self, delta: Tensor) -> _Flow:
        """One step back from all of delta, to the products, drives and states before."""
        cell, still = self.plan.cell, self.still
        product = delta.new_empty(self.rows, self.weight.shape[0])
        drive = torch.empty_like(product) if cell.inner_bias else product
        past = cell.backward(_parts(delta.flatten(0, 1), cell.parts), self.factors, product, drive)
        product, drive = product.unflatten(0, self.across), drive.unflatten(0, self.across)
        if still is not None:
            product, drive = product.masked_fill(still, 0), drive.masked_fill(still, 0)
        return _Flow(product, drive, tuple(None if part is None else part.unflatten(0, self.across) for part in past))

    def before(self, delta: Tensor, flow: _Flow, at: Any) -> Tensor:
        """What comes to the states before the steps, or steps and rows, ``at``, (..., n), not yet over the edges."""
        product, *past = (None if part is None else part[at] for part in (flow.product, *flow.past))
        rows = [None if part is None else part.flatten(0, -2) for part in (product, *past)]
        back = self.plan.cell.product_back(rows[0], self.weight, rows[1])  # pyright: ignore[reportArgumentType]
        through = _flat((back, *rows[2:])).view(delta[at].shape)  # pyright: ignore[reportArgumentType]
        return through if self.still is None else torch.where(self.still[at], delta[at], through)

    def crossed(self, through: Tensor) -> Tensor:
        """What is left of the flow behind the edges."""
        edges = self.plan.edges
        if edges.reset is not None:
            through = through.masked_fill(edges.reset[: len(through)].unsqueeze(-1), 0)
        if edges.gates is not None:
            xi = edges.gates[: len(through)].to(through.real.dtype).unsqueeze(-1)
            through = (through * xi).masked_fill(xi == 0, 0)
        return through

    def _each(self, derivative: Any) -> Tensor:
        return derivative(self.plan.kind, self.factors, self.weight).unflatten(0, self.across)


def _flat(state: State) -> Tensor:
    return state[0] if len(state) == 1 else torch.cat(state, -1)


def _parts(flat: Tensor, parts: int) -> State:
    return flat.chunk(parts, -1)
