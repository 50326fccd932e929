"""The compiled kernels: finding and loading them, and handing them torch's threads.

The library is C on raw pointers; ``native/kernels.h`` says what each array is.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from functools import cache
from pathlib import Path

import torch

__all__ = ["ISAS", "NOT_BUILT", "Layer", "Own", "OwnCell", "find", "isas", "library", "load", "turned_off"]

ISAS = ("plain", "avx2", "avx512")
"""Instruction sets by number."""

NOT_BUILT = (
    "not built, so recurrent layers run in plain torch, several times slower; install gcc or clang, then install "
    "chronograd again"
)
PLACE = Path(__file__).parent / "native" / "libchronograd.so"
_INTEGER = ctypes.c_int64
_POINTER = ctypes.c_void_p


class Layer(ctypes.Structure):
    """``Layer`` of ``native/kernels.h``; arrays of two are two fields here."""

    _fields_ = [
        *((name, _INTEGER) for name in ("kind", "real", "isa", "threads", "split", "block")),
        *((name, _INTEGER) for name in ("steps", "rows", "inputs", "size")),
        *((name, _POINTER) for name in ("x", "weight_ih", "bias_ih", "weight", "bias")),
        *((name, _POINTER) for name in ("initial", "initial_c", "path", "path_c", "kept")),
        *((name, _POINTER) for name in ("gates", "reset", "valid", "fresh", "fresh_c")),
        *((name, _POINTER) for name in ("given", "given_c", "initial_back", "initial_c_back")),
        *((name, _POINTER) for name in ("fresh_back", "fresh_c_back")),
        *((name, _POINTER) for name in ("x_back", "weight_ih_back", "bias_ih_back", "weight_back", "bias_back")),
        *((name, _POINTER) for name in ("own", "room")),
    ]


class Own(ctypes.Structure):
    """``Own`` of ``native/own.c``; arrays are as many fields here."""

    _fields_ = [
        *((name, _INTEGER) for name in ("real", "complex", "steps", "width", "parts")),
        *((name, _POINTER) for name in ("own_0", "own_1", "own_2", "own_3")),
        *((name, _POINTER) for name in ("delta_0", "delta_1", "flow_0", "flow_1")),
    ]


class OwnCell(ctypes.Structure):
    """``OwnCell`` of ``native/own.c``."""

    _fields_ = [
        *((name, _INTEGER) for name in ("real", "kind", "steps", "rows", "size")),
        *((name, _POINTER) for name in ("path", "weight", "gates", "valid", "given", "product", "flow", "first")),
        ("least", ctypes.c_double),
    ]


def find() -> Path | None:
    """Where the library lies: ``CHRONOGRAD_NATIVE`` (a path; empty for none), else beside its sources."""
    given = os.environ.get("CHRONOGRAD_NATIVE")
    place = PLACE if given is None else Path(given) if given else None
    return place if place is not None and place.is_file() else None


def turned_off() -> bool:
    """Whether ``CHRONOGRAD_NATIVE`` is there and empty."""
    return os.environ.get("CHRONOGRAD_NATIVE") == ""


def load(path: Path) -> ctypes.CDLL:
    """Load the library and hand it torch's own thread pool."""
    native = ctypes.CDLL(str(path))
    layer = ctypes.POINTER(Layer)
    signatures = {
        "abi": (_INTEGER, ()),
        "isas": (_INTEGER, ()),
        "use_threads": (None, (_POINTER, _POINTER, _POINTER)),
        "room": (_INTEGER, (layer, _INTEGER)),
        "forward": (None, (layer,)),
        "back": (None, (layer,)),
        "own": (None, (ctypes.POINTER(Own), _INTEGER)),
        "own_cell": (None, (ctypes.POINTER(OwnCell), _INTEGER)),
        "apply": (None, (_INTEGER, _INTEGER, _INTEGER, _INTEGER, _POINTER, _POINTER)),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(native, f"chronograd_{name}")
        function.restype, function.argtypes = result, arguments
    if native.chronograd_abi() != ctypes.sizeof(Layer):
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
        UserWarning: once, where it was not built and nobody has turned it off, or does not load.
    """
    path = find()
    if path is None:
        if not turned_off():
            warnings.warn(f"chronograd's compiled kernels: {NOT_BUILT}", stacklevel=2)
        return None
    try:
        return load(path)
    except (OSError, AttributeError) as error:
        warnings.warn(
            f"chronograd's compiled kernels do not load ({error}), so recurrent layers run in plain torch, several "
            "times slower; install chronograd again",
            stacklevel=2,
        )
        return None


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
