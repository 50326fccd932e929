"""One layer of ours and one of torch.nn with the same weights, and what must be the same about them."""

from __future__ import annotations

import torch
from torch import nn

import chronograd as cg

PAIRS = {
    "tanh": (cg.RNN, nn.RNN, {"nonlinearity": "tanh"}),
    "relu": (cg.RNN, nn.RNN, {"nonlinearity": "relu"}),
    "gru": (cg.GRU, nn.GRU, {}),
    "lstm": (cg.LSTM, nn.LSTM, {}),
}


def pair(kind, *sizes, dtype=torch.float64, **options):
    """Our layer and torch's with the same weights."""
    ours, theirs, more = PAIRS[kind]
    ours, theirs = ours(*sizes, **options, **more).to(dtype), theirs(*sizes, **options, **more).to(dtype)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def tensors(state):
    return state if isinstance(state, tuple) else (state,)


def state_of(kind, *shape, dtype=torch.float64):
    return tuple(torch.randn(shape, dtype=dtype) for _ in range(2 if kind == "lstm" else 1))


def as_hx(kind, state):
    """A state as the layer takes it."""
    return None if state is None else tuple(state) if kind == "lstm" else state[0]


def assert_same(ours, theirs, x, hx=None, rtol=1e-10, atol=1e-11, seed=0):
    """The same numbers and the same gradients of input, state and every parameter."""
    results = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        state = None if hx is None else tuple(h.clone().requires_grad_() for h in hx)
        given = as_hx("lstm" if isinstance(layer, nn.LSTM) else "gru", state)
        torch.manual_seed(seed)
        outputs, final = layer(leaf, given)
        g = torch.Generator().manual_seed(1)
        made = [outputs, *tensors(final)]
        cotangents = [torch.randn(m.shape, dtype=m.dtype, generator=g).to(m.device) for m in made]
        wrt = [leaf, *(state or ()), *layer.parameters()]
        results.append([*made, *torch.autograd.grad(made, wrt, cotangents), torch.get_rng_state()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol * (1 + float(b.detach().abs().max())))
