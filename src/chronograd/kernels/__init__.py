"""The loops over time, on plain tensors: they know gates, resets and frozen rows, nothing of models or truncations."""

from .cells import CELLS
from .edges import Edges
from .layer import run_projected

__all__ = ["CELLS", "Edges", "run_projected"]
