"""The carry: everything that changes along a stream of calls, in named sections."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from .recurrence.contract import shown
from .recurrence.states import check_state, detach, leaves
from .streamed import Streamed

__all__ = ["Carry", "Piece", "Segment", "Stream", "whole_seed"]

SCHEMA = 1


@dataclass(frozen=True)
class Stream:
    """Where the stream stands.

    ``position`` counts steps since the carry began; ``rows`` (B,) int64 are the global row ids; ``since`` (B,) int64
    the steps of each row since its stream, its last reset or its last cut; ``begun`` (B,) bool is False for rows that
    have had no valid step yet. ``seed`` is None until a random truncation first asks for one.
    """

    position: int
    seed: int | None
    rows: Tensor
    since: Tensor
    begun: Tensor
    state: Any = None
    warned: bool = False


@dataclass(frozen=True)
class Piece:
    """Steps that can be run again: inputs (T, B, ...), what happened on their edges, the random state they began with.

    ``reset`` is None where no row starts anew, ``valid`` where every row goes on to the end.
    ``targets`` and ``weights`` are kept only where the truncation measures past losses.
    """

    inputs: Any
    gates: Tensor
    reset: Tensor | None
    valid: Tensor | None
    random: list[Tensor]
    targets: Any = None
    weights: Tensor | None = None

    @property
    def steps(self) -> int:
        return self.gates.shape[0]

    @property
    def rows(self) -> int:
        return self.gates.shape[1]

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
            batch: rows B, at least 1.
            seed: of the random truncations' draws. None leaves torch's generator alone until a random truncation
                first runs on the stream, and takes one number from it then; so under every other truncation a model
                with dropout draws the masks that a loop written by hand draws at the same ``torch.manual_seed``.
            rows: global row ids (B,), default 0..B-1: which rows of a larger batch these are. Draws follow them, so
                no two may be equal.
            state: the state before the first step, None for the model's initial one.

        Raises:
            TypeError: where ``batch`` or ``seed`` is no whole number, or the state holds other things than tensors
                and numbers.
            ValueError: where ``rows`` does not name B different rows.
        """
        if not _whole(batch):
            raise TypeError(f"Carry.start: batch must be a whole number of rows, not {shown(batch)}")
        if batch < 1:
            raise ValueError(f"Carry.start: batch must be at least 1, not {batch}")
        batch = operator.index(batch)
        check_state(state, "the state given to Carry.start")
        ids = torch.arange(batch) if rows is None else _row_ids(rows, batch)
        begun = torch.full((batch,), state is not None)
        stream = Stream(0, whole_seed(seed), ids, torch.zeros(batch, dtype=torch.int64), begun, state)
        return cls(stream, Segment(state=state))

    @property
    def state(self) -> Any:
        """The hidden state after the last step, without a graph; None before the first."""
        return self.stream.state

    def cut(self) -> Carry:
        """The same stream with nothing open, and nothing known of the past: later losses do not reach back before this
        point. The tutorials' ``detach``.
        """
        stream = replace(self.stream, state=detach(self.stream.state), warned=False)
        return replace(self, stream=stream, segment=Segment(stream.position, stream.state), mode={})

    @property
    def open_steps(self) -> int:
        """Steps that the next call's losses can still reach, and that are run again for them."""
        return sum(piece.steps for piece in self.segment.pieces)

    def state_dict(self) -> dict[str, Any]:
        """Nested dicts, lists, numbers and tensors only, as ``torch.save`` and ``weights_only=True`` loading take
        them.

        Raises:
            TypeError: where the model's state or inputs are nested in anything but plain tuples, lists and dicts:
                a named tuple can be carried along, but not written.
        """
        return {"schema": SCHEMA, **{f.name: _plain(getattr(self, f.name), f.name) for f in fields(self)}}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Carry:
        """The carry that ``state_dict`` wrote, whatever device its hidden state and inputs were loaded to.

        Raises:
            TypeError: where it is no dict.
            ValueError: where it was written under another schema, or parts of it are missing.
        """
        if not isinstance(state, dict):
            raise TypeError(f"Carry.from_state_dict: give what carry.state_dict() returned, not {shown(state)}")
        if "schema" not in state:
            raise ValueError(
                f"Carry.from_state_dict: there is no 'schema' among its keys {shown([*state])}, so no carry wrote it; "
                "give what carry.state_dict() returned"
            )
        if state["schema"] != SCHEMA:
            raise ValueError(
                f"Carry.from_state_dict: schema {state['schema']!r} is not {SCHEMA}: another version wrote it"
            )
        sections = _read(cls, {key: value for key, value in state.items() if key != "schema"}, "the carry")
        for name, section in sections.items():
            if not isinstance(section, dict):
                raise ValueError(f"Carry.from_state_dict: {name} must be a dict, not {shown(section)}")
        stream = _read(Stream, sections["stream"], "stream")
        segment = _read(Segment, sections["segment"], "segment")
        pieces = [_read(Piece, piece, "each of segment.pieces") for piece in segment["pieces"] or ()]
        segment["pieces"] = tuple(Piece(**_at_home(piece, "gates", "reset", "valid", "weights")) for piece in pieces)
        stream = Stream(**_at_home(stream, "rows", "since", "begun"))
        return cls(stream, Segment(**segment), dict(sections["truncation"]), dict(sections["mode"]))


def whole_seed(seed: Any) -> int | None:
    """``seed`` as a plain int, or None.

    Raises:
        TypeError: where it is neither a whole number nor None.

    >>> whole_seed("a")
    Traceback (most recent call last):
    TypeError: seed must be a whole number or None, not 'a'
    """
    if seed is None:
        return None
    if not _whole(seed):
        raise TypeError(f"seed must be a whole number or None, not {shown(seed)}")
    return operator.index(seed)


def _whole(value: Any) -> bool:
    """Whether a value is a whole number, of Python, numpy or torch."""
    if isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool):
        return False
    try:
        operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def _row_ids(rows: Any, batch: int) -> Tensor:
    try:
        ids = torch.as_tensor(rows).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"Carry.start: rows must be whole numbers, one for each row, not {shown(rows)}") from None
    if ids.shape != (batch,):
        raise ValueError(f"Carry.start: rows must name {batch} row ids, one for each row, not {ids.numel()}")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"Carry.start: rows must be whole numbers, not {ids.dtype}".replace("torch.", ""))
    ids = ids.to(torch.int64)
    if int(ids.min()) < 0:
        raise ValueError(f"Carry.start: rows must not be negative; row {int(ids.argmin())} is {int(ids.min())}")
    found, counts = ids.unique(return_counts=True)
    if bool((counts > 1).any()):
        twice = int(found[counts > 1][0])
        raise ValueError(
            f"Carry.start: rows name {twice} more than once; random truncations would draw the same for both, "
            "so give each row its own id"
        )
    return ids


def _read(kind: type, section: Any, name: str) -> dict[str, Any]:
    """A section's entries as the fields of ``kind``, neither more nor fewer.

    Raises:
        ValueError: naming the entries that do not fit.
    """
    wanted = [f.name for f in fields(kind)]
    missing, unknown = [n for n in wanted if n not in section], [n for n in section if n not in wanted]
    if missing or unknown:
        what = f"lacks {', '.join(missing)}" if missing else f"has unknown {', '.join(map(str, unknown))}"
        raise ValueError(f"Carry.from_state_dict: {name} {what}; give what carry.state_dict() returned, unchanged")
    return dict(section)


def _at_home(section: dict[str, Any], *names: str) -> dict[str, Any]:
    """The book-keeping on the CPU, where ``torch.load(map_location=...)`` may have moved it."""
    moved = {name: section[name].cpu() for name in names if section[name] is not None}
    if "random" in section:
        moved["random"] = [state.cpu() for state in section["random"]]
    return {**section, **moved}


def _plain(value: Any, where: str) -> Any:
    """What ``weights_only=True`` loading takes.

    Raises:
        TypeError: where there is something that it does not take.
    """
    if isinstance(value, Stream | Segment | Piece):
        return {f.name: _plain(getattr(value, f.name), f"{where}.{f.name}") for f in fields(value)}
    if isinstance(value, Tensor):
        return value.detach()
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if type(value) in (dict, OrderedDict):
        return type(value)((key, _plain(entry, where)) for key, entry in value.items())
    if type(value) in (list, tuple):
        if where == "segment.pieces":
            return [_plain(piece, where) for piece in value]
        return type(value)(_plain(entry, where) for entry in value)
    if isinstance(value, Streamed):
        raise TypeError(
            f"Carry.state_dict: {where} is a stream, whose data no file of the carry could hold; write "
            "carry.cut().state_dict(), before which later losses do not reach, or give the last steps as tensors"
        )
    raise TypeError(
        f"Carry.state_dict: {where} holds a {type(value).__name__}, which torch.load(weights_only=True) would not "
        "read; make the model's states and inputs of plain tuples, lists and dicts"
    )
