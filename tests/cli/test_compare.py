"""Comparing from the command line: a run, a text, what is printed, and what is refused."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from chronograd.cli.output import print_comparison
from chronograd.cli.progress import CompareProgress
from chronograd.measure.comparison import Candidate, Comparison

FEW = ["--steps", "20", "--batch", "4", "--draws", "3", "--truncation", "chunks:4", "--truncation", "random:5"]


def test_a_run_is_compared_on_its_held_out_text(cli, trained):
    code, out, err = cli("compare", "run", *FEW)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "the trained model of run (gru, 8 units)"
    assert lines[1].startswith("on the held-out text of ") and "4 rows of 20 steps" in lines[1]
    assert lines[3].split() == ["truncation", "bias", "variance", "cosine", "look-back", "seconds", "peak", "MB"]
    assert [line[3:].split()[0] for line in lines[4:7]] == ["full", "chunks:4", "random:5"]
    assert sum(line.startswith(">") for line in lines) == 1
    assert lines[8].startswith("recommended: use ")


def test_a_text_is_compared_with_a_fresh_model_and_says_so(cli, tmp_path):
    code, out, err = cli("compare", "text.txt", *FEW, "--hidden", "8", "--model", "rnn", "--figure", "c.svg")
    assert (code, err) == (0, "")
    assert out.startswith("a freshly initialised, untrained model (rnn, 8 units)\n")
    assert "ask again once you have a run" in out and out.endswith("figure: c.svg\n")
    assert (tmp_path / "c.svg").read_bytes().startswith(b"<?xml")


def test_json_is_the_comparison(cli, trained):
    code, out, _ = cli("compare", "run", *FEW, "--json", "--seed", "5")
    plain = json.loads(out)
    assert code == 0
    assert [row["truncation"] for row in plain["candidates"]] == ["full", "chunks:4", "random:5"]
    assert (plain["steps"], plain["rows"], plain["draws"]) == (20, 4, 3)
    assert plain["candidates"][0]["bias"] < 1e-6 < plain["candidates"][1]["bias"]
    again = json.loads(cli("compare", "run", *FEW, "--json", "--seed", "5").out)
    other = json.loads(cli("compare", "run", *FEW, "--json", "--seed", "6").out)
    bias = [result["candidates"][2]["bias"] for result in (plain, again, other)]
    assert bias[0] == bias[1] != bias[2]


def test_without_candidates_the_usual_ones(cli):
    plain = json.loads(cli("compare", "text.txt", "--hidden", "8", *FEW[:6], "--json").out)
    names = [row["truncation"].partition(":")[0] for row in plain["candidates"]]
    assert names == ["full", "chunks", "chunks", "window", "random", "random", "adaptive"]


def test_a_short_held_out_text_falls_back_on_the_training_text(cli, trained):
    out = cli("compare", "run", "--steps", "100", *FEW[2:]).out
    assert "on the training text of" in out


@pytest.mark.parametrize(
    ("typed", "code", "says"),
    [
        ("compare", 2, "RUN|CORPUS is missing"),
        ("compare text.txt --truncation chunk:3", 2, "did you mean 'chunks:3'?"),
        ("compare text.txt --draws 1", 2, "--draws must be at least 2"),
        ("compare text.txt --steps 0", 2, "--steps must be at least 1"),
        ("compare text.txt --tolerance 0", 2, "--tolerance must be above 0"),
        ("compare text.txt --hidden 0", 2, "--hidden must be at least 1"),
        ("compare text.txt --model grru", 2, "did you mean 'gru'?"),
        ("compare text.txt --figure c.pdf", 2, "--figure c.pdf: figures are written as .svg or .png"),
        ("compare run --hidden 9", 2, "has a model of its own"),
        ("compare .", 1, "holds no run"),
        ("compare nothing.txt", 1, "nothing.txt: no such file"),
        ("compare text.txt --steps 5000", 1, "text.txt: 2,700 tokens are too few for 32 rows of 5000 steps"),
    ],
)
def test_what_cannot_be_compared_is_one_line(cli, trained, typed, code, says):
    answer = cli(*typed.split())
    assert (answer.code, answer.out, len(answer.err.splitlines())) == (code, "", 1)
    assert says in answer.err and "unexpected" not in answer.err


def test_a_text_that_changed_since_the_run(cli, trained):
    config = trained / "config.toml"
    config.write_text(config.read_text().replace('fingerprint = "sha1:', 'fingerprint = "sha1:0'))
    answer = cli("compare", "run", *FEW)
    assert answer.code == 1 and "is no longer the text" in answer.err


def comparison() -> Comparison:
    full = Candidate("full", "reverse", True, 100.5, 1.0, 10**8, 1, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    noisy = Candidate(
        "random:35,polynomial,4.0", "reverse", True, 30.1, 0.5, 10**8, 9, 0.0116, 0.035, 0.0191, 0.0036, 0.985, 0.0018
    )
    return Comparison((full, noisy), 1.0, 1.0, 0.2, 200, 32, 9, 0.1)


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_a_terminal(columns):
    file = io.StringIO()
    print_comparison(comparison(), Console(file=file, width=columns, force_terminal=True, color_system=None))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= columns and not any("…" in line for line in lines)
    assert ("0.0191 ± 0.0036" in file.getvalue()) is (columns == 120)
    assert "0.0191" in file.getvalue() and "±0.0036" in file.getvalue().replace(" ± ", "±")


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere():
    for terminal, expected in ((True, "3/9"), (False, "measuring full: 3 of 9\n")):
        file = io.StringIO()
        options = {"force_terminal": terminal, "width": 80, "color_system": None, "highlight": False, "_environ": {}}
        with CompareProgress(Console(file=file, **options), every=0.0) as progress:
            progress.note(3, 9, "full")
        assert expected in file.getvalue()
