"""How the kept terms are added up."""

from .base import Mode
from .forward.eprop import EProp
from .forward.rflo import RFLO
from .forward.rtrl import RTRL
from .forward.snap import SnAp
from .grammar import parse
from .reverse import Reverse
from .scan.mode import Scan

__all__ = ["RFLO", "RTRL", "EProp", "Mode", "Reverse", "Scan", "SnAp", "parse"]
