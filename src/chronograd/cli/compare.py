"""``chronograd compare``: which truncation should I use here? Measured on a trained run, or on a text alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from chronograd.cli.errors import UsageError
from chronograd.cli.output import print_comparison, print_json
from chronograd.cli.values import Whole, at_least, figure_path, one_of, read_seed, read_truncation
from chronograd.training.config import CELLS, TrainConfig

if TYPE_CHECKING:
    from chronograd.measure.comparison import Comparison
    from chronograd.training.subject import Subject
    from chronograd.truncation import Truncation

__all__ = ["compare", "measure"]

MODEL, HIDDEN = "gru", 128  # of the fresh model


def compare(
    source: Annotated[str, Parameter(name="RUN|CORPUS")],
    /,
    *,
    truncation: Annotated[list[str] | None, Parameter(negative="", show_default=False)] = None,
    steps: Whole = 200,
    batch: Whole = 32,
    draws: Whole = 32,
    tolerance: float = 0.1,
    seed: Whole = 0,
    model: Annotated[str | None, one_of(*CELLS), Parameter(show_default=False)] = None,
    hidden: Annotated[Whole | None, Parameter(show_default=False)] = None,
    figure: Annotated[Path | None, Parameter(metavar="FILE", show_default=False)] = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="", show_default=False)] = False,
) -> None:
    """Measure truncations against the exact gradient, and recommend one.

    Parameters
    ----------
    source
        A run that chronograd train made: its model, on its held-out text. Or a text (builtin, timemachine, a UTF-8
        file): a fresh, untrained model.
    truncation
        One to measure; repeat it for more. Without any, a usual set for that many steps.
    steps
        Characters in a row: the exact gradient reaches back over all of them.
    batch
        Rows of text, read side by side.
    draws
        How often random truncations are drawn, at least 2.
    tolerance
        Bias that a recommendation may have, in lengths of the exact gradient.
    seed
        Of the draws, and of a fresh model.
    model
        Kind of the fresh model's layer: gru unless told otherwise.
    hidden
        Units of the fresh model: 128 unless told otherwise.
    figure
        Draw the comparison into this file, .svg or .png.
    as_json
        Print the result as JSON.
    """
    for option, value, least in (("--steps", steps, 1), ("--batch", batch, 1), ("--draws", draws, 2)):
        at_least(option, value, least)
    at_least("--hidden", hidden)
    if not 0 < tolerance < math.inf:
        raise UsageError(f"--tolerance must be above 0 (and finite), not {tolerance:g}")
    read_seed(seed)
    candidates = [read_truncation(text) for text in truncation] if truncation else None
    if figure is not None:
        figure_path(figure, "--figure")
    is_run = Path(source).is_dir()
    if is_run and (model or hidden):
        raise UsageError(f"--{'model' if model else 'hidden'} is for a text; the run {source} has a model of its own")

    if figure is not None:
        from chronograd.style import require_matplotlib

        require_matplotlib()
    from chronograd.training.subject import subject_from_corpus, subject_from_run

    if is_run:
        subject = subject_from_run(Path(source), steps, batch)
    else:
        config = TrainConfig(source, model=model or MODEL, hidden=hidden or HIDDEN, seed=seed)
        subject = subject_from_corpus(config, steps, batch)
    comparison = measure(subject, candidates, draws, seed, tolerance)
    if figure is not None:
        from chronograd.style import save

        save(comparison.plot(), figure)
    if as_json:
        print_json({"model": subject.model_words, "text": subject.text_words, **comparison.to_dict()})
        return
    print(f"{subject.model_words}\non {subject.text_words}\n")
    print_comparison(comparison)
    if not subject.trained:
        print("\nGradients reach further in a trained model: ask again once you have a run.")
    if figure is not None:
        print(f"figure: {figure}")


def measure(
    subject: Subject, candidates: Sequence[Truncation] | None, draws: int, seed: int, tolerance: float
) -> Comparison:
    """Compare the candidates on the subject, showing progress."""
    from chronograd.cli.progress import CompareProgress
    from chronograd.measure.compare import compare as run
    from chronograd.training.losses import cross_entropy

    with CompareProgress() as progress:
        return run(
            subject.model,
            cross_entropy,
            subject.inputs,
            subject.targets,
            candidates,
            draws=draws,
            seed=seed,
            tolerance=tolerance,
            on_progress=progress.note,
        )
