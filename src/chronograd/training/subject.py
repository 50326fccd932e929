"""What a comparison is made on: a model, and one stretch of text read side by side in rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from chronograd.data.streams import ChunkStream
from chronograd.training.config import TrainConfig
from chronograd.training.model import CharModel
from chronograd.training.run_folder import build_model, load_run
from chronograd.training.text import RunText, open_text

__all__ = ["Subject", "subject_from_corpus", "subject_from_run"]


@dataclass(frozen=True)
class Subject:
    """A model and a stretch of text.

    Attributes:
        model: in evaluation mode.
        inputs: int64 ``(T, B)``.
        targets: int64 ``(T, B)``, the token after each input.
        text: the T characters of the first row.
        model_words, text_words: what they are, for people.
        config: the settings of the run, or those that the fresh model would be trained with.
        trained: whether the model has been trained.
    """

    model: CharModel
    inputs: Tensor
    targets: Tensor
    text: str
    model_words: str
    text_words: str
    config: TrainConfig
    trained: bool


def subject_from_run(folder: Path, steps: int, batch: int) -> Subject:
    """The trained model of a run, on its held-out text, or on its training text where that is too short.

    Raises:
        FileNotFoundError: the folder holds no run, or its text is gone.
        ValueError: the run is damaged, its text has changed, or the text is too short.
    """
    run = load_run(folder)
    text = open_text(run.config)
    if run.fingerprint is not None and run.fingerprint != text.fingerprint:
        raise ValueError(
            f"{run.config.corpus}: is no longer the text that the run in {folder} was trained on: "
            "bring that back, or compare the text itself"
        )
    words = f"the trained model of {folder}"
    return _subject(run.model, text, run.config, steps, batch, words, trained=True)


def subject_from_corpus(config: TrainConfig, steps: int, batch: int) -> Subject:
    """A freshly initialised model of the given settings, on the corpus that they name.

    Raises:
        OSError: the corpus is missing or cannot be read.
        ValueError: the corpus is not UTF-8, or too short.

    >>> subject = subject_from_corpus(TrainConfig("builtin", hidden=8), steps=20, batch=4)
    >>> subject.inputs.shape, len(subject.text), subject.trained
    (torch.Size([20, 4]), 20, False)
    """
    text = open_text(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build_model(config, text.vocabulary.size)
    words = "a freshly initialised, untrained model"
    return _subject(model.eval(), text, config, steps, batch, words, trained=False)


def _subject(
    model: CharModel, text: RunText, config: TrainConfig, steps: int, batch: int, words: str, *, trained: bool
) -> Subject:
    part, tokens = _long_enough(text, config, steps, batch)
    chunk = next(ChunkStream(tokens, batch, steps))
    size = f"{config.model}, {config.hidden} units" + (f", {config.layers} layers" if config.layers > 1 else "")
    return Subject(
        model=model,
        inputs=chunk.inputs,
        targets=chunk.targets,
        text=text.vocabulary.decode(chunk.inputs[:, 0].tolist()),
        model_words=f"{words} ({size})",
        text_words=f"{part} of {config.corpus}, {batch} rows of {steps} steps, each from a fresh state",
        config=config,
        trained=trained,
    )


def _long_enough(text: RunText, config: TrainConfig, steps: int, batch: int) -> tuple[str, np.ndarray]:
    for part, tokens in (("the held-out text", text.held_out), ("the training text", text.train)):
        if (len(tokens) - 1) // batch >= steps:
            return part, tokens
    raise ValueError(
        f"{config.corpus}: {text.length:,} tokens are too few for {batch} rows of {steps} steps: "
        "take fewer steps or a smaller batch"
    )
