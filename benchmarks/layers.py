"""``cg.RNN``, ``GRU`` and ``LSTM`` against torch's own, a jitted ``jax.lax.scan`` and the matrix products alone: the
time of forward and backward, and the most memory at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from cases import KINDS, SHAPES, Case, Limit, Shape, differ
from memory import Memory, memory_server
from scan import Scan, jax_python, scan_process
from timing import geometric_mean, interleaved, markdown, medians

from chronograd.kernels.library import library

__all__ = ["report"]

# Short calls have more rounds: in this many seconds.
AT_LEAST = 1.0


@dataclass(frozen=True)
class Row:
    """One layer and shape: seconds of each, bytes at the peak; None where it could not be measured."""

    name: str
    shape: Shape
    torch: float
    ours: float
    limit: float
    scan: float | None = None
    torch_bytes: int | None = None
    our_bytes: int | None = None
    difference: float = 0.0

    @property
    def over_torch(self) -> float:
        return self.torch / self.ours

    @property
    def over_scan(self) -> float | None:
        return None if self.scan is None else self.scan / self.ours

    @property
    def to_limit(self) -> float:
        return self.ours / self.limit

    @property
    def memory(self) -> float | None:
        return None if self.our_bytes is None or not self.torch_bytes else self.our_bytes / self.torch_bytes


def measure(name: str, shape: Shape, rounds: int, scan: Scan | None = None, memory: Memory | None = None) -> Row:
    """One row of a table. Whatever is compared has given the same gradients before it is timed."""
    case = Case(name, shape)
    limit = Limit(case)
    ours = case.gradients(case.ours)
    difference = differ(ours, case.gradients(case.torch))
    functions: dict[str, Callable[[], object]] = {
        "torch": partial(case.run, case.torch),
        "ours": partial(case.run, case.ours),
        "limit": limit.run,
    }
    if scan is not None:
        difference = max(difference, differ(ours, scan.prepare(case)))
        functions["scan"] = scan.run
    limit.run()
    if difference > 1e-3:
        raise RuntimeError(f"{name} {shape}: the gradients differ by {difference:.1e}")

    took = medians(interleaved(functions, rounds, case.clear, AT_LEAST, warm=True))
    theirs, mine = (None if memory is None else memory.bytes(whose, name, shape) for whose in ("torch", "ours"))
    product = limit.seconds(took["limit"])
    return Row(name, shape, took["torch"], took["ours"], product, took.get("scan"), theirs, mine, difference)


def table(rows: Sequence[Row]) -> str:
    """The rows of one layer."""
    headings = ("steps, rows, features, units", "torch, ms", "cg, ms", "torch / cg", "lax.scan, ms", "lax.scan / cg")
    headings += ("limit, ms", "cg / limit", "torch, MB", "cg, MB", "cg / torch")
    return markdown(
        headings,
        [
            (
                str(row.shape),
                _thousandths(row.torch),
                _thousandths(row.ours),
                _ratio(row.over_torch),
                _thousandths(row.scan),
                _ratio(row.over_scan),
                _thousandths(row.limit),
                _ratio(row.to_limit),
                _megabytes(row.torch_bytes),
                _megabytes(row.our_bytes),
                _ratio(row.memory),
            )
            for row in rows
        ],
    )


def summary(rows: Sequence[Row]) -> str:
    """The geometric mean of each ratio over the shapes, and the worst shape's in brackets."""
    lines = []
    for name in KINDS:
        mine = [row for row in rows if row.name == name]
        lines.append(
            (
                f"cg.{name}",
                _mean([row.over_torch for row in mine], min),
                _mean([row.over_scan for row in mine], min),
                _mean([row.to_limit for row in mine], max),
                _mean([row.memory for row in mine], max),
            )
        )
    return markdown(("layer", "torch / cg", "lax.scan / cg", "cg / limit", "peak memory, cg / torch"), lines)


def remarks(rows: Sequence[Row]) -> str:
    """Where ours is not the faster one: what a mean hides."""
    found = []
    for what, slower in (
        ("torch.nn", [row for row in rows if row.over_torch < 0.95]),
        ("the scan", [row for row in rows if row.over_scan is not None and row.over_scan < 0.95]),
    ):
        if slower:
            named = "; ".join(f"{row.name} at {row.shape}" for row in slower)
            found.append(f"Slower than {what} by more than 5%: {named}.")
        elif what == "torch.nn" or any(row.scan for row in rows):
            found.append(f"No shape is slower than {what} by more than 5%.")
    return " ".join(found)


def one_thread(rounds: int) -> str:
    """Times over torch's on one thread, for all shapes but the largest."""
    torch.set_num_threads(1)
    rows = [
        (str(shape), *(_ratio(measure(name, shape, rounds).over_torch) for name in KINDS))
        for shape in SHAPES
        if shape.steps * shape.rows * shape.units**2 < 1e10
    ]
    return markdown(("steps, rows, features, units", *(f"torch / cg.{name}" for name in KINDS)), rows)


def report(rounds: int, threads: int, jax: str | None = None) -> str:
    """The section of the page."""
    torch.set_num_threads(threads)
    rows = []
    with scan_process(jax_python(jax), threads) as scan, memory_server(threads) as memory:
        for name in KINDS:
            for shape in SHAPES:
                row = measure(name, shape, rounds, scan, memory)
                rows.append(row)
                print(
                    f"  {name:4} {shape!s:20}  over torch {_ratio(row.over_torch):>6}  over lax.scan "
                    f"{_ratio(row.over_scan):>5}  to the limit {_ratio(row.to_limit):>5}  memory {_ratio(row.memory)}",
                    flush=True,
                )
    version = scan.version if scan is not None else None
    tables = [f"### {name}\n\n{table([row for row in rows if row.name == name])}" for name in KINDS]
    return "\n\n".join(
        (
            "## Layers",
            _what(threads, version, max(row.difference for row in rows)),
            "Geometric means over the nine shapes, and the worst shape's in brackets:",
            summary(rows),
            remarks(rows),
            *tables,
            "### On one thread",
            one_thread(rounds),
        )
    )


def _what(threads: int, jax: str | None, difference: float) -> str:
    where = "the compiled kernels" if library() else "plain torch operations (the kernels were not built)"
    scan = "*lax.scan* was not measured: jax is not installed here."
    if jax is not None:
        scan = (
            f"*lax.scan* is jax {jax} in a process of its own, which takes turns with the others: inputs projected "
            "before the scan, forward and backward compiled into one function, as many threads (the variable NPROC)."
        )
    return (
        f"Forward and backward of one layer on {threads} threads, float32: the gradients of weights, biases and inputs "
        "from a fixed cotangent of the outputs. *torch / cg* and *lax.scan / cg* are how many times as long the others "
        "take; *cg / limit*, and *cg / torch* of memory, are better the smaller they are. "
        f"Ours run on {where}; torch's LSTM runs in a fused library kernel, its RNN and GRU do not. {scan} All gave "
        f"the same gradients, to {difference:.0e} of the largest entry of each.\n\n"
        "*Limit* is what the matrix products alone take: 6 T B H (d + H) operations for each of a cell's blocks of "
        "units, at the rate of torch's own (T B, H) by (H, H) product, measured in the same rounds. Below 1 means "
        "faster than that rate.\n\n"
        "*MB* is the most memory at once beyond what the caller holds: resident anonymous memory at the peak of a "
        "second call, less what there was before the first call, in a fresh process whose allocator gives back at once "
        "what is freed. Outputs, the inputs' gradient, caches and scratch memory count; inputs, cotangent, weights and "
        "the weights' gradients do not."
    )


def _thousandths(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.2f}" if seconds < 0.01 else f"{1e3 * seconds:.1f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.1f}"


def _mean(values: Sequence[float | None], worst: Callable[[Sequence[float]], float]) -> str:
    measured = [value for value in values if value is not None]
    return f"{geometric_mean(measured):.2f} ({worst(measured):.2f})" if measured else "-"
