"""The bytes of tensors alive at once, counted where torch's operators hand tensors out.

So the figure is the same on every run and machine; it leaves out scratch memory that lives and dies inside one
operator, and the rounding of allocators.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["PeakBytes"]


class PeakBytes(TorchDispatchMode):
    """The most bytes that tensors made inside the block held at once: ``with PeakBytes() as count: ...; count.peak``.

    ``tensors`` is the most of them that lived at once, ``total`` the bytes of all that were made.

    >>> import torch
    >>> with PeakBytes() as count:
    ...     a = torch.ones(1000)  # 4000 bytes
    ...     del a
    ...     b = torch.ones(2000)  # 8000
    >>> count.peak, count.now
    (8000, 8000)
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self.total = 0
        self.tensors = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {
            leaf.untyped_storage()._cdata for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)
        }
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                # A view of what came from outside the block is nothing new.
                if storage._cdata not in self._alive and storage._cdata not in given:
                    self._watch(storage)
        return out

    def _watch(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()

        def gone(_: Any) -> None:
            self.now -= size
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.total += size
        self.peak = max(self.peak, self.now)
        self.tensors = max(self.tensors, len(self._alive))
