"""One step of any model, linearised for each row by itself: J_t = ds_t/ds_{t-1} and I_t = ds_t/dw with s_{t-1} fixed.

A state is taken as S real numbers for each row, in the order of its tensors, complex ones as pairs; the parameters that
the next state depends on as P real numbers. Derivatives come from ``torch.func``, all rows at once; where a model does
what ``torch.func`` cannot follow (writing in place, Python's own branches on values), row by row and number by number
from autograd.

Cost: S ways back through one step for each row, and B S (S + P) numbers. Products with one vector a row, J a and v I,
cost a step forward and one or two back, and B P numbers. J a is the derivative of v J by v: forward mode would go on
through what a model shuts off from gradients (``torch.no_grad``). Where a way back has no derivative, J a takes J after
all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, jacrev, vjp, vmap
from torch.utils import _pytree as pytree

from chronograd.kernels import Edges
from chronograd.recurrence.adapters import Recurrence
from chronograd.recurrence.gating import GatedForward
from chronograd.recurrence.quiet import keep_buffers, keep_random
from chronograd.recurrence.sequence import Engine
from chronograd.recurrence.states import RowDims, as_leaves, flows, leaves, tree_map

from .onward import Parameters
from .plain import Plain

__all__ = ["Linearizer", "flat_state"]

Tree = Any


def flat_state(tensors: list[Tensor], dims: tuple[int | None, ...]) -> Tensor:
    """The tensors that gradients can flow into, rows in the dimensions ``dims``, as (B, S) real numbers.

    >>> flat_state([torch.zeros(1, 2, 3), torch.zeros(2, dtype=torch.int64)], (1, 0)).shape
    torch.Size([2, 3])
    """
    rows = []
    for leaf, dim in zip(tensors, dims):
        if dim is not None and flows(leaf):
            row = leaf.movedim(dim, 0)
            rows.append((torch.view_as_real(row) if leaf.is_complex() else row).flatten(1))
    return torch.cat(rows, 1)


class Linearizer:
    """The derivatives of a model's steps, as the module's text says."""

    def __init__(self, recurrence: Recurrence, parameters: Parameters) -> None:
        self.recurrence, self.parameters = recurrence, parameters
        names = {id(value): name for name, value in recurrence.call.named_parameters()}
        self._names = [names[id(value)] for value in parameters.values.values()]
        self._by_loops = False
        self._ways_along = [self._along_at_once, self._along_matrix, self._along_by_loops]
        self._ways_against = [self._against_at_once, self._against_by_loops]

    def __call__(self, inputs: Tree, state: Tree) -> tuple[Tensor | None, Tensor]:
        """J (B, S, S) and I (B, S, P) of one step, inputs (1, B, ...); no J where ``state`` is None."""
        with keep_random(), keep_buffers(self.recurrence.model):
            if not self._by_loops:
                try:
                    return self._at_once(inputs, state)
                except Exception:  # what is wrong with the model itself shows again below
                    self._by_loops = True
            return self._one_by_one(inputs, state)

    def along(self, inputs: Tree, state: Tree, tangent: Tensor) -> Tensor:
        """J a of one step, (B, S), for a tangent a (B, S) of the state before it."""
        return self._first(self._ways_along, inputs, state, tangent)

    def against(self, inputs: Tree, state: Tree, cotangent: Tensor) -> Tensor:
        """v I of one step, (B, P), for a cotangent v (B, S) of the state after it; begins where ``state`` is None."""
        return self._first(self._ways_against, inputs, state, cotangent)

    def _first(self, ways: list[Callable[..., Tensor]], *given: Any) -> Tensor:
        """The first way that the model can go; those that it cannot are not tried again."""
        with keep_random(), keep_buffers(self.recurrence.model):
            while len(ways) > 1:
                try:
                    return ways[0](*given)
                except Exception:  # what is wrong with the model itself shows again on the last way
                    ways.pop(0)
            return ways[0](*given)

    def _along_at_once(self, inputs: Tree, state: Tree, tangent: Tensor) -> Tensor:
        rows = _Rows(state, self.recurrence.dims)
        parameters, x, over_x, as_one = self._mapped(inputs)

        def along(numbers: Tensor, tangent: Tensor, x: list[Any], rest: list[Any]) -> Tensor:
            def step(numbers: Tensor) -> Tensor:
                return self._step(parameters, as_one(x), rows.one(numbers, rest), Plain())[0]

            after, back = vjp(step, numbers)[:2]
            return vjp(lambda v: back(v)[0], torch.zeros_like(after))[1](tangent)[0]

        return vmap(along, in_dims=(0, 0, over_x, rows.rest_dims))(rows.numbers, tangent, x, rows.rest)

    def _along_matrix(self, inputs: Tree, state: Tree, tangent: Tensor) -> Tensor:
        rows = _Rows(state, self.recurrence.dims)
        parameters, x, over_x, as_one = self._mapped(inputs)

        def step(numbers: Tensor, x: list[Any], rest: list[Any]) -> Tensor:
            return self._step(parameters, as_one(x), rows.one(numbers, rest))[0]

        by_s = vmap(jacrev(step), in_dims=(0, over_x, rows.rest_dims))(rows.numbers, x, rows.rest)
        return (by_s @ tangent.unsqueeze(2)).squeeze(2)

    def _along_by_loops(self, inputs: Tree, state: Tree, tangent: Tensor) -> Tensor:
        by_s, _ = self._one_by_one(inputs, state)
        return torch.zeros_like(tangent) if by_s is None else (by_s @ tangent.unsqueeze(2)).squeeze(2)

    def _against_at_once(self, inputs: Tree, state: Tree, cotangent: Tensor) -> Tensor:
        rows = None if state is None else _Rows(state, self.recurrence.dims)
        parameters, x, over_x, as_one = self._mapped(inputs)

        def against(cotangent: Tensor, numbers: Tensor | None, x: list[Any], rest: list[Any]) -> list[Tensor]:
            def step(parameters: list[Tensor]) -> Tensor:
                before = None if rows is None or numbers is None else rows.one(numbers, rest)
                return self._step(parameters, as_one(x), before, Plain())[0]

            return vjp(step, parameters)[1](cotangent)[0]

        if rows is None:
            found = vmap(lambda v, x: against(v, None, x, []), in_dims=(0, over_x))(cotangent, x)
        else:
            found = vmap(against, in_dims=(0, 0, over_x, rows.rest_dims))(cotangent, rows.numbers, x, rows.rest)
        return self.parameters.join(list(found), (len(cotangent),))

    def _against_by_loops(self, inputs: Tree, state: Tree, cotangent: Tensor) -> Tensor:
        dims, wrt = self.recurrence.dims, list(self.parameters.values.values())
        found = []
        for number, flow in enumerate(cotangent):
            row = torch.tensor([number])
            one = tree_map(lambda part, row=row: part[:, row.to(part.device)], inputs)
            before = None if state is None else dims.take(state, row)
            with torch.enable_grad():
                after = self._step(wrt, one, before)[0]
            grads = [None] * len(wrt)
            if after.requires_grad:
                grads = torch.autograd.grad(after, wrt, flow, allow_unused=True)
            found.append(self.parameters.join(list(grads), ()))
        return torch.stack(found)

    def _mapped(self, inputs: Tree) -> tuple[list[Tensor], list[Any], list[int | None], Callable[[list[Any]], Tree]]:
        """Parameters; inputs as a list, the dimensions that rows are mapped over, and what makes one row's of them."""
        x, spec = pytree.tree_flatten(tree_map(Tensor.detach, inputs))
        over_x = [1 if isinstance(part, Tensor) else None for part in x]

        def as_one(x: list[Any]) -> Tree:
            return pytree.tree_unflatten([part.unsqueeze(1) if isinstance(part, Tensor) else part for part in x], spec)

        return [value.detach() for value in self.parameters.values.values()], x, over_x, as_one

    def _step(self, parameters: list[Tensor], inputs: Tree, state: Tree, engine: Engine | None = None) -> Tensor:
        """The state (B, S) after one step."""
        with GatedForward(Edges(), None, engine):  # torch's own loops have no rules for vmap
            made = functional_call(self.recurrence.call, dict(zip(self._names, parameters)), (inputs, state))
        return flat_state(leaves(made[1]), self.recurrence.dims.dims)

    def _at_once(self, inputs: Tree, state: Tree) -> tuple[Tensor | None, Tensor]:
        parameters, x, over_x, as_one = self._mapped(inputs)
        if state is None:
            begin = jacrev(lambda parameters, x: self._step(parameters, as_one(x), None)[0])
            found = vmap(begin, in_dims=(None, over_x))(parameters, x)
            return None, self._flat(found, leaves(inputs)[0].shape[1])
        rows = _Rows(state, self.recurrence.dims)

        def step(parameters: list[Tensor], numbers: Tensor, x: list[Any], rest: list[Any]) -> Tensor:
            return self._step(parameters, as_one(x), rows.one(numbers, rest))[0]

        by_w, by_s = vmap(jacrev(step, argnums=(0, 1)), in_dims=(None, 0, over_x, rows.rest_dims))(
            parameters, rows.numbers, x, rows.rest
        )
        return by_s, self._flat(by_w, len(by_s))

    def _flat(self, found: list[Tensor], rows: int) -> Tensor:
        return self.parameters.join(list(found), (rows, found[0].shape[1]))

    def _one_by_one(self, inputs: Tree, state: Tree) -> tuple[Tensor | None, Tensor]:
        rows = leaves(inputs)[0].shape[1]
        found = [self._of_row(torch.tensor([row]), inputs, state) for row in range(rows)]
        by_s = None if state is None else torch.stack([part for part, _ in found if part is not None])
        return by_s, torch.stack([part for _, part in found])

    def _of_row(self, row: Tensor, inputs: Tree, state: Tree) -> tuple[Tensor | None, Tensor]:
        """The same of one row, by one way back for each number."""
        dims, wrt = self.recurrence.dims, list(self.parameters.values.values())
        one = tree_map(lambda part: part[:, row.to(part.device)], inputs)
        before = None if state is None else as_leaves(dims.take(state, row))
        given = [leaf for leaf in leaves(before) if flows(leaf)]
        given_dims = tuple(dim for leaf, dim in zip(leaves(before), dims.dims) if flows(leaf))
        with torch.enable_grad():
            after = self._step(wrt, one, before)[0]
        by_s, by_w = [], []
        for number in after:
            found: Sequence[Tensor | None] = [None] * (len(wrt) + len(given))
            if number.requires_grad:
                found = torch.autograd.grad(number, [*wrt, *given], retain_graph=True, allow_unused=True)
            by_w.append(self.parameters.join(list(found[: len(wrt)]), ()))
            if given:
                parts = [torch.zeros_like(x) if part is None else part for x, part in zip(given, found[len(wrt) :])]
                by_s.append(flat_state(parts, given_dims)[0])
        return (torch.stack(by_s) if by_s else None), torch.stack(by_w)


class _Rows:
    """A state as rows of numbers and what else it holds, and back for one row."""

    def __init__(self, state: Tree, dims: RowDims) -> None:
        flat, self._spec = pytree.tree_flatten(state)
        self._dims, found = [], iter(dims.dims)
        self._leaves = flat
        self.rest: list[Any] = []
        self.rest_dims: list[int | None] = []
        for leaf in flat:
            dim = next(found) if isinstance(leaf, Tensor) else None
            self._dims.append(dim)
            if isinstance(leaf, Tensor) and not (dim is not None and flows(leaf)):
                self.rest.append(leaf)
                self.rest_dims.append(dim)
        self.numbers = flat_state([leaf.detach() for leaf in flat if isinstance(leaf, Tensor)], dims.dims)

    def one(self, numbers: Tensor, rest: list[Tensor]) -> Tree:
        """The state of one row, (S,) numbers and the rest, with its rows' dimensions of size 1."""
        made, at, others = [], 0, iter(rest)
        for leaf, dim in zip(self._leaves, self._dims):
            if not isinstance(leaf, Tensor):
                made.append(leaf)
            elif dim is not None and flows(leaf):
                shape = leaf.movedim(dim, 0).shape[1:]
                count = shape.numel() * (2 if leaf.is_complex() else 1)
                part, at = numbers[at : at + count], at + count
                if leaf.is_complex():
                    part = torch.view_as_complex(part.reshape(*shape, 2))
                made.append(part.reshape(shape).unsqueeze(dim))
            else:
                part = next(others)
                made.append(part if dim is None else part.unsqueeze(dim))
        return pytree.tree_unflatten(made, self._spec)
