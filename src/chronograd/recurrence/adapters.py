"""What the modes see of a model: a recurrence that runs a stretch under gates.

``adapt`` turns any model of the contract into one of three kinds:

- *layers*: its state is made of the states of recurrent layers and nothing else (ours, torch's, torch cells in a loop,
  ``Recurrent``), however deep they sit. It runs whole, and the gates are applied inside (``gating``). Found out by
  running two steps of two rows, not by its type.
- *opaque*: anything else. It runs in pieces between the steps where something happens to an edge (``pieces``).
- *whole*: it hides steps (bidirectional layers, attention over time) and can only run under Full, one call at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from chronograd.kernels import Edges

from .contract import check_pair
from .elstm import ELSTM
from .gating import GatedForward
from .layers import GRU, LSTM, RNN
from .layout import Layout, own_layout, read_layout
from .linear import DiagonalRNN, LinearRNN
from .pieces import run_pieces
from .quiet import alike, buffers_of, keep_buffers, keep_random, quiet, settled, some_gradient, uncast
from .recurrent import Recurrent
from .sequence import Engine
from .states import RowDims, check_state, detach, find_row_dims, leaves, tree_map

__all__ = ["Recurrence", "adapt", "hidden_steps"]

Tree = Any
# Rows up to which stretches gain side by side (``few_rows``): cells in a loop, torch's layers, its LSTM.
FEW, FEW_IN_TORCH, FEW_IN_LSTM = 32, 8, 4
_ATTENTION = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_ATTENDS = "attends over time"
_OWN = (RNN, GRU, LSTM, LinearRNN, DiagonalRNN, ELSTM)
_CELLS = (nn.RNNCell, nn.GRUCell, nn.LSTMCell)


def hidden_steps(model: nn.Module) -> str | None:
    """Why the steps of ``model`` cannot be told apart, or None: bidirectional layers and attention look at the whole
    input.

    >>> hidden_steps(nn.Sequential(nn.GRU(2, 3, bidirectional=True)))
    '0 is bidirectional'
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase) and module.bidirectional:
            return f"{name or type(module).__name__} is bidirectional"
        if isinstance(module, _ATTENTION):
            return f"{name or type(module).__name__} {_ATTENDS}"
    return None


class Recurrence:
    """A model as the modes see it. Made by ``adapt`` for one call; it holds no state of the stream.

    Making one costs nothing: the model is looked at when an edge first has to be gated, or ``kind`` is asked for.
    """

    def __init__(self, model: nn.Module, call: nn.Module, sample: Tree, engine: Engine | None = None) -> None:
        self.model = model
        self.call = call
        self.engine = engine
        self._sample = sample

    @cached_property
    def hides(self) -> str | None:
        """Why the steps of this model cannot be told apart, or None.

        Attention may look at a memory that is the same for all steps, so a model that attends is run step by step:
        where its outputs are those of one call, it hides nothing.
        """
        why = hidden_steps(self.model)
        if why is None or not why.endswith(_ATTENDS) or leaves(few := self.few(3))[0].shape[0] < 2:
            return why
        return None if self._runs_stepwise(few) else why

    def _runs_stepwise(self, few: Tree) -> bool:
        with quiet(self.model), settled(self.model):
            try:
                whole = self._answer(few, None)[0]
                alone = run_pieces(self._answer, self._dims, few, None, Edges(), range(leaves(few)[0].shape[0]))[0]
            except Exception:  # what cannot run on so little is taken as a whole
                return False
        return all(alike(a, b) for a, b in zip(leaves(alone), leaves(whole)))

    def _answer(self, inputs: Tree, state: Tree) -> tuple[Tree, Tree]:
        return check_pair(self.call(inputs, state))

    @property
    def kind(self) -> Literal["layers", "opaque", "whole"]:
        """What kind of model this is; see the module's text."""
        if self.hides:
            return "whole"
        if self.layout is None or (self.engine is not None and "cell" in self.layout.origins):
            return "opaque"  # a loop over torch's cells is nothing that an engine could run
        return "layers"

    @cached_property
    def layout(self) -> Layout | None:
        """Where the state tensors come from, for models made of recurrent layers."""
        if self.hides:
            return None
        if (known := own_layout(self.model)) is not None:
            return known
        few = self.few(2)
        with quiet(self.model), settled(self.model), self._looking():
            found = read_layout(self._answer, few)
            return found if found is not None and self._starts_anew(found, few) else None

    @property
    def plain_layout(self) -> dict[str, Any] | None:
        """The layout as a carry holds it, for ``expect``."""
        return None if self.layout is None else self.layout.plain

    def expect(self, known: dict[str, Any] | None) -> None:
        """Take the layout that ``plain_layout`` was in an earlier call, instead of running the model to look for it."""
        self.__dict__["layout"] = None if known is None else Layout.from_plain(known)

    def _starts_anew(self, layout: Layout, few: Tree) -> bool:
        """Whether a reset inside the layers is a reset of the model: nothing but the layers may read the state.

        An attention over h_{t-1}, or a readout of it, would go on to see the state of before. Values alone do not
        tell: what reads the state through a weight that is zero now shows in that weight's gradient, and layers that
        are run again on the way back (checkpoints), outside of the gates, show in all of them. Looked at without
        autocast, whose rounding hides what is small.
        """
        context, few = uncast(few)
        wrt = [p for p in self.model.parameters() if p.requires_grad]
        with torch.enable_grad(), context:
            few = tree_map(lambda x: x.detach().requires_grad_(x.is_floating_point()), few)
            wrt += [x for x in leaves(few) if x.requires_grad]
            found, expected = self._reset_and_begun(layout, few)
            if not all(alike(a, b) for a, b in zip(found, expected)):
                return False
            try:
                ours, theirs = (some_gradient(tensors, wrt) for tensors in (found, expected))
            except Exception:  # whatever cannot go back under gates is left to the opaque way
                return False
        return all(alike(a, b) for a, b in zip(ours, theirs))

    def _reset_and_begun(self, layout: Layout, few: Tree) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs and state of two steps that both reset, and of the same two steps taken from ``state=None``."""
        first, last = tree_map(lambda x: x[:1], few), tree_map(lambda x: x[-1:], few)
        one, state = self._answer(first, None)
        two, after = self._answer(last, None)
        expected = leaves([tree_map(lambda a, b: torch.cat((a, b)), one, two), after])
        other = tree_map(lambda h: torch.randn_like(h) if h.is_floating_point() or h.is_complex() else h, detach(state))
        inputs = tree_map(lambda a, b: torch.cat((a, b)), first, last)
        rows = leaves(inputs)[0]
        reset = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
        fresh = self._fresh_states(inputs, reset, layout)
        with GatedForward(Edges(None, reset, None), fresh):
            outputs, final = self._answer(inputs, other)
        return leaves([outputs, final]), expected

    @property
    def folds(self) -> bool:
        """Whether the layers' own way back lays stretches side by side."""
        return self._has(*_OWN) and self.layout is not None and self.layout.origins <= {"own"}

    def _has(self, *kinds: type[nn.Module]) -> bool:
        return any(isinstance(module, kinds) for module in self.model.modules())

    def gains(self, rows: int) -> bool:
        """Whether stretches of so many rows gain from being laid side by side (``few_rows``).

        Where the modules alone rule it out, the model is not run to look at it.
        """
        most = FEW_IN_TORCH if self._has(nn.RNNBase) and not self._has(nn.RNNCellBase, Recurrent) else FEW
        return self.engine is None and rows <= most and rows <= self.few_rows

    @property
    def few_rows(self) -> int:
        """Up to how many rows stretches gain from being laid side by side as rows of a batch (measured).

        With more, each of their matrix products is full by itself, and the forward pass that finds their starts costs
        more than it saves. 0 where the step is not known, or the layers lay stretches side by side themselves.
        """
        if self.layout is None or self.folds:
            return 0
        return FEW if not self.native else FEW_IN_LSTM if "lstm" in self.layout.origins else FEW_IN_TORCH

    @property
    def native(self) -> bool:
        """Whether the state is that of torch's layers alone."""
        return self.layout is not None and self.layout.origins <= {"torch", "lstm"}

    @cached_property
    def draws(self) -> bool:
        """Whether the model draws random numbers (dropout), seen on two steps; a bare layer of ours says so itself."""
        if own_layout(self.model) is not None:
            dropout, layers = (getattr(self.model, name, 0) for name in ("dropout", "num_layers"))
            return bool(self.model.training and dropout > 0 and layers > 1)
        with quiet(self.model), self._looking():
            before = torch.get_rng_state()
            self._answer(self.few(2), None)
            return not torch.equal(before, torch.get_rng_state())

    @cached_property
    def written(self) -> list[tuple[nn.Module, str]]:
        """The buffers that the model writes when it runs, or puts others in the places of, seen on four steps."""
        places = buffers_of(self.model)
        if not places:
            return []
        with quiet(self.model), self._looking():
            held = [module._buffers[name] for module, name in places]
            before = [(buffer, None if buffer is None else buffer._version) for buffer in held]
            few = self.few(2)
            self._answer(few, self._answer(few, None)[1])
            after = [(found, None if found is None else found._version) for found in (m._buffers[n] for m, n in places)]
            return [
                place for place, (old, was), (new, now) in zip(places, before, after) if new is not old or now != was
            ]

    @cached_property
    def dims(self) -> RowDims:
        """Where the rows of each state tensor lie.

        Raises:
            ValueError: where that cannot be told.
            TypeError: where the state holds other things than tensors and numbers.
        """
        if self.layout is not None:
            return self.layout.dims
        declared = getattr(self.model, "state_row_dim", None)
        few = tree_map(lambda x: x[:1], self.few(2))
        rows = leaves(few)[0].shape[1]
        again = torch.arange(rows + 1).clamp(max=rows - 1)
        with quiet(self.model), self._looking():
            ours = self._answer(few, None)[1]
            check_state(ours)
            theirs = None
            if declared is None:
                theirs = self._answer(tree_map(lambda x: x[:, again.to(x.device)], few), None)[1]
        return find_row_dims(ours, theirs, rows, rows + 1, declared)

    @contextmanager
    def _looking(self):
        """Say why the model ran on so few rows, where it fails on them only."""
        try:
            yield
        except Exception as error:
            try:
                self.call(tree_map(lambda x: x[:1], self._sample), None)
            except Exception:
                raise error from None
            error.add_note(
                "chronograd ran the model on its first steps and rows, to see how its state is made; "
                "a model made for one batch size declares state_row_dim"
            )
            raise

    def few(self, steps: int) -> Tree:
        """The first steps and rows of the sample; all rows for a model that declares where its rows lie."""
        rows = None if getattr(self.model, "state_row_dim", None) is not None else 2
        return tree_map(lambda x: x[:steps, :rows], self._sample)

    def run(self, inputs: Tree, state: Tree, edges: Edges) -> tuple[Tree, Tree]:
        """Outputs (T, B, ...) and the final state of a stretch, with the edges' gates in their graph."""
        outputs, final, _ = self.run_and_visit(inputs, state, edges, ())
        return outputs, final

    def run_and_visit(
        self, inputs: Tree, state: Tree, edges: Edges, visits: Sequence[int]
    ) -> tuple[Tree, Tree, list[Tree]]:
        """The same, and the states before the steps ``visits`` (ascending, within the stretch)."""
        if edges.plain and not any(visits) and self.engine is None:
            outputs, final = self._answer(inputs, state)
            return outputs, final, [state for _ in visits]
        # Between visits torch's layers run as they are.
        if self.layout is not None and not (edges.plain and self.native and self.engine is None):
            random = torch.get_rng_state()
            seen, outputs, final = self._gated(inputs, state, edges)
            if self.layout.holds(final, seen, leaves(inputs)[0].shape[0]):
                return outputs, final, [state if t == 0 else self.layout.before(final, seen, t) for t in visits]
            if self.engine is not None:
                raise ValueError(self._other_loops())
            # The model ran its layers otherwise than in its first steps: from here on it is an opaque one.
            self.__dict__["dims"], self.__dict__["layout"] = self.layout.dims, None
            torch.set_rng_state(random)
        outputs, final, states, _ = run_pieces(self._answer, self._dims, inputs, state, edges, visits)
        return outputs, final, states

    def run_step(self, inputs: Tree, state: Tree, edges: Edges) -> tuple[Tree, Tree, list[Tensor]]:
        """One step, T = 1: outputs, state, and the tensors that the outputs are computed from.

        Where the layers are known both outputs and returned state are made of those tensors: one (1, B, H) for each
        layer and part, in the order of the state's tensors, or (B, H) for a cell. For an opaque model they are the
        tensors of the state that the model returns, before resets and frozen rows are chosen.
        """
        if self.layout is not None:
            seen, outputs, final = self._gated(inputs, state, edges)
            if self.layout.holds(final, seen, 1):
                return outputs, final, self.layout.own(seen)
        outputs, final, _, returned = run_pieces(self._answer, self._dims, inputs, state, edges, ())
        return outputs, final, leaves(returned)

    def watch(self, inputs: Tree, state: Tree, edges: Edges, engine: Engine) -> tuple[Tree, Tree]:
        """Outputs and final state of a stretch whose loops ``engine`` runs; for models made of recurrent layers.

        Raises:
            ValueError: where the model runs its layers otherwise than in its first steps.
        """
        seen, outputs, final = self._gated(inputs, state, edges, engine)
        if self.layout is None or not self.layout.holds(final, seen, leaves(inputs)[0].shape[0]):
            raise ValueError(self._other_loops())
        return outputs, final

    def _other_loops(self) -> str:
        return (
            f"{type(self.model).__name__} runs its recurrent layers otherwise than on its first two steps, or not over "
            "all of them, so nothing but the model itself can run them; use mode=cg.Reverse()"
        )

    def _dims(self) -> RowDims:
        return self.dims

    def _gated(
        self, inputs: Tree, state: Tree, edges: Edges, engine: Engine | None = None
    ) -> tuple[GatedForward, Tree, Tree]:
        if state is None and edges.gates is not None:
            # The initial state is not on an edge: it learns, whatever the gate before the first step.
            gates = edges.gates.index_fill(0, torch.tensor([0], device=edges.gates.device), 1)
            edges = Edges(gates, edges.reset, edges.valid)
        fresh = None if edges.reset is None else self._fresh_states(inputs, edges.reset, self.layout)
        with GatedForward(edges, fresh, engine or self.engine) as seen:
            outputs, final = self._answer(inputs, state)
        return seen, outputs, final

    def _fresh_states(
        self, inputs: Tree, reset: Tensor, layout: Layout | None
    ) -> list[tuple[Tensor, ...] | None] | None:
        """The layers' initial states for each reset, as the model makes them from ``state=None`` and that step."""
        if layout is not None and layout.origins <= {"recurrent"}:
            return None
        time, row = reset.nonzero().unbind(1)
        starts = tree_map(lambda x: x[time.to(x.device), row.to(x.device)].unsqueeze(0), inputs)
        with keep_random(), keep_buffers(self.model), GatedForward(Edges()) as seen:
            self._answer(starts, None)
        return [None if _zero(track.given) else track.given for track in seen.tracks]


def _zero(state: tuple[Tensor, ...]) -> bool:
    return all(not part.requires_grad and not bool(part.any()) for part in state)


class _TimeMajor(nn.Module):
    """A batch_first layer called with (T, B, d)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        outputs, final = self.layer(inputs.transpose(0, 1), state)
        return outputs.transpose(0, 1), final


def adapt(model: nn.Module, inputs: Tree, engine: Engine | None = None) -> Recurrence:
    """The recurrence that ``model`` is, ``inputs`` (T, B, ...) being what it will be called with.

    ``engine`` runs the loops of its recurrent layers; None is one step after the other.

    A bare torch cell becomes ``Recurrent(cell)``; a batch_first layer at the top is transposed.

    >>> x = torch.randn(5, 2, 3)
    >>> adapt(nn.LSTM(3, 4), x).kind
    'layers'
    >>> outputs, state = adapt(nn.GRUCell(3, 4), x).run(x, None, Edges(gates=torch.zeros(5, 2)))
    >>> outputs.shape, state.shape
    (torch.Size([5, 2, 4]), torch.Size([2, 4]))
    """
    call = model
    if isinstance(model, _CELLS):
        call = Recurrent(model)
    elif isinstance(model, nn.RNNBase) and model.batch_first:
        call = _TimeMajor(model)
    return Recurrence(model, call, inputs, engine)
