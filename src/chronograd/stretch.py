"""The steps of one call: what the user gave, checked, and laid out as the modes want it.

Every message says what is wrong, where, and what to do. Padding is filled with values that a valid step has, so that
whatever it held (NaN, a token out of range) reaches neither the model nor a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from .carry import Carry, Piece, Stream, whole_seed
from .modes.losses import Losses
from .modes.replay import fill_padding, in_memory, steps_of, streams
from .recurrence.contract import WatchedLoss, shown
from .recurrence.states import leaves
from .streamed import Streamed
from .truncation import Place

LOOKED_AT = 1000  # steps of a stream at a time, in search of what is not finite

__all__ = ["Stretch", "explain_not_finite", "lay_losses", "lay_stretch"]


@dataclass(frozen=True)
class Stretch:
    """One call's steps: the ``piece`` to run, its gates still 1, and the ``carry`` of the stream it goes on with.

    ``begun`` (B,) bool are the rows that have had a valid step when it is over.
    """

    carry: Carry
    piece: Piece
    begun: Tensor

    @property
    def place(self) -> Place:
        """Where a truncation is asked for its plan."""
        stream = self.carry.stream
        # A stream without a seed is under a truncation that draws nothing (lay_stretch).
        seed = 0 if stream.seed is None else stream.seed
        return Place(stream.position, self.piece.steps, stream.rows, seed, stream.since, self.piece.reset)


def lay_stretch(
    inputs: Any,
    carry: Carry | None,
    reset: Tensor | None,
    lengths: Tensor | None,
    seed: int | None,
    draws: bool,
) -> Stretch:
    """Check a call's inputs, resets and lengths against its carry.

    A stream without a seed takes one from torch's generator where the truncation or the mode ``draws``, and only
    there: else the generator is the model's alone.

    Raises:
        TypeError, ValueError: in one line each.
    """
    steps, rows = _shape(inputs)
    if carry is None:
        carry = Carry.start(rows, seed=whole_seed(seed))
    elif not isinstance(carry, Carry):
        raise TypeError(
            f"carry must be what an earlier call returned, or None, not {type(carry).__name__}; "
            "a bare hidden state begins a stream as cg.Carry.start(batch, state=...)"
        )
    elif seed is not None:
        raise ValueError("seed is for a new carry; this one has its own, so leave seed out")
    stream = carry.stream
    if stream.rows.numel() != rows:
        shape = _shown_shape([*leaves(inputs), *streams(inputs)][0])
        raise ValueError(
            f"the carry has {stream.rows.numel()} rows, but inputs {shape} have {rows} "
            "in dimension 1; a stream keeps its rows (rows that ended have length 0)"
        )
    valid = _valid(lengths, steps, rows)
    begun = bool(stream.begun.all())
    late = None if begun or stream.state is None else ~stream.begun
    starts = _resets(reset, (steps, rows), valid, late)
    if starts is not None:
        starts[0] &= stream.state is not None  # from state=None every row starts anyway
        starts = starts if bool(starts.any()) else None
    gates = torch.ones((), dtype=torch.float64).expand(steps, rows)
    piece = Piece(inputs if valid is None else fill_padding(inputs, valid), gates, starts, valid, [])
    if stream.seed is None and draws:
        carry = replace(carry, stream=replace(stream, seed=int(torch.randint(2**62, ()))))
    return Stretch(carry, piece, stream.begun if begun else begun_after(stream, valid))


def begun_after(stream: Stream, valid: Tensor | None) -> Tensor:
    """The rows (B,) that have had a valid step after steps of which these are ``valid``."""
    return torch.ones_like(stream.begun) if valid is None else stream.begun | valid.any(0)


def lay_losses(
    loss_fn: Callable[[Any, Any], Tensor],
    targets: Any,
    weights: Tensor | None,
    piece: Piece,
    parameters: Iterable[Tensor],
) -> Losses:
    """Check a call's targets and weights, and lay out the losses of its ``piece``.

    ``parameters`` are the model's trainable ones: a loss that depends on others is refused when it is first computed.

    Raises:
        TypeError, ValueError: in one line each.
    """
    shape = (piece.steps, piece.rows)
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be callable, loss_fn(outputs, targets) -> (T, B), not {type(loss_fn).__name__}")
    loss_fn = WatchedLoss(loss_fn, parameters)
    for leaf in pytree.tree_leaves(targets):
        if not isinstance(leaf, Tensor | Streamed | None):
            raise TypeError(
                f"targets must be tensors (T, B, ...), a nesting of them or None; they hold a {type(leaf).__name__}: "
                "torch.as_tensor makes a tensor of arrays and lists, constants belong into loss_fn"
            )
        if leaf is None:
            continue
        if _steps_and_rows(leaf) != shape:
            raise ValueError(
                f"targets have shape {_shown_shape(leaf)}, expected as of inputs (T, B, ...) = "
                f"({shape[0]}, {shape[1]}, ...)"
            )
    if weights is None:
        return Losses(loss_fn, targets, torch.ones(()).expand(shape), piece.valid)
    if not isinstance(weights, Tensor) or tuple(weights.shape) != shape or weights.is_complex():
        raise ValueError(f"weights must be a real tensor of shape (T, B) = {shape}, not {shown(weights)}")
    weights = weights.detach().cpu()
    weights = weights if weights.is_floating_point() else weights.float()
    if not bool(((weights >= 0) & (weights < torch.inf)).all()):
        t, b = _first(~((weights >= 0) & (weights < torch.inf)))
        raise ValueError(
            f"weights must be finite and not negative; that of step {t}, row {b} is {float(weights[t, b])}"
        )
    used = weights > 0 if piece.valid is None else piece.valid & (weights > 0)
    return Losses(loss_fn, targets, weights, None if bool(used.all()) else used)


def explain_not_finite(piece: Piece, losses: Losses | None = None) -> None:
    """Say where the data itself (inputs, and targets of losses) holds NaN or infinity; silent where it does not.

    Raises:
        ValueError: with the step and row of the first one.
    """
    data = [("inputs", piece.inputs, piece.valid)]
    if losses is not None:
        data.append(("targets", losses.targets, losses.used))
    for name, tree, counts in data:
        length = LOOKED_AT if streams(tree) else piece.steps
        for begin in range(0, piece.steps, length):
            steps = slice(begin, begin + length)
            for leaf in leaves(in_memory(steps_of(tree, steps))):
                bad = _not_finite(leaf, None if counts is None else counts[steps])
                if bad is not None:
                    t, b = bad
                    raise ValueError(
                        f"{name} hold NaN or infinity at step {begin + t} of this call, row {b}; clean the data, "
                        "or leave such entries out with lengths or weights"
                    )


def _not_finite(leaf: Tensor, counts: Tensor | None) -> tuple[int, int] | None:
    """Step and row of the first entry that counts and is not finite."""
    if not (leaf.is_floating_point() or leaf.is_complex()):
        return None
    finite = torch.isfinite(leaf.detach())
    bad = ~(finite.flatten(2).all(2) if leaf.dim() > 2 else finite).cpu()
    bad = bad if counts is None else bad & counts
    return _first(bad) if bool(bad.any()) else None


def _shape(inputs: Any) -> tuple[int, int]:
    flat = [*leaves(inputs), *streams(inputs)]
    nested = [] if isinstance(inputs, Tensor) else _parts(inputs)
    for leaf in nested:
        if isinstance(leaf, PackedSequence):
            raise TypeError(
                "inputs hold a PackedSequence, whose rows are interleaved; unpack it with pad_packed_sequence and give "
                "the lengths as lengths=..."
            )
        if flat and not isinstance(leaf, Tensor | Streamed | int | float | str | None):
            raise TypeError(
                f"inputs hold a {type(leaf).__name__}; make them of tensors (T, B, ...), as torch.as_tensor does"
            )
    if not flat:
        raise TypeError(f"inputs must be a tensor (T, B, ...) or a nesting of them, not {type(inputs).__name__}")
    for leaf in flat:
        if isinstance(leaf, Tensor) and leaf.dim() < 2 or _steps_and_rows(leaf) != _steps_and_rows(flat[0]):
            raise ValueError(
                f"inputs have shape {_shown_shape(leaf)}, expected (T, B, ...): time first, then rows"
                + ("" if leaf is flat[0] else f", as the first of them has, {_shown_shape(flat[0])}")
            )
    steps, rows = _steps_and_rows(flat[0])
    if steps < 1 or rows < 1:
        raise ValueError(f"inputs have shape {_shown_shape(flat[0])}: there must be at least one step and one row")
    return steps, rows


def _steps_and_rows(leaf: Tensor | Streamed) -> tuple[int, ...]:
    return tuple(leaf.shape[:2]) if isinstance(leaf, Tensor) else (leaf.steps, leaf.rows)


def _shown_shape(leaf: Tensor | Streamed) -> str:
    return f"{tuple(leaf.shape)}" if isinstance(leaf, Tensor) else f"({leaf.steps}, {leaf.rows}, ...)"


def _parts(inputs: Any) -> list[Any]:
    return pytree.tree_leaves(inputs, is_leaf=lambda part: isinstance(part, PackedSequence))


def _valid(lengths: Tensor | None, steps: int, rows: int) -> Tensor | None:
    """The valid entries (T, B); None where all are."""
    if lengths is None:
        return None
    try:
        lengths = torch.as_tensor(lengths).cpu()
    except (TypeError, ValueError, RuntimeError):  # text, or lists of no one shape
        raise TypeError(f"lengths must be whole numbers of shape (B,) = ({rows},), not {shown(lengths)}") from None
    whole = not (lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool)
    if tuple(lengths.shape) != (rows,) or not whole:
        raise ValueError(f"lengths must be whole numbers of shape (B,) = ({rows},), not {shown(lengths)}")
    if bool(((lengths < 0) | (lengths > steps)).any()):
        row = int(((lengths < 0) | (lengths > steps)).nonzero()[0])
        raise ValueError(
            f"lengths says {int(lengths[row])} for row {row}, but the inputs have {steps} steps "
            f"(0..{steps} is possible)"
        )
    return None if bool((lengths == steps).all()) else torch.arange(steps).unsqueeze(1) < lengths


def _resets(reset: Tensor | None, shape: tuple[int, int], valid: Tensor | None, late: Tensor | None) -> Tensor | None:
    """Where rows start anew; None where no one asks for it. Rows that are ``late`` have had no valid step yet, and
    start with their first.
    """
    starts = None
    if reset is not None:
        if not isinstance(reset, Tensor) or reset.dtype != torch.bool or tuple(reset.shape) != shape:
            raise ValueError(
                f"reset must be a bool tensor of shape (T, B) = {shape}, True where a row starts anew, "
                f"not {shown(reset)}"
            )
        starts = reset.detach().cpu().clone()
        if valid is not None and bool((starts & ~valid).any()):
            t, b = _first(starts & ~valid)
            raise ValueError(
                f"reset marks step {t} of row {b}, which lies beyond that row's length; mark the first step that is "
                "taken"
            )
    if late is not None:
        starts = torch.zeros(shape, dtype=torch.bool) if starts is None else starts
        starts[0] |= late if valid is None else late & valid[0]
    return starts


def _first(mask: Tensor) -> tuple[int, int]:
    t, b = mask.nonzero()[0].tolist()
    return t, b
