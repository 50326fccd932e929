"""What the installation says of itself."""

from __future__ import annotations

import json
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
