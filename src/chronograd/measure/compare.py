"""Which truncation should I use here? Bias, variance, direction, reach and cost of each, against the exact one.

For an estimate ghat of the exact gradient g, over all parameters taken as one vector::

    bias = ||E ghat - g|| / ||g||
    variance = E ||ghat - E ghat||^2 / ||g||^2
    cosine = E <ghat, g> / (||ghat|| ||g||)

Random truncations are drawn several times; their figures come with standard errors, and a measured bias with the
length that noise alone would give it. The yardstick for a variance is the noise that the minibatch has itself: how
much g would change on other rows.

Known gaps: one stretch of data and one set of parameters; a truncation that is good now may not be so later in
training. Dropout is switched off: windows run steps again under new masks, whose noise would look like bias. The exact
gradient of the whole stretch must fit in memory once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from chronograd.carry import whole_seed
from chronograd.modes import Mode, Reverse
from chronograd.modes import parse as parse_mode
from chronograd.recurrence.contract import shown
from chronograd.truncation import AdaptiveTruncation, Chunks, Full, RandomTruncation, Truncation, Window, parse

from .comparison import Candidate, Comparison
from .cost import PeakBytes, seconds
from .question import Question, flatten, without_dropout

__all__ = ["compare", "usual_candidates"]

Pair = tuple[Truncation, Mode]
EXACT: Pair = (Full(), Reverse())
REPEATS = 5


def usual_candidates(steps: int) -> list[Truncation]:
    """Truncations worth trying on ``steps`` steps: chunks, windows and random cuts of about steps / 20 and steps / 5.

    Those that would cut nothing on so few steps are left out; on a single step all would.

    >>> [str(truncation) for truncation in usual_candidates(200)]
    ['chunks:10', 'chunks:40', 'window:10,40', 'random:40', 'random:40,polynomial,4.0', 'adaptive:0.1,50']
    >>> [str(truncation) for truncation in usual_candidates(2)]
    ['chunks:1', 'random:2', 'random:2,polynomial,4.0']
    >>> usual_candidates(1)
    []
    """
    if steps < 2:
        return []
    short, long, window = max(1, round(steps / 20)), max(2, round(steps / 5)), max(4, steps // 4)
    return [
        Chunks(short),
        *([Chunks(long), Window(short, long)] if long < steps else []),
        RandomTruncation(long),
        RandomTruncation(long, tail="polynomial"),
        # It begins with its longest look-back and decides on another after a window.
        *([AdaptiveTruncation(0.1, window=window)] if window < steps else []),
    ]


def compare(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    inputs: Any,
    targets: Any,
    candidates: Truncation | str | Pair | Sequence[Truncation | str | Pair] | None = None,
    *,
    draws: int = 32,
    reset: Tensor | None = None,
    lengths: Tensor | None = None,
    weights: Tensor | None = None,
    seed: int = 0,
    tolerance: float = 0.1,
    on_progress: Callable[[int, int, str], object] | None = None,
) -> Comparison:
    """Measure each candidate's gradient against the exact one, on one stretch of your data.

    Args:
        model, loss_fn, inputs, targets, reset, lengths, weights: as for ``value_and_grad``.
        candidates: truncations, (truncation, mode) pairs, or their names (``"chunks:35"``, ``"full reverse:256MB"``);
            one alone or several. None takes ``usual_candidates``. Full computation is always measured too.
        draws: how often random truncations are drawn, at least 2.
        seed: of the draws: draw n has seed + n.
        tolerance: the relative bias that a recommendation may have.
        on_progress: called with (done, of how many, what now).

    Returns:
        A ``Comparison``: ``.table()``, ``.recommendation``, ``.to_dict()``, ``.plot()``. The model is measured in
        evaluation mode, without dropout. Its train/eval flags and torch's generator are left as they were.

    Raises:
        TypeError: arguments that are none of what is said above.
        ValueError: ``draws`` below 2, ``tolerance`` not above 0, no candidates, a candidate not understood, a model
            with nothing to train, or an exact gradient of zero.

    >>> import chronograd as cg
    >>> _ = torch.manual_seed(0)
    >>> model = cg.Recurrent(nn.RNNCell(2, 8), nn.Linear(8, 1))
    >>> loss_fn = lambda outputs, targets: (outputs - targets).square().mean(-1)
    >>> x = torch.randn(40, 4, 2)
    >>> result = cg.compare(model, loss_fn, x, x[..., :1], ["chunks:2", "window:1,10"])
    >>> [row.truncation for row in result.candidates]
    ['full', 'chunks:2', 'window:1,10']
    >>> result.candidates[2].bias < result.candidates[1].bias
    True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"compare: model must be a Module such as torch.nn.GRU(8, 16), not {shown(model)}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("compare: the model has no trainable parameter, so there is no gradient; unfreeze some")
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 2:
        raise ValueError(f"compare: draws must be a whole number of at least 2, not {draws!r}")
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float):
        raise TypeError(f"compare: tolerance must be a number, not {shown(tolerance)}")
    if not 0 < tolerance < math.inf:
        raise ValueError(f"compare: tolerance must be above 0 and finite, not {tolerance!r}")
    if (begin := whole_seed(seed)) is None:
        raise TypeError("compare: seed must be a whole number; every draw has its own, seed + n")
    given = None if candidates is None else _pairs(candidates)
    question = Question(model, loss_fn, inputs, targets, reset, lengths, weights, begin)
    with without_dropout(model):
        return _measure(question, given, draws, tolerance, on_progress)


def _measure(
    question: Question,
    given: list[Pair] | None,
    draws: int,
    tolerance: float,
    on_progress: Callable[[int, int, str], object] | None,
) -> Comparison:
    exact, _ = question.gradient(*EXACT)  # first, so that what cannot be computed is refused
    pairs = [(truncation, Reverse()) for truncation in usual_candidates(question.steps)] if given is None else given
    pairs = [EXACT, *dict.fromkeys(pair for pair in pairs if pair != EXACT)]
    times = {pair: draws if _random(pair) else REPEATS for pair in pairs}
    progress = _Progress(on_progress, 1 + len(pairs) + sum(times.values()))

    progress.note("the minibatch's noise")
    errors = {pair: _Errors(flatten(exact, exact)) for pair in pairs}
    size = float(errors[EXACT].exact.norm())
    if not 0 < size < math.inf:
        raise ValueError(
            f"compare: the exact gradient has norm {size:g}, so nothing can be measured against it; "
            "check the loss, the data and what is frozen"
        )
    noise = question.noise(Reverse())
    peaks = {}
    for pair in pairs:
        progress.note(f"{pair[0]}: memory")
        with PeakBytes() as count:
            question.gradient(*pair)
        peaks[pair] = count.peak
    clocks: dict[Pair, list[float]] = {pair: [] for pair in pairs}
    for draw in range(max(times.values())):  # interleaved, so that a slow moment of the machine meets all alike
        for pair in pairs:
            if draw < times[pair]:
                progress.note(str(pair[0]))
                took, (gradient, _) = seconds(partial(question.gradient, *pair, draw=draw))
                clocks[pair].append(took)
                if draw == 0 or _random(pair):
                    errors[pair].add(flatten(gradient, exact))
    rows = [
        Candidate(
            truncation=str(pair[0]),
            mode=str(pair[1]),
            unbiased=pair[0].unbiased and pair[1].unbiased,
            look_back=question.look_back(*pair),
            seconds=median(clocks[pair]),
            peak_bytes=peaks[pair],
            exact=isinstance(pair[0], Full) and pair[1].exact,
            online=pair[1].online,
            **errors[pair].figures(),
        )
        for pair in pairs
    ]
    progress.note("done")
    return Comparison(tuple(rows), float(exact.loss), size, noise, question.steps, question.rows, draws, tolerance)


def _pairs(candidates: Any) -> list[Pair]:
    """Truncations with their modes; one may stand alone."""
    match candidates:
        case str() | Truncation() | (Truncation(), Mode()):
            candidates = [candidates]
    try:
        listed = list(candidates)
    except TypeError:
        listed = [candidates]
    if not listed:
        raise ValueError('compare: no candidates; give some, as in ["chunks:35", "window:10,50"]')
    return [_pair(entry) for entry in listed]


def _pair(entry: Any) -> Pair:
    match entry:
        case str():
            truncation, *mode = entry.split(maxsplit=1) or [entry]
            return parse(truncation), parse_mode(mode[0]) if mode else Reverse()
        case Truncation():
            return entry, Reverse()
        case (Truncation() as truncation, Mode() as mode):
            return truncation, mode
    raise ValueError(
        f"compare: {shown(entry)} is no truncation, name of one or (truncation, mode) pair, such as cg.Chunks(35) "
        "or 'chunks:35'"
    )


def _random(pair: Pair) -> bool:
    """Whether truncation or mode draw, so that one estimate does not tell."""
    return pair[0].random or pair[1].random


@dataclass
class _Progress:
    call: Callable[[int, int, str], object] | None
    total: int
    done: int = 0

    def note(self, what: str) -> None:
        if self.call is not None:
            self.call(self.done, self.total, what)
        self.done += 1


@dataclass
class _Errors:
    """Sums over draws of ghat - g, from which bias, variance and cosine come, without keeping the draws."""

    exact: Tensor
    total: Tensor | None = None
    squares: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)

    def add(self, estimate: Tensor) -> None:
        error = estimate - self.exact
        self.total = error if self.total is None else self.total + error
        self.squares.append(float(error.square().sum()))
        both = float(estimate.norm() * self.exact.norm())
        self.cosines.append(float(estimate @ self.exact) / both if both else 0.0)

    def figures(self) -> dict[str, Any]:
        """Relative to the exact gradient's length; standard errors are 0 for what is not random."""
        assert self.total is not None
        n, unit = len(self.squares), float(self.exact.square().sum())
        squares, cosines = torch.tensor(self.squares).double() / unit, torch.tensor(self.cosines).double()
        shift = float((self.total / n).square().sum()) / unit
        variance = max(0.0, float(squares.mean()) - shift) * n / (n - 1) if n > 1 else 0.0
        return {
            "draws": n,
            "bias": math.sqrt(shift),
            "bias_noise": math.sqrt(variance / n),
            "variance": variance,
            "variance_error": float(squares.std()) / math.sqrt(n) if n > 1 else 0.0,
            "cosine": float(cosines.mean()),
            "cosine_error": float(cosines.std()) / math.sqrt(n) if n > 1 else 0.0,
        }
