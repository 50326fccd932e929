"""Models whose state is that of one stack of built-in layers, and whose trainable parameters reach the next state
through that stack alone: their cell is known, so its derivatives need no autograd.

Anything may stand behind the layers (readouts, norms, losses); before them only what is not trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chronograd.kernels import CELLS, Edges
from chronograd.kernels.cells import Cell, fold_biases
from chronograd.kernels.reference import states_before
from chronograd.modes.scan.jacobians import step_all
from chronograd.recurrence.adapters import Recurrence
from chronograd.recurrence.gating import GatedForward
from chronograd.recurrence.quiet import keep_buffers, keep_random
from chronograd.recurrence.sequence import LayerWeights, Path, Sequential, run_layers

from .onward import Onward, by_hand

__all__ = ["Block", "Entry", "Stack", "cell_factors", "dense", "find_stack", "made_of_layers", "watched"]

State = tuple[Tensor, ...]


class Entry(NamedTuple):
    """A weight of a layer: the parameter's name, what drives it (``"drive"`` or ``"product"``), and what it meets:
    ``"input"``, ``"state"`` or 1 (a bias).
    """

    name: str
    side: str
    meets: str


class Stack(NamedTuple):
    """The stack of layers of a model: kind of cell, units, and for each layer the trainable weights."""

    kind: str
    units: int
    entries: tuple[tuple[Entry, ...], ...]

    @property
    def cell(self) -> Cell:
        return CELLS[self.kind]

    @property
    def numbers(self) -> int:
        """Of state, for each row."""
        return len(self.entries) * self.cell.parts * self.units


class _Call(NamedTuple):
    kind: str
    inputs: Tensor
    initial: State
    weights: Sequence[LayerWeights]
    edges: Edges
    fresh: State | None
    path: Path


class _Watch(Sequential):
    """Runs loops one step after the other, and keeps what each was given and made; ``cut`` makes its outputs leaves of
    the graph.
    """

    def __init__(self, cut: bool = False) -> None:
        self.calls: list[_Call] = []
        self._cut = cut

    def layers(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        kind: str,
        inputs: Tensor,
        initial: State,
        weights: Sequence[LayerWeights],
        dropout: float,
        edges: Edges,
        fresh: State | None,
    ) -> Path:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._cut):
            path = run_layers(kind, inputs, initial, weights, dropout, edges, fresh)
        if self._cut:
            path = path._replace(outputs=path.outputs.detach().requires_grad_())
        self.calls.append(_Call(kind, inputs, initial, weights, edges, fresh, path))
        return path


def made_of_layers(onward: Onward) -> bool:
    """Whether a model's state is that of built-in layers and nothing else, however many."""
    layout = onward.recurrence.layout
    return layout is not None and layout.origins <= {"own", "torch", "lstm"}


def dense(onward: Onward) -> bool:
    """Whether a model is one stack of layers whose recurrent weights hold no zeros: two steps reach all units."""
    stack = find_stack(onward)
    if stack is None or stack.cell.element_wise:
        return False
    watch = _Watch()
    with keep_random(), keep_buffers(onward.recurrence.model), torch.no_grad(), GatedForward(Edges(), None, watch):
        onward.recurrence.call(onward.recurrence.few(1), None)
    return all(bool((weights.recurrent != 0).all()) for weights in watch.calls[0].weights)


def find_stack(onward: Onward) -> Stack | None:
    """The stack of layers that a model is made of, as the module's text says, seen on one step; None for others."""
    recurrence, parameters = onward.recurrence, onward.tally.parameters
    if not made_of_layers(onward):
        return None
    watch = _Watch()
    with keep_random(), keep_buffers(recurrence.model), torch.enable_grad(), GatedForward(Edges(), None, watch):
        recurrence.call(recurrence.few(1), None)
    if len(watch.calls) != 1:
        return None
    call = watch.calls[0]
    if call.inputs.requires_grad or any(part.requires_grad for part in call.initial):
        return None
    names = {id(value): name for name, value in parameters.items()}
    entries = []
    for layer in call.weights:
        found = []
        for value, side, meets in zip(layer, ("drive", "product", "drive", "product"), ("input", "state", "", "")):
            if value is None or not value.requires_grad:
                continue
            if id(value) not in names:  # made of parameters: a weight norm, an orthogonal map
                return None
            found.append(Entry(names[id(value)], side, meets or "one"))
        entries.append(tuple(found))
    listed = [entry.name for layer in entries for entry in layer]
    if len(set(listed)) != len(listed):  # one weight in two places
        return None
    return Stack(call.kind, call.weights[0].recurrent.shape[-1], tuple(entries))


class Layer(NamedTuple):
    """One layer over T steps: its inputs (T, B, d), the states before and after each, (T, B, H) for each part, and what
    its way back multiplies by, T B rows each; ``weight`` (G, H), ``weight_ih`` (G, d).
    """

    inputs: Tensor
    before: State
    factors: State
    weight: Tensor
    weight_ih: Tensor

    def met(self, meets: str) -> Tensor:
        """What a weight meets at each step, (T, B, n)."""
        if meets == "one":
            return self.inputs.new_ones(*self.inputs.shape[:2], 1)
        return self.inputs if meets == "input" else self.before[0]


class Block(NamedTuple):
    """A run of a model over T steps: its outputs, its final state, its stack's layers and the edges; ``made`` (T, B, H)
    is what the stack gave to the model.
    """

    outputs: Any
    final: Any
    layers: tuple[Layer, ...]
    edges: Edges
    made: Tensor


def watched(recurrence: Recurrence, stack: Stack, inputs: Any, state: Any, edges: Edges, *, cut: bool = False) -> Block:
    """Run a model of one stack, with a graph, and see its layers; ``cut`` begins the graph behind them, at ``made``."""
    watch = _Watch(cut)
    outputs, final = recurrence.watch(inputs, state, edges, watch)
    (call,) = watch.calls
    if call.inputs.requires_grad:
        raise ValueError(
            "parameters stand before the recurrent layers here that did not at the first step, so their influence is "
            "not known; let all steps take the same way through the model, or use mode=cg.Reverse()"
        )
    layers, x = [], call.inputs
    with by_hand(x.device):
        for number, (weights, path) in enumerate(zip(call.weights, call.path.states)):
            given = tuple(part[number] for part in call.initial)
            fresh = () if call.fresh is None else tuple(part[number] for part in call.fresh)
            x, after = x.to(weights.recurrent.dtype), tuple(path)
            before = states_before(given, after, call.edges, fresh)
            factors = cell_factors(stack.kind, x, before, after, weights)
            layers.append(Layer(x, before, factors, weights.recurrent, weights.input))
            x = after[0]
    return Block(outputs, final, tuple(layers), call.edges, call.path.outputs)


def cell_factors(kind: str, x: Tensor, before: State, after: State, weights: LayerWeights) -> State:
    """What the cell's way back multiplies by, T B rows; the kernels keep none of it, so one step of all rows makes it
    again.
    """
    cell = CELLS[kind]
    old, new = (tuple(part.flatten(0, 1) for part in states) for states in (before, after))
    if not cell.kept:
        return cell.factors(x.new_empty(0), old, new)
    bias_ih, bias = fold_biases(kind, weights.input_bias, weights.recurrent_bias)
    drive = torch.nn.functional.linear(x.flatten(0, 1), weights.input, bias_ih)
    return step_all(cell, drive, old, weights.recurrent, bias)[1]
