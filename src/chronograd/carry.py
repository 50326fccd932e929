"""The carry: everything that changes along a stream of calls, in named sections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from .recurrence.states import detach, leaves, tree_map

__all__ = ["Carry", "Piece", "Segment", "Stream"]

SCHEMA = 1


@dataclass(frozen=True)
class Stream:
    """Where the stream stands.

    ``position`` counts steps since the carry began; ``rows`` (B,) int64 are the global row ids; ``since`` (B,) int64
    the steps of each row since its stream, its last reset or its last cut; ``begun`` (B,) bool is False for rows that
    have had no valid step yet.
    """

    position: int
    seed: int
    rows: Tensor
    since: Tensor
    begun: Tensor
    state: Any = None
    warned: bool = False


@dataclass(frozen=True)
class Piece:
    """Steps that can be run again: inputs (T, B, ...), what happened on their edges, the random state they began with.

    ``targets`` and ``weights`` are kept only where the truncation measures past losses.
    """

    inputs: Any
    gates: Tensor
    reset: Tensor
    valid: Tensor
    random: list[Tensor]
    targets: Any = None
    weights: Tensor | None = None

    @property
    def steps(self) -> int:
        return self.gates.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes held for running the piece again."""
        return sum(x.numel() * x.element_size() for x in leaves([self.inputs, self.targets, self.gates]))


@dataclass(frozen=True)
class Segment:
    """The open segment: position and state before it, and the pieces since. Empty where no loss can reach back."""

    start: int = 0
    state: Any = None
    pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class Carry:
    """What a call hands to the next one: pass it back unchanged to go on with the stream.

    Sections: ``stream`` (position, state, rows, seed), ``segment`` (what later losses can still reach),
    ``truncation`` (a measured look-back and the like) and ``mode`` (influence matrices of the forward modes). A carry
    is never changed in place, so an old one can be used again.

    >>> import torch, chronograd as cg
    >>> model = cg.Recurrent(torch.nn.GRUCell(3, 4))
    >>> outputs, carry = cg.unroll(model, torch.randn(5, 2, 3), truncation=cg.Chunks(2))
    >>> carry.stream.position, carry.state.shape
    (5, torch.Size([2, 4]))
    >>> Carry.from_state_dict(carry.state_dict()).stream.position
    5
    """

    stream: Stream
    segment: Segment = field(default_factory=Segment)
    truncation: dict[str, Any] = field(default_factory=dict)
    mode: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(
        cls, batch: int, *, seed: int | None = None, rows: Tensor | Sequence[int] | None = None, state: Any = None
    ) -> Carry:
        """The carry of a stream that has not begun.

        Args:
            batch: rows B.
            seed: of the random truncations' draws; None takes one from torch's generator.
            rows: global row ids (B,), default 0..B-1: which rows of a larger batch these are. Draws follow them.
            state: the state before the first step, None for the model's initial one.

        Raises:
            ValueError: where ``rows`` does not name B rows.
        """
        ids = torch.arange(batch) if rows is None else torch.as_tensor(rows, dtype=torch.int64).cpu()
        if ids.shape != (batch,):
            raise ValueError(f"Carry.start: rows must name {batch} row ids, one for each row, not {ids.numel()}")
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        begun = torch.full((batch,), state is not None)
        stream = Stream(0, int(seed), ids, torch.zeros(batch, dtype=torch.int64), begun, state)
        return cls(stream, Segment(state=state))

    @property
    def state(self) -> Any:
        """The hidden state after the last step, without a graph; None before the first."""
        return self.stream.state

    def cut(self) -> Carry:
        """The same stream with nothing open: later losses do not reach back before this point. The tutorials'
        ``detach``.
        """
        stream = replace(self.stream, state=detach(self.stream.state), warned=False)
        return replace(self, stream=stream, segment=Segment(stream.position, stream.state))

    @property
    def open_steps(self) -> int:
        """Steps that the next call's losses can still reach, and that are run again for them."""
        return sum(piece.steps for piece in self.segment.pieces)

    def state_dict(self) -> dict[str, Any]:
        """Nested dicts, lists, numbers and tensors only, as ``torch.save`` and ``weights_only=True`` loading take
        them.
        """
        return {"schema": SCHEMA, **_plain({f.name: getattr(self, f.name) for f in fields(self)})}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Carry:
        """The carry that ``state_dict`` wrote.

        Raises:
            ValueError: where it was written under another schema.
        """
        if state.get("schema") != SCHEMA:
            raise ValueError(
                f"Carry.from_state_dict: schema {state.get('schema')!r} is not {SCHEMA}: another version wrote it"
            )
        segment = dict(state["segment"])
        segment["pieces"] = tuple(Piece(**piece) for piece in segment["pieces"])
        return cls(Stream(**state["stream"]), Segment(**segment), dict(state["truncation"]), dict(state["mode"]))


def _plain(value: Any) -> Any:
    if isinstance(value, Stream | Segment | Piece):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple) and value and isinstance(value[0], Piece):
        return [_plain(piece) for piece in value]
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return tree_map(Tensor.detach, value)
