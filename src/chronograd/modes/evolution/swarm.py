"""Many particles run the same steps, each under its own parameters and from its own state.

They are mapped by ``torch.func.vmap``, as many at once as fit in ``AT_ONCE`` bytes; where it cannot follow the model or
the loss, they run one after the other. So do this library's layers where a particle has ``LARGE`` work of its own over
``MANY`` steps: their kernels, which take one set of weights a call, are faster there than mapped steps in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils import _pytree as pytree

from chronograd.carry import Piece
from chronograd.kernels import Edges
from chronograd.modes.forward.onward import Parameters
from chronograd.modes.losses import Losses
from chronograd.modes.replay import device_of
from chronograd.recurrence.adapters import Recurrence
from chronograd.recurrence.contract import check_pair
from chronograd.recurrence.gating import GatedForward
from chronograd.recurrence.pieces import run_pieces
from chronograd.recurrence.quiet import keep_buffers, keep_random
from chronograd.recurrence.states import leaves

from .layers import MappedCells, MappedEngine

__all__ = ["Swarm"]

AT_ONCE = 32 * 2**20
LARGE = 2**22  # steps x rows x parameters
MANY = 8

Found = tuple[list[Tensor], list[Tensor]]


class Swarm:
    """The particles of a model, whose trainable parameters they perturb; see the module's text."""

    def __init__(self, recurrence: Recurrence, parameters: Parameters) -> None:
        self.recurrence, self.parameters = recurrence, parameters
        self._run = _Run(recurrence)
        names = {id(value): name for name, value in self._run.named_parameters()}
        self._names = [names[id(value)] for value in parameters.values.values()]
        self._together = True

    def losses(
        self,
        noise: Tensor,
        states: list[Tensor] | None,
        like: Any,
        piece: Piece,
        losses: Sequence[Losses],
        bytes_each: int,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the steps of a piece.

        Args:
            noise: eps (N, P) of each pair.
            states: the tensors (2, N, ...) of the particles' states, those of + before those of -; None is the model's
                initial state.
            like: a state before the steps, for its nesting and what it holds beside tensors.
            losses: of which each sum is wanted; in each some entry counts.
            bytes_each: what a particle takes while it runs, beside its parameters.

        Returns:
            The sums (G, 2, N) of the losses, and the states after the steps.
        """
        base = self.parameters.join([value.detach() for value in self.parameters.values.values()], ())
        pairs = len(noise)
        each = 4 * (base.numel() * base.element_size() + bytes_each)
        size = max(1, AT_ONCE // each)
        parts = []
        with torch.no_grad(), keep_buffers(self.recurrence.model):
            one = self._one(states is None, like, piece, losses)
            mapped = self._together and not self._large(piece)
            for at in range(0, pairs, size):
                some = noise[at : at + size]
                theta = torch.cat((base + some, base - some))
                own = [] if states is None else [leaf[:, at : at + size].flatten(0, 1).clone() for leaf in states]
                sums, after = self._all(one, theta, own, mapped)
                parts.append([part.unflatten(0, (2, len(some))) for part in (*sums, *after)])
        found = [torch.cat(same, 1) for same in zip(*parts)]
        total = torch.stack(found[: len(losses)]) if losses else noise.new_zeros(0, 2, pairs)
        return total, found[len(losses) :]

    def _large(self, piece: Piece) -> bool:
        """Whether particles are better run by the kernels, one after the other (measured)."""
        work = piece.steps * piece.rows * self.parameters.size
        return piece.steps >= MANY and work > LARGE and device_of(piece).type == "cpu" and self.recurrence.folds

    def _one(self, begins: bool, like: Any, piece: Piece, losses: Sequence[Losses]) -> Callable[..., Found]:
        """What one particle does: parameters (P,), the tensors of its state -> sums of losses, those of the state."""
        flat, spec = pytree.tree_flatten(like)
        edges = Edges(None, piece.reset, piece.valid).to(device_of(piece))

        def one(theta: Tensor, own: list[Tensor], mapped: bool) -> Found:
            given = iter(own)
            nested = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in flat] if not begins else []
            state = None if begins else pytree.tree_unflatten(nested, spec)
            values = dict(zip(self._names, self.parameters.split(theta).values()))
            return functional_call(self._run, values, (piece.inputs, state, edges, losses, mapped))

        return one

    def _all(self, one: Callable[..., Found], theta: Tensor, own: list[Tensor], mapped: bool) -> Found:
        if mapped and self._together:
            try:
                with keep_random():  # the same random numbers for all particles
                    return vmap(partial(one, mapped=True), randomness="same")(theta, own)
            except Exception:  # what is wrong with the model itself shows again below
                self._together = False
        found = []
        for number, numbers in enumerate(theta):
            with keep_random():
                found.append(one(numbers, [leaf[number].clone() for leaf in own], mapped=False))
        sums, after = ([torch.stack(same) for same in zip(*parts)] for parts in zip(*found))
        return sums, after


class _Run(nn.Module):
    """A model's steps and their losses, as one module: its parameters are put in place for both."""

    def __init__(self, recurrence: Recurrence) -> None:
        super().__init__()
        self.call = recurrence.call
        self._recurrence = [recurrence]

    def forward(self, inputs: Any, state: Any, edges: Edges, losses: Sequence[Losses], mapped: bool) -> Found:
        def call(inputs: Any, state: Any) -> tuple[Any, Any]:
            if not mapped:
                return check_pair(self.call(inputs, state))
            with MappedCells(), GatedForward(Edges(), engine=MappedEngine()):
                return check_pair(self.call(inputs, state))

        outputs, after, _, _ = run_pieces(call, lambda: self._recurrence[0].dims, inputs, state, edges, ())
        sums = [loss.sum(outputs) for loss in losses]
        return [part for part in sums if part is not None], leaves(after)
