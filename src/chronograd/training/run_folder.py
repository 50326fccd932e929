"""The folder of a run: which files it has, whether it can be gone on with, and the way from it back to a model.

config.toml         the settings, what text they met, the vocabulary
metrics.jsonl       one JSON object a line: every update, every validation
checkpoints/        the last few, each whole or absent
model.safetensors   the parameters where the run stopped; absent while it goes on
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chronograd import __version__
from chronograd.data.vocabulary import ByteVocabulary, CharVocabulary, vocabulary_from_dict
from chronograd.files import TEMPORARY, write_atomically
from chronograd.training.checkpoints import load_newest
from chronograd.training.config import TrainConfig, to_toml
from chronograd.training.metrics import cut_metrics
from chronograd.training.model import CharModel
from chronograd.training.text import RunText

__all__ = [
    "CHECKPOINTS",
    "METRICS",
    "Tables",
    "TrainedRun",
    "begin_folder",
    "build_model",
    "check_folder",
    "load_run",
    "need_safetensors",
    "save_model",
    "saved_state",
    "settings_tables",
]

CHECKPOINTS = "checkpoints"
CONFIG = "config.toml"
METRICS = "metrics.jsonl"
MODEL = "model.safetensors"

Tables = Mapping[str, Mapping[str, Any]]

_MAY_CHANGE = {"corpus", "steps", "checkpoint_every"}  # on resuming; the corpus is compared by its fingerprint


@dataclass(frozen=True)
class TrainedRun:
    """A run read back: the model with its parameters, its vocabulary, its settings, and the fingerprint of its text."""

    model: CharModel
    vocabulary: CharVocabulary | ByteVocabulary
    config: TrainConfig
    fingerprint: str | None = None


def load_run(folder: Path) -> TrainedRun:
    """The model that a run folder holds, in evaluation mode.

    Of a run that was killed, or goes on, it is the model of the newest whole checkpoint.

    Raises:
        FileNotFoundError: the folder holds no run, or no parameters yet.
        ValueError: a file is damaged, or the files do not fit one another.
        ImportError: safetensors is not installed.
    """
    tables = _read_settings(folder)
    try:
        config = TrainConfig.from_dict(tables["run"])
        vocabulary = vocabulary_from_dict(dict(tables["vocabulary"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG}: not the settings of a run ({error})") from error
    source, parameters = _parameters(folder)
    with torch.random.fork_rng(devices=[]):  # the initial parameters that are overwritten at once draw from it
        model = build_model(config, vocabulary.size)
    try:
        model.load_state_dict(parameters)
    except RuntimeError as error:
        raise ValueError(f"{source}: its parameters do not fit {CONFIG} ({' '.join(str(error).split())})") from error
    return TrainedRun(model.eval(), vocabulary, config, tables.get("text", {}).get("fingerprint"))


def build_model(config: TrainConfig, vocabulary_size: int) -> CharModel:
    """The model that the settings describe, with parameters drawn from torch's generator."""
    return CharModel(vocabulary_size, config.model, config.hidden, config.layers)


def settings_tables(config: TrainConfig, text: RunText) -> Tables:
    """What ``config.toml`` says, by table and name: plain values."""
    return {
        "run": config.to_dict(),
        "text": {"length": text.length, "fingerprint": text.fingerprint},
        "vocabulary": text.vocabulary.to_dict(),
        "written_by": {"chronograd": __version__, "torch": torch.__version__},
    }


def check_folder(folder: Path, resume: bool) -> None:
    """Refuse a folder in which a run would overwrite something.

    Raises:
        FileExistsError: it holds a run and ``resume`` is False, or holds other files, or is a file itself.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder}: is a file: name a folder for the run")
    if (folder / CONFIG).is_file():
        if not resume:
            raise FileExistsError(f"{folder}: holds a run already: resume it, or name another folder")
        return
    if others := sorted(path.name for path in folder.iterdir() if not path.name.startswith(TEMPORARY)):
        raise FileExistsError(f"{folder}: holds other files ({others[0]!r}): name a new or an empty folder")


def begin_folder(folder: Path, tables: Tables, step: int) -> None:
    """Make the folder, or put it in the order it had after ``step`` updates."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{TEMPORARY}*"):  # of a process that was killed while it wrote
        left.unlink(missing_ok=True)
    (folder / MODEL).unlink(missing_ok=True)
    write_atomically(folder / CONFIG, to_toml(tables).encode())
    cut_metrics(folder / METRICS, step)


def saved_state(folder: Path, tables: Tables) -> dict[str, Any] | None:
    """The newest whole checkpoint of a run with these settings and this text, or None where nothing is saved yet.

    Raises:
        ValueError: the run was made with other settings or another text, or none of its checkpoints loads.
    """
    if not (folder / CONFIG).is_file():
        return None
    saved = _read_settings(folder)
    for table, what in (("run", "setting"), ("text", "text's"), ("vocabulary", "vocabulary's")):
        theirs, ours = saved.get(table, {}), tables[table]
        for name, mine in ours.items():
            if theirs.get(name) != mine and not (table == "run" and name in _MAY_CHANGE):
                raise ValueError(
                    f"{folder}: its run has the {what} {name} = {_short(theirs.get(name))}, this one {_short(mine)}: "
                    "resume with the same, or name another folder"
                )
    newest = load_newest(folder / CHECKPOINTS)
    return None if newest is None else newest[1]


def save_model(folder: Path, model: torch.nn.Module) -> None:
    """Write the parameters as ``model.safetensors``."""
    from safetensors.torch import save

    # one entry at most: safetensors writes several in an order that changes from process to process
    write_atomically(folder / MODEL, save(model.state_dict(), metadata={"format": "pt"}))


def need_safetensors() -> None:
    """Raise ImportError, with the remedy, where the package that writes the model is missing."""
    try:
        import safetensors.torch  # noqa: F401
    except ImportError:
        raise ImportError("a run folder needs safetensors: pip install 'chronograd[train]'") from None


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: holds no run (there is no {CONFIG})")
    try:
        return tomllib.loads(path.read_bytes().decode())
    except ValueError as error:  # of TOML and of UTF-8 alike
        raise ValueError(f"{path}: damaged ({error})") from error


def _parameters(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """The parameters, and the file they are from."""
    path = folder / MODEL
    if path.is_file():
        need_safetensors()
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return path, load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged ({error})") from error
    newest = load_newest(folder / CHECKPOINTS)
    if newest is None:
        raise FileNotFoundError(f"{folder}: its run has saved no parameters yet: resume it")
    return newest[0], newest[1]["model"]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
