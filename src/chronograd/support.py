"""What goes with what: the one table of truncation x mode x model, and its refusals.

The door (``gradient``) asks it before anything runs; the documentation's table and the contract tests are made from it.

Models come in three kinds (see ``recurrence.adapters``): *layers* (the state is that of recurrent layers and nothing
else, however deep they sit), *opaque* (any other model of the contract) and *whole* (it hides its steps:
bidirectional layers, attention over time).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .modes import Mode
from .truncation import Truncation

__all__ = ["KINDS", "MODES", "ROWS", "Support", "every", "find", "refuse", "row_of", "table"]

Door = Literal["value_and_grad", "unroll"]
KINDS = ("layers", "opaque", "whole")
MODES = ("reverse", "reverse within a budget", "scan", "forward")


@dataclass(frozen=True)
class Support:
    """Whether a combination works: ``how`` it is computed, or ``why`` it is refused and what to take instead
    (``remedy``).
    """

    how: str = ""
    why: str = ""
    remedy: str = ""

    def __bool__(self) -> bool:
        return not self.why


# One row for each truncation; a window is gates or spans by its two numbers.
ROWS = ("full", "chunks", "window k2 <= k1", "window k2 > k1", "random", "adaptive")

_WAYS = {"full": "full", "chunks": "cuts", "window k2 <= k1": "cuts", "random": "gates"}
_SPANS = ("window k2 > k1", "adaptive")
_AT_ONCE = "all steps at once; linear and diagonal layers on a CPU by the kernels' loop, which is faster there"
_HOW = {
    ("reverse", "layers", "full"): "one pass",
    ("reverse", "layers", "cuts"): "stretches between cuts as rows of a batch (few rows; else one by one)",
    ("reverse", "layers", "gates"): "one pass, the gates inside the layers",
    ("reverse", "layers", "spans"): "one forward pass, then windows as rows of a batch",
    ("reverse", "opaque", "full"): "one pass",
    ("reverse", "opaque", "cuts"): "stretch by stretch",
    ("reverse", "opaque", "gates"): "piece by piece between the steps where a gate is not 1",
    ("reverse", "opaque", "spans"): "one forward pass, then windows as rows of a batch",
    ("reverse", "whole", "full"): "one call, no history",
    **{
        ("reverse within a budget", kind, way): how
        for kind in ("layers", "opaque")
        for way, how in {
            "full": "forward once, then segments run again from the last to the first",
            "cuts": "stretch by stretch, those that do not fit in segments run again",
            "gates": "the same, the gates inside the segments",
            "spans": "windows as rows of a batch, as many as fit; one that does not, in segments run again",
        }.items()
    },
    **{
        ("forward", kind, way): f"step by step with the data{how}"
        for kind in ("layers", "opaque")
        for way, how in {
            "full": "",
            "cuts": ", the influence dropped at cuts",
            "gates": ", the gates multiply the influence",
        }.items()
    },
    ("scan", "layers", "full"): _AT_ONCE,
    ("scan", "layers", "cuts"): f"{_AT_ONCE}; cuts are zeros among the Jacobians",
    ("scan", "layers", "gates"): f"{_AT_ONCE}; gates are factors of the Jacobians",
}
_WHOLE = Support(
    why="the model hides its steps",
    remedy="use cg.Full() on whole sequences in one call, or a model whose steps can be told apart",
)
_WHOLE_IN_PARTS = Support(
    why="the model hides its steps, so no part of them can be run again", remedy="use mode=cg.Reverse() and cg.Full()"
)
_NO_WINDOWS = Support(
    why="a window's losses reach back over steps that other losses do not, so no one graph of the outputs holds it",
    remedy="use cg.value_and_grad, or gates: cg.Chunks, cg.RandomTruncation, cg.Window with k2 <= k1",
)


def row_of(truncation: Truncation) -> str:
    """The row of the table that ``truncation`` belongs to.

    >>> import chronograd as cg
    >>> row_of(cg.Window(1, 5))
    'window k2 > k1'
    """
    if truncation.name == "window":
        return "window k2 > k1" if truncation.primitive == "spans" else "window k2 <= k1"
    return truncation.name


_NO_LOOP = Support(
    why="its loop over time is not to be seen: neither recurrent layers nor a cell in cg.Recurrent",
    remedy="use mode=cg.Reverse(), or put the step into cg.Recurrent(cell)",
)
_NO_SCAN_OF_WINDOWS = Support(
    why="windows that overlap are rows of a batch already, and no longer than k2 steps",
    remedy="use mode=cg.Reverse(), or gates: cg.Chunks, cg.RandomTruncation, cg.Window with k2 <= k1",
)
_NO_WINDOWS_FORWARD = Support(
    why="windows that overlap would each need an influence of their own",
    remedy="use mode=cg.Reverse(), or gates: cg.Chunks, cg.RandomTruncation, cg.Window with k2 <= k1",
)
_WHOLE_FORWARD = Support(
    why="the model hides its steps, so it cannot walk forward with the data",
    remedy="use mode=cg.Reverse() and cg.Full()",
)
_REVERSE_ONLY = Support(
    why="it gives outputs to walk back from", remedy="use cg.value_and_grad, which takes every mode"
)


def find(row: str, mode: str, kind: str, door: Door = "value_and_grad") -> Support:
    """The entry for a truncation's row, a mode's name and a kind of model.

    >>> bool(find("chunks", "reverse", "whole"))
    False
    """
    if row not in ROWS or mode not in MODES or kind not in KINDS:
        return Support(
            why=f"{row} x {mode} x {kind} is not known",
            remedy=f"use one of {', '.join(ROWS)} with mode {' or '.join(MODES)}",
        )
    if door == "unroll" and mode != "reverse":
        return _REVERSE_ONLY
    if kind == "whole" and (row != "full" or mode != "reverse"):
        return {"reverse": _WHOLE, "scan": _NO_LOOP, "forward": _WHOLE_FORWARD}.get(mode, _WHOLE_IN_PARTS)
    if door == "unroll" and row in _SPANS:
        return _NO_WINDOWS
    if mode == "scan" and (kind == "opaque" or row in _SPANS):
        return _NO_LOOP if kind == "opaque" else _NO_SCAN_OF_WINDOWS
    if mode == "forward" and row in _SPANS:
        return _NO_WINDOWS_FORWARD
    way = _WAYS.get(row, "spans")
    return Support(_HOW[mode, kind, "gates" if door == "unroll" and way == "cuts" else way])


def every(door: Door = "value_and_grad") -> Iterator[tuple[str, str, str, Support]]:
    """All entries: (row, mode, kind, support)."""
    for row in ROWS:
        for mode in MODES:
            for kind in KINDS:
                yield row, mode, kind, find(row, mode, kind, door)


def refuse(truncation: Truncation, mode: Mode, kind: str, hides: str | None, door: Door) -> None:
    """Raise where a combination has no meaning.

    Raises:
        ValueError: in one line: what, why, and what to do instead.
    """
    support = find(row_of(truncation), mode.row, kind, door)
    if not support:
        reason = f"{support.why} ({hides})" if hides else support.why
        raise ValueError(f"{door} with truncation {truncation} and mode {mode}: {reason}; {support.remedy}")


def table(door: Door = "value_and_grad", mode: str = "reverse") -> str:
    """The table of a mode as Markdown: one row for each truncation, one column for each kind of model.

    >>> print(table("unroll").splitlines()[0])
    | truncation | layers | opaque | whole |
    """
    lines = [f"| truncation | {' | '.join(KINDS)} |", "|---|" + "---|" * len(KINDS)]
    for row in ROWS:
        cells = [find(row, mode, kind, door) for kind in KINDS]
        lines.append(f"| {row} | {' | '.join(cell.how if cell else 'refused: ' + cell.why for cell in cells)} |")
    return "\n".join(lines)
