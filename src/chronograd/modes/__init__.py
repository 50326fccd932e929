"""How the kept terms are added up."""

from .base import Mode
from .grammar import parse
from .reverse import Reverse
from .scan.mode import Scan

__all__ = ["Mode", "Reverse", "Scan", "parse"]
