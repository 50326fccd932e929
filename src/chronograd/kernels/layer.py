"""One layer over time, on the fastest path that serves it: the compiled kernels on the CPU, plain torch elsewhere."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import Parameter

from . import fused, operators, reference, transforms
from .cells import fold_biases
from .compiled import AUTO, KINDS, Call, Choice, Crossings
from .edges import Edges
from .library import library

__all__ = ["as_call", "run_projected", "serves"]

State = tuple[Tensor, ...]
_PROXY = torch._C._TorchDispatchModeKey.PROXY


def _built() -> bool:
    return library() is not None


# What torch.compiler.assume_constant_result does, without its import of the whole compiler.
_built._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def serves(kind: str, weight: Tensor, *tensors: Tensor | None) -> bool:
    """Whether the compiled kernels have this kind and take these tensors: on the CPU, all float32 or all float64
    (complex too for the diagonal recurrence), of torch's own types.

    >>> serves("tanh", torch.zeros(2, 2, dtype=torch.float16)), serves("elstm", torch.zeros(4))
    (False, False)
    """
    if kind not in KINDS:
        return False
    dtypes = (torch.float32, torch.float64) + ((torch.complex64, torch.complex128) if kind == "diagonal" else ())
    if weight.dtype not in dtypes:
        return False
    mixed = torch.is_autocast_enabled("cpu")
    for part in (weight, *tensors):
        if part is None:
            continue
        if part.device.type != "cpu" or type(part) not in (Tensor, Parameter, FakeTensor):
            return False
        if part.dtype != weight.dtype and not mixed:
            return False
    return _built()


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
    choice: Choice = AUTO,
) -> State:
    """Run one layer over time.

    Args:
        kind: a name in ``CELLS``.
        inputs: (T, B, d), T at least 1.
        weight_ih: (G, d), and ``bias_ih`` (G,) or None: x_t W_ih^T + b_ih drives the recurrence.
        initial: the state before the first step, (B, H) each.
        weight: (G, H) recurrent weight ((G,) for element-wise kinds); ``bias`` (G,) or None is added to its product.
        edges: gates, resets and frozen rows.
        fresh: the initial states of the rows that start anew, (R, H) each, in the order of
            ``edges.reset.nonzero()``; None is zeros.
        choice: what tests and benchmarks force.

    Returns:
        The states after every step, (T, B, H) each.

    >>> x, one = torch.ones(3, 1, 1), torch.ones(1, 1)
    >>> run_projected("linear", x, one, None, (torch.zeros(1, 1),), 0.5 * one, None, Edges())[0].flatten()
    tensor([1.0000, 1.5000, 1.7500])
    """
    states = (*initial, *fresh) if fresh else initial
    if not serves(kind, weight, inputs, weight_ih, bias_ih, bias, *states) and not _called(kind, weight):
        bias_ih, bias = fold_biases(kind, bias_ih, bias)
        drive = torch.nn.functional.linear(inputs, weight_ih, bias_ih)
        return reference.run_layer(kind, drive, initial, weight, bias, edges, fresh)
    device = weight.device.type
    mixed = torch.is_autocast_enabled(device)
    if mixed:
        # Sums over many steps are kept in the precision of the recurrent weight.
        inputs, states = inputs.to(weight.dtype), tuple(part.to(weight.dtype) for part in states)
        weight_ih = weight_ih.to(weight.dtype)
        bias_ih, bias = (None if part is None else part.to(weight.dtype) for part in (bias_ih, bias))
    call = Call(kind, inputs, weight_ih, bias_ih, weight, bias, _crossings(edges, weight, bool(fresh)), states)
    with torch.autocast(device, enabled=False) if mixed else nullcontext():
        if _watched() or any(type(part) is FakeTensor for part in (inputs, weight)):
            return operators.run(call)
        if torch._C._are_functorch_transforms_active():
            return transforms.run(call)
        return fused.run(call, choice)


def as_call(
    kind: str,
    inputs: Tensor,
    weight_ih: Tensor,
    bias_ih: Tensor | None,
    initial: State,
    weight: Tensor,
    bias: Tensor | None,
    edges: Edges,
    fresh: State | None = None,
) -> Call | None:
    """The same arguments as ``compiled.forward`` and ``compiled.back`` take them; None where these do not serve."""
    states = (*initial, *fresh) if fresh else initial
    if not serves(kind, weight, inputs, weight_ih, bias_ih, bias, *states) or _watched():
        return None
    return Call(kind, inputs, weight_ih, bias_ih, weight, bias, _crossings(edges, weight, bool(fresh)), states)


def _called(kind: str, weight: Tensor) -> bool:
    """Whether plain torch is called as the compiled kernels are, for a kind that they do not have: by compilers and
    tracers, which would write down the loop's steps, and by ``torch.func``, which cannot look into the reference's node
    of autograd. Not by other modes: one that counts bytes is to see those of the loop.
    """
    if kind in KINDS:
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._get_dispatch_mode(_PROXY) is not None:
        return weight.device.type == "cpu"
    return torch._C._are_functorch_transforms_active()


def _watched() -> bool:
    """Whether a compiler, a tracer or a mode looks on, which sees operators of torch and nothing else."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack() > 0


def _crossings(edges: Edges, weight: Tensor, numbered: bool) -> Crossings:
    """Gates, resets and frozen rows as the kernels take them."""
    if edges.plain:
        return Crossings()
    gates = None if edges.gates is None else edges.gates.to(weight.real.dtype)
    reset = None
    if edges.reset is not None:
        # Without fresh states the numbers only say where.
        reset = edges.fresh_rows() if numbered else edges.reset.to(torch.int32) - 1
        reset = reset.to(torch.int32)  # pyright: ignore[reportOptionalMemberAccess]
    valid = None if edges.valid is None else edges.valid.to(torch.uint8)
    return Crossings(gates, reset, valid)
