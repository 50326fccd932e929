"""Figure F1: the first characters of a text under several truncations, boxes around stretches between cuts.

Within a box the gradient of every loss flows back as far as the box's left border; across the border it does
not go. So a row of equal boxes is regular truncation, boxes of all lengths are random truncation, and one box
over all the text is the full computation. Every row shows the same characters in the same places.

`layout_strategies` decides what goes where, in plain data; `draw_strategies` only draws that. (Sliding
windows have no boxes: each of their losses looks back over a stretch of its own, and those overlap.)

After the figure of Zhang, Lipton, Li, Smola, *Dive into Deep Learning*, section "Backpropagation Through
Time".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import index
from textwrap import wrap
from typing import TYPE_CHECKING

from chronograd.style import COLOURS, FAINT, INK, MONOSPACE, require_matplotlib, style, tint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "SegmentBox",
    "StrategiesLayout",
    "draw_strategies",
    "layout_strategies",
    "segments_from_cuts",
    "visible",
]

CAPTION = "Within a box the gradient flows back, as far as its left border and no further."
# Sizes in inches; the figure's coordinates are inches too.
CELL, ROW, ROW_GAP, LINE_GAP, MARGIN = 0.125, 0.28, 0.07, 0.18, 0.12


@dataclass(frozen=True)
class SegmentBox:
    """One box: the columns `start` .. `stop` - 1 of one line, in one strategy's row.

    A segment that runs over the end of a line is drawn as several boxes: only the first `begins` (has a left
    border), only the last `ends`.
    """

    strategy: str
    line: int
    start: int
    stop: int
    begins: bool
    ends: bool


@dataclass(frozen=True)
class StrategiesLayout:
    """What F1 shows: character i stands in line i // width, column i % width, once in each strategy's row."""

    text: str
    width: int
    strategies: tuple[str, ...]
    boxes: tuple[SegmentBox, ...]

    @property
    def lines(self) -> int:
        """How many lines the text takes."""
        return -(-len(self.text) // self.width)


def segments_from_cuts(cuts: Iterable[object]) -> tuple[int, ...]:
    """Start indices of segments, from one truth value per character: true where the edge into it is cut.

    A row of gates xi gives `segments_from_cuts(xi == 0)`. The first character starts a segment, cut or not.

    >>> segments_from_cuts([False, False, True, False, True])
    (0, 2, 4)
    """
    return tuple(i for i, cut in enumerate(cuts) if i == 0 or bool(cut))


def layout_strategies(text: str, segments: Mapping[str, Sequence[int]], *, width: int = 60) -> StrategiesLayout:
    """Where the boxes of F1 go.

    Args:
        text: the characters to show, at least one.
        segments: for each strategy, by its name, the indices at which its segments start, rising. Index 0
            always starts one and may be left out: `[]` or `[0]` is the full computation.
        width: characters per line.

    Raises:
        TypeError: text is not a string, segments not a mapping, or a start not an integer.
        ValueError: no text, no strategies, width < 1, or starts that do not rise or lie outside the text.

    >>> layout = layout_strategies("abcde", {"regular": [0, 2, 4], "full": []}, width=60)
    >>> [(box.strategy, box.start, box.stop) for box in layout.boxes]
    [('regular', 0, 2), ('regular', 2, 4), ('regular', 4, 5), ('full', 0, 5)]
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, got {type(text).__name__}")
    if not text:
        raise ValueError("text is empty; give at least one character to show")
    if not isinstance(segments, Mapping):
        raise TypeError(f"segments must be a mapping from names to starts, got {type(segments).__name__}")
    if not segments:
        raise ValueError('segments is empty; give at least one strategy, as in {"full": [0]}')
    if width < 1:
        raise ValueError(f"width is the number of characters per line and must be at least 1, got {width}")
    boxes = []
    for strategy, given in segments.items():
        starts = _checked_starts(strategy, given, len(text))
        for start, stop in zip(starts, [*starts[1:], len(text)]):
            for line in range(start // width, (stop - 1) // width + 1):
                first, last = max(start, line * width), min(stop, (line + 1) * width)
                offset = line * width
                boxes.append(SegmentBox(strategy, line, first - offset, last - offset, first == start, last == stop))
    return StrategiesLayout(text, width, tuple(segments), tuple(boxes))


def visible(character: str) -> tuple[str, bool]:
    """How one character is shown, and whether it stands for something unseen (and is drawn faintly).

    Spaces, newlines and tabs get a sign; other control characters, and letters the font lacks, an empty
    square.

    >>> visible("a"), visible(" "), visible("\\n"), visible("\\x07")
    (('a', False), ('·', True), ('↵', True), ('□', True))
    """
    signs = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "←", "\u00a0": "·"}
    if character in signs:
        return signs[character], True
    if not character.isprintable() or ord(character) not in _font_letters():
        return "□", True
    return character, False


def draw_strategies(text: str, segments: Mapping[str, Sequence[int]], *, width: int = 60) -> Figure:
    """Draw F1: one row per strategy under each line of the text, a box around each stretch between cuts.

    Args:
        text, segments, width: as for `layout_strategies`. Rows are drawn in the order of `segments`.

    Returns:
        A figure; `chronograd.show.save(figure, "strategies.svg")` writes it.

    Raises:
        ImportError: matplotlib is missing.
        TypeError, ValueError: as `layout_strategies`.

    >>> segments = {"random": [0, 3, 9], "regular": [0, 5, 10, 15], "full": [0]}
    >>> figure = draw_strategies("the time machine", segments)
    >>> len(figure.axes)
    1
    """
    layout = layout_strategies(text, segments, width=width)
    require_matplotlib()
    from matplotlib.figure import Figure

    rows = len(layout.strategies)
    columns = min(layout.width, len(text))
    left = MARGIN + 0.085 * max(map(len, layout.strategies)) + 0.12
    line_height = rows * (ROW + ROW_GAP) - ROW_GAP
    breadth = max(left + columns * CELL + MARGIN, 3.0)
    caption = wrap(CAPTION, int((breadth - 2 * MARGIN) / 0.062))
    height = MARGIN + layout.lines * (line_height + LINE_GAP) + 0.14 * len(caption) + MARGIN
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(layout.strategies)}

    def top_of(line: int, strategy: str) -> float:
        row = layout.strategies.index(strategy)
        return height - MARGIN - line * (line_height + LINE_GAP) - row * (ROW + ROW_GAP)

    with style():
        figure = Figure(figsize=(breadth, height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, breadth), ylim=(0, height))
        axes.set_axis_off()
        for box in layout.boxes:
            _draw_box(axes, box, left, top_of(box.line, box.strategy), colours[box.strategy])
        for line in range(layout.lines):
            for strategy in layout.strategies:
                y = top_of(line, strategy) - 0.40 * ROW
                axes.text(left - 0.12, y, strategy, ha="right", va="center_baseline", fontsize=9, parse_math=False)
                for column, character in enumerate(text[line * width : (line + 1) * width]):
                    sign, faint = visible(character)
                    x = left + (column + 0.5) * CELL
                    colour = FAINT if faint else INK
                    axes.text(
                        x,
                        y,
                        sign,
                        ha="center",
                        va="center_baseline",
                        family=MONOSPACE,
                        fontsize=9,
                        color=colour,
                        parse_math=False,
                    )
        axes.text(MARGIN, MARGIN, "\n".join(caption), ha="left", va="bottom", fontsize=8, style="italic")
    return figure


def _draw_box(axes: Axes, box: SegmentBox, left: float, top: float, colour: str) -> None:
    """Fill and outline, open where the segment goes on in another line, and the arrow of the gradient."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    inset, radius = 0.08 * CELL, 0.05
    x0 = left + box.start * CELL + (inset if box.begins else -0.6 * CELL)
    x1 = left + box.stop * CELL - (inset if box.ends else -0.6 * CELL)
    y0, y1 = top - ROW, top
    radius = min(radius, (x1 - x0) / 2)
    right_end = (
        [(x1 - radius, y0), (x1, y0), (x1, y0 + radius), (x1, y1 - radius), (x1, y1), (x1 - radius, y1)]
        if box.ends
        else [(x1, y0), (x1, y1)]
    )
    left_end = (
        [(x0 + radius, y1), (x0, y1), (x0, y1 - radius), (x0, y0 + radius), (x0, y0), (x0 + radius, y0)]
        if box.begins
        else [(x0, y1), (x0, y0)]
    )
    rounded = [Path.LINETO, Path.CURVE3, Path.CURVE3, Path.LINETO, Path.CURVE3, Path.CURVE3]
    # Start at the bottom left: along the bottom, round the right end, along the top, round the left end.
    vertices = [left_end[-1], *right_end, *left_end]
    codes = [Path.MOVETO, *(rounded if box.ends else [Path.LINETO, Path.LINETO])]
    codes += rounded if box.begins else [Path.LINETO, Path.LINETO]
    axes.add_patch(PathPatch(Path(vertices, codes), facecolor=tint(colour, 0.25), edgecolor="none"))
    edges = list(codes)
    if not box.ends:
        edges[2] = Path.MOVETO  # no line at an open end
    if not box.begins:
        edges[-1] = Path.MOVETO
    axes.add_patch(PathPatch(Path(vertices, edges), facecolor="none", edgecolor=colour, linewidth=0.8))

    y = y0 + 0.19 * ROW
    tail = left + (box.stop - 0.5) * CELL if box.ends else x1
    head = left + (box.start + 0.5) * CELL - 0.18 * CELL if box.begins else x0
    if tail - head > 0.6 * CELL:
        axes.plot([tail, head], [y, y], color=colour, linewidth=0.8, solid_capstyle="butt")
        if box.begins:
            axes.plot([head], [y], marker="<", markersize=3.0, color=colour, markeredgewidth=0)


def _checked_starts(strategy: str, given: Sequence[int], length: int) -> list[int]:
    try:
        starts = [index(start) for start in given]
    except TypeError as error:
        raise TypeError(f"segments[{strategy!r}] must be a list of integers, the starts of its segments") from error
    for before, start in zip([-1, *starts], starts):
        if start <= before or start >= length:
            raise ValueError(
                f"segments[{strategy!r}] must rise and lie between 0 and {length - 1}, the last index; "
                f"got {start}" + (f" after {before}" if before >= 0 else "")
            )
    return starts if starts and starts[0] == 0 else [0, *starts]


@cache
def _font_letters() -> frozenset[int]:
    """The code points the monospace font has."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties(family=MONOSPACE))).get_charmap())
