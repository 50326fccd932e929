"""chronograd: gradients through time for recurrent models, on PyTorch.

>>> import chronograd as cg
>>> cg.Chunks(35)
Chunks(k=35)
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .carry import Carry as Carry
    from .gradient import Gradient as Gradient
    from .gradient import unroll as unroll
    from .gradient import value_and_grad as value_and_grad
    from .measure.compare import compare as compare
    from .modes import RFLO as RFLO
    from .modes import RTRL as RTRL
    from .modes import EProp as EProp
    from .modes import Reverse as Reverse
    from .modes import Scan as Scan
    from .modes import SnAp as SnAp
    from .recurrence.check import check_model as check_model
    from .recurrence.layers import GRU as GRU
    from .recurrence.layers import LSTM as LSTM
    from .recurrence.layers import RNN as RNN
    from .recurrence.linear import DiagonalRNN as DiagonalRNN
    from .recurrence.linear import LinearRNN as LinearRNN
    from .recurrence.recurrent import Recurrent as Recurrent
    from .streamed import Streamed as Streamed
    from .truncation import AdaptiveTruncation as AdaptiveTruncation
    from .truncation import Chunks as Chunks
    from .truncation import Full as Full
    from .truncation import RandomTruncation as RandomTruncation
    from .truncation import Window as Window

# Names are loaded on first use, so that the command line can answer --help before torch is imported.
_HOMES = {
    "AdaptiveTruncation": "truncation",
    "Carry": "carry",
    "Chunks": "truncation",
    "DiagonalRNN": "recurrence.linear",
    "EProp": "modes",
    "Full": "truncation",
    "GRU": "recurrence.layers",
    "Gradient": "gradient",
    "LSTM": "recurrence.layers",
    "LinearRNN": "recurrence.linear",
    "RFLO": "modes",
    "RNN": "recurrence.layers",
    "RTRL": "modes",
    "RandomTruncation": "truncation",
    "Recurrent": "recurrence.recurrent",
    "Reverse": "modes",
    "Scan": "modes",
    "SnAp": "modes",
    "Streamed": "streamed",
    "Window": "truncation",
    "check_model": "recurrence.check",
    "compare": "measure.compare",
    "unroll": "gradient",
    "value_and_grad": "gradient",
}

__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
