"""Two factors of a product, balanced: the noise of a rank-one estimate is least where both are of one size.

An estimate A (x) B stays itself under A -> p A, B -> B / p; p = sqrt(|B| / |A|) makes both as long as the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["balance", "norms"]


def norms(part: Tensor) -> Tensor:
    """The length of each row's numbers, (B,)."""
    flat = part.flatten(1)
    return torch.linalg.vector_norm(torch.view_as_real(flat).flatten(1) if flat.is_complex() else flat, dim=1)


def balance(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """p and 1/p that bring lengths ``left`` and ``right`` to sqrt(left right) both; 0 and 0 where one of them is 0.

    Zero is the limit: where A or B goes to 0, p A and B / p both do. So a product that is 0 adds no noise, and is still
    0.

    >>> balance(torch.tensor([4.0, 0.0, 2.0]), torch.tensor([1.0, 3.0, 0.0]))
    (tensor([0.5000, 0.0000, 0.0000]), tensor([2., 0., 0.]))
    """
    size = left.sqrt() * right.sqrt()
    return (
        torch.where(size > 0, size / left, 0),
        torch.where(size > 0, size / right, 0),
    )
