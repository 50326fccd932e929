"""``chronograd``: the commands and the way in.

A command is a file of this folder and a line here. Its module imports torch only inside its function, after its
arguments are found good: help and wrong usage answer at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from cyclopts import App

from chronograd import __version__
from chronograd.cli.compare import compare
from chronograd.cli.demo import demo
from chronograd.cli.doctor import doctor
from chronograd.cli.errors import TRACEBACK, answer
from chronograd.cli.figure import figure
from chronograd.cli.sample import sample
from chronograd.cli.train import train

__all__ = ["app", "main"]

app = App(
    name="chronograd",
    help="Gradients through time for recurrent models: train, compare truncations, draw them.\n\n"
    "Environment: NO_COLOR=1 turns colour off, CHRONOGRAD_CACHE names the folder of downloads, "
    f"{TRACEBACK}=1 shows where an error came from.",
    version=__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
app.command(compare)
app.command(demo)
app.command(doctor)
app.command(figure)
app.command(sample)
app.command(train)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 is done, 1 failed, 2 wrong usage, 130 interrupted (what was trained is saved).

    Args:
        argv: the arguments after the program's name; those of the process if ``None``.

    >>> main(["--version"])
    0.1.0
    0
    """
    return answer(app, argv)
