"""What the modes that walk forward have in common."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar

from chronograd.modes.base import Mode
from chronograd.modes.budget import parse_bytes, spell_bytes

__all__ = ["Forward", "Simple", "read_words"]


class Forward(Mode):
    """A mode that carries the influence of the parameters on the state along with the data (E4), in full or in part."""

    limit: int
    online = True
    walks = True
    instead: ClassVar[str] = "mode=cg.UORO(), mode=cg.SnAp(1) or mode=cg.Reverse()"

    @property
    def row(self) -> str:
        return "forward"

    def spec(self) -> str:
        """The name, and what is not the default: ``rtrl``, ``snap:2``, ``rtrl:512MB``."""
        words = []
        for field in fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, field.name)
            if field.name == "limit" and value != field.default:
                words.append(spell_bytes(value))
            elif field.name != "limit" and value != field.default:
                words.append(str(value))
        return ":".join([self.name, ",".join(words)]) if words else self.name

    def __post_init__(self) -> None:
        """Refuse a limit that is no number of bytes.

        Raises:
            ValueError: in one line.
        """
        if isinstance(self.limit, bool) or not isinstance(self.limit, int) or self.limit < 1:
            raise ValueError(f"{type(self).__name__}: limit must be a positive number of bytes, not {self.limit!r}")


class Simple:
    """A rule (``joint.Rule``) that need not look at the model, and hands on nothing beside the influence."""

    def look(self, linearize: Any, inputs: Any, state: Any) -> None:
        pass

    def section(self) -> dict[str, Any]:
        return {}


def read_words(words: list[str]) -> dict[str, Any]:
    """The limit among the words after a mode's name, and the others in order under ``rest``.

    >>> read_words(["2", "512MB"])
    {'limit': 512000000, 'rest': ['2']}
    """
    given: dict[str, Any] = {}
    for word in words:
        if word[-1:] in "bB" and word[:1].isdigit():
            given["limit"] = parse_bytes(word)
    return {**given, "rest": [word for word in words if not (word[-1:] in "bB" and word[:1].isdigit())]}
