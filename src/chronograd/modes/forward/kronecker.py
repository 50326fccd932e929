"""KF-RTRL over one layer of tanh, relu or linear units: a (x) B walks forward, step by step.

The derivatives of all steps of a block come at once, and so does the gradient: q_t B_t and a_t of every step are kept
for one matrix product at its end, a block's memory beside the influence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chronograd.carry import Piece
from chronograd.kernels import Edges
from chronograd.modes.losses import Losses
from chronograd.modes.replay import device_of
from chronograd.recurrence.states import detach

from .balance import balance, norms
from .layer import Block, Stack, watched
from .onward import Onward, by_hand, check_shapes, refuse_bytes, refuse_draws

__all__ = ["KroneckerWalk"]


class KroneckerWalk:
    """Walks forward; see the module's text."""

    block = 64
    ways: tuple[Any, ...] = ()

    def __init__(self, mode: Any, stack: Stack, onward: Onward, section: dict[str, Any]) -> None:
        self.mode, self.stack, self.onward = mode, stack, onward
        refuse_draws(mode, onward.recurrence)
        self.parameters = {entry.name: onward.tally.parameters[entry.name] for entry in stack.entries[0]}
        # How much of ahat each weight meets: (H, n), a bias (H,) one number.
        self._widths = [value.shape[1] if value.dim() > 1 else 1 for value in self.parameters.values()]
        rows, units, width = len(onward.rows), stack.units, sum(self._widths)
        self.influence: dict[str, Tensor] | None = section.get("influence")
        if self.influence is None:
            size = max((value.element_size() for value in self.parameters.values()), default=4)
            refuse_bytes(
                mode,
                rows * (units * units + width) * size,
                mode.limit,
                f"{rows} rows, {units} units, {width} numbers that their weights meet",
                mode.instead,
            )
        else:
            check_shapes(mode, self.influence, {"met": (rows, width), "state": (rows, units, units)})

    def section(self) -> dict[str, Any]:
        return {} if self.influence is None else {"influence": self.influence}

    def through(self, piece: Piece, state: Any, losses: Losses, position: int) -> Any:
        """Take the steps of a piece at once."""
        edges = Edges(piece.gates, piece.reset, piece.valid).to(device_of(piece))
        block = watched(self.onward.recurrence, self.stack, piece.inputs, detach(state), edges, cut=True)
        (q,) = self.onward.tally.add(losses.sum(block.outputs), self.onward.scale, (), [block.made])
        with by_hand(block.made.device):
            if self.parameters:
                self._walk(block, q, position)
        return detach(block.final)

    def _walk(self, block: Block, q: Tensor | None, position: int) -> None:
        """Take the influence through a block, and add what cotangents ``q`` (T, B, H) say through it."""
        (layer,) = block.layers
        ahat = torch.cat([layer.met(entry.meets) for entry in self.stack.entries[0]], 2)  # (T, B, m)
        slope = self._slope(block)
        steps, rows, units = slope.shape
        if self.influence is None:
            self.influence = {
                "met": ahat.new_zeros(rows, ahat.shape[2]),
                "state": ahat.new_zeros(rows, units, units),
            }
        a, b = self.influence["met"], self.influence["state"]
        nu = self.onward.signs(position, steps, self.onward.rows, 2).to(ahat).unbind(2)
        p1, q1 = (x.view(steps, rows) for x in balance(norms(ahat.flatten(0, 1)), norms(slope.flatten(0, 1))))
        into_a, into_b = (nu[1] * p1).unsqueeze(2) * ahat, (nu[1] * q1).unsqueeze(2) * slope
        path, flows = [], []
        crossing, frozen = _crossing(block.edges, slope), block.edges.frozen_steps()
        for t in range(steps):
            through = slope[t] if crossing is None else slope[t] * crossing[t].unsqueeze(1)
            jb = through.unsqueeze(2) * (layer.weight @ b)
            p0, q0 = balance(norms(a), norms(jb))
            new_a = (nu[0][t] * p0).unsqueeze(1) * a + into_a[t]
            new_b = jb.mul_((nu[0][t] * q0).view(-1, 1, 1))
            new_b.diagonal(dim1=1, dim2=2).add_(into_b[t])
            if block.edges.valid is not None and frozen[t]:
                still = ~block.edges.valid[t]
                new_a = torch.where(still.unsqueeze(1), a, new_a)
                new_b = torch.where(still.view(-1, 1, 1), b, new_b)
            a, b = new_a, new_b
            if q is not None:
                path.append(a)
                flows.append((q[t].to(b).unsqueeze(1) @ b).squeeze(1))
        if q is not None:
            met = torch.stack(path).flatten(0, 1).split(self._widths, 1)
            flow = torch.stack(flows).flatten(0, 1)
            self.onward.tally.add_found(
                {name: (flow.mT @ part).view(value.shape) for (name, value), part in zip(self.parameters.items(), met)}
            )
        self.influence = {"met": a, "state": b}

    def _slope(self, block: Block) -> Tensor:
        """phi' of every step, (T, B, H): what the way back makes of ones."""
        (layer,) = block.layers
        steps, rows, units = layer.before[0].shape
        made = layer.before[0].new_empty(steps * rows, units)
        self.stack.cell.backward((torch.ones_like(made),), layer.factors, made, made)
        return made.view(steps, rows, units)


def _crossing(edges: Edges, like: Tensor) -> Tensor | None:
    """What the influence is multiplied by on the edge into each step, (T, B); None where nothing happens."""
    if edges.gates is None and edges.reset is None:
        return None
    xi = like.new_ones(like.shape[:2]) if edges.gates is None else edges.gates.to(like)
    return xi if edges.reset is None else xi.masked_fill(edges.reset, 0)
