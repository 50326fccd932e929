"""Adding up gradients: of parameters by name, of inputs and of the initial state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from chronograd.recurrence.states import leaves, tree_map

__all__ = ["Tally", "saved_bytes"]


class Tally:
    """A running sum over groups of steps or windows, each differentiated by itself.

    ``inputs`` and ``state`` are trees of leaves to differentiate too, or None. Parameters that no loss reaches stay
    absent. ``grads`` are tensors of their own, which share no memory with one another.

    What autograd hands out first may be held by others too, so it is not written to: the second time a sum is made
    beside it, and from then on gradients are added in place. ``again`` says that more than one group is to come, in
    little memory: then the first is copied, which holds no more at once than adding the second.
    """

    def __init__(self, parameters: Mapping[str, Tensor], inputs: Any = None, state: Any = None) -> None:
        self.parameters = parameters
        self.extra = [leaf for leaf in leaves([inputs, state]) if leaf.requires_grad]
        self.total: Tensor | None = None
        self.followed = False  # whether any loss had a graph
        self.grads: dict[str, Tensor] = {}
        self.again = False
        self._extra: list[Tensor | None] = [None] * len(self.extra)
        self._own: set[str] = set()  # the names of sums that were made here
        self._held: set[int] = set()  # where the memory of the others begins

    def add(
        self,
        loss: Tensor | None,
        scale: float,
        flowing: Sequence[tuple[Tensor, Tensor]] = (),
        wanted: Sequence[Tensor] = (),
    ) -> list[Tensor | None]:
        """Add ``loss * scale`` and its gradient, and what flows back into other tensors of the graph: (tensor,
        cotangent) each. The gradients of the ``wanted`` tensors are given back, and not added to anything.
        """
        sources, cotangents = [tensor for tensor, _ in flowing], [flow for _, flow in flowing]
        targets = [*self.parameters.values(), *self.extra, *wanted]
        if loss is not None:
            scaled = loss * scale
            value = scaled.detach()
            self.total = value if self.total is None else self.total + value
            if loss.requires_grad:
                self.followed = True
                sources, cotangents = [scaled, *sources], [torch.ones_like(scaled), *cotangents]
        if not targets or not sources:
            return [None] * len(wanted)
        # The way back takes each operator in the precision that it ran in forward: casting again would round more.
        with torch.autocast(sources[0].device.type, enabled=False):
            found: list[Tensor | None] = [*torch.autograd.grad(sources, targets, cotangents, allow_unused=True)]
        known = len(self.parameters)
        for number, name in enumerate(self.parameters):
            grad, found[number] = found[number], None  # freed once it is added
            if grad is not None:
                self._add(name, grad)
        for number, grad in enumerate(found[known : known + len(self.extra)]):
            if grad is not None:
                before = self._extra[number]
                self._extra[number] = grad if before is None else before + grad
        return found[known + len(self.extra) :]

    def _add(self, name: str, grad: Tensor) -> None:
        held = self.grads.get(name)
        if held is not None and name in self._own:
            held.add_(grad)
            return
        plain = grad.layout == torch.strided
        if held is not None:
            self.grads[name] = held + grad
        elif plain and (self.again or self._shared(grad)):
            self.grads[name] = grad.clone(memory_format=torch.contiguous_format)
        else:
            self.grads[name] = grad
            return
        if plain:  # of sparse ones a sum in place may be none
            self._own.add(name)

    def _shared(self, grad: Tensor) -> bool:
        """Whether numbers of it lie in the same place, or beside those of another gradient."""
        begin, before = grad.untyped_storage().data_ptr(), len(self._held)
        self._held.add(begin)
        return len(self._held) == before or any(n > 1 and not by for n, by in zip(grad.shape, grad.stride()))

    def check(self) -> None:
        """Raise where losses were added, gradients are asked for, and no loss had a graph.

        Raises:
            ValueError: in one line.
        """
        if self.total is not None and (self.parameters or self.extra) and not self.followed:
            raise ValueError(
                "the loss depends on no trainable parameter: it, or the model's outputs, were detached or made of "
                "whole numbers; return a loss that autograd can follow, or freeze all parameters on purpose"
            )

    def add_found(self, grads: Mapping[str, Tensor]) -> None:
        """Add gradients of parameters that were found otherwise than by autograd."""
        self.followed = True
        for name, grad in grads.items():
            self._add(name, grad)

    def put(self, leaf: Tensor, at: int, grad: Tensor) -> None:
        """Add the gradient of some steps of one of the inputs, from its step ``at`` on, if it is asked for."""
        number = next((n for n, extra in enumerate(self.extra) if extra is leaf), None)
        if number is None:
            return
        whole = self._extra[number]
        if whole is None:
            whole = self._extra[number] = torch.zeros_like(leaf)
        whole[at : at + len(grad)] += grad

    def of(self, tree: Any) -> Any:
        """The gradients of the leaves in ``tree``, zeros where none flowed; None for leaves that were not asked for."""
        known = {id(leaf): grad for leaf, grad in zip(self.extra, self._extra)}

        def look(leaf: Tensor) -> Tensor | None:
            if id(leaf) not in known:
                return None
            grad = known[id(leaf)]
            return torch.zeros_like(leaf) if grad is None else grad

        return tree_map(look, tree)


class saved_bytes(torch.autograd.graph.saved_tensors_hooks):
    """Count the bytes that autograd stores for the way back: ``with saved_bytes() as count: ...; count.total``."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self.total = 0
        super().__init__(self._pack, lambda saved: saved)

    def _pack(self, saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return saved.detach()  # an output that is saved holds its own graph, which then nothing would free

    def __enter__(self) -> saved_bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().__enter__()
        return self
