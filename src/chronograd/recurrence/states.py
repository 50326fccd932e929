"""States as nested tensors, and the dimension in which their rows lie.

A state is any nesting of tuples, lists and dicts of tensors; ``None`` stands for the initial state. Torch's own
pytree walks it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["RowDims", "as_leaves", "check_state", "detach", "find_row_dims", "flows", "gate", "leaves", "tree_map"]

Tree = Any


def leaves(tree: Tree) -> list[Tensor]:
    """The tensors of a nested state, in order.

    >>> [leaf.item() for leaf in leaves({"h": torch.tensor(1), "c": (torch.tensor(2), None)})]
    [1, 2]
    """
    # Plain nestings by hand: pytree takes ten times as long, and short calls would feel it.
    if isinstance(tree, Tensor):
        return [tree]
    if tree is None:
        return []
    if type(tree) in (tuple, list):
        return [leaf for part in tree for leaf in leaves(part)]
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def tree_map(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """Apply ``function`` to the tensors of trees of one shape; other leaves are taken from the first.

    >>> tree_map(torch.add, (torch.tensor(1), None), (torch.tensor(2), None))
    (tensor(3), None)
    """
    if isinstance(tree, Tensor):
        return function(tree, *others)
    if tree is None:
        return None
    if type(tree) in (tuple, list) and not others:
        return type(tree)([tree_map(function, part) for part in tree])
    return pytree.tree_map(
        lambda leaf, *rest: function(leaf, *rest) if isinstance(leaf, Tensor) else leaf, tree, *others
    )


def detach(tree: Tree) -> Tree:
    """The same values without their graph."""
    return tree_map(Tensor.detach, tree)


def flows(leaf: Tensor) -> bool:
    """Whether a gradient can flow into a tensor: floating-point and complex numbers."""
    return leaf.is_floating_point() or leaf.is_complex()


def as_leaves(tree: Tree) -> Tree:
    """The same values as leaves of a new graph, those that a gradient can flow into."""
    return tree_map(lambda x: x.detach().requires_grad_() if flows(x) else x, tree)


def check_state(state: Tree, what: str = "the model's state") -> None:
    """Refuse a state that gates could not reach into; ``what`` names it in the message.

    Raises:
        TypeError: where it holds anything but tensors, numbers, strings and None.

    >>> check_state({"h": object()})
    Traceback (most recent call last):
    TypeError: the model's state holds a object; make it of tuples, lists and dicts of tensors, ...
    """
    for leaf in pytree.tree_leaves(state):
        if not isinstance(leaf, Tensor | int | float | str | bytes | None):
            raise TypeError(
                f"{what} holds a {type(leaf).__name__}; make it of tuples, lists and dicts of tensors, "
                "so that gates and resets reach them"
            )


class _Gate(torch.autograd.Function):
    """The identity forward; the way back is multiplied by xi (0 cuts, whatever flows)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, xi: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (xi,) = ctx.saved_tensors
        return torch.where(xi == 0, 0, cotangent * xi), None


def gate(tensor: Tensor, xi: Tensor, dim: int = 0) -> Tensor:
    """Put the gates ``xi`` (B,) on the rows of ``tensor``, which lie in dimension ``dim``."""
    if not tensor.requires_grad:
        return tensor
    shape = [1] * tensor.dim()
    shape[dim] = -1
    real = tensor.real.dtype if tensor.is_complex() else tensor.dtype
    return _Gate.apply(tensor, xi.to(tensor.device, real).reshape(shape))  # pyright: ignore[reportReturnType]


class RowDims:
    """Row operations on a state: which dimension of each tensor counts the rows; None where all rows share it."""

    def __init__(self, dims: Sequence[int | None]) -> None:
        self.dims = tuple(dims)

    def _each(self, function: Callable[..., Tensor], state: Tree, *others: Tree) -> Tree:
        flat, spec = pytree.tree_flatten(state)
        rest = [spec.flatten_up_to(other) for other in others]
        done, dims = [], iter(self.dims)
        for number, leaf in enumerate(flat):
            if isinstance(leaf, Tensor):
                dim = next(dims)
                leaf = leaf if dim is None else function(dim, leaf, *(other[number] for other in rest))
            done.append(leaf)
        return pytree.tree_unflatten(done, spec)

    def gate(self, state: Tree, xi: Tensor) -> Tree:
        """Put gates (B,) on the edge that this state travels."""
        if bool((xi == 1).all()):
            return state
        if bool((xi == 0).all()):
            return self._each(lambda dim, leaf: leaf.detach(), state)
        return self._each(lambda dim, leaf: gate(leaf, xi, dim), state)

    def choose(self, mask: Tensor, yes: Tree, no: Tree) -> Tree:
        """Rows of ``yes`` where ``mask`` (B,) is True, else rows of ``no``; what all rows share is that of ``yes``."""

        def pick(dim: int, a: Tensor, b: Tensor) -> Tensor:
            shape = [1] * a.dim()
            shape[dim] = -1
            return torch.where(mask.to(a.device).reshape(shape), a, b)

        return self._each(pick, yes, no)

    def take(self, state: Tree, rows: Tensor) -> Tree:
        """Some of the rows, in the order given."""
        return self._each(lambda dim, leaf: leaf.index_select(dim, rows.to(leaf.device)), state)

    def join(self, states: Sequence[Tree]) -> Tree:
        """States one after the other, as rows of one.

        Raises:
            ValueError: where the states differ in what all rows share.
        """
        if len(states) == 1:
            return states[0]
        for leaf, *others in zip(*map(self._shared, states)):
            if any(bool(leaf != other) for other in others):
                raise ValueError(
                    f"the state holds {leaf}, shared by all rows, and states of different steps are to lie "
                    "side by side; give the state one such number for each row"
                )
        return self._each(lambda dim, *parts: torch.cat(parts, dim), states[0], *states[1:])

    def _shared(self, state: Tree) -> list[Any]:
        """What all rows share, as plain values."""
        dims, shared = iter(self.dims), []
        for leaf in pytree.tree_leaves(state):
            if not isinstance(leaf, Tensor):
                shared.append(leaf)
            elif next(dims) is None:
                shared.append(leaf.tolist())
        return shared


def find_row_dims(state: Tree, other: Tree, rows: int, other_rows: int, declared: Any = None) -> RowDims:
    """Where rows lie, from the states of one model at two batch sizes, or as declared.

    A tensor of integers that does not change with the batch size (a step counter) is shared by all rows.

    Args:
        state: a state of ``rows`` rows; ``other`` is one of ``other_rows`` rows.
        declared: an int for all tensors, or one int (or None) for each in order.

    Raises:
        ValueError: where no dimension, or more than one, follows the batch size.

    >>> find_row_dims(torch.zeros(1, 2, 5), torch.zeros(1, 3, 5), 2, 3).dims
    (1,)
    """
    ours, theirs = leaves(state), leaves(other)
    if declared is not None:
        return RowDims(_declared(ours, rows, declared))
    if len(ours) != len(theirs):
        raise ValueError(
            f"the model's state has {len(ours)} tensors for {rows} rows and {len(theirs)} for {other_rows}; "
            "it must have as many whatever the batch size"
        )
    return RowDims([_follows(number, a, b, rows, other_rows) for number, (a, b) in enumerate(zip(ours, theirs))])


def _declared(ours: list[Tensor], rows: int, declared: Any) -> list[int | None]:
    listed = [declared] * len(ours) if isinstance(declared, int) else list(declared)
    if len(listed) != len(ours):
        raise ValueError(f"state_row_dim names {len(listed)} dimensions, but the state has {len(ours)} tensors")
    for number, (leaf, dim) in enumerate(zip(ours, listed)):
        if dim is not None and (not -leaf.dim() <= dim < leaf.dim() or leaf.shape[dim] != rows):
            raise ValueError(
                f"state_row_dim says {dim} for state tensor {number} of shape {tuple(leaf.shape)}, "
                f"which does not have {rows} rows there"
            )
    return [None if dim is None else dim % ours[number].dim() for number, dim in enumerate(listed)]


def _follows(number: int, a: Tensor, b: Tensor, rows: int, other_rows: int) -> int | None:
    """The dimension that follows the batch size."""
    if a.shape == b.shape and not (a.is_floating_point() or a.is_complex()):
        return None
    same = a.dim() == b.dim()
    found = [d for d in range(a.dim()) if a.shape[d] == rows and b.shape[d] == other_rows] if same else []
    if len(found) != 1:
        raise ValueError(
            f"cannot tell where the rows of state tensor {number} lie: its shape is {tuple(a.shape)} for {rows} rows "
            f"and {tuple(b.shape)} for {other_rows}; give the model an attribute state_row_dim "
            "(an int, or one for each state tensor)"
        )
    return found[0]
