"""The answer of ``forecast``: plain data that writes itself as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from chronograd.modes.budget import show_bytes

__all__ = ["LONGEST", "Forecast", "Outlook"]

# Steps: looking for the best plan takes time as the root of their number, here about a second.
LONGEST = 10**13


@dataclass(frozen=True)
class Outlook:
    """What one mode would take for a gradient of the whole sequence.

    Attributes:
        mode: as the command line writes it.
        peak_bytes: most bytes held at once beyond the model, its gradients and the data; None where it is refused.
        runs: forward runs of a step on average; 1 where all are stored; None where it is refused, and for ``scan``,
            which iterates.
        seconds: between which the time will lie, as far as repeated calibration can tell; None where it is refused.
        fits: whether the peak is less than what is free; None where it is refused, or the system does not say.
        refusal: why the mode cannot run, in one line; None where it can.
    """

    mode: str
    peak_bytes: int | None = None
    runs: float | None = None
    seconds: tuple[float, float] | None = None
    fits: bool | None = None
    refusal: str | None = None


@dataclass(frozen=True)
class Forecast:
    """What modes would take for a gradient of ``steps`` steps of ``rows`` rows.

    Attributes:
        modes: the rows.
        steps, rows: T and B of the sequence.
        step_bytes: of the graph of one stored step, all rows.
        state_bytes: of one stored state, all rows.
        free_bytes: free when it was asked; None where the system does not say.
    """

    modes: tuple[Outlook, ...]
    steps: int
    rows: int
    step_bytes: int
    state_bytes: int
    free_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``--json`` prints them."""
        return asdict(self)

    HEADINGS = ("mode", "peak memory", "forward runs", "time", "fits")

    def cells(self) -> list[tuple[str, ...]]:
        """The table's rows as text, in the order of ``HEADINGS``; a refused mode has but its name and the reason."""
        rows = []
        for row in self.modes:
            if row.peak_bytes is None or row.seconds is None:
                rows.append((row.mode, f"refused: {row.refusal}"))
                continue
            fits = "?" if row.fits is None else "yes" if row.fits else "no"
            runs = "iterates" if row.runs is None else f"{row.runs:.2f}" if row.runs < 1000 else f"{row.runs:.2g}"
            rows.append((row.mode, show_bytes(row.peak_bytes), runs, _interval(*row.seconds), fits))
        return rows

    def table(self) -> str:
        """The rows under their headings, as text of fixed width.

        >>> rows = Outlook("reverse", 2_000_000, 1.0, (1.1, 1.4), True), Outlook("scan", refusal="chaotic")
        >>> print(Forecast(rows, 1000, 1, 2000, 256, 10**9).table())
        mode     peak memory  forward runs        time  fits
        reverse          2MB          1.00  1.1..1.4 s   yes
        scan     refused: chaotic
        """
        rows = [self.HEADINGS, *self.cells()]
        whole = [row for row in rows if len(row) == len(self.HEADINGS)]
        widths = [max(len(row[column]) for row in whole) for column in range(len(self.HEADINGS))]
        widths[0] = max(len(row[0]) for row in rows)
        lines = []
        for row in rows:
            values = [value.rjust(width) for value, width in zip(row[1:], widths[1:])] if row in whole else row[1:]
            lines.append("  ".join([row[0].ljust(widths[0]), *values]).rstrip())
        return "\n".join(lines)


def _interval(low: float, high: float) -> str:
    """Two durations in the unit of the longer one.

    >>> _interval(0.0012, 0.0314), _interval(3.04, 9.6), _interval(1800, 36000)
    ('1.2..31 ms', '3..9.6 s', '0.5..10 h')
    """
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"))
    size, unit = next((size, unit) for size, unit in units if high >= size or unit == "ms")
    digits = [f"{value / size:.2g}" if value < 100 * size else f"{value / size:,.0f}" for value in (low, high)]
    return f"{'..'.join(digits)} {unit}"
