"""Runs in processes of their own, stopped from outside: Ctrl-C saves and leaves, kill -9 loses no whole file."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import asdict, replace

import pytest

from chronograd.training.config import TrainConfig
from chronograd.training.interrupts import StopRequest
from chronograd.training.metrics import read_metrics
from chronograd.training.run import train_run
from chronograd.training.run_folder import load_run

TRAIN = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from chronograd.training.config import TrainConfig
from chronograd.training.run import train_run
result = train_run(TrainConfig(**json.loads(sys.argv[1])), Path(sys.argv[2]), resume=True)
print(json.dumps(result.to_dict()))
sys.exit(130 if result.interrupted else 0)
"""

FOREVER = 10**9


def config_of(corpus, **changes) -> TrainConfig:
    plain = {"hidden": 6, "batch": 4, "chunk": 7, "truncation": "chunks:5", "steps": FOREVER, "checkpoint_every": 10**6}
    return TrainConfig(corpus, **{**plain, **changes})


def run_and_signal(config, folder, number, updates):
    """Train in another process, send it a signal after that many more updates; exit code, result, errors."""
    target = len(read_metrics(folder / "metrics.jsonl")) + updates
    command = [sys.executable, "-c", TRAIN, json.dumps(asdict(config)), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            while process.poll() is None and len(read_metrics(folder / "metrics.jsonl")) < target:
                time.sleep(0.005)
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, out, err


def finish_and_compare(config, folder, tmp_path):
    """Two more updates, then the same in one go elsewhere: the same parameters to the bit."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rest = train_run(replace(config, steps=10**6), folder, resume=True, on_step=stop_after(2))
        whole = train_run(replace(config, steps=rest.step), tmp_path / "whole")
    assert rest.loss == whole.loss
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    return rest


def stop_after(updates):
    seen = []

    def count(done):
        seen.append(done)
        if len(seen) == updates:
            signal.raise_signal(signal.SIGTERM)

    return count


def test_ctrl_c_saves_and_leaves_a_run_that_goes_on_as_if_nothing_had_been(corpus, tmp_path):
    config, folder = config_of(corpus), tmp_path / "run"
    code, out, err = run_and_signal(config, folder, signal.SIGINT, updates=6)
    assert (code, err) == (130, "")
    result = json.loads(out)
    assert result["interrupted"] and result["step"] >= 6 and result["validation_loss"] is None
    assert len(read_metrics(folder / "metrics.jsonl")) == result["step"]
    assert load_run(folder).config == config
    rest = finish_and_compare(config, folder, tmp_path)
    assert rest.resumed_from == result["step"]


def test_kill_9_again_and_again_loses_no_whole_file(corpus, tmp_path):
    config, folder = config_of(corpus, checkpoint_every=1), tmp_path / "run"
    for updates in (5, 8):
        code, _, err = run_and_signal(config, folder, signal.SIGKILL, updates)
        assert (code, err) == (-signal.SIGKILL, "")
    rest = finish_and_compare(config, folder, tmp_path)
    assert rest.resumed_from >= 5
    logged = [line["step"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    assert logged == list(range(1, rest.step + 1))


def test_the_second_signal_stops_at_once_and_the_handlers_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on after the second signal")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_outside_the_main_thread_signals_are_left_alone():
    before, asked = signal.getsignal(signal.SIGINT), []

    def work():
        with StopRequest() as stop:
            asked.append((stop.asked, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [(False, before)]
