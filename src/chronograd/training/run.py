"""A run: train a character model and keep it in a folder, to be stopped and taken up again.

The folder appears with the first update, so a run that is refused leaves nothing behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from chronograd.carry import Carry
from chronograd.data.streams import ChunkStream
from chronograd.modes import parse as parse_mode
from chronograd.training.checkpoints import save_checkpoint
from chronograd.training.config import TrainConfig
from chronograd.training.evaluation import Evaluation, evaluate
from chronograd.training.interrupts import StopRequest
from chronograd.training.loop import Step, training_steps
from chronograd.training.metrics import append_metrics
from chronograd.training.run_folder import (
    CHECKPOINTS,
    METRICS,
    begin_folder,
    build_model,
    check_folder,
    need_safetensors,
    save_model,
    saved_state,
    settings_tables,
)
from chronograd.training.text import open_text
from chronograd.truncation import parse as parse_truncation

__all__ = ["RunResult", "train_run"]


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        folder: where it lies.
        step: updates made in all.
        resumed_from: the step it was taken up at, or None.
        interrupted: whether it stopped because it was asked to.
        loss: nats a token of the last update; None if none was made.
        validation_loss, validation_bits, validation_perplexity: of the last validation, in nats and bits a token, and
            as exp(nats); None if a run was interrupted before its first.
        parameters: how many numbers the model has.
        vocabulary: how many tokens there are.
        tokens: predictions made in this session.
        seconds: what its updates took.
        tokens_per_second: the quotient; None if no update was made.
    """

    folder: str
    step: int
    resumed_from: int | None
    interrupted: bool
    loss: float | None
    validation_loss: float | None
    validation_bits: float | None
    validation_perplexity: float | None
    parameters: int
    vocabulary: int
    tokens: int
    seconds: float
    tokens_per_second: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)


def train_run(
    config: TrainConfig,
    folder: Path,
    *,
    resume: bool = False,
    on_step: Callable[[Step], object] | None = None,
    on_validation: Callable[[int, Evaluation], object] | None = None,
) -> RunResult:
    """Train a character model as ``config`` says and keep everything in ``folder``.

    Ctrl-C or SIGTERM let the current update finish, save, and return with ``interrupted=True``; a second one stops at
    once, as a kill does, and costs the updates since the last checkpoint. A resumed run gives bit for bit what the
    uninterrupted one gives (same machine, same versions). Torch's generator is left as it was.

    Args:
        config: the settings.
        folder: made if absent.
        resume: go on from the newest checkpoint that loads; begin if there is none.
        on_step: called after every update.
        on_validation: called with the step and the result after every validation.

    Raises:
        FileExistsError: the folder holds a run and ``resume`` is False, or holds other files.
        ValueError: the run in the folder was made with other settings or another text; or a setting cannot be used.
        FloatingPointError: a loss or gradient is not finite.
        ImportError: safetensors is not installed.

    >>> import tempfile
    >>> config = TrainConfig("builtin", preprocess="letters", hidden=8, batch=256, chunk=10, steps=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = train_run(config, Path(folder))
    >>> result.step, result.vocabulary, result.interrupted
    (2, 27, False)
    """
    need_safetensors()
    check_folder(folder, resume)
    text = open_text(config)
    stream = ChunkStream(text.train, config.batch, config.chunk, tail="pad", epochs=None)
    held_out = ChunkStream(text.held_out, min(config.batch, len(text.held_out) - 1), config.chunk)
    tables = settings_tables(config, text)
    saved = saved_state(folder, tables) if resume else None

    with torch.random.fork_rng(devices=[]), StopRequest() as stop:
        torch.manual_seed(config.seed)
        model = build_model(config, text.vocabulary.size)
        optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
        carry, first = (None, 0) if saved is None else _restore(saved, model, optimizer, stream)
        step, loss, tokens, seconds = first, None, 0, 0.0
        validated: tuple[int, Evaluation] | None = None

        def validate() -> tuple[int, Evaluation]:
            held_out.rewind()
            result = evaluate(model, held_out)
            if on_validation is not None:
                on_validation(step, result)
            return step, result

        updates = training_steps(
            model,
            stream,
            optimizer=optimizer,
            truncation=parse_truncation(config.truncation),
            mode=parse_mode(config.mode),
            clip=config.clip or None,
            carry=carry,
            first_step=first,
            seed=config.seed,
        )
        leaving = False
        while step < config.steps and not leaving:
            done = next(updates)
            if step == first:
                begin_folder(folder, tables, first)
            step, loss = done.step, done.loss
            tokens, seconds = tokens + done.tokens, seconds + done.seconds
            append_metrics(folder / METRICS, _update_line(done))
            if on_step is not None:
                on_step(done)
            leaving = stop.asked  # read once: what is asked from here on waits for the next update, which is saved then
            due = step == config.steps or step % config.checkpoint_every == 0
            if due or leaving:
                state = _snapshot(model, optimizer, stream, done.carry)
                save_checkpoint(folder / CHECKPOINTS, step, state)
            if due:
                validated = validate()
                append_metrics(folder / METRICS, _validation_line(*validated))
        interrupted = step < config.steps
        if not interrupted and validated is None:  # there was nothing left to do
            validated = validate()
        if step > 0:
            save_model(folder, model)

    quality = None if validated is None else validated[1]
    return RunResult(
        folder=str(folder),
        step=step,
        resumed_from=None if saved is None else first,
        interrupted=interrupted,
        loss=loss,
        validation_loss=None if quality is None else quality.loss,
        validation_bits=None if quality is None else quality.bits,
        validation_perplexity=None if quality is None else quality.perplexity,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocabulary=text.vocabulary.size,
        tokens=tokens,
        seconds=seconds,
        tokens_per_second=tokens / seconds if seconds else None,
    )


def _snapshot(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, stream: ChunkStream, carry: Carry
) -> dict[str, Any]:
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "stream": stream.state_dict(),
        "carry": carry.state_dict(),
        "torch_rng": torch.get_rng_state(),
    }


def _restore(
    saved: dict[str, Any], model: torch.nn.Module, optimizer: torch.optim.Optimizer, stream: ChunkStream
) -> tuple[Carry, int]:
    """Put everything back as ``_snapshot`` found it; the carry and the step are new objects."""
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    stream.load_state_dict(saved["stream"])
    torch.set_rng_state(saved["torch_rng"])
    return Carry.from_state_dict(saved["carry"]), saved["step"]


def _update_line(done: Step) -> dict[str, Any]:
    return {
        "step": done.step,
        "loss": done.loss,
        "bits": done.bits,
        "norm": done.norm,
        "tokens": done.tokens,
        "seconds": done.seconds,
        "tokens_per_second": done.tokens / done.seconds,
    }


def _validation_line(step: int, quality: Evaluation) -> dict[str, Any]:
    finite = {name: value for name, value in quality.to_dict().items() if math.isfinite(value)}
    return {"step": step, **{f"validation_{name}": value for name, value in finite.items()}}
