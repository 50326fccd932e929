"""``cg.RNN``, ``GRU`` and ``LSTM`` against torch's own, forward and backward."""

from __future__ import annotations

from functools import partial
from statistics import median

import torch
from timing import interleaved, markdown
from torch import Tensor, nn

import chronograd as cg
from chronograd.kernels.library import library

SHAPES = (
    (35, 32, 28, 256),
    (35, 32, 28, 512),
    (128, 32, 64, 128),
    (512, 16, 64, 256),
    (1000, 32, 128, 128),
    (1000, 1, 32, 64),
    (1000, 1, 64, 256),
    (4096, 4, 32, 64),
)


def forward_backward(layer: nn.Module, inputs: Tensor) -> None:
    outputs, _ = layer(inputs)
    layer.zero_grad()
    outputs.sum().backward()


def report(rounds: int) -> str:
    """The section of the page."""
    torch.manual_seed(0)
    rows = []
    for steps, batch, features, units in SHAPES:
        inputs = torch.randn(steps, batch, features)
        row = [f"{steps}, {batch}, {features}, {units}"]
        for name in ("RNN", "GRU", "LSTM"):
            ours, theirs = getattr(cg, name)(features, units), getattr(nn, name)(features, units)
            timed = interleaved(
                {"theirs": partial(forward_backward, theirs, inputs), "ours": partial(forward_backward, ours, inputs)},
                rounds,
            )
            usual, mine = median(timed["theirs"]), median(timed["ours"])
            row += [f"{1e3 * usual:.1f}", f"{1e3 * mine:.1f}", f"{mine / usual:.2f}"]
        rows.append(row)
    headings = ["steps, rows, features, units"]
    for name in ("RNN", "GRU", "LSTM"):
        headings += [f"torch {name}, ms", f"cg.{name}, ms", "ratio"]
    where = "the compiled kernels" if library() else "plain torch operations (the kernels were not built)"
    return (
        "## Layers\n\n"
        "Forward and backward of one layer, float32. A ratio below 1 means that ours takes less time. Ours run on "
        f"{where}; torch's LSTM runs in a fused library kernel on this machine, its RNN and GRU do not. "
        "`benchmarks/native.py` measures the kernels against the matrix products alone.\n\n" + markdown(headings, rows)
    )
