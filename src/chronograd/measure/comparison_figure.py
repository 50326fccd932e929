"""The comparison as a figure: one row for each candidate, its error, direction, time and memory side by side."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING

from chronograd.style import COLOURS, FAINT, INK, require_matplotlib, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .comparison import Comparison

__all__ = ["draw_comparison"]

ORANGE, BLUE, GREEN = COLOURS[0], COLOURS[1], COLOURS[2]


def draw_comparison(comparison: Comparison) -> Figure:
    """Bias and noise, cosine, seconds and megabytes, by candidate; the recommended one is marked.

    Raises:
        ImportError: matplotlib is missing.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    rows = comparison.candidates
    places = list(range(len(rows)))[::-1]
    with style():
        figure = Figure(figsize=(11, 1.7 + 0.42 * len(rows)), layout="constrained")
        error, cosine, time, memory = figure.subplots(1, 4, sharey=True, gridspec_kw={"width_ratios": [2.2, 1.1, 1, 1]})
        _draw_error(error, comparison, places)
        cosine.barh(places, [row.cosine for row in rows], 0.6, xerr=[row.cosine_error for row in rows], color=GREEN)
        cosine.set(title="cosine to exact", xlim=(min(0.0, *(row.cosine for row in rows)), 1.05))
        time.barh(places, [row.seconds for row in rows], 0.6, color=FAINT)
        time.set(title="seconds")
        memory.barh(places, [row.peak_bytes / 1e6 for row in rows], 0.6, color=FAINT)
        memory.set(title="peak MB")
        for axes in (error, cosine, time, memory):
            axes.grid(visible=False, axis="y")
            axes.tick_params(axis="x", labelsize=8.5)
            axes.tick_params(axis="y", length=0)
        for axes in (time, memory):
            axes.locator_params(axis="x", nbins=4)
        best = comparison.recommended
        error.set_yticks(places, [f"{row.label}\nlook-back {row.look_back:.1f}" for row in rows], fontsize=8.5)
        for tick, row in zip(error.get_yticklabels(), rows):
            tick.set_fontweight("bold" if row is best else "normal")
            tick.set_color(INK)
        figure.suptitle("\n".join(wrap(comparison.recommendation, 120)), x=0.01, ha="left", fontsize=10)
    return figure


def _draw_error(axes: Axes, comparison: Comparison, places: list[int]) -> None:
    """Bias and the standard deviation of one estimate, and the two limits they are held against."""
    rows = comparison.candidates
    up, down = [place + 0.16 for place in places], [place - 0.16 for place in places]
    axes.barh(up, [row.sure_bias for row in rows], 0.3, color=BLUE, label="bias")
    axes.barh(down, [row.variance**0.5 for row in rows], 0.3, color=ORANGE, label="standard deviation")
    axes.axvline(comparison.tolerance, color=BLUE, linestyle="--", linewidth=1, label="limit of the bias")
    if comparison.noise is not None:
        axes.axvline(
            comparison.noise**0.5, color=ORANGE, linestyle=":", linewidth=1.4, label="the minibatch's own noise"
        )
    axes.set(title="error, in lengths of the exact gradient")
    most = max(*(max(row.sure_bias, row.variance**0.5) for row in rows), comparison.variance_limit**0.5)
    axes.set_xlim(0, 1.05 * max(most, comparison.tolerance))
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
