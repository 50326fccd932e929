"""Exact forward over a stack of built-in layers, block by block (Schmidhuber 1992).

Over a block of steps the influence of the weights on the state goes from M_0 to M_T = Phi M_0 + sum_t Phi_t I_t, with
Phi_t = ds_T/ds_t. Row i of all of these is a walk back from unit i of the last state, so all S of them walk back side
by side, as S B rows, and each weight's part is one matrix product over the block's steps for each row. The losses of
the block walk back once, as ever, and meet M_0 where the block begins.

Cost for S units of state, P weights, a block of T steps: time B S (T (S + P) + S P), where step by step it is
B T S^2 P; memory B S P, and S times that of the block's states on the way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chronograd.carry import Piece
from chronograd.kernels import Edges
from chronograd.modes.losses import Losses
from chronograd.modes.replay import device_of
from chronograd.recurrence.states import as_leaves, detach, leaves

from .layer import Block, Entry, Layer, Stack, watched
from .onward import Onward, by_hand, check_shapes, refuse_bytes, refuse_draws

__all__ = ["BlockWalk"]

State = tuple[Tensor, ...]
# Of the S walks back over a block: their cotangents stay within this.
BYTES = 64 * 2**20
LONGEST = 256


class BlockWalk:
    """Walks forward over blocks; see the module's text."""

    ways: tuple[Any, ...] = ()

    def __init__(self, mode: Any, stack: Stack, onward: Onward, section: dict[str, Any]) -> None:
        self.mode, self.stack, self.onward = mode, stack, onward
        refuse_draws(mode, onward.recurrence)
        self.parameters = {e.name: onward.tally.parameters[e.name] for layer in stack.entries for e in layer}
        rows, units = len(onward.rows), stack.numbers
        shapes = {name: (rows, units, *value.shape) for name, value in self.parameters.items()}
        self.influence: dict[str, Tensor] | None = section.get("influence")
        count = sum(value.numel() for value in self.parameters.values())
        if self.influence is None:
            size = max((value.element_size() for value in self.parameters.values()), default=4)
            what = f"{rows} rows, {units} numbers of state, {count} parameters"
            refuse_bytes(mode, rows * units * count * size, mode.limit, what, mode.instead)
        else:
            check_shapes(mode, self.influence, shapes)
        values = list(self.parameters.values())
        across = max((value.shape[0] for value in values), default=1) * (2 if stack.cell.inner_bias else 1)
        step = rows * stack.numbers * across * max([value.element_size() for value in values], default=4)
        self.block = max(1, min(LONGEST, BYTES // step))

    def section(self) -> dict[str, Any]:
        return {} if self.influence is None else {"influence": self.influence}

    def through(self, piece: Piece, state: Any, losses: Losses, position: int) -> Any:
        """Take the steps of a piece at once."""
        before = None if state is None else as_leaves(detach(state))
        edges = Edges(piece.gates, piece.reset, piece.valid).to(device_of(piece))
        block = watched(self.onward.recurrence, self.stack, piece.inputs, before, edges)
        loss = losses.sum(block.outputs)
        flow = self.onward.tally.add(loss, self.onward.scale, (), leaves(before))
        if self.influence is not None and any(part is not None for part in flow):
            parts = [torch.zeros_like(x) if part is None else part for x, part in zip(leaves(before), flow)]
            self.onward.tally.add_found(self._pull(parts))
        with by_hand(block.made.device):
            self.influence = self._advance(block)
        return detach(block.final)

    def _pull(self, flow: list[Tensor]) -> dict[str, Tensor]:
        """What cotangents of the state (L, B, H) each say about the parameters through the influence."""
        assert self.influence is not None
        layout = self.onward.recurrence.layout
        assert layout is not None
        by_part = [flow[[part for _, part in layout.places].index(part)] for part in range(len(flow))]
        ours = torch.stack(by_part, 2).permute(1, 0, 2, 3).reshape(1, -1)  # (B, L, parts, H), as the influence has it
        return {
            name: (ours @ self.influence[name].flatten(0, 1).flatten(1)).view(value.shape)
            for name, value in self.parameters.items()
        }

    def _advance(self, block: Block) -> dict[str, Tensor]:
        """The influence after a block."""
        size = self.stack.cell.parts * self.stack.units
        rows = len(self.onward.rows)
        made = {
            name: value.new_empty(rows, self.stack.numbers, *value.shape) for name, value in self.parameters.items()
        }
        for top in range(len(block.layers)):
            mine = slice(top * size, (top + 1) * size)
            walks = _walks_back(self.stack, block.layers[: top + 1], block.edges)
            phi = torch.cat([walk.phi for walk in walks], 2) if self.influence is not None else None
            for name, part in made.items():
                here = part[:, mine].flatten(2)  # a view
                if phi is None or self.influence is None:
                    here.zero_()
                else:
                    torch.bmm(phi, self.influence[name][:, : (top + 1) * size].flatten(2), out=here)
            for number, walk in enumerate(walks):
                for entry in self.stack.entries[number]:
                    if number == top and len(walk.product) == 1:
                        _meet_own(self.stack, made[entry.name][:, mine], walk, block.layers[number], entry)
                    else:
                        _meet(made[entry.name][:, mine], walk, block.layers[number], entry)
        return made


class _Walk:
    """S walks back through one layer: cotangents of its products and drives (T, B, n, G), and of the state before the
    block, ``phi`` (B, n, parts H).
    """

    def __init__(self, product: Tensor, drive: Tensor, phi: Tensor) -> None:
        self.product, self.drive, self.phi = product, drive, phi


def _walks_back(stack: Stack, layers: tuple[Layer, ...], edges: Edges) -> list[_Walk]:
    """From every unit of the last layer's last state, down through the layers below."""
    cell, parts, units = stack.cell, stack.cell.parts, stack.units
    steps, rows = layers[0].inputs.shape[:2]
    count = parts * units
    like = layers[0].before[0]
    eye = torch.eye(count, dtype=like.dtype, device=like.device).view(count, parts, units)
    delta = tuple(eye[:, part].expand(rows, count, units).reshape(-1, units) for part in range(parts))
    gated = None if edges.gates is None else edges.gates.to(like)
    found: list[_Walk] = []
    above: Tensor | None = None
    for layer in reversed(layers):
        across = layer.weight.shape[0]
        product = like.new_empty(steps, rows * count, across)
        drive = torch.empty_like(product) if cell.inner_bias else product
        if above is not None:
            delta = tuple(torch.zeros_like(part) for part in delta)
        by_step = list(zip(*(part.unflatten(0, (steps, rows)) for part in layer.factors))) or [()] * steps
        for t in range(steps - 1, -1, -1):
            if above is not None:
                delta = (delta[0] + above[t], *delta[1:])
            factors = tuple(_spread(part, count) for part in by_step[t])
            past = cell.backward(delta, factors, product[t], drive[t])
            through = (cell.product_back(product[t], layer.weight, past[0]), *past[1:])
            delta = _cross(edges, gated, t, count, delta, through, product[t], drive[t])  # pyright: ignore
        phi = torch.stack(delta, 1).view(rows, count, count)
        shape = (steps, rows, count, across)
        found.insert(0, _Walk(product.view(shape), drive.view(shape), phi))
        above = drive @ layer.weight_ih
    return found


def _spread(part: Tensor, count: int) -> Tensor:
    """(B, ...) for each of ``count`` walks, (B count, ...)."""
    return part.unsqueeze(1).expand(part.shape[0], count, *part.shape[1:]).flatten(0, 1)


def _cross(
    edges: Edges,
    gated: Tensor | None,
    t: int,
    count: int,
    delta: State,
    through: State,
    product: Tensor,
    drive: Tensor,
) -> State:
    """What is left of the flow before step t: frozen rows pass on what came, resets and gates take theirs."""
    flow = through
    if edges.valid is not None and not bool(edges.valid[t].all()):
        still = _spread(~edges.valid[t], count).unsqueeze(1)
        product.masked_fill_(still, 0)
        drive.masked_fill_(still, 0)
        flow = tuple(torch.where(still, old, new) for old, new in zip(delta, through))
    if edges.reset is not None and bool(edges.reset[t].any()):
        anew = _spread(edges.reset[t], count).unsqueeze(1)
        flow = tuple(part.masked_fill(anew, 0) for part in flow)
    if gated is not None and bool((gated[t] != 1).any()):
        xi = _spread(gated[t], count).unsqueeze(1)
        flow = tuple((part * xi).masked_fill(xi == 0, 0) for part in flow)
    return flow


def _meet(influence: Tensor, walk: _Walk, layer: Layer, entry: Entry) -> None:
    """Add a weight's part: sum over steps of the cotangents (n, G) with what the weight meets, for each row."""
    flow = walk.drive if entry.side == "drive" else walk.product
    steps, rows, count, across = flow.shape
    if entry.meets == "one":
        influence += flow.sum(0)
        return
    met = layer.met(entry.meets)  # (T, B, m)
    flat = flow.view(steps, rows, count * across)
    for row in range(rows):
        influence[row].view(count * across, -1).addmm_(flat[:, row].mT, met[:, row])


def _meet_own(stack: Stack, influence: Tensor, walk: _Walk, layer: Layer, entry: Entry) -> None:
    """The same for a single step, in which a weight reaches its own unit alone: the rest is not touched."""
    flow = walk.drive if entry.side == "drive" else walk.product
    split = (stack.cell.parts, stack.units, -1, stack.units)
    own = flow[0].unflatten(2, split[2:]).unflatten(1, split[:2]).diagonal(dim1=2, dim2=4)  # (B, parts, blocks, H)
    at = influence.unflatten(2, split[2:]).unflatten(1, split[:2]).diagonal(dim1=2, dim2=4)
    if entry.meets == "one":
        at += own
    else:  # the units come last, behind what the weight meets
        at += own.unsqueeze(3) * layer.met(entry.meets)[0].reshape(len(own), 1, 1, -1, 1)
