"""One step of each built-in recurrence, forward and backward, on plain tensors.

A cell sees its input already projected: ``drive`` (B, G) is x_t W_ih^T + b_ih. Index legend: B rows, H units, G =
blocks * H. Forward is written into tensors that the loop over time allocated. Backward is linear in the cotangent of
the state, so all that it multiplies by (``factors``) is computed for many steps at once, and a step on the way back
is two or three small operations.
"""

from __future__ import annotations

from typing import ClassVar, Protocol, overload

import torch
from torch import Tensor

__all__ = ["CELLS", "Cell", "Diagonal", "Gru", "Linear", "Lstm", "Relu", "Tanh", "fold_biases"]

State = tuple[Tensor, ...]


class Cell(Protocol):
    """What the loop over time needs of a recurrence."""

    parts: ClassVar[int]
    """Tensors in the state: 1, or 2 for (h, c)."""

    kept: ClassVar[int]
    """Blocks of H numbers that a step keeps for the way back, beside its state."""

    inner_bias: ClassVar[bool]
    """Whether the recurrent bias sits inside a product, so that ``drive`` and the recurrent product have cotangents
    of their own.
    """

    element_wise: ClassVar[bool]
    """Whether each unit is a recurrence by itself: the weight has one dimension."""

    def ready(self, weight: Tensor) -> Tensor:
        """The weight as ``forward`` takes it, made once for all steps."""
        ...

    def views(self, drive: Tensor, kept: Tensor) -> State:
        """Views of (T, B, G) and (T, B, kept H), which the loop takes apart in time and hands to ``forward``."""
        ...

    def forward(self, views: State, state: State, weight: Tensor, bias: Tensor | None, new: State) -> None:
        """One step: fills ``new`` and the kept blocks."""
        ...

    def factors(self, kept: Tensor, before: State, after: State) -> State:
        """What the way back multiplies by, for any number of rows at once: (N, ...) each."""
        ...

    def backward(self, delta: State, factors: State, product: Tensor, drive: Tensor) -> tuple[Tensor | None, ...]:
        """One step back: fills the cotangents of the recurrent product and (where it is another) of the drive.

        Returns that of the old state without its part through the product; None is 0.
        """
        ...

    def product_back(self, product: Tensor, weight: Tensor, add: Tensor | None) -> Tensor:
        """From the product's cotangent to that of the old h, plus ``add``."""
        ...

    def weight_back(self, product: Tensor, before: Tensor) -> Tensor:
        """The gradient of the weight from all steps and rows at once, (N, G) and (N, H): one matrix product (E13)."""
        ...


class _Dense:
    """The recurrent product of a full weight matrix."""

    parts: ClassVar[int] = 1
    kept: ClassVar[int] = 0
    inner_bias: ClassVar[bool] = False
    element_wise: ClassVar[bool] = False

    def ready(self, weight: Tensor) -> Tensor:
        return weight.mT.contiguous()

    def views(self, drive: Tensor, kept: Tensor) -> State:
        return (drive,)

    def product_back(self, product: Tensor, weight: Tensor, add: Tensor | None) -> Tensor:
        return torch.mm(product, weight) if add is None else torch.addmm(add, product, weight)

    def weight_back(self, product: Tensor, before: Tensor) -> Tensor:
        return product.mT @ before


class Tanh(_Dense):
    """h' = tanh(drive + W h)."""

    def forward(self, views: State, state: State, weight: Tensor, bias: Tensor | None, new: State) -> None:
        torch.addmm(views[0], state[0], weight, out=new[0]).tanh_()

    def factors(self, kept: Tensor, before: State, after: State) -> State:
        return (1 - after[0] * after[0],)

    def backward(self, delta: State, factors: State, product: Tensor, drive: Tensor) -> tuple[Tensor | None, ...]:
        torch.mul(delta[0], factors[0], out=product)
        return (None,)


class Relu(_Dense):
    """h' = max(0, drive + W h)."""

    def forward(self, views: State, state: State, weight: Tensor, bias: Tensor | None, new: State) -> None:
        torch.addmm(views[0], state[0], weight, out=new[0]).relu_()

    def factors(self, kept: Tensor, before: State, after: State) -> State:
        return (after[0] <= 0,)

    def backward(self, delta: State, factors: State, product: Tensor, drive: Tensor) -> tuple[Tensor | None, ...]:
        # Not a product: 0 times what is not finite is not 0.
        product.copy_(delta[0]).masked_fill_(factors[0], 0)
        return (None,)


class Linear(_Dense):
    """h' = drive + W h."""

    def forward(self, views: State, state: State, weight: Tensor, bias: Tensor | None, new: State) -> None:
        torch.addmm(views[0], state[0], weight, out=new[0])

    def factors(self, kept: Tensor, before: State, after: State) -> State:
        return ()

    def backward(self, delta: State, factors: State, product: Tensor, drive: Tensor) -> tuple[Tensor | None, ...]:
        product.copy_(delta[0])
        return (None,)


class Diagonal(Linear):
    """h' = drive + lambda * h, element by element; lambda real or complex (torch's convention: conjugates on the way
    back).
    """

    element_wise: ClassVar[bool] = True

    def ready(self, weight: Tensor) -> Tensor:
        return weight

    def forward(self, views: State, state: State, weight: Tensor, bias: Tensor | None, new: State) -> None:
        torch.addcmul(views[0], weight, state[0], out=new[0])

    def product_back(self, product: Tensor, weight: Tensor, add: Tensor | None) -> Tensor:
        return product * weight.conj() if add is None else torch.addcmul(add, product, weight.conj())

    def weight_back(self, product: Tensor, before: Tensor) -> Tensor:
        return (product * before.conj()).sum(0)


class Gru(_Dense):
    """r, z = sigmoid(drive + W h + b); n = tanh(drive_n + r * (W_n h + b_n)); h' = (1 - z) n + z h. Torch's order r,
    z, n.

    Kept: r, z, W_n h + b_n, n.
    """

    kept: ClassVar[int] = 4
    inner_bias: ClassVar[bool] = True

    def views(self, drive: Tensor, kept: Tensor) -> State:
        size = drive.shape[-1] // 3
        r, z, inner, n = kept.chunk(4, -1)
        return (
            drive[..., : 2 * size],
            drive[..., 2 * size :],
            kept[..., : 3 * size],
            kept[..., : 2 * size],
            r,
            z,
            inner,
            n,
        )

    def forward(self, views: State, state: State, weight: Tensor, bias: Tensor | None, new: State) -> None:
        drive_rz, drive_n, product, rz, r, z, inner, n = views
        if bias is None:
            torch.mm(state[0], weight, out=product)
        else:
            torch.addmm(bias, state[0], weight, out=product)
        rz.add_(drive_rz).sigmoid_()
        torch.addcmul(drive_n, r, inner, out=n).tanh_()
        torch.lerp(n, state[0], z, out=new[0])

    def factors(self, kept: Tensor, before: State, after: State) -> State:
        r, z, inner, n = kept.chunk(4, -1)
        to_n = (1 - z) * (1 - n * n)
        to_z = (before[0] - n) * z * (1 - z)
        to_r = to_n * inner * r * (1 - r)
        return torch.stack((to_r, to_z, to_n * r), 1), torch.stack((to_r, to_z, to_n), 1), z

    def backward(self, delta: State, factors: State, product: Tensor, drive: Tensor) -> tuple[Tensor | None, ...]:
        to_product, to_drive, z = factors
        d = delta[0].unsqueeze(1)
        torch.mul(d, to_product, out=product.view(to_product.shape))
        torch.mul(d, to_drive, out=drive.view(to_drive.shape))
        return (delta[0] * z,)


class Lstm(_Dense):
    """i, f, g, o = drive + W h; c' = sigmoid(f) c + sigmoid(i) tanh(g); h' = sigmoid(o) tanh(c'). Torch's order i,
    f, g, o.

    Kept: the four gates after their functions.
    """

    parts: ClassVar[int] = 2
    kept: ClassVar[int] = 4

    def views(self, drive: Tensor, kept: Tensor) -> State:
        i, f, g, o = kept.chunk(4, -1)
        return drive, kept, kept[..., : 2 * i.shape[-1]], i, f, g, o

    def forward(self, views: State, state: State, weight: Tensor, bias: Tensor | None, new: State) -> None:
        drive, gates, i_and_f, i, f, g, o = views
        torch.addmm(drive, state[0], weight, out=gates)
        i_and_f.sigmoid_()
        g.tanh_()
        o.sigmoid_()
        torch.mul(f, state[1], out=new[1]).addcmul_(i, g)
        torch.tanh(new[1], out=new[0]).mul_(o)

    def factors(self, kept: Tensor, before: State, after: State) -> State:
        i, f, g, o = kept.chunk(4, -1)
        tanh_c = after[1].tanh()
        from_c = torch.stack((g * i * (1 - i), before[1] * f * (1 - f), i * (1 - g * g)), 1)
        return o * (1 - tanh_c * tanh_c), from_c, tanh_c * o * (1 - o), f

    def backward(self, delta: State, factors: State, product: Tensor, drive: Tensor) -> tuple[Tensor | None, ...]:
        h_to_c, from_c, to_o, f = factors
        dc = torch.addcmul(delta[1], delta[0], h_to_c)
        blocks = product.view(-1, 4, f.shape[-1])
        torch.mul(dc.unsqueeze(1), from_c, out=blocks[:, :3])
        torch.mul(delta[0], to_o, out=blocks[:, 3])
        return None, dc * f


CELLS: dict[str, Cell] = {
    "tanh": Tanh(),
    "relu": Relu(),
    "linear": Linear(),
    "diagonal": Diagonal(),
    "gru": Gru(),
    "lstm": Lstm(),
}


@overload
def fold_biases(kind: str, drive: Tensor, product: Tensor | None) -> tuple[Tensor, Tensor | None]: ...


@overload
def fold_biases(kind: str, drive: Tensor | None, product: Tensor | None) -> tuple[Tensor | None, Tensor | None]: ...


def fold_biases(kind: str, drive: Tensor | None, product: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """What is added to the drive and to the recurrent product. A bias that is simply added goes into the drive; the
    GRU's recurrent one sits inside its reset gate.

    >>> one = torch.ones(1)
    >>> fold_biases("tanh", one, one), fold_biases("gru", one, one)
    ((tensor([2.]), None), (tensor([1.]), tensor([1.])))
    """
    if product is None or CELLS[kind].inner_bias:
        return drive, product
    return product if drive is None else drive + product, None
