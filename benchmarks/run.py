"""Measure, and write ``docs/benchmarks.md``: ``make bench``.

``--quick`` takes three rounds instead of eleven: to see that everything runs, not to quote.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import detach_loop
import layers
import startup
import torch
import windows

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"


def machine() -> str:
    """The processor, as the system names it, and the versions that matter."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = f"{models[0]}, {len(models)} logical cores" if models else name
    return (
        f"{name}; torch threads {torch.get_num_threads()}; {platform.system()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three rounds instead of eleven")
    parser.add_argument("--output", type=Path, default=PAGE, help="the page to write (default: docs/benchmarks.md)")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads; one is disturbed least (default: 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rounds = 3 if arguments.quick else 11
    torch.set_flush_denormal(True)
    parts = []
    for part in (detach_loop, layers, windows, startup):
        print(f"{part.__name__} ...", flush=True)
        parts.append(part.report(rounds))
    head = (
        "# Benchmarks\n\n"
        f"Written by `make bench`. {machine()}. Every figure is the median of {rounds} rounds in which the things "
        "compared take turns; other work on the machine moves times, and ratios less."
    )
    arguments.output.write_text("\n\n".join([head, *parts]) + "\n", encoding="utf-8")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
