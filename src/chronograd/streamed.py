"""Steps that are not in memory: a view of a source's steps, which is sliced without reading and read when it is loaded.

``Streamed`` stands where a tensor (T, B, ...) would. Whoever walks through time once forwards and once backwards reads
every step twice, so a source must give the same steps each time, and so must the functions that are mapped over it;
those are tried here, sources are checked as they are read (``sources.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .chunk_register import check_tree
from .sources import picked, reader_of

__all__ = ["Streamed"]

Tree = Any

_TRIED = 16  # steps on which a mapped function is tried


class Streamed:
    """Steps of a sequence, (T, B, ...), that are read when they are needed.

    Args:
        source: where the steps come from, one of

            - an array with ``shape`` (T, B, ...), ``dtype`` and slices: a ``numpy.memmap`` or array, a tensor, a
              dataset of h5py or zarr. Any steps are read directly, and of a file only those.
            - a sequence of chunks, with ``len()`` and ``source[i]``: a list, a ``torch.utils.data.Dataset``. Any chunk
              is read directly.
            - an iterable of chunks that begins anew with every ``iter(source)``, such as a ``DataLoader`` that does
              not shuffle; or a function without arguments that opens one. Chunks are read in order.

            A chunk is a tensor (t, B, ...) or a nesting (tuples, lists, dicts) of such tensors. All chunks are alike
            but for their number of steps t >= 1, and they must be the same whenever they are read.

    Sources that are read in order cost time: steps before those read last are reached by opening the source again and
    skipping, so a walk back through n chunks reads some n^2 / 2 of them. Fewer and longer chunks, or a source with
    random access, make that cheap. Sources of chunks are read once to count their steps, when those are first asked
    for. What fits in memory needs none of this: give the tensor.

    What is kept: the chunks of the last load, the first step, and 16 bytes for each chunk; of arrays nothing, and a
    mapped file's pages are given back after each load. Chunks that give other numbers when they are read again are
    recognised by some 256 of their elements; arrays are not checked for this.

    Raises:
        TypeError: a source that cannot be opened again, or is none of the above; later, chunks that are no tensors.
        ValueError: a stream without steps; later, when they are read, chunks that differ from the first in rows,
            shape, dtype or nesting, or from what they were before. Each in one line that names the chunk and its step,
            counted from the stream's beginning. What the source itself raises is passed on, with a note of the chunk.

    >>> import torch, chronograd as cg
    >>> def generate():
    ...     for number in range(3):
    ...         x = torch.full((4, 2, 3), float(number))  # 4 steps of 2 rows
    ...         yield x, x.sum(-1)
    >>> inputs, targets = cg.Streamed(generate).unzip()
    >>> inputs.steps, inputs.rows
    (12, 2)
    >>> part = inputs[2:10]  # nothing is read yet
    >>> part.load()[:, 0, 0]
    tensor([0., 0., 1., 1., 1., 1., 2., 2.])
    """

    __iter__ = None  # or Python would try stream[0], stream[1], ...

    def __init__(self, source: Any) -> None:
        if isinstance(source, Streamed):
            raise TypeError("this is a Streamed already: slice, map or load it as it is")
        self._reader = reader_of(source)
        self._begin = 0
        self._end: int | None = None  # None: where the reader ends, which may not be known yet
        self._path: tuple[int, ...] = ()  # parts picked from each chunk, before any function
        self._functions: tuple[_Mapped, ...] = ()

    def _but(self, **changes: Any) -> Streamed:
        """The same reader under another view."""
        other = object.__new__(Streamed)
        other.__dict__.update(self.__dict__, **changes)
        return other

    def __repr__(self) -> str:
        reader = self._reader
        if reader.total is None:
            return f"Streamed(from {reader.name}, not counted yet)"
        end = reader.total if self._end is None else self._end
        whole = (self._begin, end) == (0, reader.total)
        steps = f"{end:,} steps" if whole else f"steps {self._begin:,} to {end:,} of {reader.total:,}"
        mapped = f", {len(self._functions)} mapped" if self._functions else ""
        return f"Streamed({steps}, from {reader.name}{mapped})"

    @property
    def steps(self) -> int:
        """T. Sources of chunks are read once to count it, one chunk in memory at a time."""
        return (self._reader.count() if self._end is None else self._end) - self._begin

    @property
    def rows(self) -> int:
        """B. Of a source of chunks, the first is read."""
        if not self._path and not self._functions:
            return self._reader.rows
        return pytree.tree_leaves(self._sample())[0].shape[1]

    @property
    def opened(self) -> int:
        """How many times the source has been opened to be read in order; 0 where any part is read directly."""
        return self._reader.opened

    @property
    def nbytes(self) -> int:
        """The bytes of the chunks that are in memory now, for all views of one source together."""
        return self._reader.nbytes

    def __getitem__(self, steps: slice) -> Streamed:
        """The steps ``begin:end``, as of a tensor; nothing is read, but to count the steps once."""
        if not isinstance(steps, slice):
            raise TypeError(
                f"a Streamed is sliced by steps, stream[begin:end], not by {type(steps).__name__}: load() it first, "
                "then index the tensor"
            )
        if steps.step not in (None, 1):
            raise ValueError(f"a Streamed is sliced without a stride, stream[begin:end], not with {steps.step}")
        begin, end, _ = steps.indices(self.steps)
        return self._but(_begin=self._begin + begin, _end=self._begin + max(begin, end))

    def load(self) -> Tree:
        """These steps in memory: a tensor (T, B, ...), or the chunks' nesting of such tensors.

        They are the caller's own and share no memory with source or cache.
        """
        begin, end = self._begin, self._begin + self.steps
        tree = self._reader.load(begin, end, self._path)
        for function in self._functions:
            tree = function(tree, begin)
        return tree

    def map(self, function: Callable[[Tree], Tree]) -> Streamed:
        """The stream of ``function(chunk)``, such as one-hot vectors of tokens; it is called when steps are loaded.

        It must treat each step alone and always alike: it is given whatever run of steps is loaded, (t, B, ...), and
        must give as many steps back. That is tried once on the first steps that are loaded.

        Raises:
            TypeError, ValueError: later, when it is called and gives anything else.

        >>> import torch
        >>> tokens = Streamed([torch.tensor([[0], [2]]), torch.tensor([[1]])])
        >>> tokens.map(lambda x: torch.nn.functional.one_hot(x, 3))[1:].load().tolist()
        [[[0, 0, 1]], [[0, 1, 0]]]
        """
        if not callable(function):
            raise TypeError(f"map needs a function of a chunk, not {type(function).__name__}")
        return self._but(_functions=(*self._functions, _Mapped(function)))

    def unzip(self) -> tuple[Streamed, ...]:
        """Of chunks that are pairs, two streams; of triples three, and so on.

        They share one reader: what one has just loaded is not read again for the others.

        Raises:
            TypeError: the chunks are no tuples or lists.
        """
        sample = self._sample()
        if not isinstance(sample, tuple | list) or not sample:
            raise TypeError(
                f"unzip needs chunks that are tuples, such as (inputs, targets); these are of type "
                f"{type(sample).__name__}"
            )
        if not self._functions:
            return tuple(self._but(_path=(*self._path, part)) for part in range(len(sample)))
        picks = [_Mapped(lambda tree, part=part: tree[part]) for part in range(len(sample))]
        return tuple(self._but(_functions=(*self._functions, pick)) for pick in picks)

    def _sample(self) -> Tree:
        """The stream's first step."""
        tree = pytree.tree_map(torch.clone, picked(self._reader.sample, self._path))
        for function in self._functions:
            tree = function(tree, 0)
        return tree


# --- Functions over steps ---------------------------------------------------------------------------------------------


class _Mapped:
    """A user's function over steps, its results checked."""

    def __init__(self, function: Callable[[Tree], Tree]) -> None:
        self.function = function
        self.tried = False

    def __call__(self, tree: Tree, begin: int) -> Tree:
        steps = pytree.tree_leaves(tree)[0].shape[0]
        trying = not self.tried and steps > 1
        # A copy, for a function may well write into what it is given.
        head = pytree.tree_map(lambda x: x[:_TRIED].clone(), tree) if trying else None
        result = self._apply(tree, begin, steps)
        if trying:
            self._try(head, min(steps, _TRIED), begin)
            self.tried = True
        return result

    def _apply(self, tree: Tree, begin: int, steps: int) -> Tree:
        try:
            result = self.function(tree)
        except Exception as error:
            error.add_note(f"raised by a function given to Streamed.map, on steps {begin} to {begin + steps}")
            raise
        what = f"a function given to Streamed.map, on steps {begin} to {begin + steps},"
        found = check_tree(pytree.tree_leaves(result), what)
        if found != steps:
            raise ValueError(f"{what} gives {found} steps for {steps}: it must give one for each, in dimension 0")
        return result

    def _try(self, head: Tree, steps: int, begin: int) -> None:
        """Whether it gives the same numbers twice, and in two pieces: the way back loads other runs of steps."""

        def run(part: slice) -> list[Tensor]:
            tree = pytree.tree_map(lambda x: x[part].clone(), head)
            return pytree.tree_leaves(self._apply(tree, begin + part.start, part.stop - part.start))

        whole, again = run(slice(0, steps)), run(slice(0, steps))
        if not all(map(_same, whole, again)):
            raise ValueError(
                f"a function given to Streamed.map gives other numbers for steps {begin} to {begin + steps} when it is "
                "called again: make it deterministic"
            )
        halves = zip(run(slice(0, steps // 2)), run(slice(steps // 2, steps)))
        if not all(_near(one, torch.cat(two)) for one, two in zip(whole, halves)):
            raise ValueError(
                f"a function given to Streamed.map gives other numbers for steps {begin} to {begin + steps} in two "
                "pieces: it must treat each step alone, so that any run of steps can be loaded"
            )


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal, NaN with NaN."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _near(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding, which may depend on how many steps are computed at a time."""
    if a.shape != b.shape or not (a.is_floating_point() or a.is_complex()):
        return a.shape == b.shape and torch.equal(a, b)
    finite = a[torch.isfinite(a)].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    slack = max(1e-3, 8 * torch.finfo(a.dtype).eps)
    return torch.allclose(a, b, rtol=0, atol=slack * scale, equal_nan=True)
