"""Streams of aligned chunks: row b of one chunk goes on in row b of the next.

A text of N tokens holds N - 1 predictions (each token but the first, given those before it). They are cut
into B rows of equal length, the first (N - 1) mod B rows one longer, so that no prediction is lost; the rows
are then read side by side, `chunk` steps at a time. This is what lets a recurrent model carry its state from
call to call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from chronograd.sources import drop_pages
from chronograd.streamed import Streamed

__all__ = ["Chunk", "ChunkStream", "split_tokens"]

Tokens = TypeVar("Tokens", Tensor, np.ndarray)


@dataclass(frozen=True)
class Chunk:
    """One call's worth of a stream.

    Attributes:
        inputs: int64 `(T, B)`.
        targets: int64 `(T, B)`, the token after each input; 0 beyond a row's length.
        reset: bool `(T, B)`, True where a new sequence starts; `None` where none does.
        lengths: int64 `(B,)`, the valid steps of each row; `None` where all are valid.
        epoch: how many times the text had been read before, from 0.
        index: the place of the chunk in its epoch, from 0.
    """

    inputs: Tensor
    targets: Tensor
    reset: Tensor | None
    lengths: Tensor | None
    epoch: int
    index: int

    @property
    def tokens(self) -> int:
        """The number of valid predictions."""
        return self.inputs.numel() if self.lengths is None else int(self.lengths.sum())

    def to(self, device: torch.device | str) -> Chunk:
        """The same chunk on another device."""
        moved = {
            name: None if value is None else value.to(device)
            for name in ("inputs", "targets", "reset", "lengths")
            for value in [getattr(self, name)]
        }
        return replace(self, **moved)


class ChunkStream:
    """Chunks of a token sequence, in order, with an exact position.

    Args:
        tokens: shape `(N,)`, integers: a tensor, an array, or a memory map (of which only the pages in use
            are read).
        batch: rows B of the whole batch.
        chunk: steps T of a chunk.
        rows: which rows of the batch this reader yields, by number; default all. Readers with the same
            `tokens`, `batch` and `chunk` and different rows stay in step with one another, also where their
            rows end one step apart.
        tail: what becomes of the end of an epoch, where fewer than `chunk` steps are left: `"short"` yields
            one shorter chunk; `"pad"` yields it at full length with `lengths` set, so that every call has the
            same shape and stays on the grid of a truncation; `"drop"` leaves it out, and up to B - 1
            predictions that make some rows one longer.
        epochs: how often the text is read; `None` for ever.

    The first step of every epoch has `reset` True in every row. Iterating goes on from the current position;
    `rewind()` goes back to the start.

    Raises:
        ValueError: fewer than B + 1 tokens, or under `tail="drop"` not a single whole chunk; a size below 1;
            rows repeated or out of range.

    >>> import torch
    >>> stream = ChunkStream(torch.arange(9), batch=2, chunk=3)
    >>> for chunk in stream:
    ...     print(chunk.inputs.T.tolist(), chunk.targets.T.tolist())
    [[0, 1, 2], [4, 5, 6]] [[1, 2, 3], [5, 6, 7]]
    [[3], [7]] [[4], [8]]
    """

    def __init__(
        self,
        tokens: Tensor | np.ndarray,
        batch: int,
        chunk: int,
        *,
        rows: Sequence[int] | None = None,
        tail: Literal["short", "pad", "drop"] = "short",
        epochs: int | None = 1,
    ) -> None:
        _check_sizes(tokens, batch, chunk, tail, epochs)
        self.tokens = tokens
        self.batch = batch
        self.chunk = chunk
        self.rows = _check_rows(rows, batch)
        self.tail = tail
        self.epochs = epochs
        self._base, self._longer = divmod(len(tokens) - 1, batch)
        longest = self._base + (self._longer > 0)
        if tail == "drop":
            if self._base < chunk:
                raise ValueError(
                    f"{len(tokens)} tokens in {batch} rows give {self._base} steps a row, "
                    f"not one chunk of {chunk}: make batch or chunk smaller"
                )
            self.chunks_per_epoch = self._base // chunk
        else:
            self.chunks_per_epoch = -(-longest // chunk)
        self.epoch = 0
        self.index = 0

    def __repr__(self) -> str:
        shape = f"{len(self.tokens):,} tokens, batch={self.batch}, chunk={self.chunk}"
        return f"ChunkStream({shape}, at {self.epoch}:{self.index})"

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        if self.epochs is not None and self.epoch >= self.epochs:
            raise StopIteration
        chunk = self._read(self.epoch, self.index)
        self.index += 1
        if self.index == self.chunks_per_epoch:
            self.epoch, self.index = self.epoch + 1, 0
        return chunk

    def rewind(self) -> None:
        """Back to the first chunk of the first epoch."""
        self.epoch = self.index = 0

    def row_length(self, row: int) -> int:
        """The predictions of row number `row` in one epoch."""
        return self._base + (row < self._longer)

    def row_start(self, row: int) -> int:
        """The place in the text of the first input of row number `row`."""
        return row * self._base + min(row, self._longer)

    def streamed(self) -> tuple[Streamed, Streamed, Tensor | None]:
        """One epoch in a single call: its inputs and targets `(T, B)`, read as they are needed, and its lengths.

        The lengths `(B,)` are `None` where all rows are equally long, as always with one row or `tail="drop"`; else
        they belong into the same call, as `lengths=`. The position of this reader plays no part and stays.

        >>> inputs, targets, lengths = ChunkStream(torch.arange(10), batch=2, chunk=3).streamed()
        >>> inputs, lengths
        (Streamed(5 steps, from TokenSteps), tensor([5, 4]))
        >>> inputs[3:].load().tolist(), targets[3:].load().tolist()
        ([[3, 8], [4, 0]], [[4, 9], [5, 0]])
        """
        steps = self._steps
        lengths = torch.tensor([min(steps, self.row_length(row)) for row in self.rows])
        inputs, targets = (Streamed(TokenSteps(self, target=target)) for target in (False, True))
        return inputs, targets, None if bool((lengths == steps).all()) else lengths

    def state_dict(self) -> dict[str, Any]:
        """The position, and the stream it is a position of, as plain numbers and strings."""
        return {"epoch": self.epoch, "index": self.index, **self._geometry()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position that `state_dict` wrote down; the rows may differ, the rest of the stream may not.

        Raises:
            ValueError: the state belongs to a stream of another text length, batch, chunk or tail, or is
                incomplete.
        """
        for name, mine in self._geometry().items():
            theirs = state.get(name)
            if theirs != mine:
                raise ValueError(
                    f"the saved stream position has {name}={theirs!r}, this stream {mine!r}: they do not fit"
                )
        epoch, index = state.get("epoch"), state.get("index")
        if (
            not isinstance(epoch, int)
            or not isinstance(index, int)
            or epoch < 0
            or not 0 <= index < self.chunks_per_epoch
        ):
            raise ValueError(f"the saved stream position is no place in this stream: epoch={epoch!r}, index={index!r}")
        self.epoch, self.index = epoch, index

    def _geometry(self) -> dict[str, Any]:
        return {"tokens": len(self.tokens), "batch": self.batch, "chunk": self.chunk, "tail": self.tail}

    def _read(self, epoch: int, index: int) -> Chunk:
        first = index * self.chunk
        longest = self.row_length(0)
        steps = self.chunk if self.tail != "short" else min(self.chunk, longest - first)
        inputs, targets, lengths = self._lay(first, steps)
        reset = None
        if index == 0:
            reset = torch.zeros(inputs.shape, dtype=torch.bool)
            reset[0] = True
        return Chunk(inputs, targets, reset, None if bool((lengths == steps).all()) else lengths, epoch, index)

    @property
    def _steps(self) -> int:
        """T of one epoch."""
        return self.row_length(0) if self.tail == "short" else self.chunks_per_epoch * self.chunk

    def _lay(self, first: int, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, targets and valid steps of each row, from step `first` of an epoch."""
        inputs = torch.zeros(steps, len(self.rows), dtype=torch.int64)
        targets = torch.zeros_like(inputs)
        lengths = torch.empty(len(self.rows), dtype=torch.int64)
        for column, row in enumerate(self.rows):
            valid = max(0, min(steps, self.row_length(row) - first))
            start = self.row_start(row) + first
            piece = self._slice(start, start + valid + 1)
            inputs[:valid, column] = piece[:valid]
            targets[:valid, column] = piece[1 : valid + 1]
            lengths[column] = valid
        return inputs, targets, lengths

    def _slice(self, start: int, stop: int) -> Tensor:
        piece = self.tokens[start:stop]
        if isinstance(piece, Tensor):
            return piece.to(torch.int64)
        copied = torch.from_numpy(np.asarray(piece).astype(np.int64))  # a copy, so a read-only map is no trouble
        drop_pages(piece)
        return copied


class TokenSteps:
    """One epoch's inputs or targets as an array (T, B) of which any steps can be read."""

    dtype = torch.int64

    def __init__(self, stream: ChunkStream, *, target: bool) -> None:
        self._stream = stream
        self._target = target
        self.shape = (stream._steps, len(stream.rows))

    def __getitem__(self, steps: slice) -> Tensor:
        first, end, _ = steps.indices(self.shape[0])
        return self._stream._lay(first, end - first)[self._target]


def split_tokens(tokens: Tokens, fraction: float = 0.1, *, at_most: int | None = None) -> tuple[Tokens, Tokens]:
    """Split into the front for training and the last `fraction` for validation; both are views, nothing is
    read or copied.

    Args:
        tokens: shape `(N,)`.
        fraction: the share of the validation part, between 0 and 1.
        at_most: a cap on the validation part in tokens, for texts so long that a tenth of them is more than
            is needed.

    Raises:
        ValueError: `fraction` is not between 0 and 1, or a part would hold fewer than 2 tokens.

    >>> train, validation = split_tokens(np.arange(100))
    >>> len(train), validation.tolist()
    (90, [90, 91, 92, 93, 94, 95, 96, 97, 98, 99])
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, not {fraction}")
    held_out = round(len(tokens) * fraction)
    if at_most is not None:
        held_out = min(held_out, at_most)
    if held_out < 2 or len(tokens) - held_out < 2:
        raise ValueError(
            f"{len(tokens)} tokens are too few to hold out {fraction:.0%} for validation: give a longer text"
        )
    cut = len(tokens) - held_out
    return tokens[:cut], tokens[cut:]


def _check_sizes(tokens: Tensor | np.ndarray, batch: int, chunk: int, tail: str, epochs: int | None) -> None:
    for name, value in (("batch", batch), ("chunk", chunk), ("epochs", 1 if epochs is None else epochs)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
    if tail not in ("short", "pad", "drop"):
        raise ValueError(f"tail must be 'short', 'pad' or 'drop', not {tail!r}")
    if tokens.ndim != 1:
        raise ValueError(f"tokens must have one dimension, not shape {tuple(tokens.shape)}")
    whole = not tokens.is_floating_point() if isinstance(tokens, Tensor) else np.issubdtype(tokens.dtype, np.integer)
    if not whole:
        raise ValueError(f"tokens must be integers, not {tokens.dtype}")
    if len(tokens) < batch + 1:
        raise ValueError(
            f"{len(tokens)} tokens are too few for {batch} rows: give {batch + 1} or more, or a smaller batch"
        )


def _check_rows(rows: Sequence[int] | None, batch: int) -> tuple[int, ...]:
    if rows is None:
        return tuple(range(batch))
    chosen = tuple(int(row) for row in rows)
    if not chosen or len(set(chosen)) != len(chosen) or not all(0 <= row < batch for row in chosen):
        raise ValueError(f"rows must be different numbers from 0 to {batch - 1}, not {list(chosen)}")
    return chosen
