"""The answer of ``compare``: plain data that writes itself as a table, recommends one row, and draws itself."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MARGIN", "Candidate", "Comparison"]

MARGIN = 0.15  # of cost, within which two candidates count as equally cheap


@dataclass(frozen=True)
class Candidate:
    """One truncation and mode, measured.

    Attributes:
        truncation, mode: as the command line writes them.
        unbiased: whether its expectation is the exact gradient, by construction; ``exact``, whether it is that itself.
        online: whether its mode walks along with a stream one step at a time, in memory that does not grow.
        look_back: mean number of steps a loss reaches back, its own included.
        seconds: median time of one gradient.
        peak_bytes: most bytes of tensors alive at once.
        draws: estimates that the figures below rest on; 1 where nothing is random.
        bias: ||mean - g|| / ||g|| as measured; ``bias_noise`` is what noise alone would make of an unbiased one.
        variance: E ||ghat - E ghat||^2 / ||g||^2, with its standard error ``variance_error``.
        cosine: mean cosine of the angle to g, with its standard error ``cosine_error``.
    """

    truncation: str
    mode: str
    unbiased: bool
    look_back: float
    seconds: float
    peak_bytes: int
    draws: int
    bias: float
    bias_noise: float
    variance: float
    variance_error: float
    cosine: float
    cosine_error: float
    exact: bool = False
    online: bool = False

    @property
    def label(self) -> str:
        """The truncation, and the mode where it is not the usual one."""
        return self.truncation if self.mode == "reverse" else f"{self.truncation} {self.mode}"

    @property
    def sure_bias(self) -> float:
        """The bias with the share of noise taken out: 0 for unbiased ones."""
        return 0.0 if self.unbiased else math.sqrt(max(0.0, self.bias**2 - self.bias_noise**2))

    @property
    def error(self) -> float:
        """Root mean square error of one estimate, relative to the length of g."""
        return math.sqrt(self.sure_bias**2 + self.variance)


@dataclass(frozen=True)
class Comparison:
    """Candidates measured on one stretch of data; the first is full computation.

    Attributes:
        candidates: the rows.
        loss: of the stretch.
        gradient_norm: ||g||.
        noise: relative variance of g under the choice of rows; None where there is one row only.
        steps, rows: T and B of the stretch.
        draws: draws of random truncations.
        tolerance: the relative bias that a recommendation may have.
    """

    candidates: tuple[Candidate, ...]
    loss: float
    gradient_norm: float
    noise: float | None
    steps: int
    rows: int
    draws: int
    tolerance: float

    @property
    def recommended(self) -> Candidate:
        """The cheapest candidate whose bias is within the tolerance and whose variance is below the minibatch's own.

        Cost is the geometric mean of time and memory, relative to full computation, which is taken where nothing
        cheaper qualifies. Clocks are noisy: among those that cost at most ``MARGIN`` more than the cheapest, the one
        of least error is taken. A candidate whose losses reach back as far as those of full computation (``chunks:50``
        on 50 steps) is full computation by another name here, and is not recommended for what a clock says.
        """
        full, *others = self.candidates
        good = [row for row in others if self._good(row) and self._cuts(row) and self._cost(row) < 1]
        most = min(map(self._cost, good), default=0.0) * (1 + MARGIN)
        return min((row for row in good if self._cost(row) <= most), key=lambda row: row.error, default=full)

    @property
    def recommendation(self) -> str:
        """One line: what to use here, and why."""
        row, full = self.recommended, self.candidates[0]
        if row is full:
            others = (
                "no candidate is within the limits and cheaper"
                if len(self.candidates) > 1
                else "nothing else was measured"
            )
            return (
                f"use {row.label}: {others} (bias at most {self.tolerance:g}, variance at most {self._variance_words})"
            )
        bias = "no bias" if row.unbiased else f"bias {row.sure_bias:.2g} of the gradient (limit {self.tolerance:g})"
        spread = "no variance" if row.variance == 0 else f"variance {row.variance:.2g} (limit {self._variance_words})"
        time, memory = row.seconds / full.seconds, row.peak_bytes / max(1, full.peak_bytes)
        return (
            f"use {row.label}: {bias}, {spread}, {time:.2f}x the time and {memory:.2f}x the memory of full computation"
        )

    @property
    def variance_limit(self) -> float:
        """The variance a recommendation may have: the minibatch's own, or the square of the tolerance for one row."""
        return self.tolerance**2 if self.noise is None else self.noise

    @property
    def _variance_words(self) -> str:
        return f"{self.variance_limit:.2g}" + ("" if self.noise is None else ", the minibatch's own")

    def _good(self, row: Candidate) -> bool:
        return row.sure_bias <= self.tolerance and row.variance <= self.variance_limit

    def _cuts(self, row: Candidate) -> bool:
        """Whether it is anything else than full computation on these steps."""
        full = self.candidates[0]
        approximate = row.truncation == full.truncation and not row.exact  # by its mode: full snap:1
        return row.draws > 1 or approximate or row.look_back < full.look_back - 1e-9

    def _cost(self, row: Candidate) -> float:
        full = self.candidates[0]
        return math.sqrt(row.seconds / full.seconds * row.peak_bytes / max(1, full.peak_bytes))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``--json`` prints them."""
        return {**asdict(self), "recommended": self.recommended.label, "recommendation": self.recommendation}

    HEADINGS = ("truncation", "bias", "variance", "cosine", "look-back", "seconds", "peak MB")

    def cells(self) -> list[tuple[str, ...]]:
        """The table's rows as text, in the order of ``HEADINGS``; random ones show their standard errors."""
        return [
            (
                row.label,
                _pm(row.bias, row.bias_noise),
                _pm(row.variance, row.variance_error),
                _pm(row.cosine, row.cosine_error),
                f"{row.look_back:.1f}",
                f"{row.seconds:.3f}",
                f"{row.peak_bytes / 1e6:.1f}",
            )
            for row in self.candidates
        ]

    def table(self) -> str:
        """The rows under their headings, as text of fixed width."""
        rows = [self.HEADINGS, *self.cells()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(self.HEADINGS))]
        lines = [
            "  ".join(
                cell.rjust(width) if column else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths))
            )
            for row in rows
        ]
        return "\n".join(line.rstrip() for line in lines)

    def plot(self) -> Figure:
        """The comparison as a figure; ``chronograd.style.save(figure, "compare.svg")`` writes it.

        Raises:
            ImportError: matplotlib is missing.
        """
        from .comparison_figure import draw_comparison

        return draw_comparison(self)


def _pm(value: float, error: float) -> str:
    """A figure with its standard error, both to the error's digits.

    >>> _pm(0.12345, 0.0), _pm(0.12345, 0.021), _pm(-0.0, 0.0), _pm(12.3, 4.0)
    ('0.123', '0.123 ± 0.021', '0', '12.3 ± 4')
    """
    if error:
        return f"{value:.3g} ± {error:.2g}"
    return f"{value + 0.0:.3g}" if abs(value) >= 1e-9 else "0"
