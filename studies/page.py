"""What a study leaves behind: a page of text and tables, its figures beside it, and how it was run."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from chronograd.files import write_atomically
from chronograd.style import save

__all__ = ["Page", "publish", "table"]

PLACE = Path(__file__).resolve().parents[1] / "docs" / "studies"


@dataclass(frozen=True)
class Page:
    """A study's page: ``parts`` are Markdown, ``figures`` matplotlib figures by name, shown where a part is
    ``"figure:NAME"``.
    """

    title: str
    parts: Sequence[str]
    figures: dict[str, Any] = field(default_factory=dict)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; numbers as they are given.

    >>> print(table(["a", "b"], [[1, "x"]]))
    | a | b |
    |---|---|
    | 1 | x |
    """
    lines = [f"| {' | '.join(map(str, row))} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def publish(name: str, run: Callable[[bool], Page], arguments: Sequence[str] | None = None) -> None:
    """Run a study and write ``NAME.md`` and its figures: ``python studies/NAME.py [--quick] [--output DIR]``.

    ``--quick`` takes a reduced size, to see that everything runs; its page says so and is not one to quote.
    """
    parser = argparse.ArgumentParser(description=(run.__doc__ or name).strip().splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a reduced size: to see that it runs, not to quote")
    parser.add_argument("--output", type=Path, default=PLACE, help="the folder to write to (default: docs/studies)")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # so that every number is the same on any machine's count of cores
    begin = perf_counter()
    page = run(given.quick)
    took = perf_counter() - begin
    given.output.mkdir(parents=True, exist_ok=True)
    for figure, drawn in page.figures.items():
        save(drawn, given.output / f"{name}-{figure}.png", dpi=120)
    shown = [
        f"![{part.removeprefix('figure:')}]({name}-{part.removeprefix('figure:')}.png)"
        if part.startswith("figure:")
        else part
        for part in page.parts
    ]
    command = f"python studies/{name}.py{' --quick' if given.quick else ''}"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    how = f"Run with `{command}`: {took:.0f} s on one thread, {versions}."
    if given.quick:
        how += " A reduced size, to see that it runs; not to quote."
    text = "\n\n".join([f"# {page.title}", *shown, how]) + "\n"
    write_atomically(given.output / f"{name}.md", text.encode())
    print(text)
