"""What a walk forward is: it takes the steps of a call block by block, adds up their gradient, and hands on what it
knows of the past.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from chronograd.carry import Piece
from chronograd.modes.losses import Losses
from chronograd.modes.tally import Tally
from chronograd.recurrence.adapters import Recurrence
from chronograd.recurrence.contract import check_pair
from chronograd.recurrence.quiet import keep_buffers, keep_random
from chronograd.recurrence.states import detach, leaves

__all__ = [
    "Onward",
    "Parameters",
    "Walk",
    "begins_at",
    "by_hand",
    "check_shapes",
    "reaching",
    "refuse_bytes",
    "refuse_draws",
    "refusing_draws",
]

_DRAWS = (
    "mode {mode}: the model draws random numbers, and its derivatives would be of other draws than its states; switch "
    "them off (model.eval()), or use mode=cg.Reverse()"
)


@dataclass(frozen=True)
class Onward:
    """What a walk computes with: the model, where gradients are added up, the factor 1 / sum(w) of the losses, and
    what random numbers depend on beside the position: the stream's ``seed`` and its row ids (B,).

    ``signs(position, steps, rows, count, salt)`` draws -1 or 1 of that seed, (steps, B, count), for modes that draw.
    """

    recurrence: Recurrence
    tally: Tally
    scale: float
    seed: int | None
    rows: Tensor
    signs: Callable[..., Tensor]


class Walk(Protocol):
    """A way forward through a stream; ``block`` is how many steps it takes at once at most, ``ways`` say what it does
    where that is not what its mode's name says.
    """

    block: int
    ways: tuple[Any, ...]

    def through(self, piece: Piece, state: Any, losses: Losses, position: int) -> Any:
        """Take the steps of a piece, the first of them at ``position`` of the stream, and add their gradient; the
        state after them, without a graph.
        """
        ...

    def section(self) -> dict[str, Any]:
        """What the next call needs to know of the steps so far: plain nestings of tensors."""
        ...


class Parameters:
    """Some parameters as one vector of P real numbers, a complex one as two.

    >>> flat = Parameters({"w": torch.zeros(2, 2), "b": torch.zeros(2)})
    >>> flat.size, {name: tuple(part.shape) for name, part in flat.split(torch.arange(6.0)).items()}
    (6, {'w': (2, 2), 'b': (2,)})
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.values = dict(values)
        self._sizes = [value.numel() * (2 if value.is_complex() else 1) for value in self.values.values()]
        self.size = sum(self._sizes)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """A vector (P,) as gradients by name, each of its parameter's shape and dtype."""
        found = {}
        for (name, value), part in zip(self.values.items(), flat.split(self._sizes)):
            if value.is_complex():
                part = torch.view_as_complex(part.reshape(*value.shape, 2).contiguous())
            found[name] = part.reshape(value.shape).to(value.dtype)
        return found

    def join(self, parts: list[Tensor | None], lead: tuple[int, ...]) -> Tensor:
        """Tensors (*lead, *shape), one for each parameter in order, None for 0, as one (*lead, P)."""
        flat = []
        for value, part, size in zip(self.values.values(), parts, self._sizes):
            if part is None:
                flat.append(value.new_zeros(*lead, size).real if value.is_complex() else value.new_zeros(*lead, size))
            else:
                flat.append((torch.view_as_real(part) if part.is_complex() else part).reshape(*lead, size))
        return torch.cat(flat, -1)


def reaching(onward: Onward) -> dict[str, Tensor]:
    """The trainable parameters that the next state depends on, by name; seen on two steps from ``state=None``."""
    recurrence, named = onward.recurrence, onward.tally.parameters
    few = recurrence.few(1)
    with keep_random(), keep_buffers(recurrence.model), torch.enable_grad():
        begun = check_pair(recurrence.call(few, None))[1]
        states = [begun, check_pair(recurrence.call(few, detach(begun)))[1]]
        made = [x for x in leaves(states) if x.requires_grad]
        sums = [(torch.view_as_real(x) if x.is_complex() else x).sum() for x in made]
        if not named or not sums:
            return {}
        found = torch.autograd.grad(sums, list(named.values()), allow_unused=True)
    return {name: named[name] for name, grad in zip(named, found) if grad is not None}


@contextmanager
def by_hand(device: torch.device) -> Iterator[None]:
    """What is computed without a graph, and in the precision of the numbers themselves: autocast is for models."""
    available = torch.amp.is_autocast_available(device.type)
    with torch.no_grad(), torch.autocast(device.type, enabled=False) if available else nullcontext():
        yield


def begins_at(tensors: list[Tensor]) -> set[int]:
    """The ids of the leaves that a graph begins at.

    >>> w, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    >>> begins_at([(w * 2).exp()]) == {id(w)}
    True
    """
    found = {id(x) for x in tensors if x.grad_fn is None and x.requires_grad}
    nodes = [x.grad_fn for x in tensors if x.grad_fn is not None]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if (leaf := getattr(node, "variable", None)) is not None:
            found.add(id(leaf))
        new = {other for other, _ in node.next_functions if other is not None} - seen
        seen |= new
        nodes.extend(new)
    return found


def refuse_draws(mode: Any, recurrence: Recurrence) -> None:
    """Refuse models that draw random numbers: derivatives would be of other draws than the states.

    Raises:
        ValueError: in one line.
    """
    if recurrence.draws:
        raise ValueError(_DRAWS.format(mode=mode))


@contextmanager
def refusing_draws(mode: Any) -> Iterator[None]:
    """The same of what runs inside, at a fraction of the cost of running the model to look at it.

    Raises:
        ValueError: in one line.
    """
    before = _generators()
    yield
    if any(not torch.equal(old, new) for old, new in zip(before, _generators())):
        raise ValueError(_DRAWS.format(mode=mode))


def _generators() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]


def refuse_bytes(mode: Any, wanted: int, limit: int, what: str, instead: str, kept: str = "influence") -> None:
    """Refuse influence, or what else is ``kept``, that takes more than ``limit`` bytes.

    Raises:
        ValueError: in one line: how many, of what, and what to do.
    """
    if wanted > limit:
        raise ValueError(
            f"mode {mode} would keep {wanted / 1e6:,.0f} MB of {kept} ({what}), above its limit of "
            f"{limit / 1e6:,.0f} MB; use {instead}, fewer rows or units, or a higher limit"
        )


def check_shapes(mode: Any, held: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse influence that belongs to another model.

    Raises:
        ValueError: in one line.
    """
    found = {name: tuple(part.shape) for name, part in held.items()}
    if found != dict(expected):
        raise ValueError(
            f"the carry's influence under mode {mode} is {found}, but this model's would be {dict(expected)}: give "
            "each model the carry that its own calls returned, and None to begin with"
        )
