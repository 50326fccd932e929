"""Reverse mode: walk back once, over stored states or within a budget of memory."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Mode
from .budget import free_bytes, parse_bytes, spell_bytes

__all__ = ["Reverse"]


@dataclass(frozen=True)
class Reverse(Mode):
    """Backpropagation through time: run forward, store what the way back needs, walk back once.

    Exact for whatever terms the truncation keeps. Time: two to three forward passes. Memory: grows with the number of
    steps a loss reaches back, times the bytes of one step.

    With ``memory``, a size such as ``"256MB"`` (or a number of bytes), what the mode keeps (states, stored steps, its
    own buffers; not the data, the parameters and their gradients) stays within it at any length: it keeps the states
    that fit and runs the steps between them again. The gradient is the same. Time: one forward pass more where the
    budget holds a state for every stretch that it can store, which is nearly always; else as few as can be.
    ``"auto"`` takes half of what is free when it is called.

    When not to use it: ``Reverse()`` where those states do not fit. A budget where they do: the bytes of a step are
    measured first (some hundred steps), and a user's own cell that keeps something outside of its state cannot be run
    twice.

    Raises:
        ValueError, TypeError: where ``memory`` is no size.

    >>> Reverse().spec(), Reverse("256MB").spec()
    ('reverse', 'reverse:256MB')
    >>> Reverse(memory="much")
    Traceback (most recent call last):
    ValueError: Reverse: memory 'much' is no size; write a number and a unit, as in 256MB, 1.5GB or 64MiB, or "auto"

    References: Werbos 1990; Griewank and Walther 2000; Chen et al. 2016; Gruslys et al. 2016.
    """

    memory: str | int | None = None

    name = "reverse"
    exact = True
    online = False

    def __post_init__(self) -> None:
        self._bytes()

    def spec(self) -> str:
        """The mode as the command line and TOML files write it."""
        if self.memory is None:
            return self.name
        return f"{self.name}:{spell_bytes(self.memory) if isinstance(self.memory, int) else self.memory}"

    @property
    def row(self) -> str:
        return "reverse" if self.memory is None else "reverse within a budget"

    def budget(self, device: str = "cpu") -> int | None:
        """The bytes that may be kept, on a device of that type; None without a limit.

        Raises:
            OSError: ``"auto"``, and the system does not say what is free.
        """
        return free_bytes(device) // 2 if self.memory == "auto" else self._bytes()

    def _bytes(self) -> int | None:
        if self.memory is None or self.memory == "auto":
            return None
        if isinstance(self.memory, bool) or not isinstance(self.memory, str | int):
            raise TypeError(f"Reverse: memory must be a size such as '256MB' or a number of bytes, not {self.memory!r}")
        if isinstance(self.memory, int):
            if self.memory < 1:
                raise ValueError(f"Reverse: memory must be a positive number of bytes, not {self.memory}")
            return self.memory
        try:
            return parse_bytes(self.memory)
        except ValueError as error:
            raise ValueError(f'Reverse: memory {error}, or "auto"') from None
