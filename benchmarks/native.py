"""The compiled kernels while they are being worked on: some layers and shapes, on a library, an instruction set or a
split of the work of your choice.

    python benchmarks/native.py [LIBRARY.so] [--layers RNN,GRU,LSTM] [--shapes 0,1,2] [--rounds 9] [--isa avx2]

Shapes are numbered as in ``cases``. What is chosen here is private to the kernels; the page measures the layers as they
come.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from cases import KINDS, SHAPES, Case, Limit
from timing import geometric_mean, interleaved, medians

from chronograd.kernels import library
from chronograd.kernels.compiled import Choice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", nargs="?", type=Path)
    parser.add_argument("--layers", default=",".join(KINDS))
    parser.add_argument("--shapes", default=",".join(map(str, range(len(SHAPES)))))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--split", default="auto")
    parser.add_argument("--isa")
    given = parser.parse_args()
    native = library.load(given.library) if given.library else library.library()
    choice = Choice(given.isa, given.split, native=native)
    for name in given.layers.split(","):
        over_torch, to_limit = [], []
        for number in map(int, given.shapes.split(",")):
            case = Case(name, SHAPES[number])
            limit = Limit(case)
            functions = {"torch": partial(case.run, case.torch), "ours": partial(case.run_loop, choice=choice)}
            took = medians(interleaved({**functions, "limit": limit.run}, given.rounds, before=case.clear))
            theirs, ours, least = took["torch"], took["ours"], limit.seconds(took["limit"])
            over_torch.append(theirs / ours)
            to_limit.append(ours / least)
            print(
                f"{name:4} {case.shape!s:20}  torch {theirs * 1e3:8.2f} ms  ours {ours * 1e3:8.2f} ms"
                f"  over torch {theirs / ours:6.2f}  to the limit {ours / least:5.2f}",
                flush=True,
            )
        means = geometric_mean(over_torch), geometric_mean(to_limit)
        print(f"{name:4} geometric means: over torch {means[0]:.2f}, to the limit {means[1]:.2f}", flush=True)


if __name__ == "__main__":
    main()
