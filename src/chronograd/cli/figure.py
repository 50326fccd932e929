"""``chronograd figure``: the two figures of backpropagation through time, drawn from the project's own truncations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from chronograd.cli.errors import UsageError
from chronograd.cli.values import Whole, at_least, figure_path, read_seed, read_steps

__all__ = ["figure", "graph", "strategies"]

TEXT = "The Time Traveller (for so it will be convenient to speak of him)"
WIDTH = 72
SEED = 4  # under which TEXT is cut about as often at random as regularly
MOST_CHARACTERS, MOST_STEPS = 2000, 60  # beyond these a figure takes minutes and nobody reads it

figure = App(name="figure", help="Draw the figures of backpropagation through time.")


@figure.command
def strategies(
    text: str | None = None,
    /,
    *,
    corpus: Annotated[str | None, Parameter(show_default=False)] = None,
    steps: Annotated[Whole | None, Parameter(show_default=False)] = None,
    chunks: Whole = 8,
    mean_length: float = 8,
    seed: Whole = SEED,
    width: Whole = WIDTH,
    out: Path = Path("strategies.svg"),
) -> None:
    """Show a text under random, regular and no truncation, a box around each stretch between cuts.

    Parameters
    ----------
    text
        The characters to show; without any, the beginning of The Time Machine.
    corpus
        Take the text from here: builtin, timemachine, or a file.
    steps
        Show that many characters: by default all of TEXT, and one line of a corpus.
    chunks
        Regular truncation cuts every so many steps.
    mean_length
        Random truncation cuts after so many steps on average.
    seed
        Of the random cuts.
    width
        Characters in a line.
    out
        The file to write, .svg or .png.
    """
    for option, value in (("--steps", steps), ("--chunks", chunks), ("--width", width)):
        at_least(option, value)
    if not 1 < mean_length < math.inf:
        raise UsageError(f"--mean-length must be above 1 (and finite), not {mean_length:g}")
    read_seed(seed)
    figure_path(out)
    shown = _shown_text(text, corpus, steps, width)

    import torch

    from chronograd.show import draw_strategies, save, segments_from_cuts
    from chronograd.truncation import Chunks, Full, Place, RandomTruncation

    row = torch.zeros(1, dtype=torch.int64)
    place = Place(position=0, steps=len(shown), rows=row, seed=seed, since=row)
    segments = {}
    for name, truncation in (
        ("random", RandomTruncation(mean_length)),
        ("regular", Chunks(chunks)),
        ("full", Full()),
    ):
        segments[name] = segments_from_cuts(truncation.plan(place).gates[:, 0] == 0)
    save(draw_strategies(shown, segments, width=width), out)
    cuts = ", ".join(f"{name} {_count(len(starts) - 1, 'cut')}" for name, starts in segments.items())
    print(f"{out}: {_count(len(shown), 'character')}; {cuts}")


@figure.command
def graph(
    *,
    steps: Whole = 3,
    cuts: Annotated[str | None, Parameter(metavar="STEPS", show_default=False)] = None,
    out: Path = Path("graph.svg"),
) -> None:
    """Show the computational graph of a recurrent network, unrolled over some steps.

    Parameters
    ----------
    steps
        How many steps.
    cuts
        Steps whose edge to the step before is cut, such as 2,5.
    out
        The file to write, .svg or .png.
    """
    at_least("--steps", steps)
    if steps > MOST_STEPS:
        raise UsageError(f"--steps must be at most {MOST_STEPS}, not {steps}: the figure could not be read")
    cut = read_steps("--cuts", cuts, last=steps)
    figure_path(out)

    from chronograd.show import draw_graph, save

    save(draw_graph(steps, cuts=cut), out)
    print(f"{out}: {_count(steps, 'step')}, {_count(len(set(cut)), 'cut')}")


def _shown_text(text: str | None, corpus: str | None, steps: int | None, width: int) -> str:
    if text is not None and corpus is not None:
        raise UsageError("give a TEXT or a --corpus, not both")
    if text == "":
        raise UsageError("TEXT is empty; give at least one character to show")
    if corpus is not None:
        from chronograd.data.corpora import load_corpus

        text, steps = load_corpus(corpus).text or "", steps or width
    text = TEXT if text is None else text
    if steps is not None and steps > len(text):
        raise UsageError(f"--steps {steps} is more than the {_count(len(text), 'character')} of the text")
    shown = text[:steps]
    if len(shown) > MOST_CHARACTERS:
        raise UsageError(f"a figure shows at most {MOST_CHARACTERS} characters, not {len(shown)}; take fewer --steps")
    return shown


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
