"""The general recurrence: any f and g (E1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .sequence import cell_sequence
from .states import leaves

__all__ = ["Recurrent"]


class Recurrent(nn.Module):
    """h_t = f(x_t, h_{t-1}; w_h), o_t = g(h_t; w_o), for any cell f and readout g.

    Args:
        cell: ``cell(x_t, state) -> state``. x_t is (B, ...), nested as the inputs are; the state any nesting of tensors
            with rows in dimension 0; ``state=None`` asks for the step from the initial state. Any callable; a module's
            parameters are found by name. ``torch.nn.GRUCell`` and its like fit as they are.
        readout: ``readout(states) -> outputs`` on all steps at once: states stacked in time, (T, B, ...). It must
            treat every step and row by itself, as ``torch.nn.Linear`` does. None gives the state itself (its first
            tensor where it is a nesting).

    Since the step is known, windows and chunks are computed as rows of one batch.

    Raises:
        TypeError: if the cell cannot be called.

    >>> import torch
    >>> model = Recurrent(torch.nn.GRUCell(3, 8), torch.nn.Linear(8, 2))
    >>> outputs, state = model(torch.randn(5, 4, 3))
    >>> outputs.shape, state.shape
    (torch.Size([5, 4, 2]), torch.Size([4, 8]))
    """

    state_row_dim = 0

    def __init__(self, cell: Callable[[Any, Any], Any], readout: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        for name, part in (("cell", cell), ("readout", readout)):
            if part is not None and not callable(part):
                raise TypeError(f"Recurrent: {name} must be callable, not {type(part).__name__}")
        self.cell = cell
        self.readout = readout

    def forward(self, inputs: Any, state: Any = None) -> tuple[Any, Any]:
        """(T, B, ...) or a nesting of such, and a state or None -> outputs (T, B, ...), final state.

        Raises:
            ValueError: where there is no step, or the cell's state has its rows elsewhere than in dimension 0.
        """
        steps = leaves(inputs)
        if not steps or steps[0].dim() < 2 or steps[0].shape[0] == 0:
            shapes = ", ".join(str(tuple(x.shape)) for x in steps) or type(inputs).__name__
            raise ValueError(f"Recurrent: expected tensors (T, B, ...) of at least one step, got {shapes}")
        states, final = cell_sequence(self.cell, inputs, state)
        if self.readout is not None:
            return self.readout(states), final
        while not isinstance(states, Tensor):
            states = next(iter(states.values())) if isinstance(states, dict) else states[0]
        return states, final
