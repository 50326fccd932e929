"""How a command shows where it is: a bar on a terminal, else a line every few seconds; on stderr."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from chronograd.cli.output import number
from chronograd.training.config import TrainConfig

if TYPE_CHECKING:
    from chronograd.training.evaluation import Evaluation
    from chronograd.training.loop import Step

__all__ = ["CompareProgress", "TrainingProgress"]

MEMORY = 0.95  # share of the past in the speed shown, so that it neither flickers nor hides a change


class TrainingProgress:
    """Shows the steps and validations of a run; use it in a ``with`` block.

    Args:
        config: of the run.
        console: where to show; stderr if ``None``.
        every: seconds between plain lines.
    """

    def __init__(self, config: TrainConfig, console: Console | None = None, every: float = 5.0) -> None:
        self._steps, self._every = config.steps, every
        self._unit = "character" if config.tokens == "characters" else "byte"
        self._console = console or Console(stderr=True, highlight=False)
        self._tokens = self._seconds = 0.0
        self._shown = time.monotonic()
        self._bar = _bar(self._console)

    def __enter__(self) -> TrainingProgress:
        if self._bar is not None:
            self._task = self._bar.add_task("", total=self._steps)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_step(self, step: Step) -> None:
        """Show an update."""
        self._tokens = MEMORY * self._tokens + step.tokens
        self._seconds = MEMORY * self._seconds + step.seconds
        speed = self._tokens / self._seconds if self._seconds else 0.0
        numbers = f"loss {number(step.loss)} nats, {number(step.bits)} bits, {speed:,.0f} {self._unit}s/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step.step, description=numbers)
        elif time.monotonic() - self._shown >= self._every:
            self._shown = time.monotonic()
            self._line(f"step {step.step} of {self._steps}: {numbers}")

    def on_validation(self, step: int, evaluation: Evaluation) -> None:
        """Show a validation."""
        if self._bar is not None:  # of a finished run, there was no update to show
            self._bar.update(self._task, completed=step)
        self._line(
            f"step {step}: validation {number(evaluation.bits)} bits per {self._unit}, "
            f"perplexity {evaluation.perplexity:.3g}"
        )

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


class CompareProgress:
    """Shows how far a measurement is; use it in a ``with`` block, and give ``note`` as ``on_progress``.

    Args:
        console: where to show; stderr if ``None``.
        every: seconds between plain lines.
    """

    def __init__(self, console: Console | None = None, every: float = 5.0) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._every, self._shown = every, time.monotonic()
        self._bar = _bar(self._console)

    def __enter__(self) -> CompareProgress:
        if self._bar is not None:
            self._task = self._bar.add_task("measuring", total=None)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def note(self, done: int, total: int, what: str) -> None:
        """Show what is being measured, after ``done`` of ``total`` gradients."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, description=f"measuring {what}")
        elif time.monotonic() - self._shown >= self._every:
            self._shown = time.monotonic()
            self._console.print(f"measuring {what}: {done} of {total}", markup=False, soft_wrap=True)


def _bar(console: Console) -> Progress | None:
    """A bar, where there is a terminal that can show one."""
    if not console.is_terminal or console.is_dumb_terminal:
        return None
    return Progress(
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("{task.description}"),
        TimeRemainingColumn(compact=True),
        console=console,
        expand=True,
    )
