"""How the kept terms are added up."""

from .base import Mode
from .evolution.mode import PES
from .forward.eprop import EProp
from .forward.kf_rtrl import KFRTRL
from .forward.rflo import RFLO
from .forward.rtrl import RTRL
from .forward.snap import SnAp
from .forward.uoro import UORO
from .grammar import parse
from .reverse import Reverse
from .scan.mode import Scan

__all__ = ["KFRTRL", "PES", "RFLO", "RTRL", "UORO", "EProp", "Mode", "Reverse", "Scan", "SnAp", "parse"]
