"""Compile the kernels into one shared library with the machine's C compiler. Imports nothing but the standard library.

python src/chronograd/kernels/native/build.py OUT.so [extra flags]
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = ["build", "compiler"]

FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-fvisibility=hidden", "-Wno-psabi"]


def compiler() -> list[str] | None:
    """The command of the C compiler: ``CC``, else gcc, cc or clang; None where there is none."""
    given = shlex.split(os.environ.get("CC", ""))
    return given or next(([found] for name in ("gcc", "cc", "clang") if (found := shutil.which(name))), None)


def build(out: Path, extra: tuple[str, ...] = ()) -> None:
    """One shared library from all C files beside this one, whole or not there; the files are compiled side by side.

    Raises:
        OSError: there is no compiler.
        subprocess.CalledProcessError: it failed; ``stderr`` says why.
    """
    command = compiler()
    if command is None:
        raise FileNotFoundError("no C compiler found: install gcc or clang, or set CC")
    sources = sorted(Path(__file__).parent.glob("*.c"))
    with tempfile.TemporaryDirectory() as folder:
        objects = [str(Path(folder) / f"{source.stem}.o") for source in sources]

        def run(*arguments: str) -> None:
            subprocess.run([*command, *arguments], check=True, capture_output=True, text=True)

        flags = [*FLAGS, *extra, "-c"]
        with ThreadPoolExecutor() as workers:
            list(workers.map(lambda source, made: run(*flags, str(source), "-o", made), sources, objects))
        made = Path(folder) / "library"
        run("-shared", *extra, *objects, "-o", str(made))
        beside = out.with_name(f".tmp-{os.getpid()}-{out.name}")
        shutil.copyfile(made, beside)
        os.replace(beside, out)


if __name__ == "__main__":
    build(Path(sys.argv[1]), tuple(sys.argv[2:]))
