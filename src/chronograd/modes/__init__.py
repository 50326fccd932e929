"""How the kept terms are added up."""

from .base import Mode
from .grammar import parse
from .reverse import Reverse

__all__ = ["Mode", "Reverse", "parse"]
