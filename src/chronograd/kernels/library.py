"""The compiled kernels: finding and loading them, and one call per block of time on plain tensors.

The library is C on raw pointers (``native/kernels.h`` says what each array is); nothing here knows of autograd.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .workspace import room

__all__ = ["ISAS", "NOT_BUILT", "Product", "Recurrence", "at", "find", "isas", "library", "load"]

ISAS = ("plain", "avx2", "avx512")
"""Instruction sets by number; ``forced`` in ``Recurrence`` takes such a name."""

NOT_BUILT = (
    "not built, so recurrent layers run in plain torch, several times slower; install gcc or clang, then install "
    "chronograd again"
)
PLACE = Path(__file__).parent / "native" / "libchronograd.so"
KINDS = {"tanh": 0, "relu": 1, "linear": 2, "gru": 3, "lstm": 4, "diagonal": 5}
COMPLEX_DIAGONAL = 6
SPLITS = {"auto": 0, "rows": 1, "units": 2}
FORWARD, BACK = 0, 1

_INTEGER = ctypes.c_int64
_POINTER = ctypes.c_void_p
_PAIR = _POINTER * 2


class Job(ctypes.Structure):
    """``Job`` of ``native/kernels.h``."""

    _fields_ = [
        *((name, _INTEGER) for name in ("kind", "real", "isa", "threads", "split", "steps", "rows", "size")),
        ("packed", _POINTER),
        ("bias", _POINTER),
        ("drive", _POINTER),
        ("drive_stride", _INTEGER),
        ("kept", _POINTER),
        ("kept_stride", _INTEGER),
        ("initial", _PAIR),
        ("path", _PAIR),
        ("gates", _POINTER),
        ("reset", _POINTER),
        ("valid", _POINTER),
        ("fresh", _PAIR),
        ("zeros", _POINTER),
        ("given", _PAIR),
        ("flow", _PAIR),
        ("product", _POINTER),
        ("product_stride", _INTEGER),
        ("fresh_back", _PAIR),
        ("weight_back", _POINTER),
    ]


class Product(ctypes.Structure):
    """``Product`` of ``native/kernels.h``."""

    _fields_ = [
        *((name, _INTEGER) for name in ("real", "isa", "threads", "height", "width", "depth")),
        ("a", _POINTER),
        ("a_stride", _INTEGER),
        ("b", _POINTER),
        ("b_stride", _INTEGER),
        ("out", _POINTER),
        ("out_stride", _INTEGER),
        ("bias", _POINTER),
        ("sums", _POINTER),
        ("scratch", _POINTER),
        ("more", _INTEGER),
        ("first_rows", _INTEGER),
        ("second_b", _POINTER),
        ("second_b_stride", _INTEGER),
        ("second_width", _INTEGER),
        ("second_out", _POINTER),
        ("second_out_stride", _INTEGER),
        ("second_from", _INTEGER),
        ("numbers", _POINTER),
        ("fresh", _POINTER),
    ]


def find() -> Path | None:
    """Where the library lies: ``CHRONOGRAD_NATIVE`` (a path; empty for none), else beside its sources."""
    given = os.environ.get("CHRONOGRAD_NATIVE")
    place = PLACE if given is None else Path(given) if given else None
    return place if place is not None and place.is_file() else None


def load(path: Path) -> ctypes.CDLL:
    """Load the library and hand it torch's own thread pool."""
    native = ctypes.CDLL(str(path))
    job, product = ctypes.POINTER(Job), ctypes.POINTER(Product)
    signatures = {
        "abi": (_INTEGER, ()),
        "isas": (_INTEGER, ()),
        "use_threads": (None, (_POINTER, _POINTER, _POINTER)),
        "packed_bytes": (_INTEGER, (job, _INTEGER)),
        "pack": (None, (job, _INTEGER, _POINTER, _POINTER)),
        "forward": (None, (job,)),
        "back": (None, (job,)),
        "panels_bytes": (_INTEGER, (product,)),
        "panels": (None, (product, _INTEGER, _POINTER)),
        "rows": (None, (product,)),
        "scratch_bytes": (_INTEGER, (product,)),
        "columns": (None, (product,)),
        "split": (_INTEGER, (job, _INTEGER)),
        "apply": (None, (_INTEGER, _INTEGER, _INTEGER, _INTEGER, _POINTER, _POINTER)),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(native, f"chronograd_{name}")
        function.restype, function.argtypes = result, arguments
    if native.chronograd_abi() != ctypes.sizeof(Job):
        raise OSError(f"{path} was built from other sources than this version of chronograd")
    pool = _pool()
    if pool is not None:
        names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
        native.chronograd_use_threads(*(ctypes.cast(getattr(pool, name), _POINTER) for name in names))
    return native


@cache
def library() -> ctypes.CDLL | None:
    """The library, loaded once; None where there is none.

    Warns:
        UserWarning: once, where it was not built and nobody has turned it off.
    """
    path = find()
    if path is None and os.environ.get("CHRONOGRAD_NATIVE") != "":
        warnings.warn(f"chronograd's compiled kernels: {NOT_BUILT}", stacklevel=2)
    return None if path is None else load(path)


def isas(native: ctypes.CDLL) -> list[str]:
    """The instruction sets that this machine can run."""
    can = native.chronograd_isas()
    return [name for number, name in enumerate(ISAS) if can >> number & 1]


def _pool() -> ctypes.CDLL | None:
    """The libgomp that torch has already loaded; a second one would fight it for the cores."""
    loaded = getattr(os, "RTLD_NOLOAD", None)
    if loaded is None:
        return None
    bundled = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    for name in (*map(str, bundled), "libgomp.so.1"):
        try:
            pool = ctypes.CDLL(name, mode=loaded | os.RTLD_NOW)
        except OSError:
            continue
        if hasattr(pool, "GOMP_parallel"):
            return pool
    return None


def at(part: Tensor | None, row: int = 0) -> int | None:
    """The address of a tensor from one of its first-dimension rows on."""
    if part is None:
        return None
    return part.data_ptr() + row * part.stride(0) * part.element_size()


def pair(parts: Sequence[Tensor | None], row: int = 0) -> ctypes.Array:
    """The addresses of one or two tensors, as a ``Job`` takes them."""
    return _PAIR(*(at(part, row) for part in parts))


class Recurrence:
    """One layer on the compiled kernels: what all of its blocks share, and a call for each block.

    All tensors are contiguous but for the row strides of ``drive``, ``kept`` and ``product``; whoever calls keeps them
    alive.
    """

    def __init__(
        self,
        native: ctypes.CDLL,
        kind: str,
        weight: Tensor,
        rows: int,
        bias: Tensor | None = None,
        forced: str | None = None,
        split: str = "auto",
    ) -> None:
        if weight.is_complex() and kind != "diagonal":
            raise TypeError(f"the compiled kernels have no complex {kind!r} recurrence, only the diagonal one")
        self.native, self.weight, self.bias = native, weight, bias
        number = COMPLEX_DIAGONAL if weight.is_complex() else KINDS[kind]
        self.diagonal = kind == "diagonal"
        self.job = Job(
            kind=number,
            real=int(weight.dtype in (torch.float64, torch.complex128)),
            isa=-1 if forced is None else ISAS.index(forced),
            threads=torch.get_num_threads(),
            split=SPLITS[split],
            rows=rows,
            size=weight.shape[-1],
            bias=at(bias),
        )
        self.packed: Tensor | None = None

    def pack(self, way: int) -> None:
        """Lay the weight out for the way forward or back."""
        if self.diagonal:
            self.packed = self.weight
        else:
            size = self.native.chronograd_packed_bytes(self.job, way)
            self.packed = room("packed", (size,))
            self.native.chronograd_pack(self.job, way, at(self.weight), at(self.packed))
        self.job.packed = at(self.packed)

    def edges(self, gates: Tensor | None, reset: Tensor | None, valid: Tensor | None, fresh: Sequence[Tensor]) -> None:
        """The edges of all steps: (T, B) gates of the real type, int32 numbers of resets, uint8 valid."""
        self.steps_of_edges = (gates, reset, valid)
        self.zeros = self.weight.new_zeros(self.job.size) if reset is not None and not fresh else None
        self.job.zeros = at(self.zeros)
        if fresh:
            self.job.fresh = pair(fresh)

    def _block(self, begin: int, end: int, initial: Sequence[Tensor], path: Sequence[Tensor]) -> None:
        job = self.job
        job.steps = end - begin
        job.gates, job.reset, job.valid = (at(part, begin) for part in self.steps_of_edges)
        job.path = pair(path, begin)
        job.initial = pair(path, begin - 1) if begin else pair(initial)

    def forward(
        self,
        begin: int,
        end: int,
        drive: Tensor,
        kept: Tensor | None,
        initial: Sequence[Tensor],
        path: Sequence[Tensor],
    ) -> None:
        """Steps ``begin`` to ``end``: ``drive`` and ``kept`` are those of the block, ``path`` that of all steps."""
        job = self.job
        self._block(begin, end, initial, path)
        job.drive, job.drive_stride = at(drive), drive.stride(1)
        job.kept, job.kept_stride = at(kept), 0 if kept is None else kept.stride(1)
        self.native.chronograd_forward(job)

    def back(
        self,
        begin: int,
        end: int,
        given: Sequence[Tensor | None],
        kept: Tensor | None,
        initial: Sequence[Tensor],
        path: Sequence[Tensor],
        flow: Sequence[Tensor],
        product: Tensor,
        fresh_back: Sequence[Tensor],
        weight_back: Tensor | None,
    ) -> None:
        """Steps ``end - 1`` to ``begin``: ``product`` is the block's, ``kept`` and ``given`` are of all steps."""
        job = self.job
        self._block(begin, end, initial, path)
        job.given = pair(given, begin)
        job.kept, job.kept_stride = at(kept, begin), 0 if kept is None else kept.stride(1)
        job.flow = pair(flow)
        job.product, job.product_stride = at(product), product.stride(1)
        job.fresh_back = pair(fresh_back)
        job.weight_back = at(weight_back)
        self.native.chronograd_back(job)
