"""Times the compiled kernels: forward and backward of one layer over nine shapes, against torch.nn and against the
matrix products alone.

    python benchmarks/native.py [LIBRARY.so] [--kinds tanh,gru,lstm] [--repeats 9] [--shapes 0,1,2]

The limit is 6 T B H (d + H) operations a gate block at the rate of torch's own (T B x H)(H x H) product. Everything of
one row is measured interleaved; figures are medians.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

import layers
import torch
from timing import interleaved

from chronograd.kernels import Edges, library, run_projected
from chronograd.kernels.compiled import Choice

SHAPES = [*layers.SHAPES, (200, 128, 64, 1024)]
TORCH = {"tanh": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}


def compare(kind: str, shape: tuple[int, int, int, int], repeats: int, choice: Choice) -> tuple[float, ...]:
    """Medians in seconds: torch.nn, the kernels, the limit."""
    steps, rows, inputs, size = shape
    torch.manual_seed(0)
    layer = TORCH[kind](inputs, size)
    x = torch.randn(steps, rows, inputs, requires_grad=True)
    cotangent = torch.randn(steps, rows, size)
    initial = tuple(torch.zeros(rows, size) for _ in range(2 if kind == "lstm" else 1))
    weights = dict(layer.named_parameters())
    wi, w, bi, b = (weights[f"{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    edges = Edges()
    left, right = torch.randn(steps * rows, size), torch.randn(size, size)
    out = torch.empty(steps * rows, size)

    def clear() -> None:
        x.grad = None
        for part in weights.values():
            part.grad = None

    def theirs() -> None:
        layer(x)[0].backward(cotangent)

    def ours() -> None:
        run_projected(kind, x, wi, bi, initial, w, b, edges, None, choice)[0].backward(cotangent)

    def product() -> None:
        torch.mm(left, right, out=out)

    timed = interleaved({"theirs": theirs, "ours": ours, "product": product}, repeats, before=clear)
    usual, mine, alone = (statistics.median(timed[name]) for name in ("theirs", "ours", "product"))
    return usual, mine, alone * 3 * (inputs + size) / size * (w.shape[0] // size)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("library", nargs="?", type=Path)
    parser.add_argument("--kinds", default="tanh,gru,lstm")
    parser.add_argument("--shapes", default=",".join(map(str, range(len(SHAPES)))))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--split", default="auto")
    parser.add_argument("--isa")
    given = parser.parse_args()
    native = library.load(given.library) if given.library else library.library()
    choice = Choice(given.isa, given.split, native=native)
    for kind in given.kinds.split(","):
        ratios: list[tuple[float, float]] = []
        for number in map(int, given.shapes.split(",")):
            shape = SHAPES[number]
            theirs, ours, limit = compare(kind, shape, given.repeats, choice)
            ratios.append((theirs / ours, ours / limit))
            print(
                f"{kind:5} {shape!s:24} torch {theirs * 1e3:8.2f} ms  ours {ours * 1e3:8.2f} ms"
                f"  ratio {theirs / ours:6.2f}  to the limit {ours / limit:5.2f}",
                flush=True,
            )
        means = [math.exp(statistics.fmean(math.log(pair[part]) for pair in ratios)) for part in (0, 1)]
        print(f"{kind:5} geometric means: ratio {means[0]:.2f}, to the limit {means[1]:.2f}", flush=True)


if __name__ == "__main__":
    main()
