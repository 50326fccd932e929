"""A character model: tokens in, a recurrent layer, one score per token of the vocabulary out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from chronograd.recurrence.layers import GRU, LSTM, RNN

__all__ = ["CharModel"]


class CharModel(nn.Module):
    """One-hot tokens (or an embedding) -> recurrent layers -> a linear readout.

    Args:
        vocabulary_size: number of tokens V.
        cell: ``"rnn"`` (tanh), ``"gru"`` or ``"lstm"``.
        hidden: units H of a layer.
        layers: how many layers.
        embedding: width of a learned embedding; ``None`` feeds the tokens one-hot.

    >>> import torch
    >>> model = CharModel(27, "gru", hidden=16)
    >>> logits, state = model(torch.zeros(5, 2, dtype=torch.int64))
    >>> logits.shape
    torch.Size([5, 2, 27])
    """

    def __init__(
        self,
        vocabulary_size: int,
        cell: str = "gru",
        hidden: int = 256,
        layers: int = 1,
        embedding: int | None = None,
    ) -> None:
        super().__init__()
        kinds = {"rnn": RNN, "gru": GRU, "lstm": LSTM}
        if cell not in kinds:
            raise ValueError(f"cell must be one of {', '.join(map(repr, kinds))}, not {cell!r}")
        self.vocabulary_size = vocabulary_size
        self.embedding = None if embedding is None else nn.Embedding(vocabulary_size, embedding)
        self.layer = kinds[cell](embedding or vocabulary_size, hidden, layers)
        self.readout = nn.Linear(hidden, vocabulary_size)

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Scores for the next token.

        Args:
            inputs: int64 ``(T, B)``.
            state: the layer's state, ``None`` for the initial one.

        Returns:
            logits ``(T, B, V)`` and the new state.
        """
        if self.embedding is None:
            features = functional.one_hot(inputs, self.vocabulary_size).to(self.readout.weight.dtype)
        else:
            features = self.embedding(inputs)
        hidden, state = self.layer(features, state)
        return self.readout(hidden), state
