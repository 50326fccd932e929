"""``chronograd demo``: the main job from end to end, on a built-in text and without a network."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from chronograd.cli.compare import measure
from chronograd.cli.errors import DONE, INTERRUPTED
from chronograd.cli.output import number, print_comparison
from chronograd.cli.values import Whole, at_least
from chronograd.training.config import TrainConfig

if TYPE_CHECKING:
    from chronograd.training.run import RunResult
    from chronograd.training.subject import Subject
    from chronograd.truncation import Truncation

__all__ = ["demo"]

CORPUS, CHUNK, TRUNCATION = "builtin", 70, "chunks:35"
STRETCH, ROWS, DRAWS, TOLERANCE = 200, 32, 32, 0.1
CANDIDATES = ("chunks:5", "chunks:35", "window:5,35", "random:35", "random:35,polynomial,4.0", "adaptive:0.1,50")
SHOWN = 144  # characters of figure F1
PREFIX, SAMPLE = "The ", 300


def demo(
    *,
    run: Annotated[Path, Parameter(metavar="DIR")] = Path("runs/demo"),
    hidden: Whole = 128,
    steps: Whole = 1500,
) -> int:
    """Train a small model on the built-in text, then ask which truncation to use.

    About a minute of training and half a minute of measuring on 2 cores. Run again, it goes on with the trained model.

    Parameters
    ----------
    run
        Folder of the run; report.html appears there.
    hidden
        Units of the model, a GRU.
    steps
        Updates of the training.
    """
    at_least("--hidden", hidden)
    at_least("--steps", steps)

    from chronograd.cli.progress import TrainingProgress
    from chronograd.show.report import write_report
    from chronograd.style import require_matplotlib, save
    from chronograd.training.files import write_atomically
    from chronograd.training.metrics import read_metrics
    from chronograd.training.run import train_run
    from chronograd.training.run_folder import METRICS, load_run
    from chronograd.training.sampling import sample
    from chronograd.training.subject import subject_from_run
    from chronograd.truncation import parse

    require_matplotlib()
    config = TrainConfig(
        CORPUS, hidden=hidden, batch=ROWS, chunk=CHUNK, truncation=TRUNCATION, steps=steps, checkpoint_every=250
    )
    print(f"1. train a GRU of {hidden} units on the built-in text, {steps} updates", flush=True)
    with TrainingProgress(config) as progress:
        result = train_run(config, run, resume=True, on_step=progress.on_step, on_validation=progress.on_validation)
    if result.interrupted:
        print(f"interrupted and saved at step {result.step}; the same command goes on")
        return INTERRUPTED
    print("\n2. which truncation should be used here?", flush=True)
    subject = subject_from_run(run, STRETCH, ROWS)
    candidates = [parse(text) for text in CANDIDATES]
    comparison = measure(subject, candidates, DRAWS, 0, TOLERANCE)
    print_comparison(comparison)
    text = sample(load_run(run), PREFIX, SAMPLE, 0.7, 0)
    entries = read_metrics(run / METRICS)
    write_atomically(run / "comparison.json", (json.dumps(comparison.to_dict(), indent=2) + "\n").encode())
    save(comparison.plot(), run / "compare.svg")
    report = write_report(
        run / "report.html",
        title="Which truncation here?",
        model_words=subject.model_words,
        text_words=subject.text_words,
        comparison=comparison,
        text=subject.text[:SHOWN],
        segments=_segments(candidates, subject),
        entries=entries,
        facts=_facts(config, result, entries),
        sample=PREFIX + text,
    )
    print(f"\n3. report: {os.fspath(report)}")
    return DONE


def _segments(candidates: Sequence[Truncation], subject: Subject) -> dict[str, Sequence[int]]:
    """Where the stretches of those truncations start that are made of gates, in the first row of the text."""
    import torch

    from chronograd.show.strategies import segments_from_cuts
    from chronograd.truncation import Full, GatePlan, Place

    row = torch.zeros(1, dtype=torch.int64)
    place = Place(position=0, steps=min(SHOWN, len(subject.text)), rows=row, seed=0, since=row)
    found: dict[str, Sequence[int]] = {}
    for truncation in (*candidates, Full()):
        if truncation.primitive == "gates":
            plan = truncation.plan(place)
            assert isinstance(plan, GatePlan)
            found[str(truncation)] = segments_from_cuts(plan.gates[:, 0] == 0)
    return found


def _facts(config: TrainConfig, result: RunResult, entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    speeds = sorted(entry["tokens_per_second"] for entry in entries if "tokens_per_second" in entry)
    facts = [
        ("text", f"{config.corpus}, {result.vocabulary} different characters"),
        ("model", f"{config.model}, {config.hidden} units, {result.parameters:,} parameters"),
        (
            "updates",
            f"{result.step:,} of {config.batch} rows x {config.chunk} characters, truncation {config.truncation}",
        ),
    ]
    if result.validation_bits is not None and result.validation_perplexity is not None:
        words = f"{number(result.validation_bits)} bits per character, perplexity {result.validation_perplexity:.3g}"
        facts.append(("held-out text", words))
    if speeds:
        facts.append(("speed", f"{speeds[len(speeds) // 2]:,.0f} characters/s (median update)"))
    return facts
