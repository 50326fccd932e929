"""Gates for the recurrent layers inside any model, without a change to the model.

While a model runs under ``GatedForward``, every call of torch's fused RNN, GRU and LSTM, of their cells, and of our
own layers is caught, and runs with the gates, resets and frozen rows of the stretch. What it saw is kept as tracks;
``adapters`` reads from them whether the model's state is made of those layers' states and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from chronograd.kernels import Edges

from .sequence import Engine, LayerWeights, Sequential, cell_sequence, layer_sequence
from .states import RowDims, leaves

__all__ = ["GatedForward", "Track"]

State = tuple[Tensor, ...]

_FUSED = {torch.rnn_tanh: "tanh", torch.rnn_relu: "relu", torch.gru: "gru", torch.lstm: "lstm"}
_CELLS = (torch.rnn_tanh_cell, torch.rnn_relu_cell, torch.gru_cell, torch.lstm_cell)


@dataclass
class Track:
    """One recurrent loop as it was seen: the very tensors it was given and gave back, and its states at every step.

    ``origin`` is ``"own"`` (a chronograd layer), ``"lstm"`` or ``"torch"`` (torch's LSTM, its other layers), ``"cell"``
    (torch cells in a loop) or ``"recurrent"``. ``states[layer][part]`` is (T, B, H) for the layers; for loops of cells
    ``steps`` holds one tuple of tensors for each step.
    """

    origin: str
    given: State
    final: State
    states: Sequence[State] = field(default_factory=list)
    steps: Sequence[State] = field(default_factory=list)
    weight: Tensor | None = None

    @property
    def length(self) -> int:
        return self.states[0][0].shape[0] if self.states else len(self.steps)

    @property
    def row_dim(self) -> int:
        """Where rows lie in the state tensors: (L, B, H) for layers, (B, H) for cells."""
        return 1 if self.states else 0

    def after(self, part: int, step: int) -> Tensor:
        """Part ``part`` of the state after ``step``, as the model would have returned it."""
        if self.states:
            return torch.stack([layer[part][step] for layer in self.states])
        return self.steps[step][part]

    def own(self, part: int) -> list[Tensor]:
        """The tensors of a single step that its outputs and its state are both made of: (1, B, H) for each layer, or
        (B, H).
        """
        return [layer[part] for layer in self.states] if self.states else [self.steps[0][part]]


class GatedForward(TorchFunctionMode):
    """Run the recurrent layers of a model under ``edges``; ``fresh[n]`` are the initial states of the n-th track's
    resets, ``engine`` what runs their loops.

    ``blocked`` says afterwards what could not be caught, or None.
    """

    def __init__(self, edges: Edges, fresh: list[State | None] | None = None, engine: Engine | None = None) -> None:
        super().__init__()
        self.edges, self.fresh, self.engine = edges, fresh, engine or Sequential()
        self.tracks: list[Track] = []
        self.blocked: str | None = None
        self._numbers = edges.fresh_rows()
        self._gated = [] if edges.gates is None else (edges.gates != 1).any(1).tolist()
        self._resets, self._frozen = edges.reset_steps(), edges.frozen_steps()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is layer_sequence:
            return self._layers("own", *args)
        if func is cell_sequence:
            return self._recurrent(*args)
        if func in _FUSED:
            return self._fused(func, args, kwargs)
        if func in _CELLS:
            return self._cell(func, args, kwargs)
        return func(*args, **kwargs)

    def _fresh_of(self, track: int) -> State | None:
        return self.fresh[track] if self.fresh is not None and track < len(self.fresh) else None

    def _layers(
        self, origin: str, kind: str, inputs: Tensor, initial: State, weights: Any, dropout: float
    ) -> tuple[Tensor, State]:
        edges = self.edges
        if not edges.plain and inputs.shape[0] != _steps(edges):
            self.blocked = "a recurrent layer that does not run over all steps"
            edges = Edges()
        fresh = self._fresh_of(len(self.tracks))
        path = self.engine.layers(kind, inputs, initial, weights, dropout, edges, fresh)
        self.tracks.append(Track(origin, initial, path.final, states=path.states))
        return path.outputs, path.final

    def _fused(self, func: Any, args: Any, kwargs: Any) -> Any:
        if kwargs or len(args) != 9 or not isinstance(args[2], list | tuple):
            self.blocked = "a packed sequence inside the model"
            return func(*args, **kwargs)
        inputs, hx, flat, has_bias, layers, dropout, training, bidirectional, batch_first = args
        kind = _FUSED[func]
        initial = tuple(hx) if kind == "lstm" else (hx,)
        each = 4 if has_bias else 2
        if bidirectional or len(flat) != each * layers:
            self.blocked = "a bidirectional or projected layer inside the model"
            return func(*args)
        weights = [LayerWeights(*flat[each * n : each * (n + 1)]) for n in range(layers)]
        x = inputs.transpose(0, 1) if batch_first else inputs
        outputs, final = self._layers(
            "lstm" if kind == "lstm" else "torch", kind, x, initial, weights, dropout if training else 0.0
        )
        return (outputs.transpose(0, 1) if batch_first else outputs, *final)

    def _recurrent(self, cell: Any, inputs: Any, state: Any) -> tuple[Any, Any]:
        path = self.engine.cell(cell, inputs, state, self.edges)
        self.tracks.append(Track("recurrent", tuple(leaves(state)), tuple(leaves(path.final)), steps=path.states))
        return path.outputs, path.final

    def _cell(self, func: Any, args: Any, kwargs: Any) -> Any:
        x, hx, w_ih, w_hh, *biases = args
        pair = func is torch.lstm_cell
        given = tuple(hx) if pair else (hx,)
        found = [n for n, track in enumerate(self.tracks) if track.weight is w_hh and _same(track.final, given)]
        if found:
            number = found[0]
        else:
            number = len(self.tracks)
            self.tracks.append(Track("cell", given, given, weight=w_hh))
        track = self.tracks[number]
        step = len(track.steps)
        state = self._enter(given, step, self._fresh_of(number))
        new = func(x, state if pair else state[0], w_ih, w_hh, *biases, **kwargs)
        after = tuple(new) if pair else (new,)
        if self.edges.valid is not None and step < len(self._frozen) and self._frozen[step]:
            after = _rows(after).choose(self.edges.valid[step], after, state)
        assert isinstance(track.steps, list)  # of a loop seen step by step
        track.steps.append(after)
        track.final = after
        return after if pair else after[0]

    def _enter(self, state: State, step: int, fresh: State | None) -> State:
        """Cross the edge into ``step`` with the state of a torch cell."""
        edges = self.edges
        if edges.gates is not None and step < len(self._gated) and self._gated[step]:
            state = _rows(state).gate(state, edges.gates[step])
        if edges.reset is not None and step < len(self._resets) and self._resets[step]:
            new = tuple(map(torch.zeros_like, state))
            if fresh is not None and self._numbers is not None:
                at = self._numbers[step].clamp(min=0)
                new = tuple(part[at] for part in fresh)
            state = _rows(state).choose(edges.reset[step], new, state)
        return state


def _rows(state: State) -> RowDims:
    return RowDims([0] * len(state))


def _same(ours: State, theirs: State) -> bool:
    return len(ours) == len(theirs) and all(a is b for a, b in zip(ours, theirs))


def _steps(edges: Edges) -> int:
    return next(part.shape[0] for part in (edges.gates, edges.reset, edges.valid) if part is not None)
