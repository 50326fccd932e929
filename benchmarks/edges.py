"""What gates and resets cost: the same layer with them and without, on the kernels' own edges and through the door."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from cases import KINDS, SHAPES, Case, Shape
from timing import geometric_mean, interleaved, markdown, medians
from torch import Tensor

import chronograd as cg
from chronograd.kernels import Edges

__all__ = ["report"]

# Cuts and resets of each row come about every 35 steps.
EVERY = 35
MEASURED = (SHAPES[2], SHAPES[3], SHAPES[4], SHAPES[7])


def at_random(shape: Shape) -> Tensor:
    """Where rows are cut or start anew: (T, B), each row at places of its own."""
    return torch.rand(shape.steps, shape.rows, generator=torch.Generator().manual_seed(1)) < 1 / EVERY


def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean(-1)


def on_kernels(case: Case) -> dict[str, Callable[[], object]]:
    """The layer's loop over time, given edges."""
    where = at_random(case.shape)
    return {
        "plain": case.run_loop,
        "gates": partial(case.run_loop, Edges(gates=1 - where.float())),
        "resets": partial(case.run_loop, Edges(reset=where)),
    }


def through_door(case: Case) -> dict[str, Callable[[], object]]:
    """``value_and_grad`` in full, cut at random, and with resets."""
    ask = partial(cg.value_and_grad, case.ours, loss_fn, case.inputs.detach(), case.cotangent)
    return {
        "plain door": ask,
        "gates door": partial(ask, truncation=cg.RandomTruncation(EVERY), seed=1),
        "resets door": partial(ask, reset=at_random(case.shape)),
    }


def report(rounds: int, threads: int) -> str:
    """The section of the page."""
    torch.set_num_threads(threads)
    rows, ratios = [], []
    for name in KINDS:
        for shape in MEASURED:
            case = Case(name, shape)
            functions = {**on_kernels(case), **through_door(case)}
            took = medians(interleaved(functions, rounds, case.clear, at_least=1.0))
            cells = [f"cg.{name}: {shape}"]
            for door in ("", " door"):
                plain = took[f"plain{door}"]
                costs = [took[f"{what}{door}"] / plain for what in ("gates", "resets")]
                cells += [f"{1e3 * plain:.2f}", *(f"{cost:.2f}" for cost in costs)]
                ratios.append((door, *costs))
            rows.append(cells)
    means = []
    for door in ("", " door"):
        columns = list(zip(*((gates, resets) for whose, gates, resets in ratios if whose == door)))
        means += ["", *(f"{geometric_mean(column):.2f}" for column in columns)]
    rows.append(["geometric mean", *means])
    headings = ("layer: steps, rows, features, units", "layer, ms", "with gates", "with resets")
    headings += ("value_and_grad, ms", "with gates", "with resets")
    return (
        "## Gates and resets\n\n"
        f"Forward and backward on {threads} threads, float32, with and without: every row is cut, or starts anew, at "
        f"random places of its own, every {EVERY} steps on average. *Layer* is the layer's loop over time with its "
        "products; the next two columns are the times with the kernels' own gates and resets over it. "
        "*value_and_grad* is the whole call under `Full()`, loss included; over it, the same call with "
        f"`RandomTruncation({EVERY})`, its draws included, and with `reset=`. 1.05 means 5% more time.\n\n"
        + markdown(headings, rows)
    )
