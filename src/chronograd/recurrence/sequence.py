"""The two loops over time that a model can contain: stacked layers of built-in cells, and a cell of the user's own.

Both are overridable functions: a ``torch.overrides.TorchFunctionMode`` sees each call, as it sees ``torch.gru`` and
its like, and that is how gates reach a layer deep inside somebody's model (see ``gating``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from chronograd.kernels import Edges, run_projected

from .states import RowDims, check_state, leaves, tree_map
from .torch_layers import run_in_torch, torch_serves

__all__ = [
    "Engine",
    "LayerWeights",
    "Path",
    "Sequential",
    "cell_sequence",
    "check_rows",
    "layer_sequence",
    "run_cell",
    "run_layers",
]

State = tuple[Tensor, ...]
NO_EDGES = Edges()


class LayerWeights(NamedTuple):
    """Weights of one layer in torch's names and shapes: (G, d), (G, H) or (G,), and the biases (G,) or None."""

    input: Tensor
    recurrent: Tensor
    input_bias: Tensor | None = None
    recurrent_bias: Tensor | None = None


class Path(NamedTuple):
    """What a loop left behind: ``outputs`` (T, B, ...), which of a cell are its states, nested as they are; the
    ``final`` state; and the states after every step.

    ``states[layer][part]`` is (T, B, H) for layers; ``states[t]`` are the tensors of a cell's state.
    """

    outputs: Any
    final: Any
    states: Sequence[State]


def run_layers(
    kind: str,
    inputs: Tensor,
    initial: State,
    weights: Sequence[LayerWeights],
    dropout: float = 0.0,
    edges: Edges = NO_EDGES,
    fresh: State | None = None,
    run: Callable[..., State] = run_projected,
) -> Path:
    """Run stacked layers of one built-in cell over (T, B, d).

    Args:
        kind: a name in ``kernels.CELLS``.
        initial: (L, B, H) for each part of the state.
        dropout: probability of dropout between layers (0 outside training).
        fresh: (L, R, H) for each part: initial states of the rows that reset.
        run: what runs one layer, with the arguments of ``kernels.run_projected``.

    Raises:
        ValueError: for complex weights of a layer other than ``DiagonalRNN``: their ways back take no conjugates.

    >>> weights = LayerWeights(torch.ones(1, 1), torch.full((1, 1), 0.5))
    >>> run_layers("linear", torch.ones(3, 1, 1), (torch.zeros(1, 1, 1),), [weights]).final[0].item()
    1.75
    """
    _refuse_complex(kind, weights)
    states: list[State] = []
    x = inputs
    for number, layer in enumerate(weights):
        if number and dropout > 0:
            x = torch.nn.functional.dropout(x, dropout)
        path = run(
            kind,
            x,
            layer.input,
            layer.input_bias,
            tuple(part[number] for part in initial),
            layer.recurrent,
            layer.recurrent_bias,
            edges,
            None if fresh is None else tuple(part[number] for part in fresh),
        )
        states.append(path)
        x = path[0]
    final = tuple(torch.stack([layer[part][-1] for layer in states]) for part in range(len(initial)))
    return Path(x, final, states)


def _refuse_complex(kind: str, weights: Sequence[LayerWeights]) -> None:
    if kind != "diagonal" and weights[0].recurrent.is_complex():
        raise ValueError(
            f"a {kind} layer computes with real numbers only, but its weights are {weights[0].recurrent.dtype}; use "
            "cg.DiagonalRNN(..., complex=True), or a cell of your own in cg.Recurrent"
        )


def layer_sequence(
    kind: str, inputs: Tensor, initial: State, weights: Sequence[LayerWeights], dropout: float = 0.0
) -> tuple[Tensor, State]:
    """Outputs (T, B, H) and final state (L, B, H) of stacked layers; overridable."""
    if has_torch_function((inputs,)):
        return handle_torch_function(layer_sequence, (inputs,), kind, inputs, initial, weights, dropout)
    _refuse_complex(kind, weights)
    if torch_serves(kind, weights[0].recurrent):
        return run_in_torch(kind, inputs, initial, weights, dropout)
    path = run_layers(kind, inputs, initial, weights, dropout)
    return path.outputs, path.final


def run_cell(cell: Callable[[Any, Any], Any], inputs: Any, state: Any, edges: Edges = NO_EDGES) -> Path:
    """Run a cell ``(x_t, state) -> state`` over (T, B, ...), with rows in dimension 0 of every state tensor.

    Raises:
        ValueError: where a state tensor has its rows elsewhere.

    >>> run_cell(lambda x, h: x if h is None else x + h, torch.ones(3, 1), None).final
    tensor([3.])
    """
    states: list[State] = []
    history = []
    gated = [] if edges.gates is None else (edges.gates != 1).any(1).tolist()
    resets, frozen = edges.reset_steps(), edges.frozen_steps()
    rows = RowDims([])
    for t, x in enumerate(_steps_of(inputs)):
        if edges.gates is not None and gated[t] and state is not None:
            state = RowDims([0] * len(leaves(state))).gate(state, edges.gates[t])
        new = cell(x, state)
        if t == 0:
            check_rows(new, leaves(inputs)[0].shape[1])
            rows = RowDims([0] * len(leaves(new)))
        if edges.reset is not None and resets[t]:
            new = rows.choose(~edges.reset[t], new, cell(x, None))
        if edges.valid is not None and frozen[t] and state is not None:
            new = rows.choose(edges.valid[t], new, state)
        state = new
        history.append(state)
        states.append(tuple(leaves(state)))
    return Path(tree_map(lambda *steps: torch.stack(steps), *history), state, states)


def _steps_of(inputs: Any) -> Iterable[Any]:
    """The inputs of each step, nested as they are."""
    if isinstance(inputs, Tensor):
        return inputs.unbind(0)
    return (tree_map(lambda x, t=t: x[t], inputs) for t in range(leaves(inputs)[0].shape[0]))


def check_rows(state: Any, rows: int) -> None:
    """A cell's state has its rows in dimension 0; anything else is told at the first step."""
    check_state(state)
    for number, leaf in enumerate(leaves(state)):
        if leaf.dim() == 0 or leaf.shape[0] != rows:
            raise ValueError(
                f"Recurrent: state tensor {number} of the cell has shape {tuple(leaf.shape)}, "
                f"but its first dimension must count the {rows} rows"
            )


def cell_sequence(cell: Callable[[Any, Any], Any], inputs: Any, state: Any) -> tuple[Any, Any]:
    """The states after every step, (T, B, ...), and the final one; overridable."""
    tensors = tuple(leaves(inputs))
    if has_torch_function(tensors):
        return handle_torch_function(cell_sequence, tensors, cell, inputs, state)
    path = run_cell(cell, inputs, state)
    return path.outputs, path.final


class Engine(Protocol):
    """How the loops over time that a model contains are run (``gating``): both arguments and results are those of
    ``run_layers`` and ``run_cell``. ``ways`` says of each loop how it was run, where there is anything to say.
    """

    @property
    def ways(self) -> Sequence[Any]: ...

    def layers(
        self,
        kind: str,
        inputs: Tensor,
        initial: State,
        weights: Sequence[LayerWeights],
        dropout: float,
        edges: Edges,
        fresh: State | None,
    ) -> Path: ...

    def cell(self, cell: Callable[[Any, Any], Any], inputs: Any, state: Any, edges: Edges) -> Path: ...


class Sequential:
    """One step after the other."""

    ways = ()
    layers = staticmethod(run_layers)
    cell = staticmethod(run_cell)
