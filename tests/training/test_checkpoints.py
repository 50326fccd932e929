"""Checkpoints: what was saved comes back, damage is told, and a crash at any moment leaves a whole one."""

import errno
import hashlib
import json
import os
import pickle
import resource
import subprocess
import sys
import warnings

import pytest
import torch

from chronograd.files import write_atomically
from chronograd.training.checkpoints import load_newest, save_checkpoint, saved_checkpoints


def state_of(step: int) -> dict:
    return {"values": torch.full((2000,), float(step)), "nested": {"pair": (1, [2.5, None, "x", True, b"y"]), 3: "int"}}


def the_step(folder) -> int:
    """The step of the newest checkpoint, its content checked."""
    found = load_newest(folder)
    assert found is not None
    step = found[1]["step"]
    assert torch.equal(found[1]["values"], state_of(step)["values"])
    return step


def test_what_was_saved_comes_back_and_only_the_newest_stay(tmp_path):
    assert load_newest(tmp_path / "none") is None
    for step in (1, 2, 9, 10, 123456789):
        path = save_checkpoint(tmp_path, step, state_of(step), keep=3)
        assert load_newest(tmp_path)[0] == path
    assert [int(path.name[5:].split(".")[0]) for path in saved_checkpoints(tmp_path)] == [123456789, 10, 9]
    assert load_newest(tmp_path)[1]["nested"] == state_of(0)["nested"]
    assert len(list(tmp_path.iterdir())) == 3


def test_the_digest_in_the_name_is_the_sha256_of_the_file(tmp_path):
    path = save_checkpoint(tmp_path, 7, state_of(7))
    assert path.name == f"step-00000007.{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.pt"


def test_one_step_has_one_checkpoint_the_last_written(tmp_path):
    save_checkpoint(tmp_path, 4, {"values": 1})
    for value in range(2, 9):  # whatever the order of their digests
        save_checkpoint(tmp_path, 4, {"values": value})
        assert load_newest(tmp_path)[1]["values"] == value
    assert len(saved_checkpoints(tmp_path)) == 1


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty])
def test_a_damaged_newest_one_is_passed_over_with_a_warning(tmp_path, damage):
    save_checkpoint(tmp_path, 1, state_of(1))
    newest = save_checkpoint(tmp_path, 2, state_of(2))
    damage(newest)
    with pytest.warns(UserWarning, match=rf"{newest.name}: damaged, passed over"):
        assert the_step(tmp_path) == 1
    damage(saved_checkpoints(tmp_path)[1])
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match="none of the 2 checkpoints loads"):
        load_newest(tmp_path)


def test_one_that_cannot_be_read_is_passed_over(tmp_path):
    save_checkpoint(tmp_path, 1, state_of(1))
    (tmp_path / f"step-00000002.{'0' * 16}.pt").mkdir()
    with pytest.warns(UserWarning, match="damaged, passed over"):
        assert the_step(tmp_path) == 1


def put(folder, step, content):
    path = folder / f"step-{step:08d}.{hashlib.sha256(content).hexdigest()[:16]}.pt"
    path.write_bytes(content)
    return path


class Intruder:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_loading_runs_no_code(tmp_path):
    mark = tmp_path / "mark"
    put(tmp_path, 5, pickle.dumps({"version": 1, "payload": Intruder(mark)}, protocol=2))
    whole = tmp_path / "whole.pt"
    torch.save({"version": 1, "payload": Intruder(mark)}, whole)
    put(tmp_path, 6, whole.read_bytes())
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match="none of the 2"):
        load_newest(tmp_path)
    assert not mark.exists()
    torch.load(whole, weights_only=False)["payload"].close()
    assert mark.exists()  # so the file does hold code that a trusting loader runs


def test_a_later_layout_is_refused_not_passed_over(tmp_path):
    save_checkpoint(tmp_path, 1, state_of(1))
    whole = tmp_path / "whole.pt"
    torch.save({"version": 99}, whole)
    put(tmp_path, 2, whole.read_bytes())
    with pytest.raises(ValueError, match="layout version 99 is unknown here"):
        load_newest(tmp_path)


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"a": {"b": [1, object()]}}, r"state\['a'\]\['b'\]\[1\] is a object"),
        ({"f": len}, r"state\['f'\] is a builtin_function_or_method"),
        ({"a": {1.5: 2}}, r"state\['a'\] has the key 1.5"),
    ],
)
def test_what_would_not_load_is_not_written(tmp_path, state, where):
    with pytest.raises(TypeError, match=where):
        save_checkpoint(tmp_path, 1, state)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_files():
    """No file of this process grows beyond 8 kB: what a full disk does to a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_leaves_the_one_before_and_nothing_else(tmp_path, small_files):
    save_checkpoint(tmp_path, 1, {"values": 1})
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError) as failed:
        save_checkpoint(tmp_path, 2, {"values": torch.zeros(20000)})
    assert failed.value.errno == errno.EFBIG or "step 2 could not be written" in str(failed.value)
    assert sorted(tmp_path.iterdir()) == before
    assert load_newest(tmp_path)[1]["values"] == 1


def test_a_file_is_the_old_or_the_new_one(tmp_path, small_files):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(OSError):
        write_atomically(path, b"x" * 100_000)
    with pytest.raises(ZeroDivisionError):
        write_atomically(path, lambda file: file.write(b"part") / 0 if file.write(b"part") else None)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"


# Forks, and in each fork saves step 3 over steps 1 and 2 and kills itself with SIGKILL at one moment of it.
KILLED_AT_EACH_MOMENT = """
import io, json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from chronograd.training import checkpoints

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def half(state, file):
    whole = io.BytesIO()
    save(state, whole)
    file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
    file.flush()
    die()

def replace_and_die(*args):
    replace(*args)
    die()

save, replace = torch.save, os.replace
moments = {
    "at the start": (torch, "save", die),
    "half-written": (torch, "save", half),
    "written, not flushed": (os, "fsync", die),
    "before the rename": (os, "replace", die),
    "after the rename": (os, "replace", replace_and_die),
    "before the folder is flushed": (checkpoints, "sync_folder", die),
    "before old ones are removed": (checkpoints, "saved_checkpoints", die),
    "while old ones are removed": (Path, "unlink", die),
}
root, ends = Path(sys.argv[1]), {}
for moment, (owner, name, action) in moments.items():
    child = os.fork()
    if child == 0:
        for step in (1, 2, 3):
            if step == 3:
                setattr(owner, name, action)
            checkpoints.save_checkpoint(root / moment, step, {"values": torch.full((2000,), float(step))}, keep=2)
        os._exit(0)
    ends[moment] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(ends))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_moment_of_saving_leaves_a_whole_newest_one(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EACH_MOMENT, str(tmp_path)], capture_output=True, text=True, check=True
    )
    ends = json.loads(done.stdout)
    assert set(ends.values()) == {-9} and len(ends) == 8
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing may look damaged
        for moment in ends:
            found[moment] = the_step(tmp_path / moment)
            save_checkpoint(tmp_path / moment, 4, state_of(4), keep=2)
            assert the_step(tmp_path / moment) == 4
            assert len(list((tmp_path / moment).iterdir())) == 2, "temporary files stayed behind"
    renamed = {"after the rename", "before the folder is flushed", "before old ones are removed"}
    renamed.add("while old ones are removed")
    assert found == {moment: 3 if moment in renamed else 2 for moment in ends}
