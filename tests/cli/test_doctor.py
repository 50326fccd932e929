"""What the installation says of itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import torch

from chronograd.kernels import library


def test_it_says_what_computes(cli):
    code, out, err = cli("doctor", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["torch"] == torch.__version__ and found["threads"] == torch.get_num_threads()
    place = library.find()
    assert (found["instructions"] is None) == (place is None)
    assert found["kernels"] == (str(place) if place else library.NOT_BUILT)
    code, out, err = cli("doctor")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines() if line and not line.startswith(" ")] == list(found)


def test_without_kernels_it_says_what_to_install(cli, monkeypatch):
    monkeypatch.setattr(library, "PLACE", library.PLACE.with_name("gone.so"))
    monkeypatch.delenv("CHRONOGRAD_NATIVE", raising=False)
    assert "install gcc or clang" in json.loads(cli("doctor", "--json").out)["kernels"]


def test_kernels_that_are_off_or_do_not_load_are_told_apart(cli, monkeypatch, tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_text("no library")
    for value, expected in (("", "turned off"), (str(broken), "does not load; install chronograd again")):
        monkeypatch.setenv("CHRONOGRAD_NATIVE", value)
        library.library.cache_clear()
        code, out, err = cli("doctor", "--json")
        assert (code, err) == (0, "") and expected in json.loads(out)["kernels"]
    library.library.cache_clear()


def test_layers_run_where_the_library_does_not_load(tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_text("no library")
    program = "import torch, chronograd as cg; print(cg.GRU(2, 3)(torch.randn(4, 1, 2))[0].shape)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"CHRONOGRAD_NATIVE": str(broken)},
        check=True,
    )
    assert "torch.Size([4, 1, 3])" in done.stdout and done.stderr.count("do not load") == 1


def test_layers_warn_once_where_the_kernels_are_missing(tmp_path):
    program = (
        "import warnings; warnings.simplefilter('always')\n"
        "import torch, chronograd as cg\n"
        "from chronograd.kernels import library\n"
        "library.PLACE = library.PLACE.with_name('gone.so')\n"
        "for _ in range(3): cg.GRU(2, 3)(torch.randn(4, 1, 2))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stderr.count("compiled kernels: not built") == 1
    assert "install gcc or clang" in done.stderr
