"""One layer on the compiled kernels, forward and back, on plain tensors; nothing here knows of autograd.

The kernels walk in blocks of time (``native/layer.c``): each block is projected, run and forgotten, and on the way back
it adds its part of the weights' gradients.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from operator import is_
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from .cells import CELLS
from .library import ISAS, Layer, library
from .workspace import room

__all__ = ["KINDS", "Call", "Choice", "Crossings", "back", "forward"]

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


class Call(NamedTuple):
    """What one layer is run on.

    ``kind`` is a name in ``CELLS``; ``x`` (T, B, d), T at least 1; ``weight_ih`` (G, d); ``weight`` (G, H), or (G,) for
    the element-wise kinds; biases (G,) or None. ``states`` are the initial ones, (B, H) each, then the fresh ones,
    (R, H) each, where there are any.
    """

    kind: str
    x: Tensor
    weight_ih: Tensor
    bias_ih: Tensor | None
    weight: Tensor
    bias: Tensor | None
    crossings: Crossings
    states: State

    @property
    def flat(self) -> tuple[Any, ...]:
        """The same one after the other, as nodes of autograd take it."""
        return (*self[:6], *self.crossings, *self.states)

    @classmethod
    def of(cls, kind: str, *rest: Any) -> Call:
        """From what ``flat`` gave."""
        x, weight_ih, bias_ih, weight, bias, gates, reset, valid, *states = rest
        return cls(kind, x, weight_ih, bias_ih, weight, bias, Crossings(gates, reset, valid), tuple(states))

    @property
    def remembered(self) -> Call:
        """What the way back needs of it: no biases, but for the diagonal recurrence, whose states it computes again."""
        return self if self.kind == "diagonal" else self._replace(bias_ih=None, bias=None)

    def plain(self) -> Call:
        """The same numbers as they lie in memory one after the other."""
        given = self.flat[1:]
        plain = tuple(map(_plain, given))
        return self if all(map(is_, plain, given)) else Call.of(self.kind, *plain)


def forward(call: Call, keep: bool, choice: Choice = AUTO) -> tuple[State, Tensor | None]:
    """Run one layer over all steps; ``keep`` says whether the way back will be walked.

    Returns:
        The states after every step, (T, B, H) each, and what the way back needs beside them, (T, B, 4H), or None.
    """
    call = call.plain()
    _check(call)
    steps, rows = call.x.shape[:2]
    weight, size = call.weight, call.weight.shape[-1]
    path = tuple(weight.new_empty(steps, rows, size) for _ in range(CELLS[call.kind].parts))
    kept = weight.new_empty(steps, rows, 4 * size) if keep and CELLS[call.kind].kept else None
    _run(_layer(call, path, kept, choice), FORWARD, choice)
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
    call: Call,
    path: State,
    kept: Tensor | None,
    given: Sequence[Tensor | None],
    wanted: Sequence[bool],
    choice: Choice = AUTO,
    own: Tensor | None = None,
) -> Gradients:
    """Walk back over all steps.

    Args:
        call: as ``forward`` took it, or what of it is ``remembered``.
        path: and ``kept``, from ``forward``.
        given: cotangents of the path, (T, B, H) each, None for 0.
        wanted: of which of x, weight_ih, bias_ih, weight and bias the gradients are wanted.
        own: (G,), of a dense kind: what flows back takes these, each unit's own weights, instead of all of ``weight``.
    """
    call = call.plain()
    given, path = tuple(map(_plain, given)), tuple(map(_plain, path))
    kept, own = _plain(kept), _plain(own)
    weight, states, parts = call.weight, call.states, CELLS[call.kind].parts
    across = weight.shape[0]
    dx = torch.empty_like(call.x) if wanted[0] else None
    dweight_ih = torch.empty_like(call.weight_ih) if wanted[1] else None
    dbias_ih = weight.new_empty(across) if wanted[2] else None
    dweight = torch.empty_like(weight) if wanted[3] else None
    dbias = weight.new_empty(across) if wanted[4] else None
    dstates = tuple(map(torch.empty_like, states[:parts])) + tuple(map(torch.zeros_like, states[parts:]))
    layer = _layer(call, path, kept, choice)
    layer.given, layer.given_c = _pair(given, parts)
    layer.initial_back, layer.initial_c_back = _pair(dstates, parts)
    layer.fresh_back, layer.fresh_c_back = _pair(dstates[parts:], parts)
    layer.x_back, layer.weight_ih_back, layer.weight_back = _at(dx), _at(dweight_ih), _at(dweight)
    layer.bias_ih_back, layer.bias_back, layer.own = _at(dbias_ih), _at(dbias), _at(own)
    _run(layer, BACK, choice)
    return Gradients(dx, dweight_ih, dbias_ih, dweight, dbias, dstates)


def _layer(call: Call, path: State, kept: Tensor | None, choice: Choice) -> Layer:
    """What both ways hand over. Whoever calls keeps the tensors alive."""
    weight, parts = call.weight, CELLS[call.kind].parts
    if weight.is_complex() and call.kind != "diagonal":
        raise TypeError(f"the compiled kernels have no complex {call.kind!r} recurrence, only the diagonal one")
    steps, rows, inputs = call.x.shape
    initial, initial_c = _pair(call.states, parts)
    fresh, fresh_c = _pair(call.states[parts:], parts)
    after, after_c = _pair(path, parts)
    return Layer(
        kind=COMPLEX_DIAGONAL if weight.is_complex() else KINDS[call.kind],
        real=int(weight.dtype in (torch.float64, torch.complex128)),
        isa=-1 if choice.isa is None else ISAS.index(choice.isa),
        threads=torch.get_num_threads(),
        split=SPLITS.index(choice.split),
        block=choice.block,
        steps=steps,
        rows=rows,
        inputs=inputs,
        size=weight.shape[-1],
        x=call.x.data_ptr(),
        weight_ih=call.weight_ih.data_ptr(),
        bias_ih=_at(call.bias_ih),
        weight=weight.data_ptr(),
        bias=_at(call.bias),
        initial=initial,
        initial_c=initial_c,
        path=after,
        path_c=after_c,
        kept=_at(kept),
        gates=_at(call.crossings.gates),
        reset=_at(call.crossings.reset),
        valid=_at(call.crossings.valid),
        fresh=fresh,
        fresh_c=fresh_c,
    )


def _check(call: Call) -> None:
    """Raise where a shape or dtype is another than the kernels will read."""
    kind, x, weight_ih, bias_ih, weight, bias, crossings, states = call
    steps, rows, inputs = x.shape
    size, parts = weight.shape[-1], CELLS[kind].parts
    across = BLOCKS.get(kind, 1) * size
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


def _run(layer: Layer, way: int, choice: Choice) -> None:
    native = choice.native or library()
    if native is None:
        raise RuntimeError("chronograd's compiled kernels are not built")
    memory = room(native.chronograd_room(layer, way))
    layer.room = memory.data_ptr()
    (native.chronograd_forward if way == FORWARD else native.chronograd_back)(layer)


def _at(part: Tensor | None) -> int | None:
    return None if part is None else part.data_ptr()


def _pair(states: Sequence[Tensor | None], parts: int) -> tuple[int | None, int | None]:
    """The addresses of h and c, where there are any."""
    return _at(states[0]) if states else None, _at(states[1]) if states and parts > 1 else None


@overload
def _plain(part: Tensor) -> Tensor: ...


@overload
def _plain(part: Tensor | None) -> Tensor | None: ...


def _plain(part: Tensor | None) -> Tensor | None:
    """The same numbers as they lie in memory one after the other."""
    if part is None or (part.is_contiguous() and not part.is_neg() and not part.is_conj()):
        return part
    return part.resolve_conj().resolve_neg().contiguous()
