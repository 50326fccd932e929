"""Run folders: a resumed run is the uninterrupted one bit for bit, and forgetting any part of the state is not."""

import json
import math
import signal
import tomllib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from chronograd.carry import Carry
from chronograd.training.checkpoints import load_newest, save_checkpoint, saved_checkpoints
from chronograd.training.config import TrainConfig
from chronograd.training.run import train_run
from chronograd.training.run_folder import load_run

TIMES = ("seconds", "tokens_per_second")


@pytest.fixture
def config(corpus) -> TrainConfig:
    # rows of 202 or 203 steps, so 29 chunks of 7 an epoch
    return TrainConfig(
        corpus, hidden=6, batch=4, chunk=7, truncation="chunks:7", steps=12, lr=0.01, seed=3, checkpoint_every=5
    )


def log_of(folder) -> list[dict]:
    """The log without its times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def flat(value, where="") -> dict:
    """Every leaf of a checkpoint under its place."""
    if isinstance(value, dict):
        return {key: leaf for name, inner in value.items() for key, leaf in flat(inner, f"{where}/{name}").items()}
    if isinstance(value, list | tuple):
        return flat(dict(enumerate(value)), where)
    return {where: value.numpy().tobytes() if isinstance(value, torch.Tensor) else value}


def assert_same_run(one, two):
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    assert log_of(one) == log_of(two)
    assert flat(load_newest(one / "checkpoints")[1]) == flat(load_newest(two / "checkpoints")[1])


def stop_at(step):
    return lambda done: signal.raise_signal(signal.SIGINT) if done.step == step else None


@pytest.mark.parametrize(
    ("changes", "at"),
    [
        ({}, 3),  # before the first checkpoint of its own accord
        ({}, 5),  # where one is due
        ({"truncation": "chunks:5"}, 8),  # a chunk is open between two calls
        ({"truncation": "window:3,9", "model": "lstm"}, 8),
        ({"truncation": "random:6", "model": "rnn"}, 8),
        ({"truncation": "chunks:7", "chunk": 70, "layers": 2}, 4),  # into the second epoch, over a padded end
        ({"tokens": "bytes"}, 8),
    ],
)
def test_an_interrupted_run_taken_up_again_is_the_uninterrupted_one(config, changes, at, tmp_path):
    config = replace(config, **changes)
    whole = train_run(config, tmp_path / "whole")
    part = train_run(config, tmp_path / "parts", on_step=stop_at(at))
    assert (part.interrupted, part.step, part.resumed_from) == (True, at, None)
    rest = train_run(config, tmp_path / "parts", resume=True)
    assert (rest.interrupted, rest.step, rest.resumed_from) == (False, 12, at)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert (rest.loss, rest.validation_loss) == (whole.loss, whole.validation_loss)
    assert whole.tokens == part.tokens + rest.tokens


def test_more_steps_go_on_from_a_finished_run(config, tmp_path):
    train_run(replace(config, checkpoint_every=100), tmp_path / "whole")
    train_run(replace(config, checkpoint_every=100, steps=5), tmp_path / "parts")
    log_of_five = log_of(tmp_path / "parts")
    train_run(replace(config, checkpoint_every=100), tmp_path / "parts", resume=True)
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "parts/model.safetensors").read_bytes()
    assert log_of(tmp_path / "parts")[: len(log_of_five)] == log_of_five
    assert tomllib.loads((tmp_path / "parts/config.toml").read_text())["run"]["steps"] == 12


def test_a_finished_run_has_nothing_left_to_do(config, tmp_path):
    first = train_run(config, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    again = train_run(config, tmp_path / "run", resume=True)
    assert (again.step, again.resumed_from, again.tokens, again.tokens_per_second) == (12, 12, 0, None)
    assert again.validation_loss == first.validation_loss
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def no_carry(state):
    return {**state, "carry": Carry.start(4, seed=3).state_dict()}


def no_open_segment(state):
    return {**state, "carry": Carry.from_state_dict(state["carry"]).cut().state_dict()}


def no_optimizer(state):
    return {**state, "optimizer": {**state["optimizer"], "state": {}}}


def no_stream(state):
    return {**state, "stream": {**state["stream"], "epoch": 0, "index": 0}}


def same(state):
    return state


@pytest.mark.parametrize("forget", [no_carry, no_open_segment, no_optimizer, no_stream, same])
def test_forgetting_any_part_of_the_state_makes_another_run(config, forget, tmp_path):
    config = replace(config, truncation="chunks:5")
    train_run(config, tmp_path / "whole")
    train_run(config, tmp_path / "parts", on_step=stop_at(8))
    _, state = load_newest(tmp_path / "parts/checkpoints")
    step = state.pop("step")
    save_checkpoint(tmp_path / "parts/checkpoints", step, forget(state))
    train_run(config, tmp_path / "parts", resume=True)
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert (models[0] == models[1]) is (forget is same)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [cut_short, flip])
def test_a_damaged_newest_checkpoint_costs_its_steps_only(config, damage, tmp_path):
    train_run(config, tmp_path / "whole")
    train_run(config, tmp_path / "parts", on_step=stop_at(11))
    damage(saved_checkpoints(tmp_path / "parts/checkpoints")[0])
    with pytest.warns(UserWarning, match=r"step-00000011\.\w+\.pt: damaged, passed over"):
        rest = train_run(config, tmp_path / "parts", resume=True)
    assert rest.resumed_from == 10
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_killed_before_its_first_checkpoint_begins_again(config, tmp_path):
    def crash(done):
        if done.step == 3:
            raise ZeroDivisionError

    train_run(config, tmp_path / "whole")
    with pytest.raises(ZeroDivisionError):
        train_run(config, tmp_path / "parts", on_step=crash)
    with pytest.raises(FileNotFoundError, match="has saved no parameters yet"):
        load_run(tmp_path / "parts")
    (tmp_path / "parts/.tmp-1-config.toml").write_text("half")
    with (tmp_path / "parts/metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert train_run(config, tmp_path / "parts", resume=True).resumed_from is None
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert not (tmp_path / "parts/.tmp-1-config.toml").exists()


def test_what_a_folder_holds(config, tmp_path):
    seen, validated = [], []
    result = train_run(
        config,
        tmp_path / "run",
        on_step=lambda done: seen.append(done.step),
        on_validation=lambda step, quality: validated.append((step, quality.loss)),
    )
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoints",
        "config.toml",
        "metrics.jsonl",
        "model.safetensors",
    ]
    assert len(saved_checkpoints(tmp_path / "run/checkpoints")) == 3
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if "loss" in line]
    assert [line["step"] for line in updates] == seen == list(range(1, 13))
    for line in updates:
        assert line["tokens"] == 28
        assert line["bits"] == pytest.approx(line["loss"] / math.log(2))
        assert line["tokens_per_second"] == pytest.approx(28 / line["seconds"])
    validations = [line for line in lines if "validation_loss" in line]
    assert [(line["step"], line["validation_loss"]) for line in validations] == validated
    assert [line["step"] for line in validations] == [5, 10, 12]
    last = validations[-1]
    assert last["validation_perplexity"] == pytest.approx(math.exp(last["validation_loss"]))
    assert last["validation_bits"] == pytest.approx(last["validation_loss"] / math.log(2))
    assert result.validation_loss == last["validation_loss"] and result.validation_bits == last["validation_bits"]
    assert result.loss == updates[-1]["loss"] and result.tokens == 12 * 28
    assert json.loads(json.dumps(result.to_dict()))["step"] == 12


def test_the_validation_loss_is_that_of_torch_on_the_last_tenth(config, corpus, tmp_path, make_twin, nats):
    result = train_run(replace(config, batch=1), tmp_path / "run")
    run = load_run(tmp_path / "run")
    with open(corpus, encoding="utf-8") as file:
        text = file.read()
    characters = sorted(set(text))
    held_out = torch.tensor([characters.index(c) for c in text[810:]]).unsqueeze(1)
    with torch.no_grad():
        logits, _ = make_twin(run.model.double())(held_out[:-1], None)
        expected = nats(logits, held_out[1:]).mean().item()
    assert result.validation_loss == pytest.approx(expected, rel=1e-5)
    assert result.vocabulary == len(characters)
    assert result.parameters == sum(parameter.numel() for parameter in run.model.parameters())


def test_it_learns_more_than_how_frequent_characters_are(config, corpus, tmp_path):
    config = replace(config, hidden=32, batch=8, chunk=20, truncation="chunks:20", steps=150, lr=0.02)
    result = train_run(replace(config, checkpoint_every=150), tmp_path / "run")
    with open(corpus, encoding="utf-8") as file:
        text = file.read()
    counts = Counter(text)
    entropy = -sum(n / len(text) * math.log(n / len(text)) for n in counts.values())
    assert result.validation_loss < entropy / 2


def test_the_model_comes_back_and_torchs_generator_is_left_alone(config, tmp_path):
    before = torch.get_rng_state()
    train_run(config, tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)
    assert not run.model.training and run.config == config
    newest = load_newest(tmp_path / "run/checkpoints")[1]["model"]
    assert all(torch.equal(value, newest[name]) for name, value in run.model.state_dict().items())
    (tmp_path / "run/model.safetensors").unlink()  # as in a run that was killed
    again = load_run(tmp_path / "run")
    assert all(torch.equal(value, newest[name]) for name, value in again.model.state_dict().items())


def test_the_parameters_of_the_stop_do_not_outlive_it(config, tmp_path):
    train_run(replace(config, steps=3), tmp_path / "run")

    def check(done):
        assert not (tmp_path / "run/model.safetensors").exists()

    train_run(config, tmp_path / "run", resume=True, on_step=check)
    assert (tmp_path / "run/model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden": 7}, "its run has the setting hidden = 6, this one 7"),
        ({"truncation": "chunks:9"}, "its run has the setting truncation = 'chunks:7', this one 'chunks:9'"),
        ({"seed": 4}, "its run has the setting seed = 3, this one 4"),
    ],
)
def test_other_settings_are_refused_and_nothing_is_touched(config, changes, says, tmp_path):
    train_run(replace(config, steps=2), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=says) as no:
        train_run(replace(config, **changes), tmp_path / "run", resume=True)
    assert "\n" not in str(no.value)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_another_text_is_refused_and_the_same_elsewhere_is_not(config, corpus, tmp_path):
    train_run(replace(config, steps=2), tmp_path / "run")
    with open(corpus, encoding="utf-8") as file:
        text = file.read()
    moved, changed = tmp_path / "moved.txt", tmp_path / "changed.txt"
    moved.write_text(text, encoding="utf-8")
    changed.write_text(text.replace("time", "emit", 1), encoding="utf-8")
    with pytest.raises(ValueError, match="its run has the text's fingerprint = 'sha1:"):
        train_run(replace(config, corpus=str(changed)), tmp_path / "run", resume=True)
    assert train_run(replace(config, corpus=str(moved)), tmp_path / "run", resume=True).resumed_from == 2


def test_folders_that_hold_something_are_refused(config, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("")
    train_run(replace(config, steps=1), tmp_path / "run")
    with pytest.raises(FileExistsError, match="is a file: name a folder"):
        train_run(config, tmp_path / "file")
    for resume in (False, True):
        with pytest.raises(FileExistsError, match=r"holds other files \('thesis.txt'\)"):
            train_run(config, tmp_path / "full", resume=resume)
    with pytest.raises(FileExistsError, match="holds a run already: resume it"):
        train_run(config, tmp_path / "run")
    (tmp_path / "empty").mkdir()
    assert train_run(replace(config, steps=1), tmp_path / "empty").step == 1


def test_a_run_that_is_refused_leaves_nothing(config, tmp_path):
    with pytest.raises(FileNotFoundError):
        train_run(replace(config, corpus=str(tmp_path / "no.txt")), tmp_path / "run")
    with pytest.raises(ValueError, match="tokens are too few for 5000 rows"):
        train_run(replace(config, batch=5000), tmp_path / "run")
    with pytest.raises(FloatingPointError, match="^step 2: "):
        train_run(replace(config, lr=1e37, clip=0), tmp_path / "late")
    assert not (tmp_path / "run").exists()


def test_files_that_are_no_run_are_told(config, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        load_run(tmp_path)
    train_run(replace(config, steps=1), tmp_path / "run")
    good = (tmp_path / "run/config.toml").read_text(encoding="utf-8")
    (tmp_path / "run/config.toml").write_text(good.replace("hidden = 6", "hidden = 5"), encoding="utf-8")
    with pytest.raises(ValueError, match="do not fit config.toml") as no:
        load_run(tmp_path / "run")
    assert "\n" not in str(no.value)
    (tmp_path / "run/config.toml").write_text(good.replace("[vocabulary]", "[words]"), encoding="utf-8")
    with pytest.raises(ValueError, match="not the settings of a run"):
        load_run(tmp_path / "run")
    (tmp_path / "run/config.toml").write_text(good[: good.index("hidden") + 8], encoding="utf-8")
    with pytest.raises(ValueError, match="config.toml: damaged"):
        load_run(tmp_path / "run")
    (tmp_path / "run/config.toml").write_text(good, encoding="utf-8")
    (tmp_path / "run/model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="model.safetensors: damaged"):
        load_run(tmp_path / "run")


def test_bytes_of_a_file_are_mapped_and_its_last_tenth_is_held_out(config, tmp_path):
    path = tmp_path / "raw.bin"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 3000, dtype=np.uint8).tobytes())
    result = train_run(replace(config, corpus=str(path), tokens="bytes", steps=2), tmp_path / "run")
    assert result.vocabulary == 256
    text = tomllib.loads((tmp_path / "run/config.toml").read_text())
    assert text["text"]["length"] == 3000 and text["vocabulary"] == {"kind": "bytes"}
