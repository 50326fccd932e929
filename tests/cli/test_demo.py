"""The demo, made small through its own options."""

from __future__ import annotations

import json
from html import unescape

import pytest
import torch

from chronograd.cli.demo import CANDIDATES

SMALL = ["--run", "runs/demo", "--steps", "3", "--hidden", "8", "--draws", "2"]


def test_from_one_end_to_the_other_and_again(cli, tmp_path):
    threads = torch.get_num_threads()
    code, out, _ = cli("demo", *SMALL)
    assert code == 0 and torch.get_num_threads() == threads
    run = tmp_path / "runs" / "demo"
    plain = json.loads((run / "comparison.json").read_text())
    page = unescape((run / "report.html").read_text())
    assert [row["truncation"].split(",poly")[0] for row in plain["candidates"]] == [
        "full",
        *(name.split(",poly")[0].replace("adaptive:0.1", "adaptive:0.1,100") for name in CANDIDATES),
    ]
    assert plain["recommendation"] in page
    assert f"recommended: {plain['recommendation']}" in out
    assert (run / "compare.svg").read_bytes().startswith(b"<?xml")
    assert "runs/demo/report.html" in out and not list(run.glob(".tmp-*"))

    model = (run / "model.safetensors").read_bytes()
    again = cli("demo", *SMALL)
    assert again.code == 0 and (run / "model.safetensors").read_bytes() == model
    biases = [row["bias"] for row in json.loads((run / "comparison.json").read_text())["candidates"]]
    assert biases == pytest.approx([row["bias"] for row in plain["candidates"]])

    code, out, err = cli("demo", *SMALL[:5], "9", *SMALL[6:])
    assert (code, out) == (1, "") and "hidden = 8, this one 9" in err and "name another folder" in err


@pytest.mark.parametrize(
    ("typed", "code", "says"),
    [
        ("demo --steps 0", 2, "--steps must be at least 1"),
        ("demo --hidden 0", 2, "--hidden must be at least 1"),
        ("demo --draws 1", 2, "--draws must be at least 2"),
        ("demo --run text.txt", 1, "text.txt: is a file"),
    ],
)
def test_what_is_refused(cli, typed, code, says):
    answer = cli(*typed.split())
    assert (answer.code, answer.out, len(answer.err.splitlines())) == (code, "", 1)
    assert says in answer.err
