"""The training curve: the loss of every update, smoothed, and every validation, in bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from chronograd.style import COLOURS, INK, require_matplotlib, style, tint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_curve", "smooth"]


def smooth(values: Sequence[float], memory: float = 0.95) -> list[float]:
    """The exponential mean of the values so far, with the weight of what came before the first taken out.

    >>> smooth([4.0, 4.0, 4.0])
    [4.0, 4.0, 4.0]
    >>> smooth([0.0, 1.0], memory=0.5)[1]
    0.6666666666666666
    """
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = memory * total + value, memory * weight + 1.0
        means.append(total / weight)
    return means


def draw_curve(metrics: Sequence[Mapping[str, Any]], unit: str = "character") -> Figure:
    """Draw a run's ``metrics.jsonl``: entries with ``bits`` are updates, those with ``validation_bits`` validations.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: there is no update among the entries.

    >>> entries = [{"step": 1, "bits": 5.0}, {"step": 2, "bits": 4.0}, {"step": 2, "validation_bits": 4.2}]
    >>> len(draw_curve(entries).axes[0].lines)
    3
    """
    updates = [(entry["step"], entry["bits"]) for entry in metrics if "bits" in entry]
    validations = [(entry["step"], entry["validation_bits"]) for entry in metrics if "validation_bits" in entry]
    if not updates:
        raise ValueError("draw_curve: the metrics hold no update")
    require_matplotlib()
    from matplotlib.figure import Figure

    steps, bits = zip(*updates)
    with style():
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(steps, bits, color=tint(COLOURS[1], 0.35), linewidth=0.6)
        axes.plot(steps, smooth(bits), color=COLOURS[1], label="training text, mean of about 20 updates")
        if validations:
            axes.plot(*zip(*validations), color=INK, marker="o", markersize=4, linestyle="--", label="held-out text")
        lowest = min(*smooth(bits), *(value for _, value in validations))
        axes.set(xlabel="updates", title=f"loss, bits per {unit}", xlim=(0, None), ylim=(0.9 * lowest, None))
        axes.legend(loc="upper right")
    return figure
