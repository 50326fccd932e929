"""F2: the graph as data computes what the linear RNN computes, and its drawing has no arrow through a box."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

from chronograd.recurrence.closed_form import linear_rnn_forward, linear_rnn_gradients
from chronograd.show import draw_graph, layout_graph, save


def inputs_of(graph, name):
    return [edge for edge in graph.edges if edge.target == name]


def compute(graph, given):
    """Run the graph: every operation on the values at the sources of its arrows, in order of the arrows."""
    label_of = {node.name: node.label for node in graph.nodes}
    values = dict(given)

    def value(name):
        if name not in values:
            incoming = [
                value(edge.source).detach() if edge.cut else value(edge.source) for edge in inputs_of(graph, name)
            ]
            if label_of[name] == r"$\times$":
                matrix, vector = sorted(incoming, key=lambda tensor: -tensor.dim())
                values[name] = matrix @ vector
            elif label_of[name] == "$+$":
                values[name] = sum(incoming)
            elif label_of[name] == r"$\ell$":
                values[name] = ((incoming[0] - incoming[1]) ** 2).sum() / 2
            elif name == "mean":
                values[name] = torch.stack(incoming).mean()
            else:
                (values[name],) = incoming
        return values[name]

    return value


def setting(steps):
    generator = torch.Generator().manual_seed(steps)
    shapes = {"W_hx": (3, 2), "W_hh": (3, 3), "W_qh": (2, 3), "h_0": (3,)}
    shapes |= {f"x_{t}": (2,) for t in range(1, steps + 1)} | {f"y_{t}": (2,) for t in range(1, steps + 1)}
    return {
        name: torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_(name.startswith("W"))
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_the_graph_is_the_linear_rnn(steps):
    """Its arrows, followed, give o_t, L and all gradients of the closed form."""
    given = setting(steps)
    value = compute(layout_graph(steps), given)
    weights = [given[name].detach() for name in ("W_hx", "W_hh", "W_qh")]
    stacked = {key: torch.stack([given[f"{key}_{t}"] for t in range(1, steps + 1)]).unsqueeze(1) for key in "xy"}
    run = linear_rnn_forward(stacked["x"], *weights, given["h_0"].unsqueeze(0))
    for t in range(1, steps + 1):
        torch.testing.assert_close(value(f"o_{t}"), run.outputs[t - 1, 0])
    error = run.outputs - stacked["y"]
    torch.testing.assert_close(value("L"), (error**2).sum() / 2 / steps)
    gradients = linear_rnn_gradients(run, error)
    found = torch.autograd.grad(value("L"), [given[name] for name in ("W_hx", "W_hh", "W_qh")])
    for mine, theirs in zip(found, (gradients.W_hx, gradients.W_hh, gradients.W_qh)):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_a_cut_edge_stops_the_gradient_and_passes_the_value():
    given = setting(4)
    whole, cut = (compute(layout_graph(4, cuts=cuts), given) for cuts in ((), (3,)))
    assert whole("L").item() == cut("L").item()
    g_whole, g_cut = (torch.autograd.grad(value("L"), given["W_hh"])[0] for value in (whole, cut))
    assert (g_whole - g_cut).abs().max() > 1e-3
    # The truth: the hidden state detached between steps 2 and 3, with torch alone.
    h, losses = given["h_0"], []
    for t in range(1, 5):
        h = given["W_hx"] @ given[f"x_{t}"] + given["W_hh"] @ (h.detach() if t == 3 else h)
        losses.append(((given["W_qh"] @ h - given[f"y_{t}"]) ** 2).sum() / 2)
    expected = torch.autograd.grad(torch.stack(losses).mean(), given["W_hh"])[0]
    torch.testing.assert_close(g_cut, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3, 12])
def test_counts_and_labels(steps):
    graph = layout_graph(steps)
    kinds = [node.kind for node in graph.nodes]
    assert (kinds.count("variable"), kinds.count("parameter"), kinds.count("operation")) == (
        4 * steps + 2,
        3,
        5 * steps + 1,
    )
    assert len(graph.edges) == 13 * steps + 1
    assert len({node.name for node in graph.nodes}) == len(graph.nodes)
    assert {node.label for node in graph.nodes if node.kind == "parameter"} == {
        "$W_{hx}$",
        "$W_{hh}$",
        "$W_{qh}$",
    }
    assert graph.node(f"h_{steps}").label == f"$h_{{{steps}}}$"
    with pytest.raises(KeyError):
        graph.node("h_99")


def outline(node, margin=0.0):
    half = node.width / 2 + margin, node.height / 2 + margin
    return node.x - half[0], node.x + half[0], node.y - half[1], node.y + half[1]


def crosses(a, b, node):
    """Whether the axis-parallel line from a to b enters the node's rectangle."""
    x0, x1, y0, y1 = outline(node, margin=0.05)
    return min(a[0], b[0]) < x1 and max(a[0], b[0]) > x0 and min(a[1], b[1]) < y1 and max(a[1], b[1]) > y0


@pytest.mark.parametrize("steps", [1, 3, 12])
def test_nodes_keep_apart_and_no_arrow_runs_through_a_node(steps):
    graph = layout_graph(steps)
    for a, b in combinations(graph.nodes, 2):
        ax0, ax1, ay0, ay1 = outline(a, margin=0.05)
        bx0, bx1, by0, by1 = outline(b, margin=0.05)
        assert ax1 < bx0 or bx1 < ax0 or ay1 < by0 or by1 < ay0, f"{a.name} and {b.name} overlap"
    for edge in graph.edges:
        for start, stop in zip(edge.points, edge.points[1:]):
            assert start[0] == stop[0] or start[1] == stop[1], f"{edge} is slanted"
            for node in graph.nodes:
                if node.name not in (edge.source, edge.target):
                    assert not crosses(start, stop, node), f"{edge.source} -> {edge.target} runs through {node.name}"


@pytest.mark.parametrize("steps", [1, 3, 12])
def test_arrows_begin_and_end_on_their_nodes_borders(steps):
    graph = layout_graph(steps)
    for edge in graph.edges:
        for name, point in ((edge.source, edge.points[0]), (edge.target, edge.points[-1])):
            node = graph.node(name)
            if node.kind == "operation":
                assert math.dist(point, (node.x, node.y)) == pytest.approx(node.width / 2)
            else:
                across, up = abs(point[0] - node.x), abs(point[1] - node.y)
                on_border = across == pytest.approx(node.width / 2) and up == pytest.approx(0)
                assert on_border or (up == pytest.approx(node.height / 2) and across == pytest.approx(0))
        before_last, last = edge.points[-2:]
        assert math.dist(before_last, last) > 0.15  # room for the arrowhead


def test_lines_that_are_not_the_same_never_overlap():
    """Two arrows may cross, and share a line when they share a parameter or go to the mean; nothing else."""
    graph = layout_graph(4)
    stretches = [(edge, a, b) for edge in graph.edges for a, b in zip(edge.points, edge.points[1:])]
    for (one, a, b), (other, c, d) in combinations(stretches, 2):
        if one.source == other.source and one.source.startswith("W_") or one.target == other.target == "mean":
            continue
        for axis in (0, 1):
            if a[axis] == b[axis] == c[axis] == d[axis]:
                low, high = sorted((a[1 - axis], b[1 - axis])), sorted((c[1 - axis], d[1 - axis]))
                assert low[1] < high[0] or high[1] < low[0], f"{one} lies on {other}"


@pytest.mark.parametrize(("steps", "cuts"), [(1, ()), (3, ()), (3, (2,)), (6, (1, 4))])
def test_the_drawing_shows_every_node_and_stays_inside_the_page(steps, cuts):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

    figure = draw_graph(steps, cuts=cuts)
    (axes,) = figure.axes
    graph = layout_graph(steps, cuts=cuts)
    legend = 2, 1, 1 if cuts else 0  # boxes, circles, arrows
    assert sum(isinstance(patch, FancyBboxPatch) for patch in axes.patches) == 4 * steps + 5 + legend[0]
    assert sum(isinstance(patch, Circle) for patch in axes.patches) == 5 * steps + 1 + legend[1]
    arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    assert len(arrows) == len(graph.edges) + legend[2]
    assert sum(arrow.get_linestyle() != "solid" for arrow in arrows) == len(cuts) + legend[2]
    shown = [text.get_text() for text in axes.texts]
    assert sorted(node.label for node in graph.nodes) == sorted(label for label in shown if label.startswith("$"))

    renderer = FigureCanvasAgg(figure).get_renderer()
    page = figure.bbox
    for text in axes.texts:
        extent = text.get_window_extent(renderer)
        assert page.x0 <= extent.x0 and extent.x1 <= page.x1 and page.y0 <= extent.y0 and extent.y1 <= page.y1
    for node, label in ((node, text) for node in graph.nodes for text in axes.texts if text.get_text() == node.label):
        if label.get_position() != (node.x, node.y):
            continue
        (x0, y0), (x1, y1) = axes.transData.transform([outline(node)[::2], outline(node)[1::2]])
        extent = label.get_window_extent(renderer)
        assert x0 < extent.x0 and extent.x1 < x1 and y0 < extent.y0 and extent.y1 < y1, (
            f"{node.name} overflows its border"
        )


def test_parameters_are_shaded():
    from matplotlib.colors import to_rgb
    from matplotlib.patches import FancyBboxPatch

    figure = draw_graph(2)
    fills = [to_rgb(patch.get_facecolor()) for patch in figure.axes[0].patches if isinstance(patch, FancyBboxPatch)]
    assert sum(fill != (1.0, 1.0, 1.0) for fill in fills) == 3 + 1  # and one in the legend


def test_files(tmp_path):
    figure = draw_graph(3, cuts=[2])
    assert save(figure, tmp_path / "graph.svg").read_text().startswith("<?xml")
    assert save(figure, tmp_path / "graph.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph.png", "graph.svg"]


@pytest.mark.parametrize(
    ("steps", "cuts", "error", "words"),
    [
        (0, (), ValueError, "steps must be at least 1, got 0"),
        (2.5, (), TypeError, "steps must be an integer"),
        (3, (4,), ValueError, "cuts must lie between 1 and steps = 3, got 4"),
        (3, (0,), ValueError, "cuts must lie between 1 and steps = 3, got 0"),
        (3, ("a",), TypeError, "cuts a list of integers"),
        (3, 2, TypeError, "cuts a list of integers"),
    ],
)
def test_wrong_input_is_named(steps, cuts, error, words):
    with pytest.raises(error, match=words) as caught:
        draw_graph(steps, cuts=cuts)
    assert "\n" not in str(caught.value)
