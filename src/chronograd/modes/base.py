"""How the kept terms are added up: the interface of a mode."""

from __future__ import annotations

from abc import ABC
from dataclasses import fields
from typing import Any, ClassVar

__all__ = ["Mode"]


class Mode(ABC):
    """A way to add up the kept terms: a frozen dataclass of plain numbers.

    ``exact`` says that the mode adds nothing to the truncation's own error, ``unbiased`` that it adds nothing to it in
    the mean over its draws, ``random`` that it draws; ``smoothed`` that the mean over its draws is the gradient of the
    loss's mean over perturbed parameters, not of the loss itself. ``walks`` says that it walks forward: what it knows
    of the past is handed on in the carry, and no step is run again; ``online``, that it can do so one step at a time.
    """

    name: ClassVar[str]
    exact: ClassVar[bool]
    online: ClassVar[bool]
    walks: ClassVar[bool] = False
    random: ClassVar[bool] = False

    @property
    def unbiased(self) -> bool:
        """Whether the mean over draws is the gradient that the truncation keeps."""
        return self.exact

    @property
    def smoothed(self) -> bool:
        """Whether the mean over draws is the gradient of the smoothed loss."""
        return False

    @property
    def past(self) -> str:
        """Whose knowledge of the past it can go on with: of modes that give the same text here."""
        return self.name

    @property
    def row(self) -> str:
        """Its name in the table of what goes with what (``support``)."""
        return self.name

    def budget(self, device: str = "cpu") -> int | None:
        """The bytes that the mode may keep on a device of that type; None without a limit."""
        return None

    def spec(self) -> str:
        """The mode as the command line and TOML files write it."""
        values = [str(getattr(self, field.name)) for field in fields(self)]  # pyright: ignore[reportArgumentType]
        return ":".join([self.name, ",".join(values)]) if values else self.name

    def engine(self) -> Any:
        """What runs the loops of recurrent layers for one call (``recurrence.sequence.Engine``); None is one step
        after the other.
        """
        return None

    def walk(self, onward: Any, section: dict[str, Any]) -> Any:
        """What takes a call's steps one block after the other, for modes that walk forward
        (``forward.onward.Walk``); ``section`` is what the carry holds of the calls before.
        """
        raise NotImplementedError(f"mode {self} does not walk forward")

    def __str__(self) -> str:
        return self.spec()
