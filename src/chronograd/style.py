"""One look for every figure: colours, fonts, and how a figure becomes a file.

Colours are those of Okabe and Ito, chosen so that colour-blind readers can tell them apart; in print without
colour they differ in lightness, and no figure says by colour alone what it does not also say by a label, a
dash or a place.

Only matplotlib's object-oriented interface is used (`matplotlib.figure.Figure`), never pyplot: no window
opens, no global figure is left behind, and threads do not meet. matplotlib itself is imported when a figure
is made, not before.

Reference: Okabe & Ito, "Color Universal Design" (2008), https://jfly.uni-koeln.de/color/.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chronograd.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "CUT",
    "FAINT",
    "INK",
    "MONOSPACE",
    "SHADE",
    "require_matplotlib",
    "save",
    "style",
    "tint",
]

INK = "#222222"  # text and lines
FAINT = "#9A9A9A"  # what should be seen only when looked for
SHADE = "#DCDCDC"  # the fill of shaded boxes
CUT = "#D55E00"  # vermilion: what is cut; told from green by red-blind readers, and always dashed as well
COLOURS = ("#E69F00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
MONOSPACE = "DejaVu Sans Mono"  # comes with matplotlib, so a figure looks the same everywhere


def require_matplotlib() -> None:
    """Check that figures can be drawn.

    Raises:
        ImportError: matplotlib is missing; the message says what to install.

    >>> require_matplotlib()
    """
    try:
        import matplotlib  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'chronograd[figures]'") from error


@contextmanager
def style() -> Iterator[None]:
    """Settings under which figures are made and saved; they hold inside the `with` block only.

    >>> from matplotlib import rcParams
    >>> before = rcParams["font.size"]
    >>> with style():
    ...     inside = rcParams["font.size"]
    >>> inside, rcParams["font.size"] == before
    (10.0, True)
    """
    require_matplotlib()
    import matplotlib
    from cycler import cycler

    settings: dict[Any, Any] = {
        "axes.axisbelow": True,
        "axes.edgecolor": INK,
        "axes.grid": True,
        "axes.labelcolor": INK,
        "axes.prop_cycle": cycler(color=COLOURS),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 11,
        "figure.facecolor": "white",
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "grid.color": "#E6E6E6",
        "legend.frameon": False,
        "lines.linewidth": 1.6,
        "mathtext.fontset": "cm",
        "savefig.bbox": None,
        "svg.fonttype": "path",  # letters as outlines: boxes fit their letters on any machine
        "svg.hashsalt": "chronograd",  # the same figure gives the same file
        "text.color": INK,
        "text.usetex": False,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with matplotlib.rc_context(settings):
        yield


def save(fig: Figure, path: str | os.PathLike[str], dpi: float = 200) -> Path:
    """Write a figure as SVG or PNG, by the suffix of the path; the file is whole or not there.

    Args:
        fig: any matplotlib figure.
        path: ends in `.svg` or `.png`; its folder must exist. A file already there is replaced.
        dpi: pixels per inch, for PNG.

    Returns:
        The path.

    Raises:
        ValueError: another suffix, a folder that does not exist, a dpi that is not positive, or too many
            pixels.
        OSError: the file cannot be written; nothing is left behind.

    >>> import tempfile
    >>> from matplotlib.figure import Figure
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Figure(), Path(folder) / "empty.svg").name
    'empty.svg'
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".svg", ".png"):
        raise ValueError(f"cannot write {path}: figures are written as .svg or .png, by the suffix")
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder; give the path of a file")
    if not dpi > 0:
        raise ValueError(f"dpi must be positive, got {dpi}")
    if suffix == ".png" and max(fig.get_size_inches()) * dpi >= 2**16:
        raise ValueError(f"cannot write {path}: more than 65535 pixels wide or high; write .svg, or take a smaller dpi")
    metadata = {"Date": None, "Creator": "chronograd"} if suffix == ".svg" else {"Software": "chronograd"}
    with style():
        write_atomically(path, lambda file: fig.savefig(file, format=suffix[1:], dpi=dpi, metadata=metadata))
    return path


def tint(colour: str, share: float) -> str:
    """A colour mixed with white; `share` 1 is the colour itself, 0 is white.

    >>> tint("#0072B2", 0.5)
    '#80b8d8'
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], got {share}")
    channels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - share * (255 - c)):02x}" for c in channels)
