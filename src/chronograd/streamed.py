"""Steps that are not in memory: read chunk by chunk, as often as they are asked for.

``Streamed`` stands where a tensor (T, B, ...) would. It is sliced without reading, and a slice is read when it is
loaded. Whoever walks through time once forwards and once backwards reads every step twice, so the source must give the
same steps each time; what can be seen of that without a pass over all data is checked here, and nowhere else.
"""

from __future__ import annotations

import mmap
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import IterableDataset

__all__ = ["Streamed", "drop_pages"]

Tree = Any

_MARKED = 256  # elements of a tensor that its mark is made of
_TRIED = 16  # steps on which a mapped function is tried
_AROUND = 1 << 20  # bytes on both sides of what is read of a mapped file


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
        self._reader = _reader_of(source)
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
        tree = pytree.tree_map(torch.clone, _picked(self._reader.sample, self._path))
        for function in self._functions:
            tree = function(tree, 0)
        return tree


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
        found = _check_tree(pytree.tree_leaves(result), what)
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


# --- Readers ----------------------------------------------------------------------------------------------------------


class _Reader:
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


def _reader_of(source: Any) -> _Reader:
    """The way to read a source.

    Raises:
        TypeError, ValueError: it cannot be read, or not twice.
    """
    kind = type(source).__name__
    if isinstance(source, Streamed):
        raise TypeError("this is a Streamed already: slice, map or load it as it is")
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


class _Array(_Reader):
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


class _Chunks(_Reader):
    """Chunks, their first steps, and what they were when they were first read."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._starts = array("q", [0])  # the first step of each chunk that is known, and of the one after
        self._marks = array("q")
        self._first: Tree = None  # the first step
        self._alike: tuple[Any, list[Any]] | None = None  # what all chunks must have in common
        self._held: dict[int, Tree] = {}

    def read(self, number: int) -> Tree:
        """Chunk ``number``, from the source."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return sum(leaf.nbytes for chunk in self._held.values() for leaf in pytree.tree_leaves(chunk))

    @property
    def sample(self) -> Tree:
        if self._alike is None:
            self._held[0] = self.read(0)
        return self._first

    def load(self, begin: int, end: int, path: tuple[int, ...]) -> Tree:
        self.count()
        if begin == end:
            return pytree.tree_map(lambda x: x[:0].clone(), _picked(self.sample, path))
        first, last = bisect_right(self._starts, begin) - 1, bisect_left(self._starts, end) - 1
        self._held = {number: chunk for number, chunk in self._held.items() if first <= number <= last}
        for number in range(first, last + 1):
            if number not in self._held:
                self._held[number] = self.read(number)
        parts = []
        for number in range(first, last + 1):
            chunk, start = self._held[number], self._starts[number]
            # A source that fills one buffer again and again has by now overwritten all but its last chunk.
            if _mark(pytree.tree_leaves(chunk)) != self._marks[number]:
                self._held.clear()
                raise ValueError(
                    f"{self._named(number)} was overwritten after the source had given it: make every chunk of a new "
                    "tensor"
                )
            steps = slice(max(begin - start, 0), end - start)
            parts.append(pytree.tree_map(lambda x: x[steps], _picked(chunk, path)))  # noqa: B023
        return pytree.tree_map(lambda *leaves: torch.cat(leaves), *parts)

    def _named(self, number: int) -> str:
        return f"chunk {number} (from step {self._starts[number]})"

    def _checked(self, number: int, chunk: Tree) -> Tree:
        """The chunk, compared with the first one and with its own first reading; new ones are written down."""
        leaves, nesting = pytree.tree_flatten(chunk)
        name = self._named(number)
        steps = _check_tree(leaves, name)
        alike = (nesting, [(leaf.shape[1:], leaf.dtype, leaf.device) for leaf in leaves])
        if not steps:
            raise ValueError(f"{name} has no steps: leave empty chunks out")
        if self._alike is None:
            self._alike = alike
            self._first = pytree.tree_map(lambda x: x[:1].clone(), chunk)
        elif alike != self._alike:
            raise ValueError(self._difference(name, *alike))
        known, mark = number < len(self._marks), _mark(leaves)
        if not known:
            self._starts.append(self._starts[-1] + steps)
            self._marks.append(mark)
            return chunk
        before = self._starts[number + 1] - self._starts[number]
        if steps != before:
            raise ValueError(
                f"{name} has {steps} steps when it is read again, but had {before} the first time: the source must "
                "give the same chunks every time"
            )
        if mark != self._marks[number]:
            raise ValueError(
                f"the stream gives other numbers when it is opened again ({name}): make it deterministic, e.g. seed it "
                "inside, and do not shuffle"
            )
        return chunk

    def _difference(self, name: str, nesting: Any, alike: list[Any]) -> str:
        assert self._alike is not None
        if nesting != self._alike[0]:
            return f"{name} is nested otherwise than the first one: all must be the same nesting of tensors"
        (shape, *kind), (first_shape, *first_kind) = next(
            pair for pair in zip(alike, self._alike[1]) if pair[0] != pair[1]
        )
        if shape != first_shape:
            found, expected = (f"shape (t, {', '.join(map(str, sizes))})" for sizes in (shape, first_shape))
        else:
            found, expected = (f"{dtype} on {device}" for dtype, device in (kind, first_kind))
        return f"{name} has {found}, the first one {expected}: chunks may differ in their number of steps only"


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
            error.add_note(f"raised by the source of a stream while {self._named(number)} was read")
            raise
        return self._checked(number, chunk)

    def count(self) -> int:
        if self.total is None:
            self._held.clear()  # one chunk at a time
            for number in range(len(self._marks), self._length):
                self.read(number)
            self.total = self._starts[-1]
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
            if self._iterator is None or self._place > len(self._marks):
                self._open()
            while self._next() is not None:
                pass
            if not self._marks:
                raise ValueError("the stream has no chunks: it must have at least one step")
            self.total = self._starts[-1]
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
            chunk = self._checked(self._place, chunk)
            if self.total is not None and self._place == len(self._marks) - 1:
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
            error.add_note(f"raised by the source of a stream while {self._named(number)} was read")
            raise
        if chunk is None:
            raise TypeError(f"{self._named(number)} is None: chunks are tensors (t, B, ...) or nestings of them")
        return chunk

    def _end_at(self, number: int) -> None:
        if number < len(self._marks):
            raise ValueError(
                f"the stream ended after step {self._starts[number]} when it was opened again, but had "
                f"{self._starts[-1]} steps{'' if self.total is not None else ' or more'} the first time: it must give "
                "the same chunks every time"
            )


def _picked(tree: Tree, path: tuple[int, ...]) -> Tree:
    for part in path:
        tree = tree[part]
    return tree


def _check_tree(leaves: list[Any], what: str) -> int:
    """The steps of a nesting's tensors.

    Raises:
        TypeError, ValueError: they are no tensors (t, B, ...) of the same t and B.
    """
    if not leaves:
        raise TypeError(f"{what} holds no tensors: chunks are tensors (t, B, ...) or nestings of them")
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"{what} holds a {type(leaf).__name__}: chunks are tensors (t, B, ...) or nestings of them, "
                "as torch.as_tensor makes; a whole array is a stream by itself, Streamed(array)"
            )
        if leaf.dim() < 2 or not leaf.shape[1]:
            raise ValueError(f"{what} has shape {tuple(leaf.shape)}, expected (t, B, ...): time first, then rows")
        if leaf.shape[:2] != leaves[0].shape[:2]:
            raise ValueError(
                f"{what} holds tensors of shapes {tuple(leaves[0].shape)} and {tuple(leaf.shape)}: all must have the "
                "same steps and rows (t, B, ...)"
            )
        if leaf.requires_grad:
            raise ValueError(f"{what} requires a gradient, which would not be followed: detach() it")
    return leaves[0].shape[0]


def _mark(leaves: list[Tensor]) -> int:
    """A number that tells chunks apart by a few of their elements."""
    found = []
    for leaf in leaves:
        if leaf.numel() > _MARKED:
            places = _places(leaf.numel())
            # Of a tensor that does not lie in one piece, reshape would copy all.
            leaf = leaf.view(-1)[places] if leaf.is_contiguous() else leaf[torch.unravel_index(places, leaf.shape)]
        found.append(bytes(leaf.detach().resolve_conj().cpu().contiguous().view(-1).view(torch.uint8).tolist()))
    return hash(tuple(found))


@lru_cache(maxsize=256)
def _places(size: int) -> Tensor:
    """Elements spread over ``size``, the first and the last among them, that fall on no grid."""
    spread = (torch.arange(_MARKED, dtype=torch.float64) * 0.6180339887498949) % 1  # the golden section
    places = (spread * size).long()
    places[-1] = size - 1
    return places
