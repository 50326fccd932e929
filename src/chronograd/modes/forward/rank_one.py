"""UORO over a stack of built-in layers, block by block: the large factor is touched once for all steps of a block.

Within a block B_t is a combination of B_0 and the steps' own V_t = nu_t^T I_t, so the walk carries along its
coefficients alone, (K + 1) numbers a row. V_t is a walk back within step t, through the layers from the last to the
first, and knows nothing of other steps: all are taken side by side, each an outer product of cotangents and what the
weight meets. The length of B_t, which the next step is balanced by, comes from the products <V_s, V_t> and <B_0, V_t>.
The tangent A walks forward step by step.

Cost for K steps, P weights, G rows of them: B K P operations as matrix products, B K^2 G more; memory B (P + K G).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from chronograd.carry import Piece
from chronograd.kernels import Edges
from chronograd.modes.losses import Losses
from chronograd.modes.replay import device_of
from chronograd.recurrence.states import detach

from .balance import balance, norms
from .layer import Block, Entry, Stack, watched
from .onward import Onward, Parameters, by_hand, check_shapes, refuse_bytes, refuse_draws
from .tangents import tangent

__all__ = ["RankOneWalk"]

State = tuple[Tensor, ...]


class RankOneWalk:
    """Walks forward over blocks; see the module's text."""

    block = 64
    ways: tuple[Any, ...] = ()

    def __init__(self, mode: Any, stack: Stack, onward: Onward, section: dict[str, Any]) -> None:
        self.mode, self.stack, self.onward = mode, stack, onward
        refuse_draws(mode, onward.recurrence)
        named, ours = onward.tally.parameters, {entry.name for layer in stack.entries for entry in layer}
        self.parameters = Parameters({name: value for name, value in named.items() if name in ours})
        rows, units, count = len(onward.rows), stack.numbers, self.parameters.size
        layout = onward.recurrence.layout
        assert layout is not None
        parts = [part for _, part in layout.places]
        self._leaf = [parts.index(part) for part in range(len(parts))]  # where in the state each part of a layer's is
        self.influence: dict[str, Tensor] | None = section.get("influence")
        if self.influence is None:
            size = max((value.element_size() for value in self.parameters.values.values()), default=4)
            what = f"{rows} rows, {units} numbers of state, {count} parameters"
            refuse_bytes(mode, rows * (units + count) * size, mode.limit, what, mode.instead)
        else:
            check_shapes(mode, self.influence, {"state": (rows, units), "parameters": (rows, count)})

    def section(self) -> dict[str, Any]:
        return {} if self.influence is None else {"influence": self.influence}

    def through(self, piece: Piece, state: Any, losses: Losses, position: int) -> Any:
        """Take the steps of a piece at once."""
        edges = Edges(piece.gates, piece.reset, piece.valid).to(device_of(piece))
        block = watched(self.onward.recurrence, self.stack, piece.inputs, detach(state), edges, cut=True)
        (q,) = self.onward.tally.add(losses.sum(block.outputs), self.onward.scale, (), [block.made])
        with by_hand(block.made.device):
            self._walk(block, q, position)
        return detach(block.final)

    def _walk(self, block: Block, q: Tensor | None, position: int) -> None:
        """Take the influence through a block, and add what cotangents ``q`` (T, B, H) say through it."""
        first = block.layers[0].before[0]
        steps, rows, units = *first.shape[:2], self.stack.numbers
        if self.influence is None:
            self.influence = {
                "state": first.new_zeros(rows, units),
                "parameters": first.new_zeros(rows, self.parameters.size),
            }
        a, b = self.influence["state"], self.influence["parameters"]
        nu = self.onward.signs(position, steps, self.onward.rows, units).to(first)
        parts = _parts(block, self.stack, self._by_part(nu))
        held = self._by_name(b)
        length = norms(b)
        products = _products(parts, held if bool(length.any()) else {}, (rows, steps), b)
        own = products[:, 1:].diagonal(dim1=1, dim2=2).clamp(min=0).sqrt().T  # |V_t|, (T, B)
        p1, q1 = balance(torch.full_like(own, units**0.5), own)
        tiny = torch.finfo(b.dtype).eps
        coefficients = b.new_zeros(rows, steps + 1)
        coefficients[:, 0] = 1
        run = _Run(block, self.stack, steps)
        path: list[Tensor] = []
        combined: list[Tensor] = []
        for t in range(steps):
            ja = self._flat(run.along(t, self._by_part(a.unsqueeze(0))))
            p0, q0 = balance(norms(ja), length)
            after = p0.unsqueeze(1) * ja + p1[t].unsqueeze(1) * nu[t]
            met = (coefficients * products[:, :, t]).sum(1)
            kept, new = q0 * length, q1[t] * own[t]
            both = kept * kept + new * new
            # Rounding must not make a length zero that is none: what it balances would be lost.
            grown = torch.maximum(both + 2 * q0 * q1[t] * met, tiny * both).sqrt()
            mixed = coefficients * q0.unsqueeze(1)
            mixed[:, t + 1] = q1[t]
            if (still := run.still(t)) is not None:
                after, mixed = (
                    torch.where(still.unsqueeze(1), old, x) for old, x in ((a, after), (coefficients, mixed))
                )
                grown = torch.where(still, length, grown)
            a, coefficients, length = after, mixed, grown
            path.append(a)
            combined.append(coefficients)
        if q is not None:
            top = self._by_part(torch.stack(path))[0][-1]
            weight = (q.to(top) * top).sum(-1)  # q_t . A_t, (T, B)
            self._add(parts, held, (weight.unsqueeze(2) * torch.stack(combined)).sum(0))
        self.influence = {"state": a, "parameters": _advance(parts, held, coefficients, b, self._by_name)}

    def _by_part(self, flat: Tensor) -> list[list[Tensor]]:
        """(T, B, S) as [part][layer], (T, B, H) each."""
        count = len(self.stack.entries)
        by_leaf = flat.unflatten(-1, (len(self._leaf), count, -1))
        return [[by_leaf[..., leaf, number, :] for number in range(count)] for leaf in self._leaf]

    def _flat(self, layers: list[State]) -> Tensor:
        """The state of each layer, (B, H) for each part, as (B, S)."""
        by_leaf = sorted(range(len(self._leaf)), key=self._leaf.__getitem__)
        return torch.cat([layer[part] for part in by_leaf for layer in layers], 1)

    def _by_name(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of (B, P) as (B, G, n), a bias as (B, G, 1)."""
        found, at = {}, 0
        for name, value in self.parameters.values.items():
            shape = tuple(value.shape) if value.dim() > 1 else (*value.shape, 1)
            found[name] = flat[:, at : at + value.numel()].view(len(flat), *shape)
            at += value.numel()
        return found

    def _add(self, parts: list[_Part], held: dict[str, Tensor], weights: Tensor) -> None:
        """Add the gradient sum over rows of ``weights`` (B, K + 1) times B_0 and the steps' own parts."""
        found = {}
        for part in parts:
            scaled = (part.flow * weights[:, 1:].unsqueeze(2)).flatten(0, 1)
            grad = torch.tensordot(weights[:, 0], held[part.entry.name], 1)
            grad = grad.addmm_(scaled.mT, part.met.flatten(0, 1))
            found[part.entry.name] = grad.view(self.parameters.values[part.entry.name].shape)
        self.onward.tally.add_found(found)


class _Part(NamedTuple):
    """A weight's part of all V_t: outer products of ``flow`` (B, K, G) and ``met`` (B, K, n)."""

    entry: Entry
    flow: Tensor
    met: Tensor


def _parts(block: Block, stack: Stack, nu: list[list[Tensor]]) -> list[_Part]:
    """nu_t^T I_t of all steps: walks back within each, from the last layer to the first."""
    cell, found = stack.cell, []
    above: Tensor | None = None
    for number in range(len(block.layers) - 1, -1, -1):
        layer = block.layers[number]
        steps, rows = layer.before[0].shape[:2]
        delta = [part[number].flatten(0, 1) for part in nu]
        if above is not None:
            delta[0] = delta[0] + above
        product = layer.weight.new_empty(steps * rows, layer.weight.shape[0])
        drive = torch.empty_like(product) if cell.inner_bias else product
        cell.backward(tuple(delta), layer.factors, product, drive)
        if block.edges.valid is not None:  # a frozen row takes no step
            still = ~block.edges.valid.reshape(-1, 1)
            product.masked_fill_(still, 0)
            drive.masked_fill_(still, 0)
        above = drive @ layer.weight_ih if number else None
        by_side = {"drive": drive, "product": product}
        for entry in stack.entries[number]:
            flow = by_side[entry.side].unflatten(0, (steps, rows))
            found.append(_Part(entry, flow.transpose(0, 1), layer.met(entry.meets).transpose(0, 1)))
    return found


def _products(parts: list[_Part], held: dict[str, Tensor], shape: tuple[int, int], like: Tensor) -> Tensor:
    """<B_0, V_t>, where B_0 is held, and <V_s, V_t>: (B, K + 1, K)."""
    rows, steps = shape
    found = like.new_zeros(rows, steps + 1, steps)
    for part in parts:
        if held:
            found[:, 0] += ((part.flow @ held[part.entry.name]) * part.met).sum(2)
        found[:, 1:] += (part.flow @ part.flow.mT) * (part.met @ part.met.mT)
    return found


def _advance(parts: list[_Part], held: dict[str, Tensor], coefficients: Tensor, before: Tensor, views: Any) -> Tensor:
    """B after a block: the combination of B_0 and all V_t."""
    made = before * coefficients[:, :1]
    views = views(made)
    for part in parts:
        scaled = part.flow * coefficients[:, 1:].unsqueeze(2)
        views[part.entry.name].baddbmm_(scaled.mT, part.met)
    return made


class _Run:
    """The steps of a block forward on tangents, edges on the way."""

    def __init__(self, block: Block, stack: Stack, steps: int) -> None:
        self._kind, self._layers = stack.kind, block.layers
        rows = block.layers[0].before[0].shape[1]
        self._factors = [
            list(zip(*(part.unflatten(0, (steps, rows)) for part in layer.factors))) or [()] * steps
            for layer in block.layers
        ]
        edges, like = block.edges, block.layers[0].before[0]
        self._xi = None if edges.gates is None else edges.gates.to(like)
        self._gated = [] if edges.gates is None else (edges.gates != 1).any(1).tolist()
        self._reset, self._resets = edges.reset, edges.reset_steps()
        self._valid, self._frozen = edges.valid, edges.frozen_steps()

    def along(self, t: int, before: list[list[Tensor]]) -> list[State]:
        """J_t a, gates on it, for a tangent [part][layer] (1, B, H): for each layer its parts."""
        crossing = self._crossing(t)
        drive: Tensor | None = None
        found: list[State] = []
        for number, layer in enumerate(self._layers):
            old = tuple(part[number][0] for part in before)
            if crossing is not None:
                old = tuple(torch.where(crossing == 0, 0, part * crossing) for part in old)
            made = tangent(self._kind, self._factors[number][t], old, old[0] @ layer.weight.mT, drive)
            found.append(made)
            if number + 1 < len(self._layers):
                drive = made[0] @ self._layers[number + 1].weight_ih.mT
        return found

    def _crossing(self, t: int) -> Tensor | None:
        """What a tangent is multiplied by on the edge into step t, (B, 1)."""
        xi = self._xi[t] if self._xi is not None and self._gated[t] else None
        if self._reset is not None and self._resets[t]:
            like = self._layers[0].weight
            xi = torch.ones_like(self._reset[t], dtype=like.dtype) if xi is None else xi
            xi = xi.masked_fill(self._reset[t], 0)
        return None if xi is None else xi.unsqueeze(1)

    def still(self, t: int) -> Tensor | None:
        """The rows that take no step, (B,); None where all do."""
        return ~self._valid[t] if self._valid is not None and self._frozen[t] else None
