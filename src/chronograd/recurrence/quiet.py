"""Running a model to look at it, leaving everything as it was, and whether two runs gave the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .states import leaves, tree_map

__all__ = ["alike", "buffers_of", "keep_buffers", "keep_random", "quiet", "settled", "some_gradient", "uncast"]


@contextmanager
def keep_random() -> Iterator[None]:
    """Give back the random numbers that are drawn inside, on the CPU and on the devices in use."""
    state = torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        torch.set_rng_state(state)
        for number, device in enumerate(devices):
            torch.cuda.set_rng_state(device, number)


def buffers_of(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Where a model keeps buffers: each module and name once."""
    return [(module, name) for module in model.modules() for name, held in module._buffers.items() if held is not None]


@contextmanager
def keep_buffers(model: nn.Module) -> Iterator[None]:
    """Undo what the model writes into its buffers (running statistics, counters), or puts in their places."""
    places = buffers_of(model)
    saved = [(buffer, buffer.clone()) for module, name in places if (buffer := module._buffers[name]) is not None]
    try:
        yield
    finally:
        with torch.no_grad():
            for (module, name), (buffer, value) in zip(places, saved):
                module._buffers[name] = buffer
                # What did not change stays untouched, and so fit for a backward pass.
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Without graphs; random numbers and buffers as they were.

    >>> dropout = nn.Dropout()
    >>> before = torch.get_rng_state()
    >>> with quiet(dropout):
    ...     _ = dropout(torch.ones(3))
    >>> bool((torch.get_rng_state() == before).all())
    True
    """
    with torch.no_grad(), keep_random(), keep_buffers(model):
        yield


@contextmanager
def settled(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, and back in the mode that each module was in."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def uncast(*trees: Any) -> tuple[Any, ...]:
    """Where autocast is on: a context without it, and the trees with its half precision as float32, as weights are.
    Anywhere else a context that does nothing, and the trees.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     context, x = uncast(torch.ones(2, dtype=torch.bfloat16))
    ...     with context:
    ...         x.dtype, (x @ x).dtype
    (torch.float32, torch.float32)
    """
    device = next((leaf.device.type for leaf in leaves(list(trees))), "cpu")
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return nullcontext(), *trees
    low = torch.get_autocast_dtype(device)

    def widen(x: Tensor) -> Tensor:
        return x.float() if x.dtype == low else x

    return torch.autocast(device, enabled=False), *(tree_map(widen, tree) for tree in trees)


def some_gradient(tensors: list[Tensor], wrt: list[Tensor]) -> list[Tensor]:
    """The gradient of one fixed mixture of tensors: cos(1), cos(2), ... times their numbers."""
    real = [torch.view_as_real(x) if x.is_complex() else x for x in tensors if x.requires_grad]
    if not real or not wrt:
        return []
    mixture = [(torch.arange(1.0, x.numel() + 1, device=x.device).cos() * x.flatten()).sum() for x in real]
    found = torch.autograd.grad(mixture, wrt, allow_unused=True)
    return [torch.zeros_like(x) if grad is None else grad for x, grad in zip(wrt, found)]


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether two runs gave the same, up to rounding."""
    if not (a.is_floating_point() or a.is_complex()) or a.shape != b.shape or a.dtype != b.dtype:
        return a.shape == b.shape and a.dtype == b.dtype
    tolerance = torch.finfo(a.dtype).eps ** 0.5
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
