"""Checkpoints that are whole, found again, and never run code.

A checkpoint is one file, ``step-00001200.<digest>.pt``: plain containers of tensors, numbers and strings in torch's own
format, read with ``weights_only=True``. It appears under its name in one rename, and the digest in the name is that of
its content: a file cut short or damaged later is told from a whole one, and the one before is taken instead.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from chronograd.files import TEMPORARY, sync_folder, temporary_beside

__all__ = ["VERSION", "load_newest", "save_checkpoint", "saved_checkpoints"]

VERSION = 1  # of the layout of the state that training writes
_NAME = re.compile(r"step-(\d{8,})\.([0-9a-f]{16})\.pt")


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: int = 3) -> Path:
    """Write one checkpoint and remove all but the newest ``keep``, and any other of the same step.

    Args:
        folder: where checkpoints lie; made if absent.
        step: the number of updates made so far.
        state: plain containers only, so that it loads without running code.
        keep: how many to leave, at least 1.

    Raises:
        TypeError: the state holds something that ``weights_only`` loading would refuse. Nothing is written then.
        OSError: the disk is full, the folder cannot be written. Nothing half-written stays behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_plain(state, "state")
    temporary = temporary_beside(folder / f"step-{step:08d}.pt")
    try:
        with temporary.open("wb") as file:
            torch.save({"version": VERSION, "step": step, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        path = folder / f"step-{step:08d}.{_digest(temporary)}.pt"
        os.replace(temporary, path)
    except RuntimeError as error:  # torch's writer turns a failed write into one
        temporary.unlink(missing_ok=True)
        raise OSError(f"{folder}: the checkpoint of step {step} could not be written ({_first_line(error)})") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(folder)
    saved = saved_checkpoints(folder)
    same_step = [old for old in saved if old.name.startswith(f"step-{step:08d}.") and old != path]
    for old in [*same_step, *[old for old in saved if old not in same_step][keep:]]:
        old.unlink(missing_ok=True)
    for left in folder.glob(f"{TEMPORARY}*"):  # of a process that was killed while it wrote
        left.unlink(missing_ok=True)
    return path


def saved_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first; files with other names are not looked at."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def load_newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that loads, or None where there is none at all.

    A damaged one is passed over with a warning that names it.

    Raises:
        ValueError: there are checkpoints but none loads, or the newest whole one is of an unknown version.
    """
    candidates = saved_checkpoints(folder)
    for path in candidates:
        damage = _damage(path)
        if damage is None:
            try:
                state = torch.load(path, weights_only=True, map_location="cpu")
            except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
                damage = _first_line(error)
            else:
                if not isinstance(state, dict) or state.get("version") != VERSION:
                    version = state.get("version") if isinstance(state, dict) else None
                    raise ValueError(
                        f"{path}: layout version {version!r} is unknown here (this chronograd writes {VERSION}): "
                        "use the chronograd that wrote it"
                    )
                return path, state
        warnings.warn(f"{path}: damaged, passed over ({damage})", stacklevel=2)
    if candidates:
        raise ValueError(f"{folder}: none of the {len(candidates)} checkpoints loads: start again in another folder")
    return None


def _damage(path: Path) -> str | None:
    match = _NAME.fullmatch(path.name)
    try:
        return None if match and match[2] == _digest(path) else "its content does not match the digest in its name"
    except OSError as error:
        return str(error)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _check_plain(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, (str, int)):
                raise TypeError(f"{where} has the key {key!r}: only text and whole numbers can be keys")
            _check_plain(inner, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            _check_plain(inner, f"{where}[{index}]")
    elif not (value is None or isinstance(value, (bool, int, float, complex, str, bytes, torch.Tensor))):
        raise TypeError(f"{where} is a {type(value).__name__}: a checkpoint holds only plain values and tensors")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
