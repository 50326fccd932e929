"""Training from the command line: what it says, what it leaves in the folder, how it stops and goes on."""

from __future__ import annotations

import inspect
import io
import json
import signal
import sys
import time
from dataclasses import fields
from types import SimpleNamespace

import pytest
from rich.console import Console

from chronograd.cli.progress import TrainingProgress
from chronograd.cli.train import train
from chronograd.training.config import TrainConfig

SMALL = ["--hidden", "8", "--batch", "4", "--chunk", "20", "--truncation", "chunks:7", "--checkpoint-every", "4"]


def test_the_options_are_the_settings_with_their_defaults():
    options = inspect.signature(train).parameters
    for field in fields(TrainConfig):
        assert field.name in options
        if field.name not in ("corpus", "preprocess"):
            assert options[field.name].default == field.default


def test_a_run_and_its_summary(cli, tmp_path):
    code, out, err = cli("train", "text.txt", "--run", "runs/first", "--steps", "6", *SMALL)
    assert code == 0
    names = ["run", "model", "trained", "speed", "validation", "next"]
    assert [line.split(" ")[0] for line in out.splitlines()] == names
    assert "6 of 6 steps" in out and "bits per character, perplexity" in out
    assert out.splitlines()[-1].endswith("chronograd sample runs/first")
    assert [line.split(":")[0] for line in err.splitlines()] == ["step 4", "step 6"]
    folder = tmp_path / "runs" / "first"
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints",
        "config.toml",
        "metrics.jsonl",
        "model.safetensors",
    ]
    assert len(list((folder / "checkpoints").iterdir())) == 2


def test_json_is_all_there_is_on_stdout(cli):
    code, out, _ = cli("train", "text.txt", "--run", "r", "--steps", "2", "--json", *SMALL)
    result = json.loads(out)
    assert code == 0
    assert (result["folder"], result["step"], result["interrupted"]) == ("r", 2, False)
    assert result["validation_bits"] > 0


def test_bytes_are_counted_as_bytes(cli):
    out = cli("train", "text.txt", "--run", "r", "--steps", "1", "--tokens", "bytes", *SMALL).out
    assert "256 different bytes" in out and "bits per byte" in out and "character" not in out


def test_the_same_command_goes_on_and_never_refuses(cli, trained):
    argv = ["train", "text.txt", "--run", "run", "--steps", "9", *SMALL]
    code, _, err = cli(*argv, "--resume", "never")
    assert code == 1
    assert err == "chronograd train: run: holds a run already: resume it, or name another folder\n"
    code, out, _ = cli(*argv)
    assert code == 0
    assert "9 of 9 steps; taken up at 6" in out
    code, out, _ = cli(*argv)
    assert code == 0
    assert "9 of 9 steps; taken up at 9" in out and "speed" not in out


def test_another_setting_is_another_run(cli, trained):
    code, out, err = cli("train", "text.txt", "--run", "run", "--steps", "9", *SMALL, "--lr", "0.1")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert "lr" in err and "name another folder" in err


def test_a_loss_that_is_not_finite(cli):
    argv = ["train", "text.txt", "--run", "r", "--steps", "50", *SMALL, "--model", "rnn", "--lr", "1e37"]
    code, out, err = cli(*argv)
    assert (code, out) == (1, "")
    line = err.splitlines()[-1]
    assert line.startswith("chronograd train: step ") and "try a smaller learning rate" in line
    assert "Traceback" not in err and "unexpected" not in err


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT to one process")
def test_ctrl_c_saves_and_the_run_goes_on(shell, cli, tmp_path):
    argv = ["train", "text.txt", "--run", "r", *SMALL]
    process = shell(*argv, "--steps", "1000000")
    metrics = tmp_path / "r" / "metrics.jsonl"
    limit = time.monotonic() + 30
    while not (metrics.exists() and len(metrics.read_bytes().splitlines()) > 6) and time.monotonic() < limit:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "interrupted and saved" in out and "Traceback" not in err and "\x1b" not in out + err
    step = json.loads(metrics.read_text().splitlines()[-1])["step"]
    code, out, _ = cli(*argv, "--steps", str(step + 1))
    assert code == 0
    assert f"taken up at {step:,}" in out


def a_step(step, loss=1.0):
    return SimpleNamespace(step=step, loss=loss, bits=loss / 0.6931, tokens=2000, seconds=0.01)


def shown(terminal: bool, every: float = 5.0) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=80, color_system=None, highlight=False, _environ={})
    with TrainingProgress(TrainConfig("builtin", steps=3), console, every) as progress:
        for step in (1, 2, 3):
            progress.on_step(a_step(step))  # pyright: ignore[reportArgumentType]
        progress.on_validation(3, SimpleNamespace(bits=1.25, perplexity=2.378))  # pyright: ignore[reportArgumentType]
    return file.getvalue()


def test_a_bar_on_a_terminal():
    screen = shown(terminal=True)
    assert "3/3" in screen and "loss 1.000 nats, 1.443 bits, 200,000 characters/s" in screen
    assert "step 3: validation 1.250 bits per character, perplexity 2.38" in screen


def test_plain_lines_elsewhere():
    assert shown(terminal=False) == "step 3: validation 1.250 bits per character, perplexity 2.38\n"
    lines = shown(terminal=False, every=0.0).splitlines()
    assert lines[0] == "step 1 of 3: loss 1.000 nats, 1.443 bits, 200,000 characters/s"
    assert len(lines) == 4
