"""The layers on the compiled kernels: one autograd node a layer, walked forward and back in blocks of time.

A block is projected, run and forgotten: X W_ih^T of all steps is never stored, nor are the cotangents of all products.
On the way back each block adds its part of the weights' gradients in one pass over its cotangents::

    dL/dW_hh += D^T H_before,  dL/dW_ih += D^T X,  dL/dX = D W_ih

``run_layer`` has the signature and the results of ``reference.run_layer``. Known gaps: it cannot be differentiated
twice (a clear error says so); only the CPU, float32, float64 and (diagonal) their complex numbers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from .cells import CELLS, fold_biases
from .edges import Edges
from .library import BACK, FORWARD, Recurrence, library
from .products import Products, TorchProducts
from .reference import refuse_twice
from .workspace import room

__all__ = ["Choice", "run_layer", "run_projected"]

State = tuple[Tensor, ...]

# A block's projected inputs stay in the cache, but its matrix products have enough rows to run at full speed.
BLOCK_BYTES = 4 * 2**20
BLOCK_ROWS = 1024
GRU_COLUMNS = 4


class Choice:
    """What tests force: a library, an instruction set by name, a split of the work, steps in a block."""

    def __init__(
        self,
        native: ctypes.CDLL | None = None,
        forced: str | None = None,
        split: str = "auto",
        block: int | None = None,
    ) -> None:
        found = native or library()
        if found is None:
            raise RuntimeError("chronograd's compiled kernels are not built")
        self.native, self.forced, self.split, self.block = found, forced, split, block


def run_layer(
    kind: str,
    drive: Tensor,
    initial: State,
    weight: Tensor,
    bias: Tensor | None,
    edges: Edges,
    fresh: State | None = None,
    choice: Choice | None = None,
) -> State:
    """Run one layer over time on its projected inputs; arguments and results of ``reference.run_layer``."""
    drive, bias = fold_biases(kind, drive, bias)
    return _run(kind, drive, None, None, initial, weight, bias, edges, fresh, choice)


def run_projected(
    kind: str,
    inputs: Tensor,
    weight_ih: Tensor,
    bias_ih: Tensor | None,
    initial: State,
    weight: Tensor,
    bias: Tensor | None,
    edges: Edges,
    fresh: State | None = None,
    choice: Choice | None = None,
) -> State:
    """Run one layer over time on its inputs (T, B, d), projected by ``weight_ih`` (G, d) block by block.

    The other arguments and the results are those of ``run_layer``.
    """
    bias_ih, bias = fold_biases(kind, bias_ih, bias)
    return _run(kind, inputs, weight_ih, bias_ih, initial, weight, bias, edges, fresh, choice)


def _run(
    kind: str,
    inputs: Tensor,
    weight_ih: Tensor | None,
    bias_ih: Tensor | None,
    initial: State,
    weight: Tensor,
    bias: Tensor | None,
    edges: Edges,
    fresh: State | None,
    choice: Choice | None,
) -> State:
    choice = choice or Choice()
    states = (*initial, *(fresh or ()))
    mixed = torch.is_autocast_enabled("cpu")
    if mixed:
        # Sums over many steps are kept in the precision of the weights.
        inputs, states = inputs.to(weight.dtype), tuple(part.to(weight.dtype) for part in states)
    keep = torch.is_grad_enabled()
    with torch.autocast("cpu", enabled=False) if mixed else nullcontext():
        out = _Fused.apply(kind, edges, choice, keep, inputs, weight_ih, bias_ih, weight, bias, *states)
    return out if CELLS[kind].parts > 1 else (out,)  # pyright: ignore[reportReturnType]


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kind: str,
        edges: Edges,
        choice: Choice,
        keep: bool,
        inputs: Tensor,
        weight_ih: Tensor | None,
        bias_ih: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        *states: Tensor,
    ):
        parts = CELLS[kind].parts
        keep = keep and any(ctx.needs_input_grad)
        inputs, weight, bias = _plain(inputs), _plain(weight), None if bias is None else _plain(bias)
        states = tuple(map(_plain, states))
        initial, fresh = states[:parts], states[parts:]
        steps, rows = inputs.shape[:2]
        size = initial[0].shape[-1]
        layer = Recurrence(choice.native, kind, weight, rows, bias, choice.forced, choice.split)
        at_edges = _edges(edges, initial[0], bool(fresh))
        layer.edges(*at_edges, fresh)
        layer.pack(FORWARD)
        path = tuple(part.new_empty(steps, rows, size) for part in initial)
        kept = initial[0].new_empty(steps, rows, 4 * size) if keep and CELLS[kind].kept else None
        if weight_ih is None:
            layer.forward(0, steps, inputs, kept, initial, path)
        else:
            _project_and_run(layer, choice, inputs, weight_ih, bias_ih, kept, initial, path)
        if keep:
            ctx.set_materialize_grads(False)
            ctx.kind, ctx.choice, ctx.at_edges, ctx.has_bias = kind, choice, at_edges, bias is not None
            ctx.projected = weight_ih is not None
            saved = (weight_ih, inputs) if weight_ih is not None else ()
            ctx.save_for_backward(*saved, weight, *path, *states, *(() if kept is None else (kept,)))
        return path if parts > 1 else path[0]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None):  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_twice()
        return None, None, None, None, *_walk_back(ctx, cotangents)


def _plain(part: Tensor) -> Tensor:
    return part.resolve_conj().resolve_neg().contiguous()


def _edges(edges: Edges, like: Tensor, numbered: bool) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gates, resets and frozen rows as the kernels take them."""
    gates = None if edges.gates is None else edges.gates.to(like.real.dtype).contiguous()
    reset = None
    if edges.reset is not None:
        # Without fresh states the numbers only say where.
        reset = edges.fresh_rows() if numbered else edges.reset.to(torch.int32) - 1
        reset = reset.to(torch.int32).contiguous()  # pyright: ignore[reportOptionalMemberAccess]
    valid = None if edges.valid is None else edges.valid.to(torch.uint8).contiguous()
    return gates, reset, valid


def _block(choice: Choice, steps: int, rows: int, row_bytes: int) -> int:
    """Steps of a block."""
    if choice.block is not None:
        return min(steps, choice.block)
    wanted = max(BLOCK_ROWS, BLOCK_BYTES // max(1, row_bytes))
    count = -(-steps * rows // wanted)
    return max(1, -(-steps // max(1, count)))


def _project_and_run(
    layer: Recurrence,
    choice: Choice,
    inputs: Tensor,
    weight_ih: Tensor,
    bias_ih: Tensor | None,
    kept: Tensor | None,
    initial: State,
    path: State,
) -> None:
    """Project each block of inputs to where its states or kept blocks will lie, and run it there."""
    steps, rows = inputs.shape[:2]
    across = weight_ih.shape[0]
    length = _block(choice, steps, rows, across * inputs.element_size())
    products = _products(choice, inputs)
    panels = products.panels(_plain(weight_ih), True)
    bias_ih = None if bias_ih is None else _plain(bias_ih)
    one = path[0].shape[-1] == across
    own = None if one or kept is not None else room("block", (length, rows, across), inputs.dtype)
    for begin in range(0, steps, length):
        end = min(steps, begin + length)
        place = path[0][begin:end] if one else own[: end - begin] if kept is None else kept[begin:end]  # pyright: ignore
        drive = place[..., :across]
        products.rows(inputs[begin:end].flatten(0, 1), panels, place.flatten(0, 1)[:, :across], bias_ih)
        layer.forward(begin, end, drive, None if kept is None else kept[begin:end], initial, path)


def _walk_back(ctx: Any, cotangents: tuple[Tensor | None, ...]):
    """The gradients of inputs, weight_ih, bias_ih, weight, bias, initial and fresh states."""
    kind, parts = ctx.kind, CELLS[ctx.kind].parts
    saved = list(ctx.saved_tensors)
    weight_ih: Any = saved.pop(0) if ctx.projected else None
    inputs: Any = saved.pop(0) if ctx.projected else None
    kept = saved.pop() if CELLS[kind].kept else None
    weight, path = saved[0], saved[1 : parts + 1]
    initial, fresh = saved[parts + 1 : 2 * parts + 1], saved[2 * parts + 1 :]
    wants_inputs, wants_ih, wants_bias_ih, wants_weight, wants_bias = ctx.needs_input_grad[4:9]
    steps, rows, size = path[0].shape
    gru, diagonal = kind == "gru", kind == "diagonal"
    across = 1 if diagonal else weight.shape[0] // size
    columns = GRU_COLUMNS if gru else across

    layer = Recurrence(ctx.choice.native, kind, weight, rows, None, ctx.choice.forced, ctx.choice.split)
    gates, reset, valid = ctx.at_edges
    layer.edges(gates, reset, valid, fresh)
    layer.pack(BACK)
    given = tuple(None if part is None else _plain(part) for part in cotangents)
    flow = tuple(map(torch.zeros_like, initial))
    fresh_back = tuple(map(torch.zeros_like, fresh))
    sums: Tensor | None = None
    if diagonal and wants_weight:
        sums = torch.zeros(layer.job.threads, size, dtype=torch.complex128 if weight.is_complex() else torch.float64)
    length = steps
    if weight_ih is not None:
        length = _block(ctx.choice, steps, rows, columns * size * weight.element_size())
    shape = (length, rows, columns * size)
    # Without a projection these are the drive's cotangents, and belong to the caller.
    product = weight.new_empty(shape) if weight_ih is None else room("block", shape, weight.dtype)
    products = _products(ctx.choice, weight)
    dweight = torch.empty_like(weight) if wants_weight and not diagonal else None
    dweight_ih: Any = None
    panels: Tensor | None = None
    dinputs: Any = product[..., (columns - across) * size :] if weight_ih is None else None
    if weight_ih is not None:
        weight_ih = _plain(weight_ih)
        dweight_ih = torch.empty_like(weight_ih) if wants_ih else None
        if wants_inputs:
            dinputs, panels = torch.empty_like(inputs), products.panels(weight_ih, False)
    dbias = None
    if wants_bias_ih or wants_bias:
        dbias = weight.new_zeros(columns * size)
    for end in range(steps, 0, -length):
        begin = max(0, end - length)
        block = product[: end - begin]
        layer.back(begin, end, given, kept, initial, path, flow, block, fresh_back, sums)
        flat = block.flatten(0, 1)
        inner, outer = flat[:, : across * size], flat[:, (columns - across) * size :]
        x: Any = inputs[begin:end].flatten(0, 1) if weight_ih is not None else None
        if panels is not None:
            products.rows(outer, panels, dinputs[begin:end].flatten(0, 1))
        # Where both weights have gradients they, and the biases', come from one pass over the cotangents.
        both = dweight is not None and dweight_ih is not None
        more = end < steps
        if dweight is not None:
            for rows_of, h, anew in _before(rows, begin, end, initial[0], path[0], reset, fresh):
                second = None if dweight_ih is None else (x[rows_of], dweight_ih)
                d, sums_of_d = (inner, None) if dweight_ih is None else (flat, dbias)
                products.columns(d[rows_of], h, dweight, sums_of_d, more, second, anew)
                more = True
        if dweight_ih is not None and not both:
            products.columns(outer, x, dweight_ih, None, more)
        if dbias is not None and not both:
            dbias += flat.sum(0)
    if sums is not None:
        dweight = sums.sum(0).to(weight.dtype)
    dbias_ih = dbias[(columns - across) * size :] if dbias is not None and wants_bias_ih else None
    dbias = dbias[: across * size] if dbias is not None and ctx.has_bias and wants_bias else None
    if gru:
        # The kernel's order is n, r, z.
        dweight, dbias = (None if part is None else part.roll(-size, 0) for part in (dweight, dbias))
    return dinputs, dweight_ih, dbias_ih, dweight, dbias, *flow, *fresh_back


def _products(choice: Choice, like: Tensor) -> Products | TorchProducts:
    return TorchProducts() if like.is_complex() else Products(choice.native, like.dtype, choice.forced)


def _before(
    rows: int, begin: int, end: int, initial: Tensor, path: Tensor, reset: Tensor | None, fresh: list[Tensor]
) -> Iterator[tuple[slice, Tensor, tuple[Tensor, Tensor | None] | None]]:
    """The rows of a block, in parts, each with the states before its steps and which of them start anew."""
    numbers = None if reset is None else reset[begin:end].flatten()

    def anew(part: slice) -> tuple[Tensor, Tensor | None] | None:
        return None if numbers is None else (numbers[part], fresh[0] if fresh else None)

    if begin:
        yield slice(None), path[begin - 1 : end - 1].flatten(0, 1), anew(slice(None))
        return
    yield slice(0, rows), initial, anew(slice(0, rows))
    if end > 1:
        yield slice(rows, None), path[: end - 1].flatten(0, 1), anew(slice(rows, None))
