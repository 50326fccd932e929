"""Figure F2: the computational graph of a recurrent network, unrolled over n steps.

    h_t = W_hx x_t + W_hh h_{t-1}        o_t = W_qh h_t        L = (1/T) sum_t l(o_t, y_t)

Boxes are variables, shaded boxes are parameters, circles are operations, and arrows run with the computation.
The gradient runs against them. Each parameter stands there once, with a line to every step that uses it:
dL/dW collects one term from each end of that line (E13). `cuts` marks recurrent edges that the gradient may
not pass, as truncation does; the value still does.

`layout_graph` is the graph as plain data, nodes with their places and edges with their corners; `draw_graph`
only draws that. Any number of steps: the figure grows by 2.3 inches per step.

After the figure of Zhang, Lipton, Li, Smola, *Dive into Deep Learning*, section "Backpropagation Through
Time".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Literal

from chronograd.style import COLOURS, CUT, INK, SHADE, require_matplotlib, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Edge", "Graph", "Node", "draw_graph", "layout_graph"]

Point = tuple[float, float]

SCALE = 0.78  # inches per unit of the layout
STEP = 2.9  # units from one step to the next
FIRST = 2.2  # where the first step begins; to its left stand h_0 and the parameters
BACK = 1.12  # from a state to the product of the next step
# Heights, from the bottom: the lines of parameters (rails) between the rows of nodes.
RAIL_HX, X, MUL_HX = -0.7, 0.0, 0.75
RAIL_HH, H = 1.3, 1.9
RAIL_QH, MUL_QH, OUT, LOSS, MEAN = 2.5, 3.0, 3.75, 4.5, 5.3

RAIL_COLOURS = {"W_hx": COLOURS[1], "W_hh": COLOURS[2], "W_qh": "#A5437D"}


@dataclass(frozen=True)
class Node:
    """One box or circle: its name (`h_1`, `W_hh`, `mul_hh_1`), kind, label, centre and size in units."""

    name: str
    kind: Literal["variable", "parameter", "operation"]
    label: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Edge:
    """An arrow from the node named `source` to the one named `target`, along `points` from border to border.

    `cut` says that the gradient does not pass (the value does).
    """

    source: str
    target: str
    points: tuple[Point, ...]
    cut: bool = False


@dataclass(frozen=True)
class Graph:
    """The unrolled graph as data. `node(name)` finds a node."""

    steps: int
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    def node(self, name: str) -> Node:
        """The node of that name; KeyError where there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)


def layout_graph(steps: int = 3, *, cuts: Iterable[int] = ()) -> Graph:
    """Nodes and edges of the unrolled network, with their places.

    Args:
        steps: how many steps, at least 1.
        cuts: steps t, 1 .. steps, whose recurrent edge (from h_{t-1} into step t) is cut.

    Returns:
        4 steps + 2 variables, 3 parameters, 5 steps + 1 operations; 13 steps + 1 edges.

    Raises:
        TypeError: steps or a cut is not an integer.
        ValueError: steps < 1, or a cut outside 1 .. steps.

    >>> graph = layout_graph(3, cuts=[2])
    >>> [(edge.source, edge.target) for edge in graph.edges if edge.cut]
    [('h_1', 'mul_hh_2')]
    """
    try:
        steps, cut_steps = index(steps), {index(t) for t in cuts}
    except TypeError as error:
        raise TypeError("steps must be an integer and cuts a list of integers") from error
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    outside = sorted(t for t in cut_steps if not 1 <= t <= steps)
    if outside:
        raise ValueError(f"cuts must lie between 1 and steps = {steps}, got {outside[0]}")

    nodes: dict[str, Node] = {}

    def box(name: str, kind: Literal["variable", "parameter"], label: str, x: float, y: float) -> None:
        nodes[name] = Node(name, kind, f"${label}$", x, y, 0.62 if kind == "variable" else 0.74, 0.44)

    def circle(name: str, label: str, x: float, y: float, size: float = 0.4) -> None:
        nodes[name] = Node(name, "operation", f"${label}$", x, y, size, size)

    box("W_hx", "parameter", "W_{hx}", 0.0, RAIL_HX)
    box("W_hh", "parameter", "W_{hh}", 0.0, RAIL_HH)
    box("W_qh", "parameter", "W_{qh}", 0.0, RAIL_QH)
    box("h_0", "variable", "h_0", FIRST - BACK, H)
    for t in range(1, steps + 1):
        start = FIRST + (t - 1) * STEP  # the column of W_hh's product; then that of the sum, then that of h_t
        middle, end = start + 0.85, start + STEP - BACK
        box(f"x_{t}", "variable", f"x_{{{t}}}", middle, X)
        circle(f"mul_hx_{t}", r"\times", middle, MUL_HX)
        circle(f"mul_hh_{t}", r"\times", start, H)
        circle(f"add_{t}", "+", middle, H)
        box(f"h_{t}", "variable", f"h_{{{t}}}", end, H)
        circle(f"mul_qh_{t}", r"\times", end, MUL_QH)
        box(f"o_{t}", "variable", f"o_{{{t}}}", end, OUT)
        box(f"y_{t}", "variable", f"y_{{{t}}}", middle, LOSS)
        circle(f"loss_{t}", r"\ell", end, LOSS)
    last = nodes[f"loss_{steps}"].x
    circle("mean", r"\frac{1}{T}\sum", last, MEAN, size=0.66)
    box("L", "variable", "L", last + 0.95, MEAN)

    edges: list[Edge] = []

    def arrow(source: str, target: str, *corners: Point, cut: bool = False) -> None:
        a, b = nodes[source], nodes[target]
        path = [(a.x, a.y), *corners, (b.x, b.y)]
        points = (_border(a, path[1]), *corners, _border(b, path[-2]))
        edges.append(Edge(source, target, points, cut))

    for t in range(1, steps + 1):
        start, middle = nodes[f"mul_hh_{t}"].x, nodes[f"add_{t}"].x
        arrow(f"x_{t}", f"mul_hx_{t}")
        arrow("W_hx", f"mul_hx_{t}", (start, RAIL_HX), (start, MUL_HX))
        arrow(f"h_{t - 1}", f"mul_hh_{t}", cut=t in cut_steps)
        arrow("W_hh", f"mul_hh_{t}", (start, RAIL_HH))
        arrow(f"mul_hx_{t}", f"add_{t}")
        arrow(f"mul_hh_{t}", f"add_{t}")
        arrow(f"add_{t}", f"h_{t}")
        arrow(f"h_{t}", f"mul_qh_{t}")
        arrow("W_qh", f"mul_qh_{t}", (middle, RAIL_QH), (middle, MUL_QH))
        arrow(f"mul_qh_{t}", f"o_{t}")
        arrow(f"o_{t}", f"loss_{t}")
        arrow(f"y_{t}", f"loss_{t}")
        arrow(f"loss_{t}", "mean", *([(nodes[f"loss_{t}"].x, MEAN)] if t < steps else []))
    arrow("mean", "L")
    return Graph(steps, tuple(nodes.values()), tuple(edges))


def draw_graph(steps: int = 3, *, cuts: Iterable[int] = ()) -> Figure:
    """Draw F2, the network unrolled over `steps` steps.

    Args:
        steps, cuts: as for `layout_graph`. A cut edge is dashed, barred, and of another colour.

    Returns:
        A figure; `chronograd.show.save(figure, "graph.svg")` writes it.

    Raises:
        ImportError: matplotlib is missing.
        TypeError, ValueError: as `layout_graph`.

    >>> figure = draw_graph(steps=2, cuts=[2])
    >>> len(figure.axes)
    1
    """
    graph = layout_graph(steps, cuts=cuts)
    require_matplotlib()
    from matplotlib.figure import Figure

    left = min(node.x - node.width / 2 for node in graph.nodes) - 0.2
    right = max(node.x + node.width / 2 for node in graph.nodes) + 0.2
    legend = _legend_places(left, right, with_cuts=any(edge.cut for edge in graph.edges))
    low, high = min(y for _, _, y in legend) - 0.35, MEAN + 0.55
    with style():
        figure = Figure(figsize=((right - left) * SCALE, (high - low) * SCALE))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(left, right), ylim=(low, high))
        axes.set_axis_off()
        for edge, points, head in _strokes(graph):
            _draw_stroke(axes, edge, points, head)
        for node in graph.nodes:
            _draw_node(axes, node)
        for kind, x, y in legend:
            _draw_legend_entry(axes, kind, x, y)
    return figure


def _border(node: Node, towards: Point) -> Point:
    """Where a horizontal or vertical line from the node's centre leaves it."""
    dx, dy = towards[0] - node.x, towards[1] - node.y
    if abs(dx) > abs(dy):
        return node.x + (node.width if dx > 0 else -node.width) / 2, node.y
    return node.x, node.y + (node.height if dy > 0 else -node.height) / 2


def _strokes(graph: Graph) -> list[tuple[Edge, tuple[Point, ...], bool]]:
    """What to draw of each edge, and whether with an arrowhead: where edges share a line it is drawn once.

    Edges from one parameter share their first stretch, so each starts where the one before it turned off;
    edges into the mean share their last, so each ends where the next one joins.
    """
    strokes, turned = [], {}
    joining = [edge for edge in graph.edges if edge.target == "mean" and len(edge.points) > 2]
    for edge in graph.edges:
        points, head = edge.points, True
        if edge.source in RAIL_COLOURS:
            points = (turned.get(edge.source, points[0]), *points[1:])
            turned[edge.source] = points[1]
        elif edge in joining[:-1]:
            points, head = (*points[:-1], joining[joining.index(edge) + 1].points[1]), False
        strokes.append((edge, points, head))
    return strokes


def _draw_stroke(axes: Axes, edge: Edge, points: tuple[Point, ...], head: bool) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    rail = edge.source in RAIL_COLOURS
    colour = CUT if edge.cut else RAIL_COLOURS.get(edge.source, INK)
    if rail:  # a white margin lets what crosses the parameter's line pass beneath it
        (xa, y), (xb, _) = points[:2]
        axes.plot([xa, xb], [y, y], color="white", linewidth=5, solid_capstyle="butt", zorder=2)
    axes.add_patch(
        FancyArrowPatch(
            path=Path(points),
            arrowstyle="-|>" if head else "-",
            mutation_scale=9,
            color=colour,
            linewidth=1.5 if edge.cut else 1.1,
            linestyle=(0, (2.4, 1.4)) if edge.cut else "solid",
            joinstyle="miter",
            capstyle="butt",
            shrinkA=0,
            shrinkB=0,
            zorder=3 if rail else 1,
        )
    )
    if edge.cut:
        (xa, y), (xb, _) = points
        _draw_bars(axes, (xa + xb) / 2 - 0.05, y)
    if (
        points[0] != edge.points[0] or not head
    ):  # this line begins on another's corner, or ends on one: a dot joins them
        axes.plot(*(points[0] if head else points[-1]), marker="o", markersize=3.6, color=colour, zorder=4)


def _draw_bars(axes: Axes, x: float, y: float) -> None:
    for offset in (-0.045, 0.045):
        axes.plot([x + offset - 0.05, x + offset + 0.05], [y - 0.13, y + 0.13], color=CUT, linewidth=1.5, zorder=4)


def _draw_node(axes: Axes, node: Node) -> None:
    from matplotlib.patches import Circle, FancyBboxPatch

    look = {"edgecolor": INK, "linewidth": 1.1, "zorder": 5}
    if node.kind == "operation":
        axes.add_patch(Circle((node.x, node.y), node.width / 2, facecolor="white", **look))
    else:
        corner = (node.x - node.width / 2, node.y - node.height / 2)
        fill = SHADE if node.kind == "parameter" else "white"
        rounding = "round,pad=0,rounding_size=0.05"
        axes.add_patch(FancyBboxPatch(corner, node.width, node.height, boxstyle=rounding, facecolor=fill, **look))
    size = 11 if node.name == "mean" else 15 if node.kind == "operation" else 13
    axes.text(node.x, node.y, node.label, ha="center", va="center", fontsize=size, zorder=6)


LEGEND = {
    "variable": ("variable", 1.55),
    "parameter": ("parameter", 1.75),
    "operation": ("operation", 1.55),
    "cut": ("cut: the value passes, the gradient does not", 4.6),
}


def _legend_places(left: float, right: float, *, with_cuts: bool) -> list[tuple[str, float, float]]:
    """The left end of each legend entry, filled in lines from left to right."""
    places, x, y = [], left + 0.2, RAIL_HX - 0.75
    for kind, (_, width) in LEGEND.items():
        if kind == "cut" and not with_cuts:
            continue
        if x > left + 0.2 and x + width > right:
            x, y = left + 0.2, y - 0.42
        places.append((kind, x, y))
        x += width
    return places


def _draw_legend_entry(axes: Axes, kind: str, x: float, y: float) -> None:
    if kind == "cut":
        sample = Edge("h", "h", ((x, y), (x + 0.61, y)), cut=True)
        _draw_stroke(axes, sample, sample.points, head=True)
    else:
        size = (0.24, 0.24) if kind == "operation" else (0.36, 0.24)
        _draw_node(axes, Node(kind, kind, "", x + 0.18, y, *size))  # pyright: ignore[reportArgumentType]
    axes.text(x + (0.71 if kind == "cut" else 0.46), y, LEGEND[kind][0], ha="left", va="center", fontsize=9)
