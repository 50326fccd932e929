"""One look, and files that are whole or absent."""

from __future__ import annotations

import subprocess
import sys

import matplotlib
import pytest
from matplotlib.figure import Figure

from chronograd.show import save, style
from chronograd.style import COLOURS, tint


def some_figure():
    with style():
        figure = Figure(figsize=(2, 1))
        figure.add_subplot().plot([1, 2], [2, 1])
    return figure


def test_settings_hold_inside_only():
    before = dict(matplotlib.rcParams)
    with pytest.raises(RuntimeError), style():
        assert matplotlib.rcParams["svg.fonttype"] == "path"
        raise RuntimeError
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG\r\n"), ("a.svg", b"<?xml"), ("A.PNG", b"\x89PNG\r\n")])
def test_format_goes_by_suffix(tmp_path, name, start):
    assert save(some_figure(), tmp_path / name) == tmp_path / name
    assert (tmp_path / name).read_bytes().startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_same_figure_gives_the_same_file(tmp_path, suffix):
    first, second = (save(some_figure(), tmp_path / f"{name}{suffix}").read_bytes() for name in "ab")
    assert first == second


def test_dots_per_inch(tmp_path):
    data = save(some_figure(), tmp_path / "a.png", dpi=50).read_bytes()
    assert (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")) == (100, 50)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("a.pdf", {}, r"cannot write .*a\.pdf: figures are written as \.svg or \.png"),
        ("a", {}, "by the suffix"),
        ("nowhere/a.png", {}, "the folder .*nowhere does not exist; create it first"),
        ("a.png", {"dpi": 0}, "dpi must be positive, got 0"),
        ("a.png", {"dpi": 40_000}, "more than 65535 pixels"),
        ("folder.png", {}, "it is a folder"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(tmp_path, name, options, words):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match=words) as caught:
        save(some_figure(), tmp_path / name, **options)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_a_failure_half_way_leaves_the_old_file(tmp_path):
    path = save(some_figure(), tmp_path / "a.svg")
    old = path.read_bytes()

    class Broken(Figure):
        def savefig(self, file, **options):
            file.write(b"<?xml half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save(Broken(), path)
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.svg"]


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_letters_stay_readable_on_every_tint():
    """A contrast of 7:1 and more (the strictest web guideline) of the ink on a box's fill."""
    for colour in COLOURS:
        light, dark = luminance(tint(colour, 0.25)), luminance("#222222")
        assert (light + 0.05) / (dark + 0.05) > 7
    assert tint("#000000", 0) == "#ffffff" and tint("#123456", 1) == "#123456"
    with pytest.raises(ValueError, match="share"):
        tint("#000000", 2)


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_draws_in_neither_matplotlib_nor_torch():
    assert run("import sys, chronograd.show; print({'matplotlib', 'torch', 'numpy'} & set(sys.modules))") == "set()"


def test_drawing_never_touches_pyplot():
    code = "import sys; from chronograd.show import draw_graph; draw_graph(1); print(*sys.modules)"
    assert "matplotlib.figure" in run(code) and "pyplot" not in run(code)


def test_a_missing_matplotlib_is_one_line():
    code = """
import sys
sys.modules["matplotlib"] = None
from chronograd.show import draw_graph, draw_strategies
for draw in (lambda: draw_graph(1), lambda: draw_strategies("a", {"full": []})):
    try:
        draw()
    except ImportError as error:
        print(error)
"""
    assert run(code).splitlines() == ["figures need matplotlib: pip install 'chronograd[figures]'"] * 2
