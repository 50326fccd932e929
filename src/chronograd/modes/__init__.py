"""How the kept terms are added up."""

from .base import Mode
from .forward.rtrl import RTRL
from .forward.uoro import UORO
from .grammar import parse
from .reverse import Reverse
from .scan.mode import Scan

__all__ = ["RTRL", "UORO", "Mode", "Reverse", "Scan", "parse"]
