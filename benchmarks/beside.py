"""Layers while another thread of the same process keeps torch's own pool busy with matrix products."""

from __future__ import annotations

from functools import partial
from threading import Event, Thread

import torch
from cases import KINDS, SHAPES, Case
from timing import geometric_mean, interleaved, markdown, medians

__all__ = ["report"]

# Many rows, split among threads; one row, whose units are split, so that threads meet in every step.
MEASURED = (SHAPES[0], SHAPES[3], SHAPES[6])
WIDTH = 512


class Products:
    """``with Products():`` another thread multiplies matrices, on as many threads as the layers have."""

    def __enter__(self) -> None:
        self._enough = Event()
        self._thread = Thread(target=self._multiply)
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._enough.set()
        self._thread.join()

    def _multiply(self) -> None:
        left = torch.randn(WIDTH, WIDTH)
        out = torch.empty_like(left)
        while not self._enough.is_set():
            torch.mm(left, left, out=out)


def report(rounds: int, threads: int) -> str:
    """The section of the page."""
    torch.set_num_threads(threads)
    rows, ratios = [], []
    for name in KINDS:
        for shape in MEASURED:
            case = Case(name, shape)
            functions = {"torch": partial(case.run, case.torch), "ours": partial(case.run, case.ours)}
            alone = medians(interleaved(functions, rounds, case.clear))
            with Products():
                beside = medians(interleaved(functions, rounds, case.clear))
            ratios.append(
                (beside["torch"] / alone["torch"], beside["ours"] / alone["ours"], beside["torch"] / beside["ours"])
            )
            rows.append((f"{name}: {shape}", *(f"{ratio:.2f}" for ratio in ratios[-1])))
    rows.append(("geometric mean", *(f"{geometric_mean(column):.2f}" for column in zip(*ratios))))
    headings = (
        "layer: steps, rows, features, units",
        "torch, beside / alone",
        "cg, beside / alone",
        "torch / cg, beside",
    )
    return (
        "## Beside other work\n\n"
        f"Forward and backward on {threads} threads while another thread of the process multiplies {WIDTH} by {WIDTH} "
        f"matrices on {threads} threads too. Ours run on the threads of torch's own pool, no second one; two fair "
        "shares are 2.00. Where units are split (one row), threads meet in every step: a team that has waited too long "
        "for lost cores parts, and its first thread goes on alone.\n\n" + markdown(headings, rows)
    )
