"""What a source of steps is, and how it is read: directly by step or by chunk, or in order, and again and again.

A reader is shared by all views of one source and gives steps as fresh tensors. The chunks that it reads are checked by
a ``ChunkRegister``; what the source itself raises is passed on, with a note of the place.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import IterableDataset

from .chunk_register import ChunkRegister

__all__ = ["Reader", "drop_pages", "picked", "reader_of"]

Tree = Any

_AROUND = 1 << 20  # bytes on both sides of what is read of a mapped file


class Reader:
    """What the views of one source share.

    Attributes:
        name: the kind of source, for messages.
        total: the stream's steps; None until they are counted.
    """

    opened = 0
    nbytes = 0

    def __init__(self, name: str) -> None:
        self.name = name
        self.total: int | None = None

    @property
    def sample(self) -> Tree:
        """The first step (1, B, ...)."""
        raise NotImplementedError

    @property
    def rows(self) -> int:
        return pytree.tree_leaves(self.sample)[0].shape[1]

    def count(self) -> int:
        """``total``, counted now if it is not known."""
        raise NotImplementedError

    def load(self, begin: int, end: int, path: tuple[int, ...]) -> Tree:
        """Fresh tensors of steps begin..end, of the part of each chunk that ``path`` leads to."""
        raise NotImplementedError


def reader_of(source: Any) -> Reader:
    """The way to read a source.

    Raises:
        TypeError, ValueError: it cannot be read, or not twice.
    """
    kind = type(source).__name__
    if isinstance(source, type):  # has the methods of what it makes, so none of the questions below apply
        return _Ordered(source, source.__name__)
    if _is_array(source):
        return _Array(source, kind)
    if hasattr(source, "__next__"):
        way = (
            "take its streamed()"
            if hasattr(source, "streamed")
            else "give a list, an object whose iter() begins anew, or a function that opens one"
        )
        raise TypeError(f"Streamed: a {kind} cannot be opened again: {way}")
    if not isinstance(source, str | bytes | Mapping):
        indexed = hasattr(source, "__getitem__") and hasattr(source, "__len__")
        # An IterableDataset inherits a __getitem__ that only raises.
        if indexed and not isinstance(source, IterableDataset):
            return _Indexed(source, kind)
        if isinstance(source, Iterable):
            return _Ordered(source.__iter__, kind)
        if callable(source):
            return _Ordered(source, getattr(source, "__name__", kind))
    raise TypeError(
        f"Streamed reads an array (T, B, ...), a sequence or an iterable of chunks (t, B, ...), or a function that "
        f"opens one, not a {kind}"
    )


def _is_array(source: Any) -> bool:
    return all(hasattr(source, name) for name in ("shape", "dtype", "__getitem__"))


class _Array(Reader):
    """Random access by step; nothing is kept."""

    def __init__(self, source: Any, name: str) -> None:
        super().__init__(name)
        self.shape = tuple(source.shape)
        if len(self.shape) < 2 or not self.shape[0] or not self.shape[1]:
            raise ValueError(
                f"Streamed: a {name} of shape {self.shape}, expected (T, B, ...) with at least one step and one row"
                + ("; array[:, None] is one row" if len(self.shape) == 1 else "")
            )
        self._source = source
        self._sample: Tensor | None = None
        self.total = self.shape[0]

    @property
    def sample(self) -> Tensor:
        if self._sample is None:
            self._sample = self.load(0, 1, ())
        return self._sample

    @property
    def rows(self) -> int:
        return self.shape[1]

    def count(self) -> int:
        return self.shape[0]

    def load(self, begin: int, end: int, path: tuple[int, ...]) -> Tensor:
        try:
            part = self._source[begin:end]
            tensor = part.detach().clone() if isinstance(part, Tensor) else self._copied(part)
        except Exception as error:
            error.add_note(f"raised while steps {begin} to {end} of a stream were read from a {self.name}")
            raise
        if tuple(tensor.shape) != (end - begin, *self.shape[1:]):
            raise ValueError(
                f"steps {begin} to {end} of the stream have shape {tuple(tensor.shape)}, expected "
                f"{(end - begin, *self.shape[1:])}, for the {self.name} says that its shape is {self.shape}"
            )
        return tensor

    def _copied(self, part: Any) -> Tensor:
        import numpy as np

        # A copy, in the machine's own byte order, for torch has no other.
        plain = np.asarray(part)
        copied = np.array(plain, dtype=plain.dtype.newbyteorder("="), order="C")
        drop_pages(part)
        try:
            return torch.from_numpy(copied)
        except TypeError:
            raise TypeError(f"Streamed: a {self.name} of {plain.dtype}, which torch has no dtype for") from None


def drop_pages(part: Any) -> None:
    """Give back the memory of a mapped file's pages that ``part``, a slice of a ``numpy.memmap``, has read.

    They would count as this process's own until the system runs short. Silent where there is nothing to give back.
    """
    if getattr(part, "mode", None) not in ("r", "r+", "w+") or not hasattr(mmap, "MADV_DONTNEED"):
        return  # mode "c" keeps changes in those pages alone
    import numpy as np

    mapped = part
    while mapped is not None and not isinstance(mapped, mmap.mmap):
        mapped = getattr(mapped, "base", None)
    if mapped is None or not part.size:
        return
    origin = np.frombuffer(mapped, np.uint8).ctypes.data
    low = part.ctypes.data + sum((n - 1) * stride for n, stride in zip(part.shape, part.strides) if stride < 0)
    high = part.ctypes.data + sum((n - 1) * stride for n, stride in zip(part.shape, part.strides) if stride > 0)
    # The system maps some pages around each that is read.
    first = max(low - origin - _AROUND, 0) // mmap.PAGESIZE * mmap.PAGESIZE
    end = min(high + part.itemsize - origin + _AROUND, len(mapped))
    mapped.madvise(mmap.MADV_DONTNEED, first, end - first)


class _Chunks(Reader):
    """Chunks, those of the last load in memory."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._register = ChunkRegister()
        self._held: dict[int, Tree] = {}

    def read(self, number: int) -> Tree:
        """Chunk ``number``, from the source."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return sum(leaf.nbytes for chunk in self._held.values() for leaf in pytree.tree_leaves(chunk))

    @property
    def sample(self) -> Tree:
        if self._register.first is None:
            self._held[0] = self.read(0)
        return self._register.first

    def load(self, begin: int, end: int, path: tuple[int, ...]) -> Tree:
        self.count()
        if begin == end:
            return pytree.tree_map(lambda x: x[:0].clone(), picked(self.sample, path))
        numbers = self._register.between(begin, end)
        self._held = {number: chunk for number, chunk in self._held.items() if number in numbers}
        for number in numbers:
            if number not in self._held:
                self._held[number] = self.read(number)
        parts = []
        for number in numbers:
            chunk, start = self._held[number], self._register.starts[number]
            # A source that fills one buffer again and again has by now overwritten all but its last chunk.
            if not self._register.matches(number, chunk):
                self._held.clear()
                raise ValueError(
                    f"{self._register.named(number)} was overwritten after the source had given it: make every chunk "
                    "of a new tensor"
                )
            steps = slice(max(begin - start, 0), end - start)
            parts.append(pytree.tree_map(lambda x: x[steps], picked(chunk, path)))  # noqa: B023
        return pytree.tree_map(lambda *leaves: torch.cat(leaves), *parts)


class _Indexed(_Chunks):
    """Random access by chunk."""

    def __init__(self, source: Any, name: str) -> None:
        super().__init__(name)
        self._source = source
        self._length = len(source)
        if not self._length:
            raise ValueError(f"Streamed: the {name} has no chunks: a stream has at least one step")

    def read(self, number: int) -> Tree:
        try:
            chunk = self._source[number]
        except Exception as error:
            error.add_note(f"raised by the source of a stream while {self._register.named(number)} was read")
            raise
        return self._register.checked(number, chunk)

    def count(self) -> int:
        if self.total is None:
            self._held.clear()  # one chunk at a time
            for number in range(len(self._register), self._length):
                self.read(number)
            self.total = self._register.steps
        return self.total


class _Ordered(_Chunks):
    """Chunks one after the other, from the beginning."""

    def __init__(self, opener: Callable[[], Any], name: str) -> None:
        super().__init__(name)
        self._opener = opener
        self._iterator: Iterator[Any] | None = None
        self._place = 0  # the chunk that the iterator gives next

    def read(self, number: int) -> Tree:
        if self._iterator is None or self._place > number:
            self._open()
        while self._place < number:
            self._next()
        chunk = self._next()
        if chunk is None:
            raise ValueError("the stream has no chunks: it must have at least one step")
        return chunk

    def count(self) -> int:
        if self.total is None:
            self._held.clear()  # one chunk at a time
            if self._iterator is None or self._place > len(self._register):
                self._open()
            while self._next() is not None:
                pass
            if not self._register:
                raise ValueError("the stream has no chunks: it must have at least one step")
            self.total = self._register.steps
        return self.total

    def _open(self) -> None:
        self._iterator = None
        self.opened += 1
        try:
            opened = self._opener()
            if _is_array(opened) or not isinstance(opened, Iterable):
                raise TypeError(
                    f"Streamed: {self.name} must open an iterable of chunks (t, B, ...), not give a "
                    f"{type(opened).__name__}" + (": give that itself" if _is_array(opened) else "")
                )
            self._iterator = iter(opened)
        except Exception as error:
            error.add_note(f"raised while a stream was opened, {self.name}, for time {self.opened}")
            raise
        self._place = 0

    def _next(self) -> Tree | None:
        """The next chunk, checked; None after the last."""
        assert self._iterator is not None
        try:
            chunk = self._take(self._place)
            if chunk is None:
                self._iterator = None
                self._end_at(self._place)
                return None
            chunk = self._register.checked(self._place, chunk)
            if self.total is not None and self._place == len(self._register) - 1:
                if self._take(self._place + 1) is not None:
                    raise ValueError(
                        f"the stream goes on after step {self.total} when it is opened again, where it ended the "
                        "first time: it must give the same chunks every time"
                    )
                self._iterator = None
        except BaseException:
            self._iterator = None  # its place is not known any more
            raise
        self._place += 1
        return chunk

    def _take(self, number: int) -> Tree | None:
        assert self._iterator is not None
        try:
            chunk = next(self._iterator)
        except StopIteration:
            return None
        except Exception as error:
            error.add_note(f"raised by the source of a stream while {self._register.named(number)} was read")
            raise
        if chunk is None:
            raise TypeError(
                f"{self._register.named(number)} is None: chunks are tensors (t, B, ...) or nestings of them"
            )
        return chunk

    def _end_at(self, number: int) -> None:
        if number < len(self._register):
            raise ValueError(
                f"the stream ended after step {self._register.starts[number]} when it was opened again, but had "
                f"{self._register.steps} steps{'' if self.total is not None else ' or more'} the first time: it must "
                "give the same chunks every time"
            )


def picked(tree: Tree, path: tuple[int, ...]) -> Tree:
    """The part of a nesting that ``path`` leads to."""
    for part in path:
        tree = tree[part]
    return tree
