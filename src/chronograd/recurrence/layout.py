"""Whether a model's state is made of its recurrent layers' states, read from the tracks of two short runs.

The first run starts from the model's own initial state, the second goes on from what the first returned. If the
tensors that came back are the very tensors (by identity) that the layers made, and those that went in are the very
ones the layers were given, then nothing else happens to the state between steps, and a gate inside the layers is a
gate on the state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from chronograd.kernels import Edges

from .elstm import ELSTM
from .gating import GatedForward
from .layers import GRU, LSTM, RNN
from .linear import DiagonalRNN, LinearRNN
from .states import RowDims, check_state, leaves, tree_map

__all__ = ["Layout", "own_layout", "read_layout"]

Tree = Any
Places = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Layout:
    """Where each state tensor lives: (track, part), in the order of the state's leaves; what the tracks are; where
    rows lie.
    """

    places: Places
    origins: frozenset[str]
    dims: RowDims

    def holds(self, final: Tree, seen: GatedForward, steps: int) -> bool:
        """Whether a run over ``steps`` steps went as the layout says."""
        if seen.blocked or any(track.length != steps for track in seen.tracks):
            return False
        return _find(leaves(final), [track.final for track in seen.tracks]) == self.places

    @property
    def plain(self) -> dict[str, Any]:
        """Lists and numbers only; ``from_plain`` reads them."""
        return {"places": [list(p) for p in self.places], "origins": sorted(self.origins), "rows": list(self.dims.dims)}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Layout:
        """What ``plain`` gave."""
        places = tuple((int(track), int(part)) for track, part in plain["places"])
        return cls(places, frozenset(plain["origins"]), RowDims(plain["rows"]))

    def before(self, final: Tree, seen: GatedForward, step: int) -> Tree:
        """The state before ``step``, at least 1, nested as ``final`` is."""
        parts = iter([seen.tracks[track].after(part, step - 1) for track, part in self.places])
        return tree_map(lambda _: next(parts), final)

    def own(self, seen: GatedForward) -> list[Tensor]:
        """The tensors of a single step that outputs and state are made of."""
        return [tensor for track, part in self.places for tensor in seen.tracks[track].own(part)]


def own_layout(model: nn.Module) -> Layout | None:
    """The layout of a bare layer of ours, which needs no run to be read; None for any other model.

    >>> own_layout(GRU(2, 3)).places, own_layout(nn.Sequential(GRU(2, 3)))
    (((0, 0),), None)
    """
    bare = type(model) in (RNN, GRU, LSTM, LinearRNN, DiagonalRNN, ELSTM) and getattr(model, "proj_size", 0) == 0
    if not bare or model._forward_hooks or model._forward_pre_hooks:  # hooks may do anything to a state
        return None
    parts = 2 if isinstance(model, LSTM) else 1
    return Layout(tuple((0, part) for part in range(parts)), frozenset({"own"}), RowDims([1] * parts))


def read_layout(call: Callable[[Tree, Tree], tuple[Tree, Tree]], inputs: Tree) -> Layout | None:
    """The layout of a model, from one or two steps of inputs; None where its state is made of other things too."""
    steps = leaves(inputs)[0].shape[0]
    with GatedForward(Edges()) as first:
        _, state = call(tree_map(lambda x: x[:1], inputs), None)
    check_state(state)
    if any(not isinstance(leaf, Tensor | None) for leaf in pytree.tree_leaves(state)):
        return None
    with GatedForward(Edges()) as second:
        _, after = call(inputs, state)
    if first.blocked or second.blocked or any(track.length != 1 for track in first.tracks):
        return None
    places = _find(leaves(after), [track.final for track in second.tracks])
    if places is None or any(track.length != steps for track in second.tracks):
        return None
    if _find(leaves(state), [track.final for track in first.tracks]) != places or not _enters(state, second, places):
        return None
    dims = RowDims([second.tracks[track].row_dim for track, _ in places])
    return Layout(places, frozenset(track.origin for track in second.tracks), dims)


def _find(state: list[Tensor], made: list[tuple[Tensor, ...]]) -> Places | None:
    """Which track's final state each tensor is, by identity; None where one is not, or two are the same."""
    known = {id(part): (number, place) for number, final in enumerate(made) for place, part in enumerate(final)}
    found = [known[id(leaf)] for leaf in state if id(leaf) in known]
    return tuple(found) if len(set(found)) == len(state) else None


def _enters(state: Tree, seen: GatedForward, places: Places) -> bool:
    """Whether each tensor of the state, and nothing else, was given to the place that it came from."""
    given = {(n, part): id(leaf) for n, track in enumerate(seen.tracks) for part, leaf in enumerate(track.given)}
    return given == {place: id(leaf) for place, leaf in zip(places, leaves(state))}
