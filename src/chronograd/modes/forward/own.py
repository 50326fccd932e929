"""Forward with each unit's own influence alone: what a unit's weights do to that unit, at the cost of a forward pass.

Of J_t only the block that leads from a unit to itself is kept, a p x p matrix C_t for a state of p numbers a unit (2
for the LSTM's h and c), with or without its part through the recurrent weights. So a weight has p numbers of influence
for each row::

    e_t = xi_t C_t e_{t-1} + D_t met_t          dl_t/dw = sum over rows of q_t e_t

where D_t is how the unit answers to its products, and met_t what the weight multiplies (an input, a state before, 1).
Where every unit is a recurrence by itself, C_t is all of J_t, and this is real-time recurrent learning.

The sum over a block of steps needs no e_t: q_t walks back over the C_t, element by element, and one matrix product over
all steps and rows gives the weights' gradients: the layer's way back in the kernels, where units pass on to themselves
alone. The influence at the end is the same walk from ones, over the last steps until all is forgotten, and one product
for each row; of a diagonal recurrence it is known by powers (``decay.py``). Influences of earlier blocks enter where
the walk back arrives at the first step.

What stands before a layer (embeddings, layers below) is given what the loss of a step owes to that step's inputs, and
no more: influence over earlier steps through them is left out. The same holds for initial states that are learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from chronograd.carry import Piece
from chronograd.kernels import CELLS, Edges
from chronograd.kernels.reference import refuse_twice
from chronograd.modes.losses import Losses
from chronograd.modes.replay import device_of
from chronograd.recurrence.sequence import LayerWeights, Path, run_layers
from chronograd.recurrence.states import detach

from .onward import Onward, by_hand, check_shapes, refuse_bytes, refusing_draws
from .units import Influence, Plan, Units, shapes

__all__ = ["OwnWalk", "TotalWalk", "began"]

State = tuple[Tensor, ...]


def began(section: dict[str, Any]) -> bool:
    """Whether what a mode knows of the past says that it went this way: the model need not be looked at again."""
    return isinstance(section.get("influence"), list)


class OwnWalk:
    """Walks forward over blocks of steps; see the module's text. ``through_weights`` says whether a unit's own
    recurrent weight is a part of C_t.
    """

    block = 1024
    ways: tuple[Any, ...] = ()
    total = False

    def __init__(self, mode: Any, onward: Onward, section: dict[str, Any], through_weights: bool) -> None:
        self.mode, self.onward, self.through_weights = mode, onward, through_weights
        self.influence: list[Influence] = list(section.get("influence", []))

    def section(self) -> dict[str, Any]:
        return {"influence": self.influence}

    def through(self, piece: Piece, state: Any, losses: Losses, position: int) -> Any:
        """Take the steps of a piece at once."""
        onward = self.onward
        edges = Edges(piece.gates, piece.reset, piece.valid).to(device_of(piece))
        engine = _Engine(self)
        with refusing_draws(self.mode):
            outputs, final = onward.recurrence.watch(piece.inputs, detach(state), edges, engine)
        onward.tally.add(losses.sum(outputs), onward.scale)
        with by_hand(device_of(piece)):
            self.influence = [units.influence() for units in engine.seen]
        return detach(final)


class TotalWalk(OwnWalk):
    """The same with the total derivative as the learning signal of each unit: the whole gradient, of one call."""

    block = 2**62
    total = True

    def __init__(self, mode: Any, onward: Onward, section: dict[str, Any], through_weights: bool) -> None:
        super().__init__(mode, onward, section, through_weights)
        self.goes_on = bool(section)  # a first call, and one after carry.cut(), has nothing before it

    def section(self) -> dict[str, Any]:
        return {"calls": "whole"}  # nothing is known of the past, and no other mode is to take that for knowledge

    def through(self, piece: Piece, state: Any, losses: Losses, position: int) -> Any:
        """Take all steps of a call.

        Raises:
            ValueError: where its losses would reach into an earlier one.
        """
        cut = piece.gates[0] == 0 if piece.reset is None else (piece.gates[0] == 0) | piece.reset[0]
        if self.goes_on and not bool(cut.all()):
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
        self.seen: list[Units] = []
        self._bytes = 0  # of all layers so far

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
        known = self.walk.influence[len(self.seen)] if self.walk.influence else None
        if fresh is None and edges.reset is not None:
            fresh = tuple(weight.new_zeros(int(edges.reset.sum()), part.shape[-1]) for part in initial)
        parts = CELLS[kind].parts
        plan = Plan(kind, edges, known, self.walk.through_weights, self.walk.total)
        expected = shapes(kind, inputs.shape[1], weights)
        if known is not None:
            check_shapes(self.walk.mode, known, expected)
        else:
            self._bytes += sum(torch.Size(shape).numel() for shape in expected.values()) * weight.element_size()
            what = f"{inputs.shape[1]} rows, {parts} for each weight of a {kind} layer of {weight.shape[-1]} units"
            what += f" and the {len(self.seen)} layers before it" if self.seen else ""
            refuse_bytes(self.walk.mode, self._bytes, self.walk.mode.limit, what, "mode=cg.Reverse()")
        with torch.autocast(inputs.device.type, enabled=False):
            x, *states = (part.to(weight.dtype) for part in (inputs, *initial, *(fresh or ())))
            with torch.no_grad():
                units = Units.run(plan, x, weights, tuple(states[:parts]), tuple(states[parts:]))
            self.seen.append(units)
            out = _Layer.apply(plan, units, x, *weights, *states)
        return out if parts > 1 else (out,)  # pyright: ignore[reportReturnType]


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, units: Units, x: Tensor, *rest: Tensor | None):
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
        grads = units.gradients(signal, ctx.needs_input_grad[3:7])
        dx, first = units.own_step(arriving, ctx.needs_input_grad[2], any(ctx.needs_input_grad[7:]))
        states: list[Tensor | None] = [None] * (len(ctx.needs_input_grad) - 7)
        if first is not None:
            edges = plan.edges
            open_ = None if edges.reset is None else ~edges.reset[0].unsqueeze(-1)
            states[:parts] = [part[0] if open_ is None else part[0] * open_ for part in first]
            if edges.reset is not None:
                states[parts:] = [part[edges.reset] for part in first]
        return None, None, dx, *grads, *states
