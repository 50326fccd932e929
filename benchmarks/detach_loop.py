"""The detach loop of every tutorial against ``value_and_grad`` with aligned ``Chunks``: the same gradient, what cost?

A pass over one stream of ten chunks of 35 steps, gradient by gradient and without an optimizer, so that only the way
to the gradient is timed.
"""

from __future__ import annotations

from functools import partial
from statistics import median

import torch
from cases import differ
from timing import interleaved, markdown
from torch import Tensor, nn

import chronograd as cg

CHUNK, CALLS, ROWS, FEATURES, UNITS = 35, 10, 32, 64, 256


class Model(nn.Module):
    """A user's own model: a recurrent layer and a readout."""

    def __init__(self, layer: nn.Module, units: int = UNITS) -> None:
        super().__init__()
        self.layer = layer
        self.readout = nn.Linear(units, FEATURES)

    def forward(self, inputs: Tensor, state: object = None) -> tuple[Tensor, object]:
        outputs, state = self.layer(inputs, state)
        return self.readout(outputs), state


def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean(-1)


def detach_loop(model: Model, chunks: Tensor) -> list[dict[str, Tensor]]:
    """Written by hand."""
    state, gradients = None, []
    for chunk in chunks:
        if state is not None:
            state = tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()
        outputs, state = model(chunk, state)
        model.zero_grad()
        loss_fn(outputs, chunk).mean().backward()
        gradients.append({name: value.grad for name, value in model.named_parameters()})
    return gradients


def with_chunks(model: Model, chunks: Tensor) -> list[dict[str, Tensor]]:
    """The same by ``value_and_grad``."""
    carry, gradients = None, []
    for chunk in chunks:
        gradient, carry = cg.value_and_grad(model, loss_fn, chunk, chunk, carry, truncation=cg.Chunks(CHUNK))
        gradient.assign(model)
        gradients.append(gradient.grads)
    return gradients


def in_one_call(model: Model, chunks: Tensor) -> None:
    """All chunks in one call: those between common cuts run side by side where the layers are known."""
    whole = chunks.flatten(0, 1)
    gradient, _ = cg.value_and_grad(model, loss_fn, whole, whole, truncation=cg.Chunks(CHUNK))
    gradient.assign(model)


def difference(ours: list[dict[str, Tensor]], theirs: list[dict[str, Tensor]]) -> float:
    """The largest difference (``differ``) of any chunk's gradients."""
    return max(map(differ, ours, theirs))


def report(rounds: int) -> str:
    """The section of the page."""
    torch.manual_seed(0)
    chunks = torch.randn(CALLS, CHUNK, ROWS, FEATURES)
    rows = []
    for name, theirs, ours in (
        ("torch.nn.LSTM in both", nn.LSTM, nn.LSTM),
        ("torch.nn.GRU in both", nn.GRU, nn.GRU),
        ("torch.nn.GRU in the loop, cg.GRU in ours", nn.GRU, cg.GRU),
        ("torch.nn.LSTM in the loop, cg.LSTM in ours", nn.LSTM, cg.LSTM),
    ):
        usual, other = Model(theirs(FEATURES, UNITS)), Model(ours(FEATURES, UNITS))
        other.load_state_dict(usual.state_dict())
        error = difference(with_chunks(other, chunks), detach_loop(usual, chunks))
        timed = interleaved(
            {
                "loop": partial(detach_loop, usual, chunks),
                "ours": partial(with_chunks, other, chunks),
                "one": partial(in_one_call, other, chunks),
            },
            rounds,
        )
        loop, mine, one = (median(timed[each]) for each in ("loop", "ours", "one"))
        rows.append(
            (
                name,
                f"{loop:.3f}",
                f"{mine:.3f}",
                f"{mine / loop:.2f}",
                f"{one:.3f}",
                f"{one / loop:.2f}",
                f"{error:.0e}" if error else "0",
            )
        )
    table = markdown(
        ("layer", "detach loop, s", "aligned calls, s", "ratio", "one call, s", "ratio", "gradient difference"), rows
    )
    return (
        "## The detach loop\n\n"
        f"One pass over {CALLS} chunks of {CHUNK} steps, {ROWS} rows, {FEATURES} features, {UNITS} units, a linear "
        "readout, float32, no optimizer. *Aligned calls*: `value_and_grad(..., truncation=cg.Chunks(35))` once for "
        "each chunk. *One call*: all 350 steps given at once. The difference is the largest of any gradient entry in "
        "any chunk, relative to the largest entry of that parameter's gradient.\n\n" + table
    )
