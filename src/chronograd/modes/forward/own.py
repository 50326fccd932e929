"""Forward with each unit's own influence alone: what a unit's weights do to that unit, at the cost of a forward pass.

Of J_t only the block that leads from a unit to itself is kept, a p x p matrix C_t for a state of p numbers a unit (2
for the LSTM's h and c), with or without its part through the recurrent weights. So a weight has p numbers of influence
for each row::

    e_t = xi_t C_t e_{t-1} + D_t met_t          dl_t/dw = sum over rows of q_t e_t

where D_t is how the unit answers to its products, and met_t what the weight multiplies (an input, a state before, 1).
Where every unit is a recurrence by itself, C_t is all of J_t, and this is real-time recurrent learning.

The sum over a block of steps needs no e_t: q_t walks back over the C_t, element by element, and one matrix product over
all steps and rows gives the weights' gradients; the influence at the end is the same walk from ones, and one product
for each row. Influences of earlier blocks enter where the walk back arrives at the first step.

What stands before a layer (embeddings, layers below) is given what the loss of a step owes to that step's inputs, and
no more: influence over earlier steps through them is left out. The same holds for initial states that are learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chronograd.carry import Piece
from chronograd.kernels import CELLS, Edges, run_projected
from chronograd.kernels.cells import Cell
from chronograd.kernels.reference import refuse_twice, states_before
from chronograd.modes.losses import Losses
from chronograd.modes.replay import device_of
from chronograd.recurrence.sequence import LayerWeights, Path, run_layers
from chronograd.recurrence.states import detach

from .layer import cell_factors
from .onward import Onward, check_shapes, refuse_bytes, refuse_draws

__all__ = ["OwnWalk"]

State = tuple[Tensor, ...]
Influence = dict[str, Tensor]  # (B, p, *shape of the weight), by the names below
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class OwnWalk:
    """Walks forward over blocks of steps; see the module's text. ``through_weights`` says whether a unit's own
    recurrent weight is a part of C_t.
    """

    block = 256
    ways: tuple[Any, ...] = ()
    total = False

    def __init__(self, mode: Any, onward: Onward, section: dict[str, Any], through_weights: bool) -> None:
        self.mode, self.onward, self.through_weights = mode, onward, through_weights
        refuse_draws(mode, onward.recurrence)
        self.influence: list[Influence] = list(section.get("influence", []))

    def section(self) -> dict[str, Any]:
        return {"influence": self.influence}

    def through(self, piece: Piece, state: Any, losses: Losses, position: int) -> Any:
        """Take the steps of a piece at once."""
        onward = self.onward
        edges = Edges(piece.gates, piece.reset, piece.valid).to(device_of(piece))
        engine = _Engine(self)
        outputs, final = onward.recurrence.watch(piece.inputs, detach(state), edges, engine)
        onward.tally.add(losses.sum(outputs), onward.scale)
        self.influence = engine.after
        return detach(final)


class TotalWalk(OwnWalk):
    """The same with the total derivative as the learning signal of each unit: the whole gradient, of one call."""

    block = 2**62
    total = True

    def section(self) -> dict[str, Any]:
        return {}

    def through(self, piece: Piece, state: Any, losses: Losses, position: int) -> Any:
        """Take all steps of a call.

        Raises:
            ValueError: where its losses would reach into an earlier one.
        """
        cut = piece.gates[0] == 0 if piece.reset is None else (piece.gates[0] == 0) | piece.reset[0]
        if position and not bool(cut.all()):
            raise ValueError(
                f"mode {self.mode} needs all steps that a loss reaches back over in one call; give whole sequences, "
                "carry.cut(), or use mode=cg.EProp() or mode=cg.RTRL()"
            )
        return super().through(piece, state, losses, position)


class _Engine:
    """Runs a model's layers over a block, with the influences of their weights."""

    ways = ()

    def __init__(self, walk: OwnWalk) -> None:
        self.walk = walk
        self.after: list[Influence] = []

    def layers(
        self,
        kind: str,
        inputs: Tensor,
        initial: State,
        weights: Sequence[LayerWeights],
        dropout: float,
        edges: Edges,
        fresh: State | None,
    ) -> Path:
        """Stacked built-in layers; as ``sequence.run_layers``."""
        return run_layers(kind, inputs, initial, weights, dropout, edges, fresh, self._layer)

    def cell(self, cell: Callable[[Any, Any], Any], inputs: Any, state: Any, edges: Edges) -> Path:
        raise ValueError(f"mode {self.walk.mode} sees no units in a cell of your own")  # models of layers only

    def _layer(
        self,
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
        weights = LayerWeights(weight_ih, weight, bias_ih, bias)
        known = self.walk.influence[len(self.after)] if self.walk.influence else None
        if fresh is None and edges.reset is not None:
            fresh = tuple(weight.new_zeros(int(edges.reset.sum()), part.shape[-1]) for part in initial)
        plan = _Plan(kind, edges, known, self.walk.through_weights, self.walk.total)
        rows, parts = inputs.shape[1], CELLS[kind].parts
        expected = {
            name: (rows, parts, *value.shape)
            for name, value in zip(WEIGHTS, (weight_ih, weight, bias_ih, bias))
            if value is not None and value.requires_grad
        }
        if known is not None:
            check_shapes(self.walk.mode, known, expected)
        else:
            wanted = sum(torch.Size(shape).numel() for shape in expected.values()) * weight.element_size()
            what = f"{rows} rows, {parts} for each weight of a {kind} layer of {weight.shape[-1]} units"
            refuse_bytes(self.walk.mode, wanted, self.walk.mode.limit, what, "mode=cg.Reverse()")
        with torch.autocast(inputs.device.type, enabled=False):
            x, *states = (part.to(weight.dtype) for part in (inputs, *initial, *(fresh or ())))
            out, after = _run(plan, x, weights, tuple(states))
        self.after.append({name: after[name] for name in expected})
        return out


class _Plan(NamedTuple):
    """What a layer is told that is no tensor of its graph."""

    kind: str
    edges: Edges
    known: Influence | None
    through_weights: bool
    total: bool

    @property
    def cell(self) -> Cell:
        return CELLS[self.kind]


def _run(plan: _Plan, x: Tensor, weights: LayerWeights, states: State) -> tuple[State, Influence]:
    parts = plan.cell.parts
    with torch.no_grad():
        initial, fresh = states[:parts], states[parts:]
        w_ih, w_hh, b_ih, b_hh = weights
        path = run_projected(plan.kind, x, w_ih, b_ih, initial, w_hh, b_hh, plan.edges, fresh or None)
        units = _Units(plan, x, states_before(initial, path, plan.edges, fresh), path, weights)
        after = units.influence(plan.known)
    out = _Layer.apply(plan, units, x, *weights, *states)
    return (out if parts > 1 else (out,)), after  # pyright: ignore[reportReturnType]


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, units: _Units, x: Tensor, *rest: Tensor | None):
        ctx.set_materialize_grads(False)
        ctx.plan, ctx.units = plan, units
        return units.path if plan.cell.parts > 1 else units.path[0]  # pyright: ignore[reportGeneralTypeIssues]

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None):  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_twice()
        plan, units, parts = ctx.plan, ctx.units, ctx.plan.cell.parts
        arriving = tuple(torch.zeros_like(p) if g is None else g for g, p in zip(given, units.path))
        signal = arriving
        if plan.total:
            signal, arriving = units.total_signal(arriving)
        grads = units.gradients(signal, plan.known, ctx.needs_input_grad[3:7])
        dx, first = units.own_step(arriving, ctx.needs_input_grad[2], any(ctx.needs_input_grad[7:]))
        states: list[Tensor | None] = [None] * (len(ctx.needs_input_grad) - 7)
        if first is not None:
            edges = plan.edges
            open_ = None if edges.reset is None else ~edges.reset[0].unsqueeze(-1)
            states[:parts] = [part[0] if open_ is None else part[0] * open_ for part in first]
            if edges.reset is not None:
                states[parts:] = [part[edges.reset] for part in first]
        return None, None, dx, *grads, *states


class _Units:
    """The units of a layer over a block of steps: how each answers to its products, and to itself."""

    def __init__(self, plan: _Plan, x: Tensor, before: State, path: State, weights: LayerWeights) -> None:
        self.plan, self.x, self.path = plan, x, path
        self.before, self.weights = before, weights
        self.across, self.count = x.shape[:2], x.shape[0] * x.shape[1]
        self.factors = cell_factors(plan.kind, x, before, path, weights)
        cell, edges, weight = plan.cell, plan.edges, weights.recurrent
        flat = path[0].flatten(0, 1)
        ones, none = torch.ones_like(flat), torch.zeros_like(flat)
        gates = None if edges.gates is None else edges.gates.to(weight.real.dtype).unsqueeze(-1)
        still = None if edges.valid is None else ~edges.valid.unsqueeze(-1)
        # answers[p] (T, B, G): of part p to the products, and the drives; own[p][o] (T, B, H): of p to part o before.
        self.answers: list[tuple[Tensor, Tensor]] = []
        self.own: list[list[Tensor | None]] = []
        for part in range(cell.parts):
            delta = tuple(ones if other == part else none for other in range(cell.parts))
            product, drive, past = self._back(delta)
            to_h = past[0]
            if plan.through_weights or cell.element_wise:
                to_h = self._through(product, to_h)
            own = [None if o is None else o.unflatten(0, self.across) for o in (to_h, *past[1:])]
            product, drive = product.unflatten(0, self.across), drive.unflatten(0, self.across)
            if still is not None:
                drive = drive.masked_fill(still, 0) if drive is not product else drive
                product = product.masked_fill(still, 0)
                drive = drive if cell.inner_bias else product
                same = [(still if o == part else ~still & still).to(product) for o in range(cell.parts)]
                own = [torch.where(still, s, 0 if o is None else o) for s, o in zip(same, own)]
            if edges.reset is not None:
                own = [None if o is None else o.masked_fill(edges.reset.unsqueeze(-1), 0) for o in own]
            if gates is not None:
                own = [None if o is None else (o * gates).masked_fill(gates == 0, 0) for o in own]
            self.answers.append((product, drive))
            self.own.append(own)

    def _back(self, delta: State) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
        """One step back of T B rows: to products and drives (N, G), and to the old parts beside the products."""
        weight = self.weights.recurrent
        product = delta[0].new_empty(self.count, weight.shape[0])
        drive = torch.empty_like(product) if self.plan.cell.inner_bias else product
        return product, drive, self.plan.cell.backward(delta, self.factors, product, drive)

    def _through(self, product: Tensor, add: Tensor | None) -> Tensor:
        """To a unit's own h before, through its own recurrent weights."""
        weight = self.weights.recurrent
        if self.plan.cell.element_wise:
            return self.plan.cell.product_back(product, weight, add)
        diagonal = weight.unflatten(0, (-1, weight.shape[1])).diagonal(dim1=1, dim2=2).flatten()  # (G,)
        through = (product * diagonal).unflatten(-1, (-1, weight.shape[1])).sum(-2)
        return through if add is None else add + through

    def walk_back(self, arriving: State) -> tuple[list[Tensor], list[Tensor | None]]:
        """delta (T, B, H) of each part from what arrives at each step, and what is left before the first."""
        parts = range(len(arriving))
        delta = [part.clone() for part in arriving]
        flow: list[Tensor | None] = [None for _ in parts]
        steps = self.across[0]
        by_step = [[None if o is None else o.unbind(0) for o in row] for row in self.own]
        rows = [part.unbind(0) for part in delta]
        for t in range(steps - 1, -1, -1):
            flow = [None for _ in parts]
            for p in parts:
                for o in parts:
                    own = by_step[p][o]
                    if own is None:
                        continue
                    if t:
                        rows[o][t - 1].addcmul_(own[t], rows[p][t])
                    else:
                        here, known = own[t] * rows[p][t], flow[o]
                        flow[o] = here if known is None else known + here
        return delta, flow

    def total_signal(self, arriving: State) -> tuple[State, State]:
        """The learning signals: total derivatives by what each unit tells the others; and delta, by the unit at all."""
        edges, cell, weight = self.plan.edges, self.plan.cell, self.weights.recurrent
        steps, rows = self.across
        factors = list(zip(*(part.unflatten(0, self.across) for part in self.factors))) or [()] * steps
        gates = None if edges.gates is None else edges.gates.to(weight.real.dtype).unsqueeze(-1)
        signal, delta = [part.clone() for part in arriving], [part.clone() for part in arriving]
        for t in range(steps - 1, 0, -1):
            here = tuple(part[t] for part in delta)
            product = here[0].new_empty(rows, weight.shape[0])
            drive = torch.empty_like(product) if cell.inner_bias else product
            past = cell.backward(here, factors[t], product, drive)
            through = [cell.product_back(product, weight, past[0]), *past[1:]]
            if edges.valid is not None:
                through = [torch.where(edges.valid[t].unsqueeze(-1), o, h) for o, h in zip(through, here)]
            if edges.reset is not None:
                through = [part.masked_fill(edges.reset[t].unsqueeze(-1), 0) for part in through]
            if gates is not None:
                through = [(part * gates[t]).masked_fill(gates[t] == 0, 0) for part in through]
            for other, part in enumerate(through):
                delta[other][t - 1] += part
                owned = [o[other] for o in self.own]
                by_own = sum((o[t] * h for o, h in zip(owned, here) if o is not None), torch.zeros_like(part))
                signal[other][t - 1] += part - by_own
        return tuple(signal), tuple(delta)

    def _flows(self, delta: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Cotangents of products and drives (T, B, G), from those of the parts."""
        blocks = self.answers[0][0].shape[-1] // delta[0].shape[-1]

        def spread(side: int) -> Tensor:
            total = None
            for answers, part in zip(self.answers, delta):
                here = (answers[side].unflatten(-1, (blocks, -1)) * part.unsqueeze(-2)).flatten(-2)
                total = here if total is None else total + here
            assert total is not None
            return total

        product = spread(0)
        return product, spread(1) if self.plan.cell.inner_bias else product

    def _met(self, name: str) -> Tensor | None:
        """What a weight multiplies at each step (T, B, n), conjugate where complex; None is 1."""
        if name in ("bias_ih", "bias_hh"):
            return None
        return (self.x if name == "weight_ih" else self.before[0]).conj()

    def gradients(self, arriving: State, known: Influence | None, wanted: Sequence[bool]) -> list[Tensor | None]:
        """Of the weights, from what arrives at each step's state."""
        delta, flow = self.walk_back(arriving)
        product, drive = self._flows(delta)
        found: list[Tensor | None] = []
        for name, weight, want in zip(WEIGHTS, self.weights, wanted):
            if not want or weight is None:
                found.append(None)
                continue
            side, met = drive if name.endswith("ih") else product, self._met(name)
            if met is None:
                total = side.sum((0, 1))
            elif name == "weight_hh" and self.plan.cell.element_wise:
                total = (side.unflatten(-1, (-1, met.shape[-1])) * met.unsqueeze(-2)).sum((0, 1)).flatten()
            else:
                total = side.flatten(0, 1).mT @ met.flatten(0, 1)
            if known is not None:
                for part, arrived in enumerate(flow):
                    if arrived is not None:
                        total = total + _meet(arrived, known[name][:, part])
            found.append(total.to(weight.dtype))
        return found

    def own_step(self, arriving: State, inputs: bool, states: bool) -> tuple[Tensor | None, list[Tensor] | None]:
        """What the losses of each step owe to that step's inputs (T, B, d), and to the states before it."""
        if not inputs and not states:
            return None, None
        product, drive, past = self._back(tuple(part.flatten(0, 1) for part in arriving))
        if self.plan.edges.valid is not None:
            still = ~self.plan.edges.valid.flatten().unsqueeze(-1)
            product, drive = product.masked_fill(still, 0), drive.masked_fill(still, 0)
            past = tuple(None if part is None else part.masked_fill(still, 0) for part in past)
        dx = (drive @ self.weights.input.conj()).unflatten(0, self.across) if inputs else None
        if not states:
            return dx, None
        first = self.plan.cell.product_back(product, self.weights.recurrent, past[0])
        before = [torch.zeros_like(first) if part is None else part for part in (first, *past[1:])]
        return dx, [part.unflatten(0, self.across) for part in before]

    def influence(self, known: Influence | None) -> Influence:
        """Of every weight on its unit after the block, (B, p, *shape)."""
        found: dict[str, list[Tensor]] = {name: [] for name, w in zip(WEIGHTS, self.weights) if w is not None}
        for part in range(len(self.path)):
            arriving = tuple(torch.zeros_like(p) for p in self.path)
            arriving[part][-1] = 1
            delta, flow = self.walk_back(arriving)
            product, drive = self._flows(delta)
            for name in found:
                side, met = drive if name.endswith("ih") else product, self._met(name)
                if met is None:
                    total = side.sum(0)
                elif name == "weight_hh" and self.plan.cell.element_wise:
                    total = (side.unflatten(-1, (-1, met.shape[-1])) * met.unsqueeze(-2)).sum(0).flatten(1)
                else:
                    total = side.permute(1, 2, 0) @ met.transpose(0, 1)
                if known is not None and name in known:
                    for other, arrived in enumerate(flow):
                        if arrived is not None:
                            total = total + _spread(arrived, known[name][:, other])
                found[name].append(total)
        return {name: torch.stack(parts, 1) for name, parts in found.items()}


def _spread(flow: Tensor, influence: Tensor) -> Tensor:
    """A unit's number (B, H) on each of its weights (B, G, ...)."""
    units = influence.unflatten(1, (-1, flow.shape[-1]))
    return (units * flow.reshape(len(flow), 1, -1, *[1] * (units.dim() - 3))).flatten(1, 2)


def _meet(flow: Tensor, influence: Tensor) -> Tensor:
    """The same, summed over rows."""
    return _spread(flow, influence).sum(0)
