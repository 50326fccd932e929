"""Text from a trained model: one token at a time, each drawn given all before it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from chronograd.training.run_folder import TrainedRun

__all__ = ["sample"]


def sample(run: TrainedRun, prefix: str, length: int, temperature: float = 1.0, seed: int | None = None) -> str:
    """Go on with a text.

    Args:
        run: as ``load_run`` or ``TrainedRun(model, vocabulary, config)`` gives it.
        prefix: what the model reads first, at least one character.
        length: tokens to write: characters, or bytes for a byte vocabulary.
        temperature: scores are divided by it before the softmax. Below 1 likely tokens become likelier; 0 takes the
            likeliest one every time (the first of equals), and draws nothing.
        seed: of the draws; None takes them from torch's generator.

    Returns:
        The new text, without the prefix.

    Raises:
        ValueError: the prefix is empty or has a character that the vocabulary lacks; ``length`` or ``temperature`` is
            negative.
        FloatingPointError: the model's scores are not finite.

    >>> from chronograd.data.vocabulary import CharVocabulary
    >>> from chronograd.training.config import TrainConfig
    >>> from chronograd.training.model import CharModel
    >>> run = TrainedRun(CharModel(4, "gru", hidden=8), CharVocabulary(" abc"), TrainConfig("builtin"))
    >>> text = sample(run, "abc ab", length=20, seed=0)
    >>> len(text), set(text) <= set(" abc")
    (20, True)
    >>> sample(run, "xyz", length=20)
    Traceback (most recent call last):
    ValueError: prefix: character 'x' (U+0078) at position 0 is not in the vocabulary of 4 characters
    """
    if not prefix:
        raise ValueError("prefix is empty: give at least one character for the model to go on from")
    if isinstance(length, bool) or not isinstance(length, int) or length < 0:
        raise ValueError(f"length must be a whole number of tokens, not {length!r}")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature must be a positive number, or 0 for the likeliest token, not {temperature}")
    try:
        tokens = torch.from_numpy(run.vocabulary.encode(prefix).astype("int64"))
    except ValueError as error:
        remedy = "; this run knows only a-z and the space" if run.config.preprocess == "letters" else ""
        raise ValueError(f"prefix: {error}{remedy}") from None
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    was_training = run.model.training
    run.model.eval()
    try:
        return run.vocabulary.decode(_continuation(run.model, tokens, length, temperature, generator))
    finally:
        run.model.train(was_training)


@torch.no_grad()
def _continuation(
    model: nn.Module, tokens: Tensor, length: int, temperature: float, generator: torch.Generator | None
) -> Iterator[int]:
    state = None
    for _ in range(length):
        outputs, state = model(tokens.unsqueeze(1), state)
        scores = outputs[-1, 0].double().cpu()
        if not bool(torch.isfinite(scores).all()):
            raise FloatingPointError("the model's scores are not finite: its parameters are damaged, or it diverged")
        if temperature == 0:
            token = int(scores.argmax())
        else:
            # the largest score becomes 0 first, so that a tiny temperature overflows to -inf only
            probabilities = torch.softmax((scores - scores.max()) / temperature, 0)
            token = int(torch.multinomial(probabilities, 1, generator=generator))
        yield token
        tokens = torch.tensor([token])
