"""``chronograd train``: a character model on a text, in a folder that can be stopped and taken up again."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from chronograd.cli.errors import DONE, INTERRUPTED, UsageError
from chronograd.cli.output import number, print_json, print_table
from chronograd.cli.values import Whole, one_of, read_truncation
from chronograd.training.config import CELLS, TrainConfig

if TYPE_CHECKING:
    from chronograd.training.run import RunResult

__all__ = ["train"]


def train(
    corpus: str,
    /,
    *,
    run: Annotated[Path, Parameter(metavar="DIR")],
    model: Annotated[str, one_of(*CELLS)] = TrainConfig.model,
    hidden: Whole = TrainConfig.hidden,
    layers: Whole = TrainConfig.layers,
    batch: Whole = TrainConfig.batch,
    chunk: Whole = TrainConfig.chunk,
    truncation: str = TrainConfig.truncation,
    mode: str = TrainConfig.mode,
    steps: Whole = TrainConfig.steps,
    lr: float = TrainConfig.lr,
    clip: float = TrainConfig.clip,
    seed: Whole = TrainConfig.seed,
    preprocess: Annotated[str, one_of("none", "letters")] = "none",
    tokens: Annotated[str, one_of("characters", "bytes")] = TrainConfig.tokens,
    resume: Annotated[str, one_of("auto", "never")] = "auto",
    checkpoint_every: Whole = TrainConfig.checkpoint_every,
    as_json: Annotated[bool, Parameter(name="--json", negative="", show_default=False)] = False,
) -> int:
    """Train a character model on a text.

    Ctrl-C finishes the step, saves and ends; the same command then goes on where it stopped.

    Parameters
    ----------
    corpus
        What to read: builtin, timemachine, or a UTF-8 file.
    run
        Folder of the run: settings, metrics, checkpoints, the model.
    model
        Kind of recurrent layer.
    hidden
        Units in a layer.
    layers
        How many layers.
    batch
        Rows of text, read side by side.
    chunk
        Characters of each row in one update; with chunks:K a multiple of K avoids running open steps again.
    truncation
        How far back gradients reach: full, chunks:K, window:K1,K2, random:LENGTH or adaptive:TOLERANCE.
    mode
        How gradients are computed.
    steps
        Updates in all, those before a resume included.
    lr
        Learning rate of Adam.
    clip
        Longest gradient; 0 does not clip.
    seed
        Of the first parameters and of random truncations.
    preprocess
        letters: keep a-z and single spaces only.
    tokens
        What the model reads; a file read as bytes may be larger than memory.
    resume
        auto: go on where the run in the folder stopped.
    checkpoint_every
        Updates from one checkpoint and validation to the next.
    as_json
        Print the result as JSON.
    """
    read_truncation(truncation)
    try:
        config = TrainConfig(
            corpus=corpus,
            preprocess="" if preprocess == "none" else preprocess,
            tokens=tokens,
            model=model,
            hidden=hidden,
            layers=layers,
            batch=batch,
            chunk=chunk,
            truncation=truncation,
            mode=mode,
            steps=steps,
            lr=lr,
            clip=clip,
            seed=seed,
            checkpoint_every=checkpoint_every,
        )
    except ValueError as error:
        raise UsageError(_with_option(str(error))) from None

    from chronograd.cli.progress import TrainingProgress
    from chronograd.training.run import train_run

    with TrainingProgress(config) as progress:
        result = train_run(
            config,
            run,
            resume=resume == "auto",
            on_step=progress.on_step,
            on_validation=progress.on_validation,
        )
    if as_json:
        print_json(result.to_dict())
    else:
        print_table(_summary(result, config))
    return INTERRUPTED if result.interrupted else DONE


def _with_option(message: str) -> str:
    """A setting at the beginning of a message as its option is written."""
    name, _, rest = message.partition(" ")
    return f"--{name.replace('_', '-')} {rest}" if name in {field.name for field in fields(TrainConfig)} else message


def _summary(result: RunResult, config: TrainConfig) -> list[tuple[str, str]]:
    unit = "character" if config.tokens == "characters" else "byte"
    rows = [
        ("run", result.folder),
        ("model", f"{config.model}, {result.parameters:,} parameters, {result.vocabulary} different {unit}s"),
    ]
    done = f"{result.step:,} of {config.steps:,} steps" + (", interrupted and saved" if result.interrupted else "")
    if result.resumed_from is not None:
        done += f"; taken up at {result.resumed_from:,}"
    rows.append(("trained", done))
    if result.tokens_per_second is not None:
        rows.append(("speed", f"{result.tokens_per_second:,.0f} {unit}s/s for {result.seconds:,.1f} s"))
    if result.validation_bits is not None:
        perplexity = f"perplexity {result.validation_perplexity:.3g}"
        rows.append(("validation", f"{number(result.validation_bits)} bits per {unit}, {perplexity}"))
    rows.append(("next", f"chronograd sample {shlex.quote(result.folder)}"))
    return rows
