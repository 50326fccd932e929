"""One layer on the compiled kernels, forward and back, on plain tensors; nothing here knows of autograd.

The kernels walk in blocks of time (``native/layer.c``): each block is projected, run and forgotten, and on the way back
it adds its part of the weights' gradients.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .cells import CELLS
from .library import ISAS, Layer, library
from .workspace import room

__all__ = ["Choice", "Crossings", "back", "forward"]

State = tuple[Tensor, ...]

KINDS = {"tanh": 0, "relu": 1, "linear": 2, "gru": 3, "lstm": 4, "diagonal": 5}
COMPLEX_DIAGONAL = 6
BLOCKS = {"gru": 3, "lstm": 4}
SPLITS = ("auto", "rows", "units")
FORWARD, BACK = 0, 1


class Choice(NamedTuple):
    """What tests and benchmarks force: an instruction set by name, a split of the work, steps in a block, a library."""

    isa: str | None = None
    split: str = "auto"
    block: int = 0
    native: ctypes.CDLL | None = None


AUTO = Choice()


class Crossings(NamedTuple):
    """Edges as the kernels take them, (T, B) each: ``gates`` of the real type, ``reset`` int32 (the number of the row's
    fresh state, or -1), ``valid`` uint8. None is absent.
    """

    gates: Tensor | None = None
    reset: Tensor | None = None
    valid: Tensor | None = None


def forward(
    kind: str,
    x: Tensor,
    weight_ih: Tensor,
    bias_ih: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    states: State,
    crossings: Crossings,
    keep: bool,
    choice: Choice = AUTO,
) -> tuple[State, Tensor | None]:
    """Run one layer over all steps.

    Args:
        kind: a name in ``CELLS``.
        x: (T, B, d), T at least 1.
        weight_ih: (G, d); ``weight`` (G, H), or (H,) for the diagonal kinds; biases (G,) or None.
        states: the initial ones, (B, H) each, then the fresh ones, (R, H) each, where there are any.
        keep: whether the way back will be walked.

    Returns:
        The states after every step, (T, B, H) each, and what the way back needs beside them, (T, B, 4H), or None.
    """
    parts = CELLS[kind].parts
    x, weight_ih, weight, states = _plain(x), _plain(weight_ih), _plain(weight), tuple(map(_plain, states))
    bias_ih, bias = _plain_or_none(bias_ih), _plain_or_none(bias)
    crossings = Crossings(*map(_plain_or_none, crossings))
    _check(kind, x, weight_ih, bias_ih, weight, bias, states, crossings)
    steps, rows = x.shape[:2]
    size = weight.shape[-1]
    path = tuple(weight.new_empty(steps, rows, size) for _ in range(parts))
    kept = weight.new_empty(steps, rows, 4 * size) if keep and CELLS[kind].kept else None
    layer = _layer(kind, x, weight_ih, weight, states, crossings, path, kept, choice)
    layer.bias_ih, layer.bias = _at(bias_ih), _at(bias)
    _call(layer, FORWARD, choice)
    return path, kept


class Gradients(NamedTuple):
    """Gradients of what ``forward`` took, None where they are not wanted."""

    x: Tensor | None
    weight_ih: Tensor | None
    bias_ih: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    states: State


def back(
    kind: str,
    x: Tensor,
    weight_ih: Tensor,
    weight: Tensor,
    states: State,
    crossings: Crossings,
    path: State,
    kept: Tensor | None,
    given: Sequence[Tensor | None],
    wanted: Sequence[bool],
    choice: Choice = AUTO,
) -> Gradients:
    """Walk back over all steps.

    Args:
        path: and ``kept``, from ``forward``; the others are its arguments.
        given: cotangents of the path, (T, B, H) each, None for 0.
        wanted: of which of x, weight_ih, bias_ih, weight and bias the gradients are wanted.
    """
    parts = CELLS[kind].parts
    x, weight_ih, weight, states = _plain(x), _plain(weight_ih), _plain(weight), tuple(map(_plain, states))
    given = tuple(map(_plain_or_none, given))
    path, kept = tuple(map(_plain, path)), _plain_or_none(kept)
    crossings = Crossings(*map(_plain_or_none, crossings))
    across = weight.shape[0]
    dx = torch.empty_like(x) if wanted[0] else None
    dweight_ih = torch.empty_like(weight_ih) if wanted[1] else None
    dbias_ih = weight.new_empty(across) if wanted[2] else None
    dweight = torch.empty_like(weight) if wanted[3] else None
    dbias = weight.new_empty(across) if wanted[4] else None
    dstates = tuple(map(torch.empty_like, states[:parts])) + tuple(map(torch.zeros_like, states[parts:]))
    layer = _layer(kind, x, weight_ih, weight, states, crossings, path, kept, choice)
    layer.given, layer.given_c = _at(given[0]), _at(given[1]) if parts > 1 else None
    layer.initial_back, layer.initial_c_back = dstates[0].data_ptr(), dstates[1].data_ptr() if parts > 1 else None
    if len(states) > parts:
        layer.fresh_back, layer.fresh_c_back = dstates[parts].data_ptr(), _at(dstates[-1]) if parts > 1 else None
    layer.x_back, layer.weight_ih_back, layer.weight_back = _at(dx), _at(dweight_ih), _at(dweight)
    layer.bias_ih_back, layer.bias_back = _at(dbias_ih), _at(dbias)
    _call(layer, BACK, choice)
    return Gradients(dx, dweight_ih, dbias_ih, dweight, dbias, dstates)


def _layer(
    kind: str,
    x: Tensor,
    weight_ih: Tensor,
    weight: Tensor,
    states: State,
    crossings: Crossings,
    path: State,
    kept: Tensor | None,
    choice: Choice,
) -> Layer:
    """What both ways hand over. Whoever calls keeps the tensors alive."""
    complex_ = weight.is_complex()
    if complex_ and kind != "diagonal":
        raise TypeError(f"the compiled kernels have no complex {kind!r} recurrence, only the diagonal one")
    parts = CELLS[kind].parts
    steps, rows, inputs = x.shape
    two, fresh = parts > 1, len(states) > parts
    return Layer(
        kind=COMPLEX_DIAGONAL if complex_ else KINDS[kind],
        real=int(weight.dtype in (torch.float64, torch.complex128)),
        isa=-1 if choice.isa is None else ISAS.index(choice.isa),
        threads=torch.get_num_threads(),
        split=SPLITS.index(choice.split),
        block=choice.block,
        steps=steps,
        rows=rows,
        inputs=inputs,
        size=weight.shape[-1],
        x=x.data_ptr(),
        weight_ih=weight_ih.data_ptr(),
        weight=weight.data_ptr(),
        initial=states[0].data_ptr(),
        initial_c=states[1].data_ptr() if two else None,
        path=path[0].data_ptr(),
        path_c=path[1].data_ptr() if two else None,
        kept=_at(kept),
        gates=_at(crossings.gates),
        reset=_at(crossings.reset),
        valid=_at(crossings.valid),
        fresh=states[parts].data_ptr() if fresh else None,
        fresh_c=states[-1].data_ptr() if two and fresh else None,
    )


def _check(
    kind: str,
    x: Tensor,
    weight_ih: Tensor,
    bias_ih: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    states: State,
    crossings: Crossings,
) -> None:
    """Raise where a shape or dtype is another than the kernels will read."""
    steps, rows, inputs = x.shape
    size = weight.shape[-1]
    across = BLOCKS.get(kind, 1) * size
    parts = CELLS[kind].parts
    wanted = [
        ("weight_ih", weight_ih, (across, inputs)),
        ("weight", weight, (size,) if kind == "diagonal" else (across, size)),
    ]
    wanted += [(name, part, (across,)) for name, part in (("bias_ih", bias_ih), ("bias", bias)) if part is not None]
    wanted += [("state", part, (rows, size)) for part in states[:parts]]
    wanted += [("fresh state", part, (part.shape[0], size)) for part in states[parts:]]
    for name, part, shape in wanted:
        if part.shape != shape or part.dtype != x.dtype:
            raise RuntimeError(
                f"a {kind} layer of {size} units on {inputs} features: {name} must be {shape} of {x.dtype}, "
                f"not {tuple(part.shape)} of {part.dtype}"
            )
    for name, part in zip(Crossings._fields, crossings):
        if part is not None and part.shape != (steps, rows):
            raise RuntimeError(f"{name} must be (T, B) = {(steps, rows)}, not {tuple(part.shape)}")


def _call(layer: Layer, way: int, choice: Choice) -> None:
    native = choice.native or library()
    if native is None:
        raise RuntimeError("chronograd's compiled kernels are not built")
    memory = room(native.chronograd_room(layer, way))
    layer.room = memory.data_ptr()
    (native.chronograd_forward if way == FORWARD else native.chronograd_back)(layer)


def _at(part: Tensor | None) -> int | None:
    return None if part is None else part.data_ptr()


def _plain(part: Tensor) -> Tensor:
    """The same numbers as they lie in memory one after the other."""
    if part.is_contiguous() and not part.is_neg() and not part.is_conj():
        return part
    return part.resolve_conj().resolve_neg().contiguous()


def _plain_or_none(part: Tensor | None) -> Tensor | None:
    return None if part is None else _plain(part)
