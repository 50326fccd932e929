"""The loops over time, on plain tensors: they know gates, resets and frozen rows, nothing of models or truncations."""

from .cells import CELLS
from .edges import Edges
from .reference import run_layer

__all__ = ["CELLS", "Edges", "run_layer"]
