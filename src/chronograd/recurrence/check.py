"""``check_model``: does a model keep the laws that gradients through time rest on?

Causal; rows independent; running in pieces equals running whole; a state whose rows can be found. Each is tested by
running the model, not by looking at its code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from . import laws
from .adapters import Recurrence, adapt
from .contract import check_pair, shown
from .laws import Problem, Trial
from .quiet import quiet
from .states import check_state, leaves

__all__ = ["ModelReport", "Problem", "check_model"]

Tree = Any


@dataclass(frozen=True)
class ModelReport:
    """What ``check_model`` found, as plain data.

    ``kind`` is ``"layers"``, ``"opaque"``, ``"whole"``, or ``"unknown"`` where the model could not be run;
    ``checked`` are the laws that were tested, ``notes`` what was not and why. ``random`` says that the model draws
    random numbers in the mode it was given in.
    """

    model: str
    kind: str
    random: bool
    checked: tuple[str, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True where no law was broken."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Nested dicts, lists, strings and numbers."""
        problems = [{**asdict(problem), "where": problem.where} for problem in self.problems]
        return {
            "model": self.model,
            "kind": self.kind,
            "ok": self.ok,
            "random": self.random,
            "checked": list(self.checked),
            "problems": problems,
            "notes": list(self.notes),
        }

    def table(self) -> str:
        """One line for each law, and what helps under those that are broken."""
        found = "all laws hold" if self.ok else f"{len(self.problems)} broken"
        lines = [f"{self.model} ({self.kind}): {found}"]
        for law in dict.fromkeys((*self.checked, *(problem.law for problem in self.problems))):
            broken = [problem for problem in self.problems if problem.law == law]
            if not broken:
                lines.append(f"  {law:<10}  holds")
            for problem in broken:
                lines.append(f"  {law:<10}  BROKEN  {problem.what}" + (f" ({problem.where})" if problem.where else ""))
                lines.append(f"  {'':<10}          {problem.remedy}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def __str__(self) -> str:
        return self.table()


def check_model(model: nn.Module, inputs: Tree, state: Tree = None) -> ModelReport:
    """Test the laws of a model by running it some twenty times.

    A model that draws random numbers is tested in evaluation mode (batch normalization stays as it is), and for one
    mask over all steps in its own mode. Parameters, buffers, random numbers and train/eval flags are left as they were.

    Args:
        model: ``(inputs, state) -> (outputs, state)``, a torch layer or a torch cell.
        inputs: (T, B, ...), or a nesting of such; a few steps and rows are enough, two of each at least.
        state: the state to begin with; None is the model's own.

    Raises:
        TypeError: where the model is no Module.
        ValueError: where the inputs hold no (T, B, ...) tensors of at least one step and row.

    >>> import torch
    >>> report = check_model(torch.nn.GRU(3, 4), torch.randn(5, 2, 3))
    >>> report.ok, report.kind
    (True, 'layers')
    >>> report = check_model(torch.nn.GRU(3, 4, bidirectional=True), torch.randn(5, 2, 3))
    >>> [problem.law for problem in report.problems]
    ['causal', 'pieces']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"check_model: model must be a Module such as torch.nn.GRU(8, 16), not {shown(model)}")
    tensors = leaves(inputs)
    if not tensors or any(x.dim() < 2 or x.shape[:2] != tensors[0].shape[:2] or 0 in x.shape[:2] for x in tensors):
        found = [tuple(x.shape) for x in tensors] or type(inputs).__name__
        raise ValueError(f"check_model: inputs must be tensors (T, B, ...) of at least one step and row, not {found}")
    recurrence = adapt(model, inputs)
    with quiet(model), _modes(model):
        return _Check(recurrence, inputs, state).report()


class _Check:
    """The laws in order; what cannot even be called is not asked further."""

    def __init__(self, recurrence: Recurrence, inputs: Tree, state: Tree) -> None:
        self.recurrence, self.inputs, self.state = recurrence, inputs, state
        self.checked: list[str] = []
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.random = False

    def report(self) -> ModelReport:
        kind = "unknown"
        if (trial := self._first_run()) and self._ask("shape", laws.shapes, trial) and self._ask_repeats(trial):
            kind = self._laws(self._run())
        found = tuple(self.checked), tuple(self.problems), tuple(self.notes)
        return ModelReport(type(self.recurrence.model).__name__, kind, self.random, *found)

    def _run(self) -> Trial:
        return Trial(self.recurrence.call, self.inputs, self.state, *self.recurrence.call(self.inputs, self.state))

    def _first_run(self) -> Trial | None:
        self.checked.append("pair")
        before = torch.get_rng_state()
        try:
            made = self.recurrence.call(self.inputs, self.state)
        except Exception as error:
            self._say("pair", _raised(error), "take (inputs, state=None), inputs being (T, B, ...)")
            return None
        self.random = not torch.equal(before, torch.get_rng_state())
        try:
            outputs, state = check_pair(made)
        except TypeError as error:
            self._say("pair", *str(error).split("; ", 1))
            return None
        try:
            check_state(state)
        except TypeError as error:
            self._say("state rows", str(error), "make the state of tuples, lists and dicts of tensors")
            return None
        return Trial(self.recurrence.call, self.inputs, self.state, outputs, state)

    def _ask_repeats(self, trial: Trial) -> bool:
        model = self.recurrence.model
        if self.random:
            self._ask("one mask", lambda t: laws.masks(t.call, t.inputs, t.final), trial)
            _calm(model)
            self.notes.append("the model draws random numbers: the other laws were tested in evaluation mode")
        return self._ask("repeats", laws.repeats, self._run())

    def _laws(self, trial: Trial) -> str:
        steps, rows = trial.size
        if steps > 1:
            self._ask("causal", laws.causal, trial)
            self._ask("pieces", laws.pieces, trial)
        else:
            self.notes.append("with one step, neither causality nor running in pieces can be tested")
        if rows > 1 or self.state is None:
            self._ask("rows", laws.rows, trial)
        else:
            self.notes.append("with one row and a given state, independence of rows cannot be tested")
        self._ask("carried", laws.carried, trial)
        try:
            kind = self.recurrence.kind
        except Exception as error:
            self._say("state rows", _raised(error), "let the model run on two rows, or declare state_row_dim")
            return "unknown"
        if self._ask("state rows", self._dims, trial) and kind == "whole":
            self.notes.append(f"{self.recurrence.hides}: only Full() within one call has a meaning")
        return kind

    def _dims(self, trial: Trial) -> Iterator[Problem]:
        try:
            assert self.recurrence.dims
        except (ValueError, TypeError) as error:
            yield Problem("state rows", str(error), "give the model an attribute state_row_dim")

    def _ask(self, law: str, test: Callable[[Trial], Iterator[Problem]], trial: Trial) -> bool:
        """Test one law; True where it holds."""
        self.checked.append(law)
        count = len(self.problems)
        try:
            self.problems += test(trial)
        except Exception as error:
            remedy = "take any number of steps and rows, from one on, and any state it returned"
            self._say(law, _raised(error), laws.statistics(trial.call) or remedy)
        return len(self.problems) == count

    def _say(self, law: str, what: str, remedy: str) -> None:
        self.problems.append(Problem(law, what, remedy))


def _raised(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"the model raised {type(error).__name__}: {text[:200]}"


def _calm(model: nn.Module) -> None:
    """Evaluation mode, for all but batch normalization, whose statistics are one of the things to find."""
    for module in model.modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.training = False


@contextmanager
def _modes(model: nn.Module) -> Iterator[None]:
    """Give back the train/eval flags."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
