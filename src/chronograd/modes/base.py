"""How the kept terms are added up: the interface of a mode."""

from __future__ import annotations

from abc import ABC
from dataclasses import fields
from typing import Any, ClassVar

__all__ = ["Mode"]


class Mode(ABC):
    """A way to add up the kept terms: a frozen dataclass of plain numbers.

    ``exact`` says that the mode adds nothing to the truncation's own error, ``online`` that it walks forward with the
    data.
    """

    name: ClassVar[str]
    exact: ClassVar[bool]
    online: ClassVar[bool]

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

    def __str__(self) -> str:
        return self.spec()
