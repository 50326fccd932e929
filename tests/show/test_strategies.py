"""F1: boxes cover the text as the segments say, on every line, and letters sit inside them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chronograd.show import draw_strategies, layout_strategies, save, segments_from_cuts
from chronograd.show.strategies import visible

TEXT = "The Time Traveller (for so it will be\nconvenient to speak of him) was expounding a recondite matter."


@st.composite
def texts_and_segments(draw):
    text = draw(st.text(min_size=1, max_size=80))
    names = draw(st.lists(st.sampled_from(["random", "regular", "full", "x"]), min_size=1, max_size=4, unique=True))
    starts = {name: sorted(draw(st.sets(st.integers(0, len(text) - 1)))) for name in names}
    return text, starts, draw(st.integers(1, 100))


@given(texts_and_segments())
@settings(max_examples=100, deadline=None)
def test_boxes_cover_every_character_once_and_break_where_segments_start(case):
    text, segments, width = case
    layout = layout_strategies(text, segments, width=width)
    assert layout.strategies == tuple(segments)
    assert layout.lines == len(range(0, len(text), width))
    for strategy, starts in segments.items():
        mine = [box for box in layout.boxes if box.strategy == strategy]
        covered = [box.line * width + column for box in mine for column in range(box.start, box.stop)]
        assert covered == list(range(len(text)))
        begins = [box.line * width + box.start for box in mine if box.begins]
        assert begins == sorted({0, *starts})
        ends = [box.line * width + box.stop for box in mine if box.ends]
        assert ends == [*begins[1:], len(text)]
        assert all(0 <= box.start < box.stop <= width for box in mine)


def test_a_segment_over_a_line_end_goes_on_open():
    boxes = layout_strategies("abcdefgh", {"one": [0, 2]}, width=3).boxes
    assert [(box.line, box.start, box.stop, box.begins, box.ends) for box in boxes] == [
        (0, 0, 2, True, True),
        (0, 2, 3, True, False),
        (1, 0, 3, False, False),
        (2, 0, 2, False, True),
    ]


def test_segments_come_from_gates():
    import torch

    gates = torch.tensor([0.0, 1, 1, 0, 1.5, 0])
    assert segments_from_cuts(gates == 0) == (0, 3, 5)
    assert segments_from_cuts([]) == ()


def extents(figure):
    """Letters, names and boxes of a drawn figure, as rectangles in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    (axes,) = figure.axes
    texts = [(text, text.get_window_extent(renderer)) for text in axes.texts]
    boxes = [patch.get_window_extent(renderer) for patch in axes.patches if patch.get_edgecolor()[3] == 0]
    return texts, boxes


@pytest.mark.parametrize("width", [20, 60, 200])
def test_every_letter_sits_inside_one_box_and_nothing_leaves_the_page(width):
    segments = {"random": [0, 4, 5, 21, 40], "regular": range(0, len(TEXT), 12), "full": [0]}
    figure = draw_strategies(TEXT, segments, width=width)
    texts, boxes = extents(figure)
    layout = layout_strategies(TEXT, segments, width=width)
    assert len(boxes) == len(layout.boxes)
    assert len(texts) == 3 * len(TEXT) + 3 * layout.lines + 1
    letters = [(text.get_text(), extent) for text, extent in texts if text.get_family() == ["DejaVu Sans Mono"]]
    shown = "".join(visible(character)[0] for character in TEXT)
    in_rows = [shown[start : start + width] for start in range(0, len(TEXT), width) for _ in segments]
    assert "".join(letter for letter, _ in letters) == "".join(in_rows)
    for letter, extent in letters:
        around = [
            box
            for box in boxes
            if box.x0 <= extent.x0 and extent.x1 <= box.x1 and box.y0 <= extent.y0 and extent.y1 <= box.y1
        ]
        assert len(around) == 1, f"{letter!r} is in {len(around)} boxes"
    page = figure.bbox
    for text, extent in texts:
        assert page.x0 <= extent.x0 and extent.x1 <= page.x1 and page.y0 <= extent.y0 and extent.y1 <= page.y1, text
    names = [extent for text, extent in texts if text.get_text() in segments]
    assert all(not name.overlaps(letter) for name in names for _, letter in letters)


def test_boxes_of_one_row_keep_apart():
    figure = draw_strategies("abcdefghij", {"each": range(10)})
    _, boxes = extents(figure)
    boxes.sort(key=lambda box: box.x0)
    assert len(boxes) == 10
    assert all(left.x1 < right.x0 for left, right in zip(boxes, boxes[1:]))


@pytest.mark.parametrize(
    ("character", "shown"),
    [("a", ("a", False)), ("$", ("$", False)), ("ş", ("ş", False)), (" ", ("·", True)), ("\n", ("↵", True)),
     ("\t", ("⇥", True)), ("\x00", ("□", True)), ("日", ("□", True)), ("\u200b", ("□", True))],
)  # fmt: skip
def test_unseen_characters_get_a_sign(character, shown):
    assert visible(character) == shown


def test_any_text_is_drawn_without_a_warning(tmp_path):
    """Mathematics signs are not formulas, and letters the font lacks are squares: warnings are errors here."""
    text = "$x_1^2$ \\alpha & <b> 日本語 \x07 é 🙂 %"
    figure = draw_strategies(text, {"$a$": [0, 3], "full": []}, width=9)
    assert save(figure, tmp_path / "any.png").stat().st_size > 1000
    assert save(figure, tmp_path / "any.svg").stat().st_size > 1000


def test_a_name_may_stand_for_any_strategy():
    figure = draw_strategies("abc", {f"strategy {i}": [0] for i in range(9)})
    assert sum(text.get_text().startswith("strategy") for text in figure.axes[0].texts) == 9


@pytest.mark.parametrize(
    ("text", "segments", "options", "error", "words"),
    [
        ("", {"full": [0]}, {}, ValueError, "text is empty"),
        (b"abc", {"full": [0]}, {}, TypeError, "text must be a string, got bytes"),
        ("abc", {}, {}, ValueError, "segments is empty"),
        ("abc", [0], {}, TypeError, "segments must be a mapping .* got list"),
        ("abc", {"full": [0]}, {"width": 0}, ValueError, "width .* at least 1, got 0"),
        (
            "abc",
            {"regular": [0, 3]},
            {},
            ValueError,
            r"segments\['regular'\] .* between 0 and 2, .* got 3 after 0",
        ),
        ("abc", {"regular": [0, 2, 1]}, {}, ValueError, "got 1 after 2"),
        ("abc", {"regular": [0, 0]}, {}, ValueError, "got 0 after 0"),
        ("abc", {"regular": [-1]}, {}, ValueError, "got -1"),
        ("abc", {"regular": [0.5]}, {}, TypeError, r"segments\['regular'\] must be a list of integers"),
        ("abc", {"regular": 3}, {}, TypeError, r"segments\['regular'\] must be a list of integers"),
    ],
)
def test_wrong_input_is_named(text, segments, options, error, words):
    with pytest.raises(error, match=words) as caught:
        draw_strategies(text, segments, **options)
    assert "\n" not in str(caught.value)
