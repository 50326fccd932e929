"""Measure, print, and write ``docs/benchmarks.md`` and what README.md quotes from it: ``make bench``.

``--quick`` takes three rounds instead of nine: to see that everything runs, not to quote.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable
from datetime import date
from pathlib import Path
from time import perf_counter

import beside
import budget
import detach_loop
import diagonal
import edges
import forward
import layers
import parallel
import startup
import torch
import windows
from quotes import requoted

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
README = ROOT / "README.md"
THREADING = ("GOMP", "KMP", "MKL", "OMP", "ONEDNN")


def machine() -> str:
    """The processor, as the system names it, and the versions that matter."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = f"{models[0]}, {len(models)} logical cores" if models else name
    about = f"{name}; {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"
    # What changes how threads wait and how many there are.
    chosen = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.split("_")[0] in THREADING]
    return ", ".join([about, *chosen])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three rounds instead of nine")
    parser.add_argument("--output", type=Path, default=PAGE, help="the page to write (default: docs/benchmarks.md)")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="for the layers (default: torch's)"
    )
    parser.add_argument("--jax", metavar="PYTHON", help="an interpreter that has jax (default: this one, if it has)")
    parser.add_argument("--only", metavar="PART,...", help="only print these parts: layers, edges, diagonal, ...")
    parser.add_argument("--update", metavar="PART,...", help="measure these parts anew, and leave the page's others")
    arguments = parser.parse_args()
    rounds, threads = 3 if arguments.quick else 9, arguments.threads
    torch.set_flush_denormal(True)
    every: dict[str, Callable[[], str]] = {
        "layers": lambda: layers.report(rounds, threads, arguments.jax),
        "beside": lambda: beside.report(rounds, threads),
        "edges": lambda: edges.report(rounds, threads),
        "diagonal": lambda: diagonal.report(rounds, threads),
        "parallel": lambda: parallel.report(rounds, threads),
        "forward": lambda: forward.report(rounds, threads),
        "budget": lambda: budget.report(rounds, threads),
        "detach_loop": lambda: detach_loop.report(rounds),
        "windows": lambda: windows.report(rounds),
        "startup": lambda: startup.report(rounds),
    }
    asked = arguments.only or arguments.update or ",".join(every)
    parts = [_measured(name, every[name]) for name in asked.split(",")]
    if arguments.only:
        return
    head = (
        "# Benchmarks\n\n"
        f"Written by `make bench`, each section with where and when it was measured. Every figure is the median of at "
        f"least {rounds} rounds in which the things compared take turns; other work on the machine moves times, and "
        f"ratios less. Layers, gates, the diagonal recurrence, scans and forward modes on {threads} threads, the other "
        "parts on one, which is less disturbed. Denormal numbers are flushed to zero, in torch and in ours."
    )
    if arguments.update:
        parts = _spliced(arguments.output.read_text(encoding="utf-8"), parts)
    page = "\n\n".join([head, *parts]) + "\n"
    arguments.output.write_text(page, encoding="utf-8")
    print(f"wrote {arguments.output}")
    if arguments.output == PAGE:
        README.write_text(requoted(README.read_text(encoding="utf-8"), page), encoding="utf-8")


def _spliced(page: str, parts: list[str]) -> list[str]:
    """The page's sections, with ``parts`` in the places of those of their headings, or behind them all."""
    old = [f"## {section}".strip() for section in page.split("\n## ")[1:]]
    new = {part.split("\n", 1)[0]: part for part in parts}
    kept = [new.pop(section.split("\n", 1)[0], section) for section in old]
    return [*kept, *new.values()]


def _measured(name: str, report: Callable[[], str]) -> str:
    """A part of the page, printed as soon as it is there."""
    start = perf_counter()
    # The layers' parts choose their own number.
    torch.set_num_threads(1)
    part = f"{report()}\n\n*Measured {date.today()}: {machine()}.*"
    print(f"{part}\n\n({name}: {perf_counter() - start:.0f} s)\n", flush=True)
    return part


if __name__ == "__main__":
    main()
