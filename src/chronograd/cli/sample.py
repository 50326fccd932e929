"""``chronograd sample``: text from a trained model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from chronograd.cli.errors import UsageError
from chronograd.cli.values import Whole, at_least, read_seed

__all__ = ["sample"]

FIRST = " "  # what a model reads when nothing is given: nearly every text has it


def sample(
    run: Annotated[Path, Parameter(name="DIR")],
    /,
    *,
    prefix: Annotated[str | None, Parameter(show_default=False)] = None,
    length: Whole = 200,
    temperature: float = 1.0,
    seed: Annotated[Whole | None, Parameter(show_default=False)] = None,
) -> None:
    """Let a trained model go on with a text.

    Parameters
    ----------
    run
        Folder of a run that chronograd train made.
    prefix
        The text to go on with; without any, the model begins by itself.
    length
        Characters (or bytes) to write.
    temperature
        Below 1 the likely becomes likelier; 0 always takes the likeliest.
    seed
        Of the draws: the same seed writes the same text.
    """
    at_least("--length", length)
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UsageError(f"--temperature must be a positive number, or 0 for the likeliest, not {temperature}")
    if prefix == "":
        raise UsageError("--prefix is empty: give at least one character, or leave it out")
    read_seed(seed)

    from chronograd.training.run_folder import load_run
    from chronograd.training.sampling import sample as draw

    text = draw(load_run(run), FIRST if prefix is None else prefix, length, temperature, seed)
    print((prefix or "") + text)
