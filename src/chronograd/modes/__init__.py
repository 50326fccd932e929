"""How the kept terms are added up."""

from .base import Mode
from .evolution.mode import PES
from .forward.rtrl import RTRL
from .grammar import parse
from .reverse import Reverse
from .scan.mode import Scan

__all__ = ["PES", "RTRL", "Mode", "Reverse", "Scan", "parse"]
