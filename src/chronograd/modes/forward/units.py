"""The units of a layer over a block of steps: how each answers to its products, and to itself, and what follows for the
influence of its weights and for their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from chronograd.kernels import CELLS, Edges, compiled, run_projected
from chronograd.kernels.cells import Cell
from chronograd.kernels.compiled import Call
from chronograd.kernels.layer import as_call
from chronograd.kernels.own import LEAST, own_back, own_cell_back
from chronograd.kernels.reference import states_before
from chronograd.recurrence.sequence import LayerWeights

from .decay import FEW, Decayed, decayed
from .layer import cell_factors

__all__ = ["Influence", "Plan", "Units", "shapes"]

State = tuple[Tensor, ...]
Influence = dict[str, Tensor]  # (B, p, G, m) for each side


class Plan(NamedTuple):
    """What a layer is told that is no tensor of its graph."""

    kind: str
    edges: Edges
    known: Influence | None
    through_weights: bool
    total: bool

    @property
    def cell(self) -> Cell:
        return CELLS[self.kind]


def shapes(kind: str, rows: int, weights: LayerWeights) -> dict[str, tuple[int, ...]]:
    """Of the influence of a layer's weights; see ``Units.sides``."""
    cell, features = CELLS[kind], weights.input.shape[1]
    lead = (rows, cell.parts, weights.recurrent.shape[0])
    biased = [bias is not None for bias in (weights.input_bias, weights.recurrent_bias)]
    if not cell.inner_bias and not cell.element_wise:
        return {"all": (*lead, features + weights.recurrent.shape[1] + any(biased))}
    meets = 1 if cell.element_wise else weights.recurrent.shape[1]
    return {"product": (*lead, meets + biased[1]), "drive": (*lead, features + biased[0])}


class Units:
    """The units of a layer over a block of steps: how each answers to its products, and to itself."""

    def __init__(
        self,
        plan: Plan,
        x: Tensor,
        weights: LayerWeights,
        initial: State,
        fresh: State,
        path: State,
        call: Call | None = None,
        kept: Tensor | None = None,
    ) -> None:
        self.plan, self.x, self.weights = plan, x, weights
        self.initial, self.fresh, self.path = initial, fresh, path
        self.call, self.kept = call, kept  # as the compiled kernels ran it, and what they kept
        self.across, self.count, self.units = x.shape[:2], x.shape[0] * x.shape[1], path[0].shape[-1]

    @classmethod
    def run(cls, plan: Plan, x: Tensor, weights: LayerWeights, initial: State, fresh: State) -> Units:
        """Of a layer that is run here, without a graph."""
        w_ih, w_hh, b_ih, b_hh = weights
        given = (plan.kind, x, w_ih, b_ih, initial, w_hh, b_hh, plan.edges, fresh or None)
        call = as_call(*given)
        if call is None:
            return cls(plan, x, weights, initial, fresh, run_projected(*given))
        path, kept = compiled.forward(call, keep=True)
        return cls(plan, x, weights, initial, fresh, path, call, kept)

    def _tail(self, steps: int) -> Units:
        """The last steps alone."""
        first = len(self.x) - steps
        edges = self.plan.edges[first:]
        began = 0 if edges.reset is None else int(edges.reset.sum())
        fresh = tuple(part[len(part) - began :] for part in self.fresh) if began else ()
        path, initial = tuple(part[first:] for part in self.path), tuple(part[first - 1] for part in self.path)
        return Units(self.plan._replace(edges=edges, known=None), self.x[first:], self.weights, initial, fresh, path)

    @cached_property
    def before(self) -> State:
        """The state each step was taken from, (T, B, H) each."""
        return states_before(self.initial, self.path, self.plan.edges, self.fresh)

    @property
    def own(self) -> Tensor | None:
        """(G,): each unit's own recurrent weights as a part of C_t, 0 where they are none; None: all there are."""
        weight = self.weights.recurrent
        if weight.dim() == 1:
            return None
        if not self.plan.through_weights:
            return weight.new_zeros(weight.shape[0])
        return weight.unflatten(0, (-1, weight.shape[1])).diagonal(dim1=1, dim2=2).flatten().contiguous()

    @cached_property
    def factors(self) -> State:
        """What the cell's way back multiplies by, T B rows."""
        return cell_factors(self.plan.kind, self.x, self.before, self.path, self.weights)

    @cached_property
    def answers(self) -> list[tuple[Tensor, Tensor, list[Tensor | None]]]:
        """Of each part of the state: how it depends on the products and the drives, (T, B, G), and on each part one
        step before, (T, B, H) or None.
        """
        cell, edges = self.plan.cell, self.plan.edges
        ones, none = (self.path[0].new_full((), value).expand(self.count, self.units) for value in (1, 0))
        gates = None if edges.gates is None else edges.gates.to(self.weights.recurrent.real.dtype).unsqueeze(-1)
        still = None if edges.valid is None else ~edges.valid.unsqueeze(-1)
        found = []
        for part in range(cell.parts):
            product, drive, past = self._back(tuple(ones if other == part else none for other in range(cell.parts)))
            to_h = self._through(product, past[0]) if self.plan.through_weights or cell.element_wise else past[0]
            own = [None if o is None else o.unflatten(0, self.across) for o in (to_h, *past[1:])]
            product, drive = product.unflatten(0, self.across), drive.unflatten(0, self.across)
            if still is not None:
                drive = drive.masked_fill(still, 0) if cell.inner_bias else drive
                product = product.masked_fill(still, 0)
                same = [(still if o == part else ~still & still).to(product) for o in range(cell.parts)]
                nothing = torch.zeros_like(self.path[0])
                own = [torch.where(still, s, nothing if o is None else o) for s, o in zip(same, own)]
            if edges.reset is not None:
                own = [None if o is None else o.masked_fill(edges.reset.unsqueeze(-1), 0) for o in own]
            if gates is not None:
                own = [None if o is None else (o * gates).masked_fill(gates == 0, 0) for o in own]
            drive = drive if cell.inner_bias else product
            found.append((product, drive, [None if o is None else o.contiguous() for o in own]))
        return found

    def _walk(
        self, arriving: Sequence[Tensor] | None, part: int = 0
    ) -> tuple[tuple[Tensor, Tensor], list[Tensor], int]:
        """Walk back from what arrives at each step; None is 1 at part ``part`` after the last.

        Returns:
            Cotangents of products and drives (T, B, G); what is left of each part before the first step, (B, H); and
            the first step that is not forgotten, with None.
        """
        if (found := self._simple(None if arriving is None else arriving[0])) is not None:
            product, left, first = found
            return (product, product), [left], first
        if arriving is None:
            delta = [torch.zeros_like(p) for p in self.path]
            delta[part][-1] = 1
        else:
            delta = [p.clone(memory_format=torch.contiguous_format) for p in arriving]
        left = own_back([own for *_, own in self.answers], delta)
        steps = slice(_forgotten(delta) if arriving is None else 0, None)
        flows = self._flows(delta, 0, steps)
        return (flows, self._flows(delta, 1, steps) if self.plan.cell.inner_bias else flows), left, steps.start

    def _simple(self, arriving: Tensor | None) -> tuple[Tensor, Tensor, int] | None:
        """The same by one compiled walk, where a unit is one number with one product; only the steps remembered."""
        weight, edges, kind = self.weights.recurrent, self.plan.edges, self.plan.kind
        if weight.shape[0] != self.units or self.plan.cell.parts > 1:
            return None
        own = None
        if weight.dim() == 1:
            own, kind = weight, "linear" if kind == "diagonal" else kind
        elif self.plan.through_weights:
            own = weight.diagonal().contiguous()
        given = None if arriving is None else arriving.contiguous()
        found = own_cell_back(kind, self.path[0], own, edges.gates, edges.valid, given)
        return None if found is None else (found[0][found[2] :], *found[1:])

    def _back(self, delta: State) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
        """One step back of T B rows: to products and drives (N, G), and to the old parts beside the products."""
        weight = self.weights.recurrent
        product = delta[0].new_empty(self.count, weight.shape[0])
        drive = torch.empty_like(product) if self.plan.cell.inner_bias else product
        return product, drive, self.plan.cell.backward(delta, self.factors, product, drive)

    def _through(self, product: Tensor, add: Tensor | None) -> Tensor:
        """To a unit's own h before, through its own recurrent weights."""
        weight, own = self.weights.recurrent, self.own
        if own is None:
            return self.plan.cell.product_back(product, weight, add)
        through = (product * own).unflatten(-1, (-1, weight.shape[1])).sum(-2)
        return through if add is None else add + through

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
                owned = [own[other] for *_, own in self.answers]
                by_own = sum((o[t] * h for o, h in zip(owned, here) if o is not None), torch.zeros_like(part))
                signal[other][t - 1] += part - by_own
        return tuple(signal), tuple(delta)

    def _flows(self, delta: Sequence[Tensor], side: int, steps: slice = slice(None)) -> Tensor:
        """Cotangents of the products (side 0) or drives (1), (T, B, G), from those of the parts."""
        blocks = self.answers[0][0].shape[-1] // self.units
        total = None
        for (product, drive, _), part in zip(self.answers, delta):
            answer, part = (drive if side else product)[steps], part[steps]
            if blocks > 1:
                here = (answer.unflatten(-1, (blocks, -1)) * part.unsqueeze(-2)).flatten(-2)
            else:
                here = answer * part
            total = here if total is None else total + here
        assert total is not None
        return total

    def sides(self, first: int = 0) -> dict[str, tuple[int, Tensor]]:
        """What groups of weights answer to (products 0, drives 1) and meet at each step from ``first`` on: (T, B, m), 1
        last where there is a bias, conjugate where complex; (T, B, G, m) where each unit meets what is its own.

        Where products and drives have the same cotangents, all weights are one group.
        """
        cell, weights = self.plan.cell, self.weights
        x, h = self.x[first:].conj(), self._before(first).conj()
        if not cell.inner_bias and not cell.element_wise:
            biased = weights.input_bias is not None or weights.recurrent_bias is not None
            one = [h.new_ones(()).expand(*h.shape[:2], 1)] if biased else []
            return {"all": (0, torch.cat([x, h, *one], -1))}
        if cell.element_wise:
            blocks = weights.recurrent.shape[0] // h.shape[-1]
            h = (h if blocks == 1 else h.repeat(1, 1, blocks)).unsqueeze(-1)
        given = (("product", 0, h, weights.recurrent_bias), ("drive", 1, x, weights.input_bias))
        pad = torch.nn.functional.pad
        return {name: (side, met if b is None else pad(met, (0, 1), value=1)) for name, side, met, b in given}

    def _before(self, first: int) -> Tensor:
        """h before each step from ``first`` on."""
        if first and self.plan.edges.reset is None:
            return self.path[0][first - 1 : -1]
        return self.before[0][first:]

    def gradients(self, arriving: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
        """Of the weights from what arrives at each step's state, in the order of ``LayerWeights``."""
        if self.call is None:
            return self._gradients(arriving)
        dih, dhh, bih, bhh = wanted
        found = compiled.back(self.call, self.path, self.kept, arriving, (False, dih, bih, dhh, bhh), own=self.own)
        grads = [found.weight_ih, found.weight, found.bias_ih, found.bias]
        if self.plan.known is None:
            return grads
        left = found.states[: len(self.path)]
        past = self._by_weight({name: _pull(left, held) for name, held in self.plan.known.items()})
        return [here if here is None or before is None else here + before for here, before in zip(grads, past)]

    def _gradients(self, arriving: Sequence[Tensor]) -> list[Tensor | None]:
        """The same in plain torch."""
        flows, left, _ = self._walk(arriving)
        sums = {}
        for name, (side, met) in self.sides().items():
            if met.dim() == 3:
                total = flows[side].flatten(0, 1).mT @ met.flatten(0, 1)
            else:
                total = (flows[side].unsqueeze(-1) * met).sum((0, 1))
            sums[name] = total if self.plan.known is None else total + _pull(left, self.plan.known[name])
        return self._by_weight(sums)

    def influence(self) -> Influence:
        """After the block, (B, p, G, m) for each side."""
        if self.plan.kind == "diagonal" and self.plan.edges.plain:
            return self._decayed()
        few = FEW
        while few < len(self.x):
            found = self._tail(few)._influence()
            if found is not None:
                return found
            few *= 4
        found = self._influence(whole=True)
        assert found is not None
        return found

    def _decayed(self) -> Influence:
        """Of a diagonal recurrence without edges; laid out in memory by units first, as the products meet it."""
        weights, known, features = self.weights, self.plan.known, self.x.shape[2]
        biases = [bias for bias in (weights.input_bias, weights.recurrent_bias) if bias is not None]
        bias = sum(biases[1:], biases[0]).conj() if biases else None
        before = None
        if known is not None:
            drive, product = (known[name][:, 0].transpose(0, 1) for name in ("drive", "product"))
            ones = drive[..., -1] if weights.input_bias is not None else product[..., -1]  # of no use without a bias
            before = Decayed(drive[..., :features], product[..., 0], ones)
        given = (weights.recurrent.conj(), self.x.to(weights.recurrent.dtype).conj(), weights.input.conj())
        after = decayed(*given, bias, self.initial[0].conj(), before)
        found = {}
        for name, part, last in (
            ("product", after.decay.unsqueeze(-1), weights.recurrent_bias),
            ("drive", after.drive, weights.input_bias),
        ):
            part = part if last is None else torch.cat([part, after.one.unsqueeze(-1)], -1)
            found[name] = part.transpose(0, 1).unsqueeze(1)
        return found

    def _influence(self, whole: bool = False) -> Influence | None:
        """From a walk back over all steps; None where something is left of those before, unless this is the ``whole``
        block.
        """
        found: dict[str, list[Tensor]] = {}
        known = self.plan.known
        for part in range(len(self.path)):
            flows, left, first = self._walk(None, part)
            if first == 0 and not whole:
                return None
            for name, (side, met) in self.sides(first).items():
                here = flows[side]
                if met.dim() == 3:
                    total = here.transpose(0, 1).contiguous().mT @ met.transpose(0, 1)
                else:
                    total = (here.unsqueeze(-1) * met).sum(0)
                if known is not None and first == 0:
                    for other, arrived in enumerate(left):
                        total += _spread(arrived, known[name][:, other])
                found.setdefault(name, []).append(total)
        return {name: torch.stack(parts, 1) for name, parts in found.items()}

    def _by_weight(self, sums: dict[str, Tensor]) -> list[Tensor | None]:
        """The sums (G, m) of all sides taken apart."""
        weights, features = self.weights, self.x.shape[-1]
        biases = (weights.input_bias, weights.recurrent_bias)
        if "all" in sums:
            total = sums["all"]
            both = total[:, :features], total[:, features : features + weights.recurrent.shape[1]]
            ones = [None if bias is None else total[:, -1].clone() for bias in biases]
        else:
            both = sums["drive"][:, :features], sums["product"][:, : weights.recurrent.shape[1:].numel()]
            ones = [None if b is None else sums[n][:, -1] for n, b in zip(("drive", "product"), biases)]
        found = (part.reshape(w.shape) for part, w in zip(both, (weights.input, weights.recurrent)))
        return [*found, *ones]

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


def _forgotten(delta: Sequence[Tensor]) -> int:
    """How many of the first steps weigh less, in all rows and units, than rounding: what flows into them is 1 at the
    last step.
    """
    least = torch.finfo(delta[0].dtype).eps * LEAST
    if any(bool((part[0].abs() > least).any()) for part in delta):
        return 0
    weighs = torch.stack([part.abs().amax((1, 2)) for part in delta]).amax(0) > least
    return int(weighs.to(torch.uint8).argmax())


def _pull(left: Sequence[Tensor], held: Tensor) -> Tensor:
    """What is left of the flow to each part of the state, (B, H) each, on the influence (B, p, G, m): (G, m)."""
    parts = [_spread(arrived, held[:, part]).sum(0) for part, arrived in enumerate(left)]
    return sum(parts[1:], parts[0])


def _spread(flow: Tensor, influence: Tensor) -> Tensor:
    """A unit's number (B, H) on each of its weights (B, G, m)."""
    units = influence.unflatten(1, (-1, flow.shape[-1]))
    return (units * flow[:, None, :, None]).flatten(1, 2)
