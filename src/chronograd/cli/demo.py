"""``chronograd demo``: the main job from one end to the other, on the built-in text, without a network."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from chronograd.cli.compare import measure
from chronograd.cli.errors import DONE, INTERRUPTED
from chronograd.cli.output import number, print_comparison, print_table
from chronograd.cli.values import Whole, at_least
from chronograd.training.config import TrainConfig

if TYPE_CHECKING:
    from chronograd.measure.comparison import Comparison
    from chronograd.training.run import RunResult
    from chronograd.training.subject import Subject

__all__ = ["CANDIDATES", "demo"]

# The chunk is a multiple of the truncation, so that no step is run twice; LENGTH of both, so that the grids agree.
CHUNK, TRUNCATION, LENGTH, BATCH, SEED = 105, "chunks:35", 210, 32, 0
CANDIDATES = (
    "chunks:5",
    "chunks:35",
    "chunks:70",
    "window:5,35",
    "random:35",
    "random:35,polynomial",
    "adaptive:0.1",
)
PREFIX, WRITTEN = "The ", 400
REPORT, FIGURE, NUMBERS = "report.html", "compare.svg", "comparison.json"


def demo(
    *,
    run: Annotated[Path, Parameter(metavar="DIR")] = Path("runs/demo"),
    steps: Whole = 1000,
    hidden: Whole = 128,
    draws: Whole = 32,
) -> int:
    """Train a small model for about a minute, then ask which truncation to use.

    It needs no network. Run again, it takes up a training that was stopped, and trains a finished one no further.

    Parameters
    ----------
    run
        Folder of the run and of the report.
    steps
        Updates to train.
    hidden
        Units of the model.
    draws
        How often random truncations are drawn, at least 2.
    """
    for option, value, least in (("--steps", steps, 1), ("--hidden", hidden, 1), ("--draws", draws, 2)):
        at_least(option, value, least)

    from chronograd.style import require_matplotlib
    from chronograd.training.subject import subject_from_run
    from chronograd.truncation import parse

    require_matplotlib()
    config = TrainConfig(
        "builtin",
        hidden=hidden,
        batch=BATCH,
        chunk=CHUNK,
        truncation=TRUNCATION,
        steps=steps,
        lr=3e-3,
        seed=SEED,
        checkpoint_every=100,
    )
    with _one_thread():
        result = _train(config, run)
        if result.interrupted:
            print_table([("trained", f"{result.step:,} of {steps:,} steps, interrupted and saved"), _again(run)])
            return INTERRUPTED
        subject = subject_from_run(run, LENGTH, BATCH)
        comparison = measure(subject, [parse(text) for text in CANDIDATES], draws, SEED, tolerance=0.1)
        sample = _write(run, result, subject, comparison)
    print_comparison(comparison)
    print(f"\nthe model writes: {' '.join((PREFIX + sample[:160]).split())} ...\n")
    print_table([(name.rpartition(".")[0], str(run / name)) for name in (REPORT, FIGURE, NUMBERS)])
    return DONE


def _train(config: TrainConfig, run: Path) -> RunResult:
    from chronograd.cli.progress import TrainingProgress
    from chronograd.training.run import train_run

    with TrainingProgress(config) as progress:
        return train_run(config, run, resume=True, on_step=progress.on_step, on_validation=progress.on_validation)


def _write(run: Path, result: RunResult, subject: Subject, comparison: Comparison) -> str:
    """Write the figure, the numbers and the report into the folder; give the sample that the report shows."""
    from chronograd.files import write_atomically
    from chronograd.show.report import Report, render_report
    from chronograd.style import save
    from chronograd.training.metrics import read_metrics
    from chronograd.training.run_folder import METRICS, load_run
    from chronograd.training.sampling import sample

    metrics = read_metrics(run / METRICS)
    written = sample(load_run(run), PREFIX, WRITTEN, temperature=0.8, seed=SEED)
    report = Report(
        title="Which truncation should I use here?",
        facts=_facts(subject.config, result, metrics),
        metrics=metrics,
        unit="character",
        comparison=comparison,
        compared=f"{subject.model_words}, on {subject.text_words}",
        text=subject.text,
        seed=SEED,
        prefix=PREFIX,
        sample=written,
    )
    save(comparison.plot(), run / FIGURE)
    write_atomically(run / NUMBERS, (json.dumps(comparison.to_dict(), indent=2) + "\n").encode())
    write_atomically(run / REPORT, render_report(report).encode())
    return written


def _facts(config: TrainConfig, result: RunResult, metrics: list[dict[str, Any]]) -> list[tuple[str, str]]:
    updates = [entry for entry in metrics if "tokens" in entry and "seconds" in entry]
    tokens, seconds = sum(entry["tokens"] for entry in updates), sum(entry["seconds"] for entry in updates)
    quality = "not measured"
    if result.validation_bits is not None:
        quality = f"{number(result.validation_bits)} bits per character, perplexity {result.validation_perplexity:.3g}"
    return [
        (
            "text",
            f"{config.corpus} (the prose of Python's language reference), {result.vocabulary} different characters",
        ),
        ("model", f"{config.model}, {config.hidden} units, {result.parameters:,} parameters"),
        ("training", f"{result.step:,} updates of {config.batch} rows by {config.chunk} steps, {config.truncation}"),
        ("optimizer", f"Adam, learning rate {config.lr:g}, gradients clipped at {config.clip:g}; seed {config.seed}"),
        (
            "speed",
            f"{tokens / seconds:,.0f} characters/s on one thread, {seconds:,.0f} s" if seconds else "not measured",
        ),
        ("held-out text", quality),
    ]


def _again(run: Path) -> tuple[str, str]:
    return "next", f"chronograd demo --run {shlex.quote(str(run))} goes on"


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread: as fast at this size, the same numbers on every machine, and no waiting for cores that are busy."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
