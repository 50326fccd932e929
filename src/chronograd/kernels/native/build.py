"""Compile the kernels with the machine's C compiler: for tests and for work on them; the package has its own hook.

python src/chronograd/kernels/native/build.py OUT.so [extra flags]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-fvisibility=hidden", "-Wno-psabi"]


def build(out: Path, extra: tuple[str, ...] = ()) -> None:
    """One shared library from all C files beside this one; the files are compiled side by side."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise FileNotFoundError("no C compiler found: install gcc or clang, or set CC")
    sources = sorted(Path(__file__).parent.glob("*.c"))
    with tempfile.TemporaryDirectory() as folder:
        objects = [str(Path(folder) / f"{source.stem}.o") for source in sources]

        def compile_one(source: Path, to: str) -> None:
            subprocess.run([compiler, *FLAGS, *extra, "-c", str(source), "-o", to], check=True)

        with ThreadPoolExecutor() as workers:
            list(workers.map(compile_one, sources, objects))
        subprocess.run([compiler, "-shared", *extra, *objects, "-o", str(out)], check=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]), tuple(sys.argv[2:]))
