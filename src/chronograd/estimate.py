"""What ``value_and_grad`` gives back: a loss, its gradient, and the weight they carry."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .recurrence.states import tree_map

__all__ = ["Gradient"]


@dataclass(frozen=True)
class Gradient:
    """A loss and its gradient, over entries of total weight ``weight``.

    Attributes:
        loss: sum(w l) / sum(w) over the valid entries, a tensor of no dimension, without a graph.
        grads: parameter name -> tensor of the parameter's shape. Frozen parameters, and those no loss reaches, are
            absent.
        weight: sum(w). ``gradient + gradient`` weighs by it, so gradients of calls, ranks or micro-batches add up to
            that of all of them; so does ``sum(gradients)``. Nothing else can be added to a gradient.
        inputs: gradient of the call's inputs, a tree like them, with ``wrt_inputs``; None for leaves that are no
            floating-point numbers.
        past_inputs: the same of earlier calls' inputs that these losses reach, (``carry.open_steps``, B, ...); None
            where there are none.
        state: gradient of the initial state that the stream was given, while it is in reach; else None.
        how: with a mode that chooses how to run each recurrent loop (``Scan``), what it did: one entry for each loop
            in the order in which they ran, printable; else empty. Belongs to one call, as the three above.

    >>> import torch
    >>> a = Gradient(torch.tensor(1.0), {"w": torch.tensor([2.0])}, 1.0)
    >>> b = Gradient(torch.tensor(4.0), {"w": torch.tensor([8.0])}, 2.0)
    >>> (a + b).loss, (a + b).grads["w"], (a + b).weight
    (tensor(3.), tensor([6.]), 3.0)
    >>> sum([a, b]).weight
    3.0
    """

    loss: Tensor
    grads: dict[str, Tensor]
    weight: float
    inputs: Any = field(default=None, repr=False)
    past_inputs: Any = field(default=None, repr=False)
    state: Any = field(default=None, repr=False)
    how: tuple[Any, ...] = field(default=(), repr=False)

    def __add__(self, other: Gradient) -> Gradient:
        """The weighted mean of two gradients. Gradients of inputs belong to one call and are not combined."""
        if not isinstance(other, Gradient):
            return NotImplemented
        weight = self.weight + other.weight
        ours, theirs = (self.weight / weight, other.weight / weight) if weight else (0.5, 0.5)
        grads = {name: grad * ours for name, grad in self.grads.items()}
        for name, grad in other.grads.items():
            grads[name] = grads[name] + grad * theirs if name in grads else grad * theirs
        return Gradient(self.loss * ours + other.loss * theirs, grads, weight)

    def __radd__(self, other: object) -> Gradient:
        """0 + gradient is the gradient: ``sum`` begins with 0."""
        if isinstance(other, int) and other == 0:
            return self
        return NotImplemented

    def assign(self, model: nn.Module) -> None:
        """Overwrite ``p.grad`` of every parameter; None for those without a gradient.

        Raises:
            ValueError: where the gradient names a parameter that ``model`` does not have, or not in this shape.
        """
        for name, parameter in self._match(model).items():
            # A copy: clipping changes p.grad in place, and this gradient is a value.
            parameter.grad = self.grads[name].clone() if name in self.grads else None

    def add_to(self, model: nn.Module) -> None:
        """Add to ``p.grad``, as ``backward()`` does.

        Raises:
            ValueError: as ``assign``.
        """
        parameters = self._match(model)
        for name, grad in self.grads.items():
            parameter = parameters[name]
            parameter.grad = grad.clone() if parameter.grad is None else parameter.grad + grad

    def norm(self) -> Tensor:
        """The joint Euclidean norm over all parameters, as ``clip_grad_norm_`` measures it."""
        if not self.grads:
            return torch.zeros_like(self.loss)
        return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad) for grad in self.grads.values()]))

    def to(self, device: torch.device | str) -> Gradient:
        """The same on another device."""
        move = lambda tree: tree_map(lambda x: x.to(device), tree)  # noqa: E731
        extras = move(self.inputs), move(self.past_inputs), move(self.state)
        return Gradient(self.loss.to(device), move(self.grads), self.weight, *extras, self.how)

    def _match(self, model: nn.Module) -> dict[str, nn.Parameter]:
        parameters = dict(model.named_parameters())
        for name, grad in self.grads.items():
            if name not in parameters or parameters[name].shape != grad.shape:
                found = f"shape {tuple(parameters[name].shape)}" if name in parameters else "no such parameter"
                raise ValueError(
                    f"the gradient of {name!r}, shape {tuple(grad.shape)}, does not fit the model ({found}); "
                    "give it to the model it was computed for"
                )
        return parameters
