"""Matrix products over the many rows of a block of time, on the compiled kernels or (complex numbers) on torch."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from .library import ISAS, Product, at
from .workspace import room

__all__ = ["Products", "TorchProducts"]


class Products:
    """Matrix products over the many rows of a block; matrices have contiguous rows of any stride.

    Against torch's: faster where one side is narrow, b is laid out once for all blocks, and both products of one a (and
    the sums of its columns) come from one pass over it.
    """

    def __init__(self, native: ctypes.CDLL, dtype: torch.dtype, forced: str | None = None) -> None:
        self.native = native
        self.of_dtype = (int(dtype == torch.float64), -1 if forced is None else ISAS.index(forced))
        self.threads = torch.get_num_threads()

    def _product(self, height: int, width: int, depth: int) -> Product:
        return Product(*self.of_dtype, self.threads, height, width, depth)

    def panels(self, b: Tensor, turned: bool) -> Tensor:
        """Lay out b (K, N), or with ``turned`` its transpose (N, K)."""
        width, depth = b.shape if turned else b.shape[::-1]
        product = self._product(0, width, depth)
        product.b, product.b_stride = at(b), b.stride(0)
        out = room("panels", (self.native.chronograd_panels_bytes(product),))
        self.native.chronograd_panels(product, int(turned), at(out))
        return out

    def rows(self, a: Tensor, panels: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
        """out = a b + bias."""
        product = self._product(a.shape[0], out.shape[1], a.shape[1])
        product.a, product.a_stride, product.b = at(a), a.stride(0), at(panels)
        product.out, product.out_stride, product.bias = at(out), out.stride(0), at(bias)
        self.native.chronograd_rows(product)

    def columns(
        self,
        a: Tensor,
        b: Tensor,
        out: Tensor,
        sums: Tensor | None,
        more: bool,
        second: tuple[Tensor, Tensor] | None = None,
        anew: tuple[Tensor, Tensor | None] | None = None,
    ) -> None:
        """out = a^T b and sums = those of a's columns; ``more`` adds to both.

        ``second`` is another b and its out: the first product then takes as many of a's columns as its out has rows,
        from the left, the second one as many as its own from the right. ``anew`` is (numbers, fresh): row k of b is row
        numbers[k] of fresh (None: zeros) where that is not negative.
        """
        product = self._product(a.shape[1], b.shape[1], a.shape[0])
        product.a, product.a_stride, product.b, product.b_stride = at(a), a.stride(0), at(b), b.stride(0)
        product.out, product.out_stride, product.sums, product.more = at(out), out.stride(0), at(sums), int(more)
        if second is not None:
            other, to = second
            product.first_rows = out.shape[0]
            product.second_b, product.second_b_stride, product.second_width = at(other), other.stride(0), other.shape[1]
            product.second_out, product.second_out_stride = at(to), to.stride(0)
            product.second_from = a.shape[1] - to.shape[0]
        if anew is not None:
            product.numbers, product.fresh = at(anew[0]), at(anew[1])
        scratch = room("scratch", (self.native.chronograd_scratch_bytes(product),))
        product.scratch = at(scratch)
        self.native.chronograd_columns(product)


class TorchProducts:
    """The same on torch's products, of any dtype; b comes conjugated, as torch's gradients take it."""

    def panels(self, b: Tensor, turned: bool) -> Tensor:
        return b.mT if turned else b.conj()

    def rows(self, a: Tensor, panels: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
        if bias is None:
            torch.mm(a, panels, out=out)
        else:
            torch.addmm(bias, a, panels, out=out)

    def columns(
        self,
        a: Tensor,
        b: Tensor,
        out: Tensor,
        sums: Tensor | None,
        more: bool,
        second: tuple[Tensor, Tensor] | None = None,
        anew: tuple[Tensor, Tensor | None] | None = None,
    ) -> None:
        if anew is not None:
            numbers, fresh = anew
            b = torch.where(numbers.unsqueeze(-1) < 0, b, 0 if fresh is None else fresh[numbers.clamp(min=0)])
        pairs = [(b, out, a[:, : out.shape[0]])]
        if second is not None:
            pairs.append((*second, a[:, a.shape[1] - second[1].shape[0] :]))
        for other, to, part in pairs:
            torch.addmm(to, part.mT, other.conj(), beta=int(more), out=to)
        if sums is not None:
            torch.add(sums * int(more), a.sum(0), out=sums)
