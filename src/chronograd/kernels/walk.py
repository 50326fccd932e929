"""The walk back through one layer: from the cotangents of its states to those of its products, drives and initial
states.

The walk takes the steps in the order of ``order``, tile by tile. All that a tile multiplies by is computed at once
before its steps are walked; what happens on an edge (a gate, a reset, a frozen row) is done only at the steps where
it happens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .cells import Cell
from .edges import Edges
from .order import Group, Tile, side_by_side, tiles

__all__ = ["Cotangents", "walk_back"]

State = tuple[Tensor, ...]
Flow = tuple[Tensor | None, ...]

# What is computed at once stays in the cache, and is small beside the stored states.
TILE_BYTES = 16 * 2**20


class Cotangents(NamedTuple):
    """Of the recurrent products and the drives, (T, B, G); of the initial state, (B, H) each; of the fresh ones, (R,
    H) each.
    """

    product: Tensor
    drive: Tensor
    initial: State
    fresh: State


def walk_back(
    cell: Cell, weight: Tensor, edges: Edges, given: Flow, kept: Tensor, before: State, after: State, fresh: State
) -> Cotangents:
    """Walk back over all steps.

    Args:
        given: cotangents of the states after every step, (T, B, H) each, None for 0.
        kept: (T, B, kept H), what the cell kept; ``before`` and ``after`` are the states around each step, (T, B, H)
            each.
        fresh: zeros (R, H) each, to be filled; empty where nobody asks for the cotangents of the fresh initial states.
    """
    steps, rows, _ = after[0].shape
    product = after[0].new_empty(steps, rows, weight.shape[0])
    drive = torch.empty_like(product) if cell.inner_bias else product
    out = Cotangents(product, drive, tuple(torch.zeros_like(part[0]) for part in after), fresh)
    crossing = _Crossing(edges, out)
    bytes_of_step = sum(part[0].numel() * part.element_size() for part in (kept, *before, *after, product, drive))
    for group in side_by_side(edges.cuts, steps, rows):
        flow: Flow = (None,) * cell.parts
        for tile in tiles(group, TILE_BYTES // max(1, bytes_of_step)):
            flow = _walk_tile(cell, weight, given, kept, before, after, out, crossing, group, tile, flow)
    return out


class _Crossing:
    """What happens to the flow on its way back over the edges of a step."""

    def __init__(self, edges: Edges, out: Cotangents) -> None:
        self.initial, self.fresh = out.initial, out.fresh
        self.open = 0 not in edges.cuts
        # A step cut in every row lets nothing through: the order of the walk says so already.
        gates = edges.gates
        if gates is not None and edges.cuts:
            gates = gates.index_fill(0, torch.tensor(edges.cuts, device=gates.device), 1)
        self.gated = [] if gates is None else (gates != 1).any(1).tolist()
        self.xi = None if gates is None else gates.to(out.product.real.dtype)
        self.reset, self.resets = edges.reset, edges.reset_steps()
        self.numbers = edges.fresh_rows() if self.fresh else None
        self.valid, self.frozen = edges.valid, edges.frozen_steps()

    def freeze(self, steps: Any, delta: State, past: State, product: Tensor, drive: Tensor) -> State:
        """Frozen rows pass everything on and keep nothing."""
        if self.valid is None or not any(self.frozen[t] for t in steps):
            return past
        still = ~_rows(self.valid, steps).unsqueeze(-1)
        product.masked_fill_(still, 0)
        drive.masked_fill_(still, 0)
        return tuple(torch.where(still, d, p) for d, p in zip(delta, past))

    def back(self, steps: Any, flow: State) -> State:
        if self.reset is not None and any(self.resets[t] for t in steps):
            anew = _rows(self.reset, steps)
            if self.numbers is not None:
                at = _rows(self.numbers, steps)[anew]
                for total, part in zip(self.fresh, flow):
                    total[at] = part[anew]
            flow = tuple(part.masked_fill(anew.unsqueeze(-1), 0) for part in flow)
        if self.xi is not None and any(self.gated[t] for t in steps):
            xi = _rows(self.xi, steps).unsqueeze(-1)
            flow = tuple((part * xi).masked_fill_(xi == 0, 0) for part in flow)
        return flow

    def begin(self, place: int, flow: State) -> None:
        """Step 0 was walked, as the stretch ``place`` of its batch."""
        if self.open:
            for total, part in zip(self.initial, flow):
                rows = total.shape[0]
                total.copy_(part[place * rows : (place + 1) * rows])


def _rows(part: Tensor, steps: Any) -> Tensor:
    """Some steps of (T, B, ...) as rows side by side."""
    if len(steps) == 1:
        return part[steps[0]]
    return part[torch.tensor(steps, device=part.device)].flatten(0, 1)


def _walk_tile(
    cell: Cell,
    weight: Tensor,
    given: Flow,
    kept: Tensor,
    before: State,
    after: State,
    out: Cotangents,
    crossing: _Crossing,
    group: Group,
    tile: Tile,
    flow: Flow,
) -> Flow:
    """Walk back over one tile: takes the flow from the later tile, returns the one to the earlier."""
    rows = after[0].shape[1]
    steps, sizes = group.steps[tile.begin : tile.end], group.sizes[tile.first : tile.last]
    in_place = isinstance(steps, range)
    at: Any = slice(steps[0], steps[-1] + 1) if in_place else torch.tensor(steps, device=after[0].device)

    def lay(part: Tensor) -> Tensor:
        return part[at].flatten(0, 1)

    counts = [size * rows for size in sizes]
    factors = cell.factors(lay(kept), tuple(map(lay, before)), tuple(map(lay, after)))
    by_step = list(zip(*(part.split(counts) for part in factors))) or [()] * len(sizes)
    arriving = [None if part is None else lay(part).split(counts) for part in given]
    product = lay(out.product) if in_place else out.product.new_empty(len(steps) * rows, weight.shape[0])
    drive = product if out.drive is out.product else lay(out.drive) if in_place else torch.empty_like(product)
    products = product.split(counts)
    drives = products if drive is product else drive.split(counts)

    end = len(steps)
    for j in range(len(sizes) - 1, -1, -1):
        times = steps[end - sizes[j] : end]
        end -= sizes[j]
        delta = tuple(
            _add(None if part is None else part[j], through, counts[j], after[0])
            for part, through in zip(arriving, flow)
        )
        past = cell.backward(delta, by_step[j], products[j], drives[j])
        through = (cell.product_back(products[j], weight, past[0]), *past[1:])
        through = crossing.freeze(times, delta, through, products[j], drives[j])  # pyright: ignore[reportArgumentType]
        flow = crossing.back(times, through)
        if group.initial is not None and group.initial[0] == tile.first + j:
            crossing.begin(group.initial[1], flow)  # pyright: ignore[reportArgumentType]
    if not in_place:
        out.product[at] = product.unflatten(0, (-1, rows))
        if drive is not product:
            out.drive[at] = drive.unflatten(0, (-1, rows))
    return flow


def _add(given: Tensor | None, flow: Tensor | None, count: int, like: Tensor) -> Tensor:
    """The cotangent of a state: what is given and what flows back. Stretches that began one step later have dropped
    out of the flow.
    """
    if flow is None:
        return like.new_zeros(count, like.shape[-1]) if given is None else given
    flow = flow[:count]
    return flow if given is None else given + flow
