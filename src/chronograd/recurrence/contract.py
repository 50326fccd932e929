"""What a user's model and loss must keep to, where breaking it would end in a riddle or in a silent loss of gradients.

What a model returned is looked at in every call; how it can be called, and whose state it was given, only where it has
failed; a loss is looked at once a call, from its result down to the model's outputs and no further.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from torch import Tensor, nn

from .quiet import quiet, settled
from .states import leaves, tree_map

__all__ = ["WatchedLoss", "check_call", "check_pair", "describe", "explain_failure", "shown"]

Tree = Any
NODES = 1000  # of a loss's graph that are looked at


def describe(tree: Tree) -> str:
    """A nesting in words: dtypes and shapes, and devices other than the CPU.

    >>> import torch
    >>> describe({"h": torch.zeros(2, 3), "c": [torch.zeros(1), None]})
    '{h: float32 (2, 3), c: (float32 (1,), None)}'
    """
    if isinstance(tree, Tensor):
        place = "" if tree.device.type == "cpu" else f" on {tree.device}"
        return f"{tree.dtype} {tuple(tree.shape)}{place}".replace("torch.", "")
    if isinstance(tree, tuple | list):
        inside = ", ".join(map(describe, tree))
        return f"({inside},)" if len(tree) == 1 else f"({inside})"
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{key}: {describe(value)}" for key, value in tree.items()) + "}"
    return "None" if tree is None else type(tree).__name__


def shown(value: Any) -> str:
    """A value as a message shows it: its repr on one line of 80 characters at most, a tensor by dtype and shape.

    >>> shown([0] * 100)
    '[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0...'
    """
    text = describe(value) if isinstance(value, Tensor) else " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_call(model: nn.Module, inputs: Tree) -> None:
    """Refuse what cannot be called as ``model(inputs, state)``.

    Raises:
        TypeError: where a torch layer is given a nesting, or the model takes no state.

    >>> import torch
    >>> check_call(nn.Linear(2, 3), torch.zeros(5, 1, 2))
    Traceback (most recent call last):
    TypeError: Linear cannot be called with (inputs, state): a model takes both and returns (outputs, state); ...
    """
    name = type(model).__name__
    if isinstance(model, nn.RNNBase | nn.RNNCellBase):
        if not isinstance(inputs, Tensor):
            raise TypeError(
                f"{name} takes one tensor of inputs (T, B, d), not a {type(inputs).__name__}; torch.stack makes one of "
                "a list of steps, torch.cat of features"
            )
        return
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # some compiled models do not tell
        return
    try:
        signature.bind(inputs, None)
    except TypeError:
        raise TypeError(
            f"{name} cannot be called with (inputs, state): a model takes both and returns (outputs, state); wrap it "
            "in a Module whose forward does, or a cell in cg.Recurrent(cell, readout)"
        ) from None


def check_pair(made: Any) -> tuple[Tree, Tree]:
    """The outputs and the state that a model returned.

    Raises:
        TypeError: where it did not return two things.

    >>> import torch
    >>> check_pair(torch.zeros(2, 3))
    Traceback (most recent call last):
    TypeError: the model returned a Tensor; return a pair (outputs, state)
    """
    if not isinstance(made, tuple | list):
        raise TypeError(f"the model returned a {type(made).__name__}; return a pair (outputs, state)")
    if len(made) != 2:
        count = f"{len(made)} values" if len(made) != 1 else "one value"
        raise TypeError(f"the model returned {count}; return a pair (outputs, state)")
    outputs, state = made
    return outputs, state


@contextmanager
def explain_failure(model: nn.Module, call: nn.Module, inputs: Tree, state: Tree) -> Iterator[None]:
    """Where the block fails because the model cannot be called (``check_call``), or ``state`` is that of another model,
    say so; other errors pass.

    Costs nothing where nothing fails. Where something does, the model makes a state of its own from the first step of
    ``inputs`` (T, B, ...), and the two are compared by nesting, shapes and dtypes; shapes of states that grow with the
    steps are left out.

    Args:
        model: what the user gave; ``call`` is what runs it (``adapt``).

    Raises:
        TypeError, ValueError: instead of what was raised inside.

    >>> import torch
    >>> other = torch.zeros(1, 2, 4)
    >>> lstm, x = nn.LSTM(3, 4), torch.zeros(5, 2, 3)
    >>> with explain_failure(lstm, lstm, x, other):
    ...     lstm(x, other)
    Traceback (most recent call last):
    ValueError: the carry's state is float32 (1, 2, 4), but LSTM makes (float32 (1, 2, 4), float32 (1, 2, 4)): ...
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, TypeError | AttributeError):  # what Python says to arguments that do not fit
            check_call(model, inputs)
        own = None if state is None else _own_state(model, call, inputs)
        if own is None or (found := describe(state)) == (expected := describe(own)):
            raise
        raise ValueError(
            f"the carry's state is {found}, but {type(model).__name__} makes {expected}: give each model the carry "
            "that its own calls returned, and None to begin with"
        ) from error


def _own_state(model: nn.Module, call: nn.Module, inputs: Tree) -> Tree:
    """The state that a model makes, or None where that cannot be told."""
    step = tree_map(lambda x: x[:1], inputs)
    try:
        with quiet(model), settled(model):
            _, state = check_pair(call(step, None))
            _, after = check_pair(call(step, state))
    except Exception:
        return None
    return state if describe(state) == describe(after) else None


class WatchedLoss:
    """A loss function whose answers are looked at: real ones, and the first of them for foreign parameters.

    Gradients are taken for the model's parameters; those of a loss with parameters of its own would be lost.

    Raises:
        ValueError: when called, where the losses are complex, or depend on a parameter that is not the model's.

    >>> import torch
    >>> head = nn.Linear(3, 1)
    >>> loss = WatchedLoss(lambda outputs, targets: head(outputs).squeeze(-1), [])
    >>> loss(torch.zeros(5, 2, 3), None)
    Traceback (most recent call last):
    ValueError: the loss depends on head.weight, a trainable parameter (1, 3) outside the model, ...
    """

    def __init__(self, loss_fn: Callable[[Tree, Tree], Any], parameters: Iterable[Tensor]) -> None:
        self.loss_fn = loss_fn
        self._known = {id(parameter): parameter for parameter in parameters}
        self._looked = False

    def __call__(self, outputs: Tree, targets: Tree) -> Any:
        # Taken before the loss runs, which may write into its arguments.
        data = [] if self._looked else [leaf for leaf in leaves([outputs, targets]) if leaf.requires_grad]
        nodes = [leaf.grad_fn for leaf in data if leaf.grad_fn is not None]
        losses = self.loss_fn(outputs, targets)
        if not isinstance(losses, Tensor):
            return losses
        if losses.is_complex():
            kind = str(losses.dtype).removeprefix("torch.")
            raise ValueError(f"loss_fn returned {kind} numbers, but a loss is real; take their .abs() or .real")
        if not self._looked and losses.grad_fn is not None:
            self._looked = True
            known = {*self._known, *(id(leaf) for leaf in data if leaf.grad_fn is None)}
            if (stranger := _foreign(losses.grad_fn, nodes, known)) is not None:
                raise ValueError(
                    f"the loss depends on {_name(stranger, self.loss_fn)}, a trainable parameter "
                    f"{tuple(stranger.shape)} outside the model, whose gradient would be lost; register its module "
                    "inside the model, or freeze it with requires_grad_(False)"
                )
        return losses


def _foreign(start: Any, ends: Iterable[Any], known: set[int]) -> Tensor | None:
    """A leaf above ``ends`` in an autograd graph that is not among ``known``, or None."""
    waiting, seen = [start], set(ends)
    while waiting and len(seen) < NODES:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        before = node.next_functions
        waiting += [other for other, _ in before]
        leaf = None if before else getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            return leaf
    return None


def _name(leaf: Tensor, loss_fn: Any) -> str:
    """The name of a parameter that a loss uses, as far as it can be found among what the loss refers to."""
    for label, part in _parts("loss_fn", loss_fn, 3):
        if part is leaf:
            return label
        if isinstance(part, nn.Module):
            for name, parameter in part.named_parameters():
                if parameter is leaf:
                    return f"{label}.{name}"
    return "a tensor"


def _parts(label: str, part: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """What a callable refers to, and its name there: bound objects, arguments of a partial, closures, globals."""
    yield label, part
    if depth == 0:
        return
    inner: list[tuple[str, Any]] = []
    if isinstance(part, partial):
        inner = [(label, part.func), *((f"{label}[{n}]", value) for n, value in enumerate(part.args))]
        inner += part.keywords.items()
    elif inspect.ismethod(part):
        inner = [(label, part.__func__), (label, part.__self__)]
    elif inspect.isfunction(part):
        with suppress(ValueError):  # a variable that has no value yet
            variables = inspect.getclosurevars(part)
            inner = [*variables.nonlocals.items(), *variables.globals.items()]
    elif not isinstance(part, Tensor | nn.Module | type):  # an object with __call__
        inner = [(f"{label}.{name}", value) for name, value in getattr(part, "__dict__", {}).items()]
    for name, value in inner:
        if callable(value) or isinstance(value, Tensor):
            yield from _parts(name, value, depth - 1)
