"""Figures of what the project computes.

Importing this imports neither matplotlib nor torch; drawing needs matplotlib.

>>> from chronograd.show import draw_graph, save
>>> figure = draw_graph(steps=3)                  # then save(figure, "graph.svg")
"""

from chronograd.style import save, style

from .graph import draw_graph, layout_graph
from .strategies import draw_strategies, layout_strategies, segments_from_cuts

__all__ = [
    "draw_graph",
    "draw_strategies",
    "layout_graph",
    "layout_strategies",
    "save",
    "segments_from_cuts",
    "style",
]
