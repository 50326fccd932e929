"""The command line called from Python, in an empty folder of its own; and one small trained run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from chronograd.cli.app import main

SENTENCE = "The quick brown fox jumps over the lazy dog. "
SMALL = ["--hidden", "8", "--batch", "4", "--chunk", "20", "--truncation", "chunks:7", "--checkpoint-every", "4"]


class Answer(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys) -> Callable[..., Answer]:
    """``cli("figure", "graph")`` runs it in ``tmp_path``, where ``text.txt`` lies, and gives exit code and output."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(SENTENCE * 60)

    def call(*argv: str) -> Answer:
        capsys.readouterr()
        code = main(argv)
        return Answer(code, *capsys.readouterr())

    return call


@pytest.fixture
def shell(tmp_path) -> Callable[..., subprocess.Popen[str]]:
    """Starts ``python -m chronograd`` in ``tmp_path``, with other arguments of ``Popen`` as they are given."""
    (tmp_path / "text.txt").write_text(SENTENCE * 60)

    def start(*argv: str, environment: dict[str, str] | None = None, **options) -> subprocess.Popen[str]:
        plain = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "NO_COLOR", "TERM")}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path, **options}
        return subprocess.Popen(
            [sys.executable, "-m", "chronograd", *argv], env={**plain, **(environment or {})}, **options
        )

    return start


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(SENTENCE * 60)
    argv = ["train", str(folder / "text.txt"), "--run", str(folder / "run"), "--steps", "6", "--json", *SMALL]
    assert main(argv) == 0
    return folder / "run"


@pytest.fixture
def trained(trained_once, tmp_path) -> Path:
    """A run of six steps, to do with as one likes."""
    return shutil.copytree(trained_once, tmp_path / "run")
