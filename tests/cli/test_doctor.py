"""What the installation says of itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
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


SMALL = ["--length", "3000", "--hidden", "8", "--batch", "2", "--features", "5"]


def test_it_predicts_what_a_long_sequence_takes(cli):
    code, out, _ = cli(
        "doctor", *SMALL, "--model", "lstm", "--layers", "2", "--memory", "256KB,300KB", "--memory", "1GB"
    )
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "lstm, 2 x 8 units, one-hot inputs of 5, a linear readout and cross-entropy"
    assert lines[1].startswith("the exact gradient of 3,000 steps, 2 side by side")
    assert lines[3].split() == ["mode", "peak", "memory", "forward", "runs", "time", "fits"]
    names = ["reverse", "reverse:auto", "reverse:256KB", "reverse:300KB", "reverse:1GB", "scan"]
    assert [line.split()[0] for line in lines[4:]] == names


def test_the_prediction_as_json(cli):
    code, out, _ = cli("doctor", *SMALL, "--memory", "256KB", "--json")
    plain = json.loads(out)
    assert (code, plain["steps"], plain["rows"]) == (0, 3000, 2)
    stored, _, within, _ = plain["modes"]
    assert (stored["mode"], stored["runs"], stored["refusal"]) == ("reverse", 1, None)
    assert within["peak_bytes"] <= 256_000 < stored["peak_bytes"] and 1 < within["runs"] < 2.1
    assert all(0 < row["seconds"][0] < row["seconds"][1] for row in plain["modes"])


def test_a_budget_that_cannot_work_is_refused_with_the_smallest_that_can(cli):
    code, out, err = cli("doctor", *SMALL, "--memory", "1KB")
    refusal = "a budget of 1KB cannot work: one stored step takes "
    assert code == 1 and f"reverse:1KB   refused: {refusal}" in out
    line = err.splitlines()[-1]
    assert line.startswith(f"chronograd doctor: {refusal}")
    smallest = line.rpartition("the smallest budget that can is ")[2]
    assert cli("doctor", *SMALL, "--memory", smallest).code == 0


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("--hidden 3", "--hidden is for a prediction; give --length, the steps of the sequence, as well"),
        ("--memory 1MB", "--memory is for a prediction; give --length, the steps of the sequence, as well"),
        ("--length 0", "--length must be at least 1, not 0"),
        ("--length 1000000000000000000", "--length must be at most 10,000,000,000,000, not 1,000,000,000,000,000,000"),
        ("--length 5 --memory -1MB", "--memory: '-1MB' is no size; write a number and a unit, as in 256MB, 1.5GB or"),
        ("--length 5 --memory=-1MB", "--memory: '-1MB' is no size; write a number and a unit, as in 256MB, 1.5GB or"),
        ("--length 5 --memory", "--memory needs a value"),
        ("--length 5 --batch 0", "--batch must be at least 1, not 0"),
        ("--length 5 --memory 1", "--memory: '1' is no size; write a number and a unit, as in 256MB, 1.5GB or 64MiB"),
        ("--length 5 --model gur", "--model must be one of rnn, gru, lstm, not 'gur'; did you mean 'gru'?"),
    ],
)
def test_wrong_usage(cli, argv, line):
    code, out, err = cli("doctor", *argv.split())
    assert (code, out) == (2, "") and err.startswith(f"chronograd doctor: {line}")
