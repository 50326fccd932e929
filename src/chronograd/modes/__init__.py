"""How the kept terms are added up."""

from .base import Mode
from .forward.kf_rtrl import KFRTRL
from .forward.rtrl import RTRL
from .forward.uoro import UORO
from .grammar import parse
from .reverse import Reverse
from .scan.mode import Scan

__all__ = ["KFRTRL", "RTRL", "UORO", "Mode", "Reverse", "Scan", "parse"]
